"""The Triton kernels around the scan, convolution, norm and loss, against float64: interpreted, or on a GPU."""

import threading

import pytest
import torch
import torch.nn.functional as F

from dna_mamba.kernels.causal_conv1d import causal_conv1d, causal_conv1d_step, causal_conv1d_with_state
from dna_mamba.kernels.cross_entropy import cross_entropy
from dna_mamba.kernels.rms_norm import add_rms_norm, rms_norm
from tests.kernels.test_causal_conv1d import make_inputs
from tests.kernels.tolerances import TOLERANCE, relative_error

pytest.importorskip("triton", reason="triton is not installed")
EXACT = TOLERANCE[torch.float32]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolve(inputs, implementation, dtype, device, **options):
    leaves = {name: x.to(device, dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    y, state = causal_conv1d_with_state(**leaves, implementation=implementation, **options)
    torch.autograd.backward([y, state], [normal(*x.shape, seed=9).to(x) for x in (y, state)])
    return [y, state, *(x.grad for x in leaves.values())]


def assert_all_close(given, expected, tolerance=EXACT):
    errors = [relative_error(g, e) for g, e in zip(given, expected, strict=True)]
    assert max(errors) < tolerance and not any(e != e for e in errors), errors


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize("T", [1, 2, 3, 63, 130])
def test_the_convolution_and_every_gradient_equal_the_float64_sums(T, K, activation, triton_device):
    inputs = make_inputs(2, T, 21, K)
    given = convolve(inputs, "triton", torch.float32, triton_device, activation=activation)
    assert_all_close(given, convolve(inputs, "naive", torch.float64, "cpu", activation=activation))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T", [127, 128, 129, 1000, 4097])
def test_the_convolution_on_a_gpu(T, dtype):
    inputs = {name: x.to(dtype).double() for name, x in make_inputs(2, T, 256, 4).items()}
    given = convolve(inputs, "triton", dtype, "cuda", activation="silu")
    assert_all_close(given, convolve(inputs, "naive", torch.float64, "cuda", activation="silu"), TOLERANCE[dtype])


def test_without_bias_and_state_and_from_a_slice(triton_device):
    x = normal(2, 20, 80).float().to(triton_device)[..., 8:42]
    weight = normal(34, 4, seed=1).float().to(triton_device)
    assert not x.is_contiguous()
    given = causal_conv1d(x, weight, implementation="triton")
    assert relative_error(given, causal_conv1d(x.double(), weight.double(), implementation="naive")) < EXACT


def test_inputs_of_another_sequence_count_as_zero(triton_device):
    inputs = make_inputs(2, 30, 16, 4)
    seq_idx = torch.tensor([[0] * 10 + [1] * 1 + [0] * 19, [0] * 28 + [1, 2]], dtype=torch.int32)
    given = convolve(inputs, "triton", torch.float32, triton_device, seq_idx=seq_idx.to(triton_device))
    assert_all_close(given, convolve(inputs, "naive", torch.float64, "cpu", seq_idx=seq_idx))


def test_convolution_steps_equal_the_whole(triton_device):
    inputs = {name: x.float().to(triton_device) for name, x in make_inputs(2, 9, 34, 4).items()}
    whole, last = causal_conv1d_with_state(**inputs, activation="silu", implementation="naive")
    state = inputs["initial_state"].clone()
    for t in range(9):
        y = causal_conv1d_step(
            state,
            inputs["x_BTD"][:, t],
            inputs["weight_DK"],
            inputs["bias_D"],
            activation="silu",
            implementation="triton",
        )
        assert relative_error(y, whole[:, t]) < EXACT
    assert torch.equal(state, last)


def norms(shape, implementation, dtype, device, residual, x_dtype=None):
    width = shape[-1]
    x, weight = normal(*shape), normal(width, seed=1)
    leaves = [x.to(device, x_dtype or dtype), weight.to(device, dtype)]
    if residual:
        leaves.append(normal(*shape, seed=2).to(device, dtype))
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    if residual:
        outputs = add_rms_norm(leaves[0], leaves[2], leaves[1], implementation=implementation)
    else:
        outputs = (rms_norm(leaves[0], leaves[1], implementation=implementation),)
    torch.autograd.backward(outputs, [normal(*shape, seed=3 + i).to(y) for i, y in enumerate(outputs)])
    return [*outputs, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5), (70, 128), (3, 7, 300), (2, 4097)], ids=str)
def test_the_norm_and_every_gradient_equal_float64(shape, residual, triton_device):
    given = norms(shape, "triton", torch.float32, triton_device, residual)
    assert_all_close(given, norms(shape, "naive", torch.float64, "cpu", residual))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [128, 256, 1024])
