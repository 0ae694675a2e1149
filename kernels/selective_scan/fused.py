# Shapes: B sequences, T positions, D channels, N states, C chunks, S segments, G groups of chunks
"""The selective scan for GPUs in Triton: forward and backward, parallel along the length, without atomics.

A warp walks a tile of channels along a stretch of positions. Where sequences times channels do not fill the GPU, the length
is cut into chunks: a first pass gives the state that each chunk adds, a carry joins the chunks, a last pass gives the
outputs; the backward likewise. The transition of a chunk is exp(A * sum of delta): no product of decays, and nothing is
divided by one. This file plans and launches; the kernels stand in fused_forward.py, fused_backward.py and fused_carry.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from dna_mamba.kernels.fused_functions import LOG2_E, strided
from dna_mamba.kernels.selective_scan import SEGMENT, STATES_AT_ONCE
from dna_mamba.kernels.selective_scan.fused_backward import chunk_adjoints, gradients
from dna_mamba.kernels.selective_scan.fused_carry import carry, join_groups
from dna_mamba.kernels.selective_scan.fused_forward import chunk_states, outputs

PROGRAMS_A_SCHEDULER = 16
"""Warps that a chunked length is cut into, for each scheduler: many, so that the last ones to end cost little."""
MIN_SEGMENTS = 16
"""Of a chunk."""
GROUP, LANES = 32, 128
"""Chunks joined at once in the carry, and states times channels of a program there."""
# Registers a lane. Left alone, the compiler saves registers and loads inputs just before their use; with these it loads
# early. Measured on an H200; fewer are slower though more warps fit.
REGISTERS = {"chunk_states": 128, "outputs": 168, "chunk_adjoints": 128, "gradients": 255}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a scan is cut up."""

    tile: int
    """Channels of a warp."""
    warps: int
    """Warps of a program, side by side along the channels: they share B and C in the first-level cache."""
    num_tiles: int
    """Programs along the channels."""
    num_segments: int
    chunk_segments: int
    num_chunks: int

    @property
    def chunk_positions(self) -> int:
        """Positions of a chunk; the last may have fewer."""
        return self.chunk_segments * SEGMENT


