"""Shared settings and toy data; all of it is made in code."""

import atexit
import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported

ROOT = Path(__file__).resolve().parents[1]
LONG_FILES = [
    "test_faults",
    "test_notebooks",
    "test_memory",
    "test_exactness",
    "test_resume",
    "test_settings_act",
    "test_files",
    "test_simulate",
    "test_cli",
    "test_readme",
    "test_compiled_code",
    "test_fused_scan",
    "test_forks",
    "test_finetune_species",
    "test_gpu_training",
    "test_state_space_dual",
    "test_new_letter",
    "test_packaging",
    "test_step",
]


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none; what needs much of its memory runs last, when nothing else holds any."""
    # files that take minutes begin first, the longest before all, so that no worker waits for one at the end
    order = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(
        key=lambda item: (item.get_closest_marker("gpu_memory") is not None, order.get(item.path.stem, len(order)))
    )
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_runtest_setup(item):
    """Wait for the GPU memory that a test asks for; skip it, with the numbers, where others hold it."""
    marker = item.get_closest_marker("gpu_memory")
    if marker is None or not torch.cuda.is_available():
        return
    for _ in range(60):
        gc.collect()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 2**30
        if free >= marker.args[0]:
            return
        time.sleep(1)
    pytest.skip(f"needs {marker.args[0]} GiB of free GPU memory, {free:.1f} are free")


@pytest.fixture(autouse=True, scope="session")
def _deterministic():
    # fills torch.empty with NaN, so an output that a kernel forgot to write shows
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Every device there is."""
    return request.param


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request):
    """Where Triton kernels run: in the interpreter, on small shapes, or on a GPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    if request.param == "interpreter" and torch.cuda.is_available():
        pytest.skip("with a GPU the kernels are compiled, not interpreted")
    return "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNA_MAMBA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path) -> Callable[[str, bytes | str], Path]:
    """Write a file into the test's own folder."""

    def _write(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


def random_letters(num_bases: int, seed: int = 0) -> str:
    """Draw bases with a pattern that a model can learn: each base repeats the one before it in two of five cases."""
    generator = np.random.default_rng(seed)
    bases = generator.integers(0, 4, num_bases)
    for i in np.flatnonzero(generator.random(num_bases) < 0.4):
        bases[i] = bases[i - 1]
    return "".join("ACGT"[b] for b in bases)


@pytest.fixture(scope="session")
def toy_fasta(tmp_path_factory) -> Path:
    """Two contigs of 40,000 and 20,000 bases."""
    path = tmp_path_factory.mktemp("toy") / "toy.fa"
    path.write_text(f">chrA first\n{random_letters(40_000, 1)}\n>chrB\n{random_letters(20_000, 2)}\n")
    return path


@functools.cache
def _zygote() -> Any:
    from tests.zygote import Zygote

    process = Zygote(Path(tempfile.mkdtemp(prefix="zygote-")))
    atexit.register(shutil.rmtree, process.folder, ignore_errors=True)
    atexit.register(process.close)
    return process


def dna_mamba(
    *arguments: str | Path, cwd: Path | None = None, forked: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own: a fork where that is the same, which starts in milliseconds."""
    if forked and set(environment) <= {"COLUMNS"} and not torch.cuda.is_available():
        return _zygote().completed(*arguments, cwd=cwd or Path.cwd(), **{**os.environ, **environment})
    path = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    return subprocess.run(
        [sys.executable, "-m", "dna_mamba.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *path]), **environment},
        timeout=600,
    )


def new_classifier(config, labels, pooling="last"):
    """Make a classifier from scratch."""
    from dna_mamba.model.heads.classes import ClassHead
    from dna_mamba.model.sequence_model import SequenceModel

    return SequenceModel(config, functools.partial(ClassHead, labels=labels, pooling=pooling))


def classifier_from(language_model, labels, pooling="last"):
    """Make a classifier on the backbone of a language model."""
    from dna_mamba.model.heads.classes import ClassHead
    from dna_mamba.model.sequence_model import SequenceModel

    return SequenceModel.from_language_model(
        language_model, functools.partial(ClassHead, labels=labels, pooling=pooling)
    )
