"""Runs a command, and turns errors into one line and an exit code."""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from cyclopts import CycloptsError

from dna_mamba import signals
from dna_mamba.cli.apps import app
from dna_mamba.errors import InputError, Interrupted, StoppedError, TerminatedError, printable

for wing in ("genome", "train", "read", "variants", "models", "bench"):  # in the order in which help lists them
    import_module(f"dna_mamba.cli.{wing}")

FAULTS_OF_THE_PLACE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR),
)
"""What a disk, a path or its permissions can do; other errors of the system are bugs of ours."""
OUT_OF_MEMORY = "the memory ran out"
MEMORY_ADVICE = (
    "nothing was left half-written. Free memory, or take less at once: pretrain has --piece-len, --num-workers 0 and --resume, "
    "finetune --set piece_bases=N, other commands a smaller model"
)


def _on_signal(number: int, frame: object) -> None:
    raise TerminatedError(number)


def main() -> None:
    """Run a command; turn errors into one line and an exit code: 2 the user's input, 3 our checks, 128 + N signals."""
    before = signals.take(_on_signal)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the locale cannot write is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        _run()
    except TerminatedError as error:
        name = signal.Signals(error.number).name
        _fail(f"stopped by {name}; {_how_to_go_on()}", 128 + error.number)
    finally:
        signals.give_back(before)


def _how_to_go_on() -> str:
    """Say what is left of a command that was ended: runs go on, embedding goes on by itself, all else begins again."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command in ("pretrain", "finetune"):
        return "what is saved is whole. If the run had begun, it goes on with the same --out and --resume"
    if command == "embed":
        return "what is done is kept: the same command goes on from there"
    return "nothing was left half-written; begin again with the same command"


def _negative_numbers_as_values(words: Sequence[str]) -> list[str]:
    """Join '--steps -5' into '--steps=-5', so that what is wrong with it is said by whoever reads it."""
    joined: list[str] = []
    for word in words:
        is_number = re.fullmatch(r"-\d[\d.,e+-]*", word) is not None
        if is_number and joined and re.fullmatch(r"--[a-z-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _run() -> None:
    try:
        app(
            _negative_numbers_as_values(sys.argv[1:]),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, head for instance, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CycloptsError as error:
        _fail(" ".join(str(error).split()) + " See dna-mamba --help.", 2)
    except InputError as error:
        _fail(" ".join(str(error).split()), 2)
    except Interrupted as error:
        _fail(" ".join(str(error).split()), 128 + error.number)
    except StoppedError as error:
        _fail(" ".join(str(error).split()), 3)
    except MemoryError as error:
        _fail(f"{OUT_OF_MEMORY} ({' '.join(str(error).split()) or 'nothing left'}); {MEMORY_ADVICE}", 3)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            _fail(f"{OUT_OF_MEMORY}; {MEMORY_ADVICE}", 3)
        if error.errno not in FAULTS_OF_THE_PLACE:
            raise
        _fail(_fault_of_the_place(error), 2)
    except Exception as error:
        short = ("DefaultCPUAllocator", "can't start new thread")
        if any(words in str(error) for words in short) or type(error).__name__ == "OutOfMemoryError":
            _fail(f"{OUT_OF_MEMORY} ({str(error).strip().splitlines()[0][:200]}); {MEMORY_ADVICE}", 3)
        raise


def _fault_of_the_place(error: OSError) -> str:
    where = f" while writing or reading {error.filename}" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else str(error.strerror)
    mend = "free space" if full else "mend the place (does it exist, may it be written?)"
    resume = "; a run that had begun goes on with --resume" if sys.argv[1:2] in (["pretrain"], ["finetune"]) else ""
    return f"{what}{where}; {mend} and try again{resume}"


def _fail(words: str, code: int) -> None:
    if os.environ.get("DNA_MAMBA_DEBUG") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"dna-mamba: {printable(words)}", file=sys.stderr)
    raise SystemExit(code)
