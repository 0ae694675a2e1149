"""What a stranger hands us executes nothing: floors of versions, and no call in our code that could."""

import ast
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT

# advisories: torch CVE-2025-32434 and CVE-2026-24747, lightning GHSA-w37p-236h-pfx3 (2.6.2 and 2.6.3 were malware), transformers
# CVE-2026-4372 and CVE-2026-5241, htslib CVE-2026-31962 to 31971 (pysam 0.24.1 carries 1.24)
FLOORS = {"torch": "2.10", "lightning": "2.6.4", "transformers": "5.3", "pysam": "0.24.1"}
FILES = [path for folder in ("dna_mamba", "kernels", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(r) for some in (project["dependencies"], *project["optional-dependencies"].values()) for r in some
    ]


@pytest.mark.parametrize("name", FLOORS)
def test_no_release_with_a_known_hole_is_allowed(name):
    found = [r for r in requirements() if r.name == name]
    assert found
    below = [
        Version(v)
        for v in ("0.1", "0.24.0", "2.5.1", "2.6.3", "2.9.1", "4.57", "5.2.9")
        if Version(v) < Version(FLOORS[name])
    ]
    for requirement in found:
        assert below and not [v for v in below if v in requirement.specifier], requirement
        assert Version(FLOORS[name]) in requirement.specifier


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
