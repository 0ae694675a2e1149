"""Pack FASTA or GenBank files into a genome store.

The bytes of a FASTA are read once, in constant memory, and every one is checked. The usual readers disagree about
malformed files and are sometimes silently wrong, so none of them stands between the file and the store.
"""

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dna_mamba.data.genome import (
    FORMAT_VERSION,
    Contig,
    GenomeStore,
    Manifest,
    Source,
    file_sha256,
)
from dna_mamba.data.intervals import Interval
from dna_mamba.data.unpack import CappedGzip, check_bgzf_end, check_encoding, is_gzip, open_unpacked
from dna_mamba.data.vocabulary import INVALID, OTHER, SOFT_MASK, fasta_table
from dna_mamba.errors import InputError, nearest
from dna_mamba.files import sync_directory, write_synced

CHUNK = 1 << 20
MAX_HEADER = 1 << 24
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of all sources."""

HASHED_AT_ONCE = 1 << 16
"""Handing over to the thread takes longer than hashing fewer bytes; assemblies have contigs by the hundred thousand."""


class _BackgroundHash:
    """SHA-256 fed by a thread of its own, one chunk behind the reader."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def update(self, chunk: bytes | memoryview) -> None:
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
        self._wait()
        self._thread.shutdown()
        return self._digest.hexdigest()


