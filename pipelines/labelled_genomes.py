"""Genomes of a manifest, opened, labelled and split."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dna_mamba.data.kmers import Kmers, contained
from dna_mamba.data.labelled import LabelledContig, LabelledSplit, LabelledWindows, split_by_homologue, split_by_name
from dna_mamba.data.store.cache import open_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.errors import InputError
from dna_mamba.pipelines.manifests import RECORD, Assembly, GenomeManifest, homologues_of_report, read_genome_manifest
from dna_mamba.progress import Progress

PARTS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledDataConfig:
    """Which genomes, and which of their contigs train, validate and test."""

    manifest: str = ""
    """YAML file, or a manifest in the package."""
    genomes: str | None = None
    """Folder that genome fetch filled; without it genomes/NAME. Files that a manifest names need none."""
    split_by: str = "homologue"
    """homologue, or contig: all contigs of one name are in one part, whatever the class."""
    valid: tuple[str, ...] = ()
    """Human chromosomes, or contigs, for validation; without it and `test` the manifest's."""
    test: tuple[str, ...] = ()
    split: str | None = None
    """Instead: a table of NAME and PART (train, valid or test), tab-separated."""
    held_out_assemblies: tuple[str, ...] = ()
    """Assemblies that neither train nor choose: another individual of a class, tested beside."""
    by_length: bool = True
    """Draw contigs by their length; otherwise all alike."""
    drop_n: bool = True
    match_gc: bool = False

    def __post_init__(self) -> None:
        if self.split_by not in ("homologue", "contig"):
            raise InputError(f"split_by {self.split_by!r} is unknown; choose homologue or contig")
        if self.split is not None and (self.valid or self.test):
            raise InputError("--split and --valid or --test exclude each other; put all parts into the table")


@dataclass(frozen=True, kw_only=True)
class LabelledGenomes:
    """Open stores by assembly, and contigs by part."""

    manifest: GenomeManifest
    labels: tuple[str, ...]
    stores: Mapping[str, GenomeStore]
    split: LabelledSplit
    held_out: LabelledSplit | None
    """Test part of assemblies that were held out; classes without one are missing."""

    def windows(
        self, part: str, length: int, seed: int, data: LabelledDataConfig, *, max_masked: float | None = None,
        drop_n: bool | None = None,
    ) -> LabelledWindows:  # fmt: skip
        """Draw from a part ('train', 'valid', 'test', or 'held out' for the test part of other individuals)."""
        if part == "held out":
            assert self.held_out is not None
            contigs = self.held_out.test
        else:
            contigs = getattr(self.split, part)
        return LabelledWindows(
            self.stores, contigs, length, seed=seed, by_length=data.by_length,
            drop_n=data.drop_n if drop_n is None else drop_n, match_gc=data.match_gc, max_masked=max_masked,
        )  # fmt: skip


def open_labelled(
    data: LabelledDataConfig, *, on_progress: Progress | None = None, warn: Callable[[str], None] | None = None
) -> LabelledGenomes:
    """Open what a manifest names, and split it.

    Raises:
        InputError: The manifest or a file is at fault, an assembly was not fetched, or the split cannot be made.
    """
    manifest = read_genome_manifest(Path(data.manifest))
    folder = Path(data.genomes) if data.genomes is not None else Path("genomes") / manifest.name
    stores: dict[str, GenomeStore] = {}
    contigs: list[LabelledContig] = []
    for one in manifest.classes:
        for assembly in one.assemblies:
            store, homologue_of = _open(assembly, folder, manifest, on_progress, warn)
            stores[assembly.name] = store
            contigs += [
                LabelledContig(
                    label=one.label,
                    genome=assembly.name,
                    contig=c.name,
                    length=c.length,
                    homologue=homologue_of.get(c.name),
                )
                for c in store.manifest.contigs
            ]
    if unknown := [name for name in data.held_out_assemblies if name not in stores]:
        raise InputError(f"assembly {unknown[0]!r} is held out but not in the manifest; it has {', '.join(stores)}")
    others = [c for c in contigs if c.genome in data.held_out_assemblies]
    used = [c for c in contigs if c.genome not in data.held_out_assemblies]
    labels = tuple(one.label for one in manifest.classes)
    present = {c.label for c in used}
    if missing := [label for label in labels if label not in present]:
        raise InputError(f"class {missing[0]} has no assembly left to train on; hold out fewer")
    split = _split(data, manifest, used)
    return LabelledGenomes(
        manifest=manifest,
        labels=labels,
        stores=stores,
        split=split,
        held_out=_of_test(others, split) if others else None,
    )


