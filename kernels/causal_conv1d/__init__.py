# Shapes: B sequences, T positions, D channels, K taps, P = T + K - 1 positions with the K - 1 before the first
"""The short depthwise convolution in front of a scan."""

import torch
from torch import Tensor

from dna_mamba.kernels.dispatch import choose
from dna_mamba.kernels.shapes import check_shapes

from .naive import causal_conv1d_naive

MAX_TAPS = 4
"""Of the Triton kernels."""


def causal_conv1d_with_state(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own K taps over the present and the K - 1 positions before it.

    Args:
        x_BTD: Input, float32 or bfloat16 (`naive`: any floating dtype).
        weight_DK: Taps of each channel, the present position last.
        bias_D: Added to the sum.
        activation: 'silu' or none.
        initial_state: The K - 1 inputs before the first position (B, K - 1, D); none is zero.
        seq_idx: Number of the sequence each position belongs to (B, T); inputs of another sequence count as zero.
        implementation: 'auto', 'naive', 'cpu' or 'triton' (GPU, 2 to 4 taps; 'auto' takes 'naive' beyond).

    Returns:
        y_BTD in the dtype of x, and the last K - 1 inputs (B, K - 1, D), which are the initial state of what follows.

    Raises:
        ValueError: Shapes disagree, the activation is unknown, or the implementation cannot take these tensors.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"activation {activation!r} is unknown; choose 'silu' or None")
    if x_BTD.dim() != 3 or weight_DK.dim() != 2 or x_BTD.numel() == 0 or weight_DK.shape[1] == 0:
        raise ValueError(
            f"x {tuple(x_BTD.shape)} and weight {tuple(weight_DK.shape)} must be (batch, length, channels) and (channels, "
            f"taps), none of them empty"
        )
    num_sequences, T, num_channels = x_BTD.shape
    num_taps = weight_DK.shape[1]
    state_shape = (num_sequences, num_taps - 1, num_channels)
    check_shapes(
        f"x {tuple(x_BTD.shape)} and {num_taps} taps",
        x_BTD,
        {
            "weight": (weight_DK, (num_channels, num_taps)),
            "bias": (bias_D, (num_channels,)),
            "initial_state": (initial_state, state_shape),
            "seq_idx": (seq_idx, (num_sequences, T)),
        },
    )
    unfit = "" if 2 <= num_taps <= MAX_TAPS else f"{num_taps} taps; 2 to {MAX_TAPS} fit"
    name = choose(implementation, x_BTD, unfit)
    if name == "triton":
        from .fused import causal_conv1d_triton  # here, so that a machine without Triton never imports it

        y_BTD = causal_conv1d_triton(x_BTD, weight_DK, bias_D, initial_state, seq_idx, activation == "silu")
        return y_BTD, last_inputs(x_BTD, initial_state, seq_idx, num_taps)
    if initial_state is None:
        initial_state = x_BTD.new_zeros(state_shape)
    x_BPD = torch.cat([initial_state.to(x_BTD.dtype), x_BTD], dim=1)
    same_BP = valid_BTK = None
    if seq_idx is not None:
        idx_BP = torch.cat([seq_idx[:, :1].expand(-1, num_taps - 1), seq_idx], dim=1)
        # Equal numbers are one sequence only without a change between them, hence the running count of changes.
        run_BP = torch.nn.functional.pad((idx_BP[:, 1:] != idx_BP[:, :-1]).cumsum(1), (1, 0))
        valid_BTK = torch.stack([run_BP[:, k : k + T] == run_BP[:, num_taps - 1 :] for k in range(num_taps)], dim=-1)
        same_BP = run_BP == run_BP[:, -1:]
    run = causal_conv1d_naive
    if name == "cpu":
        from .cpu import causal_conv1d_cpu  # here, so that numba is loaded when first used

        run = causal_conv1d_cpu
    y_BTD = run(x_BPD, weight_DK, bias_D, activation == "silu", valid_BTK)
    final_BKD = x_BPD[:, T:].clone()  # a view would keep the whole piece in memory for as long as its last bases
    if same_BP is not None:
        final_BKD = final_BKD * same_BP[:, T:, None]
    return y_BTD, final_BKD


