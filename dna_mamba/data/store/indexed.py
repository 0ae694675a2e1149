"""Read stretches of a FASTA that has an index beside it, without packing it first."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.packer import CHUNK
from dna_mamba.data.unpack import is_gzip
from dna_mamba.errors import InputError, nearest


def can_fetch_indexed(path: Path) -> bool:
    """Say whether a FASTA is plain text with an index beside it, which pyfaidx reads without writing anything."""
    return path.is_file() and Path(f"{path}.fai").is_file() and not is_gzip(path)


class _Row(NamedTuple):
    """A contig's row in a .fai, in bytes of the file where nothing else is said."""

    length: int
    """Bases."""
    offset: int
    """Of its first base."""
    bases: int
    """In a line."""
    width: int
    """Of a line with its end."""

    @property
    def text_bytes(self) -> int:
        """Bytes from its first base to its last, line ends between them counted."""
        lines, rest = divmod(self.length, self.bases)
        return lines * self.width + rest

    def is_possible(self, size: int) -> bool:
        """Say whether a file of so many bytes can have such a contig."""
        inside = 0 < self.length < 2**60 and 0 < self.offset < 2**60
        if not (inside and 0 < self.bases <= self.width <= self.bases + 2):
            return False
        if self.width == self.bases and self.length > self.bases:  # only a single line without an end has no line end
            return False
        return self.offset + self.text_bytes <= size + self.width


def _describes(path: Path, row: _Row, interval: Interval) -> bool:
    """Compare a contig's row in a .fai with the file: its header, every line end up to the interval, and what follows it.

    A file that was wrapped anew keeps its headers and its bases, and only the line ends tell.
    """
    return (
        row.is_possible(path.stat().st_size)
        and interval.end <= row.length
        and _stands_between_headers(path, row, interval.contig)
        and _lines_end_where_they_should(path, row, interval.end)
    )


def _stands_between_headers(path: Path, row: _Row, contig: str) -> bool:
    with open(path, "rb") as file:
        file.seek(max(0, row.offset - len(contig) - 4096))
        before = file.read(min(row.offset, len(contig) + 4096))
        file.seek(row.offset + row.text_bytes)
        after = file.read(3).lstrip(b"\r\n")
    header = before.rstrip(b"\r\n").rpartition(b"\n")[2]
    named = header.startswith(b">") and header[1:].split()[:1] == [contig.encode()]
    return before.endswith(b"\n") and named and after[:1] in (b"", b">")


def _lines_end_where_they_should(path: Path, row: _Row, end: int) -> bool:
    """Look at every line end from the first base to base `end`: where the index puts it and nowhere else."""
    bases, width = row.bases, row.width
    until = min((end + bases - 1) // bases * width, row.text_bytes, path.stat().st_size - row.offset)
    if until <= 0:
        return False
    span = np.memmap(path, np.uint8, "r", row.offset, (until,))
    others = 0
    for start in range(0, until, CHUNK):
        piece = span[start : start + CHUNK]
        others += int(np.count_nonzero(piece == ord("\n"))) + int(np.count_nonzero(piece == ord(">")))
    if width == bases:
        return others == 0
    ends = span[width - 1 :: width]
    carriages = width - bases == 1 or bool((span[width - 2 :: width] == ord("\r")).all())
    return bool((ends == ord("\n")).all()) and others == ends.size and carriages


def indexed_lengths(path: Path) -> dict[str, int]:
    """Read the bases of each contig from the index beside a FASTA; `fetch_indexed` compares it with the file."""
    found = {}
    for line in Path(f"{path}.fai").read_text(encoding="utf-8", errors="replace").splitlines():
        columns = line.split("\t")
        if len(columns) > 1 and columns[1].isascii() and columns[1].isdecimal() and len(columns[1]) < 19:
            found[columns[0]] = int(columns[1])
    if not found:
        raise InputError(
            f"{path}.fai cannot be used: it has no row of a contig; make it again with samtools faidx, or remove it"
        )
    return found


def fetch_indexed(path: Path, interval: Interval) -> str:
    """Read an interval of an indexed FASTA with pyfaidx, without a store; upper case, its strand honoured.

    Raises:
        InputError: The index does not describe the file as it is now, the contig is unknown, or the stretch lies outside.
    """
    import pyfaidx

    contig, start, end = interval.contig, interval.start, interval.end
    index = Path(f"{path}.fai")
    if index.stat().st_mtime_ns < path.stat().st_mtime_ns:
        raise InputError(f"{index} is older than {path}; make it again with samtools faidx, or remove it")
    stale = f"{index} does not describe {path} as it is now; make it again with samtools faidx, or remove it"
    try:
        with pyfaidx.Fasta(str(path), rebuild=False) as fasta:
            if contig not in fasta.keys():  # noqa: SIM118 - pyfaidx's `in` reads records
                raise InputError(
                    f"contig {contig!r} is not in {index}{nearest(contig, fasta.keys())}; remove the index if it is in {path}"
                )
            row = fasta.faidx.index[contig]  # what pyfaidx goes by, however it read the file
            length = row.rlen
            inside = Interval(contig, min(start, length - 1), min(end, length)) if length > 0 else None
            if inside is None or not _describes(path, _Row(length, row.offset, row.lenc, row.lenb), inside):
                raise InputError(stale)
            if end > length:
                raise InputError(f"{contig} has {length:,} bases; {start + 1}-{end} reaches outside")
            letters = str(fasta[contig][start:end]).upper()
    except InputError:
        raise
    except Exception as error:  # pyfaidx raises many kinds for a broken index
        raise InputError(f"{index} cannot be used: {error}; make it again with samtools faidx, or remove it") from error
    if len(letters) != end - start or set(letters) - set("ACGTNRYSWKMBDHVU"):
        raise InputError(stale)
    letters = re.sub("[^ACGT]", "N", letters)
    return letters.translate(str.maketrans("ACGT", "TGCA"))[::-1] if interval.strand == "-" else letters
