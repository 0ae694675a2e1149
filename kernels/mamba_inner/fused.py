# Shapes: B sequences, T positions, E channels, F = 2 E, N states, K taps, R rank of delta, P = R + 2 N
"""The inside of a Mamba layer as one operator around the convolution's and the scan's kernels."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dna_mamba.kernels.causal_conv1d import last_inputs
from dna_mamba.kernels.causal_conv1d.fused import conv_backward, conv_forward
from dna_mamba.kernels.selective_scan import SEGMENT
from dna_mamba.kernels.selective_scan.fused import as_rows, forward_shapes, scan_backward, scan_forward


def _in_given_dtypes(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """Keep autocast out: the matrix products run in the dtype of xz, as forward and backward must agree on."""

    @functools.wraps(function)
    def run(*arguments):
        with torch.autocast(arguments[0].device.type, enabled=False):
            return function(*arguments)

    return run


@torch.library.custom_op("dna_mamba::mamba_inner", mutates_args=())
@_in_given_dtypes
def _inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    conv_state: Tensor | None,
    scan_state: Tensor | None,
    keep: bool,
) -> list[Tensor]:
    """Give y and both states, then what the backward needs."""
    before, z = xz.chunk(2, dim=-1)
    x = conv_forward(before, conv_weight, conv_bias, conv_state, None, True)
    projected = F.linear(x, x_proj.to(xz.dtype))
    rank, num_states = dt_proj.shape[1], A.shape[1]
    delta = F.linear(projected[..., :rank], dt_proj.to(xz.dtype))
    B, C = as_rows(projected[..., rank : rank + num_states]), as_rows(projected[..., rank + num_states :])
    y, final, boundary, sums = scan_forward(x, delta, A, B, C, D, z, dt_bias, True, scan_state, None, keep)
    last = last_inputs(before, conv_state, None, conv_weight.shape[1])
    if not keep:
        none = xz.new_empty(0)
        return [y, last, final, none, none.clone(), none.clone(), none.clone(), none.clone(), boundary, sums]
    return [y, last, final, x, delta, projected[..., :rank].contiguous(), B, C, boundary, sums]


@_inner.register_fake
def _(xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, conv_state, scan_state, keep):
    (num_sequences, T, _), (num_channels, num_states) = xz.shape, A.shape
    new, width = xz.new_empty, num_states + num_states % 2
    x = new((num_sequences, T, num_channels))
    y, final, boundary, sums = forward_shapes(x, A, keep)
    last = new((num_sequences, conv_weight.shape[1] - 1, num_channels))
    if not keep:
        return [y, last, final, *(new(0) for _ in range(5)), boundary, sums]
    rows = [new((num_sequences, T, width), dtype=torch.float32) for _ in range(2)]
    return [y, last, final, x, new(x.shape), new((num_sequences, T, dt_proj.shape[1])), *rows, boundary, sums]


@torch.library.custom_op("dna_mamba::mamba_inner_backward", mutates_args=())
@_in_given_dtypes
def _inner_backward(
    dy: Tensor,
    dlast: Tensor | None,
    dfinal: Tensor | None,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    conv_state: Tensor | None,
    x: Tensor,
    delta: Tensor,
    reduced: Tensor,
    B: Tensor,
    C: Tensor,
    boundary: Tensor,
    sums: Tensor,
) -> list[Tensor]:
    before, z = xz.chunk(2, dim=-1)
    dxz = torch.empty(xz.shape, dtype=xz.dtype, device=xz.device)
    dbefore, dz = dxz.chunk(2, dim=-1)
    dx, ddelta, dA, dB, dC, dD, _, dbias, dstate = scan_backward(
        dy, dfinal, x, delta, A, B, C, D, z, dt_bias, True, None, boundary, sums, dz
    )
    flat = ddelta.flatten(0, 1)
    ddt_proj = flat.T @ reduced.flatten(0, 1)
    dprojected = torch.cat(
        [flat @ dt_proj.to(xz.dtype), dB.flatten(0, 1).to(xz.dtype), dC.flatten(0, 1).to(xz.dtype)], dim=1
    )
    dx_proj = dprojected.T @ x.flatten(0, 1)
    dx.flatten(0, 1).addmm_(dprojected, x_proj.to(xz.dtype))
    _, dconv_weight, dconv_bias, dconv_state = conv_backward(
        dx, before, conv_weight, conv_bias, conv_state, None, True, dbefore
    )
    if dlast is not None:
        T, num_before = xz.shape[1], conv_weight.shape[1] - 1
        of_inputs = min(T, num_before)
        dbefore[:, T - of_inputs :] += dlast[:, num_before - of_inputs :]
        if num_before > T and conv_state is not None:
            dconv_state[:, T:] += dlast[:, : num_before - T]
    return [
        dxz,
        dconv_weight.contiguous(),
        dconv_bias,
        dx_proj,
        ddt_proj,
        dbias,
        dA.contiguous(),
        dD,
        dconv_state,
        dstate,
    ]


@_inner_backward.register_fake
def _(dy, dlast, dfinal, xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, conv_state, x, *rest):
    single = {"dtype": torch.float32}
    new, (num_channels, num_states) = xz.new_empty, A.shape
    num_before = conv_weight.shape[1] - 1
    return [
        *(new(xz.shape), new(conv_weight.shape, **single), new(num_channels, **single)),
        *(new(x_proj.shape), new(dt_proj.shape), new(num_channels, **single)),
        *(new(A.shape, **single), new(num_channels, **single)),
        new((xz.shape[0] if conv_state is not None else 0, num_before, num_channels), **single),
        new((xz.shape[0], num_channels, num_states), **single),
    ]


def _remember(ctx, inputs, output):
    *tensors, conv_state, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(*tensors, conv_state, *output[3:])
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:-1]]


def _differentiate(ctx, gradients):
    dy, dlast, dfinal = gradients[:3]
    saved = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(saved[9])  # the convolution's output, which has the shape of y
    found = _inner_backward(dy, dlast, dfinal, *saved)
    return *(None if dtype is None else x.to(dtype) for x, dtype in zip(found, ctx.dtypes, strict=True)), None


_inner.register_autograd(_differentiate, setup_context=_remember)


def mamba_inner_triton(
    xz_BTF: Tensor,
    conv_weight_EK: Tensor,
    conv_bias_E: Tensor | None,
    x_proj_PE: Tensor,
    dt_proj_ER: Tensor,
    dt_bias_E: Tensor,
    A_EN: Tensor,
    D_E: Tensor,
    conv_state_BKE: Tensor | None,
    scan_state_BEN: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the operator; see `mamba_inner`."""
    inputs = (
        xz_BTF,
        conv_weight_EK,
        conv_bias_E,
        x_proj_PE,
        dt_proj_ER,
        dt_bias_E,
        A_EN,
        D_E,
        conv_state_BKE,
        scan_state_BEN,
    )
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    y_BTE, last_BKE, final_BEN, *_ = _inner(*inputs, keep)
    return y_BTE, last_BKE, final_BEN


