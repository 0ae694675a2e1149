"""Markov models against counts by hand and a slow independent implementation."""

from collections import Counter

import numpy as np
import pytest

from dna_mamba.data.intervals import Interval
from dna_mamba.data.markov import STRENGTHS, MarkovModels
from dna_mamba.data.store.build import build
from tests.conftest import random_letters


def slow_bits(train, test, order, strength=None):
    """Score the last letters of test[1:] by dictionaries of strings."""
    counts = [Counter() for _ in range(order + 1)]
    for text in train:
        for i, letter in enumerate(text):
            for k in range(order + 1):
                context = text[max(0, i - k) : i]
                if letter != "N" and len(context) == k and "N" not in context:
                    counts[k][context, letter] += 1

    def total(context):
        return sum(counts[len(context)][context, letter] for letter in "ACGT")

    def probability(context, letter):
        n, all_ = counts[len(context)][context, letter], total(context)
        if strength is None:
            return (n + 0.5) / (all_ + 2)
        below = probability(context[1:], letter) if context else 0.25
        return (n + strength * below) / (all_ + strength)

    bits = []
    for i, letter in enumerate(test):
        if i == 0 or letter == "N":
            continue
        context = test[max(0, i - order) : i].rpartition("N")[2]
        bits.append(-np.log2(probability(context, letter)))
    return np.mean(bits), len(bits)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("markov")
    letters = random_letters(3000, 8)
    letters = letters[:700] + "N" * 20 + letters[720:]
    (folder / "x.fa").write_text(f">c\n{letters}\n")
    return letters, build([folder / "x.fa"], folder / "x.dna")


@pytest.mark.parametrize("both_strands", [False, True])
def test_plain_and_interpolated_orders_equal_the_slow_implementation(fitted, both_strands):
    letters, store = fitted
    models = MarkovModels.fit(store, [Interval("c", 0, 2000)], both_strands=both_strands, max_order=4)
    test = letters[2000:2400] + "NN" + letters[2400:2600]
    scores = models.score([(np.array(["ACGTN".index(b) for b in test], np.uint8), 1)])
    train = [letters[:2000]]
    if both_strands:
        train.append(letters[:2000].translate(str.maketrans("ACGT", "TGCA"))[::-1])
    for order in range(5):
        expected, targets = slow_bits(train, test, order)
        assert scores.num_targets == targets == 599
        assert scores.plain[order] == pytest.approx(expected, rel=1e-9)
        for s in (0, 3):
            expected, _ = slow_bits(train, test, order, STRENGTHS[s])
            assert scores.interpolated[s, order] == pytest.approx(expected, rel=1e-9)


def test_counts_add_up_whatever_the_intervals(fitted):
    _, store = fitted
    whole = MarkovModels.fit(store, [Interval("c", 0, 2000)], both_strands=False, max_order=3)
    overlapping = MarkovModels.fit(
        store, [Interval("c", 0, 1500), Interval("c", 900, 2000)], both_strands=False, max_order=3
    )
    assert np.array_equal(whole._counts, overlapping._counts)
    assert whole._counts[:4].sum() == 1980
