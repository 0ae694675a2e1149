"""Polynomials against NumPy in float64."""

import numpy as np
import pytest
from numba import njit

from dna_mamba.kernels import vector_math


def apply(function, values):
    @njit
    def loop(x):
        out = np.empty_like(x)
        for i in range(x.size):
            out[i] = function(x[i])
        return out

    return loop(values.astype(np.float32)).astype(np.float64)


X = np.linspace(-99, 99, 200_001).astype(np.float32)


@pytest.mark.parametrize(
    "name, exact, values, tolerance",
    [
        ("exp2", np.exp2, X, 3e-7),
        ("softplus", lambda x: np.logaddexp(0, x), X[X > -69], 2e-6),  # below, 2^-100 takes over
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), X[X > -69], 2e-6),
    ],
    ids=["exp2", "softplus", "sigmoid"],
)
def test_relative_error(name, exact, values, tolerance):
    expected = exact(values.astype(np.float64))
    given = apply(getattr(vector_math, name), values)
    # the argument of the inner 2^x is rounded: |x| 1.44 2^-24, 8e-6 at 99, falls on the result where it is tiny
    allowed = tolerance + (np.abs(values) * 1.2e-7 if name != "exp2" else 0)
    assert np.all(np.abs(given / expected - 1) < allowed)


def test_out_of_range_is_held():
    given = apply(vector_math.exp2, np.array([-1e30, -500.0, 500.0]))
    assert given.tolist() == [2.0**-100, 2.0**-100, 2.0**126]
