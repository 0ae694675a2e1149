"""When a run validates and saves, and what a validation gives."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


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
