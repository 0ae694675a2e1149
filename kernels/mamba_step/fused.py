# Shapes: B sequences, D model width, E inner width, N states, K taps, R rank of delta; kernels hold blocks BB of B and BE of E
"""One position through a Mamba block for GPUs in Triton: three kernels, cut where every channel needs every other.

The scan's programs each find step size, B and C again, which is cheaper than one more launch. Many sequences go in blocks
that multiply together on tensor cores; there step size, B and C have a kernel of their own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dna_mamba.kernels.fused_functions import LOG2_E, sigmoid, softplus

ALONE = 64
"""Up to so many sequences each has programs of its own."""
EXPAND, SCAN, CONTRACT = 16, 16, 16
"""Channels of a program of each kernel."""
INNER = 256
"""Channels that a sum takes in at once."""
WARPS = (4, 4, 4)
GROW, SELECT, ADVANCE, JOIN = (64, 32, 4), (16, 64, 4), (1, 64, 2), (16, 32, 64, 4)
"""For sequences together: sequences and channels of a program, for JOIN channels summed at once, and warps."""


@triton.jit
def _product(x, weights, TOGETHER: tl.constexpr):
    """Multiply a block of sequences, or one, by weights transposed."""
    if TOGETHER:
        return tl.dot(x, tl.trans(weights), input_precision="tf32x3")
    else:  # what follows a return at compile time would be compiled too
        return tl.sum(x * weights, axis=1)[None, :]


@triton.jit(do_not_specialize=("num_sequences",))
def _expand(
    residual_ptr, norm_ptr, in_proj_ptr, conv_state_ptr, conv_weight_ptr, conv_bias_ptr, x_ptr, gate_ptr, eps,
    num_sequences, width, num_channels, K: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BE: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Norm, large projection, convolution with silu, and silu of the gate, of some channels."""
    num_tiles = tl.cdiv(num_channels, BE)
    b = (tl.program_id(0) // num_tiles).to(tl.int64) * BB + tl.arange(0, BB)
    e = (tl.program_id(0) % num_tiles) * BE + tl.arange(0, BE)
    d = tl.arange(0, D)
    real, known, wide = b < num_sequences, e < num_channels, d < width
    x = tl.load(residual_ptr + b[:, None] * width + d[None, :], real[:, None] & wide[None, :], 0.0)
    x *= 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / width + eps)[:, None]
    x *= tl.load(norm_ptr + d, wide, 0.0)[None, :]
    at = e[:, None] * width + d[None, :]
    inside = known[:, None] & wide[None, :]
    h = _product(x, tl.load(in_proj_ptr + at, inside, 0.0), TOGETHER)
    z = _product(x, tl.load(in_proj_ptr + num_channels * width + at, inside, 0.0), TOGETHER)
    both = real[:, None] & known[None, :]
    here = b[:, None] * num_channels + e[None, :]
    tl.store(gate_ptr + here, z * sigmoid(z), both)
    total = h * tl.load(conv_weight_ptr + e * K + K - 1, known, 0.0)[None, :]
    total += tl.load(conv_bias_ptr + e, known, 0.0)[None, :]
    state_ptr = conv_state_ptr + b[:, None] * (K - 1) * num_channels + e[None, :]
    for k in tl.static_range(K - 1):
        before = tl.load(state_ptr + k * num_channels, both, 0.0)
        total += before * tl.load(conv_weight_ptr + e * K + k, known, 0.0)[None, :]
        if k > 0:
            tl.store(state_ptr + (k - 1) * num_channels, before, both)
    tl.store(state_ptr + (K - 2) * num_channels, h, both)
    tl.store(x_ptr + here, total * sigmoid(total), both)


