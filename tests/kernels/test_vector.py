"""Polynomials against NumPy in float64."""

import numpy as np
import pytest
from numba import njit

from dna_mamba.kernels import vector


def apply(function, values):
    @njit
    def loop(x, out):
        for i in range(0, x.size, vector.LANES):
            vector.store(out, i, function(vector.load(x, i)))

    padded = np.zeros(-(-values.size // vector.LANES) * vector.LANES, np.float32)
    padded[: values.size] = values
    out = np.full_like(padded, np.nan)
    loop(padded, out)
    return out[: values.size].astype(np.float64)


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
    given = apply(getattr(vector, name), values)
    # the argument of the inner 2^x is rounded: |x| 1.44 2^-24, 8e-6 at 99, falls on the result where it is tiny
    allowed = tolerance + (np.abs(values) * 1.2e-7 if name != "exp2" else 0)
    assert np.all(np.abs(given / expected - 1) < allowed)


def test_out_of_range_is_held():
    given = apply(vector.exp2, np.array([-1e30, -500.0, 500.0]))
    assert given.tolist() == [2.0**-100, 2.0**-100, 2.0**126]


def test_arithmetic_of_vectors_and_numbers():
    @njit
    def loop(x, out):
        a, b = vector.load(x, 0), vector.load(x, 16)
        two = np.float32(2.0)
        vector.store(out, 0, (a + b * two - a / b) * (two - a))
        out[16] = vector.sum_lanes(a)

    x = np.random.default_rng(0).uniform(1, 2, 32).astype(np.float32)
    out = np.zeros(17, np.float32)
    loop(x, out)
    a, b = x[:16].astype(np.float64), x[16:].astype(np.float64)
    np.testing.assert_allclose(out[:16], (a + 2 * b - a / b) * (2 - a), rtol=1e-5)
    np.testing.assert_allclose(out[16], a.sum(), rtol=1e-6)


def test_nan_stays_nan_in_softplus():
    assert np.isnan(apply(vector.softplus, np.array([np.nan]))).all()
