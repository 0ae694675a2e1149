"""Allele scores from one pass with forks equal those of each allele read from scratch."""

import numpy as np
import pytest
import torch

from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.reading import forks, walk
from dna_mamba.reading.forks import Allele, score_alleles


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="MM", width=16)).eval().use_implementation("cpu")
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    return model


def tokens_of_length(number, seed=0):
    return np.random.default_rng(seed).choice([7, 8, 9, 10, 11], number, p=[0.24] * 4 + [0.04]).astype(np.uint8)


@torch.no_grad()
def from_scratch(model, sequence, allele, left, right):
    """Both alleles whole, in float32 with plain torch, only the bases after the context counted."""
    start, end = allele.start, allele.start + allele.ref_bases
    first = 0 if left is None else max(0, start - left)
    values = []
    for middle in (allele.tokens, sequence[start:end]):
        whole = np.concatenate([sequence[first:start], middle, sequence[end : end + right]])
        if len(whole) == 1:
            values.append(0.0)
            continue
        tokens_BT = torch.from_numpy(whole)[None]
        log_p = model(tokens_BT[:, :-1])[0][0, :, 7:11].double().log_softmax(-1)
        total = 0.0
        for place in range(max(1, start - first), len(whole)):
            if whole[place] < 11:
                total += float(log_p[place - 1, int(whole[place]) - 7])
        values.append(total)
    return values[0] - values[1]


def alleles_of(sequence, generator, number):
    found = []
    for _ in range(number):
        ref, alt = (int(generator.integers(1, 6)) for _ in range(2))
        start = int(generator.integers(0, len(sequence) - ref + 1))
        found.append(Allele(start, ref, generator.integers(7, 11, alt).astype(np.uint8)))
    L = len(sequence)
    ends = [
        Allele(0, 1, np.array([8], np.uint8)),
        Allele(0, 3, np.array([9], np.uint8)),
        Allele(L - 1, 1, np.array([7, 7], np.uint8)),
    ]
    return found + ends


def distances_from_scratch(model, sequence, allele, left, right):
    """Mean vectors of allele and flank in plain torch."""
    start, end = allele.start, allele.start + allele.ref_bases
    first = 0 if left is None else max(0, start - left)
    means = []
    for middle in (allele.tokens, sequence[start:end]):
        whole = torch.from_numpy(np.concatenate([sequence[first:start], middle, sequence[end : end + right]]))[None]
        with torch.no_grad():
            means.append(model.backbone(whole)[0][0, start - first :].double().mean(0))
    return float((means[0] - means[1]).norm())


@pytest.mark.parametrize("left", [None, 33])
def test_distances_are_those_of_mean_vectors(model, left, monkeypatch):
    monkeypatch.setitem(forks.BATCH_BASES, "cpu", 300)
    sequence = tokens_of_length(300)
    alleles = alleles_of(sequence, np.random.default_rng(4), 15)
    found = score_alleles(model, lambda a, b: sequence[a:b], 300, alleles, left=left, right=40, distance=True)
    expected = [distances_from_scratch(model, sequence, allele, left, 40) for allele in alleles]
    assert max(expected) > 0.1 and np.allclose(found.distances, expected, atol=1e-4)
    plain = score_alleles(model, lambda a, b: sequence[a:b], 300, alleles, left=left, right=40)
    assert plain.distances is None and np.allclose(plain.ratios, found.ratios, atol=1e-5)


