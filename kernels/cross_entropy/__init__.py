# Shapes: B sequences, T positions, V vocabulary
"""The loss of each base under the logits of its predecessor."""

import torch
from torch import Tensor

from dna_mamba.kernels.dispatch import choose

from .naive import cross_entropy_naive

MAX_VOCABULARY = 4096
"""Of the Triton kernel, which holds whole rows in registers."""


def cross_entropy(
    logits_BTV: Tensor, targets_BT: Tensor, weights_BT: Tensor | None = None, *, implementation: str = "auto"
) -> Tensor:
    """Give the negative log-likelihood of every target, in nats, times its weight.

    Args:
        logits_BTV: Scores of every token, any floating dtype; the softmax runs in float32 or better.
        targets_BT: Token ids below V, any integer dtype. Others raise an IndexError in `naive`, and have NaN as their loss
            and gradient in `triton`.
        weights_BT: Weight of each target, not negative; a target of weight 0 adds exactly 0, even where its loss is
            infinite. None is 1 everywhere.
        implementation: 'auto', 'naive', 'cpu' (as 'naive') or 'triton' (GPU, no second copy of the logits; up to 4,096
            tokens, 'auto' takes 'naive' beyond).

    Returns:
        losses_BT, float32 (float64 for float64 logits); the loss of a batch is their sum.

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    """
    if logits_BTV.shape[:-1] != targets_BT.shape or (weights_BT is not None and weights_BT.shape != targets_BT.shape):
        given = [tuple(x.shape) for x in (logits_BTV, targets_BT, weights_BT) if x is not None]
        raise ValueError(f"logits, targets and weights are {given}; they must be (..., vocabulary), (...) and (...)")
    vocabulary = logits_BTV.shape[-1]
    unfit = "" if vocabulary <= MAX_VOCABULARY else f"{vocabulary} tokens; at most {MAX_VOCABULARY} fit"
    name = choose(implementation, logits_BTV, unfit)
    if name == "triton" and targets_BT.numel() > 0:
        from .fused import cross_entropy_triton  # here, so that a machine without Triton never imports it

        if weights_BT is None or not weights_BT.requires_grad:
            return cross_entropy_triton(logits_BTV, targets_BT, weights_BT)
        losses_BT = cross_entropy_triton(logits_BTV, targets_BT, None)
    else:
        losses_BT = cross_entropy_naive(logits_BTV, targets_BT)
    if weights_BT is None:
        return losses_BT
    return torch.where(weights_BT > 0, losses_BT * weights_BT, 0.0)
