"""One choice of kernels for training, reading and generation: what trains can be read."""

import subprocess
import sys

import pytest

from dna_mamba.errors import InputError
from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.implementation import implementation_for
from dna_mamba.model.mixers.mamba import MambaConfig
from tests.conftest import random_letters

USUAL, MANY, TAPS = (
    BackboneConfig(pattern="M", width=16, mamba=mamba)
    for mamba in (MambaConfig(), MambaConfig(num_states=65), MambaConfig(num_taps=5))
)


@pytest.mark.parametrize(
    "config, expected", [(USUAL, "triton"), (MANY, "naive"), (TAPS, "naive")], ids=["usual", "states", "taps"]
)
def test_what_the_fused_kernels_cannot_take_runs_naive_everywhere(config, expected, monkeypatch):
    monkeypatch.setattr("dna_mamba.model.implementation.HAS_TRITON", True)
    assert implementation_for(config, "cuda") == expected and implementation_for(config, "cpu") == "cpu"
    monkeypatch.setattr("dna_mamba.model.implementation.interpreted", lambda: False)
    for wanted, device in (("cpu", "cuda"), ("triton", "cpu")):
        with pytest.raises(InputError, match=f"implementation '{wanted}' runs on"):
            implementation_for(config, device, wanted)
    if expected == "naive":
        with pytest.raises(InputError, match="cannot run this model: at most 64 states and 2 to 4 taps"):
            implementation_for(config, "cuda", "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("config", [MANY, TAPS], ids=["states", "taps"])
def test_a_model_beyond_the_fused_kernels_is_read_scored_and_generated_from_on_a_gpu(config, tmp_path):
    import numpy as np
    import torch

    import dna_mamba as dm
    from dna_mamba.model.backbone import DnaMamba
    from dna_mamba.model.checkpoints.native import save_pretrained

    torch.manual_seed(0)
    save_pretrained(DnaMamba(config), tmp_path / "m", {})
    on_gpu, on_cpu = dm.load(tmp_path / "m", device="cuda"), dm.load(tmp_path / "m", device="cpu")
    text = "ACGTTGCATTAGACCA" * 8
    assert np.allclose(on_gpu.embed(text), on_cpu.embed(text), atol=1e-4)
    assert on_gpu.score(text) == pytest.approx(on_cpu.score(text), abs=1e-2)
    assert len(on_gpu.generate("ACGT", 10)[0]) == 10


ON_THE_CPU = """
from dna_mamba.cli import app
for words in (["pretrain", "--genome", "g.fa", "--device", "cpu", "--model", "1x16", "--steps", "4", "--seq-len", "256", "--out", "run",
               "--set", "training.bases_per_step=1024", "evaluation.markov_max_order=1", "training.validate_every_steps=2"],
              ["embed", "run", "--device", "cpu", "x.fa", "-o", "v.npz"], ["generate", "run", "--device", "cpu", "--length", "5"]):
    app(words, result_action="return_value")
"""


def run_on_the_cpu(folder, before, after):
    (folder / "x.fa").write_text(">a\nACGTACGTAC\n")
    (folder / "g.fa").write_text(f">a\n{random_letters(40_000)}\n")
    code = f"import torch\n{before}\n{ON_THE_CPU}\n{after}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


@pytest.mark.gpu
def test_a_run_on_the_cpu_makes_no_context_on_a_gpu(tmp_path):
    run_on_the_cpu(tmp_path, "", "assert torch.cuda.is_available() and not torch.cuda.is_initialized()")


def test_a_run_on_the_cpu_asks_nothing_of_a_gpu_whose_memory_is_full(tmp_path):
    full = """
def refuse():
    raise RuntimeError("CUDA error: out of memory")
for module in (torch.cuda, torch.cuda.random, torch.cuda.memory):
    module._lazy_init, module.is_available, module.device_count = refuse, lambda: True, lambda: 1
"""
    run_on_the_cpu(tmp_path, full, "")
