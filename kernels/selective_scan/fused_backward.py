# Shapes: B sequences, T positions, D channels, N states (padded to P, a power of two, in sums), C chunks, S segments
"""The backward kernels of the selective scan: what each chunk sends back, and all gradients.

No states are stored but those that enter each segment. With h the states, lambda their adjoints and dy the gradient
after the gate, w_t = lambda_t a_t h_(t-1) obeys w_t = w_(t+1) + C_t dy_t h_t - lambda_t x_t B_t, which splits into a sum
from a forward walk and one from a backward walk. The term x_t B_t C_t dy_t stands in both and is left out of both. Both sums
restart in every segment from its exact end, w = (adjoint arriving) * (state leaving), so that rounding spans one segment.
"""

import triton
import triton.language as tl

from dna_mamba.kernels.fused_functions import only_if, sigmoid
from dna_mamba.kernels.selective_scan.fused_common import (
    LN_2,
    PIECE,
    SIZES,
    begin_sums,
    count_as_used,
    end_sums,
    fold,
    load_row,
    load_states,
    no_sums,
    place,
    step,
    store_states,
    touch,
    zero_states,
)


@triton.jit(do_not_specialize=SIZES)
def chunk_adjoints(
    delta_ptr, A2_ptr, C_ptr, z_ptr, bias_ptr, reset_ptr, dy_ptr, backs_ptr,
    T, num_channels, num_chunks, chunk_positions, row_width, delta_b, delta_t, z_b, z_t, dy_b, dy_t,
    N: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, FULL: tl.constexpr,
    SOFTPLUS: tl.constexpr, GATE: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """Give the adjoint that each chunk sends back to the state before it when none arrives from behind."""
    tile, stretch, channel, inside = place(num_channels, BLOCK, FULL)
    b, chunk = (stretch // num_chunks).to(tl.int64), stretch % num_chunks
    A2 = load_states(A2_ptr + channel, num_channels, inside, N)
    bias = tl.load(bias_ptr + channel, inside, 0.0)
    start = (chunk * chunk_positions).to(tl.int64)
    length = (tl.minimum(start + chunk_positions, T) - start).to(tl.int32)
    delta_ptr += b * delta_b + start * delta_t
    dy_ptr += b * dy_b + start * dy_t
    z_ptr += b * z_b + start * z_t
    C_ptr += (b * T + start) * row_width
    reset_ptr += b * T + start
    end = (length - 1).to(tl.int64)
    delta_at, dy_at = delta_ptr + end * delta_t, dy_ptr + end * dy_t
    z_at, C_at = z_ptr + end * z_t, C_ptr + end * row_width
    adjoint = zero_states(N, BLOCK)
    guard = tl.zeros([32 * WARPS], tl.float32)
    # inputs are loaded two positions ahead; delta and the gradient after the gate are ready one position ahead
    delta, dy = tl.load(delta_at + channel, inside, 0.0), tl.load(dy_at + channel, inside, 0.0).to(tl.float32)
    delta = step(delta, bias, SOFTPLUS)
    delta_at -= delta_t
    dy_at -= dy_t
    more = only_if(inside, length > 1)
    delta_next, dy_next = tl.load(delta_at + channel, more, 0.0), tl.load(dy_at + channel, more, 0.0)
    z_next = dy_next
    if GATE:
        gate = tl.load(z_at + channel, inside, 0.0).to(tl.float32)
        dy *= gate * sigmoid(gate)
        z_at -= z_t
        z_next = tl.load(z_at + channel, more, 0.0)
    for piece in range(0, length, PIECE):
        ahead = length - piece - 2 * PIECE
        touched = (
            touch(delta_ptr, ahead, length - 1, delta_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
            touch(dy_ptr, ahead, length - 1, dy_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
            touch(C_ptr, ahead, length - 1, row_width, 0, row_width, N, PIECE, 32 * WARPS),
        )
        if GATE:
            touched = touched + (
                touch(z_ptr, ahead, length - 1, z_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
            )
        for k in range(piece, tl.minimum(piece + PIECE, length)):
            C = load_row(C_at, N)
            C_at -= row_width
            delta_at -= delta_t
            dy_at -= dy_t
            more = only_if(inside, k + 2 < length)
            delta_later, dy_later = tl.load(delta_at + channel, more, 0.0), tl.load(dy_at + channel, more, 0.0)
            z_later = dy_later
            if GATE:
                z_at -= z_t
                z_later = tl.load(z_at + channel, more, 0.0)
            keep = 1.0
            if RESETS:
                keep = 1.0 - tl.load(reset_ptr + (length - 1 - k)).to(tl.float32)
            moved = ()
            for n in tl.static_range(N):
                a = tl.exp2(A2[n] * delta)
                if RESETS:
                    a *= keep
                moved = moved + (a * (adjoint[n] + C[n] * dy),)
            adjoint = moved
            delta, dy = step(delta_next, bias, SOFTPLUS), dy_next.to(tl.float32)
            if GATE:
                gate = z_next.to(tl.float32)
                dy *= gate * sigmoid(gate)
            delta_next, dy_next, z_next = delta_later, dy_later, z_later
        guard = fold(guard, touched, 32 * WARPS)
    store_states(backs_ptr + (b * num_chunks + chunk) * N * num_channels + channel, num_channels, adjoint, inside, N)
    count_as_used(backs_ptr, guard, T, 32 * WARPS)


@triton.jit(do_not_specialize=SIZES)
def gradients(
    u_ptr, delta_ptr, A2_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, reset_ptr, boundary_ptr, arriving_ptr, dy_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr, dfirst_ptr, scratch_ptr, parked_ptr,
    num_sequences, T, num_channels, num_chunks, num_segments, chunk_segments, row_width,
    u_b, u_t, delta_b, delta_t, z_b, z_t, dy_b, dy_t, dz_b, dz_t,
    N: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, FULL: tl.constexpr,
    SEGMENT: tl.constexpr, SOFTPLUS: tl.constexpr, GATE: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """Walk a chunk's segments from the last to the first: each forward for h and s, then backward for the adjoints."""
    tile, stretch, channel, inside = place(num_channels, BLOCK, FULL)
    b, chunk = (stretch // num_chunks).to(tl.int64), stretch % num_chunks
    lane = tl.arange(0, BLOCK)
    everywhere = tl.full([BLOCK], True, tl.int1)
    A2 = load_states(A2_ptr + channel, num_channels, inside, N)
    bias = tl.load(bias_ptr + channel, inside, 0.0)
    skip = tl.load(D_ptr + channel, inside, 0.0)
    first = chunk * chunk_segments
    last = tl.minimum(first + chunk_segments, num_segments)
    states_at = (b * num_chunks + chunk) * N * num_channels + channel
    program = tl.program_id(0).to(tl.int64)
    # of each position of a segment: delta, the gradient after the gate, and that times s
    scratch_ptr += program * (3 * BLOCK) * tl.minimum(T, SEGMENT)
    parked_ptr += program * (N * BLOCK) + lane  # the adjoint, out of the registers while a segment is walked forward
    adjoint = load_states(arriving_ptr + states_at, num_channels, inside, N)
    store_states(parked_ptr, BLOCK, adjoint, everywhere, N)
    warp_stride = num_sequences.to(tl.int64) * T * N  # partial sums of dB and dC, one a warp
    partial = (tile.to(tl.int64) * WARPS * num_sequences + b) * T
    dA = zero_states(N, BLOCK)
    dD = tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    guard = tl.zeros([32 * WARPS], tl.float32)
    u_ptr += b * u_b
    delta_ptr += b * delta_b
    z_ptr += b * z_b
    dy_ptr += b * dy_b
    B_ptr += b * T * row_width
    C_ptr += b * T * row_width
    reset_ptr += b * T
    for i in range(last - first):
        segment = last - 1 - i
        start = (segment * SEGMENT).to(tl.int64)
        length = (tl.minimum(start + SEGMENT, T) - start).to(tl.int32)
        u_at, delta_at = u_ptr + start * u_t, delta_ptr + start * delta_t
        z_at, dy_at = z_ptr + start * z_t, dy_ptr + start * dy_t
        B_at, C_at = B_ptr + start * row_width, C_ptr + start * row_width
        dz_at = dz_ptr + b * dz_b + start * dz_t
        dC_at = dC_ptr + (partial + start) * N
        scratch_at = scratch_ptr
        h = load_states(
            boundary_ptr + (b * num_segments + segment) * N * num_channels + channel, num_channels, inside, N
        )
        pending = no_sums(P, WARPS)
        c = tl.zeros([BLOCK], tl.float32)  # sum of delta in this segment, this position included
        u_next, delta_next, dy_next = (
            tl.load(u_at + channel, inside, 0.0),
            tl.load(delta_at + channel, inside, 0.0),
            tl.load(dy_at + channel, inside, 0.0),
        )
        z_next = dy_next
        if GATE:
            z_next = tl.load(z_at + channel, inside, 0.0)
        for piece in range(0, length, PIECE):
            # the piece after this one, or the first of the segment that is next
            ahead = segment * SEGMENT + tl.where(piece + PIECE < SEGMENT, piece + PIECE, -SEGMENT)
            touched = (
                touch(u_ptr, ahead, T - 1, u_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
                touch(delta_ptr, ahead, T - 1, delta_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
                touch(dy_ptr, ahead, T - 1, dy_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
                touch(B_ptr, ahead, T - 1, row_width, 0, row_width, N, PIECE, 32 * WARPS),
                touch(C_ptr, ahead, T - 1, row_width, 0, row_width, N, PIECE, 32 * WARPS),
            )
            if GATE:
                touched = touched + (
                    touch(z_ptr, ahead, T - 1, z_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
                )
            for k in range(piece, tl.minimum(piece + PIECE, length)):
                u, delta, dy = u_next.to(tl.float32), delta_next.to(tl.float32), dy_next.to(tl.float32)
                gate = z_next.to(tl.float32)
                B, C = load_row(B_at, N), load_row(C_at, N)
                B_at += row_width
                C_at += row_width
                u_at += u_t
                delta_at += delta_t
                dy_at += dy_t
                more = only_if(inside, k + 1 < length)
                u_next, delta_next = tl.load(u_at + channel, more, 0.0), tl.load(delta_at + channel, more, 0.0)
                dy_next = tl.load(dy_at + channel, more, 0.0)
                if GATE:
                    z_at += z_t
                    z_next = tl.load(z_at + channel, more, 0.0)
                delta = step(delta, bias, SOFTPLUS)
                c += delta
                keep = 1.0
                if RESETS:
                    keep = 1.0 - tl.load(reset_ptr + start + k).to(tl.float32)
                x = delta * u
                swish = 1.0
                s = 0.0
                if GATE:
                    s = sigmoid(gate)
                    swish = gate * s
                after_gate = dy * swish
                from_c = c * after_gate
                y = skip * u
                ds = tl.zeros([BLOCK], tl.float32)
                moved, products, sums = (), (), ()
                for n in tl.static_range(N):
                    a = tl.exp2(A2[n] * delta)
                    if RESETS:
                        a *= keep
                    before = a * h[n]
                    moved = moved + (before + B[n] * x,)
                    y += moved[n] * C[n]
                    before *= C[n]
                    ds += before * A2[n]
                    sums = sums + (dA[n] + before * from_c,)
                    products = products + (moved[n] * after_gate,)
                h = moved
                dA = sums
                end_sums(dC_at - N, warp_stride, pending, k > 0, N, P, WARPS)
                pending = begin_sums(products, N, P, BLOCK, WARPS)
                dC_at += N
                if GATE:
                    dz = dy * y * s * (1.0 + gate * (1.0 - s))
                    tl.store(dz_at + channel, dz.to(dz_ptr.dtype.element_ty), inside)
                    dz_at += dz_t
                dD += after_gate * u
                tl.store(scratch_at + lane, delta)
                tl.store(scratch_at + (BLOCK + lane), after_gate)
                tl.store(scratch_at + (2 * BLOCK + lane), ds * after_gate)
                scratch_at += 3 * BLOCK
            guard = fold(guard, touched, 32 * WARPS)
        end_sums(dC_at - N, warp_stride, pending, True, N, P, WARPS)
        tl.debug_barrier()  # the scratch may be read by other lanes than wrote it
        adjoint = load_states(parked_ptr, BLOCK, everywhere, N)
        W = tl.zeros([BLOCK], tl.float32)
        sums = ()
        for n in tl.static_range(N):
            leaving = adjoint[n] * h[n]
            W += A2[n] * leaving
            sums = sums + (dA[n] + leaving * c,)
        dA = sums
        pending = no_sums(P, WARPS)
        # the adjoint is decayed at the start of the next position, where there is time until B and C are there
        delta_behind, keep_behind = tl.zeros([BLOCK], tl.float32), 1.0
        end = length - 1
        u_at, delta_at = u_ptr + (start + end) * u_t, delta_ptr + (start + end) * delta_t
        B_at, C_at = B_ptr + (start + end) * row_width, C_ptr + (start + end) * row_width
        dB_at = dB_ptr + (partial + start + end) * N
        du_at = du_ptr + (b * T + start + end) * num_channels
        ddelta_at = ddelta_ptr + (b * T + start + end) * num_channels
        scratch_at = scratch_ptr + end * (3 * BLOCK)
        u_next, raw_next = tl.load(u_at + channel, inside, 0.0), tl.load(delta_at + channel, inside, 0.0)
        # two positions ahead: the scratch comes from the second-level cache
        delta_next = tl.load(scratch_at + lane, cache_modifier=".cg")
        dy_next = tl.load(scratch_at + (BLOCK + lane), cache_modifier=".cg")
        ds_next = tl.load(scratch_at + (2 * BLOCK + lane), cache_modifier=".cg")
        scratch_at -= 3 * BLOCK
        more = only_if(inside, length > 1)
        delta_later = tl.load(scratch_at + lane, more, 0.0, cache_modifier=".cg")
        dy_later = tl.load(scratch_at + (BLOCK + lane), more, 0.0, cache_modifier=".cg")
        for piece in range(0, length, PIECE):
            ahead = segment * SEGMENT + length - piece - 2 * PIECE
            touched = (
                touch(u_ptr, ahead, T - 1, u_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
                touch(delta_ptr, ahead, T - 1, delta_t, tile * BLOCK, num_channels, BLOCK, PIECE, 32 * WARPS),
                touch(B_ptr, ahead, T - 1, row_width, 0, row_width, N, PIECE, 32 * WARPS),
                touch(C_ptr, ahead, T - 1, row_width, 0, row_width, N, PIECE, 32 * WARPS),
            )
            for j in range(piece, tl.minimum(piece + PIECE, length)):
                u, raw, delta, dy, ds = u_next.to(tl.float32), raw_next.to(tl.float32), delta_next, dy_next, ds_next
                B, C = load_row(B_at, N), load_row(C_at, N)
                B_at -= row_width
                C_at -= row_width
                u_at -= u_t
                delta_at -= delta_t
                scratch_at -= 3 * BLOCK
                more = only_if(inside, j + 1 < length)
                u_next, raw_next = tl.load(u_at + channel, more, 0.0), tl.load(delta_at + channel, more, 0.0)
                ds_next = tl.load(scratch_at + (5 * BLOCK + lane), more, 0.0, cache_modifier=".cg")
                delta_next, dy_next = delta_later, dy_later
                more = only_if(inside, j + 2 < length)
                delta_later = tl.load(scratch_at + lane, more, 0.0, cache_modifier=".cg")
                dy_later = tl.load(scratch_at + (BLOCK + lane), more, 0.0, cache_modifier=".cg")
                keep = 1.0
                if RESETS:
                    keep = 1.0 - tl.load(reset_ptr + start + (end - j)).to(tl.float32)
                x = delta * u
                from_c = c * x
                c -= delta
                s = tl.zeros([BLOCK], tl.float32)
                r = tl.zeros([BLOCK], tl.float32)
                moved, products, sums = (), (), ()
                for n in tl.static_range(N):
                    a = tl.exp2(A2[n] * delta_behind)
                    if RESETS:
                        a *= keep_behind
                    arrived = adjoint[n] * a
                    behind = arrived * B[n]
                    s += behind * A2[n]
                    sums = sums + (dA[n] - behind * from_c,)
                    here = arrived + C[n] * dy
                    r += here * B[n]
                    products = products + (here * x,)
                    moved = moved + (here,)
                delta_behind, keep_behind = delta, keep
                adjoint = moved
                dA = sums
                W += ds - x * s
                end_sums(dB_at + N, warp_stride, pending, j > 0, N, P, WARPS)
                pending = begin_sums(products, N, P, BLOCK, WARPS)
                dB_at -= N
                tl.store(du_at + channel, (delta * r + skip * dy).to(du_ptr.dtype.element_ty), inside)
                du_at -= num_channels
                ddelta = u * r + LN_2 * W
                if SOFTPLUS:
                    ddelta *= sigmoid(raw + bias)
                dbias += ddelta
                tl.store(ddelta_at + channel, ddelta.to(ddelta_ptr.dtype.element_ty), inside)
                ddelta_at -= num_channels
            guard = fold(guard, touched, 32 * WARPS)
        end_sums(dB_at + N, warp_stride, pending, True, N, P, WARPS)
        moved = ()
        for n in tl.static_range(N):
            moved = moved + (adjoint[n] * (tl.exp2(A2[n] * delta_behind) * keep_behind),)
        adjoint = moved
        store_states(parked_ptr, BLOCK, adjoint, everywhere, N)
        tl.debug_barrier()
    if first == 0:
        adjoint = load_states(parked_ptr, BLOCK, everywhere, N)
        store_states(dfirst_ptr + b * N * num_channels + channel, num_channels, adjoint, inside, N)
    sums_at = (b * num_chunks + chunk) * num_channels + channel
    store_states(dA_ptr + states_at, num_channels, dA, inside, N)
    tl.store(dD_ptr + sums_at, dD, inside)
    tl.store(dbias_ptr + sums_at, dbias, inside)
    count_as_used(dfirst_ptr, guard, T, 32 * WARPS)
