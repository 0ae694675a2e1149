# Shapes: R rows (positions of all sequences), D channels
"""Root-mean-square norm with the residual sum before it, for GPUs in Triton: one pass over memory in either direction."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096
"""Of a tile of whole rows."""
SIZES = ("num_rows",)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, num_rows, num_channels, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < num_rows)[:, None] & (channel < num_channels)[None, :]
    at = row[:, None] * num_channels + channel[None, :]
    total = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual_ptr + at, inside, 0.0).to(tl.float32)
        total = total.to(total_ptr.dtype.element_ty).to(tl.float32)
        tl.store(total_ptr + at, total.to(total_ptr.dtype.element_ty), inside)
    scale = 1.0 / tl.sqrt(tl.sum(total * total, axis=1) / num_channels + eps)
    weight = tl.load(weight_ptr + channel, channel < num_channels, 0.0).to(tl.float32)
    y = total * scale[:, None] * weight[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=SIZES)
def _backward(
    total_ptr, weight_ptr, dy_ptr, dtotal_ptr, dx_ptr, dresidual_ptr, dweight_ptr, num_rows, num_channels, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr, PASSED: tl.constexpr,
):  # fmt: skip
    """Each program takes every n-th tile of rows, so that there are few partial sums of the weight's gradient."""
    channel = tl.arange(0, WIDTH)
    weight = tl.load(weight_ptr + channel, channel < num_channels, 0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, WIDTH], tl.float32)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    for _ in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        inside = (row < num_rows)[:, None] & (channel < num_channels)[None, :]
        at = row[:, None] * num_channels + channel[None, :]
        total = tl.load(total_ptr + at, inside, 0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, inside, 0.0).to(tl.float32)
        if PASSED:
            passed = tl.load(dtotal_ptr + at, inside, 0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(total * total, axis=1) / num_channels + eps)
        unit = total * scale[:, None]
        dweight += dy * unit
        dy *= weight[None, :]
        dtotal = scale[:, None] * (dy - unit * (tl.sum(dy * unit, axis=1) / num_channels)[:, None])
        if PASSED:
            dtotal += passed
        tl.store(dx_ptr + at, dtotal.to(dx_ptr.dtype.element_ty), inside)
        if RESIDUAL:
            tl.store(dresidual_ptr + at, dtotal.to(dresidual_ptr.dtype.element_ty), inside)
        row += tl.num_programs(0) * ROWS
    partial_at = dweight_ptr + tl.program_id(0) * num_channels + channel
    tl.store(partial_at, tl.sum(dweight, axis=0), channel < num_channels)


def _tile(num_channels: int) -> dict:
    width = triton.next_power_of_2(num_channels)
    rows = max(1, ELEMENTS // width)
    num_warps = 4 if width <= 4096 else 16
    return {"ROWS": rows, "WIDTH": width, "num_warps": num_warps}


def norm_forward(
    x: Tensor, weight_D: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel; give the norm and the sum with the residual, which is empty without one."""
    num_channels = weight_D.shape[0]
    x, weight_D = x.contiguous(), weight_D.contiguous()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    total = x.new_empty(0) if residual is None else torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    num_rows, tile = x.numel() // num_channels, _tile(num_channels)
    with torch.cuda.device_of(x):
        _forward[(-(-num_rows // tile["ROWS"]),)](
            x, x if residual is None else residual.contiguous(), weight_D, y, total, num_rows, num_channels, eps,
            RESIDUAL=residual is not None, **tile,
        )  # fmt: skip
    return y, total


def norm_backward(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight_D: Tensor, eps: float, x_dtype: torch.dtype, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward kernel; give the gradients of x, of the residual (empty without one) and of the weight."""
    num_channels = weight_D.shape[0]
    dy, total, weight_D = dy.contiguous(), total.contiguous(), weight_D.contiguous()
    dresidual = torch.empty(total.shape if residual else 0, dtype=total.dtype, device=total.device)
    # where x has the dtype of the residual, their gradients are one tensor
    shared = residual and x_dtype == total.dtype
    dx = dresidual if shared else torch.empty(total.shape, dtype=x_dtype, device=total.device)
    num_rows, tile = total.numel() // num_channels, _tile(num_channels)
    num_programs = -(-num_rows // tile["ROWS"])
    if total.is_cuda:
        num_programs = min(num_programs, 8 * torch.cuda.get_device_properties(total.device).multi_processor_count)
    dweight = torch.empty(num_programs, num_channels, dtype=torch.float32, device=total.device)
    with torch.cuda.device_of(total):
        _backward[(num_programs,)](
            total, weight_D, dy, dy if dtotal is None else dtotal.contiguous(), dx, dresidual, dweight,
            num_rows, num_channels, eps, RESIDUAL=residual and not shared, PASSED=dtotal is not None, **tile,
        )  # fmt: skip
    return dx, dresidual, dweight.sum(0)


@torch.library.custom_op("dna_mamba::rms_norm", mutates_args=())
def _norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return norm_forward(x, weight, eps, residual, dtype)


@_norm.register_fake
def _(x, weight, eps, residual, dtype):
    total = x.new_empty(0) if residual is None else torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    return torch.empty(x.shape, dtype=dtype, device=x.device), total


@torch.library.custom_op("dna_mamba::rms_norm_backward", mutates_args=())
def _norm_backward(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, eps: float, x_dtype: torch.dtype, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dresidual, dweight = norm_backward(dy, dtotal, total, weight, eps, x_dtype, residual)
    return (total.new_empty(0, dtype=x_dtype) if dx is dresidual else dx), dresidual, dweight


@_norm_backward.register_fake
def _(dy, dtotal, total, weight, eps, x_dtype, residual):
    shared = residual and x_dtype == total.dtype
    new = total.new_empty
    return (
        new(0 if shared else total.shape, dtype=x_dtype),
        new(total.shape if residual else 0),
        new(weight.shape, dtype=torch.float32),
    )


def _remember(ctx, inputs, output):
    x, weight, eps, residual, _ = inputs
    _, total = output
    ctx.set_materialize_grads(False)
    if residual is None:
        ctx.mark_non_differentiable(total)
    ctx.save_for_backward(x if residual is None else total, weight)
    ctx.rest = (eps, x.dtype, residual is not None)


def _differentiate(ctx, dy, dtotal):
    total, weight = ctx.saved_tensors
    eps, x_dtype, residual = ctx.rest
    if dy is None:
        if dtotal is None:
            return None, None, None, None, None
        return dtotal.to(x_dtype), None, None, dtotal, None
    dx, dresidual, dweight = _norm_backward(dy, dtotal if residual else None, total, weight, eps, x_dtype, residual)
    if residual and x_dtype == total.dtype:
        dx = dresidual
    return dx, dweight.to(weight.dtype), None, dresidual if residual else None, None


_norm.register_autograd(_differentiate, setup_context=_remember)


def rms_norm_triton(
    x: Tensor, weight_D: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Run the Triton kernels; see `rms_norm`."""
    return _norm(x, weight_D, eps, residual, dtype)
