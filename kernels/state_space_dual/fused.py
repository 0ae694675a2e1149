# Shapes: B sequences, T positions, H heads, R of them in each of G groups, K channels of a head, N states, M chunks of C
"""The state-space dual scan for GPUs in Triton: matrix products within chunks, a short recurrence between them.

Within a chunk, with d the step sizes, s their sums times A from the chunk's start, S the state before it and Z the one after:

    L_ij = exp(s_i - s_j) for j <= i    y = (L o C B^T) (d x) + exp(s) C S^T + D x    Z = exp(s_C) S + x^T (exp(s_C - s) d B)

Forward: steps and sums; what every chunk adds to the state; the states before all chunks, one walk over them with many loads
in flight, so that one long sequence is as fast as many short ones; outputs, the product C B^T once for the heads of a group.
Backward: what every chunk adds to the gradient of the state before it; the walk from the end; gradients of x; those of B, C and
of the steps, all from one product dy x^T a head, summed over the heads of a group in registers. With P = dy x^T, W = L o P,
dZ the gradient of Z, E = exp(s_C - s):

    dx = d ((L o C B^T)^T dy + E B dZ^T) + D dy     dB = (W d)^T C + E d x dZ      dC = (W d) B + exp(s) dy S
    V = E <x, dZ B>   U = exp(s) <dy, S C>   Q = C B^T o W without its diagonal q
    da_k = sum over i >= k > j of Q_ij d_j + sum over i >= k of U_i + sum over j < k of d V_j + exp(s_C) <dZ, S>
    dd = q + columns(Q) + V + A da                  dA = sum of d da

In bfloat16 the first of these is the sum over i >= k of rows(Q d) - d columns(Q), both of the same float32 numbers: with y,
which is rounded, in place of one of them the gradients of A and of the steps would lose all their digits. Two runs are equal to
the bit: nothing is added in an order that may change.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dna_mamba.kernels.fused_functions import LOG2_E, only_if, sigmoid, softplus, strided

CHUNKS = {torch.bfloat16: 128, torch.float32: 32}
"""Positions of a chunk; of heads of more than 64 channels half as many. Products in full float32 take four times the registers
and the shared memory."""
PART = 64
"""Positions of a chunk that a program of the gradients of B and C takes, which holds more in registers than the others."""
STATES_AT_ONCE = 64
"""Columns of a state that a program takes at a time."""
WALK = 64
"""Numbers of a state that a program of the walk over chunks takes along."""
AHEAD = 16
"""Chunks that it loads before it needs them."""
WARPS = {"of chunks": 4, "outputs": 8, "input gradients": 8, "weight gradients": 8}
SIZES = ("T", "num_chunks")


@triton.jit(do_not_specialize=SIZES)
def _steps(
    dt_ptr, A_ptr, bias_ptr, run_ptr, d_ptr, s_ptr, rest_ptr, decay_ptr, T, num_chunks, dt_b, dt_t, low, high,
    H: tl.constexpr, C: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, LIMITS: tl.constexpr,
    RESETS: tl.constexpr, EXACT: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Write d, the sums s in units of log 2, and how much of a state passes through each chunk; all (B, H, ...)."""
    chunk, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    t = chunk * C + tl.arange(0, C)
    inside = (t < T)[:, None] & (head < H)[None, :]
    at = b * dt_b + t.to(tl.int64)[:, None] * dt_t + head[None, :]
    d = tl.load(dt_ptr + at, inside, 0.0).to(tl.float32)
    if BIAS:
        d += tl.load(bias_ptr + head, head < H, 0.0).to(tl.float32)[None, :]
    if SOFTPLUS:
        d = softplus(d)
    if LIMITS:
        d = tl.minimum(tl.maximum(d, low), high)
    d = tl.where(inside, d, 0.0)  # after softplus: what lies behind the end neither decays nor adds
    A = tl.load(A_ptr + head, head < H, 0.0).to(tl.float32)
    a = d * (A * LOG2_E)[None, :]
    padded = num_chunks * C
    out = (b * H + head.to(tl.int64))[None, :] * padded + t[:, None]
    tl.store(d_ptr + out, d, (head < H)[None, :])
    if EXACT:  # a difference of two sums keeps the error of the larger
        whole = tl.cumsum(a.to(tl.float64), 0)
        s = whole.to(tl.float32)
        tl.store(rest_ptr + out, (whole - s.to(tl.float64)).to(tl.float32), (head < H)[None, :])
    else:
        s = tl.cumsum(a, 0)
    tl.store(s_ptr + out, s, (head < H)[None, :])
    total = tl.exp2(tl.sum(a, 0))
    if RESETS:
        through = tl.load(run_ptr + b * (padded + 1) + chunk * C) == tl.load(run_ptr + b * (padded + 1) + chunk * C + C)
        total = tl.where(through, total, 0.0)
    tl.store(decay_ptr + (b * H + head) * num_chunks + chunk, total, head < H)


