"""Open files that may be gzipped, with a limit on what a small file may unfold into."""

import gzip
import io
import struct
from pathlib import Path
from typing import Any, BinaryIO

from dna_mamba.errors import InputError

MOST_TIMES = 500
"""Genomes pack 3 to 5 times, tables of genotypes 50 to 150; gzip itself ends at 1,032."""
NEVER_A_BOMB = 1 << 26
"""Bytes that any file may unfold into."""
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends a bgzip file; without it the file was cut off. Source: SAM specification, section 4.1.2."""
TEXT_CHUNK = 1 << 18
EXTRA = 4
"""Flag of a gzip member that has extra fields. Source: RFC 1952, section 2.3.1."""


def is_gzip(path: Path) -> bool:
    """Say whether a file begins as gzip and bgzip files do, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _bgzf_block(file: BinaryIO, at: int) -> int | None:
    """Give the length of the bgzip block that begins at a place; none if none does.

    Source: SAM specification, section 4.1: a gzip member with an extra field BC of two bytes, the length less one.
    """
    file.seek(at)
    head = file.read(12)
    if len(head) < 12 or head[:3] != b"\x1f\x8b\x08" or not head[3] & EXTRA:
        return None
    fields = file.read(struct.unpack("<H", head[10:12])[0])
    while len(fields) >= 4:
        (size,) = struct.unpack("<H", fields[2:4])
        if fields[:2] == b"BC" and size == 2 and len(fields) >= 6:
            return struct.unpack("<H", fields[4:6])[0] + 1
        fields = fields[4 + size :]
    return None


def check_bgzf_end(path: Path) -> None:
    """Refuse a bgzip file that was cut off between two blocks, which gzip itself could not see.

    Files that go on with other gzip members behind their blocks are let through: how those end is seen when they are read.

    Raises:
        InputError: It was cut off.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        block = _bgzf_block(file, 0)
        if block is None:
            return
        file.seek(-min(1 << 16, size), 2)
        last = file.read()
        end = last.rfind(BGZF_END)
        if end >= 0 and not last[end + len(BGZF_END) :].strip(b"\0"):  # some tapes and copies pad with zeros
            return
        at = 0
        while block is not None and at + block <= size:
            at += block
            block = _bgzf_block(file, at)
        if at == size or block is not None:
            raise InputError(
                f"{path} lacks the empty block that ends a bgzip file: it was cut off, or its writer leaves that out; copy it "
                f"again, or unpack it with gzip -dc if that finds it whole"
            )


class CappedGzip(gzip.GzipFile):
    """A gzip file that refuses to unfold into 500 times its size.

    Raises:
        InputError: While it is read, when more comes out of it, or when something else than gzip follows its members.
    """

    def __init__(self, path: Path, fileobj: BinaryIO | io.BufferedReader | None = None):
        super().__init__(None if fileobj is not None else str(path), "rb", fileobj=fileobj)
        self._path, self._come = path, 0
        self._most = max(NEVER_A_BOMB, MOST_TIMES * path.stat().st_size)

    def _counted(self, data: bytes) -> bytes:
        self._come += len(data)
        if self._come > self._most:
            raise InputError(
                f"{self._path} unfolds into more than {MOST_TIMES} times its size, as no sequence or table does; unpack it "
                f"first if it is meant"
            )
        return data

    def _follows(self, error: gzip.BadGzipFile) -> InputError | gzip.BadGzipFile:
        if not str(error).startswith("Not a gzipped file"):
            return error
        return InputError(
            f"{self._path}: what follows its gzip members is no gzip. If bytes were added behind them, gzip -dc passes over "
            f"them: unpack the file with it first; if gzip -t finds fault with more than that, it is damaged"
        )

    def read(self, size: int | None = -1) -> bytes:
        """Read, and count what came."""
        try:
            return self._counted(super().read(size))
        except gzip.BadGzipFile as error:
            raise self._follows(error) from error

    def read1(self, size: int = -1) -> bytes:
        """Read once, and count what came; text is read so."""
        try:
            return self._counted(super().read1(size))
        except gzip.BadGzipFile as error:
            raise self._follows(error) from error


def open_unpacked(path: Path) -> io.BufferedIOBase:
    """Open a file for reading bytes, unpacked where it is gzip."""
    return CappedGzip(path) if is_gzip(path) else open(path, "rb")


def check_encoding(path: Path, data: bytes) -> None:
    """Refuse text that is not one byte a letter, by its first bytes.

    Raises:
        InputError: It begins with the byte-order mark of UTF-16 or UTF-32.
    """
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise InputError(f"{path} is UTF-32 text; save it as UTF-8")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16 text; save it as UTF-8")


def open_text(
    path: Path, newline: str | None = None, encoding: str = "utf-8-sig", errors: str = "strict"
) -> io.TextIOWrapper:
    """Open a file for reading text, unpacked where it is gzip; a byte-order mark is passed over.

    With errors="surrogateescape", bytes that are no UTF-8 come as surrogates and leave as they came where the same is said
    for writing.

    Raises:
        InputError: It is UTF-16 or UTF-32 text.
    """
    stream: Any = open_unpacked(path)
    try:
        check_encoding(path, stream.peek(4))
    except BaseException:
        stream.close()
        raise
    text: Any = io.TextIOWrapper(stream, encoding=encoding, newline=newline, errors=errors)
    text._CHUNK_SIZE = TEXT_CHUNK  # 8 kB at a time takes twice as long
    return text


def printable_text(text: str) -> str:
    """Read what came as surrogates as Latin-1, for formats that hold UTF-8 alone."""
    if text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    return text.encode("utf-8", "surrogateescape").decode("latin-1")
