# Shapes: B windows, T bases
"""Read a packed genome: one byte a base, memory-mapped, safe in any number of worker processes."""

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy import add, bitwise_or, subtract

from dna_mamba.data.intervals import Interval, parse_region
from dna_mamba.data.vocabulary import (
    BASE_BITS,
    EIGHT,
    ONE,
    SEVEN,
    STORE_N,
    letters_of_store,
    reverse_complement_store,
    tokens_of_store,
)
from dna_mamba.errors import InputError, check_regular, nearest

FORMAT_VERSION = 1
HASH_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Contig:
    """A sequence of the store and what it is made of."""

    name: str
    offset: int
    """Place of its first base in bases.u8."""
    length: int
    num_a: int
    num_c: int
    num_g: int
    num_t: int
    num_n: int
    """All that is not A, C, G or T, the other IUPAC codes included."""
    num_other: int
    """IUPAC codes other than N, and U unless read as T; they became N."""
    num_masked: int
    """Lower-case letters."""

    @property
    def num_acgt(self) -> int:
        """Bases that are A, C, G or T."""
        return self.num_a + self.num_c + self.num_g + self.num_t


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file that a store was built from, as it was then."""

    path: str
    size: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What stands in manifest.json beside bases.u8."""

    format_version: int
    contigs: tuple[Contig, ...]
    sources: tuple[Source, ...]
    bases_sha256: str

    def to_json(self) -> str:
        """Write the manifest with a checksum of itself."""
        rows = [_as_dict(contig) for contig in self.contigs]
        content: dict[str, object] = {
            "format_version": self.format_version,
            "contigs": rows,
            "sources": [_as_dict(source) for source in self.sources],
            "bases_sha256": self.bases_sha256,
        }
        # a line a contig: assemblies have them by the hundred thousand, and json indents slowly
        contigs = ",\n  ".join(json.dumps(contig) for contig in rows)
        rest = {**content, "contigs": [], "manifest_sha256": _checksum(content)}
        return json.dumps(rest, indent=1).replace('"contigs": []', f'"contigs": [\n  {contigs}\n ]', 1) + "\n"