class _HashingFile(io.RawIOBase):
    """A file that hashes and counts what is read from it."""

    def __init__(self, path: Path, on_read: Callable[[int], None]):
        self._path = path
        self._left = path.stat().st_size
        self._file = open(path, "rb")  # noqa: SIM115 - closed in close()
        self._on_read = on_read
        self.sha256 = _BackgroundHash()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise InputError(f"{self._path} grows while it is read; build again when it is complete")
        self.sha256.update(bytes(buffer[:count]))
        self._on_read(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Packer:
    """Takes the sequences of all sources, writes bases.u8 and keeps the counts."""

    def __init__(self, file: io.BufferedWriter, rna: bool):
        self.file = file
        self.table = fasta_table(rna)
        self.sha256 = _BackgroundHash()
        self.contigs: list[Contig] = []
        self.names: set[str] = set()
        self.offset = 0
        self.num_uracil = 0
        self._name = ""
        self._counts = np.zeros(8, np.int64)

    def start(self, name: str, where: str) -> None:
        if not name:
            raise InputError(f"{where}: the header has no name; expected '>NAME' with the name right after '>'")
        if not name.isascii() or not name.isprintable():
            raise InputError(
                f"{where}: the name {name[:40]!r} has characters other than printable ASCII; rename the record"
            )
        if name in self.names:
            raise InputError(f"{where}: a second record is named {name!r}; every contig needs a name of its own")
        self.names.add(name)
        self._name = name
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
        return bool(self._counts[7])

    def finish(self, where: str) -> None:
        length = int(self._counts[7])
        if length == 0:
            raise InputError(f"{where}: record {self._name!r} has no bases; remove it or give it its sequence")
        a, c, g, t, _, other, masked, _ = (int(x) for x in self._counts)
        self.contigs.append(
            Contig(
                name=self._name,
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


def _line_of(path: Path, offset: int) -> int:
    """Count the line ends before a place in the decompressed file; only run to word an error."""
    lines = 1
    with open_unpacked(path) as stream:
        while offset > 0 and (chunk := stream.read(min(CHUNK, offset))):
            lines += chunk.count(b"\n")
            offset -= len(chunk)
    return lines


def _byte(letters: bytes, position: int) -> str:
    byte = letters[position : position + 1]
    if byte == b">":
        return "'>' inside a line"
    if byte in b"EFILOPQZJXefilopqzjx" and byte:
        return f"{byte.decode()!r}, which is no nucleotide; is this a protein file?"
    return (
        repr(byte.decode("ascii")) if byte.isascii() and byte.decode("ascii").isprintable() else f"byte 0x{byte.hex()}"
    )


def _pack_fasta(path: Path, stream: io.BufferedIOBase, packer: _Packer) -> None:
    position = 0  # bytes of text before `data`
    header: bytes | None = None  # what has been read of a header line, if we are in one
    in_record = False
    line_start = True
    header_at = 0

    def finish() -> None:
        packer.finish(str(path) if packer.has_bases else f"{path}, line {_line_of(path, header_at)}")

    def begin(line: bytes, at: int) -> None:
        text = line.removesuffix(b"\r").decode("utf-8", "replace")
        if "\r" in text:
            raise InputError(
                f"{path}, line {_line_of(path, at)}: a line ends with CR alone; end lines with LF or CR LF"
            )
        name = text.split(maxsplit=1)[0] if text and not text[0].isspace() else ""
        acceptable = name and name not in packer.names and name.isascii() and name.isprintable()
        packer.start(name, str(path) if acceptable else f"{path}, line {_line_of(path, at)}")

    while data := stream.read(CHUNK):
        if data.endswith(b"\r"):
            data += stream.read(1)
        if position == 0:
            _check_first_bytes(path, data)
        here = 0
        while here < len(data):
            if header is not None:
                end = data.find(b"\n", here)
                header += data[here : end if end >= 0 else len(data)]
                if len(header) > MAX_HEADER or (end < 0 and b"\r" in header[:-1]):
                    what = (
                        "ends its lines with CR alone; use LF or CR LF"
                        if b"\r" in header
                        else "has a header over 16 MiB"
                    )
                    raise InputError(f"{path}, line {_line_of(path, position + here)}: the file {what}")
                if end < 0:
                    break
                begin(header, position + here)
                header, in_record, line_start = None, True, True
                here = end + 1
                continue
            if line_start and data[here : here + 1] == b">":
                if in_record:
                    finish()  # names the header of the record that ends here
                header, header_at = b"", position + here
                here += 1
                continue
            # the search for one byte is fast; "\n>" alone would halt at every line end
            following = data.find(b"\n>", here) if data.find(b">", here) >= 0 else -1
            end = following + 1 if following >= 0 else len(data)
            segment = data[here:end]
            if not in_record:
                if segment.replace(b"\r\n", b"").strip(b"\n"):
                    raise InputError(_no_header(path, segment.lstrip(b"\n")))
            else:
                bad = packer.add(segment)
                if bad is None and b"\r" in segment and segment.count(b"\r") != segment.count(b"\r\n"):
                    bad = next(i for i, b in enumerate(segment) if b == 13 and segment[i + 1 : i + 2] != b"\n")
                    line = _line_of(path, position + here + bad)
                    raise InputError(f"{path}, line {line}: a line ends with CR alone; end lines with LF or CR LF")
                if bad is not None:
                    line = _line_of(path, position + here + bad)
                    raise InputError(
                        f"{path}, line {line}, record {packer._name!r}: found {_byte(segment, bad)}; "
                        f"expected the letters ACGT, N and IUPAC codes"
                    )
            line_start = segment.endswith(b"\n")
            here = end
        position += len(data)
    if header is not None:
        begin(header, position)
        in_record = True
    if not in_record:
        raise InputError(f"{path} is empty; expected a FASTA file, '>NAME' and lines of bases")
    finish()


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


def _pack_genbank(path: Path, packer: _Packer) -> None:
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
                        f"{path}, record {name!r}: found {_byte(bytes(record.seq), bad)} at base {bad + 1}; "
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


def _is_genbank(path: Path) -> bool:
    """Say whether a file is GenBank: its first line, or a later one after the head of a release's flat file, is LOCUS."""
    with open_unpacked(path) as stream:
        start = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"LOCUS") or (not start.startswith((b">", b"@", b";")) and bool(LOCUS_LINE.search(start)))


def _pack(path: Path, packer: _Packer, on_read: Callable[[int], None]) -> Source:
    before = path.stat()
    if before.st_size == 0:
        raise InputError(f"{path} is empty; expected a FASTA file, '>NAME' and lines of bases")
    try:
        if is_gzip(path):
            check_bgzf_end(path)
        genbank = _is_genbank(path)
        if genbank:
            _pack_genbank(path, packer)
            on_read(before.st_size)
            sha256 = file_sha256(path)
        else:
            with _HashingFile(path, on_read) as raw:
                buffered = io.BufferedReader(raw, CHUNK)
                stream = CappedGzip(path, buffered) if is_gzip(path) else buffered
                _pack_fasta(path, stream, packer)
                sha256 = raw.sha256.hexdigest()
    except EOFError as error:
        raise InputError(f"{path} is cut: its last gzip block is not complete; copy or download it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged: gzip says {str(error)!r}; copy or download it again") from error
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise InputError(f"{path} changed while it was read; build again when it is complete")
    return Source(path=str(path.resolve()), size=before.st_size, modified_ns=before.st_mtime_ns, sha256=sha256)


@contextmanager
def _readable_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"the disk is full while writing {out}; free space or choose another --out") from error
        name = error.filename or out
        raise InputError(
            f"cannot read or write {name}: {error.strerror}; check the path and its permissions"
        ) from error


def is_directory(path: Path) -> bool:
    """Say whether a path is a directory; a name that no file can have is an InputError."""
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"cannot look at {str(path)[:80]!r}: {error.strerror}") from error


