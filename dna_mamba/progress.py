"""What a person sees while a command works: a line that fits its terminal, and off a terminal a line a minute."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

Progress = Callable[[int, int], None]
"""Called with what has been done so far and all that is to be done, in bytes of a file or in bases, as its function says."""

LINE_EVERY_SECONDS = 60.0
"""Off a terminal."""
BAR = 14


def fitting(parts: Sequence[str], width: int) -> str:
    """Join the parts that fit into so many columns; the last, the least useful, go first."""
    kept: list[str] = []
    for part in parts:
        if len("  ".join([*kept, part])) > width:
            break
        kept.append(part)
    return "  ".join(kept)


def duration(seconds: float) -> str:
    """Write a time as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Line:
    """A bar with share, time left and words, as wide as the terminal; off a terminal a line of text a minute at most.

    Args:
        console: Of rich.
        what: What is being done, in a word or two.
        transient: Take the bar away at the end.
    """

    def __init__(self, console: "Console", what: str, *, transient: bool = True):
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.console, self.what = console, what
        self.progress = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=BAR), TextColumn("{task.fields[words]}"),
            console=console, transient=transient, disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._started = self._printed = 0.0
        self._before = self._last = 0.0

    def __enter__(self) -> "Line":
        """Show nothing yet: the line appears when there is something to say."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the line as it stands, or take it away."""
        self.stop()

    def update(self, done: float, total: float, *, parts: Sequence[str] = (), what: str | None = None) -> None:
        """Say how much is done of all.

        Args:
            done: So much.
            total: Of so much.
            parts: Words, the most useful first; those that do not fit are left out.
            what: Instead of what was said before.
        """
        what = what or self.what
        now = time.monotonic()
        if self._task is not None and done < self._last:  # another count begins
            self.progress.remove_task(self._task)
            self._task = None
        self._last = done
        if self._task is None:
            self._started, self._before, self._printed = now, done, now
            self._task = self.progress.add_task(what, total=total, words="")
            self.progress.start()
        share = done / total if total else 1.0
        passed = done - self._before
        left = (total - done) * (now - self._started) / passed if passed > 0 else float("nan")
        head = [f"{100 * share:3.0f} %", *([duration(left) + " left"] if left == left else [])]
        if self.console.is_terminal:
            room = self.console.width - len(what) - BAR - 3
            self.progress.update(
                self._task, completed=done, total=total, description=what, words=fitting([*head, *parts], room)
            )
        elif now - self._printed > LINE_EVERY_SECONDS:
            self._printed = now
            self.console.print(f"{what}: {'  '.join([*head, *parts])}", highlight=False)

    def stop(self) -> None:
        """End it."""
        self.progress.stop()


class Packing(Line):
    """Bytes of files that are packed; called with bytes done and of all."""

    def __init__(self, console: "Console"):
        super().__init__(console, "packing")

    def __call__(self, done: int, total: int) -> None:
        """Take what was read so far."""
        self.update(done, total, parts=[f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"])
        if done >= total:
            self.stop()
            self._task = None


class Reading(Line):
    """Bases that a model reads; called with bases read just now and bases to read in all."""

    def __init__(self, console: "Console", what: str = "reading"):
        super().__init__(console, what)
        self.done = 0
        self.since = time.monotonic()

    def __call__(self, bases: int, total: int) -> None:
        """Take what was read just now."""
        if not self.done:
            self.since = time.monotonic()
        self.done += bases
        rate = self.done / max(time.monotonic() - self.since, 1e-9)
        self.update(self.done, total, parts=[f"{rate:,.0f} bases/s", f"{self.done:,} of {total:,} bases"])
