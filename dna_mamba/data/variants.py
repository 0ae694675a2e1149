"""Variants: VCF read record by record with every fault named, and written back with what was added."""

import functools
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.unpack import check_bgzf_end, check_encoding, is_gzip, open_unpacked
from dna_mamba.data.vcf_blocks import Block, scan
from dna_mamba.data.vocabulary import letters_of_store
from dna_mamba.errors import InputError, check_regular

CODES = {
    "A": "A",
    "C": "C",
    "G": "G",
    "T": "T",
    "R": "AG",
    "Y": "CT",
    "S": "CG",
    "W": "AT",
    "K": "GT",
    "M": "AC",
    "B": "CGT",
    "D": "AGT",
    "H": "ACT",
    "V": "ACG",
    "N": "ACGT",
}
"""Bases that each IUPAC code may stand for. Source: NC-IUB 1984, table 1."""
LETTERS = re.compile(r"[ACGTacgt]+")
IUPAC = re.compile(r"[ACGTNRYSWKMBDHVacgtnryswkmbdhv]+")
PLACE = r"(?:<[^<>\s]+>|[^\[\]\s]+?):\d+"
BREAKEND = rf"(?:(?:[A-Za-z]+|\.)(?P<one>[\[\]]){PLACE}(?P=one)|(?P<other>[\[\]]){PLACE}(?P=other)(?:[A-Za-z]+|\.))"
OTHER_ALT = re.compile(rf"\*|\.|[A-Za-z]*<[^<>\s]+>|{BREAKEND}|\.[A-Za-z]+|[A-Za-z]+\.")
"""Alleles that say something else than bases. Source: VCF specification 4.1 to 4.5, sections 1.6.1 and 5.4; a telomere is
written with a dot for the missing sequence."""
COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
FEWEST_COLUMNS = 5
MAX_POSITION = 2**31 - 1
MAX_HEADER_BYTES = 1 << 28
PIECE_BYTES = 1 << 21


class Variant(NamedTuple):
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
    """The first eight as they stood, '.' for those of QUAL, FILTER and INFO that lack, and all that follows as one text."""


@dataclass(frozen=True, kw_only=True)
class VcfFile:
    """A VCF file in memory, in its order."""

    path: Path
    header: tuple[str, ...]
    """Lines up to and with #CHROM, without line ends."""
    variants: tuple[Variant, ...]


@functools.lru_cache(maxsize=4096)
def allele_status(alt: str) -> str | None:
    """Say why an ALT cannot be scored: star, symbolic, breakend, no_alt or ambiguous; None if it can.

    A letter that says no base (N and the other IUPAC codes) adds nothing to a sum of log-likelihoods, so an allele that holds
    one cannot be compared with bases: it is ambiguous.
    """
    if alt == "*":
        return "star"
    if alt == ".":
        return "no_alt"
    if alt.endswith(">"):  # <DEL>, or T<ctg1>, an inserted contig
        return "symbolic"
    if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        return "breakend"
    return None if LETTERS.fullmatch(alt) else "ambiguous"


