"""The tables that a run writes while it trains: metrics.csv, speed.csv and unusual.csv."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dna_mamba.training.step import StepMetrics

SPEED_COLUMNS = ("step", "bases_per_second", "peak_memory_gib")
"""Of speed.csv, which holds what no seed repeats."""
UNUSUAL_COLUMNS = ("step", "kind", "train_loss", "gradient_norm", "usual_loss", "usual_deviation", "windows")
"""Of unusual.csv: steps that were left out (not finite) and steps whose loss leapt (spike), with all their windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Of metrics.csv, and how each is written; those of the validation, empty but after one, are the last."""

    cells: Mapping[str, "Callable[[StepMetrics], object]"]
    loss: str
    """The column of the loss."""
    validation: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Name them all."""
        return (*self.cells, *self.validation)

    def row(self, metrics: "StepMetrics", validation: Mapping[str, str]) -> list[object]:
        """Give the cells of a step."""
        return [*(cell(metrics) for cell in self.cells.values()), *(validation.get(n, "") for n in self.validation)]


PRETRAINING = Columns(
    cells={
        "step": lambda step: step.step,
        "window_bases": lambda step: step.window_bases,
        "train_loss": lambda step: f"{step.loss:.17g}",
        "train_bits_per_base": lambda step: f"{step.loss / math.log(2):.6f}",
        "gradient_norm": lambda step: f"{step.gradient_norm:.9g}",
        "learning_rate": lambda step: f"{step.learning_rate:.9g}",
        "bases": lambda step: step.bases,
        "skipped": lambda step: int(step.skipped),
    },
    loss="train_loss",
    validation=("valid_bits_per_base",),
)


def finetuning(steps_per_epoch: int, counted: Sequence[str], validation: Sequence[str]) -> Columns:
    """Give the columns of a fine-tuning run; files of earlier versions lack the last ones, `skipped` and on.

    Args:
        steps_per_epoch: Optimizer steps of an epoch, which are numbered from 0.
        counted: What the model counts; see `Trainable.counted`.
        validation: What a validation gives.
    """

    def count(number: int) -> "Callable[[StepMetrics], object]":
        return lambda step: step.counts[number]

    return Columns(
        cells={
            "step": lambda step: step.step,
            "epoch": lambda step: (step.step - 1) // steps_per_epoch,
            "window_bases": lambda step: step.window_bases,
            "loss": lambda step: step.loss,
            **{name: count(number) for number, name in enumerate(counted)},
            "gradient_norm": lambda step: step.gradient_norm,
            "learning_rate": lambda step: step.learning_rate,
            "bases": lambda step: step.bases,
            "skipped": lambda step: int(step.skipped),
        },
        loss="loss",
        validation=tuple(validation),
    )


def cut_metrics(path: Path, last_step: int, columns: Sequence[str]) -> int:
    """Drop the rows after a step, as a resumed run will write them again; a half-written last line goes too.

    Rows of an earlier version, which lack columns, stand under today's, empty where they have none.

    Returns:
        How many other rows were no rows of such a file, and are gone.
    """
    if not path.exists():
        return 0
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if line.endswith("\n")]
    if not lines or not lines[0].startswith("step,"):
        path.unlink()  # killed before the header was written
        return 0
    names = lines[0].strip().split(",")
    rows = [line for line in lines[1:] if _is_row(line, len(names))]
    kept = [line for line in rows if int(line.split(",", 1)[0]) <= last_step]
    if names != list(columns):
        table = csv.DictReader(lines[:1] + kept)
        kept = [",".join(row.get(name) or "" for name in columns) + "\r\n" for row in table]
        lines[0] = ",".join(columns) + "\r\n"
    unfinished = path.with_name(f".{path.name}.writing")
    unfinished.write_text("".join(lines[:1] + kept), newline="", encoding="utf-8")
    unfinished.replace(path)
    return len(lines) - 1 - len(rows)


def _is_row(line: str, num_columns: int) -> bool:
    return (
        line.split(",", 1)[0].isdecimal() and line.isascii() and '"' not in line and line.count(",") == num_columns - 1
    )


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows of metrics.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
