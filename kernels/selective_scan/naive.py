# Shapes: B sequences, T positions, D channels, N states
"""The selective scan as its equations stand: any device, any floating dtype, differentiable by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_naive(
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
    """Walk the positions one by one in float32 (float64 for float64 inputs); see `selective_scan`."""
    precision = torch.float64 if u_BTD.dtype == torch.float64 else torch.float32
    dtype = u_BTD.dtype
    u_BTD, delta_BTD, A_DN, B_BTN, C_BTN = (x.to(precision) for x in (u_BTD, delta_BTD, A_DN, B_BTN, C_BTN))
    if delta_bias_D is not None:
        delta_BTD = delta_BTD + delta_bias_D.to(precision)
    if delta_softplus:
        delta_BTD = F.softplus(delta_BTD)
    if initial_state_BDN is None:
        h_BDN = u_BTD.new_zeros(u_BTD.shape[0], *A_DN.shape)
    else:
        h_BDN = initial_state_BDN.to(precision)
    resets_TB = None
    if seq_idx_BT is not None:
        resets_TB = (seq_idx_BT[:, 1:] != seq_idx_BT[:, :-1]).t().unbind(0)
    x_BTD = delta_BTD * u_BTD
    y = []
    # unbind, not indexing: the backward of x[:, t] fills a tensor of all T positions each time, T^2 in all
    rows = zip(delta_BTD.unbind(1), x_BTD.unbind(1), B_BTN.unbind(1), C_BTN.unbind(1), strict=True)
    for t, (delta_BD, x_BD, B_BN, C_BN) in enumerate(rows):
        if resets_TB is not None and t > 0:
            h_BDN = h_BDN.masked_fill(resets_TB[t - 1][:, None, None], 0.0)
        h_BDN = torch.exp(delta_BD[..., None] * A_DN) * h_BDN + x_BD[..., None] * B_BN[:, None, :]
        y.append(torch.einsum("bdn,bn->bd", h_BDN, C_BN))
    y_BTD = torch.stack(y, dim=1)
    if D_D is not None:
        y_BTD = y_BTD + D_D.to(precision) * u_BTD
    if z_BTD is not None:
        y_BTD = y_BTD * F.silu(z_BTD.to(precision))
    return y_BTD.to(dtype), h_BDN
