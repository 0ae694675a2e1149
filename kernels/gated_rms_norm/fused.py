# Shapes: R rows (a position and a group each), D channels of a group, G groups
"""The gated norm for GPUs in Triton: one pass over memory in either direction, the gate computed again in the backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dna_mamba.kernels.fused_functions import sigmoid, strided

ELEMENTS = 4096
"""Of a tile of whole rows."""
SIZES = ("num_rows",)


@triton.jit
def _place(
    y_stride, z_stride, num_rows, G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, row
):
    """Give the places of a tile in tensors whose positions are so far apart, its groups, channels and what is inside."""
    channel = tl.arange(0, WIDTH)
    inside = (row < num_rows)[:, None] & (channel < D)[None, :]
    position, group = row // G, row % G
    of_group = group[:, None] * D + channel[None, :]
    return position[:, None] * y_stride + of_group, position[:, None] * z_stride + of_group, of_group, inside


@triton.jit(do_not_specialize=SIZES)
def _forward(
    y_ptr, z_ptr, weight_ptr, out_ptr, num_rows, y_stride, z_stride, eps,
    G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, GATE_FIRST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at_y, at_z, of_group, inside = _place(y_stride, z_stride, num_rows, G, D, ROWS, WIDTH, row)
    y = tl.load(y_ptr + at_y, inside, 0.0).to(tl.float32)
    z = tl.load(z_ptr + at_z, inside, 0.0).to(tl.float32)
    gate = z * sigmoid(z)
    if GATE_FIRST:
        y *= gate
    unit = y / tl.sqrt(tl.sum(y * y, axis=1) / D + eps)[:, None]
    out = unit * tl.load(weight_ptr + of_group, inside, 0.0).to(tl.float32)
    if not GATE_FIRST:
        out *= gate
    tl.store(out_ptr + (row // G)[:, None] * (G * D) + of_group, out.to(out_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=SIZES)
def _backward(
    y_ptr, z_ptr, weight_ptr, dout_ptr, dy_ptr, dz_ptr, dweight_ptr, num_rows, y_stride, z_stride, eps,
    G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, GATE_FIRST: tl.constexpr,
):  # fmt: skip
    """Each program takes every n-th tile of rows of one group, so that there are few partial sums of the weight's gradient."""
    group = tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    weight = tl.load(weight_ptr + group * D + channel, channel < D, 0.0).to(tl.float32)[None, :]
    dweight = tl.zeros([ROWS, WIDTH], tl.float32)
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    num_positions = num_rows // G
    for _ in range(tl.program_id(0), tl.cdiv(num_positions, ROWS), tl.num_programs(0)):
        at_y, at_z, of_group, inside = _place(y_stride, z_stride, num_rows, G, D, ROWS, WIDTH, position * G + group)
        y = tl.load(y_ptr + at_y, inside, 0.0).to(tl.float32)
        z = tl.load(z_ptr + at_z, inside, 0.0).to(tl.float32)
        at = position[:, None] * (G * D) + of_group
        dout = tl.load(dout_ptr + at, inside, 0.0).to(tl.float32)
        open_ = sigmoid(z)
        gate = z * open_
        value = y
        if GATE_FIRST:
            value = y * gate
        scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / D + eps)[:, None]
        unit = value * scale
        dunit = dout * weight
        if not GATE_FIRST:
            dgate = dunit * unit
            dweight += dout * gate * unit
            dunit *= gate
        else:
            dweight += dout * unit
        dvalue = scale * (dunit - unit * (tl.sum(dunit * unit, axis=1) / D)[:, None])
        dy = dvalue
        if GATE_FIRST:
            dy = dvalue * gate
            dgate = dvalue * y
        dz = dgate * open_ * (1.0 + z * (1.0 - open_))
        tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), inside)
        tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), inside)
        position += tl.num_programs(0) * ROWS
    partial = dweight_ptr + (tl.program_id(0) * G + group) * D + channel
    tl.store(partial, tl.sum(dweight, axis=0), channel < D)


def _tile(width: int) -> dict:
    padded = triton.next_power_of_2(width)
    rows = max(1, ELEMENTS // padded)
    return {"ROWS": rows, "WIDTH": padded, "num_warps": 4 if padded <= 4096 else 16}


def _rows(x: Tensor) -> Tensor:
    """Give positions as rows; a slice of a wider tensor stays where it is."""
    x = strided(x)
    return x.flatten(0, -2) if x.dim() != 2 else x


@torch.library.custom_op("dna_mamba::gated_rms_norm", mutates_args=())
def _norm(y: Tensor, z: Tensor, weight: Tensor, num_groups: int, eps: float, gate_first: bool) -> Tensor:
    width = y.shape[-1] // num_groups
    rows_y, rows_z, tile = _rows(y), _rows(z), _tile(width)
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    num_rows = len(rows_y) * num_groups
    with torch.cuda.device_of(y):
        _forward[(triton.cdiv(num_rows, tile["ROWS"]),)](
            rows_y, rows_z, weight, out, num_rows, rows_y.stride(0), rows_z.stride(0), eps, G=num_groups, D=width,
            GATE_FIRST=gate_first, **tile,
        )  # fmt: skip
    return out


@_norm.register_fake
def _(y, z, weight, num_groups, eps, gate_first):
    return torch.empty(y.shape, dtype=y.dtype, device=y.device)


@torch.library.custom_op("dna_mamba::gated_rms_norm_backward", mutates_args=())
def _norm_backward(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, num_groups: int, eps: float, gate_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    width = y.shape[-1] // num_groups
    rows_y, rows_z, tile = _rows(y), _rows(z), _tile(width)
    dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    num_programs = triton.cdiv(len(rows_y), tile["ROWS"])
    if y.is_cuda:
        num_programs = min(num_programs, 8 * torch.cuda.get_device_properties(y.device).multi_processor_count)
    dweight = torch.empty(num_programs, y.shape[-1], dtype=torch.float32, device=y.device)
    with torch.cuda.device_of(y):
        _backward[(num_programs, num_groups)](
            rows_y, rows_z, weight, dout.contiguous(), dy, dz, dweight, len(rows_y) * num_groups, rows_y.stride(0),
            rows_z.stride(0), eps, G=num_groups, D=width, GATE_FIRST=gate_first, **tile,
        )  # fmt: skip
    return dy, dz, dweight.sum(0)


@_norm_backward.register_fake
def _(dout, y, z, weight, num_groups, eps, gate_first):
    return (
        torch.empty(y.shape, dtype=y.dtype, device=y.device),
        torch.empty(z.shape, dtype=z.dtype, device=z.device),
        weight.new_empty(weight.shape, dtype=torch.float32),
    )


def _remember(ctx, inputs, output):
    y, z, weight, *rest = inputs
    ctx.save_for_backward(y, z, weight)
    ctx.rest = rest


def _differentiate(ctx, dout):
    y, z, weight = ctx.saved_tensors
    dy, dz, dweight = _norm_backward(dout, y, z, weight, *ctx.rest)
    return dy, dz, dweight.to(weight.dtype), None, None, None


_norm.register_autograd(_differentiate, setup_context=_remember)


def gated_rms_norm_triton(
    y: Tensor, z: Tensor, weight_D: Tensor, num_groups: int, eps: float, gate_first: bool
) -> Tensor:
    """Run the Triton kernels; see `gated_rms_norm`."""
    return _norm(y, z, weight_D.contiguous(), num_groups, eps, gate_first)
