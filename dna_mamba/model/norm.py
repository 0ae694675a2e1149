# Shapes: D model width
"""The norm before every layer, fused with the sum of the residual stream."""

import torch
from torch import Tensor, nn

from dna_mamba.kernels.rms_norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight a channel. Source: Zhang and Sennrich 2019, equation 4."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.implementation = "auto"

    def forward(self, y: Tensor, residual: Tensor | None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Add y to the residual stream, which stays in float32, and normalise the sum.

        Args:
            y: What the layer before adds (..., D).
            residual: The stream before it; none at the first layer, where y is the stream.
            dtype: Of the norm; that of the stream by default.

        Returns:
            The norm and the stream.
        """
        if residual is None:
            return rms_norm(y, self.weight, self.eps, dtype=dtype, implementation=self.implementation), y
        dtype = dtype or residual.dtype
        return add_rms_norm(y, residual, self.weight, self.eps, dtype=dtype, implementation=self.implementation)
