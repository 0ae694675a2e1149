"""What a GPU can do at most, measured: the rates that kernels are compared with."""

import statistics

import torch
import triton
import triton.language as tl


@triton.jit
def _exponentials(x_ptr, steps, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    y, z, w = x * 0.9, x * 0.8, x * 0.7
    for _ in range(steps):  # four chains, each of which waits for itself alone
        x, y, z, w = tl.exp2(-x), tl.exp2(-y), tl.exp2(-z), tl.exp2(-w)
    tl.store(x_ptr + at, x + y + z + w)


def _median_seconds(function, repeats: int = 9) -> float:
    function()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_rate() -> float:
    """Give bytes a second of a copy of 2 GiB within the GPU's memory, read and written bytes both counted."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _median_seconds(lambda: target.copy_(source))


def exp_rate() -> float:
    """Give base-2 exponentials a second, as the scan computes them (ex2.approx.ftz)."""
    programs = 64 * torch.cuda.get_device_properties().multi_processor_count
    block, steps = 512, 2000
    x = torch.rand(programs * block, device="cuda")
    return (
        4 * steps * x.numel() / _median_seconds(lambda: _exponentials[(programs,)](x, steps, BLOCK=block, num_warps=4))
    )
