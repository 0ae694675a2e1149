"""The tables that a run writes while it trains: metrics.csv, speed.csv and unusual.csv."""

import csv
from pathlib import Path

COLUMNS = (
    "step",
    "window_bases",
    "train_loss",
    "train_bits_per_base",
    "gradient_norm",
    "learning_rate",
    "bases",
    "skipped",
    "valid_bits_per_base",
)
SPEED_COLUMNS = ("step", "bases_per_second", "peak_memory_gib")
"""Of speed.csv, which holds what no seed repeats."""
UNUSUAL_COLUMNS = ("step", "kind", "train_loss", "gradient_norm", "usual_loss", "usual_deviation", "windows")
"""Of unusual.csv: steps that were left out (not finite) and steps whose loss leapt (spike), with all their windows."""


def cut_metrics(path: Path, last_step: int) -> None:
    """Drop the rows after a step, as a resumed run will write them again; a half-written last line goes too."""
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if line.endswith("\n")]
    if not lines or not lines[0].startswith("step,"):
        path.unlink()  # killed before the header was written
        return
    rows = [line for line in lines[1:] if line.split(",", 1)[0].isdecimal() and line.isascii()]
    kept = [line for line in rows if int(line.split(",", 1)[0]) <= last_step]
    unfinished = path.with_name(f".{path.name}.writing")
    unfinished.write_text("".join(lines[:1] + kept), newline="", encoding="utf-8")
    unfinished.replace(path)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows of metrics.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
