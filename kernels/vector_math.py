"""exp2, log1p, sigmoid and softplus in plain float32 arithmetic, so that LLVM turns the loops around them into vector code.

numba's own exp calls the C library once per element unless Intel's SVML is installed.
"""

import numpy as np
from numba import njit
from numpy.polynomial import Chebyshev, Polynomial

LOG2_E = np.float32(1.0 / np.log(2.0))

# 2^f on [-1/2, 1/2] by Chebyshev interpolation: degree 6 is off by 2e-9, well under float32's 6e-8, so that decays
# multiplied over a million positions drift by rounding alone.
_P = [
    np.float32(c)
    for c in Chebyshev.interpolate(lambda f: 2.0**f, 6, domain=[-0.5, 0.5])
    .convert(kind=Polynomial, domain=[-1, 1])
    .coef
]
P0, P1, P2, P3, P4, P5, P6 = _P

ZERO = np.float32(0.0)
HALF = np.float32(0.5)
ONE = np.float32(1.0)
TWO = np.float32(2.0)
# Below 2^-100 a factor does not show in a float32 sum, and going further would make denormal numbers, which are slow.
LOWEST = np.float32(-100.0)
HIGHEST = np.float32(126.0)
BIAS = np.int32(127)
MANTISSA_BITS = np.int32(23)

# log(1 + e) = 2 atanh(s) with s = e / (2 + e) <= 1/3; the series is off by 3e-8 at s = 1/3 after these terms.
S3, S5, S7, S9, S11, S13 = (np.float32(1.0 / k) for k in (3, 5, 7, 9, 11, 13))


@njit(inline="always")
def exp2(x):
    """2^x for float32, with x held within [-100, 126]; relative error below 2e-7."""
    x = min(max(x, LOWEST), HIGHEST)
    whole = np.floor(x + HALF)
    f = x - whole
    p = P6
    p = p * f + P5
    p = p * f + P4
    p = p * f + P3
    p = p * f + P2
    p = p * f + P1
    p = p * f + P0
    return p * np.int32((np.int32(whole) + BIAS) << MANTISSA_BITS).view(np.float32)


@njit(inline="always")
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp2(-x * LOG2_E))


@njit(inline="always")
def softplus(x):
    """log(1 + e^x), exact to rounding for small and large values alike."""
    e = exp2(-abs(x) * LOG2_E)
    s = e / (TWO + e)
    q = s * s
    series = S13
    series = series * q + S11
    series = series * q + S9
    series = series * q + S7
    series = series * q + S5
    series = series * q + S3
    series = series * q + ONE
    return max(x, ZERO) + TWO * s * series