def check_source(path: Path) -> None:
    """Raise an InputError unless the path is a file that can be read."""
    try:
        exists = path.exists()
    except OSError as error:
        raise InputError(f"cannot look at {str(path)[:80]!r}: {error.strerror}") from error
    if not exists:
        raise InputError(f"{path} does not exist; expected a FASTA or GenBank file")
    if path.is_dir():
        raise InputError(f"{path} is a directory; expected a FASTA or GenBank file")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file; expected a FASTA or GenBank file")
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InputError(f"{path} may not be read; check its permissions")


def build(
    sources: Sequence[Path],
    out: Path,
    *,
    rna: bool = False,
    overwrite: bool = False,
    wait: bool = False,
    is_copy: bool = False,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> GenomeStore:
    """Pack FASTA or GenBank files, plain or compressed, into a store that is whole or absent.

    Args:
        sources: The files, in the order their contigs shall have.
        out: Directory of the store, by habit with the ending .dna.
        rna: Read U as T; otherwise it becomes N and is counted.
        overwrite: Replace a store that stands at `out`.
        wait: While another process builds `out`, wait and return its store, rather than raise.
        is_copy: `out` is a copy in the cache: overwrite it even if its manifest is gone, if there is nothing else in it.
        on_progress: Called with bytes read and bytes in all.
        warn: Called with a sentence about U in the input.

    Raises:
        InputError: A file is missing, malformed or cut (file, line and value named), `out` exists, another process
            is building it, or the disk is full. Nothing is left behind.
    """
    sources, out = [Path(path) for path in sources], Path(out)
    for path in sources:
        check_source(path)
    if not sources:
        raise InputError("no source file given; expected one or more FASTA or GenBank files")
    out = out.resolve()  # a link to a store is followed, so that the store is replaced and not the link
    with _readable_errors(out):
        missing = [parent for parent in out.parents if not parent.exists()]
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.parent / f".{out.name}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise InputError(f"another dna-mamba is building {out} now; wait for it or choose another --out") from None
        try:
            if out.exists() and not overwrite:
                if wait:
                    return GenomeStore.open(out)
                raise InputError(f"{out} exists; pass --overwrite to replace it or choose another --out")
            if out.exists():
                _check_replaceable(out, sources, is_copy)
            return _build_locked(sources, out, rna, on_progress, warn)
        finally:
            if not out.exists():  # another process that waits for this lock makes the file again
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
            if not out.exists():
                for parent in missing:
                    with suppress(OSError):
                        parent.rmdir()


def _check_replaceable(out: Path, sources: Sequence[Path], is_copy: bool) -> None:
    """Raise an InputError unless a directory holds a genome store, however damaged, and nothing else.

    A copy in the cache is known by its name, even if its manifest is gone.
    """
    manifest = out / "manifest.json"
    known = manifest.is_file() and b'"bases_sha256"' in manifest.read_bytes()
    ours = out.is_dir() and (known or is_copy)
    if not ours or {entry.name for entry in out.iterdir()} - {"manifest.json", "bases.u8"}:
        raise InputError(f"{out} exists and is no genome store, so it is not overwritten; choose another --out")
    for source in sources:
        if source.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{source} lies in {out}, which is to be replaced; move it or choose another --out")


def _build_locked(
    sources: Sequence[Path], out: Path, rna: bool, on_progress: Progress | None, warn: Callable[[str], None] | None
) -> GenomeStore:
    for leftover in out.parent.glob(f".{out.name}.building-*"):  # of a build that was killed; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    building = out.parent / f".{out.name}.building-{os.getpid()}"
    total, done = sum(path.stat().st_size for path in sources), 0

    def on_read(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(min(done, total), total)

    building.mkdir()
    try:
        with open(building / "bases.u8", "wb") as file:
            packer = _Packer(file, rna)
            read = tuple(_pack(path, packer, on_read) for path in sources)
            file.flush()
            os.fsync(file.fileno())
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            contigs=tuple(packer.contigs),
            sources=read,
            bases_sha256=packer.sha256.hexdigest(),
        )
        write_synced(building / "manifest.json", manifest.to_json().encode())
        sync_directory(building)
        if out.exists():
            replaced = out.parent / f".{out.name}.building-replaced"
            out.rename(replaced)
            building.rename(out)
            shutil.rmtree(replaced)
        else:
            building.rename(out)
        sync_directory(out.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    if warn and packer.num_uracil and not rna:
        warn(f"{packer.num_uracil:,} letters U became N; --rna, here or of genome build, reads them as T")
    return GenomeStore.open(out)


def cache_directory() -> Path:
    """Folder for stores packed on the way: $DNA_MAMBA_CACHE, or the user's cache folder."""
    from platformdirs import user_cache_path

    given = os.environ.get("DNA_MAMBA_CACHE")
    return Path(given) if given else user_cache_path("dna-mamba")


def open_genome(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    rna: bool = False,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> GenomeStore:
    """Open a store, or pack a FASTA or GenBank file into the cache once and open that.

    The packed copy is found again by path, size, time and content of the file; nothing is written beside the file. Every
    byte is compared with the SHA-256 in the manifest (1.7 gigabases a second): a damaged store is refused, a damaged copy in
    the cache packed anew.

    Args:
        path: The store or file.
        verify: Compare the bytes of a store; a copy in the cache always is.
        rna: Read U of a file as T; a store is as it was packed.
        on_progress: Called while a file is packed.
        warn: Called with a sentence about U in the input.

    Raises:
        InputError: The path is neither, a store is damaged, or its source file has changed since.
    """
    path = Path(path)
    if is_directory(path):
        store = GenomeStore.open(path)
        store.check_sources()
        if verify:
            store.verify()
        if rna and warn is not None:
            warn(f"{path} is a genome store, so --rna does nothing: U was read when it was packed (genome build --rna)")
        return store
    check_source(path)
    state = path.stat()
    sha256 = file_sha256(path)
    identity = os.fsencode(path.resolve()) + f"|{state.st_size}|{state.st_mtime_ns}|{sha256}".encode()
    kind = ".rna" if rna else ""
    name = f"{path.name.split('.')[0][:40]}-{hashlib.sha256(identity).hexdigest()[:16]}{kind}.dna"
    store = _packed(path, cache_directory() / name, rna, on_progress, warn)
    if [source.sha256 for source in store.manifest.sources] != [sha256]:  # replaced between the two readings
        shutil.rmtree(store.path)
        raise InputError(f"{path} changed while it was read; try again when it is complete")
    store.called = str(path)
    return store


def _packed(
    path: Path, out: Path, rna: bool, on_progress: Progress | None, warn: Callable[[str], None] | None
) -> GenomeStore:
    if out.exists():
        try:
            store = GenomeStore.open(out)
            store.verify()
            return store
        except InputError:  # a damaged copy of a file that we have: pack it again
            options: dict[str, Any] = {"overwrite": True, "is_copy": True}
            return build([path], out, rna=rna, wait=True, on_progress=on_progress, warn=warn, **options)
    return build([path], out, rna=rna, wait=True, on_progress=on_progress, warn=warn)


def can_fetch_indexed(path: Path) -> bool:
    """Say whether a FASTA is plain text with an index beside it, which pyfaidx reads without writing anything."""
    return path.is_file() and Path(f"{path}.fai").is_file() and not is_gzip(path)


def _describes(path: Path, numbers: tuple[int, int, int, int], interval: Interval) -> bool:
    """Compare a contig's row in a .fai with the file: its header, every line end up to the interval, and what follows it.

    A file that was wrapped anew keeps its headers and its bases, and only the line ends tell.
    """
    length, offset, bases, width = numbers
    if not (0 < length < 2**60 and 0 < offset < 2**60 and 0 < bases <= width <= bases + 2 and interval.end <= length):
        return False
    if width == bases and length > bases:  # only a single line without an end has no line end
        return False
    size = path.stat().st_size
    last_line, rest = divmod(length, bases)
    if offset + last_line * width + rest > size + width:
        return False
    with open(path, "rb") as file:
        file.seek(max(0, offset - len(interval.contig) - 4096))
        before = file.read(min(offset, len(interval.contig) + 4096))
        file.seek(offset + last_line * width + rest)
        after = file.read(3).lstrip(b"\r\n")
    header = before.rstrip(b"\r\n").rpartition(b"\n")[2]
    named = header.startswith(b">") and header[1:].split()[:1] == [interval.contig.encode()]
    if not (before.endswith(b"\n") and named and after[:1] in (b"", b">")):
        return False
    # every line end from the first base to the interval's last, where the index puts it and nowhere else
    until = min((interval.end + bases - 1) // bases * width, last_line * width + rest, size - offset)
    if until <= 0:
        return False
    span = np.memmap(path, np.uint8, "r", offset, (until,))
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
            if inside is None or not _describes(path, (length, row.offset, row.lenc, row.lenb), inside):
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
