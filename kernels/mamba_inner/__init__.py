# Shapes: B sequences, T positions, E channels, F = 2 E, N states, K taps, R rank of delta, P = R + 2 N
"""The inside of a Mamba layer, between its two large projections."""

import torch
from torch import Tensor

from dna_mamba.kernels.causal_conv1d import MAX_TAPS
from dna_mamba.kernels.dispatch import choose
from dna_mamba.kernels.selective_scan import MAX_STATES, STATES_AT_ONCE
from dna_mamba.kernels.shapes import check_shapes

from .naive import mamba_inner_naive


def mamba_inner(
    xz_BTF: Tensor,
    conv_weight_EK: Tensor,
    conv_bias_E: Tensor | None,
    x_proj_PE: Tensor,
    dt_proj_ER: Tensor,
    dt_bias_E: Tensor,
    A_EN: Tensor,
    D_E: Tensor,
    *,
    conv_state: Tensor | None = None,
    scan_state: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve, choose step sizes and input and output weights from the sequence, scan and gate.

    On a GPU one operator: the gradients of x and z are written where the large projection reads them, side by side, and no
    copy joins or adds them.

    Args:
        xz_BTF: Input of the convolution and gate, side by side; float32 or bfloat16 (`naive`: any floating dtype).
        conv_weight_EK: Taps of each channel, the present position last.
        conv_bias_E: Added before silu.
        x_proj_PE: From channels to step size, B and C; matrix products run in the dtype of xz on a GPU.
        dt_proj_ER: From the step size of rank R to channels.
        dt_bias_E: Added to the step size, in float32, before softplus.
        A_EN: Decay rates, negative for a decaying state.
        D_E: Skip weights.
        conv_state: The K - 1 inputs before the first position (B, K - 1, E); none is zero.
        scan_state: State before the first position (B, E, N), float32; none is zero.
        implementation: 'auto', 'naive', 'cpu' or 'triton' (GPU, up to 64 states and 2 to 4 taps).

    Returns:
        y_BTE and both states after the last position; differentiable in every floating argument.

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    Source: Gu and Dao 2023 (arXiv 2312.00752), algorithm 2 and figure 3.
    """
    matrices = (conv_weight_EK, x_proj_PE, dt_proj_ER, A_EN)
    if xz_BTF.dim() != 3 or any(x.dim() != 2 or x.numel() == 0 for x in matrices):
        raise ValueError(
            f"xz must be (batch, length, 2 channels), not {tuple(xz_BTF.shape)}, and conv_weight, x_proj, dt_proj and A "
            f"matrices that are not empty, not {', '.join(str(tuple(x.shape)) for x in matrices)}"
        )
    num_channels, num_states = A_EN.shape
    if xz_BTF.shape[2] != 2 * num_channels:
        raise ValueError(
            f"xz is {tuple(xz_BTF.shape)}; with A {tuple(A_EN.shape)} its last size must be {2 * num_channels}"
        )
    if xz_BTF.numel() == 0:
        raise ValueError(f"xz must hold at least one position, not {tuple(xz_BTF.shape)}")
    num_sequences, rank, num_taps = xz_BTF.shape[0], dt_proj_ER.shape[1], conv_weight_EK.shape[1]
    check_shapes(
        f"xz {tuple(xz_BTF.shape)}, A {tuple(A_EN.shape)}, {num_taps} taps and a step size of rank {rank}",
        xz_BTF,
        {
            "conv_weight": (conv_weight_EK, (num_channels, num_taps)),
            "conv_bias": (conv_bias_E, (num_channels,)),
            "x_proj": (x_proj_PE, (rank + 2 * num_states, num_channels)),
            "dt_proj": (dt_proj_ER, (num_channels, rank)),
            "dt_bias": (dt_bias_E, (num_channels,)),
            "A": (A_EN, (num_channels, num_states)),
            "D": (D_E, (num_channels,)),
            "conv_state": (conv_state, (num_sequences, num_taps - 1, num_channels)),
            "scan_state": (scan_state, (num_sequences, num_channels, num_states)),
        },
    )
    fits = num_states <= MAX_STATES and 2 <= num_taps <= MAX_TAPS
    unfit = "" if fits else f"{num_states} states and {num_taps} taps; {MAX_STATES} and 2 to {MAX_TAPS} fit"
    name = choose(implementation, xz_BTF, unfit)
    weights = (conv_weight_EK, conv_bias_E, x_proj_PE, dt_proj_ER, dt_bias_E, A_EN, D_E)
    if name == "triton" and num_states <= STATES_AT_ONCE:  # more run in groups, part by part
        from .fused import mamba_inner_triton  # here, so that a machine without Triton never imports it

        return mamba_inner_triton(xz_BTF, *weights, conv_state, scan_state)
    return mamba_inner_naive(xz_BTF, *weights, conv_state, scan_state, name)


@torch.no_grad()
def mamba_inner_states(
    xz_BTF: Tensor,
    conv_weight_EK: Tensor,
    conv_bias_E: Tensor | None,
    x_proj_PE: Tensor,
    dt_proj_ER: Tensor,
    dt_bias_E: Tensor,
    A_EN: Tensor,
    D_E: Tensor,
    *,
    segments_S: Tensor,
    conv_state: Tensor | None = None,
    scan_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give what `mamba_inner` gives for one sequence, and the states before positions 16 s: the scan knows them anyway.

    Args:
        xz_BTF: One sequence (B is 1), as in `mamba_inner`; the other arguments likewise.
        conv_weight_EK: See there.
        conv_bias_E: See there.
        x_proj_PE: See there.
        dt_proj_ER: See there.
        dt_bias_E: See there.
        A_EN: See there; at most 16 states.
        D_E: See there.
        segments_S: Numbers s of segments of 16 positions, int64, each below T / 16.
        conv_state: See there.
        scan_state: See there.

    Returns:
        y_BTE and both states after the last position; then conv_SKE and scan_SEN, what enters each segment.

    Raises:
        ValueError: More than one sequence, too many states, or no GPU.
    """
    unfit = "" if A_EN.shape[1] <= STATES_AT_ONCE else f"{A_EN.shape[1]} states; {STATES_AT_ONCE} fit"
    if xz_BTF.shape[0] != 1:
        raise ValueError(f"xz holds {xz_BTF.shape[0]} sequences; the states of one can be given")
    choose("triton", xz_BTF, unfit)
    from .fused import mamba_inner_states_triton  # here, so that a machine without Triton never imports it

    weights = (conv_weight_EK, conv_bias_E, x_proj_PE, dt_proj_ER, dt_bias_E, A_EN, D_E)
    return mamba_inner_states_triton(xz_BTF, *weights, conv_state, scan_state, segments_S=segments_S)
