# Shapes: B sequences, D channels, N states (padded to P, a power of two)
"""One position of the selective scan for GPUs in Triton; the state is changed in place."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dna_mamba.kernels.fused_functions import LOG2_E, sigmoid, softplus, strided


@triton.jit(do_not_specialize=("num_sequences",))
def _step(
    state_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, y_ptr,
    num_sequences, num_channels, num_states, u_b, delta_b, B_b, C_b, z_b,
    P: tl.constexpr, BLOCK: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    num_tiles = tl.cdiv(num_channels, BLOCK)
    b = (tl.program_id(0) // num_tiles).to(tl.int64)
    channel = (tl.program_id(0) % num_tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < num_channels
    n = tl.arange(0, P)
    both = inside[:, None] & (n < num_states)[None, :]
    at = channel[:, None] * num_states + n[None, :]
    u = tl.load(u_ptr + b * u_b + channel, inside, 0.0).to(tl.float32)
    delta = tl.load(delta_ptr + b * delta_b + channel, inside, 0.0).to(tl.float32)
    if BIAS:
        delta += tl.load(bias_ptr + channel, inside, 0.0).to(tl.float32)
    if SOFTPLUS:
        delta = softplus(delta)
    A = tl.load(A_ptr + at, both, 0.0).to(tl.float32)
    B = tl.load(B_ptr + b * B_b + n, n < num_states, 0.0).to(tl.float32)
    C = tl.load(C_ptr + b * C_b + n, n < num_states, 0.0).to(tl.float32)
    state_ptr += b * num_channels * num_states
    state = tl.load(state_ptr + at, both, 0.0)
    state = tl.exp2(A * LOG2_E * delta[:, None]) * state + B[None, :] * (delta * u)[:, None]
    tl.store(state_ptr + at, state, both)
    y = tl.sum(state * C[None, :], axis=1)
    if SKIP:
        y += tl.load(D_ptr + channel, inside, 0.0).to(tl.float32) * u
    if GATE:
        gate = tl.load(z_ptr + b * z_b + channel, inside, 0.0).to(tl.float32)
        y *= gate * sigmoid(gate)
    tl.store(y_ptr + b * num_channels + channel, y.to(y_ptr.dtype.element_ty), inside)


@torch.library.custom_op("dna_mamba::selective_scan_step", mutates_args=("state",))
def selective_scan_step_triton(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Run the Triton kernel; see `selective_scan_step`."""
    u, delta, B, C = (strided(x) for x in (u, delta, B, C))
    z_ = u if z is None else strided(z)
    num_sequences, num_channels, num_states = state.shape
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    block = 32
    with torch.cuda.device_of(u):
        _step[(num_sequences * -(-num_channels // block),)](
            state, u, delta, A.contiguous(), B, C, u if D is None else D.contiguous(), z_,
            u if delta_bias is None else delta_bias.contiguous(), y,
            num_sequences, num_channels, num_states, u.stride(0), delta.stride(0), B.stride(0), C.stride(0), z_.stride(0),
            P=triton.next_power_of_2(num_states), BLOCK=block, SKIP=D is not None, GATE=z is not None,
            BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, num_warps=1,
        )  # fmt: skip
    return y


@selective_scan_step_triton.register_fake
def _(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)
