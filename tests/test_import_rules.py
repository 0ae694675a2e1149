"""Work flows data -> model -> reading -> training -> pipelines -> cli over kernels; a file imports only from what stands before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONG_FILES, dna_mamba, new_classifier

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "kernels": {"kernels"},
    "dna_mamba/data": {"alphabet", "data", "errors", "files", "progress", "signals"},
    "dna_mamba/model": {"alphabet", "kernels", "model", "errors", "files", "values"},
    "dna_mamba/reading": {"alphabet", "kernels", "data", "model", "reading", "errors", "values"},
    "dna_mamba/training": {
        "kernels",
        "data",
        "model",
        "reading",
        "training",
        "alphabet",
        "errors",
        "files",
        "progress",
        "signals",
        "values",
    },
    "pipelines": {
        "kernels",
        "data",
        "model",
        "reading",
        "training",
        "pipelines",
        "alphabet",
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
    "dna_mamba/reading": {"torch", "numpy"},
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


READINGS = [
    "embed human-4x64 x.fa -o v.npz", "score human-4x64 v.vcf --genome x.fa -o o.vcf", "mutate human-4x64 --genome x.fa --region a:5-9 -o m.tsv",
    "track human-4x64 --genome x.fa -o t.bw", "generate human-4x64 --length 10", "evaluate human-4x64 --genome x.fa --region a:1-100 --json",
    "genome build x.fa --out g.dna", "genome audit x.fa --seq-len 64", "genome show x.fa a:1-9", "doctor", "classify c x.fa",
    "plan --genome x.fa --gpu H100", "pretrain --out run --resume", "finetune species --manifest great-apes --print-config",
]  # fmt: skip


@pytest.mark.parametrize("command", ["", *READINGS], ids=lambda command: " ".join(command.split(" ")[:2]) or "load")
def test_what_reads_a_model_loads_no_training_framework(command, tmp_path):
    letters = "ACGTTGCAAC" * 4000
    (tmp_path / "x.fa").write_text(f">a\n{letters}\n")
    (tmp_path / "v.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\na\t101\t.\tA\tG\n")
    if command.startswith("classify"):
        from dna_mamba.model.checkpoints.native import save_sequence_model
        from dna_mamba.model.config import BackboneConfig

        save_sequence_model(new_classifier(BackboneConfig(pattern="M", width=16), ("p", "q")), tmp_path / "c", {})
    if command.endswith("--resume"):  # of a run that had ended
        short = [
            "--genome",
            "x.fa",
            "--seq-len",
            "64",
            "--steps",
            "2",
            "--model",
            "1x16",
            "--set",
            "evaluation.markov_max_order=1",
        ]
        done = dna_mamba("pretrain", *short, "--out", "run", "--device", "cpu", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    run = "from dna_mamba.cli import app; app(sys.argv[1:], result_action='return_value')"
    code = f"""
import sys
{run if command else "import dna_mamba; dna_mamba.load('human-4x64', device='cpu')"}
heavy = {{"lightning", "transformers", "torchmetrics", "matplotlib", "torch._dynamo", "sklearn", "pandas"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_files_of_tests_that_begin_first_are_there():
    assert set(LONG_FILES) <= {path.stem for path in files("tests")}
