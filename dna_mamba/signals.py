"""Signals that ask a command to stop: taken over while there is something to save or to clear away."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

Handler: TypeAlias = "Callable[[int, FrameType | None], object] | int | signal.Handlers | None"
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, the end of a job, a closed terminal, and the warning of batch systems (sbatch --signal=USR1@120)."""


def take(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> dict[int, Handler]:
    """Let a handler have the signals; give what had them before. SIGHUP stays ignored where it is, as under nohup.

    Outside the main thread, where Python hands out no signals, nothing is taken.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
    # None is a handler that Python did not install and could not give back
    taken = [n for n, old in before.items() if old is not None and not (n == signal.SIGHUP and old is signal.SIG_IGN)]
    return {number: signal.signal(number, handler) for number in taken}


def give_back(before: dict[int, Handler]) -> None:
    """Undo `take`."""
    for number, handler in before.items():
        signal.signal(number, handler)
