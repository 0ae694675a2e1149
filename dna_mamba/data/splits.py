"""Which bases train, validate and test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dna_mamba.data.intervals import Interval, each_base_once, merge, read_bed, shared_bases, subtract
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.errors import InputError

INTERVAL_BASES = 131_072
"""Length of the intervals that regions are cut into; that of the published hg38 training set."""
SPLIT_NAMES = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}
MIN_SPLIT_BASES = 10_000
"""Contigs with fewer known bases go to training whole when nothing is said about the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Intervals of the three parts. Training intervals may overlap each other; the parts may not."""

    train: tuple[Interval, ...]
    valid: tuple[Interval, ...]
    test: tuple[Interval, ...]

    def part(self, name: str) -> tuple[Interval, ...]:
        """Give the intervals of 'train', 'valid' or 'test'."""
        if name not in ("train", "valid", "test"):
            raise InputError(f"split {name!r} is unknown; choose train, valid or test")
        return tuple(getattr(self, name))

    def allowed(self, genome: GenomeStore) -> list[Interval]:
        """Give all that a training window may reach into: every base outside validation and test."""
        whole = [Interval(c.name, 0, c.length) for c in genome.manifest.contigs]
        return subtract(whole, [*self.valid, *self.test])

    def shared(self) -> dict[str, int]:
        """Count the bases that lie in two parts at once."""
        pairs = (("train", "valid"), ("train", "test"), ("valid", "test"))
        return {f"{a}+{b}": shared_bases(self.part(a), self.part(b)) for a, b in pairs}


def _check(genome: GenomeStore, interval: Interval, where: str) -> None:
    try:
        length = genome.contig(interval.contig).length
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if interval.end > length:
        raise InputError(f"{where}: {interval} ends past {interval.contig}, which has {length:,} bases")


def split_from_bed(genome: GenomeStore, path: Path, warn: Callable[[str], None] | None = None) -> Split:
    """Read CONTIG START END SPLIT, with train, valid and test as splits.

    Raises:
        InputError: A line is malformed, lies outside the genome or has another split, a part is empty, or two parts
            share bases.
    """
    parts: dict[str, list[Interval]] = {"train": [], "valid": [], "test": []}
    for line, interval, columns in read_bed(path, warn):
        where = f"{path}, line {line}"
        name = SPLIT_NAMES.get(columns[0].lower()) if columns else None
        if name is None:
            given = repr(columns[0]) if columns else "missing"
            raise InputError(f"{where}: the split in column 4 is {given}; expected train, valid or test")
        _check(genome, interval, where)
        parts[name].append(interval)
    for name, found in parts.items():
        if not found and name != "test":
            raise InputError(f"{path} has no {name!r} row in column 4; training and validation are both needed")
        once = each_base_once(found)
        if warn and (again := sum(map(len, found)) - sum(map(len, once))):
            warn(f"{path}: rows of {name} overlap; {again:,} bases that stand in more than one are taken once")
        parts[name] = once
    split = Split(**{name: tuple(found) for name, found in parts.items()})
    for pair, count in split.shared().items():
        if count:
            raise InputError(
                f"{path}: {pair.replace('+', ' and ')} share {count:,} bases; every base belongs to one part"
            )
    return split


def split_from_regions(genome: GenomeStore, valid: Sequence[str], test: Sequence[str]) -> Split:
    """Hold out regions (1-based, as in samtools) or whole contigs by name; train on the rest."""

    def read(texts: Sequence[str], option: str) -> list[Interval]:
        intervals = []
        for text in texts:
            try:
                intervals.append(genome.region(text))
            except InputError as error:
                raise InputError(f"{option}: {error}") from None
        return merge(intervals)

    held_out, tested = read(valid, "--valid"), read(test, "--test")
    if not held_out:
        raise InputError("--test needs --valid too: selection happens on validation, never on test")
    if count := shared_bases(held_out, tested):
        raise InputError(f"--valid and --test share {count:,} bases; every base belongs to one part")
    whole = [Interval(c.name, 0, c.length) for c in genome.manifest.contigs]
    train = _cut(subtract(whole, [*held_out, *tested]))
    if not train:
        raise InputError("--valid and --test leave nothing to train on; hold out less")
    return Split(train=tuple(train), valid=tuple(held_out), test=tuple(tested))


def default_split(genome: GenomeStore) -> Split:
    """Give the last tenth of each contig's known bases to test and the tenth before it to validation.

    Tenths are counted in A, C, G and T, so that a contig that begins with a megabase of N is split by what it holds.
    """
    parts: dict[str, list[Interval]] = {"train": [], "valid": [], "test": []}
    for contig in genome.manifest.contigs:
        if contig.num_acgt < MIN_SPLIT_BASES:
            if contig.num_acgt:
                parts["train"].append(Interval(contig.name, 0, contig.length))
            continue
        first, second = (_position_of_base(genome, contig.name, contig.num_acgt * k // 10) for k in (8, 9))
        parts["train"].append(Interval(contig.name, 0, first))
        parts["valid"].append(Interval(contig.name, first, second))
        parts["test"].append(Interval(contig.name, second, contig.length))
    if not parts["valid"]:
        raise InputError(
            f"{genome.called} has no contig of {MIN_SPLIT_BASES:,} known bases to take a validation part from; "
            f"say what to hold out with --valid and --test or --split"
        )
    return Split(train=tuple(_cut(parts["train"])), valid=tuple(parts["valid"]), test=tuple(parts["test"]))


def _position_of_base(genome: GenomeStore, contig: str, rank: int) -> int:
    """Find the place with `rank` known bases before it."""
    starts, ends = genome.n_runs(contig)
    known_before_run = starts - np.concatenate([[0], np.cumsum(ends - starts)[:-1]]) if starts.size else starts
    runs_before = int(np.searchsorted(known_before_run, rank, side="right"))
    return rank + int((ends[:runs_before] - starts[:runs_before]).sum())


def _cut(regions: Sequence[Interval]) -> list[Interval]:
    """Cut regions into intervals of 131,072 bases; the last of a region takes what is left."""
    return [
        Interval(region.contig, start, min(start + INTERVAL_BASES, region.end))
        for region in regions
        for start in range(region.start, region.end, INTERVAL_BASES)
    ]
