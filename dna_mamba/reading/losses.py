# Shapes: B sequences, T positions, V vocabulary
"""What a language model says about held-out bases, in bits."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import ACGT, BOS, A
from dna_mamba.data.intervals import Interval
from dna_mamba.data.objectives import TokenPolicy, next_base, tokens_and_weights
from dna_mamba.data.samples import Stretch
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import BASE_BITS, SOFT_MASK, STORE_T
from dna_mamba.kernels.cross_entropy import cross_entropy
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.state import ModelState
from dna_mamba.reading.pieces import bounds_of, check_causal, in_pieces, piece_on


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Sum of the surprise over some bases."""

    num_bases: int
    nats: float

    @property
    def bits_per_base(self) -> float:
        """Mean surprise in bits; 2 is what a uniform guess among A, C, G and T has."""
        return self.nats / self.num_bases / math.log(2) if self.num_bases else math.nan

    @property
    def perplexity(self) -> float:
        """Two to the power of the bits per base."""
        return 2.0**self.bits_per_base

    def __add__(self, other: "Score") -> "Score":
        return Score(num_bases=self.num_bases + other.num_bases, nats=self.nats + other.nats)


def acgt_losses(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Give the surprise of each base in nats, the softmax renormalised over A, C, G and T; zero where it is none of them."""
    known_BT = (tokens_BT >= A) & (tokens_BT < A + 4)
    targets_BT = torch.where(known_BT, tokens_BT.long() - A, 0)
    return torch.where(known_BT, cross_entropy(logits_BTV[..., ACGT], targets_BT), 0.0)


@torch.no_grad()
def losses_in_pieces(
    model: DnaMamba, tokens_BT: Tensor, piece_bases: int, state: ModelState | None = None
) -> Iterator[Tensor]:
    """Read sequences in pieces with carried state; yield the surprise of each base but the first, in order (B, piece), nats.

    Raises:
        InputError: The model is not causal.
    """
    check_causal(model, "scoring bases")

    inputs_BT, targets_BT, _ = next_base(tokens_BT)

    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        logits_BTV, state = model(inputs_BT[:, start:end], state)
        return acgt_losses(logits_BTV, targets_BT[:, start:end]), state

    bounds = bounds_of(model.backbone, inputs_BT.shape[1], piece_bases)
    for piece in in_pieces(read, bounds, state):
        yield piece.output


@torch.no_grad()
def stream_losses(
    model: DnaMamba, genome: GenomeStore, interval: Interval, policy: TokenPolicy, *, chunk: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read an interval from its first base to its last with one carried state.

    Yields:
        For each stretch of positions, in order and the first position left out (it has no predecessor; with a start
        token it has one): store bytes (uint8) and losses in nats (float32, zero where the base is not A, C, G or T).

    Raises:
        InputError: The model is not causal.
    """
    check_causal(model, "scoring bases")
    device = model.lm_head.weight.device
    chunk = chunk or piece_on(device)
    first_target = interval.start + (0 if policy.start_token else 1)
    stored = np.zeros(0, np.uint8)

    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        """Take the bases at targets start to end - 1 and each one's predecessor."""
        nonlocal stored
        from_start = policy.start_token and start == 0
        stored = genome.stored(interval.contig, first_target + start - (not from_start), first_target + end)
        tokens_BT = torch.from_numpy((stored & BASE_BITS) + A)[None].to(device)
        if from_start:
            tokens_BT = torch.cat([torch.full_like(tokens_BT[:, :1], BOS), tokens_BT], dim=1)
        else:
            stored = stored[1:]
        inputs_BT, targets_BT, _ = next_base(tokens_BT)
        logits_BTV, state = model(inputs_BT, state)
        return acgt_losses(logits_BTV, targets_BT), state

    num_targets = interval.end - first_target
    bounds = bounds_of(model.backbone, num_targets, chunk, first=chunk - (first_target - interval.start))
    for piece in in_pieces(read, bounds):
        yield stored, piece.output[0].float().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class RegionScores:
    """Surprise over regions read with one carried state each."""

    total: Score
    upper_case: Score
    soft_masked: Score
    after_n: Score
    """Bases whose predecessor is N; they are part of the total."""
    num_n: int
    """Positions that are not A, C, G or T, and so not scored."""


def score_regions(
    model: DnaMamba,
    genome: GenomeStore,
    stretches: Sequence[Interval | Stretch],
    policy: TokenPolicy,
    *,
    chunk: int | None = None,
    on_bases: Callable[[int], None] | None = None,
) -> RegionScores:
    """Score the bases of intervals or stretches, each from all that is read before it there.

    The first base that is read has no predecessor and is not scored, but after a start token.
    """
    sums = np.zeros((3, 2))
    num_n = 0
    for one in stretches:
        stretch = Stretch.of(one) if isinstance(one, Interval) else one
        first = genome.stored(stretch.contig, stretch.read_from, stretch.read_from + 1)[0]
        last_known = policy.start_token or (first & BASE_BITS) <= STORE_T
        at = stretch.read_from + (0 if policy.start_token else 1)
        read = Interval(stretch.contig, stretch.read_from, stretch.end)
        for stored, losses in stream_losses(model, genome, read, policy, chunk=chunk):
            known = (stored & BASE_BITS) <= STORE_T
            masked = (stored & SOFT_MASK) != 0
            after_n = known & ~np.concatenate([[last_known], known[:-1]])
            last_known = bool(known[-1])
            scored = np.arange(at, at + stored.size) >= stretch.start
            at += stored.size
            for row, chosen in enumerate((known & ~masked & scored, known & masked & scored, after_n & scored)):
                sums[row] += chosen.sum(), losses[chosen].sum(dtype=np.float64)
            num_n += int(np.count_nonzero(~known & scored))
            if on_bases:
                on_bases(stored.size)
    upper, masked_score, after = (Score(num_bases=int(n), nats=float(nats)) for n, nats in sums)
    return RegionScores(
        total=upper + masked_score, upper_case=upper, soft_masked=masked_score, after_n=after, num_n=num_n
    )


class PositionLosses(NamedTuple):
    """Surprise in windows that each start without context."""

    nats: np.ndarray
    """At positions 0 to window_bases - 1 (position = bases of left context), over all windows; position 0 stays empty unless
    a start token precedes it."""
    counts: np.ndarray
    """Known bases there."""
    of_windows: np.ndarray
    """Nats and known bases of each window (W, 2), from `first_counted` on: what an interval is made of."""


def _windows_with_bases(
    genome: GenomeStore, intervals: Sequence[Interval], length: int, first_target: int, max_bases: int | None
) -> list[tuple[str, int]]:
    """Give windows of intervals with a base to score; of more than `max_bases`, some that are spread over the intervals.

    Windows are counted, not listed: those without a base are the ones whose targets lie in one run of N.
    """
    skipped = []  # by interval: first numbers of windows without a base in a row, and how many
    numbers = []
    for interval in intervals:
        number = len(interval) // length
        starts, ends = genome.n_runs(interval.contig)
        here = slice(np.searchsorted(ends, interval.start, side="right"), np.searchsorted(starts, interval.end))
        starts, ends = starts[here], ends[here]
        firsts = np.maximum(0, -((interval.start + first_target - starts) // length))
        lasts = np.minimum(number - 1, (ends - length - interval.start) // length)
        some = lasts >= firsts
        skipped.append((firsts[some], (lasts - firsts + 1)[some]))
        numbers.append(number - int(skipped[-1][1].sum()))
    ends_of = np.cumsum(numbers, dtype=np.int64)
    total = int(ends_of[-1]) if numbers else 0
    if max_bases is not None and total * length > max_bases:
        chosen = np.unique(np.linspace(0, total - 1, max(1, max_bases // length)).astype(np.int64))
    else:
        chosen = np.arange(total)
    found: list[tuple[str, int]] = []
    for interval, (firsts, counts), number, end in zip(intervals, skipped, numbers, ends_of.tolist(), strict=True):
        ranks = chosen[np.searchsorted(chosen, end - number) : np.searchsorted(chosen, end)] - (end - number)
        before = np.concatenate([[0], np.cumsum(counts)])
        windows = ranks + before[np.searchsorted(firsts - before[:-1], ranks, side="right")]
        found += [(interval.contig, start) for start in (interval.start + windows * length).tolist()]
    return found


@torch.no_grad()
def loss_by_position(
    model: DnaMamba,
    genome: GenomeStore,
    intervals: Sequence[Interval],
    policy: TokenPolicy,
    *,
    window_bases: int,
    batch_bases: int | None = None,
    max_bases: int | None = None,
    first_counted: int = 0,
    on_bases: Callable[[int], None] | None = None,
) -> "PositionLosses":
    """Add up the surprise by position in windows that each start without context.

    With `max_bases`, windows are chosen that are spread over the regions; those that hold nothing but N are passed over.
    """
    device = model.lm_head.weight.device
    batch_bases = batch_bases or piece_on(device)
    nats, counts = np.zeros(window_bases), np.zeros(window_bases, np.int64)
    first_target = 0 if policy.start_token else 1
    places = _windows_with_bases(genome, intervals, window_bases, first_target, max_bases)
    of_windows = np.zeros((len(places), 2))
    per_batch = max(1, batch_bases // window_bases)
    for first in range(0, len(places), per_batch):
        some = places[first : first + per_batch]
        stored = genome.stored_batch([c for c, _ in some], np.array([s for _, s in some]), window_bases)
        # a start token, as in training, but no end token: a base is what is scored
        tokens_BT, _ = tokens_and_weights(torch.from_numpy(stored).to(device), replace(policy, end_token=False))
        end = 0
        for part_BT in losses_in_pieces(model, tokens_BT, batch_bases):
            losses_BT = part_BT.double().cpu().numpy()
            start, end = end, end + losses_BT.shape[1]
            positions = slice(start + first_target, end + first_target)
            known_BT = (stored[:, positions] & BASE_BITS) <= STORE_T
            nats[positions] += losses_BT.sum(0)
            counts[positions] += known_BT.sum(0)
            counted = slice(max(0, first_counted - positions.start), None)
            of_windows[first : first + per_batch, 0] += losses_BT[:, counted].sum(1)
            of_windows[first : first + per_batch, 1] += known_BT[:, counted].sum(1)
        if on_bases:
            on_bases(stored.size)
    return PositionLosses(nats, counts, of_windows)
