"""What happens to N, soft-masked bases, strands, and the ends of a window; loads no torch."""

from dataclasses import dataclass

import numpy as np

from dna_mamba.data.vocabulary import BASE_BITS, SOFT_MASK, STORE_N
from dna_mamba.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPolicy:
    """What happens to N, soft-masked bases, strands, and the ends of a window. Stored in every model and run."""

    n_weight: float = 0.0
    """Weight of an N as a target; as a context it is always seen as N."""
    soft_mask_weight: float = 1.0
    """Weight of a lower-case base as a target; Evo 2 uses 0.1."""
    reverse_complement: float = 0.5
    """Share of the training windows read from the other strand."""
    start_token: bool = False
    """Put BOS before each window, so that its first base becomes a target too."""
    end_token: bool = False
    """Put SEP after each window, as a target; windows of a contig are not sentences, hence off."""

    def __post_init__(self) -> None:
        for name in ("n_weight", "soft_mask_weight", "reverse_complement"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"policy: {name} {getattr(self, name)} must lie between 0 and 1")

    def weights_of_store(self) -> np.ndarray:
        """Weight of each of the 16 store bytes as a target (float32)."""
        stored = np.arange(16)
        weights = np.where(stored & SOFT_MASK, self.soft_mask_weight, 1.0)
        return np.where((stored & BASE_BITS) == STORE_N, self.n_weight * weights, weights).astype(np.float32)
