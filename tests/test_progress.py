"""The line that is seen while a command works."""

import io
import re

import pytest
from rich.console import Console

from dna_mamba.progress import Line, Packing, Reading, fitting


def shown(width, work, terminal=True):
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    work(console)
    return text.getvalue()


PARTS = ["step 1,234/3,200", "1.912 bits/base", "45,678 bases/s", "windows of 1,048,576", "gradient 0.42", "12.3 GiB"]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_bar_share_and_time_left_are_there_at_every_width(width):
    def work(console):
        with Line(console, "training", transient=False) as line:
            line.update(0, 3200, parts=PARTS)
            line.update(1234, 3200, parts=PARTS)

    last = [
        row
        for row in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(width, work)))
        if "training" in row
    ][-1]
    assert len(last.rstrip()) <= width and "━" in last
    assert " 39 %" in last and "left" in last and ("step 1,234/3,200" in last) == (width >= 80)
    assert ("GiB" in last) == (width == 160)  # the least useful go first


def test_parts_that_do_not_fit_are_left_out_from_the_end():
    assert fitting(["ab", "cd", "ef"], 6) == "ab  cd" and fitting(["abc"], 2) == ""


def test_off_a_terminal_a_line_a_minute_is_printed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def work(console):
        with Reading(console) as reading:
            for _ in range(600):
                now[0] += 1.0
                reading(1000, 600_000)

    lines = shown(80, work, terminal=False).splitlines()
    assert 8 <= len(lines) <= 10 and lines[0].startswith("reading: ") and "bases/s" in lines[0]


def test_packing_shows_nothing_before_it_begins_and_goes_when_it_ends():
    def work(console):
        with Packing(console) as packing, Reading(console) as reading:
            packing(10**6, 2 * 10**6)
            packing(2 * 10**6, 2 * 10**6)
            reading(5, 10)

    text = shown(80, work)
    assert "packing" in text and "0/?" not in text
    assert text.rstrip().rfind("reading") > text.rfind("packing")
    assert "packing" not in shown(80, lambda console: Packing(console).__enter__())
