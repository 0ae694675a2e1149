"""Scores of variants from a language model: VCF in, VCF, TSV or Parquet out, in the order of the input."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dna_mamba.data.build import Progress
from dna_mamba.data.genome import GenomeStore
from dna_mamba.data.intervals import Interval
from dna_mamba.data.variants import Variant, VcfFile, allele_status, info_line, read_vcf, reference_fault, with_info
from dna_mamba.data.vocabulary import reverse_complement_tokens, tokens_of
from dna_mamba.errors import InputError
from dna_mamba.files import WholeFile, check_is_no_input, check_writable, write_table
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.pretrain import load_genome
from dna_mamba.pipelines.sequences import find_device, load_language_model, read_piece, warn_if_longer
from dna_mamba.training.forks import Allele, AlleleScores, score_alleles

FORMATS = (".vcf", ".vcf.gz", ".tsv", ".parquet")
MAX_ALLELE_BASES = 1 << 20
CHEAPER_LEFT = 16_384
WRONG_BUILD_SHARE = 0.05
"""With more records than this whose REF differs, another assembly is the likely reason."""
MEANING = (
    "log P(ALT and the right flank | left context) - log P(REF and the right flank | left context), in nats over A C G T; the "
    "flank has the same bases and length in both"
)
DISTANCE_MEANING = (
    "Euclidean distance between the mean vectors, after the final norm, of ALT and the right flank and of REF and the right "
    "flank; same contexts as DMLLR"
)
COLUMNS = ("contig", "pos", "id", "ref", "alt")
OURS = frozenset({"DMLLR", "DMLEN", "DMDIST", "DMSTATUS"})
"""INFO fields that are written; what stood under these names goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """What to score."""

    model: Path
    variants: Path
    genome: str
    out: Path
    left: int | None = None
    """Bases of left context; none reads from the first base of the contig, once for all records on it."""
    right: int = 512
    """Bases of right flank that are scored with each allele."""
    strands: str = "forward"
    """both averages with the score on the reverse complement, whose left context is what lies to the right."""
    distance: bool = False
    """Give the distance of embeddings (DMDIST) too; REF is then read with every allele."""
    skip_mismatches: bool = False
    """Give records whose REF is not in the genome the status ref_mismatch instead of stopping."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if format_of(self.out) is None:
            raise InputError(f"-o {self.out} must end in {', '.join(FORMATS)}: the ending says the format")
        check_context(self.left, self.right, self.strands)


def check_context(left: int | None, right: int, strands: str) -> None:
    """Refuse contexts that make no sense.

    Raises:
        InputError: One is negative or absurdly long, or the strands are unknown.
    """
    if left is not None and not 0 <= left <= 2**40:
        raise InputError(f"--left {left} must be 0 or more bases, or full")
    if not 0 <= right <= 2**30:
        raise InputError(f"--right {right} must lie between 0 and 2^30 bases")
    if strands not in ("forward", "both"):
        raise InputError(f"strands {strands!r} is unknown; choose forward or both")


def format_of(out: Path) -> str | None:
    """Name the format that a file's ending asks for."""
    return next((ending for ending in sorted(FORMATS, key=len, reverse=True) if out.name.endswith(ending)), None)


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """What was scored."""

    out: Path
    num_records: int
    status_counts: dict[str, int]
    """ALT alleles by status."""
    seconds: float


@dataclass(frozen=True, slots=True)
class AltScore:
    """What is said about one ALT."""

    alt: str
    status: str
    ratio: float | None
    length_difference: int | None
    distance: float | None = None


def run(
    config: ScoreConfig,
    *,
    say: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_bases: Callable[[int, int], None] | None = None,
) -> ScoreResult:
    """Score every allele of a VCF and write a file, whole or not at all.

    Args:
        config: What to do.
        say: Called with sentences for the user, the cost first.
        on_progress: Called while a FASTA is packed.
        warn: Called with sentences that deserve attention.
        on_bases: Called with positions that were passed just now, and all to pass.

    Raises:
        InputError: The model, the VCF, the genome or the output is at fault, or a REF differs from the genome.
    """
    started = time.monotonic()
    say = say or (lambda words: None)
    device = find_device(config.device)
    model = load_language_model(config.model, device)
    check_is_no_input(config.out, config.variants, config.genome)
    check_writable(config.out)
    file = read_vcf(config.variants)
    genome = load_genome(config.genome, on_progress, warn)
    mismatched = _check_references(config, file, genome)
    if not file.variants:
        say(f"{config.variants} has no record; the output has none either")
    say(_cost(config, file, genome, mismatched))
    left = max((v.start for v in file.variants), default=0) if config.left is None else config.left
    warn_if_longer(model.trained_bases, left + config.right, warn)
    scores = score_variants(
        model, genome, file.variants, mismatched, left=config.left, right=config.right, strands=config.strands,
        distance=config.distance, on_bases=on_bases,
    )  # fmt: skip
    _write(config, file, scores)
    counts: dict[str, int] = {}
    for some in scores:
        for one in some:
            counts[one.status] = counts.get(one.status, 0) + 1
    return ScoreResult(
        out=config.out, num_records=len(file.variants), status_counts=counts, seconds=time.monotonic() - started
    )


