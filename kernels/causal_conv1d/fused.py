# Shapes: B sequences, T positions, D channels, K taps
"""The depthwise causal convolution for GPUs in Triton: each input is read once and each output written once.

A warp walks a tile of channels along a stretch of positions with the last K inputs in registers. The backward walks K - 1
positions further than its stretch, since a position's gradient comes from the K outputs that read it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dna_mamba.kernels.fused_functions import only_if, sigmoid, strided

SIZES = ("T", "num_pieces", "positions")
POSITIONS = 128
"""Of a program; more make fewer partial sums of the weights' gradient, fewer fill the GPU with one short sequence."""


@triton.jit
def _place(num_channels, num_pieces, BLOCK: tl.constexpr, FULL: tl.constexpr):
    num_tiles = tl.cdiv(num_channels, BLOCK)
    program = tl.program_id(0)
    channel = (program % num_tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < num_channels
    if FULL:
        inside = tl.full([BLOCK], True, tl.int1)
    stretch = program // num_tiles
    return stretch, (stretch // num_pieces).to(tl.int64), stretch % num_pieces, channel, inside


@triton.jit
def _load_taps(weight_ptr, channel, num_channels, inside, K: tl.constexpr):
    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(weight_ptr + k * num_channels + channel, inside, 0.0),)
    return taps


@triton.jit
def _before(x_ptr, first_ptr, start, x_t, channel, num_channels, inside, K: tl.constexpr, FIRST: tl.constexpr):
    """Load the K - 1 inputs before start; x_ptr and first_ptr are those of the sequence."""
    window = ()
    for k in tl.static_range(K - 1):
        t = start - (K - 1) + k
        x = tl.load(x_ptr + t.to(tl.int64) * x_t + channel, only_if(inside, t >= 0), 0.0).to(tl.float32)
        if FIRST:
            x += tl.load(first_ptr + (t + K - 1) * num_channels + channel, only_if(inside, t < 0), 0.0).to(tl.float32)
        window = window + (x,)
    return window


@triton.jit
def _tail(values, COUNT: tl.constexpr):
    """Drop the oldest of COUNT values."""
    kept = ()
    for k in tl.static_range(COUNT - 1):
        kept = kept + (values[k + 1],)
    return kept


@triton.jit(do_not_specialize=SIZES)
def _forward(
    x_ptr, weight_ptr, bias_ptr, first_ptr, reach_ptr, y_ptr,
    T, num_channels, num_pieces, positions, x_b, x_t,
    K: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr, UNROLL: tl.constexpr,
    SILU: tl.constexpr, FIRST: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    _, b, piece, channel, inside = _place(num_channels, num_pieces, BLOCK, FULL)
    taps = _load_taps(weight_ptr, channel, num_channels, inside, K)
    bias = tl.load(bias_ptr + channel, inside, 0.0)
    start = piece * positions
    end = tl.minimum(start + positions, T)
    x_ptr += b * x_b
    first_ptr += b * (K - 1) * num_channels
    y_ptr += (b * T + start) * num_channels
    window = _before(x_ptr, first_ptr, start, x_t, channel, num_channels, inside, K, FIRST)
    x_ptr += start.to(tl.int64) * x_t
    for t in range(start, end, UNROLL):
        loaded = ()
        for i in tl.static_range(UNROLL):
            loaded = loaded + (tl.load(x_ptr + i * x_t + channel, only_if(inside, t + i < end), 0.0),)
        for i in tl.static_range(UNROLL):
            read = window + (loaded[i].to(tl.float32),)
            total = bias
            for k in tl.static_range(K):
                term = taps[k] * read[k]
                if RESETS:
                    reach = tl.load(reach_ptr + b * T + t + i, t + i < end, 0)
                    term = tl.where(reach >= K - 1 - k, term, 0.0)
                total += term
            if SILU:
                total *= sigmoid(total)
            tl.store(y_ptr + i * num_channels + channel, total.to(y_ptr.dtype.element_ty), only_if(inside, t + i < end))
            window = _tail(read, K)
        x_ptr += UNROLL * x_t
        y_ptr += UNROLL * num_channels


@triton.jit(do_not_specialize=SIZES)
def _backward(
    x_ptr, weight_ptr, bias_ptr, first_ptr, reach_ptr, dy_ptr, dx_ptr, dfirst_ptr, dweight_ptr, dbias_ptr,
    T, num_channels, num_pieces, positions, x_b, x_t, dy_b, dy_t, dx_b, dx_t,
    K: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr, UNROLL: tl.constexpr,
    SILU: tl.constexpr, FIRST: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    stretch, b, piece, channel, inside = _place(num_channels, num_pieces, BLOCK, FULL)
    taps = _load_taps(weight_ptr, channel, num_channels, inside, K)
    bias = tl.load(bias_ptr + channel, inside, 0.0)
    start = piece * positions
    end = tl.minimum(start + positions, T)
    x_ptr += b * x_b
    first_ptr += b * (K - 1) * num_channels
    dfirst_ptr += b * (K - 1) * num_channels
    dy_ptr += b * dy_b + start.to(tl.int64) * dy_t
    dx_ptr += b * dx_b + (start - (K - 1)).to(tl.int64) * dx_t
    window = _before(x_ptr, first_ptr, start, x_t, channel, num_channels, inside, K, FIRST)
    x_ptr += start.to(tl.int64) * x_t
    gradients, reaches = (), ()  # of the last K - 1 sums, and how far back each of them reads
    dtaps = ()
    for _ in tl.static_range(K - 1):
        gradients = gradients + (tl.zeros([BLOCK], tl.float32),)
        reaches = reaches + (0,)
    for _ in tl.static_range(K):
        dtaps = dtaps + (tl.zeros([BLOCK], tl.float32),)
    dbias = tl.zeros([BLOCK], tl.float32)
    for t in range(start, end + K - 1, UNROLL):
        xs, dys = (), ()
        for i in tl.static_range(UNROLL):
            there = only_if(inside, t + i < T)
            xs = xs + (tl.load(x_ptr + i * x_t + channel, there, 0.0),)
            dys = dys + (tl.load(dy_ptr + i * dy_t + channel, there, 0.0),)
        for i in tl.static_range(UNROLL):
            now = t + i
            read = window + (xs[i].to(tl.float32),)
            d = dys[i].to(tl.float32)
            reach = K - 1
            if RESETS:
                reach = tl.load(reach_ptr + b * T + now, now < T, 0).to(tl.int32)
            if SILU:
                total = bias
                for k in tl.static_range(K):
                    term = taps[k] * read[k]
                    if RESETS:
                        term = tl.where(reach >= K - 1 - k, term, 0.0)
                    total += term
                s = sigmoid(total)
                d *= s * (1.0 + total * (1.0 - s))
            mine = tl.where(now < end, d, 0.0)
            dbias += mine
            summed = ()
            for k in tl.static_range(K):
                term = mine * read[k]
                if RESETS:
                    term = tl.where(reach >= K - 1 - k, term, 0.0)
                summed = summed + (dtaps[k] + term,)
            dtaps = summed
            gradients = gradients + (d,)
            reaches = reaches + (reach,)
            # the input K - 1 positions back is read by tap K - 1 - j of the sum j positions after it
            dx = tl.zeros([BLOCK], tl.float32)
            for j in tl.static_range(K):
                term = taps[K - 1 - j] * gradients[j]
                if RESETS:
                    term = tl.where(reaches[j] >= j, term, 0.0)
                dx += term
            at = now - (K - 1)
            tl.store(
                dx_ptr + i * dx_t + channel,
                dx.to(dx_ptr.dtype.element_ty),
                only_if(inside, (at >= start) & (at < end)),
            )
            if FIRST:
                tl.store(dfirst_ptr + (at + K - 1) * num_channels + channel, dx, only_if(inside, at < 0))
            window = _tail(read, K)
            gradients = _tail(gradients, K)
            reaches = _tail(reaches, K)
        x_ptr += UNROLL * x_t
        dy_ptr += UNROLL * dy_t
        dx_ptr += UNROLL * dx_t
    for k in tl.static_range(K):
        tl.store(dweight_ptr + (stretch.to(tl.int64) * K + k) * num_channels + channel, dtaps[k], inside)
    tl.store(dbias_ptr + stretch.to(tl.int64) * num_channels + channel, dbias, inside)


def _reach(seq_idx_BT: Tensor | None, num_taps: int, x: Tensor) -> Tensor:
    """Count how many positions before each are of its sequence, up to K - 1; a sequence begins before the first position."""
    if seq_idx_BT is None:
        return x.new_empty(0, dtype=torch.uint8)
    same_BT = torch.ones_like(seq_idx_BT, dtype=torch.bool)
    same_BT[:, 1:] = seq_idx_BT[:, 1:] == seq_idx_BT[:, :-1]
    reach_BT = torch.zeros_like(seq_idx_BT, dtype=torch.uint8)
    unbroken_BT = torch.ones_like(same_BT)
    for back in range(num_taps - 1):
        unbroken_BT = unbroken_BT & torch.nn.functional.pad(same_BT, (back, 0), value=True)[:, : same_BT.shape[1]]
        reach_BT += unbroken_BT
    return reach_BT


def _arguments(
    x: Tensor, weight_DK: Tensor, bias_D: Tensor | None, first: Tensor | None, seq_idx: Tensor | None, silu: bool
) -> tuple[tuple[Tensor, ...], tuple[int, int], dict]:
    _, T, num_channels = x.shape
    num_taps = weight_DK.shape[1]
    bias = torch.zeros(num_channels, device=x.device) if bias_D is None else bias_D.float().contiguous()
    block = 128 if num_channels >= 128 else 32
    tensors = (
        *(x, weight_DK.float().t().contiguous(), bias),
        *(x if first is None else first.contiguous(), _reach(seq_idx, num_taps, x)),
    )
    options = {
        "K": num_taps,
        "BLOCK": block,
        "FULL": num_channels % block == 0,
        "SILU": silu,
        "FIRST": first is not None,
        "RESETS": seq_idx is not None,
        "num_warps": 1,
        "enable_fp_fusion": True,
    }
    return tensors, (-(-num_channels // block), -(-T // POSITIONS)), options


def conv_forward(
    x_BTD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, first: Tensor | None, seq_idx: Tensor | None, silu: bool
) -> Tensor:
    """Run the forward kernel; `first` holds the K - 1 inputs before the first position."""
    num_sequences, T, num_channels = x_BTD.shape
    x = strided(x_BTD)
    tensors, (num_tiles, num_pieces), options = _arguments(x, weight_DK, bias_D, first, seq_idx, silu)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _forward[(num_tiles * num_pieces * num_sequences,)](
            *tensors, y, T, num_channels, num_pieces, POSITIONS, *x.stride()[:2], UNROLL=8, **options
        )
    return y


def conv_backward(
    dy_BTD: Tensor,
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    first: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    dx_BTD: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the backward kernel.

    Args:
        dx_BTD: Where to write the gradient of x, if it is to lie in a larger tensor.

    Returns:
        Gradients of x, weight_DK, bias_D and of the inputs before the first position (B, K - 1, D); all but that of x in
        float32, the last empty where there are none.
    """
    num_sequences, T, num_channels = x_BTD.shape
    num_taps = weight_DK.shape[1]
    x, dy = strided(x_BTD), strided(dy_BTD)
    tensors, (num_tiles, num_pieces), options = _arguments(x, weight_DK, bias_D, first, seq_idx, silu)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if dx_BTD is None else dx_BTD
    new = tensors[1].new_empty
    dfirst = new(num_sequences if first is not None else 0, num_taps - 1, num_channels)
    dweight = new(num_pieces * num_sequences, num_taps, num_channels)
    dbias = new(num_pieces * num_sequences, num_channels)
    with torch.cuda.device_of(x):
        _backward[(num_tiles * num_pieces * num_sequences,)](
            *tensors, dy, dx, dfirst, dweight, dbias, T, num_channels, num_pieces, POSITIONS,
            *x.stride()[:2], *dy.stride()[:2], *dx.stride()[:2], UNROLL=4, **options,
        )  # fmt: skip
    return dx, dweight.sum(0).t(), dbias.sum(0), dfirst


@torch.library.custom_op("dna_mamba::causal_conv1d", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor | None, seq_idx: Tensor | None, silu: bool
) -> Tensor:
    return conv_forward(x, weight, bias, first, seq_idx, silu)


@_conv.register_fake
def _(x, weight, bias, first, seq_idx, silu):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("dna_mamba::causal_conv1d_backward", mutates_args=())
def _conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor | None, seq_idx: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dweight, dbias, dfirst = conv_backward(dy, x, weight, bias, first, seq_idx, silu)
    return dx, dweight.contiguous(), dbias, dfirst


@_conv_backward.register_fake
def _(dy, x, weight, bias, first, seq_idx, silu):
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        weight.new_empty(weight.shape, dtype=torch.float32),
        weight.new_empty(weight.shape[0], dtype=torch.float32),
        x.new_empty((x.shape[0] if first is not None else 0, weight.shape[1] - 1, x.shape[2]), dtype=torch.float32),
    )


def _remember(ctx, inputs, output):
    x, weight, bias, first, seq_idx, silu = inputs
    ctx.save_for_backward(x, weight, bias, first, seq_idx)
    ctx.silu = silu


def _differentiate(ctx, dy):
    x, weight, bias, first, seq_idx = ctx.saved_tensors
    dx, dweight, dbias, dfirst = _conv_backward(dy, x, weight, bias, first, seq_idx, ctx.silu)
    return (
        *(dx, dweight.to(weight.dtype), None if bias is None else dbias.to(bias.dtype)),
        *(None if first is None else dfirst.to(first.dtype), None, None),
    )


_conv.register_autograd(_differentiate, setup_context=_remember)


def causal_conv1d_triton(
    x_BTD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, first: Tensor | None, seq_idx: Tensor | None, silu: bool
) -> Tensor:
    """Run the Triton kernels; see `causal_conv1d`."""
    return _conv(x_BTD, weight_DK, bias_D, first, seq_idx, silu)
