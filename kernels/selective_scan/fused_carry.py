# Shapes: B sequences, T positions, D channels, N states (padded to P, a power of two, in sums), C chunks, S segments
"""The carry over chunks: from what each chunk adds to the state to the state that enters it, in either direction."""

import triton
import triton.language as tl

from dna_mamba.kernels.fused_functions import only_if
from dna_mamba.kernels.selective_scan.fused_common import SIZES


@triton.jit
def nth(i, num_chunks, BACKWARD: tl.constexpr):
    if BACKWARD:
        i = num_chunks - 1 - i
    return i


@triton.jit(do_not_specialize=SIZES)
def join_groups(
    A2_ptr, sums_ptr, kept_ptr, ends_ptr, group_sums_ptr, group_kept_ptr, group_ends_ptr,
    num_lanes, num_channels, num_chunks, num_groups,
    GROUP: tl.constexpr, LANES: tl.constexpr, AT_ONCE: tl.constexpr, BACKWARD: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """Give what each group of GROUP chunks adds to the carried state; lanes are states times channels."""
    num_blocks = tl.cdiv(num_lanes, LANES)
    program = tl.program_id(0)
    lane = (program % num_blocks) * LANES + tl.arange(0, LANES)
    group, b = (program // num_blocks) % num_groups, (program // num_blocks // num_groups).to(tl.int64)
    inside = lane < num_lanes
    A2 = tl.load(A2_ptr + lane, inside, 0.0)
    h = tl.zeros([LANES], tl.float32)
    total = tl.zeros([LANES], tl.float32)
    kept = 1.0
    length = tl.minimum(GROUP, num_chunks - group * GROUP)
    for k in range(0, length, AT_ONCE):
        sums, ends, keeps = (), (), ()
        for j in tl.static_range(AT_ONCE):
            at = b * num_chunks + nth(group * GROUP + k + j, num_chunks, BACKWARD)
            there = only_if(inside, k + j < length)
            sums = sums + (tl.load(sums_ptr + at * num_channels + lane % num_channels, there, 0.0),)
            ends = ends + (tl.load(ends_ptr + at * num_lanes + lane, there, 0.0),)
            if RESETS:
                keeps = keeps + (tl.load(kept_ptr + at, k + j < length, 1.0),)
        for j in tl.static_range(AT_ONCE):
            a = tl.exp2(A2 * sums[j])
            if RESETS:
                a *= keeps[j]
                kept *= keeps[j]
            h = a * h + ends[j]
            total += sums[j]
    at = b * num_groups + group
    tl.store(group_ends_ptr + at * num_lanes + lane, h, inside)
    tl.store(group_sums_ptr + at * num_channels + lane % num_channels, total, inside & (lane < num_channels))
    if RESETS:
        tl.store(group_kept_ptr + at, kept)


@triton.jit(do_not_specialize=SIZES)
def carry(
    A2_ptr, sums_ptr, kept_ptr, ends_ptr, group_sums_ptr, group_kept_ptr, group_ends_ptr, first_ptr,
    num_lanes, num_channels, num_chunks, num_groups,
    GROUP: tl.constexpr, LANES: tl.constexpr, AT_ONCE: tl.constexpr, BACKWARD: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """Replace what each chunk adds by what enters it: the carry over the groups before, then over the group's chunks."""
    num_blocks = tl.cdiv(num_lanes, LANES)
    program = tl.program_id(0)
    lane = (program % num_blocks) * LANES + tl.arange(0, LANES)
    group, b = (program // num_blocks) % num_groups, (program // num_blocks // num_groups).to(tl.int64)
    inside = lane < num_lanes
    A2 = tl.load(A2_ptr + lane, inside, 0.0)
    h = tl.load(first_ptr + b * num_lanes + lane, inside, 0.0)
    for i in range(0, group, AT_ONCE):
        sums, ends, kept = (), (), ()
        for j in tl.static_range(AT_ONCE):
            at = b * num_groups + i + j
            there = only_if(inside, i + j < group)
            sums = sums + (tl.load(group_sums_ptr + at * num_channels + lane % num_channels, there, 0.0),)
            ends = ends + (tl.load(group_ends_ptr + at * num_lanes + lane, there, 0.0),)
            if RESETS:
                kept = kept + (tl.load(group_kept_ptr + at, i + j < group, 1.0),)
        for j in tl.static_range(AT_ONCE):
            a = tl.exp2(A2 * sums[j])
            if RESETS:
                a *= kept[j]
            h = a * h + ends[j]
    length = tl.minimum(GROUP, num_chunks - group * GROUP)
    for k in range(0, length, AT_ONCE):
        sums, ends, kept = (), (), ()
        for j in tl.static_range(AT_ONCE):
            at = b * num_chunks + nth(group * GROUP + k + j, num_chunks, BACKWARD)
            there = only_if(inside, k + j < length)
            sums = sums + (tl.load(sums_ptr + at * num_channels + lane % num_channels, there, 0.0),)
            ends = ends + (tl.load(ends_ptr + at * num_lanes + lane, there, 0.0),)
            if RESETS:
                kept = kept + (tl.load(kept_ptr + at, k + j < length, 1.0),)
        for j in tl.static_range(AT_ONCE):
            at = b * num_chunks + nth(group * GROUP + k + j, num_chunks, BACKWARD)
            tl.store(ends_ptr + at * num_lanes + lane, h, only_if(inside, k + j < length))
            a = tl.exp2(A2 * sums[j])
            if RESETS:
                a *= kept[j]
            h = a * h + ends[j]
