"""Largest relative errors norm(given - expected) / norm(expected) of the kernels, in one place."""

import torch

# float32: rounding (6e-8) through sums over states, positions and channels leaves about 1e-7 to 3e-6 (the gradient of A is
# the worst: its terms cancel); the float32 loop itself is as far from float64.
# bfloat16: inputs are the same bfloat16 numbers on both sides; each output is rounded once to 8 bits (2^-9 at most, 1.7e-3
# measured), and gradients of the float32 arguments carry the rounding of the gradient that comes in (2.3e-3 measured).
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-3}
# Where matrix products in bfloat16 stand between kernels: step sizes, B and C are rounded before the scan exponentiates them.
THROUGH_PROJECTIONS = 4e-2


def relative_error(given: torch.Tensor, expected: torch.Tensor) -> float:
    """Compare in float64; NaN never passes a limit. What should be zero is compared with 0.01."""
    given, expected = given.detach().double().cpu(), expected.detach().double().cpu()
    return float((given - expected).norm() / expected.norm().clamp(min=1e-2))


def assert_close(given: dict, expected: dict, tolerance: float) -> None:
    """Compare every entry of expected."""
    errors = {name: relative_error(given[name], expected[name]) for name in expected}
    assert max(errors.values()) < tolerance and not any(e != e for e in errors.values()), errors
