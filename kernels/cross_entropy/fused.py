# Shapes: R targets, V vocabulary
"""Next-base cross-entropy for GPUs in Triton: the logits are read where they lie, and no probabilities are kept."""

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZES = ("num_rows",)


@triton.jit
def _probabilities(logits_ptr, row, num_rows, vocabulary, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    token = tl.arange(0, WIDTH)
    inside = (row < num_rows)[:, None] & (token < vocabulary)[None, :]
    logits = tl.load(logits_ptr + row[:, None] * stride + token[None, :], inside, float("-inf")).to(tl.float32)
    highest = tl.max(logits, axis=1)
    powers = tl.exp(logits - highest[:, None])
    return token, inside, highest, powers, tl.sum(powers, axis=1)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    logits_ptr, targets_ptr, weights_ptr, losses_ptr, num_rows, vocabulary, stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    _, _, highest, _, total = _probabilities(logits_ptr, row, num_rows, vocabulary, stride, ROWS, WIDTH)
    target = tl.load(targets_ptr + row, row < num_rows, 0).to(tl.int64)
    known = (row < num_rows) & (target >= 0) & (target < vocabulary)
    score = tl.load(logits_ptr + row * stride + target, known, float("nan")).to(tl.float32)
    loss = highest + tl.log(total) - score
    if WEIGHTS:
        weight = tl.load(weights_ptr + row, row < num_rows, 0.0).to(tl.float32)
        loss = tl.where(weight > 0, loss * weight, 0.0)
    tl.store(losses_ptr + row, loss, row < num_rows)


@triton.jit(do_not_specialize=SIZES)
def _backward(
    logits_ptr, targets_ptr, weights_ptr, dlosses_ptr, dlogits_ptr, num_rows, vocabulary, stride, dlosses_stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, inside, _, powers, total = _probabilities(logits_ptr, row, num_rows, vocabulary, stride, ROWS, WIDTH)
    target = tl.load(targets_ptr + row, row < num_rows, 0).to(tl.int64)
    scale = tl.load(dlosses_ptr + row * dlosses_stride, row < num_rows, 0.0).to(tl.float32)
    dlogits = powers / total[:, None] - (token[None, :] == target[:, None]).to(tl.float32)
    known = (target >= 0) & (target < vocabulary)
    dlogits = tl.where(known[:, None], dlogits * scale[:, None], float("nan"))
    if WEIGHTS:
        weight = tl.load(weights_ptr + row, row < num_rows, 0.0).to(tl.float32)
        dlogits = tl.where((weight > 0)[:, None], dlogits * weight[:, None], 0.0)
    tl.store(dlogits_ptr + row[:, None] * vocabulary + token[None, :], dlogits.to(dlogits_ptr.dtype.element_ty), inside)


def _tile(vocabulary: int) -> dict:
    width = triton.next_power_of_2(vocabulary)
    return {"ROWS": max(1, 4096 // width), "WIDTH": width, "num_warps": 4}


def _flat(logits: Tensor) -> Tensor:
    flat = logits.reshape(-1, logits.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


@torch.library.custom_op("dna_mamba::cross_entropy", mutates_args=())
def _loss(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    flat, targets = _flat(logits), targets.contiguous()
    losses = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    num_rows, vocabulary = flat.shape
    tile = _tile(vocabulary)
    with torch.cuda.device_of(logits):
        _forward[(-(-num_rows // tile["ROWS"]),)](
            flat, targets, losses if weights is None else weights.contiguous(), losses,
            num_rows, vocabulary, flat.stride(0), WEIGHTS=weights is not None, **tile,
        )  # fmt: skip
    return losses


@_loss.register_fake
def _(logits, targets, weights):
    return torch.empty(targets.shape, dtype=torch.float32, device=logits.device)


@torch.library.custom_op("dna_mamba::cross_entropy_backward", mutates_args=())
def _loss_backward(dlosses: Tensor, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    flat, targets = _flat(logits), targets.contiguous()
    # the gradient of a sum is one number for all targets, which needs no copy
    one = dlosses.dim() > 0 and all(stride == 0 for stride in dlosses.stride())
    dlosses = dlosses if one else dlosses.contiguous()
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    num_rows, vocabulary = flat.shape
    tile = _tile(vocabulary)
    with torch.cuda.device_of(logits):
        _backward[(-(-num_rows // tile["ROWS"]),)](
            flat, targets, dlosses if weights is None else weights.contiguous(), dlosses, dlogits,
            num_rows, vocabulary, flat.stride(0), 0 if one else 1, WEIGHTS=weights is not None, **tile,
        )  # fmt: skip
    return dlogits


@_loss_backward.register_fake
def _(dlosses, logits, targets, weights):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _remember(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dlosses):
    logits, targets, weights = ctx.saved_tensors
    return _loss_backward(dlosses, logits, targets, weights), None, None


_loss.register_autograd(_differentiate, setup_context=_remember)


def cross_entropy_triton(logits_BTV: Tensor, targets_BT: Tensor, weights_BT: Tensor | None) -> Tensor:
    """Run the Triton kernels; see `cross_entropy`."""
    return _loss(logits_BTV, targets_BT, weights_BT)
