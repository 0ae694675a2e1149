# Shapes: ... any leading dimensions, D channels
"""Root-mean-square normalisation as its equation stands, and as torch computes it on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_naive(
    x: Tensor, weight_D: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Normalise x + residual in float32 or better; see `rms_norm`."""
    total = x if residual is None else x.to(residual.dtype) + residual
    precision = torch.promote_types(total.dtype, torch.float32)
    y = F.rms_norm(total.to(precision), weight_D.shape, weight_D.to(precision), eps)
    return y.to(dtype), total
