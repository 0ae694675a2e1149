"""What Triton kernels of several operations share."""

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def only_if(mask, condition):
    """Narrow a mask by a scalar condition; the comparison keeps it boolean in every interpreter."""
    return (mask & condition) != 0


@triton.jit
def sigmoid(v):
    """1 / (1 + exp(-v)); 0 and 1 far out, never NaN."""
    return 1.0 / (1.0 + tl.exp2(-v * LOG2_E))


@triton.jit
def softplus(v):
    """log(1 + exp(v)) without loss at either end: max(v, 0) + e * p(e), e = exp(-|v|), p = log1p(e) / e on [0, 1]."""
    e = tl.exp2(-tl.abs(v) * LOG2_E)
    p = e * 0.005126102361828089 - 0.029074065387248993  # Chebyshev interpolation, relative error 1e-7
    p = p * e + 0.0775160863995552
    p = p * e - 0.13602247834205627
    p = p * e + 0.19076880812644958
    p = p * e - 0.2483539879322052
    p = p * e + 0.3331812024116516
    p = p * e - 0.4999944567680359
    p = p * e + 0.9999999403953552
    return tl.maximum(v, 0.0) + e * p


def strided(x: Tensor) -> Tensor:
    """Give x with its last dimension next to each other in memory; slices of a wider tensor are taken as they are."""
    return x if x.stride(-1) == 1 else x.contiguous()
