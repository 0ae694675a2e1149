"""Which bases do the parts of a split share, and do training windows reach into the others?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from dna_mamba.data.intervals import Interval, merge, shared_bases
from dna_mamba.data.kmers import NONE, K, Kmers, contained, kmers_by_position, sampled
from dna_mamba.data.selection import DataConfig, load_genome, load_split
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.windows import known_bases, plan_windows, read_by
from dna_mamba.errors import InputError
from dna_mamba.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """What to audit."""

    genome: str
    split: str | None = None
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    seq_len: int = 1024
    window_rule: str = "mamba"
    max_n: float = 0.5


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """Counts of bases by coordinates, and what is the same sequence at other places."""

    bases_of_part: dict[str, int]
    known_of_part: dict[str, int]
    """A, C, G and T among them."""
    shared_by_parts: dict[str, int]
    num_windows: int
    window_bases: int
    """Distinct bases that the training windows cover."""
    num_left_out: int
    shared_by_windows: dict[str, int]
    """Bases of training windows that lie in validation or test."""
    tiles_of_part: dict[str, int]
    """Tiles of 512 bases without N of validation and test that could be judged."""
    tiles_in_training: dict[str, int]
    """Of these, those of which more than 80 % of the 31-mers stand in a training window too, on either strand: the same
    sequence at another place."""
    one_of: int
    """One of so many 31-mers was looked at."""

    @property
    def num_shared(self) -> int:
        """Shared bases of all kinds; 0 is what there should be."""
        return sum(self.shared_by_parts.values()) + sum(self.shared_by_windows.values())

    def as_dict(self) -> dict[str, object]:
        """Give plain values."""
        return {**asdict(self), "num_shared": self.num_shared}

    def as_text(self) -> str:
        """Give lines to print."""
        lines = [
            f"{name}: {self.known_of_part[name]:,} known bases ({count:,} with N)"
            for name, count in self.bases_of_part.items()
        ]
        lines += [f"shared by {pair.replace('+', ' and ')}: {count:,}" for pair, count in self.shared_by_parts.items()]
        lines.append(
            f"{self.num_windows:,} training windows cover {self.window_bases:,} bases ({self.num_left_out:,} windows left out)"
        )
        lines += [f"shared by training windows and {part}: {count:,}" for part, count in self.shared_by_windows.items()]
        lines += [
            f"tiles of {TILE_BASES:,} bases of {part} that are training sequence at another place (31-mers): {same:,} of "
            f"{self.tiles_of_part[part]:,}"
            for part, same in self.tiles_in_training.items()
        ]
        return "\n".join(lines)


def run(
    config: AuditConfig, *, on_progress: Progress | None = None, warn: Callable[[str], None] | None = None
) -> AuditResult:
    """Count the bases that are in two places at once."""
    genome = load_genome(config.genome, on_progress, warn)
    data = DataConfig(genome=config.genome, split=config.split, valid=config.valid, test=config.test)
    split = load_split(genome, data, warn)
    windows = plan_windows(genome, split, config.seq_len, rule=config.window_rule, max_n=config.max_n)
    covered = read_by(genome, [windows])
    known = Kmers.for_bases(sum(map(len, covered)))
    for interval in covered:
        known.add(genome.stored(interval.contig, interval.start, interval.end))
    distinct = known.distinct()
    of_part = {
        name: _tiles(genome, merge(split.part(name)), distinct, known.one_of, TILE_BASES, to_the_end=True)
        for name in ("valid", "test")
    }
    return AuditResult(
        tiles_of_part={name: found.num_tiles - found.num_not_judged for name, found in of_part.items()},
        tiles_in_training={name: len(found.same) for name, found in of_part.items()},
        one_of=known.one_of,
        known_of_part={name: known_bases(genome, split.part(name)) for name in ("train", "valid", "test")},
        bases_of_part={name: sum(map(len, merge(split.part(name)))) for name in ("train", "valid", "test")},
        shared_by_parts=split.shared(),
        num_windows=len(windows),
        window_bases=sum(map(len, covered)),
        num_left_out=windows.num_too_many_n + windows.num_no_room,
        shared_by_windows={name: shared_bases(covered, split.part(name)) for name in ("valid", "test")},
    )


TILE_BASES = 512
PART_BASES = 1 << 22
"""Read at once, about."""
FEWEST_KMERS = 5
MOST_SHARED = 0.8
"""A tile of which more 31-mers stand in the other genome counts as the same locus; copies of repeats differ by more."""


@dataclass(frozen=True, kw_only=True)
class AgainstResult:
    """What two genomes share, whichever strand."""

    num_kmers: int
    """Distinct 31-mers of the first genome that were looked at."""
    num_shared: int
    """Of these, those that stand in the other one; repeats are among them."""
    one_of: int
    tile_bases: int
    num_tiles: int
    """Tiles of the first genome without N."""
    num_not_judged: int
    """Of these, tiles with fewer than FEWEST_KMERS 31-mers in the sample."""
    tiles: tuple[tuple[str, int], ...]
    """Contig and first base (0-based) of those that are the same locus in the other one."""

    def as_dict(self) -> dict[str, object]:
        """Give plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """Give lines to print."""
        sample = f" (a sample of one in {self.one_of})" if self.one_of > 1 else ""
        lines = [
            f"31-mers: {self.num_shared:,} of {self.num_kmers:,}{sample} stand in both, repeats included",
            f"tiles of {self.tile_bases:,} bases with more than {MOST_SHARED:.0%} of their 31-mers in the other genome: "
            f"{len(self.tiles):,} of {self.num_tiles:,}",
        ]
        if self.num_not_judged:
            lines.append(
                f"{self.num_not_judged:,} tiles hold too few sampled 31-mers to be judged; take longer ones with --tile"
            )
        return "\n".join(
            [*lines, *(f"  {contig}:{start + 1}-{start + self.tile_bases}" for contig, start in self.tiles[:20])]
        )


