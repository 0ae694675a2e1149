"""Scores of held-out bases against the whole sequence at once and by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from dna_mamba.data.intervals import Interval
from dna_mamba.data.objectives import TokenPolicy
from dna_mamba.data.samples import Stretch
from dna_mamba.data.store.build import build
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.evaluate import score_by_context
from dna_mamba.reading.losses import Score, _windows_with_bases, acgt_losses, loss_by_position, score_regions
from tests.conftest import random_letters


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    letters = random_letters(3000, 3)
    letters = letters[:500] + "NNN" + letters[503:1000].lower() + letters[1000:]
    (folder / "x.fa").write_text(f">c\n{letters}\n")
    return build([folder / "x.fa"], folder / "x.dna")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="MM", width=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def losses_by_hand(model, genome, interval):
    """Float64 log-softmax over the four letters, from logits of the whole interval at once."""
    tokens = torch.from_numpy(genome.tokens(interval).astype(np.int64))
    with torch.no_grad():
        logits = model(tokens[None, :-1])[0][0, :, 7:11].double()
    log_p = logits - torch.logsumexp(logits, -1, keepdim=True)
    targets = tokens[1:]
    known = targets < 11
    losses = -log_p[torch.arange(len(targets)), torch.where(known, targets - 7, 0)]
    return losses.numpy(), known.numpy()


@pytest.mark.parametrize("chunk", [1, 17, 1000, 5000])
def test_a_region_in_chunks_with_carried_state_equals_the_whole(model, genome, chunk):
    interval = Interval("c", 0, 1200) if chunk > 1 else Interval("c", 450, 560)
    losses, known = losses_by_hand(model, genome, interval)
    scores = score_regions(model, genome, [interval], TokenPolicy(), chunk=chunk)
    assert scores.total.num_bases == known.sum()
    assert scores.total.nats == pytest.approx(losses[known].sum(), rel=1e-5)
    assert scores.num_n == 3


def test_strata_add_up(model, genome):
    interval = Interval("c", 0, 1200)
    losses, known = losses_by_hand(model, genome, interval)
    scores = score_regions(model, genome, [interval], TokenPolicy())
    masked = np.zeros(1199, bool)
    masked[502:999] = True  # target t is base t + 1
    assert scores.soft_masked.num_bases == 497
    assert scores.soft_masked.nats == pytest.approx(losses[masked & known].sum(), rel=1e-5)
    assert scores.upper_case.num_bases == 1199 - 3 - 497
    assert scores.after_n.num_bases == 1


def test_a_start_token_makes_the_first_base_a_target(model, genome):
    scores = score_regions(model, genome, [Interval("c", 0, 100)], TokenPolicy(start_token=True), chunk=30)
    assert scores.total.num_bases == 100


@pytest.mark.parametrize("batch_bases", [16, 64, 10_000])
def test_loss_by_position_equals_windows_one_by_one(model, genome, batch_bases):
    nats, counts, of_windows = loss_by_position(
        model, genome, [Interval("c", 450, 700)], TokenPolicy(), window_bases=64, batch_bases=batch_bases
    )
    expected, known = np.zeros(64), np.zeros(64)
    for start in (450, 514, 578):
        losses, is_known = losses_by_hand(model, genome, Interval("c", start, start + 64))
        expected[1:] += losses * is_known
        known[1:] += is_known
    assert counts.tolist() == known.tolist()
    assert of_windows.sum(0).tolist() == pytest.approx([expected.sum(), known.sum()], rel=1e-5)
    np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-6)


def test_context_is_pooled_by_doubling(model, genome):
    region = [Interval("c", 1000, 1600)]
    rows = score_by_context(model, genome, region, TokenPolicy(), window_bases=12, bases_per_row=10**6)
    assert [(r.first, r.last) for r in rows] == [(1, 1), (2, 3), (4, 7), (8, 11)]
    assert [r.score.num_bases for r in rows] == [300, 300, 300, 200]  # windows of 2, 4, 8 and 12 bases
    losses = [losses_by_hand(model, genome, Interval("c", s, s + 4))[0] for s in range(1000, 1600, 4)]
    assert rows[1].score.nats == pytest.approx(sum(row[1:].sum() for row in losses), rel=1e-5)


def test_a_uniform_model_has_two_bits_and_perplexity_four():
    losses = acgt_losses(torch.zeros(1, 3, 16), torch.tensor([[7, 10, 11]]))
    assert losses[0].tolist() == pytest.approx([math.log(4), math.log(4), 0.0])
    score = Score(num_bases=2, nats=2 * math.log(4))
    assert score.bits_per_base == pytest.approx(2.0) and score.perplexity == pytest.approx(4.0)


def test_scores_over_other_tokens_do_not_count():
    logits = torch.zeros(1, 1, 16)
    logits[..., 11:] = 50.0  # a model sure of N says nothing about which base it would be
    assert acgt_losses(logits, torch.tensor([[8]])).item() == pytest.approx(math.log(4))


def test_a_stretch_is_scored_from_what_is_read_before_it(model, genome):
    losses, known = losses_by_hand(model, genome, Interval("c", 400, 700))
    scores = score_regions(model, genome, [Stretch("c", 600, 700, 400)], TokenPolicy(), chunk=37)
    assert scores.total.num_bases == known[199:].sum() == 100  # loss t is that of base t + 1
    assert scores.total.nats == pytest.approx(losses[199:].sum(), rel=1e-5)


def test_the_interval_of_a_context_row_is_that_of_a_ratio_over_windows(model, genome):
    row = score_by_context(
        model, genome, [Interval("c", 1000, 1600)], TokenPolicy(), window_bases=4, bases_per_row=10**6
    )[1]
    starts = range(1000, 1600, 4)
    nats = np.array([losses_by_hand(model, genome, Interval("c", s, s + 4))[0][1:].sum() for s in starts])
    error = np.std(nats, ddof=1) / np.sqrt(len(nats)) / 2 / math.log(2)  # two bases a window, none of them N
    middle = row.score.bits_per_base
    assert (row.low, row.high) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), rel=1e-4)


def test_windows_with_a_base_are_those_that_listing_all_finds(tmp_path):
    generator = np.random.default_rng(0)
    letters = "".join("N" * n if i % 2 else random_letters(n, i) for i, n in enumerate(generator.integers(1, 40, 60)))
    (tmp_path / "x.fa").write_text(f">v\n{letters}\n>w\n{'N' * 50}\n")
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    for _ in range(300):
        length, first = int(generator.integers(2, 20)), int(generator.integers(0, 2))
        cuts = np.unique(generator.integers(0, len(letters), 6)).tolist()
        intervals = [Interval("v", start, end) for start, end in zip(cuts[::2], cuts[1::2], strict=False)] + [
            Interval("w", 3, 47)
        ]
        expected = [
            (one.contig, start)
            for one in intervals
            for start in range(one.start, one.end - length + 1, length)
            if set(genome.fetch(Interval(one.contig, start + first, start + length))) != {"N"}
        ]
        assert _windows_with_bases(genome, intervals, length, first, None) == expected
        some = _windows_with_bases(genome, intervals, length, first, 5 * length)
        assert (
            len(some) == min(5, len(expected))
            and set(some) <= set(expected)
            and some == sorted(some, key=expected.index)
        )
        assert not expected or (some[0], some[-1]) == (expected[0], expected[-1])


def test_windows_of_a_large_region_take_no_memory_of_its_size(tmp_path):
    (tmp_path / "x.fa").write_text(f">v\n{random_letters(20_000, 5) * 100}\n")  # 2,000,000 bases
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    genome.n_runs("v")
    peaks = []
    for bases in (20_000, 2_000_000):
        tracemalloc.start()
        places = _windows_with_bases(genome, [Interval("v", 0, 9), Interval("v", 9, bases)], 2, 1, 1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(places) == 500 and places[0] == ("v", 0) and all(start % 2 for _, start in places[4:])
    assert peaks[1] < 2 * peaks[0], peaks
