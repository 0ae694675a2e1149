# Shapes: B windows, T bases, L = T and the start and end tokens, where the policy has them
"""What a model is asked to predict, and how much each base counts."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dna_mamba.data.vocabulary import BASE_BITS, BOS, SEP, SOFT_MASK, STORE_N, A
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


def tokens_and_weights(stored_BT: Tensor, policy: TokenPolicy) -> tuple[Tensor, Tensor]:
    """Turn store bytes (uint8) into token ids (uint8) and target weights (float32), with start and end tokens added."""
    weights_BL = torch.from_numpy(policy.weights_of_store()).to(stored_BT.device)[stored_BT.int()]
    tokens_BL = (stored_BT & BASE_BITS) + A
    if policy.start_token:
        tokens_BL = torch.cat([torch.full_like(tokens_BL[:, :1], BOS), tokens_BL], dim=1)
        weights_BL = torch.cat([torch.zeros_like(weights_BL[:, :1]), weights_BL], dim=1)
    if policy.end_token:
        tokens_BL = torch.cat([tokens_BL, torch.full_like(tokens_BL[:, :1], SEP)], dim=1)
        weights_BL = torch.cat([weights_BL, torch.ones_like(weights_BL[:, :1])], dim=1)
    return tokens_BL, weights_BL


def sum_of_weights(stored_BT: np.ndarray, policy: TokenPolicy) -> float:
    """Add the weights of all targets of windows of store bytes: the first base is one only after a start token."""
    counts = np.bincount(stored_BT[:, 0 if policy.start_token else 1 :].ravel(), minlength=16)
    total = float((counts * policy.weights_of_store().astype(np.float64)).sum())
    return total + (len(stored_BT) if policy.end_token else 0)
