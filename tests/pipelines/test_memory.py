"""Memory of a training step hardly grows with the length of its window."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LIMIT_GIB = 14.0


def peak_gib(seq_len, folder):
    """Run one optimizer step of 12 x 128 on the demo genome in a process of its own; give its peak memory."""
    arguments = ["pretrain", "--seq-len", str(seq_len), "--steps", "1", "--length-warmup", "none", "--model", "12x128"]
    arguments += ["--out", str(folder / str(seq_len)), "--set", f"training.bases_per_step={seq_len}"]
    arguments += ["evaluation.valid_bases=2000", "evaluation.test_bases=2000", "evaluation.markov_max_order=-1"]
    code = f"""
import resource, sys
sys.argv = ["dna-mamba"] + {arguments!r}
from dna_mamba.cli import main
main()
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return float(re.search(r"peak ([\d.]+)", done.stdout)[1])


@pytest.mark.slow
def test_a_million_bases_fit_into_14_gib(tmp_path):
    short, long = (peak_gib(length, tmp_path) for length in (65_536, 131_072))
    at_a_million = long + (long - short) * (1_048_576 - 131_072) / 65_536
    assert long < LIMIT_GIB and at_a_million < LIMIT_GIB, (short, long, at_a_million)
    assert long < 1.25 * short, (short, long)
