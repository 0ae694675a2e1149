"""What holds for every bad input, whatever reads it."""

import hashlib
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# what commands import when they first run: its time and memory are not those of an input
from dna_mamba.cli import main
from dna_mamba.errors import InputError

MOST_SECONDS = 5.0  # what is bad takes less than two; a slow machine is no fault of ours
"""Of processor time, a megabyte of input."""
MOST_MIB = 512
"""Of memory, a megabyte of input."""


@dataclass(frozen=True)
class Case:
    """One bad (or merely odd) input."""

    row: int
    """Of the list in docs/reliability.md."""
    name: str
    content: bytes | Callable[[Path], Path | None]
    """Of the file, or a function that makes the input in a folder (and may give its path)."""
    words: str | None
    """What the message must say; none where the input is read and not refused."""


def named(cases: list[Case]) -> list[Any]:
    """Give the cases as parameters whose ids begin with the row."""
    names = [f"row{case.row:02d} {case.name}" for case in cases]
    assert len(set(names)) == len(names)
    return [pytest.param(case, id=name) for case, name in zip(cases, names, strict=True)]


def make(case: Case, folder: Path, name: str) -> Path:
    """Write the input of a case."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
    else:
        path = case.content(folder) or path
    return path


def snapshot(folder: Path) -> dict[str, object]:
    """Hash all that lies in a folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            state = path.stat()
            found[name] = (state.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        else:
            found[name] = None
    return found


def _peak_kib() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    match = re.search(r"VmHWM:\s+(\d+)", status.read_text())
    assert match
    return int(match[1])


@contextmanager
def within_limits(inputs: Path) -> Iterator[None]:
    """Check that nothing among the inputs changes, and that processor time and memory stay below the limits."""
    before = snapshot(inputs)
    size = sum(path.stat().st_size for path in inputs.rglob("*") if path.is_file() and not path.is_symlink())
    megabytes = max(1.0, size / 1e6)
    with suppress(OSError):  # there is none, or it may not be written
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    memory, began = _peak_kib(), time.process_time()
    yield
    assert time.process_time() - began < MOST_SECONDS * megabytes
    assert (_peak_kib() - memory) / 1024 < MOST_MIB * megabytes
    assert snapshot(inputs) == before, "an input was changed"


def run_command(*words: object) -> int:
    """Run the command line in this process; give its exit code."""
    arguments = sys.argv
    sys.argv = ["dna-mamba", *map(str, words)]
    try:
        main()
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        return stopped.code
    finally:
        sys.argv = arguments
    return 0


def refused_by_command(
    capfd: pytest.CaptureFixture[str], inputs: Path, outputs: Path, words: str, *command: object
) -> str:
    """Run a command that must refuse: exit 2, one line that says the words, nothing written, nothing changed."""
    before = snapshot(outputs)
    capfd.readouterr()
    with within_limits(inputs):
        code = run_command(*command)
    said = capfd.readouterr()
    # what a C library writes goes to the same place
    lines = [line for line in said.err.splitlines() if line.strip() and not line.startswith("warning: ")]
    assert code == 2, said.err
    assert len(lines) == 1 and lines[0].startswith("dna-mamba: "), said.err
    assert words in lines[0], said.err
    assert "Traceback" not in said.err
    assert snapshot(outputs) == before, "something was left behind"
    return lines[0]


def refused_by_function(inputs: Path, outputs: Path, words: str, call: Callable[[], object]) -> str:
    """Call a function that must refuse with one line that says the words."""
    before = snapshot(outputs)
    with within_limits(inputs), pytest.raises(InputError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value), str(error.value)
    assert snapshot(outputs) == before, "something was left behind"
    return str(error.value)


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Give a folder, and the rights of a user who is not root."""
    user = 65534
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if root:
            os.chown(folder, user, -1)
            os.seteuid(user)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            for path in folder.rglob("*"):
                if path.is_dir():
                    path.chmod(0o755)
