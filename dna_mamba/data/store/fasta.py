"""Read a FASTA byte by byte in constant memory.

The usual readers disagree about malformed files and are sometimes silently wrong, so none of them stands between the file
and the store.
"""

import io
from pathlib import Path

from dna_mamba.data.store.packer import CHUNK, Packer
from dna_mamba.data.unpack import check_encoding, open_unpacked
from dna_mamba.errors import InputError

MAX_HEADER = 1 << 24


def _line_of(path: Path, offset: int) -> int:
    """Count the line ends before a place in the decompressed file; only run to word an error."""
    lines = 1
    with open_unpacked(path) as stream:
        while offset > 0 and (chunk := stream.read(min(CHUNK, offset))):
            lines += chunk.count(b"\n")
            offset -= len(chunk)
    return lines


def byte_name(letters: bytes, position: int) -> str:
    """Name a byte that is no letter of DNA, for a message."""
    byte = letters[position : position + 1]
    if byte == b">":
        return "'>' inside a line"
    if byte in b"EFILOPQZJXefilopqzjx" and byte:
        return f"{byte.decode()!r}, which is no nucleotide; is this a protein file?"
    return (
        repr(byte.decode("ascii")) if byte.isascii() and byte.decode("ascii").isprintable() else f"byte 0x{byte.hex()}"
    )


def pack_fasta(path: Path, stream: io.BufferedIOBase, packer: Packer) -> None:
    """Give every record of a FASTA to the packer.

    Args:
        path: What messages name.
        stream: Its text, decompressed.
        packer: Takes names and letters.

    Raises:
        InputError: The text is no FASTA, or malformed; the line is named.
    """
    records = _Records(path, packer)
    while data := stream.read(CHUNK):
        if data.endswith(b"\r"):
            data += stream.read(1)
        records.add(data)
    records.finish()


class _Records:
    """The records of a FASTA, from pieces of its text; a piece never ends between CR and LF."""

    def __init__(self, path: Path, packer: Packer):
        self.path, self.packer = path, packer
        self.position = 0  # bytes of text before the piece at hand
        self.header: bytes | None = None  # what has been read of a header line, if we are in one
        self.header_at = 0
        self.in_record = False
        self.line_start = True

    def add(self, data: bytes) -> None:
        if self.position == 0:
            _check_first_bytes(self.path, data)
        here = 0
        while here < len(data):
            if self.header is not None:
                here = self._header(data, here)
            elif self.line_start and data[here : here + 1] == b">":
                if self.in_record:
                    self._finish_record()  # names the header of the record that ends here
                self.header, self.header_at = b"", self.position + here
                here += 1
            else:
                # the search for one byte is fast; "\n>" alone would halt at every line end
                following = data.find(b"\n>", here) if data.find(b">", here) >= 0 else -1
                end = following + 1 if following >= 0 else len(data)
                self._bases(data[here:end], self.position + here)
                here = end
        self.position += len(data)

    def finish(self) -> None:
        if self.header is not None:
            self._begin_record(self.header, self.position)
        if not self.in_record:
            raise InputError(f"{self.path} is empty; expected a FASTA file, '>NAME' and lines of bases")
        self._finish_record()

    def _where(self, offset: int) -> str:
        return f"{self.path}, line {_line_of(self.path, offset)}"

    def _header(self, data: bytes, here: int) -> int:
        """Read on in a header line; return the place behind it, or the end of the piece."""
        assert self.header is not None
        end = data.find(b"\n", here)
        self.header += data[here : end if end >= 0 else len(data)]
        if b"\r" in self.header[:-1] and (end < 0 or len(self.header) > MAX_HEADER):
            raise InputError(
                f"{self._where(self.position + here)}: the file ends its lines with CR alone; use LF or CR LF"
            )
        if len(self.header) > MAX_HEADER:
            raise InputError(f"{self._where(self.position + here)}: the file has a header over 16 MiB")
        if end < 0:
            return len(data)
        self._begin_record(self.header, self.position + here)
        self.header, self.line_start = None, True
        return end + 1

    def _begin_record(self, line: bytes, at: int) -> None:
        text = line.removesuffix(b"\r").decode("utf-8", "replace")
        if "\r" in text:
            raise InputError(f"{self._where(at)}: a line ends with CR alone; end lines with LF or CR LF")
        name = text.split(maxsplit=1)[0] if text and not text[0].isspace() else ""
        acceptable = name and name not in self.packer.names and name.isascii() and name.isprintable()
        self.packer.start(name, str(self.path) if acceptable else self._where(at))
        self.in_record = True

    def _finish_record(self) -> None:
        self.packer.finish(str(self.path) if self.packer.has_bases else self._where(self.header_at))

    def _bases(self, segment: bytes, at: int) -> None:
        """Pack lines of bases that stand at an offset of the text."""
        self.line_start = segment.endswith(b"\n")
        if not self.in_record:
            if segment.replace(b"\r\n", b"").strip(b"\n"):
                raise InputError(_no_header(self.path, segment.lstrip(b"\n")))
            return
        bad = self.packer.add(segment)
        if bad is not None:
            raise InputError(
                f"{self._where(at + bad)}, record {self.packer.name!r}: found {byte_name(segment, bad)}; "
                f"expected the letters ACGT, N and IUPAC codes"
            )
        if b"\r" in segment and segment.count(b"\r") != segment.count(b"\r\n"):
            alone = next(i for i, b in enumerate(segment) if b == 13 and segment[i + 1 : i + 2] != b"\n")
            raise InputError(f"{self._where(at + alone)}: a line ends with CR alone; end lines with LF or CR LF")


def _check_first_bytes(path: Path, data: bytes) -> None:
    check_encoding(path, data)
    if data.startswith(b"\xef\xbb\xbf"):
        raise InputError(f"{path} starts with a byte-order mark; save it as plain ASCII or UTF-8 without one")


def _no_header(path: Path, segment: bytes) -> str:
    line = _line_of(path, 0)
    shown = segment.split(b"\n", 1)[0][:40]
    if shown.startswith(b"@"):
        return f"{path}, line {line}: starts with '@' as FASTQ does; expected FASTA, a first line '>NAME'"
    if shown.startswith(b";"):
        return f"{path}, line {line}: starts with a ';' comment; remove it so that the first line is '>NAME'"
    return f"{path}, line {line}: no header, found {shown!r}; expected a FASTA file, a first line '>NAME'"
