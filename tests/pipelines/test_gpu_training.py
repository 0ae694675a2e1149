"""A run on a GPU learns as a run on a CPU does."""

import csv

import numpy as np
import pytest

from tests.conftest import dna_mamba


def losses(tmp_path, name, *options):
    done = dna_mamba(
        "pretrain", "--steps", "50", "--out", name, *options, "--set", "evaluation.markov_max_order=-1",
        "evaluation.test_bases=20000", "evaluation.valid_bases=20000", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / name / "metrics.csv").open() as file:
        return np.array([float(row["train_loss"]) for row in csv.DictReader(file)]), done.stderr + done.stdout


@pytest.mark.gpu
def test_the_demo_has_the_same_loss_curve_on_a_gpu(tmp_path):
    expected, _ = losses(tmp_path, "cpu", "--device", "cpu")
    assert expected[0] - expected[-1] > 0.5  # it learns, so that the curves could differ
    for precision, tolerance in (("fp32", 2e-3), ("bf16", 2e-2)):  # nats; the loss falls from 2.77 to about 1.4
        given, words = losses(tmp_path, precision, "--device", "cuda", "--precision", precision)
        assert "kernels: triton" in words
        difference = np.abs(given - expected).max()
        print(f"{precision}: largest difference of the loss over 50 steps: {difference:.2e} nats")
        assert difference < tolerance
