"""Where a run stands; part of every checkpoint."""

import math
from dataclasses import dataclass, field
from typing import Any

from dna_mamba.errors import InputError


@dataclass(kw_only=True)
class Counters:
    """Where a run stands; part of every checkpoint."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    bases_seen: list[list[int]] = field(default_factory=list)
    """By stage and contig."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_valid_bits: float = math.inf
    best_step: int | None = None


def read_counters(values: dict[str, Any], shape: tuple[int, int], num_steps: int, where: str) -> Counters:
    """Read the counters of a checkpoint; hashes say that nothing changed, not that it was ours."""
    if "best_valid_bits" in values and values["best_valid_bits"] is None:  # JSON has no infinity
        values = {**values, "best_valid_bits": math.inf}
    seen, best = values.get("bases_seen"), values.get("best_step")
    table = (
        isinstance(seen, list)
        and len(seen) == shape[0]
        and all(isinstance(row, list) and len(row) == shape[1] and all(type(n) is int for n in row) for row in seen)
    )
    numbers = [
        values.get(name) for name in ("step", "skipped", "skipped_in_a_row", *([] if best is None else ["best_step"]))
    ]
    right = table and all(type(n) is int and 0 <= n <= num_steps for n in numbers)
    if (
        not right
        or type(values.get("best_valid_bits")) is not float
        or set(values) != set(Counters.__dataclass_fields__)
    ):
        raise InputError(f"{where}: counters.json holds something else than where a run of {num_steps:,} steps stands")
    return Counters(**values)
