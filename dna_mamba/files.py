"""Files that are whole or absent, text that is UTF-8 whatever the locale, and JSON that every reader takes."""

import contextlib
import csv
import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dna_mamba.errors import InputError

UNWRITABLE = (errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
"""Faults of the place that is written to, whatever was doing it."""


def without_nan(values: object) -> object:
    """Put None where a number is not finite, at all depths: JSON knows no NaN (RFC 8259, section 6)."""
    if isinstance(values, Mapping):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_nan(value) for value in values]
    if type(values).__module__ == "numpy" and getattr(values, "shape", None) == ():
        values = values.item()  # type: ignore[attr-defined]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values


def json_text(values: Any, **options: Any) -> str:
    """Give values as JSON; null stands where a number is not finite. Options are those of json.dumps."""
    return json.dumps(without_nan(values), allow_nan=False, **options)


def sync_directory(path: Path) -> None:
    """Make renames inside a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.writing")
    try:
        write_synced(unfinished, content)
        unfinished.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say the name
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; bytes that came as surrogates leave as they came."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, values: object) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json_text(values, indent=1) + "\n")


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def obey_umask(path: Path) -> None:
    """Give a file, or a directory and all in it, the permissions that the umask leaves to new ones."""
    mask = _umask()
    paths = [path, *(path.rglob("*") if path.is_dir() else ())]
    for one in paths:
        now = one.stat().st_mode
        one.chmod(((0o777 if stat.S_ISDIR(now) else 0o666) & ~mask) | (now & stat.S_ISGID))


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


class WholeFile:
    """A file that appears under its name when the block ends well, and not at all otherwise.

    Args:
        out: Its name; folders that lack are made, and taken away again if it fails.
        folder: Where it is written, on the same file system; beside `out` by default.
        option: What names it on the command line, for messages.

    Raises:
        InputError: It cannot be written.
    """

    def __init__(self, out: Path, folder: Path | None = None, option: str = "-o"):
        self.out, self.folder, self.option = out, folder or out.parent, option
        self.made: list[Path] = []

    def __enter__(self) -> Path:
        """Give the path to write to."""
        try:
            if self.out.is_dir():
                raise InputError(f"{self.option} {self.out} is a directory; name a file in it")
            self.made = [parent for parent in self.out.parents if not parent.exists()]
            self.out.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.out.name}.", suffix=self.out.suffix, dir=self.folder)
        except OSError as error:
            raise InputError(f"cannot write {self.out}: {error.strerror}; choose another {self.option}") from error
        os.close(handle)
        self.unfinished = Path(name)
        return self.unfinished

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        """Rename, or remove; a full disk is told with the file's name."""
        if kind is None:
            try:
                if self.unfinished.is_file():  # a zarr store is a directory
                    _sync(self.unfinished)
                obey_umask(self.unfinished)
                self.unfinished.replace(self.out)
                sync_directory(self.out.parent)
                return
            except OSError as found:
                error = found
        if self.unfinished.is_dir():
            shutil.rmtree(self.unfinished, ignore_errors=True)
        else:
            self.unfinished.unlink(missing_ok=True)
        for parent in self.made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"the disk is full while writing {self.out}; free space and try again") from error
        if isinstance(error, OSError) and (kind is None or error.errno in UNWRITABLE):
            raise InputError(f"cannot write {self.out}: {error.strerror}; choose another {self.option}") from error


def whole_directory(out: Path, write: Callable[[Path], None], option: str = "-o") -> None:
    """Let a directory appear whole or not at all; `write` is given a path where nothing stands yet.

    Args:
        out: Its name.
        write: Makes it.
        option: What names it on the command line, for messages.

    Raises:
        InputError: It cannot be written.
    """
    if out.is_dir():
        out.rmdir()  # it is empty
    with WholeFile(out, option=option) as unfinished:
        unfinished.unlink()
        write(unfinished)


def check_is_no_input(out: Path | None, *inputs: str | Path | None) -> None:
    """Refuse to write over what is read.

    Raises:
        InputError: The output is one of the inputs, by whatever name.
    """
    for given in inputs:
        with contextlib.suppress(OSError):  # one of them is no file
            if out is not None and given is not None and out.exists() and out.samefile(given):
                raise InputError(f"-o {out} is what is read; name another file")


def check_writable(*outs: Path | None) -> None:
    """Try all outputs before the work, and leave nothing.

    Raises:
        InputError: One cannot be written.
    """
    for out in outs:
        if out is not None:
            with contextlib.suppress(_Tried), WholeFile(out):
                raise _Tried


class _Tried(Exception):
    """The output can be written."""


def write_table(out: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a tab-separated table in UTF-8, whole or not at all."""
    with WholeFile(out) as path:
        write_rows_as_text(path, columns, rows)


def write_rows_as_text(path: Path, columns: Iterable[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a tab-separated table in UTF-8."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