def _of_test(others: Sequence[LabelledContig], split: LabelledSplit) -> LabelledSplit:
    """Keep what lies at the loci of the test part: of another individual nothing else is looked at."""
    names = {name for contig in split.test for name in contig.human_chromosomes or {contig.contig}}
    test = [c for c in others if (c.human_chromosomes or {c.contig}) <= names]
    if not test:
        raise InputError(
            f"the assemblies that are held out ({others[0].genome}, ...) have no contig at a locus of the test part"
        )
    return LabelledSplit(train=(), valid=(), test=tuple(test), left_out=tuple(c for c in others if c not in test))


def _open(
    assembly: Assembly,
    folder: Path,
    manifest: GenomeManifest,
    on_progress: Progress | None,
    warn: Callable[[str], None] | None,
) -> tuple[GenomeStore, dict[str, str]]:
    homologue_of = {row.name: row.homologue for row in assembly.contigs if row.verified}
    if assembly.fasta is not None:
        store = open_genome(Path(assembly.fasta), on_progress=on_progress, warn=warn)
    else:
        path = folder / f"{assembly.name}.dna"
        if not path.exists():
            raise InputError(
                f"assembly {assembly.name} is not in {folder}; run dna-mamba genome fetch for manifest {manifest.name} "
                f"first, or name the folder with --genomes"
            )
        _check_record(assembly, folder)
        store = GenomeStore.open(path)
        store.verify()
    if assembly.report_url is not None:
        report = folder / f"{assembly.name}.report.txt"
        try:
            homologue_of |= homologues_of_report(report.read_text(encoding="utf-8", errors="replace"), str(report))
        except OSError as error:
            raise InputError(f"cannot read {report}: {error.strerror}; run dna-mamba genome fetch again") from error
    elif unknown := sorted(set(homologue_of) - set(store.contigs)):
        raise InputError(
            f"assembly {assembly.name}: the manifest names contig {unknown[0]!r}, which is not in its file"
        )
    return store, homologue_of


def _check_record(assembly: Assembly, folder: Path) -> None:
    try:
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))[assembly.name]
        if known["stored"] == (assembly.sha256 or known["sha256"]) and known["url"] == assembly.url:
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f"the store of {assembly.name} in {folder} is not of this manifest's file; run dna-mamba genome fetch again"
    )


def _split(data: LabelledDataConfig, manifest: GenomeManifest, contigs: Sequence[LabelledContig]) -> LabelledSplit:
    if data.split is not None:
        part_of = read_parts(Path(data.split))
        valid, test = ([name for name, part in part_of.items() if part == wanted] for wanted in ("valid", "test"))
        train: list[str] | None = [name for name, part in part_of.items() if part == "train"]
    else:
        given = bool(data.valid or data.test)
        valid, test = list(data.valid if given else manifest.valid), list(data.test if given else manifest.test)
        train = None
    if not valid or not test:
        missing = "validation" if not valid else "test"
        raise InputError(
            f"no {data.split_by} is given for {missing}; name human chromosomes with --valid and --test (selection happens on "
            f"validation, and test is read once), or put both into the manifest"
        )
    if data.split_by == "contig":
        return split_by_name(contigs, valid, test, train)
    return split_by_homologue(contigs, valid, test, train)


def read_parts(path: Path) -> dict[str, str]:
    """Read a table of NAME and PART (train, valid or test).

    Raises:
        InputError: It cannot be read, or a line is at fault.
    """
    part_of: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split("\t")
        if len(columns) != 2 or columns[1].strip() not in PARTS:
            raise InputError(
                f"{path}, line {number}: {line[:80]!r} is not NAME and train, valid or test, with a tab between"
            )
        if columns[0] in part_of:
            raise InputError(f"{path}, line {number}: {columns[0]!r} stands there twice")
        part_of[columns[0]] = columns[1].strip()
    return part_of