class VcfReader:
    """Header and records of a VCF file, plain, gzip or bgzip; text is carried along to the byte, whatever its encoding.

    Args:
        path: The file.
        warn: Called with sentences that deserve attention.

    Raises:
        InputError: It is missing, cut off, or no VCF; the message names the line and what is wrong in it.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] | None = None):
        self.path = path
        self._pieces = _pieces(path, warn)
        self._rest = b""
        self._next_line = 1
        self.header = self._read_header()

    def _read_header(self) -> tuple[str, ...]:
        header: list[str] = []
        header_bytes = 0
        for piece in self._pieces:
            lines = piece.split(b"\n")
            for number, raw in enumerate(lines[:-1]):
                if header and header[-1].startswith("#CHROM") and not raw.startswith(b"#"):
                    self._rest = b"\n".join(lines[number:])
                    return tuple(header)
                self._add_to_header(header, _text(raw.rstrip(b"\r")), f"{self.path}, line {self._next_line}")
                self._next_line += 1
                header_bytes += len(raw)
                if header_bytes > MAX_HEADER_BYTES:
                    raise InputError(
                        f"{self.path}: the header has more than {MAX_HEADER_BYTES:,} bytes; that is no VCF"
                    )
        if not header or not header[-1].startswith("#CHROM"):
            raise InputError(f"{self.path} has no line #CHROM; a VCF begins with ##fileformat=VCF and #CHROM")
        return tuple(header)

    @staticmethod
    def _add_to_header(header: list[str], line: str, where: str) -> None:
        if "\r" in line:
            raise InputError(f"{where}: a line ends with CR alone; end lines with LF or CR LF")
        if not line.startswith("#"):
            raise InputError(f"{where}: a record before the line #CHROM; a VCF begins with ##fileformat=VCF and #CHROM")
        if not header and not line.startswith("##fileformat=VCF"):
            raise InputError(f"{where}: {line[:40]!r} where a VCF has ##fileformat=VCFv4.x")
        if header and header[-1].startswith("#CHROM"):
            raise InputError(f"{where}: a header line after #CHROM")
        if line.startswith("#CHROM"):
            names = line.split("\t")[: len(COLUMNS)]
            if len(names) < FEWEST_COLUMNS or names != list(COLUMNS[: len(names)]):
                raise InputError(
                    f"{where}: #CHROM is followed by other columns than POS ID REF ALT QUAL FILTER INFO, tab-separated"
                )
            if len(names) < len(COLUMNS):
                line = "\t".join(COLUMNS)
        header.append(line)

    def blocks(self) -> Iterator[Block]:
        """Give the records, once, in blocks of whole lines."""
        for piece in itertools.chain([self._rest], self._pieces):
            if piece:
                block = scan(piece, self._next_line)
                self._next_line += len(block)
                yield block

    def record(self, block: Block, number: int) -> Variant:
        """Take a record apart."""
        line, where = _text(block.line(number)), block.first_line + number
        if "\r" in line:
            raise InputError(f"{self.path}, line {where}: a line ends with CR alone; end lines with LF or CR LF")
        if line.startswith("#"):
            raise InputError(f"{self.path}, line {where}: a header line between records")
        return _record(line, where, self.path)

    def __iter__(self) -> Iterator[Variant]:
        """Give the records, once."""
        for block in self.blocks():
            for number in range(len(block)):
                yield self.record(block, number)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def read_vcf(path: Path, warn: Callable[[str], None] | None = None) -> VcfFile:
    """Read a VCF file into memory; see `VcfReader`."""
    reader = VcfReader(path, warn)
    return VcfFile(path=path, header=reader.header, variants=tuple(reader))


def _pieces(path: Path, warn: Callable[[str], None] | None) -> Iterator[bytes]:
    """Give the text of a file in pieces of whole lines, each with its end."""
    try:
        check_regular(path, "a VCF file")
        if is_gzip(path):
            check_bgzf_end(path)
        with open_unpacked(path) as file:
            parts: list[bytes] = []
            first = True
            while chunk := file.read(PIECE_BYTES):
                if first:
                    check_encoding(path, chunk)
                    chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
                if b"\0" in chunk:
                    raise InputError(f"{path} is not text; expected a VCF, plain or gzipped")
                end = chunk.rfind(b"\n") + 1
                if not end:
                    parts.append(chunk)
                    continue
                yield b"".join([*parts, chunk[:end]])
                parts = [chunk[end:]]
            if last := b"".join(parts):
                if warn:
                    warn(f"{path}: the last line has no line end; if the file was cut off, that line is not whole")
                yield last + b"\n"
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _record(line: str, number: int, path: Path) -> Variant:
    columns = line.split("\t", 8)  # what follows INFO stays one text: thousands of genotypes are not looked at
    if len(columns) < 8:
        if len(columns) < FEWEST_COLUMNS:
            shown = "blank" if not line.strip() else f"{len(columns)} tab-separated columns"
            raise InputError(
                f"{path}, line {number}: {shown}, expected at least 5: CHROM POS ID REF ALT, and mostly QUAL FILTER INFO"
            )
        columns += ["."] * (8 - len(columns))
    contig, position, _, ref, alt = columns[:5]
    if not contig:
        raise InputError(f"{path}, line {number}: CHROM is empty; expected the name of a contig")
    if not (position.isascii() and position.isdecimal() and len(position) <= 10 and int(position) <= MAX_POSITION):
        raise InputError(f"{path}, line {number}: POS {position[:20]!r} is no position from 1 to 2^31 - 1")
    if not _is_ref(ref):
        raise InputError(
            f"{path}, line {number}: REF {ref[:20]!r} is not letters of DNA; expected bases of the genome at POS"
        )
    return Variant(number, contig, int(position) - 1, ref, _alts(alt, number, path), tuple(columns))


def _is_ref(ref: str) -> bool:
    return IUPAC.fullmatch(ref) is not None


def _alts(alt: str, number: int, path: Path) -> tuple[str, ...]:
    if alt in _KNOWN_ALTS:  # nearly all
        return _KNOWN_ALTS[alt]
    alts = tuple(alt.split(","))
    for one in alts:
        if not one:
            raise InputError(f"{path}, line {number}: ALT {alt[:20]!r} has an empty allele")
        if not (IUPAC.fullmatch(one) or OTHER_ALT.fullmatch(one)):
            raise InputError(
                f"{path}, line {number}: ALT {one[:20]!r} is none of the alleles of VCF: letters of DNA, '*', '<NAME>' or a "
                f"breakend"
            )
    return alts


_KNOWN_ALTS: dict[str, tuple[str, ...]] = {
    ".": (),
    **{alt: (alt,) for alt in ("A", "C", "G", "T", "*", "<NON_REF>", "<*>")},
}


def reference_fault(genome: GenomeStore, variant: Variant) -> str | None:
    """Say what is wrong with a record's REF on this genome; None if it may be what stands there."""
    contig, start, ref = variant.contig, variant.start, variant.ref
    if contig not in genome.contigs:
        try:
            genome.contig(contig)
        except InputError as error:
            return str(error)
    length = genome.contig(contig).length
    if start < 0:
        return "POS 0 lies before the first base"
    if start + len(ref) > length:
        return f"REF ends past {contig}, which has {length:,} bases"
    found = letters_of_store(genome.stored(contig, start, start + len(ref)))
    if found == ref:
        return None
    # where the genome says no base any may stand; a code must allow the base that stands there
    if all(b == "N" or b in CODES[a] for a, b in zip(ref.upper(), found, strict=True)):
        return None
    return f"REF is {ref[:20]}, the genome has {found[:20]}"