@triton.jit(do_not_specialize=("num_sequences",))
def _scan(
    x_ptr, gate_ptr, x_proj_ptr, dt_proj_ptr, dt_bias_ptr, A_log_ptr, D_ptr, state_ptr, y_ptr,
    num_sequences, num_channels, num_states, rank, R: tl.constexpr, N: tl.constexpr, BE: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Step size, B and C from all channels of one sequence; then the scan, skip and gate of this program's channels."""
    num_tiles = tl.cdiv(num_channels, BE)
    b = (tl.program_id(0) // num_tiles).to(tl.int64)
    e = (tl.program_id(0) % num_tiles) * BE + tl.arange(0, BE)
    r, n = tl.arange(0, R), tl.arange(0, N)
    known, ranked, stated = e < num_channels, r < rank, n < num_states
    delta_r = tl.zeros((R,), tl.float32)
    B = tl.zeros((N,), tl.float32)
    C = tl.zeros((N,), tl.float32)
    for start in range(0, num_channels, BI):
        i = start + tl.arange(0, BI)
        given = i < num_channels
        x = tl.load(x_ptr + b * num_channels + i, given, 0.0)[None, :]
        at = x_proj_ptr + r[:, None] * num_channels + i[None, :]
        delta_r += tl.sum(x * tl.load(at, ranked[:, None] & given[None, :], 0.0), axis=1)
        at = x_proj_ptr + (rank + n[:, None]) * num_channels + i[None, :]
        mask = stated[:, None] & given[None, :]
        B += tl.sum(x * tl.load(at, mask, 0.0), axis=1)
        C += tl.sum(x * tl.load(at + num_states * num_channels, mask, 0.0), axis=1)
    weights = tl.load(dt_proj_ptr + e[:, None] * rank + r[None, :], known[:, None] & ranked[None, :], 0.0)
    delta = softplus(tl.sum(weights * delta_r[None, :], axis=1) + tl.load(dt_bias_ptr + e, known, 0.0))
    here = b * num_channels + e
    x = tl.load(x_ptr + here, known, 0.0)
    mask = known[:, None] & stated[None, :]
    A = -tl.exp2(LOG2_E * tl.load(A_log_ptr + e[:, None] * num_states + n[None, :], mask, 0.0))
    at = state_ptr + here[:, None] * num_states + n[None, :]
    state = tl.load(at, mask, 0.0)
    state = tl.exp2(LOG2_E * A * delta[:, None]) * state + (delta * x)[:, None] * B[None, :]
    tl.store(at, state, mask)
    y = tl.sum(state * C[None, :], axis=1) + tl.load(D_ptr + e, known, 0.0) * x
    tl.store(y_ptr + here, y * tl.load(gate_ptr + here, known, 0.0), known)


@triton.jit
def _projected(
    x_ptr, weights_ptr, b, rows, real, given, num_channels, BB: tl.constexpr, ROWS: tl.constexpr, BI: tl.constexpr
):
    """Multiply all channels of a block of sequences by some rows of a matrix."""
    total = tl.zeros((BB, ROWS), tl.float32)
    for start in range(0, num_channels, BI):
        i = start + tl.arange(0, BI)
        known = i < num_channels
        x = tl.load(x_ptr + b[:, None] * num_channels + i[None, :], real[:, None] & known[None, :], 0.0)
        at = weights_ptr + rows[:, None] * num_channels + i[None, :]
        total += _product(x, tl.load(at, given[:, None] & known[None, :], 0.0), True)
    return total


@triton.jit(do_not_specialize=("num_sequences",))
def _select(
    x_ptr, x_proj_ptr, dt_proj_ptr, dt_bias_ptr, delta_ptr, BC_ptr, num_sequences, num_channels, num_states, rank,
    R: tl.constexpr, M: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """Of a block of sequences: the step sizes, or, in every second program, B and C side by side."""
    b = (tl.program_id(0) // 2).to(tl.int64) * BB + tl.arange(0, BB)
    real = b < num_sequences
    if tl.program_id(0) % 2 == 0:
        m = tl.arange(0, M)
        both = m < 2 * num_states
        BC = _projected(x_ptr, x_proj_ptr, b, rank + m, real, both, num_channels, BB, M, BI)
        tl.store(BC_ptr + b[:, None] * 2 * num_states + m[None, :], BC, real[:, None] & both[None, :])
    else:
        r = tl.arange(0, R)
        ranked = r < rank
        delta_r = _projected(x_ptr, x_proj_ptr, b, r, real, ranked, num_channels, BB, R, BI)
        for start in range(0, num_channels, BI):
            e = start + tl.arange(0, BI)
            known = e < num_channels
            weights = tl.load(dt_proj_ptr + e[:, None] * rank + r[None, :], known[:, None] & ranked[None, :], 0.0)
            delta = softplus(_product(delta_r, weights, True) + tl.load(dt_bias_ptr + e, known, 0.0)[None, :])
            tl.store(delta_ptr + b[:, None] * num_channels + e[None, :], delta, real[:, None] & known[None, :])


@triton.jit(do_not_specialize=("num_sequences",))
def _advance(
    x_ptr, gate_ptr, delta_ptr, BC_ptr, A_log_ptr, D_ptr, state_ptr, y_ptr, num_sequences, num_channels, num_states,
    N: tl.constexpr, BE: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    """One step of the scan, skip and gate: of some channels of a few sequences, one after the other."""
    num_tiles = tl.cdiv(num_channels, BE)
    first = (tl.program_id(0) // num_tiles).to(tl.int64) * SEQUENCES
    e = (tl.program_id(0) % num_tiles) * BE + tl.arange(0, BE)
    n = tl.arange(0, N)
    known, stated = e < num_channels, n < num_states
    mask = known[:, None] & stated[None, :]
    A2 = -LOG2_E * tl.exp2(LOG2_E * tl.load(A_log_ptr + e[:, None] * num_states + n[None, :], mask, 0.0))
    skip = tl.load(D_ptr + e, known, 0.0)
    for i in tl.static_range(SEQUENCES):
        b = first + i
        there, every, some = (b < num_sequences) & known, (b < num_sequences) & mask, (b < num_sequences) & stated
        here = b * num_channels + e
        x = tl.load(x_ptr + here, there, 0.0)
        delta = tl.load(delta_ptr + here, there, 0.0)
        B = tl.load(BC_ptr + b * 2 * num_states + n, some, 0.0)
        C = tl.load(BC_ptr + (b * 2 + 1) * num_states + n, some, 0.0)
        at = state_ptr + here[:, None] * num_states + n[None, :]
        state = tl.load(at, every, 0.0)
        state = tl.exp2(A2 * delta[:, None]) * state + (delta * x)[:, None] * B[None, :]
        tl.store(at, state, every)
        y = tl.sum(state * C[None, :], axis=1) + skip * x
        tl.store(y_ptr + here, y * tl.load(gate_ptr + here, there, 0.0), there)


@triton.jit(do_not_specialize=("num_sequences",))
def _contract(
    y_ptr, out_proj_ptr, residual_ptr, num_sequences, width, num_channels,
    BB: tl.constexpr, BD: tl.constexpr, BI: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Project back and add to the residual stream."""
    num_tiles = tl.cdiv(width, BD)
    b = (tl.program_id(0) // num_tiles).to(tl.int64) * BB + tl.arange(0, BB)
    d = (tl.program_id(0) % num_tiles) * BD + tl.arange(0, BD)
    real, wide = b < num_sequences, d < width
    total = tl.zeros((BB, BD), tl.float32)
    for start in range(0, num_channels, BI):
        i = start + tl.arange(0, BI)
        given = i < num_channels
        y = tl.load(y_ptr + b[:, None] * num_channels + i[None, :], real[:, None] & given[None, :], 0.0)
        at = out_proj_ptr + d[:, None] * num_channels + i[None, :]
        total += _product(y, tl.load(at, wide[:, None] & given[None, :], 0.0), TOGETHER)
    both = real[:, None] & wide[None, :]
    at = residual_ptr + b[:, None] * width + d[None, :]
    tl.store(at, tl.load(at, both, 0.0) + total, both)


@torch.library.custom_op("dna_mamba::mamba_step", mutates_args=("residual", "conv_state", "scan_state"))
def mamba_step_triton(
    residual: Tensor,
    norm_weight: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    conv_state: Tensor,
    scan_state: Tensor,
    eps: float,
) -> None:
    """Run the Triton kernels; see `mamba_step`."""
    num_sequences, width = residual.shape
    num_channels, num_states = A_log.shape
    K, rank = conv_weight.shape[1], dt_proj.shape[1]
    weights = (norm_weight, in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj)
    norm_weight, in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj = (
        x.contiguous() for x in weights
    )
    x = torch.empty(num_sequences, num_channels, device=residual.device)
    gate, y = torch.empty_like(x), torch.empty_like(x)
    wide, ranks = max(16, triton.next_power_of_2(width)), max(16, triton.next_power_of_2(rank))
    states = max(16, triton.next_power_of_2(num_states))
    sizes = (num_sequences, width, num_channels)
    before = (residual, norm_weight, in_proj, conv_state, conv_weight, conv_bias)
    with torch.cuda.device_of(residual):
        if num_sequences <= ALONE:
            _expand[(num_sequences * -(-num_channels // EXPAND),)](
                *before, x, gate, eps, *sizes, K=K, D=wide, BB=1, BE=EXPAND, TOGETHER=False, num_warps=WARPS[0]
            )
            _scan[(num_sequences * -(-num_channels // SCAN),)](
                x, gate, x_proj, dt_proj, dt_bias, A_log, D, scan_state, y, num_sequences, num_channels, num_states, rank,
                R=ranks, N=states, BE=SCAN, BI=INNER, num_warps=WARPS[1],
            )  # fmt: skip
            _contract[(num_sequences * -(-width // CONTRACT),)](
                y, out_proj, residual, *sizes, BB=1, BD=CONTRACT, BI=INNER, TOGETHER=False, num_warps=WARPS[2]
            )
            return
        delta = torch.empty_like(x)
        BC = torch.empty(num_sequences, 2 * num_states, device=residual.device)
        rows, columns, warps = GROW
        rows = min(rows, rows * 128 // wide)  # so that inputs and weights fit 99 KiB of shared memory
        _expand[(-(-num_sequences // rows) * -(-num_channels // columns),)](
            *before, x, gate, eps, *sizes, K=K, D=wide, BB=rows, BE=columns, TOGETHER=True, num_warps=warps
        )
        rows, columns, warps = SELECT
        _select[(2 * -(-num_sequences // rows),)](
            x, x_proj, dt_proj, dt_bias, delta, BC, num_sequences, num_channels, num_states, rank,
            R=ranks, M=max(16, triton.next_power_of_2(2 * num_states)), BB=rows, BI=columns, num_warps=warps,
        )  # fmt: skip
        rows, columns, warps = ADVANCE
        columns = max(1, columns * 16 // states)
        _advance[(-(-num_sequences // rows) * -(-num_channels // columns),)](
            x, gate, delta, BC, A_log, D, scan_state, y, num_sequences, num_channels, num_states,
            N=states, BE=columns, SEQUENCES=rows, num_warps=warps,
        )  # fmt: skip
        rows, columns, inner, warps = JOIN
        _contract[(-(-num_sequences // rows) * -(-width // columns),)](
            y, out_proj, residual, *sizes, BB=rows, BD=columns, BI=inner, TOGETHER=True, num_warps=warps
        )


@mamba_step_triton.register_fake
def _(residual, norm_weight, in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj, conv_state,
      scan_state, eps):  # fmt: skip
    return None
