"""The letters of all sources on their way to bases.u8: checked, counted, hashed."""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dna_mamba.data.store.genome import Contig
from dna_mamba.data.vocabulary import INVALID, OTHER, SOFT_MASK, fasta_table
from dna_mamba.errors import InputError

CHUNK = 1 << 20
"""Bytes read at once."""

HASHED_AT_ONCE = 1 << 16
"""Handing over to the thread takes longer than hashing fewer bytes; assemblies have contigs by the hundred thousand."""


class BackgroundHash:
    """SHA-256 fed by a thread of its own, one chunk behind the reader."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def update(self, chunk: bytes | memoryview) -> None:
        """Hash a chunk after those before; it may go on behind the caller's back."""
        self._wait()
        self._last = None
        if len(chunk) < HASHED_AT_ONCE:
            self._digest.update(chunk)
        else:
            self._last = self._thread.submit(self._digest.update, chunk)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def hexdigest(self) -> str:
        """Give the digest of all chunks, and end the thread."""
        self._wait()
        self._thread.shutdown()
        return self._digest.hexdigest()


class HashingFile(io.RawIOBase):
    """A file that hashes and counts what is read from it."""

    def __init__(self, path: Path, on_read: Callable[[int], None]):
        self._path = path
        self._left = path.stat().st_size
        self._file = open(path, "rb")  # noqa: SIM115 - closed in close()
        self._on_read = on_read
        self.sha256 = BackgroundHash()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer; an InputError where the file has grown since."""
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise InputError(f"{self._path} grows while it is read; build again when it is complete")
        self.sha256.update(bytes(buffer[:count]))
        self._on_read(count)
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class Packer:
    """Takes the sequences of all sources, writes bases.u8 and keeps the counts."""

    def __init__(self, file: io.BufferedWriter, rna: bool):
        self.file = file
        self.table = fasta_table(rna)
        self.sha256 = BackgroundHash()
        self.contigs: list[Contig] = []
        self.names: set[str] = set()
        self.offset = 0
        self.num_uracil = 0
        self.name = ""
        self._counts = np.zeros(8, np.int64)

    def start(self, name: str, where: str) -> None:
        """Begin a contig; an InputError, with `where`, if its name is none or was there before."""
        if not name:
            raise InputError(f"{where}: the header has no name; expected '>NAME' with the name right after '>'")
        if not name.isascii() or not name.isprintable():
            raise InputError(
                f"{where}: the name {name[:40]!r} has characters other than printable ASCII; rename the record"
            )
        if name in self.names:
            raise InputError(f"{where}: a second record is named {name!r}; every contig needs a name of its own")
        self.names.add(name)
        self.name = name
        self._counts[:] = 0

    def add(self, letters: bytes) -> int | None:
        """Pack letters and line ends; return the place of the first byte that is no letter of DNA, or none."""
        codes = letters.translate(self.table, b"\r\n")
        array = np.frombuffer(codes, np.uint8)
        if array.size == 0:
            return None
        highest = int(array.max())
        if highest == INVALID:
            bad = np.frombuffer(letters.translate(self.table), np.uint8) == INVALID
            raw = np.frombuffer(letters, np.uint8)
            return int(np.argmax(bad & (raw != 10) & (raw != 13)))
        if highest >= OTHER:
            self._counts[5] += np.count_nonzero(array & OTHER)
            self.num_uracil += letters.count(b"U") + letters.count(b"u")
            array = np.bitwise_and(array, OTHER - 1, dtype=np.uint8)
        if array.size < HASHED_AT_ONCE:  # of small pieces one pass is quicker, of large ones nine
            found = np.bincount(array, minlength=16)
            self._counts[:4] += found[:4] + found[8:12]
            self._counts[6] += found[8:13].sum()
        else:
            for value in range(4):
                self._counts[value] += np.count_nonzero(array == value)
                masked = np.count_nonzero(array == (value | SOFT_MASK))
                self._counts[value] += masked
                self._counts[6] += masked
            self._counts[6] += np.count_nonzero(array == 12)
        self._counts[7] += array.size
        self.sha256.update(array.data)
        self.file.write(array.data)
        return None

    @property
    def has_bases(self) -> bool:
        """Whether the contig at hand has any."""
        return bool(self._counts[7])

    def finish(self, where: str) -> None:
        """End the contig; an InputError, with `where`, if it has no bases."""
        length = int(self._counts[7])
        if length == 0:
            raise InputError(f"{where}: record {self.name!r} has no bases; remove it or give it its sequence")
        a, c, g, t, _, other, masked, _ = (int(x) for x in self._counts)
        self.contigs.append(
            Contig(
                name=self.name,
                offset=self.offset,
                length=length,
                num_a=a,
                num_c=c,
                num_g=g,
                num_t=t,
                num_n=length - a - c - g - t,
                num_other=other,
                num_masked=masked,
            )
        )
        self.offset += length
