# Shapes: B sequences, T positions, D channels, N states (padded to P, a power of two, in sums), C chunks, S segments
"""The forward kernels of the selective scan: what each chunk adds to the state, and the outputs."""

import triton
import triton.language as tl

from dna_mamba.kernels.fused_functions import only_if, sigmoid
from dna_mamba.kernels.selective_scan.fused_common import (
    PIECE,
    SIZES,
    count_as_used,
    fold,
    load_row,
    load_states,
    place,
    step,
    store_states,
    touch,
    zero_states,
)


@triton.jit(do_not_specialize=SIZES)
def chunk_states(
    u_ptr, delta_ptr, A2_ptr, B_ptr, bias_ptr, reset_ptr, ends_ptr, sums_ptr, kept_ptr,
    T, num_channels, num_chunks, chunk_positions, row_width, u_b, u_t, delta_b, delta_t,
    N: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, FULL: tl.constexpr,
    SOFTPLUS: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """Give the state that each chunk ends with when it starts from zero, its sum of delta, and whether it has no reset."""
    tile, stretch, channel, inside = place(num_channels, BLOCK, FULL)
    b, chunk = (stretch // num_chunks).to(tl.int64), stretch % num_chunks
    A2 = load_states(A2_ptr + channel, num_channels, inside, N)
    bias = tl.load(bias_ptr + channel, inside, 0.0)
    start = (chunk * chunk_positions).to(tl.int64)
    length = (tl.minimum(start + chunk_positions, T) - start).to(tl.int32)
    u_ptr += b * u_b + start * u_t
    delta_ptr += b * delta_b + start * delta_t
    B_ptr += (b * T + start) * row_width
    reset_ptr += b * T + start
    u_at, delta_at, B_at = u_ptr, delta_ptr, B_ptr
    h = zero_states(N, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    kept = 1.0
    guard = tl.zeros([32 * WARPS], tl.float32)
    # inputs are loaded two positions ahead; delta is ready one position ahead
    u, delta = tl.load(u_at + channel, inside, 0.0), tl.load(delta_at + channel, inside, 0.0)
    u, delta = u.to(tl.float32), step(delta, bias, SOFTPLUS)
    u_at += u_t
    delta_at += delta_t
    more = only_if(inside, length > 1)
    u_next, delta_next = tl.load(u_at + channel, more, 0.0), tl.load(delta_at + channel, more, 0.0)
    for piece in range(0, length, PIECE):
        touched = (
            touch(u_ptr, piece + PIECE, length - 1, u_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
            touch(delta_ptr, piece + PIECE, length - 1, delta_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
            touch(B_ptr, piece + PIECE, length - 1, row_width, 0, row_width, N, PIECE, 32 * WARPS),
        )
        for k in range(piece, tl.minimum(piece + PIECE, length)):
            B = load_row(B_at, N)
            B_at += row_width
            u_at += u_t
            delta_at += delta_t
            more = only_if(inside, k + 2 < length)
            u_later, delta_later = tl.load(u_at + channel, more, 0.0), tl.load(delta_at + channel, more, 0.0)
            keep = 1.0
            if RESETS:
                keep = 1.0 - tl.load(reset_ptr + k).to(tl.float32)
                kept *= keep
            x = delta * u
            moved = ()
            for n in tl.static_range(N):
                a = tl.exp2(A2[n] * delta)
                if RESETS:
                    a *= keep
                moved = moved + (a * h[n] + B[n] * x,)
            h = moved
            total += delta
            u, delta = u_next.to(tl.float32), step(delta_next, bias, SOFTPLUS)
            u_next, delta_next = u_later, delta_later
        guard = fold(guard, touched, 32 * WARPS)
    at = b * num_chunks + chunk
    store_states(ends_ptr + at * N * num_channels + channel, num_channels, h, inside, N)
    tl.store(sums_ptr + at * num_channels + channel, total, inside)
    if RESETS:
        tl.store(kept_ptr + at, kept)
    count_as_used(sums_ptr, guard, T, 32 * WARPS)


@triton.jit(do_not_specialize=SIZES)
def outputs(
    u_ptr, delta_ptr, A2_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, reset_ptr, entering_ptr,
    y_ptr, boundary_ptr, final_ptr,
    T, num_channels, num_chunks, num_segments, chunk_segments, row_width, u_b, u_t, delta_b, delta_t, z_b, z_t,
    N: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, FULL: tl.constexpr, SEGMENT: tl.constexpr,
    SOFTPLUS: tl.constexpr, GATE: tl.constexpr, RESETS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Scan each chunk from the state that enters it; write outputs, the states that enter segments, the final state."""
    tile, stretch, channel, inside = place(num_channels, BLOCK, FULL)
    b, chunk = (stretch // num_chunks).to(tl.int64), stretch % num_chunks
    A2 = load_states(A2_ptr + channel, num_channels, inside, N)
    bias = tl.load(bias_ptr + channel, inside, 0.0)
    skip = tl.load(D_ptr + channel, inside, 0.0)
    h = load_states(entering_ptr + (b * num_chunks + chunk) * N * num_channels + channel, num_channels, inside, N)
    first = chunk * chunk_segments
    last = tl.minimum(first + chunk_segments, num_segments)
    start = (first * SEGMENT).to(tl.int64)
    u_ptr += b * u_b
    delta_ptr += b * delta_b
    z_ptr += b * z_b
    B_ptr += b * T * row_width
    C_ptr += b * T * row_width
    reset_ptr += b * T
    u_at, delta_at, z_at = u_ptr + start * u_t, delta_ptr + start * delta_t, z_ptr + start * z_t
    B_at, C_at = B_ptr + start * row_width, C_ptr + start * row_width
    y_at = y_ptr + (b * T + start) * num_channels
    boundary_ptr += (b * num_segments + first) * N * num_channels + channel
    guard = tl.zeros([32 * WARPS], tl.float32)
    # inputs are loaded two positions ahead; delta and the gate are ready one position ahead
    u, delta = tl.load(u_at + channel, inside, 0.0), tl.load(delta_at + channel, inside, 0.0)
    u, delta = u.to(tl.float32), step(delta, bias, SOFTPLUS)
    u_at += u_t
    delta_at += delta_t
    more = only_if(inside, start + 1 < T)
    u_next, delta_next = tl.load(u_at + channel, more, 0.0), tl.load(delta_at + channel, more, 0.0)
    swish, z_next = u, u_next
    if GATE:
        gate = tl.load(z_at + channel, inside, 0.0).to(tl.float32)
        swish = gate * sigmoid(gate)
        z_at += z_t
        z_next = tl.load(z_at + channel, more, 0.0)
    for piece in range(first * SEGMENT, tl.minimum(last * SEGMENT, T), PIECE):
        if KEEP:
            if piece % SEGMENT == 0:
                store_states(boundary_ptr, num_channels, h, inside, N)
                boundary_ptr += N * num_channels
        touched = (
            touch(u_ptr, piece + PIECE, T - 1, u_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
            touch(delta_ptr, piece + PIECE, T - 1, delta_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
            touch(B_ptr, piece + PIECE, T - 1, row_width, 0, row_width, N, PIECE, 32 * WARPS),
            touch(C_ptr, piece + PIECE, T - 1, row_width, 0, row_width, N, PIECE, 32 * WARPS),
        )
        if GATE:
            touched = touched + (
                touch(z_ptr, piece + PIECE, T - 1, z_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
            )
        for t in range(piece, tl.minimum(piece + PIECE, T)):
            B, C = load_row(B_at, N), load_row(C_at, N)
            B_at += row_width
            C_at += row_width
            u_at += u_t
            delta_at += delta_t
            more = only_if(inside, t + 2 < T)
            u_later, delta_later = tl.load(u_at + channel, more, 0.0), tl.load(delta_at + channel, more, 0.0)
            z_later = u_later
            if GATE:
                z_at += z_t
                z_later = tl.load(z_at + channel, more, 0.0)
            keep = 1.0
            if RESETS:
                keep = 1.0 - tl.load(reset_ptr + t).to(tl.float32)
            x = delta * u
            y = skip * u
            moved = ()
            for n in tl.static_range(N):
                a = tl.exp2(A2[n] * delta)
                if RESETS:
                    a *= keep
                moved = moved + (a * h[n] + B[n] * x,)
                y += moved[n] * C[n]
            h = moved
            if GATE:
                y *= swish
                gate = z_next.to(tl.float32)
                swish = gate * sigmoid(gate)
            tl.store(y_at + channel, y.to(y_ptr.dtype.element_ty), inside)
            y_at += num_channels
            u, delta = u_next.to(tl.float32), step(delta_next, bias, SOFTPLUS)
            u_next, delta_next, z_next = u_later, delta_later, z_later
        guard = fold(guard, touched, 32 * WARPS)
    if last == num_segments:
        store_states(final_ptr + b * N * num_channels + channel, num_channels, h, inside, N)
    count_as_used(final_ptr, guard, T, 32 * WARPS)
