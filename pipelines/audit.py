"""Which bases do the parts of a split share, and do training windows reach into the others?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dna_mamba.data.build import Progress
from dna_mamba.data.intervals import Interval, merge, shared_bases
from dna_mamba.data.kmers import NONE, K, Kmers, contained, kmers_by_position, sampled
from dna_mamba.data.windows import plan_windows
from dna_mamba.errors import InputError
from dna_mamba.pipelines.pretrain import DataConfig, load_genome, load_split


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
    """Counts of bases by coordinates; equal sequence at different places is not looked for."""

    bases_of_part: dict[str, int]
    shared_by_parts: dict[str, int]
    num_windows: int
    window_bases: int
    """Distinct bases that the training windows cover."""
    num_left_out: int
    shared_by_windows: dict[str, int]
    """Bases of training windows that lie in validation or test."""

    @property
    def num_shared(self) -> int:
        """Shared bases of all kinds; 0 is what there should be."""
        return sum(self.shared_by_parts.values()) + sum(self.shared_by_windows.values())

    def as_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {**asdict(self), "num_shared": self.num_shared}

    def as_text(self) -> str:
        """Give lines to print."""
        lines = [f"{name}: {count:,} bases" for name, count in self.bases_of_part.items()]
        lines += [f"shared by {pair.replace('+', ' and ')}: {count:,}" for pair, count in self.shared_by_parts.items()]
        lines.append(
            f"{self.num_windows:,} training windows cover {self.window_bases:,} bases ({self.num_left_out:,} windows left out)"
        )
        lines += [f"shared by training windows and {part}: {count:,}" for part, count in self.shared_by_windows.items()]
        return "\n".join(lines)


def run(
    config: AuditConfig, *, on_progress: Progress | None = None, warn: Callable[[str], None] | None = None
) -> AuditResult:
    """Count the bases that are in two places at once."""
    genome = load_genome(config.genome, on_progress, warn)
    data = DataConfig(genome=config.genome, split=config.split, valid=config.valid, test=config.test)
    split = load_split(genome, data)
    windows = plan_windows(genome, split, config.seq_len, rule=config.window_rule, max_n=config.max_n)
    names = [contig.name for contig in genome.manifest.contigs]
    covered = merge(
        Interval(names[contig], start, start + config.seq_len)
        for contig, start in zip(windows.contigs.tolist(), windows.starts.tolist(), strict=True)
    )
    return AuditResult(
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

    def as_dict(self) -> dict[str, Any]:
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
    part_bases = PART_BASES // tile_bases * tile_bases
    first, second = (load_genome(name, on_progress, warn) for name in (genome, other))
    theirs = Kmers.for_bases(second.num_bases)
    for contig in second.manifest.contigs:
        theirs.add(second.stored(contig.name, 0, contig.length))
    known = theirs.distinct()
    mine = Kmers(theirs.one_of)
    tiles: list[tuple[str, int]] = []
    num_tiles = num_not_judged = 0
    for contig in first.manifest.contigs:
        for begin in range(0, contig.length, part_bases):
            stored = first.stored(contig.name, begin, min(begin + part_bases + K - 1, contig.length))
            mine.add(stored)
            codes = kmers_by_position(stored)
            usable = codes != NONE
            if theirs.one_of > 1:
                usable &= sampled(codes, theirs.one_of)
            found = np.zeros(len(codes), bool)
            found[usable] = contained(codes[usable], known)
            for start in range(0, min(len(codes), part_bases) - tile_bases + K, tile_bases):
                inside = slice(start, start + tile_bases - K + 1)
                count = int(usable[inside].sum())
                complete = bool((codes[inside] != NONE).all())
                num_tiles += complete
                num_not_judged += complete and count < FEWEST_KMERS
                if complete and count >= FEWEST_KMERS and found[inside].sum() > MOST_SHARED * count:
                    tiles.append((contig.name, begin + start))
    kmers = mine.distinct()
    return AgainstResult(
        num_kmers=len(kmers), num_shared=int(contained(kmers, known).sum()), one_of=theirs.one_of,
        tile_bases=tile_bases, num_tiles=num_tiles, num_not_judged=num_not_judged, tiles=tuple(tiles),
    )  # fmt: skip
