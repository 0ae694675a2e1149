"""Markov models of DNA: what a language model has to beat.

An order-k model predicts a base from the k before it. Plain models add 1/2 to every count; interpolated ones back off,
p_k = (n + a p_(k-1)) / (N + a), where n counts the base after the context, N the context, and a is chosen on
validation. Source: Krichevsky and Trofimov 1981 (add 1/2); MacKay and Peto 1995 (the interpolation).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import get_num_threads, njit

from dna_mamba.data.intervals import Interval, merge
from dna_mamba.data.selection import MAX_ORDER
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import BASE_BITS, reverse_complement_store

STRENGTHS = (1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""Candidates for a."""


@njit(nogil=True, cache=True)
def _count(bases, max_order, offsets, counts):
    context, known = 0, 0
    mask = 4**max_order - 1
    for t in range(bases.size):
        base = bases[t]
        if base > 3:
            context, known = 0, 0
            continue
        for k in range(min(known, max_order) + 1):
            counts[offsets[k] + ((context & (4**k - 1)) << 2) + base] += 1
        context = ((context << 2) | base) & mask
        known += 1


@njit(nogil=True, cache=True)
def _score(bases, first, max_order, offsets, counts, strengths, plain, interpolated):
    """Add up log2 p of every known base from place `first` of the stretch on; return how many there are."""
    context, known, targets = 0, 0, 0
    mask = 4**max_order - 1
    log_p = np.zeros(max_order + 1)
    p = np.zeros((strengths.size, max_order + 1))
    for t in range(bases.size):
        base = bases[t]
        if base > 3:
            context, known = 0, 0
            continue
        if t >= first:
            targets += 1
            order = min(known, max_order)
            for k in range(order + 1):
                row = offsets[k] + ((context & (4**k - 1)) << 2)
                n = float(counts[row + base])
                total = float(counts[row]) + counts[row + 1] + counts[row + 2] + counts[row + 3]
                log_p[k] = np.log2((n + 0.5) / (total + 2.0))
                for s in range(strengths.size):
                    lower = p[s, k - 1] if k > 0 else 0.25
                    p[s, k] = (n + strengths[s] * lower) / (total + strengths[s])
            for k in range(max_order + 1):  # with fewer known bases before it, a target is scored by what there is
                plain[k] += log_p[min(k, order)]
                for s in range(strengths.size):
                    interpolated[s, k] += np.log2(p[s, min(k, order)])
        context = ((context << 2) | base) & mask
        known += 1
    return targets


@dataclass(frozen=True, kw_only=True)
class MarkovScores:
    """Bits per base of every model on one set of targets."""

    num_targets: int
    plain: np.ndarray
    """By order."""
    interpolated: np.ndarray
    """By strength and order."""


class MarkovModels:
    """Counts of all contexts up to 12 bases on the training part."""

    def __init__(self, max_order: int = MAX_ORDER, *, large: bool = False):
        self.max_order = max_order
        sizes = [4 ** (k + 1) for k in range(max_order + 1)]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._counts = np.zeros(sum(sizes), np.int64 if large else np.uint32)

    @staticmethod
    def fit(
        genome: GenomeStore, intervals: Sequence[Interval], *, both_strands: bool, max_order: int = MAX_ORDER
    ) -> "MarkovModels":
        """Count every base of the intervals once, or once a strand."""
        regions = merge(intervals)
        models = MarkovModels(max_order, large=2 * sum(map(len, regions)) >= 2**32)
        for region in regions:
            stored = genome.stored(region.contig, region.start, region.end)
            models.count(stored & BASE_BITS)
            if both_strands:
                models.count(np.ascontiguousarray(reverse_complement_store(stored)) & BASE_BITS)
        return models

    def count(self, bases: np.ndarray) -> None:
        """Add one stretch of bases (0 to 3; 4 is N, over which no context reaches)."""
        _count(bases, self.max_order, self._offsets, self._counts)

    def score(
        self, stretches: Sequence[tuple[np.ndarray, int]], *, strengths: Sequence[float] = STRENGTHS
    ) -> MarkovScores:
        """Score the known bases of some stretches.

        Args:
            stretches: Bases and the place of the first target among them; those before it are context. 1 leaves out the base
                without a predecessor.
            strengths: Candidates for a.
        """
        values = np.array(strengths, np.float64)

        def one(stretch: tuple[np.ndarray, int]) -> tuple[int, np.ndarray, np.ndarray]:
            bases, first = stretch
            plain, interpolated = np.zeros(self.max_order + 1), np.zeros((values.size, self.max_order + 1))
            targets = _score(bases, first, self.max_order, self._offsets, self._counts, values, plain, interpolated)
            return targets, plain, interpolated

        # the compiled loop holds no lock; sums are added in the order of the stretches, whatever the number of threads
        with ThreadPoolExecutor(get_num_threads()) as threads:
            found = list(threads.map(one, stretches))
        targets = sum(number for number, _, _ in found)
        plain = sum((part for _, part, _ in found), np.zeros(self.max_order + 1))
        interpolated = sum((part for _, _, part in found), np.zeros((values.size, self.max_order + 1)))
        return MarkovScores(
            num_targets=targets, plain=-plain / max(targets, 1), interpolated=-interpolated / max(targets, 1)
        )
