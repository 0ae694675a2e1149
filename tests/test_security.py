"""What a stranger hands us executes nothing: floors of versions, and no call in our code that could."""

import ast
import re
import tomllib
from contextlib import suppress
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.conftest import ROOT

ADVISORIES = tomllib.loads((ROOT / "constraints" / "advisories.toml").read_text())["advisory"]
FLOORS = {"torch": "2.10", "lightning": "2.6.4", "transformers": "5.3", "pysam": "0.24.1"}
FILES = [path for folder in ("dna_mamba", "kernels", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(r) for some in (project["dependencies"], *project["optional-dependencies"].values()) for r in some
    ]


def pins():
    lines = (ROOT / "constraints" / "cpu.txt").read_text().splitlines()
    return {
        line.partition("==")[0].lower(): Version(line.partition("==")[2])
        for line in lines
        if "==" in line and line[0] != "#"
    }


@pytest.mark.parametrize("advisory", ADVISORIES, ids=lambda advisory: f"{advisory['package']} {advisory['id']}")
def test_no_release_with_a_known_hole_is_allowed_pinned_or_installed(advisory):
    affected = SpecifierSet(advisory["affected"])
    assert advisory["releases"] and all(release in affected for release in advisory["releases"])
    found = [r for r in requirements() if r.name == advisory["package"]]
    assert found, "an advisory about a package that nothing depends on"
    for requirement in found:
        allowed = [release for release in advisory["releases"] if release in requirement.specifier]
        assert not allowed, f"{requirement} allows {allowed}: {advisory['what']}"
    assert pins()[advisory["package"]] not in affected
    with suppress(metadata.PackageNotFoundError):
        assert Version(metadata.version(advisory["package"])) not in affected


@pytest.mark.parametrize("name", FLOORS)
def test_the_floor_itself_is_allowed(name):
    found = [r for r in requirements() if r.name == name]
    assert found and all(Version(FLOORS[name]) in requirement.specifier for requirement in found)


def test_every_dependency_is_pinned():
    for requirement in requirements():
        if requirement.name.lower() != "setuptools":  # which builds the wheel
            assert requirement.name.lower() in pins(), requirement


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_nothing_in_our_code_executes_what_it_reads():
    assert len(FILES) > 80
    for path in FILES:
        text = path.read_text()
        for name, options in calls(ast.parse(text)):
            where = f"{path.relative_to(ROOT)}: {name}"
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.unsafe_load"), where
            assert not name.endswith((".extractall", ".extract")), where
            if name.endswith("torch.load"):
                assert options.get("weights_only") == "True", where
            if name == "yaml.load":
                assert options.get("Loader") == "_Loader", where
            if name.startswith("subprocess."):
                assert options.get("shell") is None, where
            assert "allow_pickle" not in options or options["allow_pickle"] == "False", where
            assert options.get("trust_remote_code") is None, where
        assert not re.search(r"weights_only=False", text), path


def test_the_test_above_sees_what_it_forbids():
    bad = "torch.load(x); yaml.load(y, Loader=yaml.Loader); pickle.loads(z); tar.extractall()"
    found = dict(calls(ast.parse(bad)))
    assert found == {"torch.load": {}, "yaml.load": {"Loader": "yaml.Loader"}, "pickle.loads": {}, "tar.extractall": {}}
