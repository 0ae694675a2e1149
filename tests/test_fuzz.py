"""A little fuzzing in every run: seeds of the corpus, cut, doubled, joined and changed byte by byte; make fuzz goes on for longer."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dna_mamba.data.store import cache as cache_module
from tests.fuzz import targets

CASES = 1000
"""Of each of nine targets."""
PIECES = [
    b"\0",
    b"\xff",
    b"\n",
    b"\r",
    b"\t",
    b">",
    b"-1",
    b"0",
    b"9" * 30,
    b"\xd9\xa1",
    b"{",
    b"[",
    b": ",
    b"nan",
    b"\x1f\x8b",
]
SEEDS = {
    name: [path.read_bytes() for path in sorted((targets.CORPUS / name).iterdir())] for name in sorted(targets.TARGETS)
}


@st.composite
def mutated(draw, seeds):
    """Draw a seed and change it in up to eight places."""
    content = bytearray(draw(st.sampled_from(seeds)))
    generator = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 8))):
        at, end = sorted(generator.randrange(len(content) + 1) for _ in range(2))
        how = generator.randrange(6)
        if how == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << generator.randrange(8)
        elif how == 1:
            del content[at:end]
        elif how == 2:
            content[at:at] = generator.choice(PIECES)
        elif how == 3:
            content[at:at] = content[at:end]
        elif how == 4:
            other = generator.choice(seeds)
            content[at:] = other[generator.randrange(len(other) + 1) :]
        else:
            content[at:at] = generator.randbytes(generator.randrange(1, 9))
    return bytes(content)


@pytest.mark.parametrize("name", SEEDS)
def test_whatever_is_read_is_refused_by_our_error_or_read_right(name):
    @settings(
        max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(mutated(SEEDS[name]))
    def check(data):
        targets.check(targets.TARGETS[name], data)

    for seed in SEEDS[name]:
        targets.check(targets.TARGETS[name], seed)
    check()


def test_every_target_has_seeds_and_some_of_them_are_valid(monkeypatch):
    assert set(SEEDS) == {path.name for path in targets.CORPUS.iterdir()} and min(map(len, SEEDS.values())) >= 2
    reached = []
    original = cache_module.GenomeStore.open
    monkeypatch.setattr(cache_module.GenomeStore, "open", lambda path: reached.append(path) or original(path))
    for seed in SEEDS["fasta"]:
        targets.fasta(seed)
    assert len(reached) >= 9, "three ways of packing three valid files"


def test_a_target_sees_a_wrong_base(monkeypatch):
    monkeypatch.setattr(targets, "fetch_indexed", lambda path, interval: "A" * len(interval))
    with pytest.raises(AssertionError):
        targets.fai(b"")
