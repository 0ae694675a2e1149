# Shapes: R rows, D model width
"""Vectors on their way to a file: on disk while they are made, so that an ended run can go on, then in the format asked for."""

import contextlib
import errno
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dna_mamba.errors import InputError
from dna_mamba.files import WholeFile, json_text

FORMATS = (".npz", ".parquet", ".h5ad", ".zarr")
PIECE_BYTES, PIECE_ROWS = 1 << 26, 1 << 16
"""Of vectors that are held in memory while a file is written; their columns are the larger part where vectors are short."""

Columns = Callable[[int, int], dict[str, np.ndarray]]
"""Gives the columns that say which row is what, of rows from (included) to (excluded)."""


def check_format(out: Path) -> None:
    """Refuse what cannot be written, before any work is done.

    Raises:
        InputError: The ending is unknown, a library is missing, or a directory stands where a file would.
    """
    if out.suffix not in FORMATS:
        raise InputError(f"-o {out} must end in {', '.join(FORMATS)}: the ending says the format")
    needed = {".parquet": ("pyarrow",), ".h5ad": ("pandas", "anndata"), ".zarr": ("pandas", "anndata", "zarr")}
    missing = [name for name in needed.get(out.suffix, ()) if find_spec(name) is None]
    if missing:
        raise InputError(f"-o {out} needs {' and '.join(missing)}; pip install {' '.join(missing)}, or write .npz")
    if out.is_dir() or (out.suffix == ".zarr" and out.exists()):
        words = "exists" if out.suffix == ".zarr" else "is a directory"
        raise InputError(f"-o {out} {words}; choose another name")