def _as_dict(row: "Contig | Source") -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _checksum(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of a store.

    Raises:
        InputError: There is none, it is of another format version, or it was changed after it was written.
    """
    file = path / "manifest.json"
    rebuild = "build the store again with dna-mamba genome build"
    check_regular(file, "the manifest of a store")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is no genome store: it has no manifest.json; dna-mamba genome build makes one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({str(error)[:200]}); {rebuild}") from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        version = content.get("format_version") if isinstance(content, dict) else None
        raise InputError(f"{file} has format version {version!r}, this dna-mamba reads {FORMAT_VERSION}; {rebuild}")
    if content.pop("manifest_sha256", None) != _checksum(content):
        raise InputError(f"{file} was changed after it was written (its checksum does not match); {rebuild}")
    try:
        manifest = Manifest(
            format_version=content["format_version"],
            contigs=tuple(Contig(**contig) for contig in content["contigs"]),
            sources=tuple(Source(**source) for source in content["sources"]),
            bases_sha256=content["bases_sha256"],
        )
        if not _is_consistent(manifest):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} holds something else than the manifest of a store; {rebuild}") from error
    return manifest


def _is_consistent(manifest: Manifest) -> bool:
    """Say whether every field has its type, and the contigs stand one behind the other."""
    sources = manifest.sources
    texts = [manifest.bases_sha256, *(s.path for s in sources), *(s.sha256 for s in sources)]
    sizes = [*(s.size for s in sources), *(s.modified_ns for s in sources)]
    if not all(type(text) is str for text in texts) or not all(type(size) is int for size in sizes):
        return False
    offset = 0
    for contig in manifest.contigs:
        if not _is_contig(contig) or contig.offset != offset:
            return False
        offset += contig.length
    return offset > 0


def _is_contig(contig: Contig) -> bool:
    numbers = [getattr(contig, name) for name in Contig.__dataclass_fields__ if name != "name"]
    return type(contig.name) is str and all(type(n) is int and n >= 0 for n in numbers)


def file_sha256(path: Path) -> str:
    """Hash a file in constant memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class GenomeStore:
    """A packed genome. Open it with `GenomeStore.open`.

    The bases are mapped once; forked workers share the mapping, spawned ones open it again by path.
    """

    def __init__(self, path: Path, manifest: Manifest, stored: np.ndarray):
        self.path = path
        self.called = str(path)
        """What messages call it: the file it was packed from, where it lies in the cache."""
        self.manifest = manifest
        self._stored = stored
        self.contigs = {contig.name: contig for contig in manifest.contigs}
        self._spans = {c.name: (c.offset, c.length, c.num_masked == 0) for c in manifest.contigs}
        self._offsets = np.array([c.offset for c in manifest.contigs], np.int64)
        self._lengths = np.array([c.length for c in manifest.contigs], np.int64)
        self._index = {c.name: i for i, c in enumerate(manifest.contigs)}
        self._n_runs: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    def open(path: str | os.PathLike[str]) -> "GenomeStore":
        """Map a store after checking its version, its manifest and its size.

        Raises:
            InputError: The directory is no store, or it is damaged.
        """
        path = Path(path)
        manifest = read_manifest(path)
        file = path / "bases.u8"
        expected = sum(contig.length for contig in manifest.contigs)
        try:
            with open(file, "rb") as bases:
                size = os.fstat(bases.fileno()).st_size
                if size != expected:
                    raise InputError(
                        f"{file} has {size:,} bytes, its manifest says {expected:,}; "
                        f"build the store again with dna-mamba genome build"
                    )
                mapped = mmap.mmap(bases.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}; build the store again") from error
        return GenomeStore(path, manifest, np.frombuffer(mapped, np.uint8))

    def __reduce__(self) -> tuple[object, ...]:
        return GenomeStore.open, (str(self.path),)

    @cached_property
    def num_bases(self) -> int:
        """Bases of all contigs, N included."""
        return int(self._lengths.sum())

    def region(self, text: str) -> Interval:
        """Read a region of this genome, as `parse_region` does."""
        return parse_region(text, {contig.name: contig.length for contig in self.manifest.contigs})

    def contig(self, name: str) -> Contig:
        """Find a contig by name; the error names a similar one, as 'chr1' for '1'."""
        if name in self.contigs:
            return self.contigs[name]
        raise InputError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        other = name.removeprefix("chr") if name.startswith("chr") else f"chr{name}"
        known = list(self.contigs)
        listed = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
        hint = f"; did you mean {other!r}?" if other in self.contigs else nearest(name, known)
        return f"contig {name!r} is not in {self.called} (it has {listed}){hint}"

    def _outside(self, contig: str, start: int, end: int) -> InputError:
        return InputError(
            f"bases {start} to {end} (0-based, end excluded) reach outside {contig}, "
            f"which has {self._spans[contig][1]:,} bases"
        )

    def stored(self, contig: str, start: int, end: int) -> np.ndarray:
        """View the store bytes of a stretch of the forward strand, without a copy and read-only."""
        try:
            offset, length, _ = self._spans[contig]
        except KeyError:
            raise InputError(self._unknown(contig)) from None
        if start < 0 or end > length or start > end:
            raise self._outside(contig, start, end)
        return self._stored[offset + start : offset + end]

    def _stored_stranded(self, interval: Interval, pad: bool) -> np.ndarray:
        start, end = interval.start, interval.end
        length = self.contig(interval.contig).length
        if pad and end > length:
            bases = self.stored(interval.contig, min(start, length), length)
            padded = np.full(end - start, STORE_N, np.uint8)
            padded[: bases.size] = bases
            bases = padded
        else:
            bases = self.stored(interval.contig, start, end)
        return reverse_complement_store(bases) if interval.strand == "-" else bases

    def fetch(self, interval: Interval, *, pad: bool = False) -> str:
        """Give the bases of an interval in upper case, its strand honoured.

        Args:
            interval: The place.
            pad: Fill with N what lies past the end of the contig; otherwise that is an error.

        Raises:
            InputError: The contig is unknown or the interval reaches outside it.
        """
        return letters_of_store(self._stored_stranded(interval, pad))

    def tokens(self, interval: Interval, *, pad: bool = False) -> np.ndarray:
        """Give the token ids of an interval (uint8), its strand honoured; see `fetch`."""
        span = self._spans.get(interval.contig)
        end = interval.end
        if span is not None and end <= span[1] and interval.strand == "+":  # the short road, without a call
            stored = self._stored[span[0] + interval.start : span[0] + end]
            if span[2]:  # no soft mask anywhere in the contig
                return add(stored, SEVEN)
            tokens = bitwise_or(stored, EIGHT)
            return subtract(tokens, ONE, tokens)
        return tokens_of_store(self._stored_stranded(interval, pad))

    def contig_numbers(self, names: Sequence[str]) -> np.ndarray:
        """Translate names into the numbers that `tokens_batch` takes: places in the manifest."""
        try:
            return np.array([self._index[name] for name in names], np.int64)
        except KeyError as error:
            raise InputError(self._unknown(error.args[0])) from None

    def stored_batch(self, contigs: Sequence[str] | np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Copy the store bytes of many windows of one length, forward strand, into (B, T).

        Args:
            contigs: Contig of each window, by name or by number.
            starts: First base of each window, 0-based.
            length: Bases of a window.

        Raises:
            InputError: A window reaches outside its contig.
        """
        numbers = contigs if isinstance(contigs, np.ndarray) else self.contig_numbers(contigs)
        starts = np.asarray(starts, np.int64)
        outside = (starts < 0) | (starts > self._lengths[numbers] - length)
        if outside.any():
            bad = int(np.argmax(outside))
            name = self.manifest.contigs[numbers[bad]].name
            raise self._outside(name, int(starts[bad]), int(starts[bad]) + length)
        if length > self._stored.size:
            raise InputError(f"a window of {length:,} bases is longer than the whole genome, {self._stored.size:,}")
        every_window = np.lib.stride_tricks.as_strided(
            self._stored, (self._stored.size - length + 1, length), (1, 1), writeable=False
        )
        return every_window[self._offsets[numbers] + starts]

    def tokens_batch(self, contigs: Sequence[str] | np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Give the token ids of many windows of one length as tokens_BT (uint8); see `stored_batch`."""
        windows = self.stored_batch(contigs, starts, length)
        windows |= 8
        windows -= 1
        return windows

    def n_runs(self, contig: str) -> tuple[np.ndarray, np.ndarray]:
        """Give first bases and (excluded) ends of all runs of N in a contig, found in one pass and kept."""
        if contig not in self._n_runs:
            length = self.contig(contig).length
            edges = []
            previous = False
            for start in range(0, length, HASH_CHUNK):
                is_n = (self.stored(contig, start, min(start + HASH_CHUNK, length)) & BASE_BITS) == STORE_N
                changes = np.flatnonzero(is_n[1:] != is_n[:-1]) + 1 + start
                edges.append(np.concatenate([[start], changes]) if is_n[0] != previous else changes)
                previous = bool(is_n[-1])
            all_edges = np.concatenate(edges + ([np.array([length])] if previous else [])).astype(np.int64)
            self._n_runs[contig] = (all_edges[0::2], all_edges[1::2])
        return self._n_runs[contig]

    def count_n(self, contig: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Count the N in each of many stretches of a contig."""
        run_starts, run_ends = self.n_runs(contig)
        before = np.concatenate([[0], np.cumsum(run_ends - run_starts)])

        def up_to(positions: np.ndarray) -> np.ndarray:
            run = np.searchsorted(run_starts, positions, side="right")
            overhang = np.where(run > 0, np.maximum(run_ends[run - 1] - positions, 0), 0) if run_starts.size else 0
            return before[run] - overhang

        return up_to(np.asarray(ends)) - up_to(np.asarray(starts))

    def verify(self) -> None:
        """Hash bases.u8 and compare; raise an InputError if it is not what was built."""
        if file_sha256(self.path / "bases.u8") != self.manifest.bases_sha256:
            raise InputError(
                f"{self.path / 'bases.u8'} does not match the SHA-256 in its manifest: it was damaged after the build; "
                f"build the store again"
            )

    def check_sources(self) -> None:
        """Raise an InputError if a source file that still exists has other content than when the store was built."""
        for source in self.manifest.sources:
            path = Path(source.path)
            try:
                now = path.stat()
            except OSError:
                continue  # a store stands on its own; its sources may be archived
            if (now.st_size, now.st_mtime_ns) == (source.size, source.modified_ns):
                continue
            if now.st_size != source.size or file_sha256(path) != source.sha256:
                raise InputError(
                    f"{path} has changed since {self.path} was built from it; run dna-mamba genome build {path} "
                    f"--out {self.path} --overwrite, or move the file away to keep the store as it is"
                )
