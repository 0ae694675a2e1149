# Shapes: B sequences, D channels, K taps
"""One position of the causal convolution for GPUs in Triton; the state is changed in place."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dna_mamba.kernels.fused_functions import sigmoid, strided


@triton.jit(do_not_specialize=("num_sequences",))
def _step(
    state_ptr, x_ptr, weight_ptr, bias_ptr, y_ptr, num_sequences, num_channels, x_b,
    K: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    num_tiles = tl.cdiv(num_channels, BLOCK)
    b = (tl.program_id(0) // num_tiles).to(tl.int64)
    channel = (tl.program_id(0) % num_tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < num_channels
    state_ptr += b * (K - 1) * num_channels + channel
    x = tl.load(x_ptr + b * x_b + channel, inside, 0.0)
    total = x.to(tl.float32) * tl.load(weight_ptr + channel * K + K - 1, inside, 0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias_ptr + channel, inside, 0.0).to(tl.float32)
    for k in tl.static_range(K - 1):
        before = tl.load(state_ptr + k * num_channels, inside, 0.0)
        total += before.to(tl.float32) * tl.load(weight_ptr + channel * K + k, inside, 0.0).to(tl.float32)
        if k > 0:
            tl.store(state_ptr + (k - 1) * num_channels, before, inside)
    tl.store(state_ptr + (K - 2) * num_channels, x.to(state_ptr.dtype.element_ty), inside)
    if SILU:
        total *= sigmoid(total)
    tl.store(y_ptr + b * num_channels + channel, total.to(y_ptr.dtype.element_ty), inside)


@torch.library.custom_op("dna_mamba::causal_conv1d_step", mutates_args=("state",))
def causal_conv1d_step_triton(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Run the Triton kernel; see `causal_conv1d_step`."""
    x = strided(x)
    num_sequences, num_channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _step[(num_sequences * -(-num_channels // 128),)](
            state, x, weight.contiguous(), x if bias is None else bias.contiguous(), y, num_sequences, num_channels,
            x.stride(0), K=weight.shape[1], BLOCK=128, BIAS=bias is not None, SILU=silu, num_warps=1,
        )  # fmt: skip
    return y


@causal_conv1d_step_triton.register_fake
def _(state, x, weight, bias, silu):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
