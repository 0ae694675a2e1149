"""Variants: VCF read line by line with every fault named, and written back with what was added."""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dna_mamba.data.genome import GenomeStore
from dna_mamba.data.unpack import open_text
from dna_mamba.errors import InputError, check_regular

LETTERS = re.compile(r"[ACGTNacgtn]+")
IUPAC = re.compile(r"[ACGTNRYSWKMBDHVacgtnryswkmbdhv]+")
BREAKEND = r"(?:[A-Za-z]+(?P<one>[\[\]])[^\[\]\s,]+(?P=one)|(?P<other>[\[\]])[^\[\]\s,]+(?P=other)[A-Za-z]+)"
OTHER_ALT = re.compile(rf"\*|\.|[A-Za-z]*<[^<>\s,]+>|{BREAKEND}|\.[A-Za-z]+|[A-Za-z]+\.")
"""Alleles that say something else than bases. Source: VCF specification 4.3, sections 1.6.1 and 5.4."""
MAX_POSITION = 2**31 - 1
MAX_HEADER_BYTES = 1 << 28
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends a bgzip file; without it the file was cut off. Source: SAM specification, section 4.1.2."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A record of a VCF file."""

    line: int
    """Counted from 1."""
    contig: str
    start: int
    """First base of REF, 0-based; -1 for POS 0, the telomere."""
    ref: str
    alts: tuple[str, ...]
    """As written; empty for '.'."""
    columns: tuple[str, ...]
    """All columns as they stood."""


@dataclass(frozen=True, kw_only=True)
class VcfFile:
    """A VCF file in memory, in its order."""

    path: Path
    header: tuple[str, ...]
    """Lines up to and with #CHROM, without line ends."""
    variants: tuple[Variant, ...]


def allele_status(alt: str) -> str | None:
    """Say why an ALT cannot be scored: star, symbolic, breakend or ambiguous; None if it can."""
    if alt == "*":
        return "star"
    if alt.endswith(">"):  # <DEL>, or T<ctg1>, an inserted contig
        return "symbolic"
    if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        return "breakend"
    return None if LETTERS.fullmatch(alt) else "ambiguous"


def read_vcf(path: Path) -> VcfFile:
    """Read a VCF file, plain, gzip or bgzip.

    Raises:
        InputError: It is missing, cut off, or no VCF; the message names the line and what is wrong in it.
    """
    header: list[str] = []
    variants: list[Variant] = []
    header_bytes = 0
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if not line.startswith("#"):
            if not header or not header[-1].startswith("#CHROM"):
                raise InputError(
                    f"{where}: a record before the line #CHROM; a VCF begins with ##fileformat=VCF and #CHROM"
                )
            variants.append(_record(line, number, where))
            continue
        if variants:
            raise InputError(f"{where}: a header line between records")
        if not header and not line.startswith("##fileformat=VCF"):
            raise InputError(f"{where}: {line[:40]!r} where a VCF has ##fileformat=VCFv4.x")
        if header and header[-1].startswith("#CHROM"):
            raise InputError(f"{where}: a header line after #CHROM")
        if line.startswith("#CHROM") and line.split("\t")[:8] != [
            "#CHROM",
            "POS",
            "ID",
            "REF",
            "ALT",
            "QUAL",
            "FILTER",
            "INFO",
        ]:
            raise InputError(
                f"{where}: #CHROM is followed by other columns than POS ID REF ALT QUAL FILTER INFO, tab-separated"
            )
        header.append(line)
        header_bytes += len(line)
        if header_bytes > MAX_HEADER_BYTES:
            raise InputError(f"{path}: the header has more than {MAX_HEADER_BYTES:,} bytes; that is no VCF")
    if not header or not header[-1].startswith("#CHROM"):
        raise InputError(f"{path} has no line #CHROM; a VCF begins with ##fileformat=VCF and #CHROM")
    return VcfFile(path=path, header=tuple(header), variants=tuple(variants))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        check_regular(path, "a VCF file")
        with open(path, "rb") as raw:
            start = raw.read(18)
            packed = start[:2] == b"\x1f\x8b"
            if packed and start[12:14] == b"BC":
                raw.seek(-min(len(BGZF_END), path.stat().st_size), 2)
                if raw.read() != BGZF_END:
                    raise InputError(
                        f"{path} was cut off: it lacks the empty block that ends a bgzip file; copy it again"
                    )
        with open_text(path, newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    raise InputError(f"{path}, line {number}: the last line has no line end; the file was cut off")
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text; expected a VCF, plain or gzipped") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _record(line: str, number: int, where: str) -> Variant:
    columns = line.split("\t", 8)  # what follows INFO stays one text: thousands of genotypes are not looked at
    if len(columns) < 8:
        shown = "blank" if not line.strip() else f"{len(columns)} tab-separated columns"
        raise InputError(f"{where}: {shown}, expected at least 8: CHROM POS ID REF ALT QUAL FILTER INFO")
    contig, position, _, ref, alt = columns[:5]
    if not contig:
        raise InputError(f"{where}: CHROM is empty; expected the name of a contig")
    whole = position.isascii() and position.isdecimal() and len(position) <= 10
    if not whole or int(position) > MAX_POSITION:
        raise InputError(f"{where}: POS {position[:20]!r} is no position from 1 to 2^31 - 1")
    if not IUPAC.fullmatch(ref):
        raise InputError(f"{where}: REF {ref[:20]!r} is not letters of DNA; expected bases of the genome at POS")
    alts = () if alt == "." else tuple(alt.split(","))
    if any(not a for a in alts):
        raise InputError(f"{where}: ALT {alt[:20]!r} has an empty allele")
    for one in alts:
        if not (IUPAC.fullmatch(one) or OTHER_ALT.fullmatch(one)):
            raise InputError(
                f"{where}: ALT {one[:20]!r} is none of the alleles of VCF: letters of DNA, '*', '<NAME>' or a breakend"
            )
    return Variant(number, contig, int(position) - 1, ref, alts, tuple(columns))


def reference_fault(genome: GenomeStore, variant: Variant) -> str | None:
    """Say what is wrong with a record's REF on this genome; None if it may be what stands there."""
    if variant.contig not in genome.contigs:
        try:
            genome.contig(variant.contig)
        except InputError as error:
            return str(error)
    length = genome.contig(variant.contig).length
    if variant.start < 0:
        return "POS 0 lies before the first base"
    if variant.start + len(variant.ref) > length:
        return f"REF ends past {variant.contig}, which has {length:,} bases"
    from dna_mamba.data.intervals import Interval

    found = genome.fetch(Interval(variant.contig, variant.start, variant.start + len(variant.ref)))
    # N and other IUPAC codes, on either side, stand for a base that is not said
    if all(a == b or a not in "ACGT" or b not in "ACGT" for a, b in zip(variant.ref.upper(), found, strict=True)):
        return None
    return f"REF is {variant.ref[:20]}, the genome has {found[:20]}"


def info_line(name: str, number: str, kind: str, description: str) -> str:
    """Give the header line of an INFO field."""
    return f'##INFO=<ID={name},Number={number},Type={kind},Description="{description}">'


def with_info(variant: Variant, fields: Sequence[tuple[str, str]], names: frozenset[str]) -> str:
    """Give a record's line with INFO fields added; what stood there under one of these names goes."""
    old = [f for f in variant.columns[7].split(";") if f not in ("", ".") and f.split("=")[0] not in names]
    info = ";".join([*old, *(f"{name}={value}" for name, value in fields)])
    return "\t".join([*variant.columns[:7], info or ".", *variant.columns[8:]])