def _check_references(config: ScoreConfig, file: VcfFile, genome: GenomeStore) -> set[int]:
    """Compare every REF with the genome before anything is scored; give the records that differ."""
    faults = {
        n: fault
        for n, v in enumerate(file.variants)
        if any(allele_status(alt) is None for alt in v.alts) and (fault := reference_fault(genome, v)) is not None
    }
    if not faults or config.skip_mismatches:
        return set(faults)
    first = min(faults)
    variant, share = file.variants[first], len(faults) / len(file.variants)
    words = f"{len(faults):,} of {len(file.variants):,} records ({share:.1%}) do not fit"
    build = " (is it another assembly?)" if share > WRONG_BUILD_SHARE else ""
    raise InputError(
        f"{config.variants}, line {variant.line} ({variant.contig}:{variant.start + 1}): {faults[first]}; {words} "
        f"{config.genome}{build}; --skip-mismatches passes over them"
    )


def _cost(config: ScoreConfig, file: VcfFile, genome: GenomeStore, mismatched: set[int]) -> str:
    """Say what will be read, and name what is cheaper by far."""
    usable = [v for n, v in enumerate(file.variants) if n not in mismatched]
    alleles = sum(allele_status(alt) is None for v in usable for alt in v.alts)
    strands = ["+", "-"] if config.strands == "both" else ["+"]
    passes = 0
    for name in {v.contig for v in usable if any(allele_status(alt) is None for alt in v.alts)}:
        starts = [v.start for v in usable if v.contig == name]
        passes += max(starts) + ((genome.contig(name).length - min(starts)) if "-" in strands else 0)
    letters = sum(
        len(alt) for v in usable for alt in v.alts if allele_status(alt) is None and len(alt) <= MAX_ALLELE_BASES
    )
    short = len(strands) * (alleles * (CHEAPER_LEFT + 2 * config.right) + letters)
    full = passes + len(strands) * (alleles * config.right + letters)
    total = full if config.left is None else len(strands) * (alleles * (config.left + 2 * config.right) + letters)
    words = f"{alleles:,} alleles of {len(file.variants):,} records: about {total:,} bases to read"
    if config.left is None and full > 10 * max(1, short):
        words += f"; --left {CHEAPER_LEFT} reads {short:,}"
    return words


def score_variants(
    model: DnaMamba,
    genome: GenomeStore,
    variants: Sequence[Variant],
    mismatched: set[int],
    *,
    left: int | None,
    right: int,
    strands: str = "forward",
    distance: bool = False,
    on_bases: Callable[[int, int], None] | None = None,
) -> list[list[AltScore]]:
    """Score all alleles, in the order of the records; see `ScoreConfig`."""
    found: list[list[AltScore]] = []
    to_score: dict[str, list[tuple[int, int]]] = {}
    for number, variant in enumerate(variants):
        some: list[AltScore] = []
        unknown = False
        if number not in mismatched and any(allele_status(alt) is None for alt in variant.alts):
            letters = genome.fetch(Interval(variant.contig, variant.start, variant.start + len(variant.ref)))
            unknown = not set(letters) <= set("ACGT")
        for alt in variant.alts or (".",):
            status = (
                "no_alt" if alt == "." else allele_status(alt) or ("ref_mismatch" if number in mismatched else None)
            )
            if status is None and unknown:
                status = "ambiguous"  # REF adds nothing where the genome says no base: nothing to compare with
            if status is None and len(alt) > MAX_ALLELE_BASES:
                status = "too_long"
            if status is None:
                to_score.setdefault(variant.contig, []).append((number, len(some)))
            some.append(AltScore(alt, status or "scored", None, None))
        found.append(some)
    passes = [(contig, strand) for contig in to_score for strand in ("+-" if strands == "both" else "+")]
    reach = {}
    for contig, strand in passes:
        length = genome.contig(contig).length
        starts = [variants[n].start for n, _ in to_score[contig]]
        reach[contig, strand] = max(starts) if strand == "+" else length - min(starts)
    for contig, places in to_score.items():
        length = genome.contig(contig).length
        alleles = [
            Allele(variants[n].start, len(variants[n].ref), tokens_of(variants[n].alts[a]).copy()) for n, a in places
        ]
        found_of_strand = []
        for strand in (strand for name, strand in passes if name == contig):
            if strand == "-":
                alleles = [
                    Allele(length - a.start - a.ref_bases, a.ref_bases, reverse_complement_tokens(a.tokens))
                    for a in alleles
                ]
            progress = None if on_bases is None else _Progress(on_bases, reach[contig, strand], sum(reach.values()))
            found_of_strand.append(
                _score_contig(model, genome, contig, alleles, strand, left, right, distance, progress)
            )
        ratios = np.mean([one.ratios for one in found_of_strand], axis=0)
        distances = [one.distances for one in found_of_strand if one.distances is not None]
        mean_distances = np.mean(distances, axis=0).tolist() if distances else [None] * len(places)
        for (n, a), ratio, far in zip(places, ratios.tolist(), mean_distances, strict=True):
            variant = variants[n]
            found[n][a] = AltScore(variant.alts[a], "scored", ratio, len(variant.alts[a]) - len(variant.ref), far)
    return found


