"""SIGKILL at random moments of embedding and scoring: nothing or the whole result, and the same bytes in the end.

KILLS=50 in the environment tries more moments than the few of every run.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dna_mamba.data.examples import giab_variants
from tests.conftest import ROOT, random_letters

KILLS = int(os.environ.get("KILLS", "3"))


def start(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DNA_MAMBA_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "dna_mamba.cli", *map(str, words)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(folder, *words):
    began = time.monotonic()
    process = start(folder, *words)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    return time.monotonic() - began


def killed_again_and_again(folder, expected, out, *words):
    """Kill a command at random moments of its run time; give how often it was still at work."""
    seconds, killed = finish(folder, *words, "-o", expected), 0
    whole = expected.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(KILLS):
        process = start(folder, *words, "-o", out)
        try:
            process.wait(generator.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        process.stderr.close()
        if out.exists():
            assert out.read_bytes() == whole
            out.unlink()
    finish(folder, *words, "-o", out)
    assert out.read_bytes() == whole
    return killed


@pytest.mark.slow
def test_embedding_that_is_killed_ends_in_the_same_bytes(tmp_path):
    (tmp_path / "g.fa").write_text("".join(f">r{i}\n{random_letters(90_000, i)}\n" for i in range(8)))
    killed = killed_again_and_again(
        tmp_path, tmp_path / "whole.npz", tmp_path / "o.npz",
        "embed", "human-4x64", "g.fa", "--pool", "window:50", "--strands", "both", "--device", "cpu",
    )  # fmt: skip
    assert killed > 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".o.npz")]


@pytest.mark.slow
def test_scoring_that_is_killed_ends_in_the_same_bytes(tmp_path):
    killed = killed_again_and_again(
        tmp_path, tmp_path / "whole.vcf.gz", tmp_path / "o.vcf.gz",
        "score", "human-4x64", giab_variants(), "--genome", "demo", "--left", "32", "--right", "4", "--device", "cpu",
    )  # fmt: skip
    assert killed > 0
