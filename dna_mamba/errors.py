"""Errors that say whose fault it is."""

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path

LONGEST_MESSAGE = 2000


def printable(words: str) -> str:
    """Escape what is not printable, and cut out the middle of a message of more than 2,000 characters."""
    if len(words) > LONGEST_MESSAGE:
        words = f"{words[: LONGEST_MESSAGE // 2]} ... {words[-LONGEST_MESSAGE // 2 :]}"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in words)


class InputError(ValueError):
    """The user's input is at fault. The message says what was given, what was expected and how to mend it.

    The command line prints it in one line and exits with code 2. What the input itself brought into the message is cut
    where it is long, and characters that a terminal would obey are escaped.
    """

    def __init__(self, words: str):
        super().__init__(printable(words))


class StoppedError(RuntimeError):
    """A run was stopped by its own checks; the command line prints why in one line and exits with code 3."""


class TerminatedError(BaseException):
    """A signal came where there is nothing to save; raised so that what is half-written is cleared away."""

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.number = number


class Interrupted(Exception):
    """A signal stopped a run after it was saved; the command line prints how to go on and exits with 128 + the signal."""

    def __init__(self, number: int, out: Path, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; go on with --out {out} --resume")
        self.number = number


def nearest(name: str, known: Iterable[str]) -> str:
    """Say '; did you mean X?' for the most similar known name, or nothing when none is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check_regular(path: Path, expected: str) -> None:
    """Raise an InputError if a path is there but is no file: a pipe would be waited for for ever."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; expected {expected}")
