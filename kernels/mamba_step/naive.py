# Shapes: B sequences, D model width, E inner width, F = 2 E, N states, K taps, R rank of delta, P = R + 2 N
"""One position through a Mamba block as its parts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dna_mamba.kernels.causal_conv1d import causal_conv1d_step
from dna_mamba.kernels.rms_norm import rms_norm
from dna_mamba.kernels.selective_scan import selective_scan_step


@torch.no_grad()
def mamba_step_naive(
    residual_BD: Tensor,
    norm_weight_D: Tensor,
    in_proj_FD: Tensor,
    conv_weight_EK: Tensor,
    conv_bias_E: Tensor,
    x_proj_PE: Tensor,
    dt_proj_ER: Tensor,
    dt_bias_E: Tensor,
    A_log_EN: Tensor,
    D_E: Tensor,
    out_proj_DE: Tensor,
    conv_state_BKE: Tensor,
    scan_state_BEN: Tensor,
    eps: float,
) -> None:
    """Call one part after the other; see `mamba_step`."""
    norm_BD = rms_norm(residual_BD, norm_weight_D, eps, implementation="naive")
    assert isinstance(norm_BD, Tensor)
    x_BE, z_BE = F.linear(norm_BD, in_proj_FD).chunk(2, dim=-1)
    x_BE = causal_conv1d_step(
        conv_state_BKE, x_BE, conv_weight_EK, conv_bias_E, activation="silu", implementation="naive"
    )
    num_states = A_log_EN.shape[1]
    delta_BR, B_BN, C_BN = F.linear(x_BE, x_proj_PE).split([dt_proj_ER.shape[1], num_states, num_states], dim=-1)
    y_BE = selective_scan_step(
        scan_state_BEN,
        x_BE,
        F.linear(delta_BR, dt_proj_ER),
        -torch.exp(A_log_EN),
        B_BN,
        C_BN,
        D=D_E,
        z=z_BE,
        delta_bias=dt_bias_E,
        delta_softplus=True,
        implementation="naive",
    )
    residual_BD += F.linear(y_BE, out_proj_DE)
