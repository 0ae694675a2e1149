# Shapes: B windows
"""Windows of labelled genomes: drawn evenly over classes, the same for the same seed, split by human homologue."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import BASE_BITS, SOFT_MASK, STORE_C, STORE_G, STORE_N
from dna_mamba.errors import InputError
from dna_mamba.files import write_table

MAX_TRIES = 1000
"""Draws of a window without N before a class is given up."""
GC_BINS = 20
GC_SAMPLE = 2000
"""Windows of each class whose share of G and C sets what is accepted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledContig:
    """A contig that windows of a class are drawn from."""

    label: str
    genome: str
    """Name of the assembly."""
    contig: str
    length: int
    homologue: str | None = None
    """Human chromosome it descends from, verified; none is not known."""

    @property
    def human_chromosomes(self) -> frozenset[str]:
        """Name all human chromosomes in it: gorilla chromosome 4, hsa17x5, holds parts of 17 and 5."""
        if self.homologue is None:
            return frozenset()
        name = self.homologue.removeprefix("chr")
        if not re.fullmatch(r"([0-9]{1,2}|X|Y)[aAbBpq]?(x([0-9]{1,2}|X|Y)[aAbBpq]?)*", name):
            return frozenset([name])  # a locus of another kind
        return frozenset(re.sub(r"(?<=[0-9XY])[aAbBpq]$", "", part) for part in name.split("x"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSplit:
    """Contigs of the three parts, and those that are in none."""

    train: tuple[LabelledContig, ...]
    valid: tuple[LabelledContig, ...]
    test: tuple[LabelledContig, ...]
    left_out: tuple[LabelledContig, ...]
    """No homologue is known, or it holds parts of chromosomes of two parts."""


def split_by_homologue(
    contigs: Sequence[LabelledContig], valid: Sequence[str], test: Sequence[str], train: Sequence[str] | None = None
) -> LabelledSplit:
    """Give each contig to the part of its human homologue, so that no locus is in two parts in different species.

    Args:
        contigs: Of all classes.
        valid: Human chromosomes for validation, such as 5 or X.
        test: Human chromosomes for test.
        train: Human chromosomes that train; without it all others.

    Raises:
        InputError: A chromosome stands in two parts, no contig has one of them, or a class has no contig in a part.
    """

    def bare(names: Sequence[str]) -> list[str]:
        return [name.removeprefix("chr") for name in names]

    return _split(
        contigs, lambda contig: contig.human_chromosomes, bare(valid), bare(test), None if train is None else bare(train),
        "human chromosome", "none with a verified human homologue among those chromosomes; add homologues to the manifest, or "
        "choose other chromosomes",
    )  # fmt: skip


def split_by_name(
    contigs: Sequence[LabelledContig], valid: Sequence[str], test: Sequence[str], train: Sequence[str] | None = None
) -> LabelledSplit:
    """Give each contig to the part of its name, the same in all classes; see `split_by_homologue`."""
    return _split(
        contigs, lambda contig: frozenset([contig.contig]), valid, test, train, "contig",
        "none of its contigs is named so; choose other contigs",
    )  # fmt: skip


def _split(
    contigs: Sequence[LabelledContig],
    names_of: Callable[[LabelledContig], frozenset[str]],
    valid: Sequence[str],
    test: Sequence[str],
    train: Sequence[str] | None,
    what: str,
    advice: str,
) -> LabelledSplit:
    parts = {"valid": set(valid), "test": set(test), "train": set(train or ())}
    _check_parts(parts, frozenset[str]().union(*(names_of(contig) for contig in contigs)), what)
    rest = "train" if train is None else "left_out"
    found: dict[str, list[LabelledContig]] = {"train": [], "valid": [], "test": [], "left_out": []}
    for contig in contigs:
        of = {next((part for part in parts if name in parts[part]), rest) for name in names_of(contig)}
        found[of.pop() if len(of) == 1 else "left_out"].append(contig)
    for part in ("train", *(part for part in ("valid", "test") if parts[part])):
        present = {contig.label for contig in found[part]}
        absent = [contig.label for contig in contigs if contig.label not in present]
        if absent:
            raise InputError(f"class {absent[0]} has no contig for {part}: {advice}")
    return LabelledSplit(**{part: tuple(some) for part, some in found.items()})


def _check_parts(parts: Mapping[str, set[str]], known: frozenset[str], what: str) -> None:
    """Refuse names that stand in two parts, or that no contig has."""
    for one, other in itertools.combinations(parts, 2):
        if both := sorted(parts[one] & parts[other]):
            words = {"valid": "validation", "test": "test", "train": "training"}
            raise InputError(f"{what} {both[0]} is given for {words[one]} and for {words[other]}; put it into one")
    for name in sorted(parts["valid"] | parts["test"] | parts["train"]):
        if name not in known:
            some = sorted(known)
            listed = ", ".join(some[:30]) + (", ..." if len(some) > 30 else "")
            if not known:
                raise InputError(
                    f"no contig has a verified {what}, so {name!r} cannot be held out; list contigs with their homologue and "
                    "verified: true, give a report_url, or split by contig"
                )
            raise InputError(f"no contig descends from {what} {name!r}; known are {listed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a window lies; 0-based."""

    label: str
    genome: str
    contig: str
    start: int


class LabelledWindows:
    """Windows of one length, drawn uniformly over classes, then contigs, then starts.

    Window `index` of `epoch` follows from (seed, epoch, index) alone: neither workers nor earlier windows enter.

    Args:
        genomes: Stores by assembly name.
        contigs: What may be drawn from.
        length: Bases of a window.
        seed: Of all draws.
        by_length: Draw contigs by their length; otherwise all alike, as HyenaDNA does.
        drop_n: Draw no window that holds an N.
        match_gc: Accept windows so that every class has the same spread of G and C.
        max_masked: Largest share of soft-masked bases (repeats); none asks nothing.

    Raises:
        InputError: A class has no contig that is long enough, or no window without N.
    """

    def __init__(
        self,
        genomes: Mapping[str, GenomeStore],
        contigs: Sequence[LabelledContig],
        length: int,
        *,
        seed: int,
        by_length: bool = True,
        drop_n: bool = True,
        match_gc: bool = False,
        max_masked: float | None = None,
    ):
        self.genomes, self.length, self.seed, self.drop_n, self.max_masked = genomes, length, seed, drop_n, max_masked
        self.labels = tuple(dict.fromkeys(contig.label for contig in contigs))
        self._contigs = {
            label: [c for c in contigs if c.label == label and c.length >= length] for label in self.labels
        }
        self.too_short = tuple(c for c in contigs if c.length < length)
        """Contigs that hold no window of this length, and are never drawn from."""
        self._shares = {}
        for label, some in self._contigs.items():
            if not some:
                longest = max((c.length for c in contigs if c.label == label), default=0)
                raise InputError(
                    f"class {label} has no contig of {length:,} bases; its longest here has {longest:,}: take shorter windows"
                )
            weights = np.array([c.length - length + 1 if by_length else 1 for c in some], np.float64)
            self._shares[label] = weights / weights.sum()
        self._accepted: dict[str, np.ndarray] | None = None
        if match_gc:
            self._accepted = self._acceptance()

    def place(self, epoch: int, index: int, purpose: int = 0) -> Place:
        """Give window `index` of an epoch (both from 0); draws of another purpose than 0, training, are others."""
        # a spawn key is kept apart from the rest; of a list alone [0, 2^34] and [0, 0, 4] would be one
        key = np.random.SeedSequence([self.seed, epoch, index], spawn_key=(purpose,) if purpose else ())
        generator = np.random.default_rng(key)
        return self._draw(self.labels[int(generator.integers(len(self.labels)))], generator)

    def place_of(self, label: str, epoch: int, index: int) -> Place:
        """Give a window of one class; a draw of its own for each epoch and index."""
        return self._draw(label, np.random.default_rng([self.seed, 2**35, self.labels.index(label), epoch, index]))

    def try_class(self, label: str) -> None:
        """Raise an InputError if the class has no window."""
        self.place_of(label, 0, 0)

    def places(self, number: int) -> list[Place]:
        """Give a fixed set for evaluation: classes in turn, so that their numbers differ by at most one, none twice."""
        found: dict[Place, None] = {}
        for i in range(number):
            generator = np.random.default_rng([self.seed, 2**32, i])
            for _ in range(MAX_TRIES):
                place = self._draw(self.labels[i % len(self.labels)], generator)
                if place not in found:
                    break
            else:
                raise InputError(
                    f"class {place.label} has places for about {len(found) // len(self.labels):,} different windows of "
                    f"{self.length:,} bases, {number:,} of all classes were asked for; set evaluation.valid_windows and "
                    f"evaluation.test_windows lower"
                )
            found[place] = None
        return list(found)

    def independent(self, places: Sequence[Place]) -> float:
        """Count windows that do not overlap: the distinct bases of these over the length of one.

        Homologous windows of different classes are counted each; they are alike, so the true number is smaller still.
        """
        starts: dict[tuple[str, str], list[int]] = {}
        for place in places:
            starts.setdefault((place.genome, place.contig), []).append(place.start)
        distinct = 0
        for some in starts.values():
            gaps = np.diff(np.sort(some))
            distinct += int(np.minimum(gaps, self.length).sum()) + self.length
        return distinct / self.length

    def stored(self, place: Place) -> np.ndarray:
        """Read a window as store bytes, upper case."""
        return self.genomes[place.genome].stored(place.contig, place.start, place.start + self.length) & BASE_BITS

    def _draw(self, label: str, generator: np.random.Generator) -> Place:
        some, shares = self._contigs[label], self._shares[label]
        for _ in range(MAX_TRIES):
            contig = some[int(generator.choice(len(some), p=shares))]
            start = int(generator.integers(contig.length - self.length + 1))
            place = Place(label=label, genome=contig.genome, contig=contig.contig, start=start)
            if self.drop_n:
                ends = np.array([start + self.length])
                if int(self.genomes[contig.genome].count_n(contig.contig, np.array([start]), ends)[0]):
                    continue
            if self.max_masked is not None:
                window = self.genomes[contig.genome].stored(contig.contig, start, start + self.length)
                if np.count_nonzero(window & SOFT_MASK) > self.max_masked * self.length:
                    continue
            if self._accepted is not None and generator.random() >= self._accepted[label][self._gc_bin(place)]:
                continue
            return place
        asked = [
            *(["without N"] if self.drop_n else []),
            *([f"with at most {self.max_masked:.0%} repeats"] if self.max_masked is not None else []),
            *(["with the share of G and C that all classes have"] if self._accepted is not None else []),
        ]
        raise InputError(
            f"class {label}: {MAX_TRIES} draws found no window of {self.length:,} bases {' and '.join(asked)}; take shorter "
            f"windows"
        )

    def _gc_bin(self, place: Place) -> int:
        stored = self.stored(place)
        known = int((stored != STORE_N).sum())
        share = float(((stored == STORE_C) | (stored == STORE_G)).sum()) / max(1, known)
        return min(GC_BINS - 1, int(share * GC_BINS))

    def _acceptance(self) -> dict[str, np.ndarray]:
        """Give for each class and bin the share of windows to accept: the smallest density of any class over its own."""
        density = {}
        for number, label in enumerate(self.labels):
            bins = [
                self._gc_bin(self._draw(label, np.random.default_rng([self.seed, 2**33 + number, i])))
                for i in range(GC_SAMPLE)
            ]
            density[label] = np.bincount(bins, minlength=GC_BINS) / GC_SAMPLE
        lowest = np.minimum.reduce(list(density.values()))
        if not lowest.any():
            raise InputError("no share of G and C is common to all classes; leave matching out")
        return {label: np.divide(lowest, d, out=np.zeros(GC_BINS), where=d > 0) for label, d in density.items()}


def write_places(path: Path, places: Sequence[Place], length: int) -> None:
    """List evaluation windows: tab-separated contig, start, end (0-based, end excluded), label, assembly."""
    rows = ((p.contig, str(p.start), str(p.start + length), p.label, p.genome) for p in places)
    write_table(path, ("contig", "start", "end", "label", "assembly"), rows)