@dataclass
class _Tiles:
    """Tiles of some sequence, and which of them stand elsewhere too."""

    num_tiles: int = 0
    num_not_judged: int = 0
    same: list[tuple[str, int]] = field(default_factory=list)


def _tiles(
    genome: GenomeStore,
    intervals: Sequence[Interval],
    known: np.ndarray,
    one_of: int,
    tile_bases: int,
    mine: Kmers | None = None,
    *,
    to_the_end: bool = False,
) -> _Tiles:
    """Judge tiles of intervals by their 31-mers, of which a sample of others is known; `mine` collects their own.

    With `to_the_end`, what is left at the end of an interval is judged too, by a tile that is moved back or is shorter.
    """
    part_bases = PART_BASES // tile_bases * tile_bases
    found = _Tiles()
    for interval in intervals:
        for begin in range(interval.start, interval.end, part_bases):
            stored = genome.stored(interval.contig, begin, min(begin + part_bases + K - 1, interval.end))
            if mine is not None:
                mine.add(stored)
            codes = kmers_by_position(stored)
            usable = codes != NONE
            if one_of > 1:
                usable &= sampled(codes, one_of)
            here = np.zeros(len(codes), bool)
            here[usable] = contained(codes[usable], known)
            starts = list(range(0, min(len(codes), part_bases) - tile_bases + K, tile_bases))
            if to_the_end and begin + part_bases >= interval.end and len(codes):
                last = max(0, len(stored) - tile_bases)
                starts += [last] if not starts or last > starts[-1] else []
            for start in starts:
                inside = slice(start, start + tile_bases - K + 1)
                count = int(usable[inside].sum())
                complete = bool((codes[inside] != NONE).all())
                found.num_tiles += complete
                found.num_not_judged += complete and count < FEWEST_KMERS
                if complete and count >= FEWEST_KMERS and here[inside].sum() > MOST_SHARED * count:
                    found.same.append((interval.contig, begin + start))
    return found


def run_against(
    genome: str,
    other: str,
    *,
    tile_bases: int = TILE_BASES,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> AgainstResult:
    """Look for sequence of one genome in another, by canonical 31-mers.

    Raises:
        InputError: A tile is shorter than 31 bases, or a genome cannot be opened.
    """
    if not K <= tile_bases <= PART_BASES:
        raise InputError(f"--tile {tile_bases} must lie between {K} and {PART_BASES:,} bases")
    first, second = (load_genome(name, on_progress, warn) for name in (genome, other))
    theirs = Kmers.for_bases(second.num_bases)
    for contig in second.manifest.contigs:
        theirs.add(second.stored(contig.name, 0, contig.length))
    known = theirs.distinct()
    mine = Kmers(theirs.one_of)
    whole = [Interval(contig.name, 0, contig.length) for contig in first.manifest.contigs]
    found = _tiles(first, whole, known, theirs.one_of, tile_bases, mine)
    kmers = mine.distinct()
    return AgainstResult(
        num_kmers=len(kmers), num_shared=int(contained(kmers, known).sum()), one_of=theirs.one_of,
        tile_bases=tile_bases, num_tiles=found.num_tiles, num_not_judged=found.num_not_judged, tiles=tuple(found.same),
    )  # fmt: skip
