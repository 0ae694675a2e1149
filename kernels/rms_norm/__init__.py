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
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Scale each position to unit root mean square, then by a weight a channel, in float32 or better.

    Args:
        x: Input (..., D), any floating dtype.
        weight_D: Weight of each channel.
        eps: Added to the mean square.
        dtype: Of the result; x's by default.
        implementation: 'auto', 'naive', 'cpu' (torch's own kernel, as 'naive') or 'triton' (GPU, up to 16,384 channels;
            'auto' takes 'naive' beyond).

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4.
    """
    return _run(x, weight_D, eps, None, dtype, implementation)[0]


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight_D: Tensor,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add the residual stream, then normalise as `rms_norm` does, in one pass over memory.

    Args:
        x: Input (..., D), any floating dtype.
        residual: Added to x before; same shape, usually float32, which the sum keeps.
        weight_D: Weight of each channel.
        eps: Added to the mean square.
        dtype: Of the result; x's by default.
        implementation: As of `rms_norm`.

    Returns:
        The normalised tensor, and the sum in the dtype of the residual.

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    """
    if residual.shape != x.shape:
        raise ValueError(f"residual is {tuple(residual.shape)}; it must have the shape of x, {tuple(x.shape)}")
    if residual.dtype not in (x.dtype, torch.float32, torch.float64):
        raise ValueError(f"residual is {residual.dtype}; it must be float32 or have the dtype of x, {x.dtype}")
    return _run(x, weight_D, eps, residual, dtype, implementation)


def _run(
    x: Tensor, weight_D: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype | None, implementation: str
) -> tuple[Tensor, Tensor]:
    if weight_D.dim() != 1 or x.dim() == 0 or x.shape[-1] != weight_D.shape[0]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight_D.shape)} must be (..., channels) and (channels,)"
        )
    dtype = dtype or x.dtype
    unfit = "" if weight_D.shape[0] <= MAX_CHANNELS else f"{weight_D.shape[0]} channels; at most {MAX_CHANNELS} fit"
    if residual is not None and residual.dtype == torch.float64:
        unfit = "a float64 residual"
    if choose(implementation, x, unfit) == "triton" and x.numel() > 0:
        from .fused import rms_norm_triton  # here, so that a machine without Triton never imports it

        return rms_norm_triton(x, weight_D, eps, residual, dtype)
    return rms_norm_naive(x, weight_D, eps, residual, dtype)
