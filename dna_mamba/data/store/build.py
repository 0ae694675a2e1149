"""Pack FASTA or GenBank files into a genome store."""

import errno
import gzip
import io
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dna_mamba.data.store.fasta import pack_fasta
from dna_mamba.data.store.genbank import is_genbank, pack_genbank
from dna_mamba.data.store.genome import FORMAT_VERSION, GenomeStore, Manifest, Source, file_sha256
from dna_mamba.data.store.packer import CHUNK, HashingFile, Packer
from dna_mamba.data.unpack import CappedGzip, check_bgzf_end, is_gzip
from dna_mamba.errors import InputError
from dna_mamba.files import sync_directory, write_synced
from dna_mamba.progress import Progress


def _pack(path: Path, packer: Packer, on_read: Callable[[int], None]) -> Source:
    before = path.stat()
    if before.st_size == 0:
        raise InputError(f"{path} is empty; expected a FASTA file, '>NAME' and lines of bases")
    try:
        if is_gzip(path):
            check_bgzf_end(path)
        genbank = is_genbank(path)
        if genbank:
            pack_genbank(path, packer)
            on_read(before.st_size)
            sha256 = file_sha256(path)
        else:
            with HashingFile(path, on_read) as raw:
                buffered = io.BufferedReader(raw, CHUNK)
                stream = CappedGzip(path, buffered) if is_gzip(path) else buffered
                pack_fasta(path, stream, packer)
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
            packer = Packer(file, rna)
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
