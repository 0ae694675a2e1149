"""What is asked of a reading; loads no torch."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dna_mamba.errors import InputError, nearest
from dna_mamba.values import real, whole

if TYPE_CHECKING:
    from dna_mamba.model.backbone import DnaMamba

POOLS = ("mean", "last", "max", "none", "window:N")
STRANDS = ("forward", "both")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """Which vectors."""

    layer: int = -1
    """0 is the embedding, 1 the first layer, and so on; -1 the last, after the final norm, -2 the one before it."""
    pool: str = "mean"
    """mean, last or max over a sequence; window:N the mean of every N bases; none a vector a base."""
    strands: str = "forward"
    """both averages with the reverse complement, read from its own start; positions stay those of the forward strand."""

    def __post_init__(self) -> None:
        layer = whole(self.layer)
        if not isinstance(self.pool, str) or layer is None:
            raise InputError(f"pool {self.pool!r} and layer {self.layer!r}: expected a word and a whole number")
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "pool", str(self.pool))
        if self.pool not in POOLS[:4] and not re.fullmatch(r"window:[1-9][0-9]{0,11}", self.pool):
            raise InputError(f"pool {self.pool!r} is unknown{nearest(self.pool, POOLS)}; choose {', '.join(POOLS)}")
        if self.strands not in STRANDS:
            raise InputError(f"strands {self.strands!r} is unknown; choose forward or both")

    @property
    def window(self) -> int | None:
        """Bases of a window, 1 for a vector a base; none pools whole sequences."""
        return 1 if self.pool == "none" else int(self.pool[7:]) if self.pool.startswith("window:") else None

    def layer_of(self, model: "DnaMamba") -> int:
        """Count the layer from the embedding."""
        depth = len(model.config.pattern)
        layer = self.layer if self.layer >= 0 else depth + 1 + self.layer
        if not 0 <= layer <= depth:
            raise InputError(
                f"layer {self.layer} is not in this model: 0 is the embedding, {depth} (or -1) the last layer"
            )
        return layer


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next base is drawn from the scores of A, C, G and T; nothing else is ever drawn."""

    temperature: float = 1.0
    """Scores are divided by it; 0 takes the likeliest base."""
    top_k: int = 4
    """Draw from so many likeliest bases."""
    top_p: float = 1.0
    """Draw from the fewest likeliest bases that together have this probability (Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        temperature, top_p, top_k = real(self.temperature), real(self.top_p), whole(self.top_k)
        if temperature is None or top_p is None or top_k is None:
            raise InputError(
                f"temperature {self.temperature!r}, top_p {self.top_p!r}: expected numbers; top_k a whole one"
            )
        for name, value in (("temperature", temperature), ("top_p", top_p), ("top_k", top_k)):
            object.__setattr__(self, name, value)  # NumPy's numbers as Python's
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature {self.temperature} must be a number from 0 up")
        if not 1 <= self.top_k <= 4:
            raise InputError(f"top_k {self.top_k} must be 1 to 4: there are four bases")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} must be above 0 and at most 1")
