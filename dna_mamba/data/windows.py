# Shapes: W windows
"""Windows of a genome: where they lie and in which order they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from dna_mamba.data.intervals import Interval, merge
from dna_mamba.data.splits import Split
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.errors import InputError, nearest

RULES = ("mamba", "hyenadna", "tile")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """All windows of one length that may be drawn, and how many were left out and why."""

    length: int
    contigs: np.ndarray
    """Number of each window's contig in the store."""
    starts: np.ndarray
    num_too_many_n: int
    num_no_room: int
    """Windows that do not fit between the ends of their contig and the held-out parts."""

    def __len__(self) -> int:
        return int(self.starts.size)


def check_length(genome: GenomeStore, split: Split, length: int) -> None:
    """Raise an InputError if no window of this length fits between the held-out parts, saying what would."""
    if length < 2:
        raise InputError(f"seq-len {length} is too short; a window needs at least 2 bases to have a target")
    longest = max(split.allowed(genome), key=len)
    if len(longest) < length:
        raise InputError(
            f"no window of {length:,} bases fits: the longest stretch outside validation and test is "
            f"{longest} with {len(longest):,} bases; take --seq-len {len(longest)} or less, or hold out less"
        )


def _candidates(rule: str, train: Sequence[Interval], length: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Give by contig the first bases of windows, before any is shifted or dropped, and of the intervals they are for."""
    by_contig: dict[str, list[np.ndarray]] = {}
    anchors: dict[str, list[np.ndarray]] = {}
    regions = merge(train) if rule == "tile" else train
    for interval in regions:
        if rule == "tile" or (rule == "mamba" and length <= len(interval)):
            # a last tile that would be cut is moved back to end with the interval, so no base is left out
            starts = np.arange(interval.start, interval.end - length + 1, length)
            if len(interval) >= length and starts[-1] + length < interval.end:
                starts = np.append(starts, interval.end - length)
        elif rule == "mamba":
            starts = np.array([interval.start, interval.end - length])
        elif length <= len(interval):
            starts = np.array([interval.start])
        else:
            starts = np.array([interval.start - (length - len(interval)) // 2])
        by_contig.setdefault(interval.contig, []).append(starts)
        anchors.setdefault(interval.contig, []).append(np.full(starts.size, interval.start))
    return [(name, np.concatenate(starts), np.concatenate(anchors[name])) for name, starts in by_contig.items()]


def plan_windows(genome: GenomeStore, split: Split, length: int, *, rule: str = "mamba", max_n: float = 0.5) -> Windows:
    """List the training windows of one length.

    Args:
        genome: The store.
        split: Its parts.
        length: Bases of a window.
        rule: 'mamba' tiles each interval, the last tile moved back to end with it, and above the interval's length takes one
            window that starts and one that ends with it (Mamba, appendix E.3.1); 'hyenadna' takes one window an interval,
            its first bases, or the interval extended on both sides; 'tile' tiles all of the training part.
        max_n: Windows with a larger share of N are dropped.

    Returns:
        The windows, sorted by place, none twice. Each is shifted so that it reaches neither into validation or test
        nor past its contig; what cannot be shifted is dropped and counted.

    Raises:
        InputError: No window is left.
    """
    if rule not in RULES:
        raise InputError(f"window rule {rule!r} is unknown{nearest(rule, RULES)}; choose {', '.join(RULES)}")
    check_length(genome, split, length)
    room: dict[str, list[Interval]] = {}
    for interval in split.allowed(genome):
        room.setdefault(interval.contig, []).append(interval)
    numbers, all_starts = [], []
    num_no_room = num_too_many_n = 0
    for contig, starts, anchors in _candidates(rule, split.train, length):
        kept = []
        for space in room.get(contig, []):
            # a window is shifted within the space that holds the interval it was made for
            inside = (anchors >= space.start) & (anchors < space.end)
            if len(space) >= length:
                kept.append(np.clip(starts[inside], space.start, space.end - length))
        found = np.unique(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
        num_no_room += int(np.unique(starts).size - found.size) if found.size < np.unique(starts).size else 0
        share_n = genome.count_n(contig, found, found + length) / length
        # the first base that is read has no predecessor and is no target; read from the other strand, it is the last
        has_target = genome.count_n(contig, found + 1, found + length) < length - 1
        has_target &= genome.count_n(contig, found, found + length - 1) < length - 1
        good = (share_n <= max_n) & has_target
        num_too_many_n += int(np.count_nonzero(~good))
        all_starts.append(found[good])
        numbers.append(np.full(int(good.sum()), genome.contig_numbers([contig])[0]))
    windows = Windows(
        length=length,
        contigs=np.concatenate(numbers) if numbers else np.zeros(0, np.int64),
        starts=np.concatenate(all_starts).astype(np.int64) if all_starts else np.zeros(0, np.int64),
        num_too_many_n=num_too_many_n,
        num_no_room=num_no_room,
    )
    if len(windows) == 0:
        raise InputError(
            f"no window of {length:,} bases is left: {num_too_many_n:,} have more than {max_n:.0%} N (--max-n) or no base "
            f"to predict, and {num_no_room:,} do not fit between the held-out parts; take a shorter --seq-len"
        )
    return windows


def read_by(genome: GenomeStore, windows: Sequence[Windows]) -> list[Interval]:
    """Give the bases that lie in a window of any of these lists, merged and sorted: what a model can see in training."""
    names = [contig.name for contig in genome.manifest.contigs]
    spans = [np.stack([some.contigs, some.starts, some.starts + some.length], axis=1) for some in windows]
    spans_W3 = np.concatenate([np.zeros((0, 3), np.int64), *spans])
    spans_W3 = spans_W3[np.lexsort((spans_W3[:, 1], spans_W3[:, 0]))]
    found = []
    for of_contig_W3 in np.split(spans_W3, np.flatnonzero(np.diff(spans_W3[:, 0])) + 1):
        if not len(of_contig_W3):
            continue
        furthest = np.maximum.accumulate(of_contig_W3[:, 2])
        first = np.concatenate([[True], of_contig_W3[1:, 1] > furthest[:-1]])  # a gap before it
        last = np.concatenate([first[1:], [True]])
        pairs = zip(of_contig_W3[first, 1].tolist(), furthest[last].tolist(), strict=True)
        found += [Interval(names[of_contig_W3[0, 0]], start, end) for start, end in pairs]
    return sorted(found, key=lambda interval: (interval.contig, interval.start))


def known_bases(genome: GenomeStore, intervals: Sequence[Interval]) -> int:
    """Count A, C, G and T of intervals, each base once."""
    total = 0
    for contig, ones in groupby(merge(intervals), key=lambda interval: interval.contig):
        starts, ends = np.array([(one.start, one.end) for one in ones]).T
        total += int((ends - starts - genome.count_n(contig, starts, ends)).sum())
    return total


def order_of_epoch(seed: int, stage: int, epoch: int, num_windows: int) -> np.ndarray:
    """Permute the windows; depends on the arguments alone."""
    return _generator(seed, stage, epoch, 0).permutation(num_windows)


def flips_of_epoch(seed: int, stage: int, epoch: int, num_windows: int, share: float) -> np.ndarray:
    """Say which windows of an epoch are read from the other strand; depends on the arguments alone."""
    return _generator(seed, stage, epoch, 1).random(num_windows) < share


def _generator(seed: int, stage: int, epoch: int, purpose: int) -> np.random.Generator:
    # SeedSequence takes integers of any size; a key given as a list of large ones would pass through float64
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stage, epoch, purpose])))
