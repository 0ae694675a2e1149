"""Errors that say whose fault it is."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is at fault. The message says what was given, what was expected and how to mend it.

    The command line prints it in one line and exits with code 2.
    """


class StoppedError(RuntimeError):
    """A run was stopped by its own checks; the command line prints why in one line and exits with code 3."""


class TerminatedError(BaseException):
    """A signal came where there is nothing to save; raised so that what is half-written is cleared away."""

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.number = number


def nearest(name: str, known: Iterable[str]) -> str:
    """Say '; did you mean X?' for the most similar known name, or nothing when none is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
