# Shapes: B sequences, T positions, D channels, N states
"""The compiled scan against the equations in float64."""

import pytest
import torch

from dna_mamba.kernels.selective_scan import selective_scan, selective_scan_with_state
from tests.kernels import tolerances
from tests.kernels.tolerances import relative_error

TOLERANCE = tolerances.TOLERANCE[torch.float32]
LENGTHS = (1, 2, 63, 64, 65, 130, 1000)


def make_inputs(B, T, D, N, *, seed=0, delta_scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "u": normal(B, T, D),
        "delta": normal(B, T, D) * delta_scale,
        "A": -normal(D, N).abs() * 4 - 0.01,
        "B": normal(B, T, N),
        "C": normal(B, T, N),
        "D": normal(D),
        "z": normal(B, T, D),
        "delta_bias": normal(D),
        "initial_state": normal(B, D, N),
    }


def run(inputs, implementation, dtype, seq_idx=None, softplus=True, device="cpu"):
    leaves = {name: x.to(device, dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    y, state = selective_scan_with_state(
        **leaves,
        delta_softplus=softplus,
        seq_idx=None if seq_idx is None else seq_idx.to(device),
        implementation=implementation,
    )
    generator = torch.Generator().manual_seed(99)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device, y.dtype)
    dstate = torch.randn(state.shape, generator=generator, dtype=torch.float64).to(device, state.dtype)
    torch.autograd.backward([y, state], [dy, dstate])
    return {"y": y, "final state": state, **{f"gradient of {name}": x.grad for name, x in leaves.items()}}


def assert_close(given, expected, tolerance=TOLERANCE):
    tolerances.assert_close(given, expected, tolerance)


@pytest.mark.parametrize("T", LENGTHS)
def test_outputs_and_every_gradient_equal_the_float64_loop(T):
    inputs = make_inputs(2, T, 21, 5)
    assert_close(run(inputs, "cpu", torch.float32), run(inputs, "naive", torch.float64))


@pytest.mark.parametrize("T", (1, 130))
def test_naive_on_any_device_equals_the_float64_loop(T, device):
    inputs = make_inputs(2, T, 5, 3)
    given = run(inputs, "naive", torch.float32, device=device)
    assert_close(given, run(inputs, "naive", torch.float64))


@pytest.mark.parametrize("D, N", [(1, 1), (16, 16), (17, 16), (40, 64)], ids=str)
def test_any_number_of_channels_and_states(D, N):
    inputs = make_inputs(3, 70, D, N)
    assert_close(run(inputs, "cpu", torch.float32), run(inputs, "naive", torch.float64))


def test_a_change_of_sequence_resets_the_state():
    inputs = make_inputs(2, 150, 18, 4)
    seq_idx = torch.tensor([[0] * 40 + [1] * 60 + [0] * 50, [3] * 150], dtype=torch.int32)
    given = run(inputs, "cpu", torch.float32, seq_idx)
    assert_close(given, run(inputs, "naive", torch.float64, seq_idx))
    alone = {name: x[:1, 40:100] if x.dim() == 3 and x.shape[1] == 150 else x for name, x in inputs.items()}
    alone["initial_state"] = torch.zeros(1, 18, 4, dtype=torch.float64)
    separate = run(alone, "naive", torch.float64)["y"]
    assert relative_error(given["y"][:1, 40:100], separate) < TOLERANCE


@pytest.mark.parametrize("missing", ["D", "z", "delta_bias", "initial_state"])
def test_absent_arguments_are_neutral(missing):
    inputs = make_inputs(1, 70, 16, 4)
    del inputs[missing]
    assert_close(run(inputs, "cpu", torch.float32), run(inputs, "naive", torch.float64))


def test_delta_without_softplus():
    inputs = make_inputs(1, 70, 16, 4)
    inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs(), inputs["delta_bias"].abs()
    given = run(inputs, "cpu", torch.float32, softplus=False)
    assert_close(given, run(inputs, "naive", torch.float64, softplus=False))


@pytest.mark.parametrize("shift", [-12.0, -4.0, 0.0, 10.0])
def test_decays_from_almost_none_to_complete(shift):
    # softplus(-12) = 6e-6 keeps the state for 100,000 positions; softplus(10) forgets it at once
    inputs = make_inputs(1, 400, 16, 4)
    inputs["delta_bias"] = inputs["delta_bias"] * 0.1 + shift
    inputs["delta"] = inputs["delta"] * 0.1
    assert_close(run(inputs, "cpu", torch.float32), run(inputs, "naive", torch.float64), 3e-5)


@pytest.mark.parametrize("implementation", ["naive", "cpu"])
@pytest.mark.parametrize("cut", [1, 63, 64, 100])
def test_pieces_with_carried_state_equal_the_whole(implementation, cut):
    inputs = {name: x.float() for name, x in make_inputs(2, 200, 16, 4).items()}
    whole, last = selective_scan_with_state(**inputs, delta_softplus=True, implementation=implementation)
    by_position = ("u", "delta", "B", "C", "z")
    first = {n: x[:, :cut] if n in by_position else x for n, x in inputs.items()}
    second = {n: x[:, cut:] if n in by_position else x for n, x in inputs.items()}
    y1, state = selective_scan_with_state(**first, delta_softplus=True, implementation=implementation)
    second["initial_state"] = state
    y2, final = selective_scan_with_state(**second, delta_softplus=True, implementation=implementation)
    torch.testing.assert_close(torch.cat([y1, y2], 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(final, last, rtol=1e-5, atol=1e-5)


def test_later_positions_do_not_move_earlier_outputs():
    inputs = {name: x.float() for name, x in make_inputs(1, 130, 16, 4).items()}
    before = selective_scan(**inputs, delta_softplus=True, implementation="cpu")
    inputs["u"][:, 70:] += 1.0
    after = selective_scan(**inputs, delta_softplus=True, implementation="cpu")
    assert torch.equal(before[:, :70], after[:, :70])
    assert not torch.equal(before[:, 70:], after[:, 70:])


def test_a_sequence_does_not_depend_on_its_batch_companions():
    inputs = {name: x.float() for name, x in make_inputs(3, 90, 20, 4).items()}
    together = selective_scan(**inputs, delta_softplus=True, implementation="cpu")
    alone = selective_scan(
        **{n: x if n in ("A", "D", "delta_bias") else x[1:2] for n, x in inputs.items()},
        delta_softplus=True,
        implementation="cpu",
    )
    assert torch.equal(together[1:2], alone)


def test_two_runs_are_equal_to_the_bit_with_any_number_of_threads():
    inputs = make_inputs(1, 300, 64, 16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(inputs, "cpu", torch.float32)
        torch.set_num_threads(3)
        three = run(inputs, "cpu", torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[name], three[name]) for name in one)


def test_bfloat16_inputs_are_computed_in_float32():
    inputs = {name: x.bfloat16().double() for name, x in make_inputs(1, 130, 16, 4).items()}
    given = run(inputs, "cpu", torch.bfloat16)
    expected = run(inputs, "naive", torch.float64)
    assert relative_error(given["y"], expected["y"]) < 4e-3  # one rounding to 8 bits of mantissa
    assert given["y"].dtype == torch.bfloat16 and given["final state"].dtype == torch.float32


def test_zero_and_huge_inputs_stay_finite():
    inputs = {name: x.float() for name, x in make_inputs(1, 64, 16, 4).items()}
    zero = {name: torch.zeros_like(x) if name in ("u", "initial_state") else x for name, x in inputs.items()}
    assert torch.equal(selective_scan(**zero, implementation="cpu"), torch.zeros(1, 64, 16))
    huge = {**inputs, "delta": torch.full_like(inputs["delta"], 1e4)}
    assert torch.isfinite(selective_scan(**huge, delta_softplus=True, implementation="cpu")).all()


def test_nan_is_not_hidden():
    inputs = {name: x.float() for name, x in make_inputs(1, 64, 16, 4).items()}
    inputs["u"][0, 10, 3] = float("nan")
    y = selective_scan(**inputs, delta_softplus=True, implementation="cpu")
    assert torch.isnan(y[0, 10:, 3]).all() and torch.isfinite(y[0, :10]).all()


def test_nan_in_a_decay_rate_is_not_hidden():
    inputs = {name: x.float() for name, x in make_inputs(1, 64, 16, 4).items()}
    inputs["A"][3, 1] = float("nan")
    assert torch.isnan(selective_scan(**inputs, delta_softplus=True, implementation="cpu")[0, :, 3]).all()


def test_a_change_of_an_input_before_the_backward_is_an_error():
    inputs = {name: x.float() for name, x in make_inputs(1, 64, 16, 4).items()}
    inputs["B"].requires_grad_()
    y = selective_scan(**inputs, delta_softplus=True, implementation="cpu")
    inputs["u"].mul_(0.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"delta": torch.zeros(1, 9, 16)}, "delta is (1, 9, 16)"),
        ({"C": torch.zeros(1, 10, 3)}, "C is (1, 10, 3)"),
        ({"u": torch.zeros(1, 0, 16)}, "at least one position"),
        ({"implementation": "gpu"}, "'gpu' is unknown; choose one of auto, naive, cpu, triton"),
        ({"seq_idx": torch.zeros(1, 10)}, "seq_idx must be int32"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_wrong_argument_is_named(change, words):
    inputs = {name: x.float() for name, x in make_inputs(1, 10, 16, 4).items()}
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        selective_scan(**{**inputs, **change})


def test_a_named_implementation_never_falls_back():
    inputs = make_inputs(1, 10, 16, 4)
    with pytest.raises(ValueError, match="'cpu' takes float32 or bfloat16"):
        selective_scan(**inputs, implementation="cpu")
    assert selective_scan(**inputs, implementation="auto").dtype == torch.float64