@triton.jit
def _weights(s_ptr, rest_ptr, d_ptr, run_ptr, C: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr):
    """Give d, s and its rest, exp(s), exp(s_C - s) and the counts of resets of a chunk; 0 where a reset stands between."""
    q = tl.arange(0, C)
    s, d, rest = tl.load(s_ptr + q), tl.load(d_ptr + q), q * 0.0
    left = tl.load(s_ptr + C - 1) - s
    if EXACT:
        rest = tl.load(rest_ptr + q)
        left += tl.load(rest_ptr + C - 1) - rest
    from_start, to_end = tl.exp2(s), tl.exp2(left)
    run = q * 0
    if RESETS:  # the first entry is the count before the chunk
        run = tl.load(run_ptr + 1 + q)
        from_start = tl.where(run == tl.load(run_ptr), from_start, 0.0)
        to_end = tl.where(run == tl.load(run_ptr + C), to_end, 0.0)
    return d, s, rest, from_start, to_end, run


@triton.jit(do_not_specialize=SIZES)
def _of_chunks(
    x_ptr, w_ptr, d_ptr, s_ptr, rest_ptr, run_ptr, states_ptr, T, num_chunks, x_b, x_t, x_h, w_b, w_t, w_g,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr, N: tl.constexpr, C: tl.constexpr, KP: tl.constexpr,
    NB: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, BACKWARD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what each chunk adds to the state after it, x^T (E d B), or to the gradient of the one before, dy^T (exp(s) C)."""
    chunk, h, b = tl.program_id(0) // H, tl.program_id(0) % H, tl.program_id(1).to(tl.int64)
    q, k, n = tl.arange(0, C), tl.arange(0, KP), tl.program_id(2) * NB + tl.arange(0, NB)
    t = (chunk * C + q).to(tl.int64)
    sums = (b * H + h) * num_chunks * C + chunk * C
    runs = run_ptr + b * (num_chunks * C + 1) + chunk * C
    d, _, _, from_start, to_end, _ = _weights(s_ptr + sums, rest_ptr + sums, d_ptr + sums, runs, C, RESETS, EXACT)
    weight = from_start if BACKWARD else to_end * d
    x = tl.load(x_ptr + b * x_b + t[:, None] * x_t + h * x_h + k[None, :], (t < T)[:, None] & (k < K)[None, :], 0.0)
    w = tl.load(
        w_ptr + b * w_b + t[:, None] * w_t + (h // R) * w_g + n[None, :], (t < T)[:, None] & (n < N)[None, :], 0.0
    )
    x = (x.to(tl.float32) * weight[:, None]).to(w.dtype)
    state = tl.dot(tl.trans(x), w, input_precision=PRECISION)
    at = ((b * num_chunks + chunk) * H + h) * (K * N) + k[:, None] * N + n[None, :]
    tl.store(states_ptr + at, state, (k < K)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=SIZES)
def _walk(
    states_ptr, decay_ptr, first_ptr, last_ptr, num_chunks,
    H: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, FIRST: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Put the state before each chunk in the place of what the chunk adds; from the end, the gradient of the one after it."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < SIZE
    decay_ptr += bh * num_chunks
    state = tl.zeros([BLOCK], tl.float32)
    if FIRST:
        state = tl.load(first_ptr + bh * SIZE + e, inside, 0.0)
    for c in range(0, num_chunks, AHEAD):
        added = ()
        decays = ()
        for i in tl.static_range(AHEAD):
            at = num_chunks - 1 - (c + i) if BACKWARD else c + i
            here = c + i < num_chunks
            added = added + (
                tl.load(states_ptr + ((b * num_chunks + at) * H + h) * SIZE + e, only_if(inside, here), 0.0),
            )
            decays = decays + (tl.load(decay_ptr + at, here, 1.0),)
        for i in tl.static_range(AHEAD):
            at = num_chunks - 1 - (c + i) if BACKWARD else c + i
            tl.store(
                states_ptr + ((b * num_chunks + at) * H + h) * SIZE + e, state, only_if(inside, c + i < num_chunks)
            )
            state = decays[i] * state + added[i]
    tl.store(last_ptr + bh * SIZE + e, state, inside)


@triton.jit
def _scores(C_ptr, B_ptr, C_t, B_t, t, T, N: tl.constexpr, C: tl.constexpr, NB: tl.constexpr, PRECISION: tl.constexpr):
    """Give the products of all rows of C with all rows of B in a chunk."""
    scores = tl.zeros([C, C], tl.float32)
    for first in tl.static_range(0, N, NB):
        n = first + tl.arange(0, NB)
        inside = (t < T)[:, None] & (n < N)[None, :]
        left = tl.load(C_ptr + t[:, None] * C_t + n[None, :], inside, 0.0)
        right = tl.load(B_ptr + t[:, None] * B_t + n[None, :], inside, 0.0)
        scores = tl.dot(left, tl.trans(right), scores, input_precision=PRECISION)
    return scores


@triton.jit
def _decays(s, rest, run, C: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Give L, or its transpose: rows are then the earlier positions."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    between = s[:, None] - s[None, :]
    if EXACT:
        between += rest[:, None] - rest[None, :]
    if TRANSPOSED:
        between = -between
        kept = i <= j
    else:
        kept = i >= j
    if RESETS:
        kept = kept & (run[:, None] == run[None, :])
    return tl.where(kept, tl.exp2(tl.where(kept, between, 0.0)), 0.0)


@triton.jit(do_not_specialize=SIZES)
def _outputs(
    x_ptr, B_ptr, C_ptr, D_ptr, d_ptr, s_ptr, rest_ptr, run_ptr, states_ptr, y_ptr, T, num_chunks,
    x_b, x_t, x_h, B_b, B_t, B_g, C_b, C_t, C_g,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr, N: tl.constexpr, C: tl.constexpr, KP: tl.constexpr,
    NB: tl.constexpr, SKIP: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write y of one group's heads in one chunk."""
    G: tl.constexpr = H // R
    chunk, g, b = tl.program_id(0) // G, tl.program_id(0) % G, tl.program_id(1).to(tl.int64)
    q, k = tl.arange(0, C), tl.arange(0, KP)
    t = (chunk * C + q).to(tl.int64)
    B_ptr += b * B_b + g * B_g
    C_ptr += b * C_b + g * C_g
    scores = _scores(C_ptr, B_ptr, C_t, B_t, t, T, N, C, NB, PRECISION)
    runs = run_ptr + b * (num_chunks * C + 1) + chunk * C
    inside = (t < T)[:, None] & (k < K)[None, :]
    for r in range(R):
        h = g * R + r
        sums = (b * H + h) * num_chunks * C + chunk * C
        d, s, rest, from_start, _, run = _weights(s_ptr + sums, rest_ptr + sums, d_ptr + sums, runs, C, RESETS, EXACT)
        x = tl.load(x_ptr + b * x_b + t[:, None] * x_t + h * x_h + k[None, :], inside, 0.0)
        mixed = scores * _decays(s, rest, run, C, RESETS, EXACT, False) * d[None, :]
        y = tl.zeros([C, KP], tl.float32)
        for first in tl.static_range(0, N, NB):
            n = first + tl.arange(0, NB)
            left = tl.load(C_ptr + t[:, None] * C_t + n[None, :], (t < T)[:, None] & (n < N)[None, :], 0.0)
            at = ((b * num_chunks + chunk) * H + h) * (K * N) + k[None, :] * N + n[:, None]
            state = tl.load(states_ptr + at, (k < K)[None, :] & (n < N)[:, None], 0.0)
            y = tl.dot(left, state.to(left.dtype), y, input_precision=PRECISION)
        y = y * from_start[:, None]
        y = tl.dot(mixed.to(x.dtype), x, y, input_precision=PRECISION)
        if SKIP:
            y += tl.load(D_ptr + h * K + k, k < K, 0.0).to(tl.float32)[None, :] * x.to(tl.float32)
        out = (b * T + t)[:, None] * (H * K) + h * K + k[None, :]
        tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=SIZES)
