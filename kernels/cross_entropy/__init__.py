# Shapes: B sequences, T positions, V vocabulary
"""The loss of each base under the logits of its predecessor."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Give the negative log-likelihood of every target, in nats.

    Args:
        logits_BTV: Scores of every token, any floating dtype; the softmax runs in float32 or better.
        targets_BT: Token ids, any integer dtype.

    Returns:
        losses_BT, float32 (float64 for float64 logits).
    """
    precision = torch.promote_types(logits_BTV.dtype, torch.float32)
    losses = F.cross_entropy(logits_BTV.to(precision).flatten(0, 1), targets_BT.long().flatten(), reduction="none")
    return losses.unflatten(0, targets_BT.shape)
