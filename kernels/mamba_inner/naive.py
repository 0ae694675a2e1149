# Shapes: B sequences, T positions, E channels, F = 2 E, N states, K taps, R rank of delta
"""The inside of a Mamba layer as its parts: convolution, projections, scan."""

import torch.nn.functional as F
from torch import Tensor

from dna_mamba.kernels.causal_conv1d import causal_conv1d_with_state
from dna_mamba.kernels.selective_scan import selective_scan_with_state


def mamba_inner_naive(
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
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Call one part after the other with the implementation named; see `mamba_inner`."""
    num_states = A_EN.shape[1]
    x_BTE, z_BTE = xz_BTF.chunk(2, dim=-1)
    x_BTE, conv_state_BKE = causal_conv1d_with_state(
        x_BTE,
        conv_weight_EK,
        conv_bias_E,
        activation="silu",
        initial_state=conv_state_BKE,
        implementation=implementation,
    )
    delta_BTR, B_BTN, C_BTN = F.linear(x_BTE, x_proj_PE.to(x_BTE.dtype)).split(
        [dt_proj_ER.shape[1], num_states, num_states], dim=-1
    )
    # The bias joins inside the scan, in float32: biases lie near -7 to -2, where bfloat16 is off by up to 1.5 %.
    y_BTE, scan_state_BEN = selective_scan_with_state(
        x_BTE,
        F.linear(delta_BTR, dt_proj_ER.to(delta_BTR.dtype)),
        A_EN,
        B_BTN,
        C_BTN,
        D=D_E,
        z=z_BTE,
        delta_bias=dt_bias_E,
        delta_softplus=True,
        initial_state=scan_state_BEN,
        implementation=implementation,
    )
    return y_BTE, conv_state_BKE, scan_state_BEN
