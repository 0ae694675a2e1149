# Shapes: B sequences, T positions, V vocabulary
"""The loss of each base as torch computes it."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_NONE = -(2**62)
"""An index that no target has: by default torch gives targets of -100 a loss of zero."""


def cross_entropy_naive(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Give the loss of every target in float32 or better; see `cross_entropy`."""
    precision = torch.promote_types(logits_BTV.dtype, torch.float32)
    losses = F.cross_entropy(
        logits_BTV.to(precision).flatten(0, -2), targets_BT.long().flatten(), ignore_index=IGNORE_NONE, reduction="none"
    )
    return losses.unflatten(0, targets_BT.shape)
