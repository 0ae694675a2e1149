"""AdamW as the Mamba paper uses it, and its learning rate over a run."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dna_mamba.errors import InputError

if TYPE_CHECKING:  # settings are read, and refused, without loading torch
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Settings of AdamW. Source of the defaults: Mamba (arXiv 2312.00752), appendix E.2 and E.3."""

    peak_rate: float = 8e-3
    final_rate: float = 1e-5
    warmup_share: float = 0.1
    """Part of the run in which the rate rises linearly from zero."""
    fewest_warmup_steps: int = 40
    """Short runs warm up for so many steps, but for no more than half of them: 2 / (1 - beta2), which is how long AdamW's
    second moments need to be worth dividing by. Source: Ma and Yarats 2021 (arXiv 1910.04209), section 5."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    """On matrices alone: A_log, D, biases, norms and embeddings are exempt."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient of all parameters together."""

    def __post_init__(self) -> None:
        for name in ("peak_rate", "final_rate", "gradient_clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"optimizer: {name} {value} must be a positive number")
        if not 0 <= self.fewest_warmup_steps <= 2**40:
            raise InputError(f"optimizer: fewest_warmup_steps {self.fewest_warmup_steps} must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer: betas {list(self.betas)} must lie in [0, 1)")
        if not math.isfinite(self.weight_decay):
            raise InputError(f"optimizer: weight_decay {self.weight_decay} must be a finite number")
        if not 0 <= self.warmup_share < 1 or not self.weight_decay >= 0:
            raise InputError(
                f"optimizer: warmup_share {self.warmup_share} must be in [0, 1), "
                f"weight_decay {self.weight_decay} not negative"
            )

    def build(self, model: "nn.Module") -> "torch.optim.AdamW":
        """Make the optimizer; its rate is set before every step by `rate`."""
        import torch

        from dna_mamba.model.mixers.mixer import Mixer

        decayed: list[nn.Parameter] = []
        exempt: list[nn.Parameter] = []
        mixers = [module for module in model.modules() if isinstance(module, Mixer)]
        spared = {id(getattr(mixer, name)) for mixer in mixers for name in mixer.without_decay}
        for name, parameter in model.named_parameters():
            matrix = parameter.ndim >= 2 and not name.endswith(("embedding.weight", "lm_head.weight"))
            (decayed if matrix and id(parameter) not in spared else exempt).append(parameter)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.peak_rate, betas=self.betas, fused=True)

    def warmup_steps(self, num_steps: int) -> int:
        """Count the steps in which the rate rises."""
        return max(1, round(self.warmup_share * num_steps), min(self.fewest_warmup_steps, num_steps // 2))

    def rate(self, step: int, num_steps: int) -> float:
        """Give the learning rate of a step (counted from 0): linear to the peak, then a cosine to the final rate."""
        warmup_steps = self.warmup_steps(num_steps)
        if step < warmup_steps:
            return self.peak_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
        lowest = min(self.final_rate, self.peak_rate)
        return lowest + (self.peak_rate - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
