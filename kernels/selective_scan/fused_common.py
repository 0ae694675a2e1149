# Shapes: B sequences, T positions, D channels, N states (padded to P, a power of two, in sums), C chunks, S segments
"""What the kernels of the selective scan share. Tensors of channels, one for each state, are kept in tuples.

So the compiler keeps all states of a channel in one lane: a sum over states needs no exchange, and no layout is ever
converted. A warp walks 64 channels, two a lane, or 32 where there are no more.
"""

import triton
import triton.language as tl

from dna_mamba.kernels.fused_functions import only_if, softplus

LN_2 = tl.constexpr(0.6931471805599453)
PIECE = tl.constexpr(4)
"""Positions whose inputs are brought into the first-level cache at once; divides SEGMENT."""
SIZES = ("num_sequences", "T", "num_chunks", "num_segments", "num_groups", "chunk_positions", "chunk_segments")
"""Arguments whose values call for no kernel of their own."""


@triton.jit
def step(delta, bias, SOFTPLUS: tl.constexpr):
    delta = delta.to(tl.float32) + bias
    if SOFTPLUS:
        delta = softplus(delta)
    return delta


@triton.jit
def load_row(ptr, N: tl.constexpr):
    """Load N float32 that every lane needs, two in one load; rows are padded to an even number."""
    pairs = ptr.to(tl.pointer_type(tl.int64))
    row = ()
    for i in tl.static_range((N + 1) // 2):
        two = tl.load(pairs + i)
        row = row + (two.to(tl.int32).to(tl.float32, bitcast=True),)
        if 2 * i + 1 < N:
            row = row + ((two >> 32).to(tl.int32).to(tl.float32, bitcast=True),)
    return row


@triton.jit
def load_states(ptr, stride, inside, N: tl.constexpr):
    """Load a tensor of channels for each state."""
    states = ()
    for n in tl.static_range(N):
        states = states + (tl.load(ptr + n * stride, inside, 0.0),)
    return states


@triton.jit
def store_states(ptr, stride, states, inside, N: tl.constexpr):
    for n in tl.static_range(N):
        tl.store(ptr + n * stride, states[n], inside)


@triton.jit
def zero_states(N: tl.constexpr, BLOCK: tl.constexpr):
    states = ()
    for _ in tl.static_range(N):
        states = states + (tl.zeros([BLOCK], tl.float32),)
    return states


@triton.jit
def touch(ptr, row, last, stride, column, num_columns, WIDTH: tl.constexpr, PIECE: tl.constexpr, THREADS: tl.constexpr):
    """Load one number from each 32-byte sector of PIECE rows, which the first-level cache then holds when they are needed.

    The compiler sinks ordinary loads to where their values are used. Rows outside 0 to last are replaced by the nearest.
    """
    SECTOR: tl.constexpr = 256 // ptr.dtype.element_ty.primitive_bitwidth
    SECTORS: tl.constexpr = (WIDTH + SECTOR - 1) // SECTOR
    LANES: tl.constexpr = THREADS if PIECE * SECTORS < THREADS else PIECE * SECTORS
    i = tl.arange(0, LANES)
    rows = tl.minimum(tl.maximum(row + (i // SECTORS) % PIECE, 0), last)
    columns = tl.minimum(column + (i % SECTORS) * SECTOR, num_columns - 1)
    return tl.load(ptr + (rows.to(tl.int64) * stride + columns))


@triton.jit
def fold(guard, touched, THREADS: tl.constexpr):
    """Use what was touched, which otherwise would not be loaded."""
    for i in tl.static_range(len(touched)):
        guard += tl.sum(tl.reshape(touched[i].to(tl.float32), [THREADS, touched[i].shape[0] // THREADS]), axis=1)
    return guard


@triton.jit
def count_as_used(ptr, guard, T, THREADS: tl.constexpr):
    """Store under a condition that never holds, since T is positive: else the compiler would drop what was only touched."""
    i = tl.arange(0, THREADS)
    tl.store(ptr + i, guard, i < -T)


@triton.jit
def exchange(sums, lane, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Add lanes in pairs: of COUNT sums, lanes with the bit WIDTH keep the upper half and give away the lower."""
    halved = ()
    if COUNT > 1:
        upper = (lane & WIDTH) != 0
        for i in tl.static_range(COUNT // 2):
            kept = tl.where(upper, sums[i + COUNT // 2], sums[i])
            given = tl.where(upper, sums[i], sums[i + COUNT // 2])
            halved = halved + (kept + tl.gather(given, lane ^ WIDTH, axis=1),)
    else:
        halved = (sums[0] + tl.gather(sums[0], lane ^ WIDTH, axis=1),)
    return halved


@triton.jit
def begin_sums(products, N: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr):
    """Begin to sum N tensors over the channels of each warp; P is N raised to a power of two.

    A lane first adds its own channels. Then lanes exchange halves: P numbers in all, against 5 P sum by sum. The last
    exchanges wait for each other, so they are left to `end_sums`, a position later, among independent work.
    """
    lane = tl.broadcast_to(tl.arange(0, 32)[None, :], [WARPS, 32])
    sums = ()
    for n in tl.static_range(N):
        sums = sums + (tl.sum(tl.reshape(products[n], [WARPS, 32, BLOCK // (32 * WARPS)]), axis=2),)
    for _ in tl.static_range(P - N):
        sums = sums + (tl.zeros([WARPS, 32], tl.float32),)
    for level in tl.static_range(2):
        sums = exchange(sums, lane, P >> level, 16 >> level)
    return sums


@triton.jit
def end_sums(ptr, warp_stride, sums, valid, N: tl.constexpr, P: tl.constexpr, WARPS: tl.constexpr):
    """Finish the sums and store the N of each warp, where valid."""
    lane = tl.broadcast_to(tl.arange(0, 32)[None, :], [WARPS, 32])
    for level in tl.static_range(2, 5):
        sums = exchange(sums, lane, P >> level, 16 >> level)
    thread = tl.arange(0, 32 * WARPS)
    ptr += (thread // 32) * warp_stride
    n = (thread % 32) // (32 // P)
    tl.store(ptr + n, tl.reshape(sums[0], [32 * WARPS]), only_if((thread % (32 // P) == 0) & (n < N), valid))


@triton.jit
def no_sums(P: tl.constexpr, WARPS: tl.constexpr):
    sums = (tl.zeros([WARPS, 32], tl.float32),)
    for _ in tl.static_range(P // 4 - 1):
        sums = sums + (tl.zeros([WARPS, 32], tl.float32),)
    return sums


@triton.jit
def place(num_channels, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """Name the sequence, stretch and channels of this program; channel tiles of one stretch run side by side."""
    num_tiles = tl.cdiv(num_channels, BLOCK)
    program = tl.program_id(0)
    channel = (program % num_tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < num_channels
    if FULL:
        inside = tl.full([BLOCK], True, tl.int1)
    return program % num_tiles, program // num_tiles, channel, inside
