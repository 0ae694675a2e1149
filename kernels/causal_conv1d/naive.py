# Shapes: B sequences, T positions, D channels, K taps, P = T + K - 1 positions with the K - 1 before the first
"""The depthwise causal convolution as a sum of K shifted copies."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_naive(
    x_BPD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, silu: bool, valid_BTK: Tensor | None
) -> Tensor:
    """Sum the taps in float32 (float64 for float64 inputs); see `causal_conv1d`."""
    precision = torch.float64 if x_BPD.dtype == torch.float64 else torch.float32
    num_taps = weight_DK.shape[1]
    T = x_BPD.shape[1] - num_taps + 1
    y_BTD = x_BPD.new_zeros((), dtype=precision)
    for k in range(num_taps):
        tap_BTD = x_BPD[:, k : k + T].to(precision) * weight_DK[:, k].to(precision)
        if valid_BTK is not None:
            tap_BTD = tap_BTD * valid_BTK[..., k, None]
        y_BTD = y_BTD + tap_BTD
    if bias_D is not None:
        y_BTD = y_BTD + bias_D.to(precision)
    return (F.silu(y_BTD) if silu else y_BTD).to(x_BPD.dtype)
