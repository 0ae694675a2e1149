# Shapes: B sequences, T positions, D channels, N states
"""The selective scan for CPUs: forward and backward compiled by numba, 16 channels at a time in vector registers.

A channel block is walked along the sequence with its states in the first-level cache. The forward keeps the state that
enters every chunk; the backward takes the chunks from the last to the first, recomputes the states of one chunk into a
scratch that fits the second-level cache, and walks it backwards. Memory beyond inputs and gradients is therefore
D N / CHUNK floats a position, and nothing is ever divided by a decay.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dna_mamba.kernels.threads import run_parallel
from dna_mamba.kernels.vector import LANES, LOG2_E, broadcast, exp2, load, sigmoid, softplus, store, sum_lanes

CHUNK = 64
ZERO, ONE, LN_2 = np.float32(0.0), np.float32(1.0), np.float32(np.log(2.0))


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(u, delta, A2, B, C, D, z, bias, use_softplus, has_z, h0, resets, y, entering, final, first, end):
    """Items are channel blocks of sequences: item // blocks is the sequence."""
    for item in range(first, end):
        b, block = divmod(item, u.shape[2])
        _forward_block(u, delta, A2, B, C, D, z, bias, use_softplus, has_z, h0, resets, y, entering, final, b, block)


@njit(nogil=True, cache=True, error_model="numpy")
def _forward_block(u, delta, A2, B, C, D, z, bias, use_softplus, has_z, h0, resets, y, entering, final, b, block):
    T, num_blocks, N = u.shape[1], u.shape[2], A2.shape[0]
    keep = entering.shape[1] > 0
    h = np.empty((N, LANES), np.float32)
    skip, shift = load(D, block * LANES), load(bias, block * LANES)
    for n in range(N):
        for i in range(LANES):
            h[n, i] = h0[b, block, i, n]
    for t in range(T):
        if keep and t % CHUNK == 0:
            chunk = (b * entering.shape[1] + t // CHUNK) * N
            for n in range(N):
                store(entering, ((chunk + n) * num_blocks + block) * LANES, load(h, n * LANES))
        if resets.shape[0] > 0 and resets[b, t]:
            h[:] = ZERO
        at = ((b * T + t) * num_blocks + block) * LANES
        step = load(delta, at) + shift
        if use_softplus:
            step = softplus(step)
        u_t = load(u, at)
        x = step * u_t
        total = skip * u_t
        for n in range(N):
            decay = exp2(load(A2, (n * num_blocks + block) * LANES) * step)
            state = decay * load(h, n * LANES) + x * B[b, t, n]
            store(h, n * LANES, state)
            total += state * C[b, t, n]
        if has_z:
            gate = load(z, at)
            total *= gate * sigmoid(gate)
        store(y, at, total)
    for n in range(N):
        for i in range(LANES):
            final[b, block, i, n] = h[n, i]


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(
    u, delta, A2, B, C, D, z, bias, use_softplus, has_z, resets, entering, dy, dfinal,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dh0, blocks_of_group, first, end,
):  # fmt: skip
    """Items are channel groups of sequences: item // groups is the sequence."""
    for item in range(first, end):
        b, group = divmod(item, dB.shape[1])
        _backward_group(
            u, delta, A2, B, C, D, z, bias, use_softplus, has_z, resets, entering, dy, dfinal,
            du, ddelta, dA, dB, dC, dD, dz, dbias, dh0, b, group, blocks_of_group,
        )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _backward_group(
    u, delta, A2, B, C, D, z, bias, use_softplus, has_z, resets, entering, dy, dfinal,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dh0, b, group, blocks_of_group,
):  # fmt: skip
    """One sequence, one group of channel blocks: the group's blocks add to one dB and dC, so their sum has one order."""
    T, num_blocks, N = u.shape[1], u.shape[2], A2.shape[0]
    num_chunks = entering.shape[1]
    h, decay = np.empty((CHUNK + 1, N, LANES), np.float32), np.empty((CHUNK, N, LANES), np.float32)
    step_, slope_ = np.empty((CHUNK, LANES), np.float32), np.ones((CHUNK, LANES), np.float32)
    x_, dy_ = np.empty((CHUNK, LANES), np.float32), np.empty((CHUNK, LANES), np.float32)
    adjoint, dA_chunk = np.empty((N, LANES), np.float32), np.empty((N, LANES), np.float32)
    rest = np.empty((2, LANES), np.float32)
    dA_total, rest_total = np.empty((N, LANES), np.float64), np.empty((2, LANES), np.float64)
    nothing = broadcast(ZERO)
    for block in range(group * blocks_of_group, min((group + 1) * blocks_of_group, num_blocks)):
        skip, shift = load(D, block * LANES), load(bias, block * LANES)
        dA_total[:], rest_total[:] = 0.0, 0.0
        for n in range(N):
            for i in range(LANES):
                adjoint[n, i] = dfinal[b, block, i, n]
        for chunk in range(num_chunks - 1, -1, -1):
            start = chunk * CHUNK
            length = min(CHUNK, T - start)
            for n in range(N):
                store(h, n * LANES, load(entering, (((b * num_chunks + chunk) * N + n) * num_blocks + block) * LANES))
            for k in range(length):
                t = start + k
                at, row = ((b * T + t) * num_blocks + block) * LANES, k * LANES
                step = load(delta, at) + shift
                if use_softplus:
                    store(slope_, row, sigmoid(step))
                    step = softplus(step)
                u_t = load(u, at)
                x = step * u_t
                total = skip * u_t
                kept = ZERO if resets.shape[0] > 0 and resets[b, t] else ONE
                for n in range(N):
                    a = exp2(load(A2, (n * num_blocks + block) * LANES) * step) * kept
                    state = a * load(h, (k * N + n) * LANES) + x * B[b, t, n]
                    store(decay, (k * N + n) * LANES, a)
                    store(h, ((k + 1) * N + n) * LANES, state)
                    total += state * C[b, t, n]
                upstream = load(dy, at)
                if has_z:
                    gate = load(z, at)
                    s = sigmoid(gate)
                    store(dz, at, upstream * total * s * (ONE + gate * (ONE - s)))
                    upstream *= gate * s
                store(step_, row, step)
                store(x_, row, x)
                store(dy_, row, upstream)
            dA_chunk[:], rest[:] = ZERO, ZERO
            for k in range(length - 1, -1, -1):
                t = start + k
                at, row = ((b * T + t) * num_blocks + block) * LANES, k * LANES
                step, x, upstream = load(step_, row), load(x_, row), load(dy_, row)
                from_x, from_decay = nothing, nothing
                for n in range(N):
                    g = load(adjoint, n * LANES) + upstream * C[b, t, n]
                    dC[b, group, t, n] += sum_lanes(upstream * load(h, ((k + 1) * N + n) * LANES))
                    dB[b, group, t, n] += sum_lanes(g * x)
                    from_x += g * B[b, t, n]
                    carried = g * load(decay, (k * N + n) * LANES)
                    store(adjoint, n * LANES, carried)
                    w = carried * load(h, (k * N + n) * LANES)
                    from_decay += w * load(A2, (n * num_blocks + block) * LANES)
                    store(dA_chunk, n * LANES, load(dA_chunk, n * LANES) + w * step)
                u_t = load(u, at)
                store(du, at, step * from_x + skip * upstream)
                d = (u_t * from_x + from_decay * LN_2) * load(slope_, row)
                store(ddelta, at, d)
                store(rest, 0, load(rest, 0) + upstream * u_t)
                store(rest, LANES, load(rest, LANES) + d)
            dA_total += dA_chunk
            rest_total += rest
        for i in range(LANES):
            dD[b, block, i] = rest_total[0, i]
            dbias[b, block, i] = rest_total[1, i]
            for n in range(N):
                dA[b, block, i, n] = dA_total[n, i]
                dh0[b, block, i, n] = adjoint[n, i]


def _resets(seq_idx_BT: Tensor | None) -> np.ndarray:
    if seq_idx_BT is None:
        return np.zeros((0, 0), np.bool_)
    resets_BT = torch.zeros(seq_idx_BT.shape, dtype=torch.bool)
    resets_BT[:, 1:] = seq_idx_BT[:, 1:] != seq_idx_BT[:, :-1]
    return resets_BT.numpy()


def _lanes(x: Tensor, dim: int) -> np.ndarray:
    """View the channels as (blocks, LANES), so that a compiled loop over a block has a constant length and no bounds."""
    return x.detach().contiguous().unflatten(dim, (-1, LANES)).numpy()


def _arrays(inputs: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    """View u, delta, A, B, C, D, z and bias as the kernels take them, A as exponents of 2 with the states first."""
    u, delta, A, B, C, D, z, bias = inputs
    B_, C_ = B.detach().contiguous().numpy(), C.detach().contiguous().numpy()
    A2 = _lanes(A.T, -1) * LOG2_E
    return _lanes(u, -1), _lanes(delta, -1), A2, B_, C_, _lanes(D, -1), _lanes(z, -1), _lanes(bias, -1)


class SelectiveScanCPU(torch.autograd.Function):
    """The channels are a multiple of LANES; z may be absent: (0, 0, LANES)."""

    @staticmethod
    def forward(ctx, u_BTD, delta_BTD, A_DN, B_BTN, C_BTN, D_D, z_BTD, bias_D, h0_BDN, use_softplus, seq_idx_BT, keep):
        inputs = (u_BTD, delta_BTD, A_DN, B_BTN, C_BTN, D_D, z_BTD, bias_D)
        u, delta, A2, B, C, D, z, bias = _arrays(inputs)
        h0 = _lanes(h0_BDN, 1)
        num_sequences, T, num_blocks, _ = u.shape
        resets = _resets(seq_idx_BT)
        has_z = z.size > 0
        y, final = np.empty_like(u), np.empty_like(h0)
        chunks = -(-T // CHUNK) if keep else 0
        entering = np.empty((num_sequences, chunks, A2.shape[0], num_blocks, LANES), np.float32)
        run_parallel(
            _forward,
            (u, delta, A2, B, C, D, z, bias, use_softplus, has_z, h0, resets, y, entering, final),
            num_sequences * num_blocks,
        )
        ctx.save_for_backward(*inputs, torch.from_numpy(entering))
        ctx.rest = (use_softplus, has_z, resets)
        return torch.from_numpy(y).flatten(2), torch.from_numpy(final).flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BTD, dfinal_BDN):
        *inputs, kept = ctx.saved_tensors
        u, delta, A2, B, C, D, z, bias = _arrays(inputs)
        entering = kept.numpy()
        use_softplus, has_z, resets = ctx.rest
        dy, dfinal = _lanes(dy_BTD, -1), _lanes(dfinal_BDN, 1)
        num_sequences, T, num_blocks, _ = u.shape
        num_states = A2.shape[0]
        # Enough tasks for 8 threads, a number that depends on the shape alone: the order of sums must not follow the machine.
        num_groups = min(num_blocks, max(1, 8 // num_sequences))
        blocks_of_group = -(-num_blocks // num_groups)
        du, ddelta, dz = np.empty_like(u), np.empty_like(u), np.empty_like(z)
        dB = np.zeros((num_sequences, num_groups, T, num_states), np.float32)
        dC = np.zeros_like(dB)
        dA, dh0 = np.empty((num_sequences, *dfinal.shape[1:]), np.float32), np.empty_like(dfinal)
        dD, dbias = (np.empty((num_sequences, num_blocks, LANES), np.float32) for _ in range(2))
        run_parallel(
            _backward,
            (u, delta, A2, B, C, D, z, bias, use_softplus, has_z, resets, entering, dy, dfinal,
             du, ddelta, dA, dB, dC, dD, dz, dbias, dh0, blocks_of_group),
            num_sequences * num_groups,
        )  # fmt: skip
        of = torch.from_numpy
        return (
            *(of(du).flatten(2), of(ddelta).flatten(2), of(dA).sum(0).flatten(0, 1), of(dB).sum(1), of(dC).sum(1)),
            *(
                of(dD).sum(0).flatten(),
                of(dz).flatten(2),
                of(dbias).sum(0).flatten(),
                of(dh0).flatten(1, 2),
                None,
                None,
                None,
            ),
        )


def selective_scan_cpu(
    u_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    z_BTD: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
    initial_state_BDN: Tensor | None,
    seq_idx_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the compiled scan in float32; see `selective_scan`."""
    num_sequences, _, num_channels = u_BTD.shape
    padding = -num_channels % LANES

    def pad(x: Tensor, channels_from_last: int = 0) -> Tensor:
        x = F.pad(x.float(), (0, 0) * channels_from_last + (0, padding)) if padding else x.float()
        return x.contiguous()  # here, so that what is kept for the backward needs no second copy

    absent = torch.zeros(num_channels)
    h0_BDN = torch.zeros(num_sequences, *A_DN.shape) if initial_state_BDN is None else initial_state_BDN
    y_BTD, final_BDN = SelectiveScanCPU.apply(
        pad(u_BTD),
        pad(delta_BTD),
        pad(A_DN, 1),
        B_BTN.float(),
        C_BTN.float(),
        pad(absent if D_D is None else D_D),
        torch.zeros(0, 0, LANES) if z_BTD is None else pad(z_BTD),
        pad(absent if delta_bias_D is None else delta_bias_D),
        pad(h0_BDN, 1),
        delta_softplus,
        seq_idx_BT,
        torch.is_grad_enabled(),
    )
    return y_BTD[..., :num_channels].to(u_BTD.dtype), final_BDN[:, :num_channels]