def plan(num_sequences: int, T: int, num_channels: int, num_multiprocessors: int) -> Plan:
    """Choose the cut: one chunk, hence a single pass, where sequences times channels give each scheduler a warp."""
    tile = 64 if num_channels > 32 else 32
    warps = 2 if num_channels % (2 * tile) == 0 else 1
    num_segments = -(-T // SEGMENT)
    num_warps = num_sequences * -(-num_channels // tile)
    num_schedulers = 4 * num_multiprocessors
    chunk_segments = num_segments
    if num_warps < num_schedulers:
        wanted_chunks = -(-PROGRAMS_A_SCHEDULER * num_schedulers // num_warps)
        chunk_segments = min(max(MIN_SEGMENTS, -(-num_segments // wanted_chunks)), num_segments)
    return Plan(
        tile=tile,
        warps=warps,
        num_tiles=-(-num_channels // (tile * warps)),
        num_segments=num_segments,
        chunk_segments=chunk_segments,
        num_chunks=-(-num_segments // chunk_segments),
    )


def _plan_for(u_BTD: Tensor) -> Plan:
    multiprocessors = 1  # of the interpreter
    if u_BTD.is_cuda:
        multiprocessors = torch.cuda.get_device_properties(u_BTD.device).multi_processor_count
    num_sequences, T, num_channels = u_BTD.shape
    return plan(num_sequences, T, num_channels, multiprocessors)


def _limit(kernel: str) -> dict[str, int]:
    """Give the launch option that sets a lane's registers; only Triton's CUDA compiler knows it."""
    return {} if torch.version.hip else {"maxnreg": REGISTERS[kernel]}


def as_rows(x_BTN: Tensor) -> Tensor:
    """Give B or C in float32, rows padded to an even number, since two numbers are read at once."""
    return F.pad(x_BTN.float(), (0, x_BTN.shape[-1] % 2)).contiguous()


def _resets(seq_idx_BT: Tensor | None, u_BTD: Tensor) -> Tensor:
    if seq_idx_BT is None:
        return u_BTD.new_empty(0, dtype=torch.uint8)
    resets_BT = torch.zeros(seq_idx_BT.shape, dtype=torch.uint8, device=u_BTD.device)
    resets_BT[:, 1:] = seq_idx_BT[:, 1:] != seq_idx_BT[:, :-1]
    return resets_BT


def _states_first(state_BDN: Tensor | None, like_BND: tuple[int, ...], device: torch.device) -> Tensor:
    if state_BDN is None:
        return torch.zeros(like_BND, dtype=torch.float32, device=device)
    return state_BDN.float().transpose(1, 2).contiguous()


def _channels(x_D: Tensor | None, u_BTD: Tensor) -> Tensor:
    if x_D is None:
        return torch.zeros(u_BTD.shape[-1], dtype=torch.float32, device=u_BTD.device)
    return x_D.float().contiguous()


def _join(
    ends_BCND: Tensor,
    A2_ND: Tensor,
    sums_BCD: Tensor,
    kept_BC: Tensor,
    first_BND: Tensor,
    *,
    backward: bool,
    resets: bool,
) -> None:
    """Turn the states that chunks add into the states that enter them, in place."""
    num_sequences, num_chunks, num_states, num_channels = ends_BCND.shape
    num_lanes, num_groups = num_states * num_channels, -(-num_chunks // GROUP)
    group_ends = ends_BCND.new_empty(num_sequences, num_groups, num_states, num_channels)
    group_sums = ends_BCND.new_empty(num_sequences, num_groups, num_channels)
    group_kept = ends_BCND.new_empty(num_sequences, num_groups)
    grid = (-(-num_lanes // LANES) * num_groups * num_sequences,)
    shared = (A2_ND, sums_BCD, kept_BC, ends_BCND, group_sums, group_kept, group_ends)
    sizes = (num_lanes, num_channels, num_chunks, num_groups)
    options = {"GROUP": GROUP, "LANES": LANES, "AT_ONCE": 8, "BACKWARD": backward, "RESETS": resets}
    if num_groups > 1:
        join_groups[grid](*shared, *sizes, **options, num_warps=4, enable_fp_fusion=True)
    carry[grid](*shared, first_BND, *sizes, **options, num_warps=4, enable_fp_fusion=True)


def scan_forward(
    u_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    z_BTD: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
    initial_state_BDN: Tensor | None,
    seq_idx_BT: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the forward kernels; B and C are rows as `as_rows` gives them.

    Returns:
        y_BTD, the final state_BDN and, for the backward, the states that enter segments (B, S, N, D; S is 0 without
        `keep`) and the sums of delta of chunks (B, C, D; C is 0 where there is one chunk).
    """
    num_sequences, T, num_channels = u_BTD.shape
    num_states = A_DN.shape[1]
    cut = _plan_for(u_BTD)
    u, delta = strided(u_BTD), strided(delta_BTD)
    z = u if z_BTD is None else strided(z_BTD)
    A2_ND = (A_DN.float() * LOG2_E.value).t().contiguous()
    D_D, bias_D, resets_BT = _channels(D_D, u), _channels(delta_bias_D, u), _resets(seq_idx_BT, u)
    new = A2_ND.new_empty
    first_BND = _states_first(initial_state_BDN, (num_sequences, num_states, num_channels), u.device)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    final_BND = torch.empty_like(first_BND)
    boundary = new(num_sequences, cut.num_segments if keep else 0, num_states, num_channels)
    sums = new(num_sequences, cut.num_chunks if cut.num_chunks > 1 else 0, num_channels)
    options = {
        "N": num_states,
        "BLOCK": cut.tile * cut.warps,
        "WARPS": cut.warps,
        "FULL": num_channels % (cut.tile * cut.warps) == 0,
        "SOFTPLUS": delta_softplus,
        "RESETS": seq_idx_BT is not None,
        "num_warps": cut.warps,
        "enable_fp_fusion": True,
    }
    grid = (cut.num_tiles * cut.num_chunks * num_sequences,)
    entering = first_BND
    with torch.cuda.device_of(u):
        if cut.num_chunks > 1:
            entering = new(num_sequences, cut.num_chunks, num_states, num_channels)
            kept = new(num_sequences, cut.num_chunks)
            chunk_states[grid](
                u, delta, A2_ND, B_BTN, bias_D, resets_BT, entering, sums, kept,
                T, num_channels, cut.num_chunks, cut.chunk_positions, B_BTN.shape[-1],
                *u.stride()[:2], *delta.stride()[:2], **_limit("chunk_states"), **options,
            )  # fmt: skip
            _join(entering, A2_ND, sums, kept, first_BND, backward=False, resets=seq_idx_BT is not None)
        outputs[grid](
            u, delta, A2_ND, B_BTN, C_BTN, D_D, z, bias_D, resets_BT, entering, y, boundary, final_BND,
            T, num_channels, cut.num_chunks, cut.num_segments, cut.chunk_segments, B_BTN.shape[-1],
            *u.stride()[:2], *delta.stride()[:2], *z.stride()[:2],
            SEGMENT=SEGMENT, GATE=z_BTD is not None, KEEP=keep, **_limit("outputs"), **options,
        )  # fmt: skip
    return y, final_BND.transpose(1, 2).contiguous(), boundary, sums


def scan_backward(
    dy_BTD: Tensor,
    dfinal_BDN: Tensor | None,
    u_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    z_BTD: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
    seq_idx_BT: Tensor | None,
    boundary: Tensor,
    sums: Tensor,
    dz_BTD: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run the backward kernels.

    Args:
        dz_BTD: Where to write the gradient of z, if it is to lie in a larger tensor.

    Returns:
        Gradients of u, delta, A, B, C, D, z, delta_bias and the initial state; float32 but for u, delta and z. Those of
        absent arguments mean nothing.
    """
    num_sequences, T, num_channels = u_BTD.shape
    num_states = A_DN.shape[1]
    cut = _plan_for(u_BTD)
    u, delta, dy = strided(u_BTD), strided(delta_BTD), strided(dy_BTD)
    z = u if z_BTD is None else strided(z_BTD)
    A2_ND = (A_DN.float() * LOG2_E.value).t().contiguous()
    D_D, bias_D, resets_BT = _channels(D_D, u), _channels(delta_bias_D, u), _resets(seq_idx_BT, u)
    new = A2_ND.new_empty
    last_BND = _states_first(dfinal_BDN, (num_sequences, num_states, num_channels), u.device)
    block = cut.tile * cut.warps
    options = {
        "N": num_states,
        "BLOCK": block,
        "WARPS": cut.warps,
        "FULL": num_channels % block == 0,
        "SOFTPLUS": delta_softplus,
        "GATE": z_BTD is not None,
        "RESETS": seq_idx_BT is not None,
        "num_warps": cut.warps,
        "enable_fp_fusion": True,
    }
    num_programs = cut.num_tiles * cut.num_chunks * num_sequences
    du, ddelta = (torch.empty(u.shape, dtype=x.dtype, device=u.device) for x in (u, delta))
    dz = dz_BTD
    if dz is None:
        dz = du if z_BTD is None else torch.empty(u.shape, dtype=z.dtype, device=u.device)
    num_partials = num_sequences * cut.num_chunks
    dA, dD, dbias = (
        new(num_partials, num_states, num_channels),
        new(num_partials, num_channels),
        new(num_partials, num_channels),
    )
    dB, dC = (new(cut.num_tiles * cut.warps, num_sequences, T, num_states) for _ in range(2))
    dfirst_BND = torch.empty_like(last_BND)
    scratch = new(num_programs, min(SEGMENT, T), 3, block)
    parked = new(num_programs, num_states, block)
    arriving = last_BND
    with torch.cuda.device_of(u):
        if cut.num_chunks > 1:
            arriving = new(num_sequences, cut.num_chunks, num_states, num_channels)
            chunk_adjoints[(num_programs,)](
                delta, A2_ND, C_BTN, z, bias_D, resets_BT, dy, arriving,
                T, num_channels, cut.num_chunks, cut.chunk_positions, C_BTN.shape[-1],
                *delta.stride()[:2], *z.stride()[:2], *dy.stride()[:2], **_limit("chunk_adjoints"), **options,
            )  # fmt: skip
            kept = new(num_sequences, cut.num_chunks)
            if seq_idx_BT is not None:
                padded = F.pad(resets_BT, (0, cut.num_chunks * cut.chunk_positions - T))
                kept = 1.0 - padded.unflatten(1, (cut.num_chunks, cut.chunk_positions)).amax(2).float()
            _join(arriving, A2_ND, sums, kept, last_BND, backward=True, resets=seq_idx_BT is not None)
        gradients[(num_programs,)](
            u, delta, A2_ND, B_BTN, C_BTN, D_D, z, bias_D, resets_BT, boundary, arriving, dy,
            du, ddelta, dz, dA, dB, dC, dD, dbias, dfirst_BND, scratch, parked,
            num_sequences, T, num_channels, cut.num_chunks, cut.num_segments, cut.chunk_segments, B_BTN.shape[-1],
            *u.stride()[:2], *delta.stride()[:2], *z.stride()[:2], *dy.stride()[:2], *dz.stride()[:2],
            P=triton.next_power_of_2(num_states), SEGMENT=SEGMENT, **_limit("gradients"), **options,
        )  # fmt: skip
    return (
        *(du, ddelta, dA.sum(0).t(), dB.sum(0), dC.sum(0), dD.sum(0)),
        *(dz, dbias.sum(0), dfirst_BND.transpose(1, 2).contiguous()),
    )


@torch.library.custom_op("dna_mamba::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return scan_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, keep)


def forward_shapes(u_BTD: Tensor, A_DN: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give empty tensors like those of `scan_forward`, for tracing."""
    (num_sequences, _, num_channels), num_states = u_BTD.shape, A_DN.shape[1]
    cut = _plan_for(u_BTD)
    new = A_DN.new_empty
    return (
        torch.empty(u_BTD.shape, dtype=u_BTD.dtype, device=u_BTD.device),
        new((num_sequences, num_channels, num_states), dtype=torch.float32),
        new((num_sequences, cut.num_segments if keep else 0, num_states, num_channels), dtype=torch.float32),
        new((num_sequences, cut.num_chunks if cut.num_chunks > 1 else 0, num_channels), dtype=torch.float32),
    )


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, keep):
    return forward_shapes(u, A, keep)


@torch.library.custom_op("dna_mamba::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    dfinal: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    seq_idx: Tensor | None,
    boundary: Tensor,
    sums: Tensor,
) -> list[Tensor]:
    du, ddelta, dA, dB, dC, dD, dz, dbias, dfirst = scan_backward(
        dy, dfinal, u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, boundary, sums
    )
    padding = (0, B.shape[-1] - A.shape[1])
    dB, dC = F.pad(dB, padding), F.pad(dC, padding)
    absent = A.new_empty(0)
    return [du, ddelta, dA.contiguous(), dB, dC, dD, absent if z is None else dz, dbias, dfirst]


@_scan_backward.register_fake
def _(dy, dfinal, u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, boundary, sums):
    new = A.new_empty
    (num_sequences, _, num_channels), num_states = u.shape, A.shape[1]
    return [
        torch.empty(u.shape, dtype=u.dtype, device=u.device),
        torch.empty(u.shape, dtype=delta.dtype, device=u.device),
        new(A.shape, dtype=torch.float32),
        new(B.shape, dtype=torch.float32),
        new(C.shape, dtype=torch.float32),
        new(num_channels, dtype=torch.float32),
        new(0) if z is None else torch.empty(u.shape, dtype=z.dtype, device=u.device),
        new(num_channels, dtype=torch.float32),
        new((num_sequences, num_channels, num_states), dtype=torch.float32),
    ]


def _remember(ctx, inputs, output):
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, _ = inputs
    _, _, boundary, sums = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(boundary, sums)
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, seq_idx, boundary, sums)
    ctx.delta_softplus = delta_softplus
    ctx.dtypes = [None if x is None else x.dtype for x in (A, B, C, D, z, delta_bias, initial_state)]


def _differentiate(ctx, dy, dfinal, *_):
    u, delta, A, B, C, D, z, delta_bias, seq_idx, boundary, sums = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(u)
    du, ddelta, *rest = _scan_backward(
        dy, dfinal, u, delta, A, B, C, D, z, delta_bias, ctx.delta_softplus, seq_idx, boundary, sums
    )
    dA, dB, dC, dD, dz, dbias, dfirst = (
        None if dtype is None else x.to(dtype) for x, dtype in zip(rest, ctx.dtypes, strict=True)
    )
    return du, ddelta, dA, dB, dC, dD, dz, dbias, None, dfirst, None, None


_scan.register_autograd(_differentiate, setup_context=_remember)


def selective_scan_triton(
    u_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    z_BTD: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
    initial_state_BDN: Tensor | None,
    seq_idx_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the Triton kernels; see `selective_scan`."""
    if A_DN.shape[1] > STATES_AT_ONCE:
        return _in_groups(
            u_BTD,
            delta_BTD,
            A_DN,
            B_BTN,
            C_BTN,
            D_D,
            z_BTD,
            delta_bias_D,
            delta_softplus,
            initial_state_BDN,
            seq_idx_BT,
        )
    inputs = (u_BTD, delta_BTD, A_DN, B_BTN, C_BTN, D_D, z_BTD, delta_bias_D, initial_state_BDN)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    y_BTD, final_BDN, _, _ = _scan(
        u_BTD, delta_BTD, A_DN, as_rows(B_BTN), as_rows(C_BTN), D_D, z_BTD, delta_bias_D,
        delta_softplus, initial_state_BDN, seq_idx_BT, keep,
    )  # fmt: skip
    return y_BTD, final_BDN


def _in_groups(
    u_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    z_BTD: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
    initial_state_BDN: Tensor | None,
    seq_idx_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run some states at a time and add what they read out: states do not see each other. Skip and gate come after."""
    u = u_BTD.float()  # so that the parts are added before they are rounded
    parts = []
    for start in range(0, A_DN.shape[1], STATES_AT_ONCE):
        some = slice(start, start + STATES_AT_ONCE)
        state = None if initial_state_BDN is None else initial_state_BDN[..., some]
        A, B, C = A_DN[:, some], B_BTN[..., some], C_BTN[..., some]
        parts.append(
            selective_scan_triton(u, delta_BTD, A, B, C, None, None, delta_bias_D, delta_softplus, state, seq_idx_BT)
        )
    y_BTD = torch.stack([y for y, _ in parts]).sum(0)
    if D_D is not None:
        y_BTD = y_BTD + D_D.float() * u
    if z_BTD is not None:
        y_BTD = y_BTD * F.silu(z_BTD.float())
    return y_BTD.to(u_BTD.dtype), torch.cat([state for _, state in parts], dim=-1)
