# Shapes: B sequences, T positions, H heads, K channels of a head, G groups, N states
"""The state-space dual scan of Mamba-2 as its recurrence stands: any device, any floating dtype, differentiable by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor


def steps_of(
    dt_BTH: Tensor, dt_bias_H: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float], precision: torch.dtype
) -> Tensor:
    """Give the step sizes: with the bias, through softplus, within the limits; in the precision named."""
    d_BTH = dt_BTH.to(precision)
    if dt_bias_H is not None:
        d_BTH = d_BTH + dt_bias_H.to(precision)
    if dt_softplus:
        d_BTH = F.softplus(d_BTH)
    low, high = dt_limit
    return d_BTH.clamp(low, high) if low > 0.0 or high < float("inf") else d_BTH


def add_skip(y_BTHK: Tensor, x_BTHK: Tensor, D: Tensor | None) -> Tensor:
    """Add what skips the scan, a weight a head (H,) or a channel (H, K)."""
    if D is None:
        return y_BTHK
    return y_BTHK + x_BTHK * (D[:, None] if D.dim() == 1 else D).to(y_BTHK.dtype)


def state_space_dual_naive(
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
    """Walk the positions one by one in float32 (float64 for float64 inputs); see `state_space_dual`."""
    precision = torch.float64 if x_BTHK.dtype == torch.float64 else torch.float32
    heads_a_group = x_BTHK.shape[2] // B_BTGN.shape[2]
    d_BTH = steps_of(dt_BTH, dt_bias_H, dt_softplus, dt_limit, precision)
    x, A_H = x_BTHK.to(precision), A_H.to(precision)
    B_BTHN, C_BTHN = (w.to(precision).repeat_interleave(heads_a_group, dim=2) for w in (B_BTGN, C_BTGN))
    decay_BTH, added_BTHK = torch.exp(A_H * d_BTH), d_BTH[..., None] * x
    if initial_state_BHKN is None:
        h_BHKN = x.new_zeros(x.shape[0], *x.shape[2:], B_BTGN.shape[3])
    else:
        h_BHKN = initial_state_BHKN.to(precision)
    resets_TB = None
    if seq_idx_BT is not None:
        resets_TB = (seq_idx_BT[:, 1:] != seq_idx_BT[:, :-1]).t().unbind(0)
    y = []
    # unbind, not indexing: the backward of x[:, t] fills a tensor of all T positions each time, T^2 in all
    rows = zip(decay_BTH.unbind(1), added_BTHK.unbind(1), B_BTHN.unbind(1), C_BTHN.unbind(1), strict=True)
    for t, (decay_BH, added_BHK, B_BHN, C_BHN) in enumerate(rows):
        if resets_TB is not None and t > 0:
            h_BHKN = h_BHKN.masked_fill(resets_TB[t - 1][:, None, None, None], 0.0)
        h_BHKN = decay_BH[..., None, None] * h_BHKN + added_BHK[..., None] * B_BHN[:, :, None, :]
        y.append(torch.einsum("bhkn,bhn->bhk", h_BHKN, C_BHN))
    return add_skip(torch.stack(y, dim=1), x, D).to(x_BTHK.dtype), h_BHKN
