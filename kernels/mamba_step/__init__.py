# Shapes: B sequences, D model width, E inner width, F = 2 E, N states, K taps, R rank of delta, P = R + 2 N
"""One position through a whole Mamba block: norm, projections, convolution, scan and residual sum."""

import torch
from torch import Tensor

from dna_mamba.kernels.causal_conv1d import MAX_TAPS
from dna_mamba.kernels.dispatch import choose
from dna_mamba.kernels.shapes import check_shapes

from .naive import mamba_step_naive

MAX_WIDTH = 256
"""Of the Triton kernels, which hold a whole vector; wider models spend their time in products that libraries do better."""
MAX_STATES = 64


def mamba_step(
    residual_BD: Tensor,
    norm_weight_D: Tensor,
    in_proj_FD: Tensor,
    conv_weight_EK: Tensor,
    conv_bias_E: Tensor,
    x_proj_PE: Tensor,
    dt_proj_ER: Tensor,
    dt_bias_E: Tensor,
    A_log_EN: Tensor,
    D_E: Tensor,
    out_proj_DE: Tensor,
    *,
    conv_state_BKE: Tensor,
    scan_state_BEN: Tensor,
    eps: float = 1e-5,
    implementation: str = "auto",
) -> None:
    """Add what a Mamba block makes of one position to the residual stream; stream and states are changed in place.

    On a GPU three kernels instead of nine or more launches, which is what a step of a small model consists of. Products
    are in float32 (from 16 sequences on as three TF32 products each, which lose nothing that float32 holds). Without
    gradients.

    Args:
        residual_BD: The stream before the block, float32 (`naive`: float64 too), contiguous; the sum is written to it.
        norm_weight_D: Of the norm.
        in_proj_FD: To convolution and gate.
        conv_weight_EK: Taps of each channel, the present position last.
        conv_bias_E: Added before silu.
        x_proj_PE: From channels to step size, B and C.
        dt_proj_ER: From the step size of rank R to channels.
        dt_bias_E: Added to the step size before softplus.
        A_log_EN: Logarithms of the negative decay rates.
        D_E: Skip weights.
        out_proj_DE: Back to the stream.
        conv_state_BKE: The K - 1 inputs of the convolution before this position, in the dtype of the stream.
        scan_state_BEN: State of the scan, likewise.
        eps: Of the norm.
        implementation: 'auto', 'naive', 'cpu' (as 'naive') or 'triton' (GPU, float32, up to 256 wide, 64 states and 2 to 4
            taps; 'auto' takes 'naive' beyond).

    Raises:
        ValueError: Shapes or dtypes disagree, or the implementation cannot take these tensors.
    Source: Gu and Dao 2023 (arXiv 2312.00752), algorithm 2 and figure 3; `step` of state-spaces/mamba.
    """
    if residual_BD.dim() != 2 or residual_BD.numel() == 0 or residual_BD.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"residual must be (batch, width), not empty, float32 or float64, not {tuple(residual_BD.shape)} of "
            f"{residual_BD.dtype}"
        )
    if A_log_EN.dim() != 2 or conv_weight_EK.dim() != 2 or dt_proj_ER.dim() != 2:
        raise ValueError("A_log, conv_weight and dt_proj must be matrices: channels by states, by taps and by rank")
    num_sequences, width = residual_BD.shape
    num_channels, num_states = A_log_EN.shape
    num_taps, rank = conv_weight_EK.shape[1], dt_proj_ER.shape[1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "norm_weight": (norm_weight_D, (width,)),
        "in_proj": (in_proj_FD, (2 * num_channels, width)),
        "conv_weight": (conv_weight_EK, (num_channels, num_taps)),
        "conv_bias": (conv_bias_E, (num_channels,)),
        "x_proj": (x_proj_PE, (rank + 2 * num_states, num_channels)),
        "dt_proj": (dt_proj_ER, (num_channels, rank)),
        "dt_bias": (dt_bias_E, (num_channels,)),
        "D": (D_E, (num_channels,)),
        "out_proj": (out_proj_DE, (width, num_channels)),
        "conv_state": (conv_state_BKE, (num_sequences, num_taps - 1, num_channels)),
        "scan_state": (scan_state_BEN, (num_sequences, num_channels, num_states)),
    }
    check_shapes(f"residual {tuple(residual_BD.shape)} and A_log {tuple(A_log_EN.shape)}", residual_BD, expected)
    for name, (tensor, _) in expected.items():
        assert tensor is not None
        if tensor.dtype != residual_BD.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; like the residual it must be {residual_BD.dtype}")
    for name, tensor in (("residual", residual_BD), ("conv_state", conv_state_BKE), ("scan_state", scan_state_BEN)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is changed in place and must be contiguous")
    weights = (norm_weight_D, in_proj_FD, conv_weight_EK, conv_bias_E, x_proj_PE, dt_proj_ER, dt_bias_E, A_log_EN, D_E,
               out_proj_DE)  # fmt: skip
    if choose(implementation, residual_BD, unfit(width, num_channels, num_states, num_taps)) == "triton":
        from .fused import mamba_step_triton  # here, so that a machine without Triton never imports it

        return mamba_step_triton(residual_BD, *weights, conv_state_BKE, scan_state_BEN, eps)
    return mamba_step_naive(residual_BD, *weights, conv_state_BKE, scan_state_BEN, eps)


def unfit(width: int, num_channels: int, num_states: int, num_taps: int) -> str:
    """Say why the Triton kernels cannot take a block of these sizes; empty if they can."""
    if width <= MAX_WIDTH and num_channels <= 2 * MAX_WIDTH and num_states <= MAX_STATES and 2 <= num_taps <= MAX_TAPS:
        return ""
    return (
        f"width {width}, {num_channels} channels, {num_states} states, {num_taps} taps; {MAX_WIDTH}, {2 * MAX_WIDTH}, "
        f"{MAX_STATES} and 2 to {MAX_TAPS} fit"
    )
