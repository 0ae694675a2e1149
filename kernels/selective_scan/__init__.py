# Shapes: B sequences, T positions, D channels, N states
"""The selective scan of Mamba (S6)."""

import torch
from torch import Tensor

from dna_mamba.kernels.dispatch import choose
from dna_mamba.kernels.shapes import check_shapes

from .naive import selective_scan_naive

MAX_STATES = 64
"""Of a channel in the Triton kernels."""
SEGMENT = 16
"""Positions between the states that the Triton kernels keep: 64 / SEGMENT bytes an element; more of them take digits from the
gradient of A."""
STATES_AT_ONCE = 16
"""Of a channel that the Triton kernels hold in registers; more run in groups of so many."""


def selective_scan_with_state(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t and read out y_t = (C_t h_t + D u_t) silu(z_t).

    The argument names are those of `selective_scan_fn` in state-spaces/mamba; the channels stand last.

    Args:
        u: Input (B, T, D), float32 or bfloat16 (`naive`: any floating dtype).
        delta: Step sizes (B, T, D), before bias and softplus.
        A: Decay rates (D, N), negative for a decaying state.
        B: Input weights of each position (B, T, N).
        C: Output weights of each position (B, T, N).
        D: Skip weights (D,); none adds no skip.
        z: Gate (B, T, D); none applies no gate.
        delta_bias: Added to delta (D,), in float32.
        delta_softplus: Pass delta, with its bias, through softplus.
        initial_state: State before the first position (B, D, N), float32; none is zero.
        seq_idx: Number of the sequence each position belongs to (B, T), int32; the state is zero where it changes.
        implementation: 'auto', 'naive' (a torch loop, any device and dtype), 'cpu' (compiled by numba, fused) or 'triton'
            (GPU, up to 64 states; 'auto' takes 'naive' beyond).

    Returns:
        y (B, T, D) in the dtype of u, and the state after the last position (B, D, N) in float32 (float64 for
        float64 inputs). Both are differentiable in every floating argument. The state is kept in float32 throughout.

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    Source: Gu and Dao 2023 (arXiv 2312.00752), equations 2a and 2b with the discretisation of section 3.3.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx)
    num_states = A.shape[1]
    name = choose(
        implementation, u, f"{num_states} states; at most {MAX_STATES} fit" if num_states > MAX_STATES else ""
    )
    if name == "naive":
        return selective_scan_naive(*arguments)
    if name == "triton":
        from .fused import selective_scan_triton  # here, so that a machine without Triton never imports it

        return selective_scan_triton(*arguments)
    from .cpu import selective_scan_cpu  # here, so that numba is loaded when first used

    return selective_scan_cpu(*arguments)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Give y of `selective_scan_with_state`, which says what the arguments are, and not the state."""
    return selective_scan_with_state(
        u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus, initial_state=initial_state,
        seq_idx=seq_idx, implementation=implementation,
    )[0]  # fmt: skip


@torch.no_grad()
def selective_scan_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    implementation: str = "auto",
) -> Tensor:
    """Move the state by one position, in place, and read out; `selective_scan` at length 1, without gradients.

    Args:
        state: State before the position (B, D, N), float32 and contiguous; holds the state after it when this returns.
        u: Input (B, D), float32 or bfloat16 (`naive`: any floating dtype); delta and z likewise.
        delta: Step size, before bias and softplus.
        A: Decay rates (D, N).
        B: Input weights (B, N).
        C: Output weights (B, N).
        D: Skip weights (D,).
        z: Gate (B, D).
        delta_bias: Added to delta (D,), in float32.
        delta_softplus: Pass delta, with its bias, through softplus.
        implementation: 'auto', 'naive', 'cpu' (as 'naive') or 'triton' (GPU).

    Returns:
        y (B, D) in the dtype of u.

    Raises:
        ValueError: Shapes disagree, or the implementation cannot take these tensors.
    """
    u_, delta_, B_, C_ = (x[:, None] for x in (u, delta, B, C))
    z_ = None if z is None else z[:, None]
    _check(u_, delta_, A, B_, C_, D, z_, delta_bias, state, None)
    if state.dtype != torch.promote_types(u.dtype, torch.float32) or not state.is_contiguous():
        raise ValueError(f"state must be contiguous and float32 (float64 for float64 inputs), not {state.dtype}")
    if choose(implementation, u) == "triton":
        from .step import selective_scan_step_triton  # here, so that a machine without Triton never imports it

        return selective_scan_step_triton(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    y, moved = selective_scan_naive(
        u_,
        delta_,
        A,
        B_,
        C_,
        D,
        z_,
        delta_bias,
        delta_softplus,
        state,
        None,
    )
    state.copy_(moved)
    return y[:, 0]


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    """Raise a ValueError that names the first argument whose shape or dtype does not fit the others."""
    if u.dim() != 3 or u.numel() == 0 or not u.is_floating_point():
        raise ValueError(
            f"u must be (batch, length, channels) with at least one position, none of them empty, and a floating dtype, "
            f"not {tuple(u.shape)} of {u.dtype}"
        )
    if A.dim() != 2 or A.shape[1] == 0:
        raise ValueError(f"A must be (channels, states) with at least one state, not {tuple(A.shape)}")
    (batch, length, channels), states = u.shape, A.shape[1]
    expected = {
        "delta": (delta, (batch, length, channels)),
        "A": (A, (channels, states)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (D, (channels,)),
        "z": (z, (batch, length, channels)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, states)),
        "seq_idx": (seq_idx, (batch, length)),
    }
    check_shapes(f"u {tuple(u.shape)} and A {tuple(A.shape)}", u, expected)
    for name, (tensor, _) in expected.items():
        if tensor is not None and name != "seq_idx" and not tensor.is_floating_point():
            raise ValueError(f"{name} must have a floating dtype, not {tensor.dtype}")
    if seq_idx is not None and seq_idx.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"seq_idx must be int32, not {seq_idx.dtype}")
