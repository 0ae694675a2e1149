# Shapes: B sequences, T positions, D channels, N states
"""The selective scan for CPUs: forward and backward compiled by numba, 16 channels at a time in vector registers.

A channel block is walked along the sequence with its states in the first-level cache. The forward keeps the state that
enters every chunk; the backward takes the chunks from the last to the first, recomputes the states of one chunk into a
scratch that fits the second-level cache, and walks it backwards. Memory beyond inputs and gradients is therefore
D N / CHUNK floats a position, and nothing is ever divided by a decay.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dna_mamba.kernels.threads import run_parallel
from dna_mamba.kernels.vector_math import LOG2_E, ONE, ZERO, exp2, sigmoid, softplus

CHUNK = 64
LANES = 16  # channels of a block: one AVX-512 register of float32, two of AVX2, four of NEON
# The order of sums may change, infinities and NaN may not be assumed away.
FAST = {"contract", "reassoc", "nsz", "arcp"}


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _forward(u, delta, A2, B, C, D, z, bias, use_softplus, has_z, h0, resets, y, entering, final, b, block):
    T, N = u.shape[1], A2.shape[0]
    keep = entering.shape[1] > 0
    h, a2 = np.zeros((N, LANES), np.float32), np.zeros((N, LANES), np.float32)
    delta_, x_, sum_ = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for n in range(N):
        for i in range(LANES):
            a2[n, i] = A2[n, block, i]
            h[n, i] = h0[b, block, i, n]
    for t in range(T):
        if keep and t % CHUNK == 0:
            for n in range(N):
                for i in range(LANES):
                    entering[b, t // CHUNK, n, block, i] = h[n, i]
        if resets.shape[0] > 0 and resets[b, t]:
            for n in range(N):
                for i in range(LANES):
                    h[n, i] = ZERO
        for i in range(LANES):
            delta_[i] = delta[b, t, block, i] + bias[block, i]
        if use_softplus:
            for i in range(LANES):
                delta_[i] = softplus(delta_[i])
        for i in range(LANES):
            x_[i] = delta_[i] * u[b, t, block, i]
            sum_[i] = D[block, i] * u[b, t, block, i]
        for n in range(N):
            B_n, C_n = B[b, t, n], C[b, t, n]
            for i in range(LANES):
                state = exp2(a2[n, i] * delta_[i]) * h[n, i] + x_[i] * B_n
                h[n, i] = state
                sum_[i] += state * C_n
        if has_z:
            for i in range(LANES):
                gate = z[b, t, block, i]
                y[b, t, block, i] = sum_[i] * gate * sigmoid(gate)
        else:
            for i in range(LANES):
                y[b, t, block, i] = sum_[i]
    for n in range(N):
        for i in range(LANES):
            final[b, block, i, n] = h[n, i]


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _backward(
    u, delta, A2, B, C, D, z, bias, use_softplus, has_z, resets, entering, dy, dfinal,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dh0, b, group, blocks_of_group,
):  # fmt: skip
    """One sequence, one group of channel blocks: the group's blocks add to one dB and dC, so their sum has one order."""
    T, N, num_blocks = u.shape[1], A2.shape[0], u.shape[2]
    ln2 = ONE / LOG2_E
    h = np.zeros((CHUNK + 1, N, LANES), np.float32)
    decay = np.zeros((CHUNK, N, LANES), np.float32)
    delta_, x_ = np.zeros((CHUNK, LANES), np.float32), np.zeros((CHUNK, LANES), np.float32)
    dy_, slope = np.zeros((CHUNK, LANES), np.float32), np.ones((CHUNK, LANES), np.float32)
    adjoint, a2 = np.zeros((N, LANES), np.float32), np.zeros((N, LANES), np.float32)
    dA_chunk = np.zeros((N, LANES), np.float32)
    dA_total = np.zeros((N, LANES), np.float64)
    sum_, from_x, from_decay = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    dD_total, dbias_total = np.zeros(LANES, np.float64), np.zeros(LANES, np.float64)
    for block in range(group * blocks_of_group, min((group + 1) * blocks_of_group, num_blocks)):
        dA_total[:], dD_total[:], dbias_total[:] = 0.0, 0.0, 0.0
        for n in range(N):
            for i in range(LANES):
                a2[n, i] = A2[n, block, i]
                adjoint[n, i] = dfinal[b, block, i, n]
        for chunk in range((T - 1) // CHUNK, -1, -1):
            start = chunk * CHUNK
            length = min(CHUNK, T - start)
            for n in range(N):
                for i in range(LANES):
                    h[0, n, i] = entering[b, chunk, n, block, i]
            for k in range(length):
                t = start + k
                for i in range(LANES):
                    delta_[k, i] = delta[b, t, block, i] + bias[block, i]
                if use_softplus:
                    for i in range(LANES):
                        slope[k, i] = sigmoid(delta_[k, i])
                        delta_[k, i] = softplus(delta_[k, i])
                for i in range(LANES):
                    x_[k, i] = delta_[k, i] * u[b, t, block, i]
                    sum_[i] = D[block, i] * u[b, t, block, i]
                kept = ONE
                if resets.shape[0] > 0 and resets[b, t]:
                    kept = ZERO
                for n in range(N):
                    B_n, C_n = B[b, t, n], C[b, t, n]
                    for i in range(LANES):
                        a = exp2(a2[n, i] * delta_[k, i]) * kept
                        state = a * h[k, n, i] + x_[k, i] * B_n
                        decay[k, n, i] = a
                        h[k + 1, n, i] = state
                        sum_[i] += state * C_n
                if has_z:
                    for i in range(LANES):
                        gate = z[b, t, block, i]
                        s = sigmoid(gate)
                        upstream = dy[b, t, block, i]
                        dz[b, t, block, i] = upstream * sum_[i] * s * (ONE + gate * (ONE - s))
                        dy_[k, i] = upstream * gate * s
                else:
                    for i in range(LANES):
                        dy_[k, i] = dy[b, t, block, i]
            dA_chunk[:] = ZERO
            for k in range(length - 1, -1, -1):
                t = start + k
                from_x[:], from_decay[:] = ZERO, ZERO
                for n in range(N):
                    B_n, C_n = B[b, t, n], C[b, t, n]
                    dB_n, dC_n = ZERO, ZERO
                    for i in range(LANES):
                        g = adjoint[n, i] + C_n * dy_[k, i]
                        dC_n += dy_[k, i] * h[k + 1, n, i]
                        dB_n += g * x_[k, i]
                        from_x[i] += g * B_n
                        carried = g * decay[k, n, i]
                        w = carried * h[k, n, i]
                        from_decay[i] += w * a2[n, i]
                        dA_chunk[n, i] += w * delta_[k, i]
                        adjoint[n, i] = carried
                    dB[b, group, t, n] += dB_n
                    dC[b, group, t, n] += dC_n
                for i in range(LANES):
                    u_i = u[b, t, block, i]
                    du[b, t, block, i] = delta_[k, i] * from_x[i] + D[block, i] * dy_[k, i]
                    d = (u_i * from_x[i] + from_decay[i] * ln2) * slope[k, i]
                    ddelta[b, t, block, i] = d
                    dD_total[i] += dy_[k, i] * u_i
                    dbias_total[i] += d
            for n in range(N):
                for i in range(LANES):
                    dA_total[n, i] += dA_chunk[n, i]
        for i in range(LANES):
            dD[b, block, i] = dD_total[i]
            dbias[b, block, i] = dbias_total[i]
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


class SelectiveScanCPU(torch.autograd.Function):
    """The channels are a multiple of LANES; z may be absent: (0, 0, LANES)."""

    @staticmethod
    def forward(ctx, u_BTD, delta_BTD, A_DN, B_BTN, C_BTN, D_D, z_BTD, bias_D, h0_BDN, use_softplus, seq_idx_BT):
        u, delta, D, z, bias = (_lanes(x, -1) for x in (u_BTD, delta_BTD, D_D, z_BTD, bias_D))
        A2, h0 = _lanes(A_DN.T, -1) * LOG2_E, _lanes(h0_BDN, 1)
        B, C = B_BTN.detach().contiguous().numpy(), C_BTN.detach().contiguous().numpy()
        num_sequences, T, num_blocks, _ = u.shape
        resets = _resets(seq_idx_BT)
        has_z = z.size > 0
        y, final = np.empty_like(u), np.empty_like(h0)
        chunks = -(-T // CHUNK) if any(ctx.needs_input_grad) else 0
        entering = np.empty((num_sequences, chunks, A2.shape[0], num_blocks, LANES), np.float32)
        tasks = [
            (u, delta, A2, B, C, D, z, bias, use_softplus, has_z, h0, resets, y, entering, final, b, block)
            for b in range(num_sequences)
            for block in range(num_blocks)
        ]
        run_parallel(_forward, tasks)
        ctx.arrays = (u, delta, A2, B, C, D, z, bias, use_softplus, has_z, resets, entering)
        return torch.from_numpy(y).flatten(2), torch.from_numpy(final).flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BTD, dfinal_BDN):
        u, delta, A2, B, C, D, z, bias, use_softplus, has_z, resets, entering = ctx.arrays
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
        tasks = [
            (u, delta, A2, B, C, D, z, bias, use_softplus, has_z, resets, entering, dy, dfinal,
             du, ddelta, dA, dB, dC, dD, dz, dbias, dh0, b, group, blocks_of_group)
            for b in range(num_sequences)
            for group in range(num_groups)
        ]  # fmt: skip
        run_parallel(_backward, tasks)
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
        return F.pad(x.float(), (0, 0) * channels_from_last + (0, padding)) if padding else x.float()

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
    )
    return y_BTD[..., :num_channels].to(u_BTD.dtype), final_BDN[:, :num_channels]