def mamba_inner_states_triton(
    xz_BTF: Tensor, *weights_and_states: Tensor | None, segments_S: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the operator for one sequence, keeping what enters segments, as the backward would; see `mamba_inner_states`."""
    y_BTE, last_BKE, final_BEN, *rest = _inner(xz_BTF, *weights_and_states, True)
    boundary_SNE = rest[-2][0]
    scan_SEN = boundary_SNE[segments_S].transpose(1, 2).contiguous()
    conv_state_BKE = weights_and_states[-2]
    before_TE, num_before = xz_BTF[0].chunk(2, dim=-1)[0], last_BKE.shape[1]
    places_SK = segments_S[:, None] * SEGMENT + torch.arange(-num_before, 0, device=segments_S.device)
    conv_SKE = before_TE[places_SK.clamp(min=0)]
    earlier_SK1 = (places_SK < 0)[..., None]
    if conv_state_BKE is None:
        conv_SKE = conv_SKE.masked_fill(earlier_SK1, 0.0)
    else:
        history_SKE = conv_state_BKE[0][(places_SK + num_before).clamp(max=num_before - 1)].to(conv_SKE.dtype)
        conv_SKE = torch.where(earlier_SK1, history_SKE, conv_SKE)
    return y_BTE, last_BKE, final_BEN, conv_SKE, scan_SEN