def test_the_norm_of_bfloat16_beside_a_float32_residual(width):
    shape = (3, 1001, width)
    given = norms(shape, "triton", torch.float32, "cuda", True, x_dtype=torch.bfloat16)
    x = normal(*shape).bfloat16().double()
    total = x + normal(*shape, seed=2).float().double()
    weight = normal(width, seed=1).float().double()
    expected = total * (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight
    assert given[0].dtype == torch.bfloat16 and given[1].dtype == torch.float32
    assert relative_error(given[0], expected) < TOLERANCE[torch.bfloat16]
    assert relative_error(given[1], total) < EXACT
    reference = norms(shape, "naive", torch.float32, "cuda", True, x_dtype=torch.bfloat16)
    assert_all_close(given[2:], reference[2:], TOLERANCE[torch.bfloat16])


def losses(logits, targets, weights, implementation, dtype, device):
    leaf = logits.to(device, dtype).requires_grad_()
    given = cross_entropy(
        leaf, targets.to(device), None if weights is None else weights.to(device, dtype), implementation=implementation
    )
    given.backward(normal(*given.shape, seed=5).to(given))
    return given, leaf.grad


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("vocabulary", [4, 16, 21])
def test_the_loss_and_its_gradient_equal_float64(vocabulary, weighted, triton_device):
    logits = normal(3, 40, vocabulary) * 3
    targets = torch.randint(0, vocabulary, (3, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    weights = normal(3, 40, seed=4).abs() if weighted else None
    given = losses(logits, targets, weights, "triton", torch.float32, triton_device)
    assert_all_close(given, losses(logits, targets, weights, "naive", torch.float64, "cpu"))


def test_a_target_without_weight_adds_nothing_even_where_it_is_impossible(triton_device):
    logits, targets, weights = normal(1, 6, 16), torch.arange(6)[None], torch.ones(1, 6)
    logits[0, 2, 2] = -float("inf")
    weights[0, 2] = 0.0
    given, gradient = losses(logits, targets, weights, "triton", torch.float32, triton_device)
    assert given[0, 2] == 0 and torch.isfinite(given).all() and (gradient[0, 2] == 0).all()
    expected = F.cross_entropy(logits[0, 3:], targets[0, 3:], reduction="none")
    assert relative_error(given[0, 3:], expected) < EXACT
    impossible = cross_entropy(logits.float().to(triton_device), targets.to(triton_device), implementation="triton")
    assert impossible[0, 2] == float("inf")


def test_a_target_outside_the_vocabulary_is_nan_not_a_number_from_elsewhere(triton_device):
    logits = normal(1, 4, 16).float().to(triton_device).requires_grad_()
    targets = torch.tensor([[1, 16, -1, -100]], device=triton_device)
    given = cross_entropy(logits, targets, implementation="triton")
    given.sum().backward()
    assert given[0].isnan().tolist() == [False, True, True, True]
    assert logits.grad[0].isnan().all(-1).tolist() == [False, True, True, True]
    with pytest.raises(IndexError, match="out of bounds"):
        cross_entropy(logits.detach().cpu(), targets[:, 3:].cpu().expand(1, 4), implementation="naive")


def test_the_weights_of_targets_have_a_gradient(triton_device):
    logits = normal(2, 5, 16).float().to(triton_device)
    targets = torch.ones(2, 5, dtype=torch.long, device=triton_device)
    weights = normal(2, 5, seed=1).abs().float().to(triton_device).requires_grad_()
    given = cross_entropy(logits, targets, weights, implementation="triton")
    given.sum().backward()
    expected = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="none").view(2, 5)
    assert relative_error(weights.grad, expected) < EXACT
    assert relative_error(given, expected * weights) < EXACT


def test_the_gradient_of_a_sum_reads_no_copy(triton_device, monkeypatch):
    from dna_mamba.kernels.cross_entropy import fused

    leaf = normal(2, 5, 16).float().to(triton_device).requires_grad_()
    targets = torch.ones(2, 5, dtype=torch.long, device=triton_device)
    strides, kernel = [], fused._backward

    class Spy:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                strides.append(arguments[8])
                return kernel[grid](*arguments, **options)

            return launch

    monkeypatch.setattr(fused, "_backward", Spy())
    cross_entropy(leaf, targets, implementation="triton").sum().backward()
    expected = (leaf.detach().softmax(-1) - F.one_hot(targets, 16)).double()
    assert relative_error(leaf.grad, expected) < EXACT
    assert strides == [0]


def gradients_of(function, leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    function(*leaves).backward()
    return [leaf.grad for leaf in leaves]


def chain(x, weight, taps):
    """Run a convolution, a norm and a loss."""
    y, state = causal_conv1d_with_state(x, taps, activation="silu", implementation="triton")
    norm, total = add_rms_norm(y, x, weight, implementation="triton")
    targets = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
    return cross_entropy(norm, targets, implementation="triton").sum() + total.sum() + state.sum()


def test_checkpointing_autocast_and_threads_change_nothing(triton_device):
    leaves = [normal(*s).float().to(triton_device) for s in [(2, 12, 34), (34,), (34, 4)]]
    expected = gradients_of(chain, leaves)

    def checkpointed(*tensors):
        return torch.utils.checkpoint.checkpoint(chain, *tensors, use_reentrant=False)

    found = [gradients_of(checkpointed, leaves)]
    with torch.autocast(leaves[0].device.type, dtype=torch.bfloat16):
        found.append(gradients_of(chain, leaves))
    if triton_device == "cuda":  # the interpreter keeps its place in global variables
        threads = [threading.Thread(target=lambda: found.append(gradients_of(chain, leaves))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == (5 if triton_device == "cuda" else 2)
    for given in found:
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


def test_they_compile_without_a_graph_break(triton_device):
    leaves = [normal(*s).float().to(triton_device) for s in [(2, 12, 34), (34,), (34, 4)]]
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for one, two in zip(gradients_of(chain, leaves), gradients_of(compiled, leaves), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.gpu
@pytest.mark.gpu_memory(40)
def test_offsets_past_two_to_the_31_elements():
    # 2,359,296,000 elements: a 32-bit offset would wrap inside the last tenth
    T, D, tail = 2_304_000, 1024, 64
    generator = torch.Generator(device="cuda").manual_seed(0)

    def draw(*shape, dtype=torch.bfloat16):
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    x = draw(1, T, D).requires_grad_()
    end = x.detach()[:, -tail - 3 :].clone().requires_grad_()  # with the inputs that the taps read
    taps, weight = draw(D, 4, dtype=torch.float32), draw(D, dtype=torch.float32)
    targets = torch.arange(T, device="cuda")[None] % D
    for function in (
        lambda x: causal_conv1d(x, taps, activation="silu", implementation="triton"),
        lambda x: rms_norm(x, weight, implementation="triton"),
        lambda x: add_rms_norm(x, x, weight, implementation="triton")[1],
        lambda x: cross_entropy(x, targets[:, -x.shape[1] :], implementation="triton"),
    ):
        y, y_end = function(x), function(end)
        assert torch.equal(y[:, -tail:], y_end[:, -tail:])
        dy = torch.zeros_like(y)
        dy[:, -tail:] = 1.0
        (given,) = torch.autograd.grad(y, x, dy)
        (expected,) = torch.autograd.grad(y_end, end, dy[:, -tail - 3 :])
        assert torch.equal(given[:, -tail:], expected[:, -tail:])
        del y, dy, given


def conv_step(x, **changes):
    given = {"state_BKD": torch.zeros(1, 3, 8), "x_BD": x[:, 0], "weight_DK": torch.zeros(8, 4)} | changes
    return causal_conv1d_step(**given, implementation="triton")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: causal_conv1d(x, torch.zeros(8, 5), implementation="triton"), "5 taps; 2 to 4 fit"),
        (lambda x: rms_norm(x, torch.zeros(9)), r"\(..., channels\) and \(channels,\)"),
        (lambda x: add_rms_norm(x, torch.zeros(8), torch.zeros(8)), "residual is"),
        (lambda x: rms_norm(x.double(), torch.zeros(8), implementation="triton"), "'triton' takes float32 or bfloat16"),
        (lambda x: cross_entropy(x, torch.zeros(1, 4)), "logits, targets and weights are"),
        (lambda x: causal_conv1d(x, torch.zeros(8, 4), torch.zeros(7)), r"bias is \(7,\).* must be \(8,\)"),
        (lambda x: causal_conv1d(x, torch.zeros(9, 4)), r"weight is \(9, 4\).* must be \(8, 4\)"),
        (lambda x: causal_conv1d(x[:, :0], torch.zeros(8, 4)), "none of them empty"),
        (lambda x: conv_step(x, weight_DK=torch.zeros(9, 4)), r"weight is \(9, 4\)"),
        (lambda x: conv_step(x, bias_D=torch.zeros(9)), r"bias is \(9,\)"),
        (lambda x: conv_step(x, state_BKD=torch.zeros(1, 2, 8)), r"state is \(1, 2, 8\)"),
        (lambda x: conv_step(x, activation="relu"), "activation 'relu' is unknown"),
        (lambda x: conv_step(x, state_BKD=torch.zeros(1, 0, 8), weight_DK=torch.zeros(8, 1)), "1 tap; 2 or more fit"),
        (lambda x: rms_norm(x[:0].double(), torch.zeros(8), implementation="triton"), "'triton' takes float32 or"),
        (lambda x: cross_entropy(x[:, :0].double(), torch.zeros(1, 0), implementation="triton"), "'triton' takes"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(1, 3, 8))
