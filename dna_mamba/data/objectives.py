# Shapes: B windows, T bases, L = T and the start and end tokens, where the policy has them
"""What a model is asked to predict, and how much each base counts."""

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import BOS, SEP, A
from dna_mamba.data.policy import TokenPolicy
from dna_mamba.data.vocabulary import BASE_BITS


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
