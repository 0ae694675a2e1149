"""The two linked folders are packages everywhere, and a wheel holds all that stands on the disk."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["kernels", "pipelines"])
def test_a_top_level_folder_is_reached_through_its_link(name):
    link = ROOT / "dna_mamba" / name
    assert link.is_symlink() and link.is_dir() and link.resolve() == ROOT / name
    assert not os.readlink(link).startswith("/")


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


def test_the_installed_wheel_runs_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    code = (
        "import dna_mamba, dna_mamba.kernels.selective_scan, dna_mamba.pipelines.pretrain as p;"
        "print(dna_mamba.__file__, p.demo_genome().exists())"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == [str(site / "dna_mamba" / "__init__.py"), "True"]
    listed = subprocess.run(
        [sys.executable, "-m", "dna_mamba.cli", "genome", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0 and "build" in listed.stdout


def test_the_dependency_floors_exclude_versions_that_run_code_or_were_compromised():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {d.partition(">=")[0]: d.partition(">=")[2].split(",")[0] for d in project["dependencies"]}
    assert tuple(map(int, floors["torch"].split("."))) >= (2, 10)
    assert tuple(map(int, floors["lightning"].split("."))) >= (2, 6, 4)
    assert not any(d.startswith("triton") for d in project["dependencies"])
