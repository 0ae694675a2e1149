# Shapes: B sequences, T positions, D channels, G groups
"""The gated norm against its equation, and its fused kernels against autograd."""

import pytest
import torch

from dna_mamba.kernels.gated_rms_norm import gated_rms_norm
from tests.kernels.tolerances import TOLERANCE, assert_close, relative_error


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("gate_first", [True, False])
def test_every_group_has_a_mean_square_of_its_own(gate_first):
    y, z, weight = draw(3, 8), draw(3, 8, seed=1), draw(8, seed=2)
    given = gated_rms_norm(y, z, weight, num_groups=2, eps=1e-3, gate_first=gate_first, implementation="naive")
    gate = z / (1 + torch.exp(-z))
    for row in range(3):
        for first in (0, 4):
            part = slice(first, first + 4)
            value = y[row, part] * (gate[row, part] if gate_first else 1)
            expected = value / (value.square().mean() + 1e-3).sqrt() * weight[part]
            expected = expected if gate_first else expected * gate[row, part]
            assert torch.allclose(given[row, part], expected, rtol=1e-12)


def both(implementation, y, z, weight, device="cpu", **options):
    leaves = {"y": y, "z": z, "weight": weight}
    leaves = {name: x.detach().to(device).requires_grad_() for name, x in leaves.items()}
    out = gated_rms_norm(leaves["y"], leaves["z"], leaves["weight"], implementation=implementation, **options)
    out.backward(draw(*out.shape, seed=3).to(out))
    return {"out": out, **{f"gradient of {name}": x.grad for name, x in leaves.items()}}


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("D, G", [(5, 1), (6, 2), (64, 8), (40, 1)])
@pytest.mark.parametrize("T", [1, 7, 300])
def test_fused_kernels_and_every_gradient_equal_the_equation(triton_device, gate_first, D, G, T):
    y, z, weight = draw(2, T, D), draw(2, T, D, seed=1), draw(D, seed=2)
    options = {"num_groups": G, "gate_first": gate_first}
    given = both("triton", y.float(), z.float(), weight.float(), triton_device, **options)
    assert_close(given, both("naive", y, z, weight, **options), TOLERANCE[torch.float32])


@pytest.mark.gpu
def test_bfloat16_on_a_gpu():
    y, z = (draw(2, 3000, 512, seed=s).bfloat16() for s in (0, 1))
    weight = draw(512, seed=2).float()
    given = both("triton", y, z, weight, "cuda", num_groups=2)
    assert given["out"].dtype == torch.bfloat16
    expected = both("naive", y.double(), z.double(), weight.double(), num_groups=2)
    assert_close(given, expected, TOLERANCE[torch.bfloat16])


def test_slices_are_taken_as_they_stand_in_memory(triton_device):
    wide = draw(2, 9, 30).float().to(triton_device).requires_grad_()
    weight = draw(10, seed=2).float().to(triton_device)
    out = gated_rms_norm(wide[..., 10:20], wide[..., :10], weight, num_groups=2, implementation="triton")
    (gradient,) = torch.autograd.grad(out.square().sum(), wide)
    exact = wide.detach().cpu().double().requires_grad_()
    other = gated_rms_norm(
        exact[..., 10:20], exact[..., :10], weight.cpu().double(), num_groups=2, implementation="naive"
    )
    (expected,) = torch.autograd.grad(other.square().sum(), exact)
    assert relative_error(gradient, expected) < TOLERANCE[torch.float32]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="must divide the 6 channels"):
        gated_rms_norm(draw(2, 6), draw(2, 6), draw(6), num_groups=4)
    with pytest.raises(ValueError, match="must be"):
        gated_rms_norm(draw(2, 6), draw(2, 5), draw(6))
