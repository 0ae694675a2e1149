"""Largest relative errors norm(given - expected) / norm(expected) of the kernels, in one place."""

import torch

# float32: rounding (6e-8) through sums over states, positions and channels leaves about 1e-7 to 3e-6 (the gradient of A is
# the worst: its terms cancel); the float32 loop itself is as far from float64.
# bfloat16: inputs are the same bfloat16 numbers on both sides; each output is rounded once to 8 bits (2^-9 at most, 1.7e-3
# measured), and so is the gradient that comes in, which moves all gradients (2.4e-3 measured; 7e-3 where a gradient of few
# numbers is a sum over channels that nearly cancels, as that of C at one position).
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# The gradient of A in the state-space dual scan is a sum over all positions and channels of a head whose terms nearly cancel, of
# states that were rounded to bfloat16 before their products: 1.9e-2 was measured at 1,000 positions, the others are below 3e-3.
OF_DECAYS = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
# Where matrix products in bfloat16 stand between kernels: step sizes, B and C are rounded before the scan exponentiates them.
THROUGH_PROJECTIONS = 4e-2


def relative_error(given: torch.Tensor, expected: torch.Tensor) -> float:
    """Compare in float64; NaN never passes a limit. What should be zero must be zero."""
    given, expected = given.detach().double().cpu(), expected.detach().double().cpu()
    return float((given - expected).norm() / expected.norm().clamp(min=1e-12))


def assert_close(given: dict, expected: dict, tolerance: float, *, zero: tuple[str, ...] = ()) -> None:
    """Compare every entry of expected; those named zero are sums that cancel, of numbers near one."""
    errors = {name: relative_error(given[name], expected[name]) for name in expected}
    for name in zero:
        assert float(expected[name].norm()) < 1e-12
        errors[name] = float(given[name].norm())
    assert max(errors.values()) < tolerance and not any(e != e for e in errors.values()), errors
