"""The inside of a Mamba layer as one operator against its parts in float64."""

import pytest
import torch

from dna_mamba.kernels.mamba_inner import mamba_inner
from tests.kernels.tolerances import THROUGH_PROJECTIONS, TOLERANCE, assert_close, relative_error

pytest.importorskip("triton", reason="triton is not installed")
NAMES = ("xz_BTF", "conv_weight_EK", "conv_bias_E", "x_proj_PE", "dt_proj_ER", "dt_bias_E", "A_EN", "D_E")
STATES = ("conv_state", "scan_state")


def make_inputs(B, T, E, N, R, K):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    shapes = ((B, T, 2 * E), (E, K), (E,), (R + 2 * N, E), (E, R), (E,), (E, N), (E,))
    scales = (1, 0.5, 1, E**-0.5, R**-0.5, 1, 1, 1)
    inputs = {name: normal(*s, scale=c) for name, s, c in zip(NAMES, shapes, scales, strict=True)}
    inputs["A_EN"] = -inputs["A_EN"].abs() - 0.1
    return {**inputs, "conv_state": normal(B, K - 1, E), "scan_state": normal(B, E, N)}


def run(inputs, implementation, dtype, device, activations=None):
    leaves = {}
    for name, x in inputs.items():
        leaves[name] = x.to(
            device, (activations or dtype) if name in ("xz_BTF", "conv_state") else dtype
        ).requires_grad_()
    outputs = mamba_inner(**leaves, implementation=implementation)
    generator = torch.Generator().manual_seed(9)
    gradients = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs]
    torch.autograd.backward(outputs, gradients)
    found = dict(zip(("y", "conv state", "scan state"), outputs, strict=True))
    return found | {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("T", [1, 2, 20])
@pytest.mark.parametrize("with_states", [False, True])
def test_outputs_states_and_every_gradient_equal_the_parts_in_float64(T, with_states, triton_device):
    inputs = make_inputs(2, T, 35, 3, 2, 4)
    if not with_states:
        inputs = {name: x for name, x in inputs.items() if name not in STATES}
    given = run(inputs, "triton", torch.float32, triton_device)
    # one position after a state of zero does not depend on decays
    zero = ("gradient of A_EN",) if T == 1 and not with_states else ()
    assert_close(given, run(inputs, "naive", torch.float64, "cpu"), TOLERANCE[torch.float32], zero=zero)


@pytest.mark.gpu
def test_bfloat16_beside_float32_weights():
    inputs = make_inputs(2, 1000, 128, 16, 8, 4)
    inputs = {name: x.bfloat16().double() for name, x in inputs.items()}
    given = run(inputs, "triton", torch.float32, "cuda", torch.bfloat16)
    assert_close(given, run(inputs, "naive", torch.float64, "cuda"), THROUGH_PROJECTIONS)


def test_it_compiles_without_a_graph_break(triton_device):
    inputs = make_inputs(1, 8, 34, 2, 2, 4)

    def loss(**leaves):
        y, conv_state, scan_state = mamba_inner(**leaves, implementation="triton")
        return y.square().sum() + conv_state.sum() + scan_state.sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = {name: x.to(triton_device, torch.float32, copy=True).requires_grad_() for name, x in inputs.items()}
        function(**leaves).backward()
        results.append({name: leaf.grad for name, leaf in leaves.items()})
    assert_close(results[0], results[1], 1e-6)


def test_autocast_leaves_float32_as_it_is(triton_device):
    inputs = make_inputs(1, 8, 34, 2, 2, 4)
    expected = run(inputs, "triton", torch.float32, triton_device)
    with torch.autocast(triton_device, dtype=torch.bfloat16):
        given = run(inputs, "triton", torch.float32, triton_device)
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "device, implementation", [("cpu", "cpu"), pytest.param("cuda", "triton", marks=pytest.mark.gpu)]
)
def test_twenty_states_of_bfloat16_beside_float32_weights(device, implementation):
    inputs = {name: x.bfloat16().double() for name, x in make_inputs(2, 100, 32, 20, 2, 4).items()}
    given = run(inputs, implementation, torch.float32, device, torch.bfloat16)
    assert_close(given, run(inputs, "naive", torch.float64, device), THROUGH_PROJECTIONS)


@pytest.mark.gpu
@pytest.mark.gpu_memory(60)
def test_offsets_past_two_to_the_31_elements():
    # 2,359,296,000 elements of x and z; what lies 2,000 positions back has decayed by more than e^-100
    T, E, tail = 1_152_000, 1024, 4096
    weights = {name: x.float().cuda() for name, x in make_inputs(1, 1, E, 16, 8, 4).items() if name not in STATES}
    del weights["xz_BTF"]
    generator = torch.Generator(device="cuda").manual_seed(0)
    xz = torch.randn(1, T, 2 * E, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_()
    end = xz.detach()[:, -tail:].clone().requires_grad_()
    y, *_ = mamba_inner(xz, **weights, implementation="triton")
    y_end, *_ = mamba_inner(end, **weights, implementation="triton")
    half = tail // 2
    assert relative_error(y[:, -half:], y_end[:, -half:]) < TOLERANCE[torch.bfloat16]
    dy = torch.zeros_like(y)
    dy[:, -half:] = 1.0
    (given,) = torch.autograd.grad(y, xz, dy)
    (expected,) = torch.autograd.grad(y_end, end, dy[:, -tail:])
    assert relative_error(given[:, -half:], expected[:, -half:]) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("name", [*NAMES, *STATES])
def test_what_does_not_fit_is_named(name):
    inputs = {n: x.float() for n, x in make_inputs(2, 4, 8, 2, 2, 4).items()}
    x = inputs[name]
    for wrong in (x[..., :-1], torch.cat([x, x]), x[:0]):
        with pytest.raises(ValueError, match="must be|must hold|matrices that are not empty"):
            mamba_inner(**{**inputs, name: wrong}, implementation="triton")
