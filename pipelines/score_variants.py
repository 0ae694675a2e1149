"""Scores of variants from a language model: VCF in, VCF, TSV or Parquet out, in the order of the input.

The VCF is read twice, record by record: once to compare every REF with the genome and to note what is to be scored, and once
to write. In between stand some thirty bytes an allele that is scored, and one of any other, however many samples there are.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from dna_mamba.data.intervals import Interval
from dna_mamba.data.selection import load_genome
from dna_mamba.data.store.genome import GenomeStore, file_sha256
from dna_mamba.data.variants import (
    Variant,
    VcfReader,
    info_line,
    with_info,
)
from dna_mamba.data.vcf_blocks import NO_ALT, SLOW, STAR, SYMBOLIC, weave
from dna_mamba.data.vocabulary import reverse_complement_tokens
from dna_mamba.device import find_device
from dna_mamba.errors import InputError
from dna_mamba.files import WholeFile, check_is_no_input, check_writable
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.configs.score import ScoreConfig, format_of
from dna_mamba.pipelines.evaluate import find_model
from dna_mamba.pipelines.score_survey import SCORED, STATUSES, Survey
from dna_mamba.pipelines.sequences import Reached, load_language_model, read_piece
from dna_mamba.pipelines.tables import write_rows
from dna_mamba.progress import Progress
from dna_mamba.reading.forks import Allele, AlleleScores, score_alleles

CHEAPER_LEFT = 16_384
MEANING = (
    "log P(ALT and the right flank | left context) - log P(REF and the right flank | left context), in nats over A C G T; "
    "positive: ALT is likelier to the model. Alleles are trimmed and moved left first, so one haplotype has one score; the "
    "flank is counted from the last base replaced and is the same in both"
)
DISTANCE_MEANING = (
    "Euclidean distance between the mean vectors, after the final norm, of ALT and the right flank and of REF and the right "
    "flank; same contexts as {prefix}LLR"
)
COLUMNS = {"contig": str, "pos": int, "id": str, "ref": str, "alt": str}
WRITE_AT_ONCE = 1 << 16
"""Characters; Bio.bgzf takes time in the square of what it is given at once."""


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """What was scored."""

    out: Path
    num_records: int
    status_counts: dict[str, int]
    """ALT alleles by status."""
    num_moved: int
    """Records with an insertion or deletion that stood further right than it could; they were scored where it begins."""
    seconds: float


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
    say, warn = say or (lambda words: None), warn or (lambda words: None)
    device = find_device(config.device)
    model = load_language_model(config.model, device, "scoring variants")
    check_is_no_input(config.out, config.variants, config.genome)
    check_writable(config.out)
    reader = VcfReader(config.variants, warn)
    before = config.variants.stat()
    genome = load_genome(config.genome, on_progress, warn, rna=config.rna)
    survey = Survey(config, genome)
    survey.read_file(reader)
    if not survey.num_records:
        say(f"{config.variants} has no record; the output has none either")
    say(_cost(config, survey, genome))
    if survey.num_moved:
        say(
            f"{survey.num_moved:,} records are not trimmed and left-aligned (bcftools norm does that); their scores are those "
            f"of the same haplotypes written so"
        )
    _warn_of_context(config, survey, model.trained_bases, warn)
    ratios, distances = _score(model, genome, survey, config, on_bases)

    def check_unchanged() -> None:
        after = config.variants.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise InputError(f"{config.variants} changed while it was read; score again when it is complete")

    check_unchanged()
    _write(config, survey, ratios, distances, check_unchanged)
    counts = np.bincount(np.frombuffer(survey.statuses, np.uint8), minlength=len(STATUSES)).tolist()
    return ScoreResult(
        out=config.out,
        num_records=survey.num_records,
        status_counts={name: count for name, count in zip(STATUSES, counts, strict=True) if count},
        num_moved=survey.num_moved,
        seconds=time.monotonic() - started,
    )


def _warn_of_context(config: ScoreConfig, survey: Survey, trained: int | None, warn: Callable[[str], None]) -> None:
    """Say once how many alleles are scored with more context than the model was trained on."""
    if trained is None or not survey.num_scored:
        return
    reach = trained - config.right
    if config.left is None:
        beyond = sum(int((np.array(some.starts) > reach).sum()) for some in survey.by_contig.values())
    else:
        beyond = survey.num_scored if config.left > reach else 0
    if beyond:
        warn(
            f"{beyond:,} of {survey.num_scored:,} alleles are scored with more context than the {trained:,} bases that the "
            f"model was trained on; --left {max(0, reach)} stays within (docs/using-a-model.md says what it means)"
        )


def _cost(config: ScoreConfig, survey: Survey, genome: GenomeStore) -> str:
    """Say what will be read, and name what is cheaper by far."""
    strands = ["+", "-"] if config.strands == "both" else ["+"]
    passes = letters = 0
    for name, some in survey.by_contig.items():
        passes += max(some.starts) + ((genome.contig(name).length - min(some.starts)) if "-" in strands else 0)
        letters += len(some.tokens)
    alleles = survey.num_scored
    short = len(strands) * (alleles * (CHEAPER_LEFT + 2 * config.right) + letters)
    full = passes + len(strands) * (alleles * config.right + letters)
    total = full if config.left is None else len(strands) * (alleles * (config.left + 2 * config.right) + letters)
    words = f"{alleles:,} alleles of {survey.num_records:,} records: about {total:,} bases to read"
    if config.left is None and full > 10 * max(1, short):
        words += f"; --left {CHEAPER_LEFT} reads {short:,}"
    return words


def _score(
    model: DnaMamba, genome: GenomeStore, survey: Survey, config: ScoreConfig,
    on_bases: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Score what a survey noted; give log-likelihood ratios and distances in the order of the file."""
    ratios, distances = np.zeros(survey.num_scored), np.full(survey.num_scored, np.nan)
    strands = "+-" if config.strands == "both" else "+"
    reach = {}
    for contig, some in survey.by_contig.items():
        length = genome.contig(contig).length
        for strand in strands:
            reach[contig, strand] = max(some.starts) if strand == "+" else length - min(some.starts)
    for contig, some in survey.by_contig.items():
        length = genome.contig(contig).length
        alleles = some.alleles()
        found_of_strand = []
        for strand in strands:
            if strand == "-":
                alleles = [
                    Allele(length - a.start - a.ref_bases, a.ref_bases, reverse_complement_tokens(a.tokens))
                    for a in alleles
                ]
            progress = None if on_bases is None else Reached(on_bases, reach[contig, strand], sum(reach.values()))
            found_of_strand.append(
                _score_contig(
                    model, genome, contig, alleles, strand, config.left, config.right, config.distance, progress
                )
            )
        numbers = np.array(some.numbers)
        ratios[numbers] = np.mean([one.ratios for one in found_of_strand], axis=0)
        if config.distance:
            of_strands = [one.distances for one in found_of_strand if one.distances is not None]
            distances[numbers] = np.mean(of_strands, axis=0)
    return ratios, distances


