# Shapes: B sequences, T positions, D channels, K taps, P = T + K - 1 positions with the K - 1 before the first
"""The depthwise causal convolution with bias and silu in one pass over memory, compiled by numba."""

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dna_mamba.kernels.threads import run_parallel
from dna_mamba.kernels.vector import LANES, broadcast, load, sigmoid, store

ZERO, ONE = np.float32(0.0), np.float32(1.0)
CHUNK = 1024
"""Positions whose weight gradients are summed in float32 before they join a float64 total."""


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(x, weight, bias, silu, valid, y, first, end):
    """Items are channel blocks of sequences: item // blocks is the sequence."""
    for item in range(first, end):
        b, block = divmod(item, x.shape[2])
        _forward_block(x, weight, bias, silu, valid, y, b, block)


@njit(nogil=True, cache=True, error_model="numpy")
def _forward_block(x, weight, bias, silu, valid, y, b, block):
    num_taps, T, num_blocks = weight.shape[0], y.shape[1], y.shape[2]
    shift = load(bias, block * LANES)
    for t in range(T):
        total = shift
        for k in range(num_taps):
            if valid.shape[0] == 0 or valid[b, t, k]:
                tap = load(x, ((b * x.shape[1] + t + k) * num_blocks + block) * LANES)
                total += load(weight, (k * num_blocks + block) * LANES) * tap
        if silu:
            total *= sigmoid(total)
        store(y, ((b * T + t) * num_blocks + block) * LANES, total)


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(x, weight, bias, silu, valid, dy, dx, dweight, dbias, first, end):
    """Items are channel blocks of sequences: item // blocks is the sequence."""
    for item in range(first, end):
        b, block = divmod(item, x.shape[2])
        _backward_block(x, weight, bias, silu, valid, dy, dx, dweight, dbias, b, block)


@njit(nogil=True, cache=True, error_model="numpy")
def _backward_block(x, weight, bias, silu, valid, dy, dx, dweight, dbias, b, block):
    num_taps, T, num_blocks = weight.shape[0], dy.shape[1], dy.shape[2]
    shift, nothing = load(bias, block * LANES), broadcast(ZERO)
    # row k: gradient of tap k; the last row: of the bias
    sums, totals = np.zeros((num_taps + 1, LANES), np.float32), np.zeros((num_taps + 1, LANES), np.float64)
    for t in range(x.shape[1]):
        store(dx, ((b * x.shape[1] + t) * num_blocks + block) * LANES, nothing)
    for t in range(T):
        d = load(dy, ((b * T + t) * num_blocks + block) * LANES)
        if silu:
            total = shift
            for k in range(num_taps):
                if valid.shape[0] == 0 or valid[b, t, k]:
                    tap = load(x, ((b * x.shape[1] + t + k) * num_blocks + block) * LANES)
                    total += load(weight, (k * num_blocks + block) * LANES) * tap
            s = sigmoid(total)
            d *= s * (ONE + total * (ONE - s))
        store(sums, num_taps * LANES, load(sums, num_taps * LANES) + d)
        for k in range(num_taps):
            if valid.shape[0] == 0 or valid[b, t, k]:
                at = ((b * x.shape[1] + t + k) * num_blocks + block) * LANES
                store(sums, k * LANES, load(sums, k * LANES) + d * load(x, at))
                store(dx, at, load(dx, at) + d * load(weight, (k * num_blocks + block) * LANES))
        if t % CHUNK == CHUNK - 1 or t == T - 1:
            totals += sums
            sums[:] = ZERO
    for i in range(LANES):
        dbias[b, block, i] = totals[num_taps, i]
        for k in range(num_taps):
            dweight[b, k, block, i] = totals[k, i]


def _lanes(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().unflatten(-1, (-1, LANES)).numpy()


class CausalConv1dCPU(torch.autograd.Function):
    """The channels are a multiple of LANES."""

    @staticmethod
    def forward(ctx, x_BPD, weight_DK, bias_D, silu, valid_BTK):
        x, weight, bias = _lanes(x_BPD), _lanes(weight_DK.T), _lanes(bias_D)
        valid = np.zeros((0, 0, 0), np.bool_) if valid_BTK is None else valid_BTK.contiguous().numpy()
        num_sequences, positions, num_blocks, _ = x.shape
        y = np.empty((num_sequences, positions - weight.shape[0] + 1, num_blocks, LANES), np.float32)
        run_parallel(_forward, (x, weight, bias, silu, valid, y), num_sequences * num_blocks)
        ctx.save_for_backward(x_BPD, weight_DK, bias_D)
        ctx.rest = (silu, valid)
        return torch.from_numpy(y).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BTD):
        x_BPD, weight_DK, bias_D = ctx.saved_tensors
        x, weight, bias = _lanes(x_BPD), _lanes(weight_DK.T), _lanes(bias_D)
        silu, valid = ctx.rest
        num_sequences, _, num_blocks, _ = x.shape
        dx = np.empty_like(x)
        dweight = np.empty((num_sequences, *weight.shape), np.float32)
        dbias = np.empty((num_sequences, *bias.shape), np.float32)
        shared = (x, weight, bias, silu, valid, _lanes(dy_BTD), dx, dweight, dbias)
        run_parallel(_backward, shared, num_sequences * num_blocks)
        dx_BPD, dweight_KD = torch.from_numpy(dx).flatten(2), torch.from_numpy(dweight).sum(0).flatten(1)
        return dx_BPD, dweight_KD.T, torch.from_numpy(dbias).sum(0).flatten(), None, None


def causal_conv1d_cpu(
    x_BPD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, silu: bool, valid_BTK: Tensor | None
) -> Tensor:
    """Run the compiled convolution in float32; see `causal_conv1d`."""
    num_channels = x_BPD.shape[-1]
    padding = -num_channels % LANES
    x_BPD_, weight_DK_ = x_BPD.float(), weight_DK.float()
    bias_D_ = torch.zeros(num_channels) if bias_D is None else bias_D.float()
    if padding:
        x_BPD_, weight_DK_ = F.pad(x_BPD_, (0, padding)), F.pad(weight_DK_, (0, 0, 0, padding))
        bias_D_ = F.pad(bias_D_, (0, padding))
    y_BTD = CausalConv1dCPU.apply(x_BPD_, weight_DK_, bias_D_, silu, valid_BTK)
    return y_BTD[..., :num_channels].to(x_BPD.dtype)