class Core(NamedTuple):
    """What an allele changes, trimmed and moved left as far as it goes; one haplotype has one core, however it is spelled."""

    start: int
    """First reference base that is replaced, 0-based; of an insertion the base that it stands before."""
    ref_bases: int
    alt: str
    """Letters that stand instead, upper case; REF and ALT may be empty, both if they are equal."""
    moved: bool
    """It was moved left."""


LOOK_BACK = 256


def core_of(genome: GenomeStore, contig: str, start: int, ref: str, alt: str) -> Core:
    """Trim what REF and ALT share, and move insertions and deletions left along the genome as far as they go.

    Args:
        genome: Holds the contig; REF is known to fit it.
        contig: Its name.
        start: First base of REF, 0-based.
        ref: Letters of the reference.
        alt: Letters of the allele.

    Source: Tan, Abecasis and Kang 2015, "Unified representation of genetic variants", algorithm 1.
    """
    ref, alt = ref.upper(), alt.upper()
    shared, most = 0, min(len(ref), len(alt))
    while shared < most and ref[-1 - shared] == alt[-1 - shared]:
        shared += 1
    ref, alt = ref[: len(ref) - shared], alt[: len(alt) - shared]
    shared, most = 0, min(len(ref), len(alt))
    while shared < most and ref[shared] == alt[shared]:
        shared += 1
    start, ref, alt = start + shared, ref[shared:], alt[shared:]
    moved = 0
    if bool(ref) != bool(alt):
        moved = _steps_left(genome, contig, start, ref or alt)
    if moved:
        turn = moved % len(ref or alt)
        start -= moved
        if alt and turn:
            alt = alt[-turn:] + alt[:-turn]
    return Core(start, len(ref), alt, bool(moved))


def _steps_left(genome: GenomeStore, contig: str, start: int, letters: str) -> int:
    """Count the bases before a place that repeat these letters backwards: as many steps left give the same haplotype."""
    steps, size = 0, LOOK_BACK
    while steps < start:
        first = max(0, start - steps - size)
        before = letters_of_store(genome.stored(contig, first, start - steps))[::-1]
        # step k meets the letter that stands k from the end of the letters, over and over
        backwards = letters[::-1]
        at = steps % len(letters)
        expected = (backwards[at:] + backwards * (len(before) // len(letters) + 1))[: len(before)]
        if before == expected:
            steps, size = steps + len(before), min(4 * size, 1 << 20)
            continue
        a, b = np.frombuffer(before.encode(), np.uint8), np.frombuffer(expected.encode(), np.uint8)
        return steps + int(np.argmax(a != b))
    return steps


def info_line(name: str, number: str, kind: str, description: str) -> str:
    """Give the header line of an INFO field."""
    return f'##INFO=<ID={name},Number={number},Type={kind},Description="{description}">'


def with_info(variant: Variant, fields: Sequence[tuple[str, str]], names: frozenset[str]) -> str:
    """Give a record's line with INFO fields added; what stood there under one of these names goes."""
    columns = variant.columns
    info, added = columns[7], ";".join([f"{name}={value}" for name, value in fields])
    if info in (".", ""):
        info = added or "."
    elif any(field.split("=")[0] in names for field in info.split(";")):
        old = [f for f in info.split(";") if f.split("=")[0] not in names]
        info = ";".join([*old, *([added] if added else [])]) or "."
    elif added:
        info = f"{info.removesuffix(';')};{added}"
    return "\t".join((*columns[:7], info, *columns[8:]))
