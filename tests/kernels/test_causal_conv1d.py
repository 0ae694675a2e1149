"""The compiled convolution against torch's own and against the shifted sums in float64."""

import pytest
import torch
import torch.nn.functional as F

from dna_mamba.kernels.causal_conv1d import causal_conv1d, causal_conv1d_with_state
from tests.kernels import tolerances

TOLERANCE = tolerances.TOLERANCE[torch.float32]


def make_inputs(B, T, D, K):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "x_BTD": normal(B, T, D),
        "weight_DK": normal(D, K),
        "bias_D": normal(D),
        "initial_state": normal(B, K - 1, D),
    }


def run(inputs, implementation, dtype, **options):
    leaves = {name: x.to(dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    y, state = causal_conv1d_with_state(**leaves, implementation=implementation, **options)
    generator = torch.Generator().manual_seed(9)
    gradients = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (y, state)]
    torch.autograd.backward([y, state], gradients)
    return [y, state, *(x.grad for x in leaves.values())]


def assert_close(given, expected):
    for g, e in zip(given, expected, strict=True):
        assert (g.double() - e).norm() <= TOLERANCE * e.norm()


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize("T", [1, 2, 3, 63, 130])
def test_outputs_and_every_gradient_equal_the_float64_sums(T, K, activation):
    inputs = make_inputs(2, T, 21, K)
    given = run(inputs, "cpu", torch.float32, activation=activation)
    assert_close(given, run(inputs, "naive", torch.float64, activation=activation))


def test_naive_equals_torchs_convolution():
    inputs = make_inputs(2, 50, 6, 4)
    inputs["initial_state"] = torch.zeros_like(inputs["initial_state"])
    expected = F.conv1d(F.pad(inputs["x_BTD"].mT, (3, 0)), inputs["weight_DK"][:, None], inputs["bias_D"], groups=6).mT
    torch.testing.assert_close(causal_conv1d(**inputs, implementation="naive"), expected)


@pytest.mark.parametrize("implementation", ["naive", "cpu"])
@pytest.mark.parametrize("cut", [1, 2, 20])
def test_pieces_with_carried_state_equal_the_whole(implementation, cut):
    inputs = {name: x.float() for name, x in make_inputs(1, 40, 16, 4).items()}
    whole, last = causal_conv1d_with_state(**inputs, implementation=implementation)
    x = inputs.pop("x_BTD")
    first, state = causal_conv1d_with_state(x[:, :cut], **inputs, implementation=implementation)
    inputs["initial_state"] = state
    second, final = causal_conv1d_with_state(x[:, cut:], **inputs, implementation=implementation)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert torch.equal(final, last)


def test_inputs_of_another_sequence_count_as_zero():
    inputs = make_inputs(1, 30, 16, 4)
    seq_idx = torch.tensor([[0] * 10 + [1] * 1 + [0] * 19], dtype=torch.int32)
    given = run(inputs, "cpu", torch.float32, seq_idx=seq_idx)
    assert_close(given, run(inputs, "naive", torch.float64, seq_idx=seq_idx))
    alone = {**inputs, "x_BTD": inputs["x_BTD"][:, 11:], "initial_state": torch.zeros(1, 3, 16, dtype=torch.float64)}
    expected = causal_conv1d(**alone, implementation="naive")
    torch.testing.assert_close(given[0][:, 11:].double(), expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'gelu' is unknown"):
        causal_conv1d(torch.zeros(1, 3, 2), torch.zeros(2, 4), activation="gelu")