def test_forks_inside_large_pieces_equal_those_from_scratch(triton_device, monkeypatch):
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="M", width=16)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    monkeypatch.setitem(forks.PIECES, triton_device, 50)
    monkeypatch.setattr(forks, "MOST_STATE_BYTES", 2 * 32 * 19 * 4)  # two states: pieces end early
    sequence = tokens_of_length(110)
    alleles = alleles_of(sequence, np.random.default_rng(1), 4)
    alleles += [Allele(place, 1, np.array([7], np.uint8)) for place in (1, 16, 17, 50, 51)]
    read = lambda a, b: sequence[a:b]  # noqa: E731
    calls = []
    original = walk.Walk.piece
    monkeypatch.setattr(walk.Walk, "piece", lambda *given: (calls.append(given[1]), original(*given))[1])
    model = model.to(triton_device).use_implementation("triton")
    found = score_alleles(model, read, 110, alleles, left=None, right=12, distance=True)
    assert len(calls) >= 3 and calls[0] < 50  # the road that is meant
    model = model.cpu().use_implementation("cpu")
    assert np.allclose(found.ratios, [from_scratch(model, sequence, a, None, 12) for a in alleles], atol=1e-3)
    expected = [distances_from_scratch(model, sequence, a, None, 12) for a in alleles]
    assert np.allclose(found.distances, expected, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("left", [None, 500])
def test_scores_on_a_gpu_equal_those_from_scratch(left):
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="M" * 6, width=128)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    sequence = tokens_of_length(20_000)
    alleles = alleles_of(sequence, np.random.default_rng(5), 400)
    read = lambda a, b: sequence[a:b]  # noqa: E731
    given = score_alleles(model.cuda().use_implementation("triton"), read, 20_000, alleles, left=left, right=100)
    model = model.cpu().use_implementation("cpu")
    some = range(0, len(alleles), 40)
    expected = [from_scratch(model, sequence, alleles[i], left, 100) for i in some]
    assert np.abs(expected).max() > 0.5 and np.allclose(given.ratios[list(some)], expected, atol=1e-3)


@pytest.mark.parametrize("left", [None, 40, 1, 0])
@pytest.mark.parametrize("right", [0, 25, 1000])
def test_scores_equal_those_from_scratch(model, left, right, monkeypatch):
    monkeypatch.setitem(forks.BATCH_BASES, "cpu", 200)  # several batches, and long forks in pieces
    monkeypatch.setitem(forks.PIECES, "cpu", 64)
    sequence = tokens_of_length(400)
    alleles = alleles_of(sequence, np.random.default_rng(1), 30)
    found = score_alleles(model, lambda a, b: sequence[a:b], 400, alleles, left=left, right=right).ratios
    expected = [from_scratch(model, sequence, allele, left, right) for allele in alleles]
    assert np.abs(expected).max() > 0.5
    assert np.allclose(found, expected, atol=1e-3)


def test_order_and_companions_change_nothing(model):
    sequence = tokens_of_length(300)
    alleles = alleles_of(sequence, np.random.default_rng(2), 20)
    read = lambda a, b: sequence[a:b]  # noqa: E731
    together = score_alleles(model, read, 300, alleles, left=None, right=50).ratios
    order = np.random.default_rng(3).permutation(len(alleles))
    shuffled = score_alleles(model, read, 300, [alleles[i] for i in order], left=None, right=50).ratios
    alone = [score_alleles(model, read, 300, [allele], left=None, right=50).ratios[0] for allele in alleles]
    assert np.allclose(shuffled, together[order], atol=1e-5) and np.allclose(alone, together, atol=1e-4)


def test_an_allele_that_changes_nothing_scores_nothing(model):
    sequence = tokens_of_length(300)
    same = [Allele(place, 4, sequence[place : place + 4]) for place in (0, 17, 200, 296)]
    assert np.abs(score_alleles(model, lambda a, b: sequence[a:b], 300, same, left=None, right=60).ratios).max() < 1e-4


def test_a_long_run_of_n_is_passed_over_when_it_changes_nothing(model, monkeypatch):
    """The score after 40,000 N is that of reading them all; once the state rests they are not read."""
    monkeypatch.setattr(walk, "N_PIECE", 512)
    sequence = np.concatenate([tokens_of_length(100), np.full(40_000, 11, np.uint8), tokens_of_length(300, 5)])
    allele = Allele(40_150, 1, np.array([7], np.uint8))
    counted = []
    original = walk.Walk._read
    monkeypatch.setattr(
        walk.Walk, "_read", lambda self, tokens: (counted.append(len(tokens)), original(self, tokens))[1]
    )
    found = score_alleles(model, lambda a, b: sequence[a:b], len(sequence), [allele], left=None, right=50).ratios
    assert found[0] == pytest.approx(from_scratch(model, sequence, allele, None, 50), abs=1e-3)
    assert sum(counted) < 30_000
