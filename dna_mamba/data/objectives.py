# Shapes: B windows, T bases, L = T and the start and end tokens, where the policy has them
"""What a model is asked to say of a window, and how much each answer counts: a class an objective.

The one place that knows which output belongs to which target: an objective hands out inputs and targets that lie side by side.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import BOS, SEP, A
from dna_mamba.data.policy import TokenPolicy
from dna_mamba.data.vocabulary import BASE_BITS


class Examples(NamedTuple):
    """Inputs and what is to be said of them."""

    inputs_BT: Tensor
    """Token ids, uint8."""
    targets: Tensor
    """(B, T), of the output at the same position; or (B, ...), of the whole sequence."""
    weights: Tensor | None
    """Of each target, not negative; none is 1."""


class Objective(ABC):
    """Turns store bytes into examples."""

    looks_ahead: ClassVar[bool]
    """Whether inputs may show what a position's target is to layers that read ahead; then only causal models learn."""
    name: ClassVar[str]
    """What training asks for, in words."""

    @abstractmethod
    def examples(self, stored_BT: Tensor, targets: Tensor | None) -> Examples:
        """Make examples on the device of the windows.

        Args:
            stored_BT: Store bytes, uint8.
            targets: What the data say of each window; none where the bases say it themselves.
        """

    def words(self, loss: float) -> str:
        """Say what a mean loss is, as a progress bar shows it."""
        return f"loss {loss:.3f}"


class NextBase(Objective):
    """Predict each base from those before it; see `TokenPolicy` for N, soft-masked bases, and the ends of a window."""

    looks_ahead = True
    name = "the next base"

    def __init__(self, policy: TokenPolicy):
        self.policy = policy

    def examples(self, stored_BT: Tensor, targets: Tensor | None = None) -> Examples:
        """Ask position t for base t + 1; the last position is no input."""
        return next_base(*tokens_and_weights(stored_BT, self.policy))

    def words(self, loss: float) -> str:
        """Give bits per base."""
        return f"{loss / math.log(2):.3f} bits/base"


class Labels(Objective):
    """Say of a window what its label says: a class, a number, or one for each base."""

    looks_ahead = False
    name = "labels of windows"

    def examples(self, stored_BT: Tensor, targets: Tensor | None) -> Examples:
        """Give the bases as tokens, and the labels as they are."""
        assert targets is not None
        return Examples((stored_BT & BASE_BITS) + A, targets, None)


def next_base(tokens_BL: Tensor, weights_BL: Tensor | None = None) -> Examples:
    """Set each token beside the one that follows it; views, so that nothing is copied.

    Args:
        tokens_BL: Token ids.
        weights_BL: Weight of each token as a target; that of the first is not asked for.
    """
    return Examples(tokens_BL[:, :-1], tokens_BL[:, 1:], None if weights_BL is None else weights_BL[:, 1:])


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