class _Progress:
    """Turns positions reached into steps."""

    def __init__(self, on_bases: Callable[[int, int], None], reach: int, total: int):
        self.on_bases, self.reach, self.total, self.at = on_bases, reach, total, 0

    def __call__(self, place: int) -> None:
        """Take the position that the pass has reached."""
        place = min(place, self.reach)
        if place > self.at:
            self.on_bases(place - self.at, self.total)
            self.at = place


def _score_contig(
    model: DnaMamba, genome: GenomeStore, contig: str, alleles: Sequence[Allele], strand: str, left: int | None, right: int,
    distance: bool, on_bases: Callable[[int], None] | None,
) -> AlleleScores:  # fmt: skip
    length = genome.contig(contig).length
    whole = Interval(contig, 0, length, strand)

    def read(start: int, end: int) -> np.ndarray:
        return read_piece(genome, whole, start, end) if end > start else np.zeros(0, np.uint8)

    return score_alleles(model, read, length, alleles, left=left, right=right, distance=distance, on_bases=on_bases)


def _write(config: ScoreConfig, file: VcfFile, scores: Sequence[Sequence[AltScore]]) -> None:
    kind = format_of(config.out)
    left = "from the first base of the contig" if config.left is None else f"{config.left} bases"
    words = f"{MEANING}; left context {left}, right flank {config.right} bases, strands {config.strands}"
    if kind in (".vcf", ".vcf.gz"):
        header = [line for line in file.header[:-1] if not any(line.startswith(f"##INFO=<ID={name},") for name in OURS)]
        header += [
            info_line("DMLLR", "A", "Float", words),
            info_line("DMLEN", "A", "Integer", "Bases of ALT minus bases of REF; DMLLR compares only within one DMLEN"),
            info_line(
                "DMSTATUS",
                "A",
                "String",
                "scored, or why not: star, symbolic, breakend, ambiguous (no A C G T in ALT, or in the genome at REF), "
                "too_long, ref_mismatch, no_alt",
            ),
            *([info_line("DMDIST", "A", "Float", DISTANCE_MEANING)] if config.distance else []),
            file.header[-1],
        ]
        lines = [
            with_info(variant, _fields(some, config.distance) if variant.alts else [], OURS)
            for variant, some in zip(file.variants, scores, strict=True)
        ]
        text = "\n".join([*header, *lines]) + "\n"
        with WholeFile(config.out) as path:
            if kind == ".vcf":
                path.write_text(text)
            else:
                from Bio.bgzf import BgzfWriter

                with BgzfWriter(str(path), "wb") as packed:
                    packed.write(text.encode())
        return
    rows = [
        (
            variant.contig,
            str(variant.start + 1),
            variant.columns[2],
            variant.ref,
            one.alt,
            *(value for _, value in _fields([one], config.distance)),
        )
        for variant, some in zip(file.variants, scores, strict=True)
        for one in some
    ]
    columns = (*COLUMNS, *(name for name, _ in _fields([], config.distance)))
    if kind == ".tsv":
        write_table(config.out, columns, rows)
        return
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(columns))
    table = table.astype({"pos": "int64"})
    for name in {"DMLLR", "DMLEN", "DMDIST"} & set(columns):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    with WholeFile(config.out) as path:
        table.to_parquet(path, index=False)


def _fields(some: Sequence[AltScore], distance: bool) -> list[tuple[str, str]]:
    def numbers(values: list[float | None]) -> str:
        return ",".join("." if value is None else f"{value:.9g}" for value in values)

    return [
        ("DMLLR", numbers([one.ratio for one in some])),
        ("DMLEN", ",".join("." if one.length_difference is None else str(one.length_difference) for one in some)),
        *([("DMDIST", numbers([one.distance for one in some]))] if distance else []),
        ("DMSTATUS", ",".join(one.status for one in some)),
    ]
