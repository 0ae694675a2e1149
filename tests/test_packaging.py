"""The two linked folders are packages everywhere, and a wheel holds all that stands on the disk."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["kernels", "pipelines"])
def test_a_top_level_folder_is_reached_through_its_link(name):
    link = ROOT / "dna_mamba" / name
    assert link.is_symlink() and link.is_dir() and link.resolve() == ROOT / name
    assert not os.readlink(link).startswith("/")


@pytest.mark.parametrize("module", ["dna_mamba", "dna_mamba.cli"])
def test_the_version_is_that_of_the_project_wherever_it_stands(module):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[0] == f"dna-mamba {version}"
    assert f"dna-mamba {version}," in (ROOT / "mkdocs.yml").read_text()


def test_kernels_is_no_regular_package():
    # it would hide Hugging Face's package of that name from anyone who starts Python in the clone
    assert not (ROOT / "kernels" / "__init__.py").exists()


def files_on_disk():
    for folder, prefix in (
        (ROOT / "dna_mamba", "dna_mamba"),
        (ROOT / "kernels", "dna_mamba/kernels"),
        (ROOT / "pipelines", "dna_mamba/pipelines"),
    ):
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            if path.is_dir() or "__pycache__" in path.parts or inside.parts[0] in ("kernels", "pipelines"):
                continue
            yield f"{prefix}/{inside}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    names = [name for name in listed.decode().split("\0") if name and os.path.lexists(ROOT / name)]
    subprocess.run(["tar", "cf", source / "x.tar", *names], cwd=ROOT, check=True)
    subprocess.run(["tar", "xf", "x.tar"], cwd=source, check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source],
        check=True,
        capture_output=True,
    )
    return next(target.glob("*.whl"))


def test_the_wheel_holds_every_file_and_nothing_else(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == set(files_on_disk())


def test_the_installed_wheel_runs_in_an_environment_of_its_own_outside_the_checkout(wheel, tmp_path):
    # the dependencies are lent by path, which runs none of this environment's .pth files: the checkout stays unknown
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python, script = environment / "bin" / "python", environment / "bin" / "dna-mamba"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    (tmp_path / "g.fa").write_text(">chr1\nACGTNacgt\n")

    def run(*arguments):
        done = subprocess.run([*arguments], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(python, "-c", "import dna_mamba; print(dna_mamba.__file__)").strip() == str(
        site / "dna_mamba" / "__init__.py"
    )
    assert "1 contigs, 9 bases" in run(script, "genome", "build", "g.fa", "--out", "g.dna")
    assert "chr20" in run(
        script, "genome", "show", site / "dna_mamba" / "assets" / "chr20.hg38.fa.gz", "chr20:9000001-9000010"
    )
    assert "3,200 steps" in run(script, "pretrain", "--dry-run")


def test_the_dependency_floors_exclude_versions_that_run_code_or_were_compromised():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {d.partition(">=")[0]: d.partition(">=")[2].split(",")[0] for d in project["dependencies"]}
    assert tuple(map(int, floors["torch"].split("."))) >= (2, 10)
    assert tuple(map(int, floors["lightning"].split("."))) >= (2, 6, 4)
    assert not any(d.startswith("triton") for d in project["dependencies"])
