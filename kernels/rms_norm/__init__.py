"""Root-mean-square normalisation over the channels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float = 1e-5) -> Tensor:
    """Scale each position to unit root mean square, then by a weight a channel, in float32 or better.

    Args:
        x_BTD: Input, any floating dtype.
        weight_D: Weight of each channel.
        eps: Added to the mean square.

    Returns:
        Tensor of x's shape and dtype.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4.
    """
    precision = torch.promote_types(x_BTD.dtype, torch.float32)
    return F.rms_norm(x_BTD.to(precision), weight_D.shape, weight_D.to(precision), eps).to(x_BTD.dtype)
