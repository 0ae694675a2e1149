# Shapes: ... any leading dimensions, D channels, G groups
"""The gated norm of Mamba-2 as its equation stands."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_rms_norm_naive(
    y: Tensor, z: Tensor, weight_D: Tensor, num_groups: int, eps: float, gate_first: bool
) -> Tensor:
    """Gate and normalise in float32 or better; see `gated_rms_norm`."""
    precision = torch.promote_types(y.dtype, torch.float32)
    gate, value = F.silu(z.to(precision)), y.to(precision)
    groups = (value * gate if gate_first else value).unflatten(-1, (num_groups, -1))
    unit = F.rms_norm(groups, groups.shape[-1:], None, eps).flatten(-2) * weight_D.to(precision)
    return (unit if gate_first else unit * gate).to(y.dtype)