def score_records(
    model: DnaMamba,
    genome: GenomeStore,
    records: Iterable[Variant],
    *,
    left: int | None,
    right: int,
    strands: str = "forward",
) -> np.ndarray:
    """Give the log-likelihood ratios (nats) of all alleles of records that can be scored, in their order.

    Raises:
        InputError: A REF is not in the genome.
    """
    nowhere = Path("records.vcf")
    config = ScoreConfig(
        model=nowhere, variants=nowhere, genome=genome.called, out=nowhere, left=left, right=right, strands=strands
    )
    survey = Survey(config, genome)
    survey.read(records)
    return _score(model, genome, survey, config, None)[0]


def _score_contig(
    model: DnaMamba, genome: GenomeStore, contig: str, alleles: Sequence[Allele], strand: str, left: int | None, right: int,
    distance: bool, on_bases: Callable[[int], None] | None,
) -> AlleleScores:  # fmt: skip
    length = genome.contig(contig).length
    whole = Interval(contig, 0, length, strand)

    def read(start: int, end: int) -> np.ndarray:
        return read_piece(genome, whole, start, end) if end > start else np.zeros(0, np.uint8)

    return score_alleles(model, read, length, alleles, left=left, right=right, distance=distance, on_bases=on_bases)


@dataclass(frozen=True, slots=True)
class AltScore:
    """What is said about one ALT."""

    alt: str
    status: str
    ratio: float | None
    length_difference: int | None
    distance: float | None = None


class _Found:
    """What was found for each allele, given out in the order of the file."""

    def __init__(self, survey: Survey, ratios: np.ndarray, distances: np.ndarray, check_unchanged: Callable[[], None]):
        self.check_unchanged = check_unchanged
        self.survey, self.ratios, self.distances = survey, ratios, distances
        self.at = self.number = 0

    def of(self, record: Variant) -> list[AltScore]:
        """Give what is said about each ALT of the next record."""
        some = []
        for alt in record.alts or (".",):
            status = self.survey.statuses[self.at]
            self.at += 1
            if status != SCORED:
                some.append(AltScore(alt, STATUSES[status], None, None))
                continue
            far = float(self.distances[self.number])
            ratio, difference = float(self.ratios[self.number]), len(alt) - len(record.ref)
            some.append(AltScore(alt, "scored", ratio, difference, None if far != far else far))
            self.number += 1
        return some

    def passed(self, records: int) -> None:
        """Pass over records with one allele each that is not scored."""
        self.at += records

    def check(self) -> None:
        """See that all was given out, from the file that was surveyed."""
        self.check_unchanged()
        assert (self.at, self.number) == (len(self.survey.statuses), self.survey.num_scored), "the same file twice"


