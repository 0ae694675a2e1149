"""Where a run stands; part of every checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dna_mamba.errors import InputError
from dna_mamba.values import Json


@dataclass(kw_only=True)
class Counters:
    """Where a run stands; part of every checkpoint."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    bases_seen: list[list[int]] = field(default_factory=list)
    """By stage and contig."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: tuple[float, ...] | None = None
    """What the best validation gave, larger is better, the first number before the second; none before there was one."""
    best_step: int | None = None


def read_counters(values: Mapping[str, Any], shape: tuple[int, int], num_steps: int, where: str) -> Counters:
    """Read the counters of a checkpoint; hashes say that nothing changed, not that it was ours.

    Args:
        values: Of counters.json. Checkpoints of earlier versions are read too: those of pretraining had `best_valid_bits` in
            the place of `best`, and those of fine-tuning neither `bases_seen` nor `skipped` nor `best_step`.
        shape: Stages and contigs.
        num_steps: Of the whole run.
        where: The checkpoints' folder, for the message.
    """
    values = _of_today(values, shape)
    names = ("step", "skipped", "skipped_in_a_row")
    right = (
        set(values) == set(Counters.__dataclass_fields__)
        and all(_is_count(values[name], num_steps) for name in names)
        and (values["best_step"] is None or _is_count(values["best_step"], num_steps))
        and _is_table(values["bases_seen"], shape)
        and _is_best(values["best"])
    )
    if not right:
        raise InputError(f"{where}: counters.json holds something else than where a run of {num_steps:,} steps stands")
    best = values.pop("best")
    return Counters(**values, best=None if best is None else tuple(best))


def _of_today(values: Mapping[str, Any], shape: tuple[int, int]) -> Json:
    """Give counters of earlier versions the names of today."""
    values = dict(values)
    if "best_valid_bits" in values:
        bits = values.pop("best_valid_bits")
        found_none = bits is None or bits == math.inf  # JSON has no infinity
        values["best"] = None if found_none else [-bits if isinstance(bits, float) else bits]
    elif set(values) <= {"step", "best", "skipped_in_a_row"}:
        unknown: Json = {"bases_seen": [[0] * shape[1] for _ in range(shape[0])], "skipped": 0}
        unknown["best_step"] = None if values.get("best") is None else values.get("step")
        values = {"best": None, "skipped_in_a_row": 0, **unknown, **values}
    return values


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_table(value: object, shape: tuple[int, int]) -> bool:
    return (
        isinstance(value, list)
        and len(value) == shape[0]
        and all(isinstance(row, list) and len(row) == shape[1] and all(type(n) is int for n in row) for row in value)
    )


def _is_best(value: object) -> bool:
    return value is None or (isinstance(value, list) and bool(value) and all(type(x) is float for x in value))
