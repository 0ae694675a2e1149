# Shapes: B sequences, T positions, E channels, F = 2 E, N states, K taps, R rank of delta, P = R + 2 N
"""The inside of a Mamba layer, between its two large projections."""

from torch import Tensor

from dna_mamba.kernels.causal_conv1d import MAX_TAPS
from dna_mamba.kernels.dispatch import choose
from dna_mamba.kernels.selective_scan import MAX_STATES

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
    num_channels, num_states = A_EN.shape
    expected = (2 * num_channels, dt_proj_ER.shape[1] + 2 * num_states)
    if xz_BTF.dim() != 3 or (xz_BTF.shape[2], x_proj_PE.shape[0]) != expected:
        raise ValueError(
            f"xz {tuple(xz_BTF.shape)} and x_proj {tuple(x_proj_PE.shape)} do not fit A {tuple(A_EN.shape)} and a step size "
            f"of rank {dt_proj_ER.shape[1]}: they need {expected[0]} channels and {expected[1]} rows"
        )
    num_taps = conv_weight_EK.shape[1]
    fits = num_states <= MAX_STATES and 2 <= num_taps <= MAX_TAPS
    unfit = "" if fits else f"{num_states} states and {num_taps} taps; {MAX_STATES} and 2 to {MAX_TAPS} fit"
    name = choose(implementation, xz_BTF, unfit)
    weights = (conv_weight_EK, conv_bias_E, x_proj_PE, dt_proj_ER, dt_bias_E, A_EN, D_E)
    if name == "triton" and num_states <= 16:  # more run in groups, part by part
        from .fused import mamba_inner_triton  # here, so that a machine without Triton never imports it

        return mamba_inner_triton(xz_BTF, *weights, conv_state, scan_state)
    return mamba_inner_naive(xz_BTF, *weights, conv_state, scan_state, name)
