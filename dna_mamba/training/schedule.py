"""When a run validates and saves, and what a validation gives."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dna_mamba.training.step import StepMetrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """When a run validates and saves; it does both after its last step too."""

    validate_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    """So many of the newest."""
    keep_best: bool = True
    """Keep the checkpoint of the best step beside them."""
    save_after_validation: bool = False
    """Save after each validation, and not only after one that was the best."""

    def validates(self, step: int, num_steps: int) -> bool:
        """Say whether there is a validation after a step."""
        return step == num_steps or step % self.validate_every_steps == 0

    def saves(self, step: int, num_steps: int) -> bool:
        """Say whether there is a checkpoint after a step, whatever its validation gave."""
        return (
            step == num_steps
            or step % self.checkpoint_every_steps == 0
            or (self.save_after_validation and self.validates(step, num_steps))
        )


@dataclass(slots=True)
class Recent:
    """Sums over the steps since the last validation that this process did; a step's windows are not held."""

    steps: int = 0
    bases: int = 0
    loss: float = 0.0
    counts: tuple[float, ...] = ()
    last_step: int = 0
    window_bases: int = 0
    """Of the last step."""

    def add(self, step: "StepMetrics") -> None:
        """Take in a step."""
        self.steps, self.bases, self.loss = self.steps + 1, self.bases + step.bases, self.loss + step.loss
        self.counts = tuple(a + b for a, b in zip(self.counts or (0.0,) * len(step.counts), step.counts, strict=True))
        self.last_step, self.window_bases = step.step, step.window_bases

    def mean(self, total: float) -> float:
        """Give one of the sums a step."""
        return total / max(1, self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What a validation gives."""

    better: tuple[float, ...]
    """Larger is better, the first number before the second; compared with those of other steps."""
    shown: str
    """The numbers in words."""
    cells: Mapping[str, str] = field(default_factory=dict)
    """For the last columns of metrics.csv."""
    logged: Mapping[str, float] = field(default_factory=dict)
    """For TensorBoard."""
    counts: bool = True
    """Whether it is compared: windows of a warm-up length are another task."""

    @property
    def finite(self) -> bool:
        """Whether all of it are numbers."""
        return all(math.isfinite(number) for number in self.better)
