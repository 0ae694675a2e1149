# Shapes: B sequences, T positions, H heads, R of them in each of G groups, K channels of a head, N states, M chunks of C
"""The state-space dual scan in chunks of matrix products, as torch runs them: what a CPU trains with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .naive import add_skip, steps_of

CHUNK = 64
"""Positions; the work within chunks grows with it, that between them falls."""


def state_space_dual_cpu(
    x_BTHK: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D: Tensor | None,
    dt_bias_H: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    initial_state_BHKN: Tensor | None,
    seq_idx_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the scan chunk by chunk in float32; see `state_space_dual`. Source: Dao and Gu 2024, section 6."""
    (num_sequences, T, H, K), (G, N) = x_BTHK.shape, B_BTGN.shape[2:]
    R, M = H // G, -(-T // CHUNK)
    x = x_BTHK.float()
    d_BTH = steps_of(dt_BTH, dt_bias_H, dt_softplus, dt_limit, torch.float32)

    def in_chunks(w: Tensor, *shape: int) -> Tensor:
        """Pad the last chunk with zeros; a step of 0 neither decays nor adds."""
        padded = F.pad(w, (0, 0) * (w.dim() - 2) + (0, M * CHUNK - T))
        return padded.reshape(num_sequences, M, CHUNK, *shape)

    d = in_chunks(d_BTH, G, R)
    added = in_chunks(x, G, R, K) * d[..., None]
    B, C = in_chunks(B_BTGN.float(), G, N), in_chunks(C_BTGN.float(), G, N)
    a_BMGRC = (A_H.float().reshape(G, R) * d).movedim(2, -1)
    open_ = _Open(seq_idx_BT, num_sequences, T, M, x.device)
    # log decay from after j to i, as sums of its own: a difference of two sums loses digits where decay is fast
    steps = torch.arange(CHUNK, device=x.device)
    later_CC = steps[:, None] > steps
    between = (a_BMGRC[..., :, None] * later_CC).cumsum(-2)  # i, j
    L = torch.exp(between) * open_.within(steps[:, None] >= steps)[:, :, None, None]
    from_start = a_BMGRC.cumsum(-1)
    to_end = between[..., -1, :]
    scores = torch.einsum("bmign,bmjgn->bmgij", C, B)
    y = torch.einsum("bmgij,bmgrij,bmjgrk->bmigrk", scores, L, added)
    kept = torch.exp(to_end) * open_.to_end[:, :, None, None]
    own = torch.einsum("bmgrj,bmjgrk,bmjgn->bmgrkn", kept, added, B)
    decay_BMGR = torch.exp(from_start[..., -1]) * open_.through[:, :, None, None]
    if initial_state_BHKN is None:
        h = x.new_zeros(num_sequences, G, R, K, N)
    else:
        h = initial_state_BHKN.float().reshape(num_sequences, G, R, K, N)
    before = []
    for decay, made in zip(decay_BMGR.unbind(1), own.unbind(1), strict=True):
        before.append(h)
        h = decay[..., None, None] * h + made
    reached = torch.exp(from_start) * open_.from_start[:, :, None, None]
    y = y + torch.einsum("bmign,bmgrkn,bmgri->bmigrk", C, torch.stack(before, 1), reached)
    y_BTHK = y.reshape(num_sequences, M * CHUNK, H, K)[:, :T]
    return add_skip(y_BTHK, x, D).to(x_BTHK.dtype), h.reshape(num_sequences, H, K, N)


class _Open:
    """Which positions of a chunk no reset stands between: ones and zeros, or plain ones where there are no resets."""

    def __init__(self, seq_idx_BT: Tensor | None, num_sequences: int, T: int, M: int, device: torch.device):
        self.run_BMC: Tensor | None = None
        if seq_idx_BT is None:
            self.from_start = self.to_end = torch.ones(num_sequences, M, CHUNK, device=device)
            self.through = torch.ones(num_sequences, M, device=device)
            return
        # equal numbers are one sequence only without a change between them, hence the running count of changes
        run_BT = F.pad((seq_idx_BT[:, 1:] != seq_idx_BT[:, :-1]).cumsum(1), (1, 0))
        last_B = run_BT[:, -1:].expand(-1, M * CHUNK - T)
        self.run_BMC = torch.cat([run_BT, last_B], 1).reshape(num_sequences, M, CHUNK)
        end_BM1 = self.run_BMC[..., -1:]
        before_BM1 = F.pad(end_BM1[:, :-1], (0, 0, 1, 0))
        self.from_start = (self.run_BMC == before_BM1).float()
        self.to_end = (self.run_BMC == end_BM1).float()
        self.through = (end_BM1 == before_BM1)[..., 0].float()

    def within(self, mask_CC: Tensor) -> Tensor:
        """Narrow a mask over pairs of positions (i, j) of every chunk."""
        if self.run_BMC is None:
            return mask_CC.float()[None, None]
        return (mask_CC & (self.run_BMC[..., :, None] == self.run_BMC[..., None, :])).float()