def _header(config: ScoreConfig, old: Sequence[str]) -> list[str]:
    """Give the header with lines that say what the scores are and how they were made."""
    left = "from the first base of the contig" if config.left is None else f"{config.left} bases"
    words = f"{MEANING}; left context {left}, right flank {config.right} bases, strands {config.strands}"
    prefix = config.prefix
    gone = (*(f"##INFO=<ID={name}," for name in config.replaced), f"##dna-mamba=<ID={prefix},")
    directory, _ = find_model(config.model)
    digest = file_sha256(directory / "model.safetensors")

    def quoted(text: object) -> str:
        return '"' + str(text).replace("\\", "/").replace('"', "'").replace("\n", " ") + '"'

    convention = "natural logarithm, ALT minus REF, bases 1-based as in VCF"
    added = [
        f"##dna-mamba=<ID={prefix},Model={quoted(config.model)},ModelSHA256={digest},Version={metadata.version('dna-mamba')},"
        f"Genome={quoted(config.genome)},Command={quoted(config.command)},Convention={quoted(convention)}>",
        info_line(f"{prefix}LLR", "A", "Float", words),
        info_line(
            f"{prefix}LEN", "A", "Integer", f"Bases of ALT minus bases of REF; {prefix}LLR compares only within one {prefix}LEN"
        ),
        info_line(
            f"{prefix}STATUS", "A", "String",
            "scored, or why not: star, symbolic, breakend, no_alt, ambiguous (a letter that says no base in ALT or REF, or in "
            "the genome at REF), too_long, ref_mismatch, no_contig",
        ),
        *([info_line(f"{prefix}DIST", "A", "Float", DISTANCE_MEANING.format(prefix=prefix))] if config.distance else []),
    ]  # fmt: skip
    return [*(line for line in old[:-1] if not line.startswith(gone)), *added, old[-1]]


def _write(
    config: ScoreConfig,
    survey: Survey,
    ratios: np.ndarray,
    distances: np.ndarray,
    check_unchanged: Callable[[], None],
) -> None:
    found = _Found(survey, ratios, distances, check_unchanged)
    reader = VcfReader(config.variants)
    kind = format_of(config.out)
    if kind in (".vcf", ".vcf.gz"):
        _write_vcf(config, reader, found)
        return
    cells = (
        (record.contig, record.start + 1, record.columns[2], record.ref, one.alt, *_values(config, one))
        for record in reader
        for one in found.of(record)
    )
    with WholeFile(config.out) as path:
        write_rows(path, COLUMNS | config.kinds, cells)
        found.check()


def _write_vcf(config: ScoreConfig, reader: VcfReader, found: _Found) -> None:
    header = ("\n".join(_header(config, reader.header)) + "\n").encode("utf-8", "surrogateescape")
    with WholeFile(config.out) as path:
        if config.out.name.endswith(".gz"):
            from Bio.bgzf import BgzfWriter

            with BgzfWriter(str(path), "wb") as packed:
                for text in itertools.chain([header], _texts(config, reader, found)):
                    for start in range(0, len(text), WRITE_AT_ONCE):
                        packed.write(text[start : start + WRITE_AT_ONCE])
        else:
            with open(path, "wb") as file:
                for text in itertools.chain([header], _texts(config, reader, found)):
                    file.write(text)
        found.check()


def _texts(config: ScoreConfig, reader: VcfReader, found: _Found) -> Iterator[bytes]:
    """Give the records with what was found in their INFO, in pieces of whole lines."""
    replaced, names = config.replaced, config.names

    def added(status: str) -> bytes:
        values = ("." if name != names[-1] else status for name in names)
        return ";".join(f"{name}={value}" for name, value in zip(names, values, strict=True)).encode()

    of_kind = {SYMBOLIC: added("symbolic"), STAR: added("star"), NO_ALT: b""}
    for block in reader.blocks():
        at = 0
        while at < len(block):
            text, stopped = weave(block, at, of_kind, config.prefix) if block.kinds[at] != SLOW else (b"", at)
            found.passed(stopped - at)
            if text:
                yield text
            at = stopped
            lines: list[str] = []
            while at < len(block) and (block.kinds[at] == SLOW or not lines):
                record = reader.record(block, at)
                some = found.of(record)
                lines.append(with_info(record, _fields(config, some) if record.alts else [], replaced))
                at += 1
            if lines:
                yield ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _values(config: ScoreConfig, one: AltScore) -> tuple[object, ...]:
    distance = (one.distance,) if config.distance else ()
    return (one.ratio, one.length_difference, *distance, one.status)


def _fields(config: ScoreConfig, some: Sequence[AltScore]) -> list[tuple[str, str]]:
    def text(value: object) -> str:
        return "." if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)

    columns = zip(*(_values(config, one) for one in some), strict=True)
    return [(name, ",".join(map(text, column))) for name, column in zip(config.names, columns, strict=True)]