class UnfinishedVectors:
    """Rows of float32 in a hidden folder beside the output, written in any order, and which parts of the work are done.

    A run that was killed leaves the folder; the same run, started again, goes on. Another run at the same output starts anew.

    Args:
        out: The file that will be written.
        plan: What decides the numbers, as JSON; equal plans give equal vectors.
        num_rows: Rows in all.
        width: Numbers in a row.
        warn: Called when the vectors of another run are thrown away.

    Raises:
        InputError: Another process writes the same output, or the disk has no room.
    """

    def __init__(self, out: Path, plan: dict[str, object], num_rows: int, width: int, warn: Callable[[str], None]):
        self.out, self.num_rows, self.width = out, num_rows, width
        self.folder = out.with_name(f".{out.name}.unfinished")
        self.row_bytes = 4 * width
        self.done: set[int] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror}; choose another -o") from error
        self.lock = FileLock(self.folder / "lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another process is writing {out}; wait for it, or choose another -o") from None
        text = json_text(plan, sort_keys=True)
        known = self.folder / "plan.json"
        if known.exists() and known.read_text(encoding="utf-8") == text and (self.folder / "vectors").exists():
            self.done = self._read_done()
        else:
            if known.exists():
                warn(f"{out}: what an earlier run left does not belong to this one; it starts anew")
            for name in ("vectors", "done", "plan.json"):
                (self.folder / name).unlink(missing_ok=True)
        try:
            needed = 2 * num_rows * self.row_bytes
            free = shutil.disk_usage(self.folder).free + ((self.folder / "vectors").stat().st_size if self.done else 0)
            if needed > free:
                raise OSError(errno.ENOSPC, "")
            self.vectors = os.open(self.folder / "vectors", os.O_RDWR | os.O_CREAT)
            if num_rows:
                os.posix_fallocate(self.vectors, 0, num_rows * self.row_bytes)
            known.write_text(text, encoding="utf-8")
            self.note = open(self.folder / "done", "ab")  # noqa: SIM115
        except OSError as error:
            self.close() if self.done else self.clear()  # what an earlier run has done is not lost
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise InputError(f"cannot write {out}: {error.strerror}; choose another -o") from error
            raise InputError(
                f"cannot write {out}: {num_rows:,} vectors of {width} take {needed / 2**30:,.2f} GiB while they are written, "
                f"{free / 2**30:,.2f} are free; free space, or pool more"
            ) from error

    def _read_done(self) -> set[int]:
        path = self.folder / "done"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # what follows the last line end is torn
        return {int(line) for line in lines if line.isdigit()}

    def write(self, first: int, rows: np.ndarray, average: bool) -> None:
        """Put rows at their place; averaged with what stands there, for the second strand."""
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        if average:
            rows = (rows + self.read(first, first + len(rows))) / 2
        content, at = memoryview(rows.tobytes()), first * self.row_bytes
        while content:
            written = os.pwrite(self.vectors, content, at)
            content, at = content[written:], at + written

    def read(self, start: int, end: int) -> np.ndarray:
        """Give rows (R, D)."""
        content = bytearray()
        while len(content) < (end - start) * self.row_bytes:
            at = start * self.row_bytes + len(content)
            content += os.pread(self.vectors, (end - start) * self.row_bytes - len(content), at)
        return np.frombuffer(content, np.float32).reshape(end - start, self.width)

    def finish(self, part: int) -> None:
        """Note that a part of the work is on disk."""
        os.fsync(self.vectors)
        self.note.write(b"%d\n" % part)
        self.note.flush()
        os.fsync(self.note.fileno())
        self.done.add(part)

    def close(self) -> None:
        """Leave everything as it stands, for the next run."""
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.vectors)
        with contextlib.suppress(OSError, AttributeError):
            self.note.close()
        self.lock.release()

    def clear(self) -> None:
        """Take everything away."""
        # renamed first, so that whoever comes next makes a folder and a lock of its own
        away = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self.folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)
        self.close()

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Give ranges of rows to hold at once."""
        size = max(1, min(PIECE_ROWS, PIECE_BYTES // self.row_bytes))
        return ((start, min(start + size, self.num_rows)) for start in range(0, self.num_rows, size))


def write_file(vectors: UnfinishedVectors, columns: Columns, first_name: int = 0) -> None:
    """Write the output, whole or not at all, in the format that its ending names.

    .npz and .parquet take memory for a piece of the rows; .h5ad and .zarr hold the columns of all rows, and name rows by their
    number in the whole run, from `first_name` on, so that joined shares have the names of the one run.
    """
    with WholeFile(vectors.out, vectors.folder) as path:
        if vectors.out.suffix in (".h5ad", ".zarr"):
            _write_anndata(path, vectors, columns, first_name)
        else:
            (_write_npz if vectors.out.suffix == ".npz" else _write_parquet)(path, vectors, columns)


def _write_npz(path: Path, vectors: UnfinishedVectors, columns: Columns) -> None:
    widths: dict[str, np.dtype] = {}
    for start, end in vectors.pieces() if vectors.num_rows else [(0, 0)]:
        for name, values in columns(start, end).items():
            widths[name] = max(widths.get(name, values.dtype), values.dtype, key=lambda dtype: dtype.itemsize)

    def member(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
        file = archive.open(f"{name}.npy", "w", force_zip64=True)
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        file.write(header.getvalue())
        return file

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with member(archive, "embeddings", np.dtype(np.float32), (vectors.num_rows, vectors.width)) as file:
            for start, end in vectors.pieces():
                file.write(vectors.read(start, end).tobytes())
        for name, dtype in widths.items():
            with member(archive, name, dtype, (vectors.num_rows,)) as file:
                for start, end in vectors.pieces():
                    file.write(columns(start, end)[name].astype(dtype).tobytes())


def _write_parquet(path: Path, vectors: UnfinishedVectors, columns: Columns) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    names = [f"e{i}" for i in range(vectors.width)]
    kinds = {name: pa.int64() if values.dtype.kind == "i" else pa.string() for name, values in columns(0, 0).items()}
    schema = pa.schema([*kinds.items(), *((name, pa.float32()) for name in names)])
    # opened here: Arrow takes names in UTF-8 alone
    with open(path, "wb") as raw, parquet.ParquetWriter(raw, schema) as file:
        for start, end in vectors.pieces():
            rows_RD = vectors.read(start, end)
            arrays = [pa.array(values, kinds[name]) for name, values in columns(start, end).items()]
            file.write_table(
                pa.Table.from_arrays([*arrays, *(pa.array(column) for column in rows_RD.T)], schema=schema)
            )


def _write_anndata(path: Path, vectors: UnfinishedVectors, columns: Columns, first_name: int) -> None:
    import anndata
    import pandas as pd

    rows = columns(0, vectors.num_rows)
    X = np.zeros((0, vectors.width), np.float32)
    if vectors.num_rows:
        shape = (vectors.num_rows, vectors.width)
        X = np.asarray(np.memmap(vectors.folder / "vectors", np.float32, "r", shape=shape))
    table = anndata.AnnData(X=X, obs=pd.DataFrame(rows, index=[str(first_name + i) for i in range(vectors.num_rows)]))
    if path.suffix == ".h5ad":
        table.write_h5ad(path)
    else:
        path.unlink()  # a zarr store is a directory
        table.write_zarr(path)
