# Shapes: ... any leading dimensions, D channels
"""Root-mean-square normalisation over the channels, fused with the residual sum before it."""

import torch
from torch import Tensor

from dna_mamba.kernels.dispatch import choose

from .naive import rms_norm_naive

MAX_CHANNELS = 16384
"""Of the Triton kernel, which holds whole rows in registers."""


def rms_norm(
    x: Tensor,
    weight_D: Tensor,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scale each position to unit root mean square, then by a weight a channel, in float32 or better.

    Args:
        x: Input (..., D), any floating dtype.
        weight_D: Weight of each channel.
        eps: Added to the mean square.
        residual: Added to x before; same shape, usually float32, which the sum keeps.
        dtype: Of the result; x's by default.
        implementation: 'auto', 'naive', 'cpu' (torch's own kernel, as 'naive') or 'triton' (GPU, up to 16,384 channels;
            'auto' takes 'naive' beyond).

    Returns:
        The normalised tensor; with `residual` also the sum, in the dtype of the residual.

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4.
    """
    if weight_D.dim() != 1 or x.dim() == 0 or x.shape[-1] != weight_D.shape[0]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight_D.shape)} must be (..., channels) and (channels,)"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual is {tuple(residual.shape)}; it must have the shape of x, {tuple(x.shape)}")
    if residual is not None and residual.dtype not in (x.dtype, torch.float32, torch.float64):
        raise ValueError(f"residual is {residual.dtype}; it must be float32 or have the dtype of x, {x.dtype}")
    dtype = dtype or x.dtype
    unfit = "" if weight_D.shape[0] <= MAX_CHANNELS else f"{weight_D.shape[0]} channels; at most {MAX_CHANNELS} fit"
    if residual is not None and residual.dtype == torch.float64:
        unfit = "a float64 residual"
    name = choose(implementation, x, unfit)
    if name == "triton" and x.numel() > 0:
        from .fused import rms_norm_triton  # here, so that a machine without Triton never imports it

        y, total = rms_norm_triton(x, weight_D, eps, residual, dtype)
    else:
        y, total = rms_norm_naive(x, weight_D, eps, residual, dtype)
    return y if residual is None else (y, total)
