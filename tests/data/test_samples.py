"""Samples of held-out bases: what they count, where they lie, and what is read before them."""

import tracemalloc

import numpy as np
import pytest

from dna_mamba.data.intervals import Interval
from dna_mamba.data.samples import Stretch, count_targets, sample
from dna_mamba.data.store.build import build
from dna_mamba.errors import InputError
from tests.conftest import random_letters


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    """Give a contig whose first half is N, as those of hg38's acrocentric chromosomes are, and one of nothing but N."""
    folder = tmp_path_factory.mktemp("samples")
    letters = "N" * 50_000 + random_letters(50_000, 1)
    (folder / "x.fa").write_text(f">v\n{letters}\n>n\n{'N' * 300}\n")
    return build([folder / "x.fa"], folder / "x.dna")


def known_of(genome, stretches):
    """Count letters of the text, the first that is read left out."""
    texts = [genome.fetch(one.interval)[1 if one.start == one.read_from else 0 :] for one in stretches]
    return sum(len(text) - text.count("N") for text in texts)


def test_a_sample_counts_known_bases_and_not_the_first_positions(genome):
    found = sample(genome, [Interval("v", 0, 100_000)], 1000, context=256)
    assert known_of(genome, found) == 1000
    assert min(one.start for one in found) >= 50_000 - 1000


@pytest.mark.parametrize("most", [2, 100, 999, 7777, 40_000])
def test_no_more_than_was_asked_for_is_scored_and_nearly_all_of_it(genome, most):
    intervals = [Interval("v", start, start + 500) for start in range(0, 100_000, 500)]
    found = sample(genome, intervals, most, context=256)
    assert most >= known_of(genome, found) >= 0.8 * most - 1
    assert known_of(genome, found) == count_targets(genome, found).sum()


def test_a_sample_is_spread_over_the_part(genome):
    found = sample(genome, [Interval("v", 50_000, 100_000)], 10_000, context=64)
    middles = np.array([(one.start + one.end) / 2 for one in found])
    counts, _ = np.histogram(middles, bins=5, range=(50_000, 100_000))
    assert len(found) >= 9 and counts.min() >= 1


def test_each_base_keeps_its_context(genome):
    for one in sample(genome, [Interval("v", 50_000, 100_000)], 5000, context=6000):
        assert one.start - one.read_from == min(6000, one.start - 50_000)
    for one in sample(genome, [Interval("v", s, s + 4096) for s in range(50_000, 90_000, 4096)], 20_480, context=4096):
        assert one.read_from == one.start and len(one.interval) == 4096  # whole intervals, none cut to its first bases


def test_all_is_scored_where_it_is_not_too_much(genome):
    intervals = [Interval("v", 0, 100_000), Interval("n", 0, 300)]
    assert sample(genome, intervals, 50_000, context=10) == [Stretch.of(one) for one in intervals]


def test_what_cannot_be_scored_is_refused(genome):
    with pytest.raises(InputError, match="no base to score"):
        sample(genome, [Interval("n", 0, 300), Interval("v", 10, 20)], 100, context=10)
    assert sample(genome, [Interval("v", 49_999, 50_001)], 100, context=10)  # one base, with an N before it
    with pytest.raises(InputError, match="no base to score"):
        sample(genome, [Interval("v", 50_000, 50_001)], 100, context=10)
    assert sample(genome, [Interval("v", 50_000, 50_001)], 100, context=10, start_token=True)


@pytest.mark.parametrize("most", [1000, 5000, 12_000])
@pytest.mark.parametrize("turned", [False, True])
def test_parts_of_unequal_contigs_are_scored_by_their_bases(tmp_path, most, turned):
    lengths = [50] * 150 + [15_000] + [50] * 150
    text = "".join(f">c{n}\n{random_letters(length, n)}\n" for n, length in enumerate(lengths))
    (tmp_path / "x.fa").write_text(text)
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    intervals = [Interval(f"c{n}", 0, length) for n, length in enumerate(lengths)]
    found = sample(genome, intervals[::-1] if turned else intervals, most, context=64)
    assert most >= known_of(genome, found) >= 0.8 * most
    for numbers, expected in ((range(150), 0.25), (range(150, 151), 0.5), (range(151, 301), 0.25)):
        part = [one for one in found if int(one.contig[1:]) in numbers]
        assert abs(known_of(genome, part) / known_of(genome, found) - expected) < 0.12  # as finely as places go


def test_a_part_with_much_n_and_little_else_is_scored_in_full_measure(tmp_path):
    letters = "".join(random_letters(20, n) + "N" * 980 for n in range(200)) + random_letters(20_000, 999)
    (tmp_path / "x.fa").write_text(f">v\n{letters}\n")
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    found = sample(genome, [Interval("v", 0, len(letters))], 6000, context=64)
    assert 6000 >= known_of(genome, found) >= 4800
    sparse = [one for one in found if one.end <= 200_000]
    assert 0.05 < known_of(genome, sparse) / known_of(genome, found) < 0.3


def test_few_bases_of_a_large_contig_take_no_memory_of_its_size(tmp_path):
    (tmp_path / "x.fa").write_text(f">v\n{random_letters(20_000, 5) * 500}\n")  # 10,000,000 bases
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    genome.n_runs("v")  # read once, and kept
    tracemalloc.start()
    found = sample(genome, [Interval("v", 0, 10_000_000)], 100, context=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert known_of(genome, found) == 100 and peak < 1e6


def test_no_base_is_scored_twice_and_contigs_of_one_target_are_not_passed_over(tmp_path):
    (tmp_path / "x.fa").write_text("".join(f">c{n}\n{random_letters(2, n)}\n" for n in range(300)))
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    found = sample(genome, [Interval(f"c{n}", 0, 2) for n in range(300)], 290, context=64)
    assert len({one.contig for one in found}) == len(found) >= 280
