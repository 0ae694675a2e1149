"""Read the sequences of a GenBank file with Biopython, whatever dialect its annotation is in."""

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from dna_mamba.data.store.fasta import byte_name
from dna_mamba.data.store.packer import CHUNK, Packer
from dna_mamba.data.unpack import open_unpacked
from dna_mamba.errors import InputError


class _GenBankLines(io.TextIOBase):
    """The lines of a GenBank file that name records or hold their sequence, for Biopython to parse.

    Programs differ in how they write annotation, and none of it is read here: what stands before the first record, blank lines,
    features, comments and references are passed over, in whatever encoding they are.
    """

    KEPT = ("LOCUS", "ACCESSION", "VERSION", "ORIGIN", "CONTIG", "//")

    def __init__(self, stream: io.BufferedIOBase):
        self._lines = self._kept(io.TextIOWrapper(stream, encoding="latin-1"))  # type: ignore[type-var]

    def _kept(self, lines: Iterable[str]) -> Iterator[str]:
        begun, keep, in_sequence = False, False, False
        for line in lines:
            if not begun:
                line = line.removeprefix("\xef\xbb\xbf")  # a byte-order mark
            begun = begun or line.startswith("LOCUS")
            if not begun or not line.strip():
                continue
            if not line[0].isspace() and not (in_sequence and line[0].isdigit()):
                keep = line.startswith(self.KEPT)
                in_sequence = line.startswith("ORIGIN")
                if line.startswith("LOCUS"):
                    yield _upper_molecule(line)
                    yield "DEFINITION  .\n"
                    continue
            elif not in_sequence and not keep:
                continue
            if keep or in_sequence:
                yield line

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return next(self._lines, "")

    def read(self, size: int = -1) -> str:  # type: ignore[override]
        return "" if size == 0 else "".join(self._lines)

    def __next__(self) -> str:  # type: ignore[override]
        return next(self._lines)


def _upper_molecule(line: str) -> str:
    """Write the kind of molecule of a LOCUS line, which follows its length, in capitals; some programs write dna."""
    kind = re.search(r"(?i)\s\d+\s+bp\s+((?:ss-|ds-|ms-)?[a-z]{0,2}[dr]na)\s", line)
    return line if kind is None else line[: kind.start(1)] + kind[1].upper() + line[kind.end(1) :]


def pack_genbank(path: Path, packer: Packer) -> None:
    """Give every record of a GenBank file to the packer; an InputError where it is cut, malformed or without sequence."""
    from Bio import BiopythonParserWarning, SeqIO

    try:
        _check_genbank_end(path)
        with warnings.catch_warnings(), open_unpacked(path) as raw:
            found = False
            warnings.simplefilter("ignore", BiopythonParserWarning)
            warnings.filterwarnings("error", message="Expected sequence length", category=BiopythonParserWarning)
            for record in SeqIO.parse(_GenBankLines(raw), "genbank"):
                found = True
                name = str(record.id) if str(record.id).strip(".") not in ("", "<unknown id>") else str(record.name)
                packer.start(name, str(path))
                bad = packer.add(bytes(record.seq))
                if bad is not None:
                    raise InputError(
                        f"{path}, record {name!r}: found {byte_name(bytes(record.seq), bad)} at base {bad + 1}; "
                        f"expected the letters ACGT, N and IUPAC codes"
                    )
                packer.finish(str(path))
    except InputError:
        raise
    except Exception as error:  # Biopython raises many kinds for malformed records
        if type(error).__name__ == "UndefinedSequenceError":
            words = (
                "a record has no sequence in the file, as CON and WGS records have none; take the file with its bases"
            )
            raise InputError(f"{path}: {words}") from error
        raise InputError(f"{path} is no readable GenBank file: {error}") from error
    if not found:
        raise InputError(f"{path} holds no GenBank record")


def _check_genbank_end(path: Path) -> None:
    rest, ended = b"", False
    with open_unpacked(path) as stream:
        while chunk := stream.read(CHUNK):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                ended = (ended or line.strip() == b"//") and not line.startswith(b"LOCUS")
    if not (ended or rest.strip() == b"//"):
        raise InputError(f"{path} is cut: it does not end with '//' as GenBank records do; copy or download it again")


LOCUS_LINE = re.compile(rb"^LOCUS\s+\S.*?\d+\s*(bp|rc)\b", re.M | re.I)


def is_genbank(path: Path) -> bool:
    """Say whether a file is GenBank: its first line, or a later one after the head of a release's flat file, is LOCUS."""
    with open_unpacked(path) as stream:
        start = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"LOCUS") or (not start.startswith((b">", b"@", b";")) and bool(LOCUS_LINE.search(start)))
