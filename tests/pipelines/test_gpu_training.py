"""A run on Triton kernels learns as one on the CPU's: interpreted in miniature, and on a GPU."""

import csv

import numpy as np
import pytest
import torch

from tests.conftest import dna_mamba, random_letters


def losses(tmp_path, name, *options, scored_bases=20_000):
    done = dna_mamba(
        "pretrain", "--out", name, *options, "evaluation.markov_max_order=-1",
        f"evaluation.test_bases={scored_bases}", f"evaluation.valid_bases={scored_bases}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / name / "metrics.csv").open() as file:
        return np.array([float(row["train_loss"]) for row in csv.DictReader(file)]), done.stderr + done.stdout


@pytest.mark.gpu
def test_the_demo_has_the_same_loss_curve_on_a_gpu(tmp_path):
    expected, _ = losses(tmp_path, "cpu", "--steps", "50", "--device", "cpu", "--set")
    assert expected[0] - expected[-1] > 0.5  # it learns, so that the curves could differ
    for precision, tolerance in (("fp32", 2e-3), ("bf16", 2e-2)):  # nats; the loss falls from 2.77 to about 1.4
        given, words = losses(
            tmp_path, precision, "--steps", "50", "--device", "cuda", "--precision", precision, "--set"
        )
        assert "kernels: triton" in words
        difference = np.abs(given - expected).max()
        print(f"{precision}: largest difference of the loss over 50 steps: {difference:.2e} nats")
        assert difference < tolerance


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are compiled, not interpreted")
def test_a_run_on_interpreted_kernels_has_the_loss_curve_of_the_cpu(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    (tmp_path / "g.fa").write_text(f">c\n{random_letters(12_000)}\n")
    tiny = ["--genome", "g.fa", "--device", "cpu", "--model", "1x8", "--seq-len", "32", "--length-warmup", "none"]
    tiny += [
        "--steps",
        "3",
        "--set",
        "training.bases_per_step=32",
        "training.piece_bases=20",
        "model.mamba.num_states=3",
    ]
    expected, _ = losses(tmp_path, "cpu", *tiny, scored_bases=30)
    given, words = losses(tmp_path, "triton", *tiny, "implementation=triton", scored_bases=30)
    assert "kernels: triton" in words
    assert expected[0] - expected[-1] > 0.01 and np.abs(given - expected).max() < 1e-5
