"""Work flows data -> model -> training -> pipelines -> cli over kernels; a file imports only from what stands before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "kernels": {"kernels"},
    "dna_mamba/data": {"data", "errors", "files", "signals"},
    "dna_mamba/model": {"kernels", "model", "errors", "files", "values"},
    "dna_mamba/training": {"kernels", "data", "model", "training", "errors", "files", "progress", "signals", "values"},
    "pipelines": {
        "kernels",
        "data",
        "model",
        "training",
        "pipelines",
        "device",
        "errors",
        "files",
        "progress",
        "signals",
        "values",
    },
}
OUTSIDE = {
    "kernels": {"torch", "numpy", "numba", "llvmlite", "triton"},
    "dna_mamba/model": {"torch", "numpy", "safetensors"},
    "dna_mamba/training": {"torch", "numpy", "safetensors", "lightning", "rich"},
}


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_stands_before_it(folder):
    assert files(folder)
    for path in files(folder):
        for name in imported(path):
            if name.startswith("dna_mamba."):
                assert name.split(".")[1] in MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("folder", OUTSIDE)
def test_the_lower_floors_need_few_packages(folder):
    for path in files(folder):
        for name in imported(path):
            top = name.split(".")[0]
            allowed = top in OUTSIDE[folder] or top in sys.stdlib_module_names or top == "dna_mamba"
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_nothing_imports_the_top_level_folders():
    for folder in ("dna_mamba", "kernels", "pipelines", "tests"):
        for path in files(folder):
            for name in imported(path):
                assert name.split(".")[0] not in ("kernels", "pipelines"), f"{path.relative_to(ROOT)} imports {name}"


def test_numba_and_torch_are_loaded_when_first_used():
    code = """
import sys
import dna_mamba.cli
assert not {'torch', 'numba', 'numpy'} & set(sys.modules), 'cli'
import dna_mamba.kernels.selective_scan, dna_mamba.model.backbone
assert 'numba' not in sys.modules, 'kernels'
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
