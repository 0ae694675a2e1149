"""Open a store, or the packed copy of a FASTA or GenBank file that the cache keeps."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dna_mamba.data.store.build import build, check_source, is_directory
from dna_mamba.data.store.genome import GenomeStore, file_sha256
from dna_mamba.errors import InputError
from dna_mamba.progress import Progress


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
    damaged = False
    if out.exists():
        try:
            store = GenomeStore.open(out)
            store.verify()
            return store
        except InputError:  # a damaged copy of a file that we have: pack it again
            damaged = True
    return build(
        [path], out, rna=rna, wait=True, on_progress=on_progress, warn=warn, overwrite=damaged, is_copy=damaged
    )
