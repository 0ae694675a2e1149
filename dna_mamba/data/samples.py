"""Which held-out bases are scored when not all are: spread over the part, each with the context that it has in full."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import BASE_BITS, STORE_T
from dna_mamba.errors import InputError

MOST_STRETCHES = 64
"""A sample is cut into about so many, where windows are short enough."""
SHORTEST_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bases start to end - 1 of a contig are scored; what lies from `read_from` on is read before them."""

    contig: str
    start: int
    end: int
    read_from: int

    @classmethod
    def of(cls, interval: Interval) -> "Stretch":
        """Score all of an interval, from its own first base on."""
        return cls(interval.contig, interval.start, interval.end, interval.start)

    @property
    def interval(self) -> Interval:
        """What is scored."""
        return Interval(self.contig, self.start, self.end)

    def first_target(self, start_token: bool) -> int:
        """Give the first position that is scored: what is read first of all has no predecessor, but for a start token."""
        return max(self.start, self.read_from + (0 if start_token else 1))


def count_targets(genome: GenomeStore, stretches: Sequence[Stretch], start_token: bool = False) -> np.ndarray:
    """Count the bases of each that can be scored: A, C, G or T with a predecessor."""
    counts = np.zeros(len(stretches), np.int64)
    by_contig: dict[str, list[int]] = {}
    for number, one in enumerate(stretches):
        by_contig.setdefault(one.contig, []).append(number)
    for contig, numbers in by_contig.items():
        first = np.array([stretches[n].first_target(start_token) for n in numbers], np.int64)
        ends = np.array([stretches[n].end for n in numbers], np.int64)
        first = np.minimum(first, ends)
        counts[numbers] = ends - first - genome.count_n(contig, first, ends)
    return counts


def sample(
    genome: GenomeStore,
    intervals: Sequence[Interval],
    most: int,
    *,
    context: int | None,
    start_token: bool = False,
    what: str = "the regions",
) -> list[Stretch]:
    """Choose what is scored of some intervals: all of it, or about `most` bases spread evenly over it.

    Args:
        genome: The store.
        intervals: A part, or regions.
        most: At most so many A, C, G and T are scored.
        context: Bases that are read before those scored, as far as their interval goes: the longest that the model was
            trained on, and at least 4,096.
        start_token: A token stands before what is read, so that its first base can be scored.
        what: Name of the part, for the message.

    Returns:
        Stretches in the order of the intervals. Intervals are kept whole where they hold no more than `most` together.

    Raises:
        InputError: Nothing in them can be scored.
    """
    whole = [Stretch.of(interval) for interval in intervals]
    targets = count_targets(genome, whole, start_token)
    total = int(targets.sum())
    if total == 0:
        raise InputError(f"{what} hold no base to score: A, C, G or T with a base before it; name others")
    if total <= most:
        return whole
    # no stretch is far shorter than what is read before it
    size = max(1, min(most, max(context or 0, SHORTEST_CONTEXT // 4)), most // MOST_STRETCHES)
    context = max(context or 0, SHORTEST_CONTEXT)
    # contigs and runs of N leave pieces with unequal numbers of bases: places are counted in bases, and from each on so many
    # bases are taken as it stands for, of one piece or of several
    mean = total / int((-(-targets // size)).sum())
    places = min(most, max(1, most // size, min(4 * MOST_STRETCHES, int(most / mean))))
    size = min(size, -(-most // places))
    ends = np.cumsum(targets)
    found: list[Stretch] = []
    given, behind = 0, 0  # bases that are scored, and bases up to the end of the last piece
    for place in range(places):
        wanted = most * (place + 1) // places
        at = max(behind, int((place + 0.5) * total / places - 0.5 * most / places))
        while at < total and wanted - given > 0.05 * most / places:
            number = int(np.searchsorted(ends, at, side="right"))
            before = int(ends[number] - targets[number])
            piece, skipped = _piece_with(genome, whole[number], at - before, size, context, start_token)
            held = int(count_targets(genome, [piece], start_token)[0])
            count = min(held, wanted - given)
            found.append(piece if count == held else _shorten(genome, piece, count, start_token))
            given += count
            at = behind = before + skipped + held
    return found


def _piece_with(
    genome: GenomeStore, whole: Stretch, number: int, size: int, context: int, start_token: bool
) -> tuple[Stretch, int]:
    """Give the piece of up to `size` bases that holds a target, and the number of targets before the piece."""

    def targets_up_to(end: int) -> int:
        return int(count_targets(genome, [replace(whole, end=end)], start_token)[0])

    place = bisect_right(range(whole.start, whole.end), number, key=lambda position: targets_up_to(position + 1))
    start = whole.start + place // size * size
    piece = Stretch(whole.contig, start, min(start + size, whole.end), max(whole.read_from, start - context))
    return piece, targets_up_to(start)


def _shorten(genome: GenomeStore, piece: Stretch, most: int, start_token: bool) -> Stretch:
    """End a stretch after so many targets, at least one."""
    first = piece.first_target(start_token)
    known = np.cumsum((genome.stored(piece.contig, first, piece.end) & BASE_BITS) <= STORE_T)
    end = first + int(np.searchsorted(known, max(1, most))) + 1
    return Stretch(piece.contig, piece.start, min(end, piece.end), piece.read_from)