def describe(genomes: LabelledGenomes) -> dict[str, object]:
    """Say which genomes these are and how they were split, as plain values."""
    return {
        "assemblies": {
            name: {"bases_sha256": store.manifest.bases_sha256, "bases": store.num_bases}
            for name, store in genomes.stores.items()
        },
        "split": {
            part: [[c.label, c.genome, c.contig, c.homologue] for c in getattr(genomes.split, part)]
            for part in (*PARTS, "left_out")
        },
    }


def identity(genomes: LabelledGenomes) -> str:
    """Give a checksum of the genomes and the split: what a run that is resumed must find unchanged."""
    return hashlib.sha256(json.dumps(describe(genomes), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class LabelledAudit:
    """Who is where, and what the parts share."""

    bases: dict[str, dict[str, int]]
    """Part to class to bases."""
    left_out: dict[str, int]
    """Class to bases of contigs that are in no part."""
    loci_in_two_parts: tuple[str, ...]
    shared_kmers: dict[str, dict[str, float]]
    """'valid' and 'test' to class: share of its distinct 31-mers that also stand in training sequence of any class."""
    sampled: int
    """One of so many 31-mers was looked at."""

    def as_dict(self) -> dict[str, object]:
        """Give plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """Give lines to print."""
        lines = []
        for part, of_class in self.bases.items():
            lines += [f"{part}: {label}: {bases:,} bases" for label, bases in of_class.items()]
        lines += [f"in no part: {label}: {bases:,} bases" for label, bases in self.left_out.items() if bases]
        lines.append(
            f"loci in two parts: {len(self.loci_in_two_parts)}" + "".join(f" {x}" for x in self.loci_in_two_parts)
        )
        for part, shares in self.shared_kmers.items():
            lines += [
                f"31-mers of {part} that training holds too: {label}: {share:.4f}" for label, share in shares.items()
            ]
        return "\n".join(lines)


def audit(genomes: LabelledGenomes, split_by: str) -> LabelledAudit:
    """Count the bases of each part, the loci that are in two, and the 31-mers that parts share."""
    parts: dict[str, Sequence[LabelledContig]] = {part: getattr(genomes.split, part) for part in PARTS}
    total = sum(c.length for contigs in parts.values() for c in contigs)
    kmers = {}
    for part, contigs in parts.items():
        for label in genomes.labels:
            found = Kmers.for_bases(total)
            for contig in contigs:
                if contig.label == label:
                    found.add(genomes.stores[contig.genome].stored(contig.contig, 0, contig.length))
            kmers[part, label] = found.distinct()
    training = np.unique(np.concatenate([kmers["train", label] for label in genomes.labels]))

    def shared(part: str, label: str) -> float:
        some = kmers[part, label]
        return float(contained(some, training).mean()) if some.size else 0.0

    return LabelledAudit(
        bases={part: _bases_by_label(contigs, genomes.labels) for part, contigs in parts.items()},
        left_out=_bases_by_label(genomes.split.left_out, genomes.labels),
        loci_in_two_parts=_in_two_parts(genomes.split, split_by),
        shared_kmers={part: {label: shared(part, label) for label in genomes.labels} for part in ("valid", "test")},
        sampled=Kmers.for_bases(total).one_of,
    )


def _bases_by_label(contigs: Sequence[LabelledContig], labels: Sequence[str]) -> dict[str, int]:
    return {label: sum(c.length for c in contigs if c.label == label) for label in labels}


def _in_two_parts(split: LabelledSplit, split_by: str) -> tuple[str, ...]:
    """Name human chromosomes, or contigs, that stand in more than one part."""
    loci: dict[str, set[str]] = {}
    for part in PARTS:
        for contig in getattr(split, part):
            for name in contig.human_chromosomes if split_by == "homologue" else {contig.contig}:
                loci.setdefault(name, set()).add(part)
    return tuple(sorted(name for name, parts in loci.items() if len(parts) > 1))
