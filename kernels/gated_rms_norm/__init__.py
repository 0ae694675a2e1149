# Shapes: ... any leading dimensions, D channels, G groups
"""Root-mean-square norm of each group of channels, after or before a gate: what stands behind the scan of Mamba-2."""

from torch import Tensor

from dna_mamba.kernels.dispatch import choose

from .naive import gated_rms_norm_naive

MAX_CHANNELS = 16384
"""Of a group in the Triton kernels, which hold it in registers."""


def gated_rms_norm(
    y: Tensor,
    z: Tensor,
    weight_D: Tensor,
    *,
    num_groups: int = 1,
    eps: float = 1e-5,
    gate_first: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """Scale every group of channels to unit root mean square, with a gate silu(z) before or after, in float32 or better.

    Args:
        y: Input (..., D), any floating dtype.
        z: Gate, the shape of y.
        weight_D: Weight of each channel.
        num_groups: Groups of neighbouring channels, each with a mean square of its own.
        eps: Added to the mean square.
        gate_first: Normalise y silu(z), as Mamba-2 does; otherwise gate what is normalised.
        implementation: 'auto', 'naive', 'cpu' (as 'naive') or 'triton' (GPU, groups of up to 16,384 channels; 'auto' takes
            'naive' beyond).

    Returns:
        The result in the dtype of y.

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    Source: Dao and Gu 2024 (arXiv 2405.21060), section 7.1; `RMSNormGated` of state-spaces/mamba.
    """
    if y.shape != z.shape or y.dim() == 0 or weight_D.shape != y.shape[-1:]:
        raise ValueError(
            f"y {tuple(y.shape)}, z {tuple(z.shape)} and weight {tuple(weight_D.shape)} must be (..., channels) twice and "
            f"(channels,)"
        )
    if num_groups < 1 or y.shape[-1] % num_groups:
        raise ValueError(f"num_groups {num_groups} must divide the {y.shape[-1]} channels")
    width = y.shape[-1] // num_groups
    unfit = "" if width <= MAX_CHANNELS else f"groups of {width} channels; at most {MAX_CHANNELS} fit"
    if choose(implementation, y, unfit) == "triton" and y.numel() > 0:
        from .fused import gated_rms_norm_triton  # here, so that a machine without Triton never imports it

        return gated_rms_norm_triton(y, z, weight_D, num_groups, eps, gate_first)
    return gated_rms_norm_naive(y, z, weight_D, num_groups, eps, gate_first)
