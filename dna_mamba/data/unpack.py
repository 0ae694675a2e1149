"""Open files that may be gzipped, with a limit on what a small file may unfold into."""

import gzip
import io
from pathlib import Path
from typing import BinaryIO

from dna_mamba.errors import InputError

MOST_TIMES = 500
"""Genomes pack 3 to 5 times, tables of genotypes 50 to 150; gzip itself ends at 1,032."""
NEVER_A_BOMB = 1 << 26
"""Bytes that any file may unfold into."""


def is_gzip(path: Path) -> bool:
    """Say whether a file begins as gzip and bgzip files do, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


class CappedGzip(gzip.GzipFile):
    """A gzip file that refuses to unfold into 500 times its size.

    Raises:
        InputError: While it is read, when more comes out of it.
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

    def read(self, size: int | None = -1) -> bytes:
        """Read, and count what came."""
        return self._counted(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        """Read once, and count what came; text is read so."""
        return self._counted(super().read1(size))


def open_unpacked(path: Path) -> io.BufferedIOBase:
    """Open a file for reading bytes, unpacked where it is gzip."""
    return CappedGzip(path) if is_gzip(path) else open(path, "rb")


def open_text(path: Path, newline: str | None = None, encoding: str = "utf-8") -> io.TextIOWrapper:
    """Open a file for reading text, unpacked where it is gzip."""
    return io.TextIOWrapper(open_unpacked(path), encoding=encoding, newline=newline)  # type: ignore[arg-type]