def causal_conv1d(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Give y of `causal_conv1d_with_state`, which says what the arguments are, and not the state."""
    return causal_conv1d_with_state(
        x_BTD, weight_DK, bias_D, activation=activation, initial_state=initial_state, seq_idx=seq_idx,
        implementation=implementation,
    )[0]  # fmt: skip


@torch.no_grad()
def causal_conv1d_step(
    state_BKD: Tensor,
    x_BD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: str | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Convolve one position and move the state on, in place; `causal_conv1d` at length 1, without gradients.

    Args:
        state_BKD: The K - 1 inputs before the position, contiguous; holds those before the next when this returns.
        x_BD: Input, float32 or bfloat16 (`naive`: any floating dtype).
        weight_DK: Taps of each channel, the present position last.
        bias_D: Added to the sum.
        activation: 'silu' or none.
        implementation: 'auto', 'naive', 'cpu' (as 'naive') or 'triton' (GPU).

    Returns:
        y_BD in the dtype of x.

    Raises:
        ValueError: Shapes disagree, the activation is unknown, or the implementation cannot take these tensors.
    """
    if x_BD.dim() != 2 or x_BD.numel() == 0 or weight_DK.dim() != 2 or not state_BKD.is_contiguous():
        raise ValueError(
            f"x {tuple(x_BD.shape)} and weight {tuple(weight_DK.shape)} must be (batch, channels) and (channels, taps), none "
            f"of them empty, and the state contiguous"
        )
    if activation not in (None, "silu"):
        raise ValueError(f"activation {activation!r} is unknown; choose 'silu' or None")
    (num_sequences, num_channels), num_taps = x_BD.shape, weight_DK.shape[1]
    check_shapes(
        f"x {tuple(x_BD.shape)} and {num_taps} taps",
        x_BD,
        {
            "state": (state_BKD, (num_sequences, num_taps - 1, num_channels)),
            "weight": (weight_DK, (num_channels, num_taps)),
            "bias": (bias_D, (num_channels,)),
        },
    )
    if choose(implementation, x_BD, "" if num_taps >= 2 else "1 tap; 2 or more fit") == "triton":
        from .step import causal_conv1d_step_triton  # here, so that a machine without Triton never imports it

        return causal_conv1d_step_triton(state_BKD, x_BD, weight_DK, bias_D, activation == "silu")
    y_BTD, moved_BKD = causal_conv1d_with_state(
        x_BD[:, None],
        weight_DK,
        bias_D,
        activation=activation,
        initial_state=state_BKD,
        implementation="naive",
    )
    state_BKD.copy_(moved_BKD)
    return y_BTD[:, 0]


def last_inputs(x_BTD: Tensor, first: Tensor | None, seq_idx: Tensor | None, num_taps: int) -> Tensor:
    """Give the last K - 1 inputs, those of another sequence than the last as zero."""
    T, wanted = x_BTD.shape[1], num_taps - 1
    last = x_BTD[:, max(0, T - wanted) :]
    if wanted > T:
        missing = x_BTD.new_zeros(x_BTD.shape[0], wanted, x_BTD.shape[2]) if first is None else first.to(x_BTD.dtype)
        last = torch.cat([missing[:, T:], last], dim=1)
    if seq_idx is None:
        return last.clone(
            memory_format=torch.contiguous_format
        )  # a view would keep the whole piece in memory for as long as its last bases
    idx = torch.cat([seq_idx[:, :1].expand(-1, wanted), seq_idx], dim=1)[:, -num_taps:]
    changes = (idx[:, 1:] != idx[:, :-1]).flip(1).cumsum(1).flip(1)  # from each of the last K - 1 positions to the end
    same = torch.nn.functional.pad(changes[:, 1:], (0, 1)) == 0
    return last * same[..., None]
