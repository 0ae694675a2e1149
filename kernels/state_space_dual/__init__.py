# Shapes: B sequences, T positions, H heads, K channels of a head, G groups, N states
"""The state-space dual scan of Mamba-2 (SSD)."""

import math

import torch
from torch import Tensor

from dna_mamba.kernels.dispatch import choose
from dna_mamba.kernels.shapes import check_shapes

from .naive import state_space_dual_naive

NO_LIMIT = (0.0, math.inf)
MAX_HEAD_WIDTH, MAX_STATES = 128, 256
"""Of the Triton kernels."""


def state_space_dual_with_state(
    x_BTHK: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run S_t = exp(A d_t) S_{t-1} + d_t x_t B_t^T in every head and read out y_t = S_t C_t + D x_t.

    The argument names are those of `mamba_chunk_scan_combined` in state-spaces/mamba. Head h reads the input and output
    weights of group h G // H, so consecutive heads share.

    Args:
        x_BTHK: Input, float32 or bfloat16 (`naive`: any floating dtype).
        dt_BTH: Step sizes d, before bias, softplus and limits.
        A_H: Decay rate of each head, negative for a decaying state.
        B_BTGN: Input weights of each position and group.
        C_BTGN: Output weights of each position and group.
        D: Skip weights, a head (H,) or a channel (H, K); none adds no skip.
        dt_bias: Added to dt (H,), in float32.
        dt_softplus: Pass dt, with its bias, through softplus.
        dt_limit: The step sizes are held between these two, after softplus.
        initial_state: State before the first position (B, H, K, N), float32; none is zero.
        seq_idx: Number of the sequence each position belongs to (B, T), int32; the state is zero where it changes.
        implementation: 'auto', 'naive' (a torch loop, any device and dtype), 'cpu' (matrix products in chunks) or 'triton'
            (GPU, heads of up to 128 channels and 256 states; 'auto' takes 'naive' beyond).

    Returns:
        y (B, T, H, K) in the dtype of x, and the state after the last position (B, H, K, N) in float32 (float64 for
        float64 inputs). Both are differentiable in every floating argument. The state is kept in float32 throughout.

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    Source: Dao and Gu 2024 (arXiv 2405.21060), equations 2 and 13, and section 6.
    """
    _check(x_BTHK, dt_BTH, A_H, B_BTGN, C_BTGN, D, dt_bias, dt_limit, initial_state, seq_idx)
    arguments = (x_BTHK, dt_BTH, A_H, B_BTGN, C_BTGN, D, dt_bias, dt_softplus, dt_limit, initial_state, seq_idx)
    name = choose(implementation, x_BTHK, unfit(x_BTHK.shape[3], B_BTGN.shape[3]))
    if name == "naive":
        return state_space_dual_naive(*arguments)
    if name == "triton":
        from .fused import state_space_dual_triton  # here, so that a machine without Triton never imports it

        return state_space_dual_triton(*arguments)
    from .cpu import state_space_dual_cpu

    return state_space_dual_cpu(*arguments)


def unfit(head_width: int, num_states: int) -> str:
    """Say why the Triton kernels cannot take such heads; nothing if they can."""
    if head_width > MAX_HEAD_WIDTH or num_states > MAX_STATES:
        return f"{head_width} channels a head and {num_states} states; at most {MAX_HEAD_WIDTH} and {MAX_STATES} fit"
    return ""


def state_space_dual(
    x_BTHK: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Give y of `state_space_dual_with_state`, which says what the arguments are, and not the state."""
    return state_space_dual_with_state(
        x_BTHK, dt_BTH, A_H, B_BTGN, C_BTGN, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit,
        initial_state=initial_state, seq_idx=seq_idx, implementation=implementation,
    )[0]  # fmt: skip


@torch.no_grad()
def state_space_dual_step(
    state_BHKN: Tensor,
    x_BHK: Tensor,
    dt_BH: Tensor,
    A_H: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
) -> Tensor:
    """Move the state by one position, in place, and read out; `state_space_dual` at length 1, without gradients.

    Args:
        state_BHKN: State before the position, float32; holds the state after it when this returns.
        x_BHK: Input.
        dt_BH: Step size, before bias, softplus and limits.
        A_H: Decay rate of each head.
        B_BGN: Input weights.
        C_BGN: Output weights.
        D: Skip weights, (H,) or (H, K).
        dt_bias: Added to dt (H,).
        dt_softplus: Pass dt, with its bias, through softplus.
        dt_limit: The step sizes are held between these two.

    Returns:
        y_BHK in the dtype of x.

    Raises:
        ValueError: Shapes disagree.
    """
    x, dt, B, C = (w[:, None] for w in (x_BHK, dt_BH, B_BGN, C_BGN))
    _check(x, dt, A_H, B, C, D, dt_bias, dt_limit, state_BHKN, None)
    y, moved = state_space_dual_naive(x, dt, A_H, B, C, D, dt_bias, dt_softplus, dt_limit, state_BHKN, None)
    state_BHKN.copy_(moved)
    return y[:, 0]


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_limit: tuple[float, float],
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    """Raise a ValueError that names the first argument whose shape or dtype does not fit the others."""
    if x.dim() != 4 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(
            f"x must be (batch, length, heads, channels of a head) with at least one position, none of them empty, and a "
            f"floating dtype, not {tuple(x.shape)} of {x.dtype}"
        )
    num_sequences, T, H, K = x.shape
    if B.dim() != 4 or B.shape[2] == 0 or B.shape[3] == 0 or H % B.shape[2]:
        raise ValueError(
            f"B must be (batch, length, groups, states) with at least one state and groups that divide the {H} heads, not "
            f"{tuple(B.shape)}"
        )
    G, N = B.shape[2:]
    if D is not None and D.dim() not in (1, 2):
        raise ValueError(f"D must be (heads,) or (heads, channels of a head), not {tuple(D.shape)}")
    if not 0 <= dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"dt_limit {dt_limit} must be 0 <= low <= high")
    expected = {
        "dt": (dt, (num_sequences, T, H)),
        "A": (A, (H,)),
        "B": (B, (num_sequences, T, G, N)),
        "C": (C, (num_sequences, T, G, N)),
        "D": (D, (H,) if D is None or D.dim() == 1 else (H, K)),
        "dt_bias": (dt_bias, (H,)),
        "initial_state": (initial_state, (num_sequences, H, K, N)),
        "seq_idx": (seq_idx, (num_sequences, T)),
    }
    check_shapes(f"x {tuple(x.shape)} and {G} groups of {N} states", x, expected)
    for name, (tensor, _) in expected.items():
        if tensor is not None and name != "seq_idx" and not tensor.is_floating_point():
            raise ValueError(f"{name} must have a floating dtype, not {tensor.dtype}")
    if seq_idx is not None and seq_idx.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"seq_idx must be int32, not {seq_idx.dtype}")