def _input_gradients(
    dy_ptr, B_ptr, C_ptr, D_ptr, d_ptr, s_ptr, rest_ptr, run_ptr, dstates_ptr, dx_ptr, T, num_chunks,
    y_b, y_t, y_h, B_b, B_t, B_g, C_b, C_t, C_g,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr, N: tl.constexpr, C: tl.constexpr, KP: tl.constexpr,
    NB: tl.constexpr, SKIP: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dx of one group's heads in one chunk: the outputs, mirrored."""
    G: tl.constexpr = H // R
    chunk, g, b = tl.program_id(0) // G, tl.program_id(0) % G, tl.program_id(1).to(tl.int64)
    q, k = tl.arange(0, C), tl.arange(0, KP)
    t = (chunk * C + q).to(tl.int64)
    B_ptr += b * B_b + g * B_g
    C_ptr += b * C_b + g * C_g
    scores = _scores(B_ptr, C_ptr, B_t, C_t, t, T, N, C, NB, PRECISION)
    runs = run_ptr + b * (num_chunks * C + 1) + chunk * C
    inside = (t < T)[:, None] & (k < K)[None, :]
    for r in range(R):
        h = g * R + r
        sums = (b * H + h) * num_chunks * C + chunk * C
        d, s, rest, _, to_end, run = _weights(s_ptr + sums, rest_ptr + sums, d_ptr + sums, runs, C, RESETS, EXACT)
        dy = tl.load(dy_ptr + b * y_b + t[:, None] * y_t + h * y_h + k[None, :], inside, 0.0)
        mixed = scores * _decays(s, rest, run, C, RESETS, EXACT, True)
        dx = tl.zeros([C, KP], tl.float32)
        for first in tl.static_range(0, N, NB):
            n = first + tl.arange(0, NB)
            left = tl.load(B_ptr + t[:, None] * B_t + n[None, :], (t < T)[:, None] & (n < N)[None, :], 0.0)
            at = ((b * num_chunks + chunk) * H + h) * (K * N) + k[None, :] * N + n[:, None]
            dstate = tl.load(dstates_ptr + at, (k < K)[None, :] & (n < N)[:, None], 0.0)
            dx = tl.dot(left, dstate.to(left.dtype), dx, input_precision=PRECISION)
        dx = dx * to_end[:, None]
        dx = tl.dot(mixed.to(dy.dtype), dy, dx, input_precision=PRECISION) * d[:, None]
        if SKIP:
            dx += tl.load(D_ptr + h * K + k, k < K, 0.0).to(tl.float32)[None, :] * dy.to(tl.float32)
        out = (b * T + t)[:, None] * (H * K) + h * K + k[None, :]
        tl.store(dx_ptr + out, dx.to(dx_ptr.dtype.element_ty), inside)


@triton.jit
def _tile(ptr, t, column, T, width, stride, first, last):
    """Load rows t of a matrix whose columns lie side by side; rows from `first` on and before `last` alone."""
    inside = ((t >= first) & (t < last) & (t < T))[:, None] & (column < width)[None, :]
    return tl.load(ptr + t[:, None] * stride + column[None, :], inside, 0.0)


@triton.jit(do_not_specialize=(*SIZES, "num_sequences"))
def _weight_gradients(
    x_ptr, dy_ptr, B_ptr, C_ptr, d_ptr, s_ptr, rest_ptr, run_ptr, states_ptr, dstates_ptr,
    dB_ptr, dC_ptr, found_ptr, through_ptr, dD_ptr, T, num_chunks, num_sequences,
    x_b, x_t, x_h, y_b, y_t, y_h, B_b, B_t, B_g, C_b, C_t, C_g,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr, N: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, KP: tl.constexpr,
    NB: tl.constexpr, SKIP: tl.constexpr, RESETS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dB and dC of a group for NB states in a part of a chunk, and what `_finish` makes the other gradients of.

    States stand before whole chunks; inside one that has two parts, the state between them follows from the other part.
    """
    G: tl.constexpr = H // R
    PARTS: tl.constexpr = C // PART
    piece, g, b = tl.program_id(0) // G, tl.program_id(0) % G, tl.program_id(1).to(tl.int64)
    chunk, half = piece // PARTS, piece % PARTS
    some = tl.program_id(2)
    q, k, n = tl.arange(0, PART), tl.arange(0, KP), some * NB + tl.arange(0, NB)
    t = (piece * PART + q).to(tl.int64)
    other = (chunk * C + (1 - half) * PART + q).to(tl.int64)  # of the other part, if there is one
    x_ptr += b * x_b
    dy_ptr += b * y_b
    B_ptr += b * B_b + g * B_g
    C_ptr += b * C_b + g * C_g
    scores = tl.zeros([PART, PART], tl.float32)
    if some == 0:
        scores = _scores(C_ptr, B_ptr, C_t, B_t, t, T, N, PART, NB, PRECISION)
    B = _tile(B_ptr, t, n, T, N, B_t, 0, T)
    Cs = _tile(C_ptr, t, n, T, N, C_t, 0, T)
    summed = tl.zeros([PART, PART], tl.float32)
    dB, dC = tl.zeros([PART, NB], tl.float32), tl.zeros([PART, NB], tl.float32)
    padded = num_chunks * C
    run_ptr += b * (padded + 1) + chunk * C
    run, run_other = q * 0, q * 0
    if RESETS:
        run = tl.load(run_ptr + 1 + half * PART + q)
        run_before, run_start = tl.load(run_ptr), tl.load(run_ptr + half * PART)
        run_end, run_last = tl.load(run_ptr + half * PART + PART), tl.load(run_ptr + C)
        run_other = tl.load(run_ptr + 1 + (1 - half) * PART + q) if PARTS == 2 else run
    for r in range(R):
        h = g * R + r
        sums = (b * H + h) * padded + chunk * C
        s, d = tl.load(s_ptr + sums + half * PART + q), tl.load(d_ptr + sums + half * PART + q)
        rest = q * 0.0
        end = tl.load(s_ptr + sums + half * PART + PART - 1)
        start = tl.load(s_ptr + sums + half * PART - 1, half > 0, 0.0)
        left, gone = end - s, s - start
        if EXACT:
            rest = tl.load(rest_ptr + sums + half * PART + q)
            left += tl.load(rest_ptr + sums + half * PART + PART - 1) - rest
            gone += rest - tl.load(rest_ptr + sums + half * PART - 1, half > 0, 0.0)
        from_start, to_end, passes = tl.exp2(gone), tl.exp2(left), tl.exp2(end - start)
        if RESETS:
            from_start = tl.where(run == run_start, from_start, 0.0)
            to_end = tl.where(run == run_end, to_end, 0.0)
            passes = tl.where(run_start == run_end, passes, 0.0)
        at = ((b * num_chunks + chunk) * H + h) * (K * N) + k[:, None] * N + n[None, :]
        state = tl.load(states_ptr + at, (k < K)[:, None] & (n < N)[None, :], 0.0)
        dstate = tl.load(dstates_ptr + at, (k < K)[:, None] & (n < N)[None, :], 0.0)
        if PARTS == 2:
            s_other = tl.load(s_ptr + sums + (1 - half) * PART + q)
            if half == 1:
                weight = tl.exp2(start - s_other) * tl.load(d_ptr + sums + q)
                before = tl.exp2(start)
                if RESETS:
                    weight = tl.where(run_other == run_start, weight, 0.0)
                    before = tl.where(run_before == run_start, before, 0.0)
                added = _tile(x_ptr + h * x_h, other, k, T, K, x_t, 0, T).to(tl.float32) * weight[:, None]
                wide = _tile(B_ptr, other, n, T, N, B_t, 0, T)
                state = tl.dot(tl.trans(added.to(wide.dtype)), wide, state * before, input_precision=PRECISION)
            else:
                last = tl.load(s_ptr + sums + C - 1)
                weight = tl.exp2(s_other - end)
                after = tl.exp2(last - end)
                if RESETS:
                    weight = tl.where(run_other == run_end, weight, 0.0)
                    after = tl.where(run_last == run_end, after, 0.0)
                added = _tile(dy_ptr + h * y_h, other, k, T, K, y_t, 0, T).to(tl.float32) * weight[:, None]
                wide = _tile(C_ptr, other, n, T, N, C_t, 0, T)
                dstate = tl.dot(tl.trans(added.to(wide.dtype)), wide, dstate * after, input_precision=PRECISION)
        x = _tile(x_ptr + h * x_h, t, k, T, K, x_t, 0, T)
        dy = _tile(dy_ptr + h * y_h, t, k, T, K, y_t, 0, T)
        W = tl.dot(dy, tl.trans(x), input_precision=PRECISION) * _decays(s, rest, run, PART, RESETS, EXACT, False)
        summed += W * d[None, :]
        W = W * scores
        # what a position does to itself stands in both sums and would leave its rounding behind where decay is fast
        own = tl.sum(tl.where(q[:, None] == q[None, :], W, 0.0), 1)
        W = tl.where(q[:, None] == q[None, :], 0.0, W)
        columns = tl.sum(W, 0)
        W = W * d[None, :]
        if EXACT:  # what passes over a position, added up, and not as a difference of sums
            before = tl.dot(W, tl.where(q[:, None] < q[None, :], 1.0, 0.0), input_precision="ieee")
            over = tl.sum(tl.where(q[:, None] >= q[None, :], before, 0.0), 0)
        else:
            over = tl.sum(W, 1) - d * columns
        to_B = tl.dot(x, dstate.to(x.dtype), input_precision=PRECISION) * to_end[:, None]
        V = tl.sum(to_B * B.to(tl.float32), 1)
        dB += to_B * d[:, None]
        to_C = tl.dot(dy, state.to(dy.dtype), input_precision=PRECISION) * from_start[:, None]
        U = tl.sum(to_C * Cs.to(tl.float32), 1)
        dC += to_C
        place = some * num_sequences * H + b * H + h
        out, apart = place * padded + t, tl.num_programs(2) * num_sequences.to(tl.int64) * H * padded
        tl.store(found_ptr + out, over)
        tl.store(found_ptr + apart + out, U)
        tl.store(found_ptr + 2 * apart + out, V)
        tl.store(found_ptr + 3 * apart + out, own + columns)
        tl.store(through_ptr + place * num_chunks * PARTS + piece, passes * tl.sum(tl.sum(state * dstate, 1), 0))
        if SKIP:
            if some == 0:
                skip = tl.sum(dy.to(tl.float32) * x.to(tl.float32), 0)
                tl.store(dD_ptr + ((b * num_chunks * PARTS + piece) * H + h) * K + k, skip, k < K)
    both = summed.to(B.dtype)
    dC = tl.dot(both, B, dC, input_precision=PRECISION)
    dB = tl.dot(tl.trans(both), Cs, dB, input_precision=PRECISION)
    inside = (t < T)[:, None] & (n < N)[None, :]
    out = (b * T + t)[:, None] * (G * N) + g * N + n[None, :]
    tl.store(dB_ptr + out, dB.to(dB_ptr.dtype.element_ty), inside)
    tl.store(dC_ptr + out, dC.to(dC_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=(*SIZES, "num_sequences"))
def _finish(
    found_ptr, through_ptr, d_ptr, dt_ptr, A_ptr, bias_ptr, ddt_ptr, dA_ptr, dbias_ptr, T, num_chunks, num_sequences,
    dt_b, dt_t, low, high,
    H: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, SUMMANDS: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    LIMITS: tl.constexpr, EXACT: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the steps, and those of A and of the bias for each part of a chunk."""
    piece, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    t = piece * PART + tl.arange(0, PART)
    known = (head < H)[None, :]
    padded, num_pieces = num_chunks * C, num_chunks * (C // PART)
    apart = SUMMANDS * num_sequences.to(tl.int64) * H * padded
    over, U = tl.zeros([PART, HEADS], tl.float32), tl.zeros([PART, HEADS], tl.float32)
    V, direct = tl.zeros([PART, HEADS], tl.float32), tl.zeros([PART, HEADS], tl.float32)
    V_before, through = tl.zeros([PART, HEADS], tl.float32), tl.zeros([HEADS], tl.float32)
    behind = known & (tl.arange(0, PART) > 0)[:, None]
    for some in tl.static_range(SUMMANDS):
        place = some * num_sequences * H + b * H + head.to(tl.int64)
        at = found_ptr + place[None, :] * padded + t[:, None]
        over += tl.load(at, known, 0.0)
        U += tl.load(at + apart, known, 0.0)
        V += tl.load(at + 2 * apart, known, 0.0)
        V_before += tl.load(at + 2 * apart - 1, behind, 0.0)
        direct += tl.load(at + 3 * apart, known, 0.0)
        through += tl.load(through_ptr + place * num_pieces + piece, head < H, 0.0)
    at = d_ptr + (b * H + head.to(tl.int64))[None, :] * padded + t[:, None]
    d = tl.load(at, known, 0.0)
    # those before a position are added up without it: where decay is fast it is far larger than they are
    V_before *= tl.load(at - 1, behind, 0.0)
    if EXACT:
        da = over + tl.cumsum(U, 0, reverse=True)
    else:
        da = tl.cumsum(over + U, 0, reverse=True)
    da += tl.cumsum(V_before, 0) + through[None, :]
    A = tl.load(A_ptr + head, head < H, 0.0).to(tl.float32)
    ddt = direct + V + A[None, :] * da
    inside = (t < T)[:, None] & known
    raw = tl.load(dt_ptr + b * dt_b + t.to(tl.int64)[:, None] * dt_t + head[None, :], inside, 0.0).to(tl.float32)
    if BIAS:
        raw += tl.load(bias_ptr + head, head < H, 0.0).to(tl.float32)[None, :]
    if LIMITS:
        held = raw
        if SOFTPLUS:
            held = softplus(raw)
        ddt = tl.where((held >= low) & (held <= high), ddt, 0.0)
    if SOFTPLUS:
        ddt *= sigmoid(raw)
    ddt = tl.where(inside, ddt, 0.0)
    tl.store(ddt_ptr + (b * T + t.to(tl.int64))[:, None] * H + head[None, :], ddt.to(ddt_ptr.dtype.element_ty), inside)
    sums = (b * num_pieces + piece) * H + head
    tl.store(dA_ptr + sums, tl.sum(d * da, 0), head < H)
    tl.store(dbias_ptr + sums, tl.sum(ddt, 0), head < H)


class _Sizes(NamedTuple):
    """What fixes the kernels of a call."""

    num_sequences: int
    T: int
    H: int
    K: int
    G: int
    N: int
    C: int

    @staticmethod
    def of(x: Tensor, B: Tensor) -> "_Sizes":
        num_sequences, T, H, K = x.shape
        C = CHUNKS[x.dtype] // (1 if K <= 64 else 2)
        return _Sizes(num_sequences, T, H, K, G=B.shape[2], N=B.shape[3], C=C)

    @property
    def num_chunks(self) -> int:
        return -(-self.T // self.C)

    @property
    def part(self) -> int:
        return min(PART, self.C)

    @property
    def states_at_once(self) -> int:
        return max(16, min(STATES_AT_ONCE, triton.next_power_of_2(self.N)))

    @property
    def num_parts(self) -> int:
        return -(-self.N // self.states_at_once)

    def constants(self, x: Tensor, run: Tensor | None) -> dict:
        precision = "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
        return {
            "H": self.H, "R": self.H // self.G, "K": self.K, "N": self.N, "C": self.C,
            "KP": max(16, triton.next_power_of_2(self.K)), "NB": self.states_at_once, "RESETS": run is not None,
            "EXACT": x.dtype == torch.float32, "PRECISION": precision,
            "num_stages": 3 if self.K <= 64 and self.N <= 64 else 1,  # what is loaded ahead must fit into shared memory
        }  # fmt: skip


class _Sums(NamedTuple):
    """Steps, their sums times A from the chunk's start, what float32 leaves of these, and what passes through a chunk."""

    d: Tensor
    s: Tensor
    rest: Tensor
    decay: Tensor


def _runs_of(seq_idx: Tensor | None, sizes: _Sizes) -> Tensor | None:
    """Count the resets up to each position, the one before the first put in front and the last repeated; (B, M C + 1)."""
    if seq_idx is None:
        return None
    changes = F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1, dtype=torch.int32), (2, 0))
    behind = sizes.num_chunks * sizes.C - sizes.T
    return torch.cat([changes, changes[:, -1:].expand(-1, behind)], 1).contiguous()


def _steps_and_sums(
    dt: Tensor,
    A: Tensor,
    bias: Tensor | None,
    softplus_: bool,
    low: float,
    high: float,
    run: Tensor | None,
    sizes: _Sizes,
    exact: bool,
) -> _Sums:
    B, H, M, C = sizes.num_sequences, sizes.H, sizes.num_chunks, sizes.C
    d, s, rest, decay = (
        torch.empty(B, H, length, dtype=torch.float32, device=dt.device)
        for length in (M * C, M * C, M * C if exact else 0, M)
    )
    heads = min(16, triton.next_power_of_2(H))
    _steps[(M, B, triton.cdiv(H, heads))](
        dt, A, A if bias is None else bias, d if run is None else run, d, s, rest, decay, sizes.T, M,
        dt.stride(0), dt.stride(1),
        low, high, H=H, C=C, BIAS=bias is not None, SOFTPLUS=softplus_, LIMITS=low > 0.0 or high < float("inf"),
        RESETS=run is not None, EXACT=exact, HEADS=heads,
    )  # fmt: skip
    return _Sums(d, s, rest, decay)


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def _states_before(
    x: Tensor, w: Tensor, sums: _Sums, run: Tensor | None, first: Tensor | None, sizes: _Sizes, *, backward: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Give the states before all chunks and after the last; backward, gradients of those after them and before the first."""
    B, H, K, N, M = sizes.num_sequences, sizes.H, sizes.K, sizes.N, sizes.num_chunks
    states = torch.empty(B, M, H, K, N, dtype=torch.float32, device=x.device)
    last = torch.empty(B, H, K, N, dtype=torch.float32, device=x.device)
    constants = sizes.constants(x, run)
    _of_chunks[(M * H, B, sizes.num_parts)](
        x,
        w,
        sums.d,
        sums.s,
        sums.rest,
        sums.d if run is None else run,
        states,
        sizes.T,
        M,
        *_strides(x),
        *_strides(w),
        BACKWARD=backward,
        **constants,
    )
    _walk[(triton.cdiv(K * N, WALK), B * H)](
        states, sums.decay, last if first is None else first, last, M, H=H, SIZE=K * N, BLOCK=WALK, AHEAD=AHEAD,
        FIRST=first is not None, BACKWARD=backward, num_warps=1,
    )  # fmt: skip
    return states, last


@torch.library.custom_op("dna_mamba::state_space_dual", mutates_args=())
def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus_: bool,
    low: float, high: float, first: Tensor | None, seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sizes = _Sizes.of(x, B)
    run = _runs_of(seq_idx, sizes)
    with torch.cuda.device_of(x):
        sums = _steps_and_sums(dt, A, bias, softplus_, low, high, run, sizes, x.dtype == torch.float32)
        states, last = _states_before(x, B, sums, run, first, sizes, backward=False)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _outputs[(sizes.num_chunks * sizes.G, sizes.num_sequences)](
            x, B, C, A if D is None else D, sums.d, sums.s, sums.rest, sums.d if run is None else run, states, y, sizes.T,
            sizes.num_chunks,
            *_strides(x), *_strides(B), *_strides(C), SKIP=D is not None, **sizes.constants(x, run), num_warps=WARPS["outputs"],
        )  # fmt: skip
    return y, last, states


@_scan.register_fake
def _(x, dt, A, B, C, D, bias, softplus_, low, high, first, seq_idx):
    sizes = _Sizes.of(x, B)
    state = (sizes.num_sequences, sizes.H, sizes.K, sizes.N)
    new = x.new_empty
    states = new(state[0], sizes.num_chunks, *state[1:], dtype=torch.float32)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), new(state, dtype=torch.float32), states


@torch.library.custom_op("dna_mamba::state_space_dual_backward", mutates_args=())
def _scan_backward(
    dy: Tensor, dlast: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    bias: Tensor | None, softplus_: bool, low: float, high: float, seq_idx: Tensor | None, states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sizes = _Sizes.of(x, B)
    run = _runs_of(seq_idx, sizes)
    M, T, H, K, parts = sizes.num_chunks, sizes.T, sizes.H, sizes.K, sizes.num_parts
    constants = sizes.constants(x, run)

    def new(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    with torch.cuda.device_of(x):
        sums = _steps_and_sums(dt, A, bias, softplus_, low, high, run, sizes, x.dtype == torch.float32)
        dstates, dfirst = _states_before(dy, C, sums, run, dlast, sizes, backward=True)
        runs = sums.d if run is None else run
        dx = new(x.shape, x.dtype)
        grid = (M * sizes.G, sizes.num_sequences)
        _input_gradients[grid](
            dy, B, C, A if D is None else D, sums.d, sums.s, sums.rest, runs, dstates, dx, T, M,
            *_strides(dy), *_strides(B), *_strides(C),
            SKIP=D is not None, **constants, num_warps=WARPS["input gradients"],
        )  # fmt: skip
        dB, dC = (new(B.shape, B.dtype) for _ in range(2))
        pieces = M * (sizes.C // sizes.part)
        found = new((4, parts, sizes.num_sequences, H, M * sizes.C))
        through = new((parts, sizes.num_sequences, H, pieces))
        dD = new((sizes.num_sequences, pieces, H, K) if D is not None else (0,))
        dA, dbias = (new((sizes.num_sequences, pieces, H)) for _ in range(2))
        ddt = new(dt.shape, dt.dtype)
        _weight_gradients[(pieces * sizes.G, sizes.num_sequences, parts)](
            x, dy, B, C, sums.d, sums.s, sums.rest, runs, states, dstates, dB, dC, found, through, dD, T, M,
            sizes.num_sequences, *_strides(x), *_strides(dy), *_strides(B), *_strides(C),
            PART=sizes.part, SKIP=D is not None, **constants, num_warps=WARPS["weight gradients"],
        )  # fmt: skip
        heads = min(16, triton.next_power_of_2(H))
        _finish[(pieces, sizes.num_sequences, triton.cdiv(H, heads))](
            found, through, sums.d, dt, A, A if bias is None else bias, ddt, dA, dbias, T, M, sizes.num_sequences,
            dt.stride(0), dt.stride(1), low, high, H=H, C=sizes.C, PART=sizes.part, SUMMANDS=parts, BIAS=bias is not None,
            SOFTPLUS=softplus_, LIMITS=low > 0.0 or high < float("inf"), EXACT=x.dtype == torch.float32, HEADS=heads,
        )  # fmt: skip
    of_bias = dbias.sum((0, 1)) if bias is not None else dbias.new_empty(0)
    skip = dD.sum((0, 1)) if D is not None else dD
    return dx, ddt, dA.sum((0, 1)), dB, dC, skip, torch.cat([of_bias, dfirst.flatten()])


@_scan_backward.register_fake
def _(dy, dlast, x, dt, A, B, C, D, bias, softplus_, low, high, seq_idx, states):
    def like(w):
        return torch.empty(w.shape, dtype=w.dtype, device=w.device)

    num_sequences, _, H, K = x.shape
    skip = x.new_empty((H, K) if D is not None else 0, dtype=torch.float32)
    rest = x.new_empty((0 if bias is None else H) + num_sequences * H * K * B.shape[3], dtype=torch.float32)
    return like(x), like(dt), A.new_empty(A.shape, dtype=torch.float32), like(B), like(C), skip, rest


def _remember(ctx, inputs, output):
    x, dt, A, B, C, D, bias, softplus_, low, high, first, seq_idx = inputs
    _, _, states = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(states)
    ctx.save_for_backward(x, dt, A, B, C, D, bias, seq_idx, states)
    ctx.rest = (softplus_, low, high, first is not None)


def _differentiate(ctx, dy, dlast, _):
    x, dt, A, B, C, D, bias, seq_idx, states = ctx.saved_tensors
    softplus_, low, high, has_first = ctx.rest
    if dy is None:
        if dlast is None:
            return (None,) * 12
        dy = torch.zeros_like(x)
    dlast = None if dlast is None else dlast.contiguous()
    dx, ddt, dA, dB, dC, dD, rest = _scan_backward(
        strided(dy), dlast, x, dt, A, B, C, D, bias, softplus_, low, high, seq_idx, states
    )
    H = x.shape[2]
    dbias = None if bias is None else rest[:H].to(bias.dtype)
    dfirst = rest[0 if bias is None else H :].reshape(x.shape[0], H, x.shape[3], B.shape[3]) if has_first else None
    return dx, ddt, dA.to(A.dtype), dB, dC, None if D is None else dD.to(D.dtype), dbias, None, None, None, dfirst, None


_scan.register_autograd(_differentiate, setup_context=_remember)


def state_space_dual_triton(
    x_BTHK: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D: Tensor | None,
    dt_bias_H: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    initial_state_BHKN: Tensor | None,
    seq_idx_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the Triton kernels; see `state_space_dual`."""
    if D is not None and D.dim() == 1:
        D = D[:, None].expand(-1, x_BTHK.shape[3])
    y, last, _ = _scan(
        strided(x_BTHK), strided(dt_BTH), A_H.contiguous(), strided(B_BTGN), strided(C_BTGN.to(B_BTGN.dtype)),
        None if D is None else D.contiguous(), None if dt_bias_H is None else dt_bias_H.contiguous(), dt_softplus, *dt_limit,
        None if initial_state_BHKN is None else initial_state_BHKN.float().contiguous(), seq_idx_BT,
    )  # fmt: skip
    return y, last
