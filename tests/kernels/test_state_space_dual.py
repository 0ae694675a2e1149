# Shapes: B sequences, T positions, H heads, K channels of a head, G groups, N states
"""The state-space dual scan in chunks against its recurrence in float64, and that against the original program."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dna_mamba.kernels.state_space_dual import state_space_dual, state_space_dual_step, state_space_dual_with_state
from tests.kernels import tolerances
from tests.kernels.tolerances import assert_close, relative_error

TOLERANCE = tolerances.TOLERANCE[torch.float32]
PARITY = Path(__file__).resolve().parents[1] / "parity" / "mamba2"
LENGTHS = (1, 2, 63, 64, 65, 130, 1000)


def make_inputs(B, T, H, K, G, N, *, seed=0, skip="channel", decay=4.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "x_BTHK": normal(B, T, H, K),
        "dt_BTH": normal(B, T, H),
        "A_H": -(normal(H).abs() + 0.01) * decay,
        "B_BTGN": normal(B, T, G, N),
        "C_BTGN": normal(B, T, G, N),
        "D": normal(H, K) if skip == "channel" else normal(H),
        "dt_bias": normal(H),
        "initial_state": normal(B, H, K, N),
    }


ACTIVATIONS = ("x_BTHK", "dt_BTH", "B_BTGN", "C_BTGN")


def rounded(inputs, dtype):
    return {name: x.to(dtype).double() if name in ACTIVATIONS else x for name, x in inputs.items()}


def run(inputs, implementation, dtype, seq_idx=None, device="cpu", of_x=None, **options):
    """Run forward and backward; with `of_x`, outputs and incoming gradients are of that dtype, and activations on a GPU too."""
    leaves = {name: x.to(device, dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    options = {"dt_softplus": True, **options}
    low = {} if of_x is None or device == "cpu" else dict.fromkeys(ACTIVATIONS, of_x)
    y, state = state_space_dual_with_state(
        **{name: leaf.to(low.get(name, dtype)) for name, leaf in leaves.items()},
        seq_idx=None if seq_idx is None else seq_idx.to(device),
        implementation=implementation,
        **options,
    )
    generator = torch.Generator().manual_seed(99)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(of_x or torch.float64).to(device, y.dtype)
    dstate = torch.randn(state.shape, generator=generator, dtype=torch.float64).to(device, state.dtype)
    torch.autograd.backward([y, state], [dy, dstate])
    return {"y": y, "final state": state, **{f"gradient of {name}": x.grad for name, x in leaves.items()}}


def resets(B, T, seed=0, share=0.05):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(B, T, generator=generator) < share).cumsum(1).int()


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("H, G", [(1, 1), (3, 1), (6, 2), (8, 8)])
def test_outputs_and_every_gradient_equal_the_float64_recurrence(T, H, G):
    inputs = make_inputs(2, T, H, 7, G, 5, skip="channel" if T % 2 else "head")
    assert_close(run(inputs, "cpu", torch.float32), run(inputs, "naive", torch.float64), TOLERANCE)


@pytest.mark.parametrize("T", (1, 130))
def test_naive_on_any_device_equals_the_float64_recurrence(T, device):
    inputs = make_inputs(2, T, 3, 4, 1, 5)
    given = run(inputs, "naive", torch.float32, device=device)
    assert_close(given, run(inputs, "naive", torch.float64), TOLERANCE)


@pytest.mark.parametrize(
    "at", [[64], [63], [65, 66], [1, 2, 3], [128], [40, 50, 127], list(range(1, 200))], ids=lambda at: str(at[:3])
)
def test_a_state_does_not_pass_a_reset(at):
    T = 200
    seq_idx = torch.zeros(2, T, dtype=torch.int32)
    for place in at:
        seq_idx[0, place:] += 1
    seq_idx[1] = 7 - 3 * seq_idx[0]  # numbers need not grow
    inputs = make_inputs(2, T, 4, 3, 2, 5)
    given = run(inputs, "cpu", torch.float32, seq_idx)
    assert_close(given, run(inputs, "naive", torch.float64, seq_idx), TOLERANCE)
    # independent of both: each part read for itself
    cuts = [0, *at, T]
    parts = []
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        own = {name: x[:, start:end] if x.dim() > 2 and name != "initial_state" else x for name, x in inputs.items()}
        own["initial_state"] = inputs["initial_state"] * (number == 0)
        parts.append(state_space_dual(**own, dt_softplus=True, implementation="naive"))
    assert relative_error(given["y"], torch.cat(parts, 1)) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T", (1, 2, 63, 130, 1000))
@pytest.mark.gpu
def test_on_a_gpu_outputs_and_every_gradient_equal_the_float64_recurrence(dtype, T):
    inputs = rounded(make_inputs(2, T, 6, 64, 2, 64, skip="channel" if T % 2 else "head"), dtype)
    given = run(inputs, "triton", torch.float32, device="cuda", of_x=dtype)
    expected = run(inputs, "naive", torch.float64, of_x=dtype)
    assert relative_error(given["gradient of A_H"], expected.pop("gradient of A_H")) < tolerances.OF_DECAYS[dtype]
    assert_close(given, expected, tolerances.TOLERANCE[dtype])


@pytest.mark.parametrize(
    "T, H, K, G, N", [(1, 1, 1, 1, 1), (5, 3, 7, 1, 5), (33, 4, 16, 2, 20), (70, 2, 20, 1, 70)], ids=str
)
@pytest.mark.parametrize("share", [None, 0.1], ids=["one sequence", "resets"])
def test_fused_kernels_equal_the_float64_recurrence(triton_device, T, H, K, G, N, share):
    inputs = make_inputs(2, T, H, K, G, N)
    seq_idx = None if share is None else resets(2, T, share=share)
    given = run(inputs, "triton", torch.float32, seq_idx, device=triton_device)
    assert_close(given, run(inputs, "naive", torch.float64, seq_idx), TOLERANCE)


@pytest.mark.parametrize("missing", ["D", "dt_bias", "initial_state", "D dt_bias initial_state"])
def test_fused_kernels_without_what_may_be_missing(triton_device, missing):
    inputs = {name: x for name, x in make_inputs(1, 40, 2, 5, 1, 6).items() if name not in missing.split()}
    for options in ({"dt_softplus": True}, {"dt_softplus": False, "dt_limit": (0.2, 1.1)}):
        given = run(inputs, "triton", torch.float32, device=triton_device, **options)
        assert_close(given, run(inputs, "naive", torch.float64, **options), TOLERANCE)


@pytest.mark.parametrize("place", [31, 32, 33, 64, 95])
def test_fused_kernels_reset_at_the_borders_of_chunks(triton_device, place):
    seq_idx = (torch.arange(100)[None] >= place).int()
    inputs = make_inputs(1, 100, 2, 5, 1, 6, decay=0.05)  # slow, so that what passed the reset would show
    given = run(inputs, "triton", torch.float32, seq_idx, device=triton_device)
    assert_close(given, run(inputs, "naive", torch.float64, seq_idx), TOLERANCE)


def test_fused_kernels_take_slices_as_they_stand_in_memory(triton_device):
    inputs = make_inputs(2, 40, 4, 5, 2, 6)
    whole = torch.cat([inputs[name].flatten(2).float() for name in ("x_BTHK", "B_BTGN", "C_BTGN", "dt_BTH")], -1)
    whole = whole.to(triton_device).requires_grad_()
    x, B, C, dt = whole.split([20, 12, 12, 4], -1)
    rest = {name: inputs[name].float().to(triton_device) for name in ("A_H", "D", "dt_bias", "initial_state")}
    y = state_space_dual(
        x.unflatten(-1, (4, 5)), dt, B_BTGN=B.unflatten(-1, (2, 6)), C_BTGN=C.unflatten(-1, (2, 6)), dt_softplus=True,
        implementation="triton", **rest,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(y.square().sum(), whole)
    expected = {name: w.clone().requires_grad_() for name, w in inputs.items()}
    other = state_space_dual(**expected, dt_softplus=True, implementation="naive")
    parts = torch.autograd.grad(other.square().sum(), [expected[n] for n in ("x_BTHK", "B_BTGN", "C_BTGN", "dt_BTH")])
    assert relative_error(y, other) < TOLERANCE
    assert relative_error(gradient, torch.cat([part.flatten(2) for part in parts], -1)) < TOLERANCE


@pytest.mark.parametrize("decay", [1e-6, 60.0, 3000.0], ids="decay {}".format)
def test_fused_kernels_with_slow_and_fast_decays(triton_device, decay):
    inputs = make_inputs(1, 100, 2, 5, 1, 6, decay=decay)
    given = run(inputs, "triton", torch.float32, device=triton_device)
    assert_close(given, run(inputs, "naive", torch.float64), TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("K, N", [(32, 16), (64, 128), (128, 256), (96, 200)], ids=str)
def test_heads_and_states_of_many_sizes(K, N):
    inputs = rounded(make_inputs(1, 300, 4, K, 2, N), torch.bfloat16)
    given = run(inputs, "triton", torch.float32, device="cuda", of_x=torch.bfloat16)
    expected = run(inputs, "naive", torch.float64, of_x=torch.bfloat16)
    assert (
        relative_error(given["gradient of A_H"], expected.pop("gradient of A_H")) < tolerances.OF_DECAYS[torch.bfloat16]
    )
    assert_close(given, expected, tolerances.TOLERANCE[torch.bfloat16])
    given = run(make_inputs(1, 300, 4, K, 2, N), "triton", torch.float32, device="cuda")
    assert_close(given, run(make_inputs(1, 300, 4, K, 2, N), "naive", torch.float64), TOLERANCE)


@pytest.mark.gpu
def test_two_runs_are_equal_to_the_bit():
    inputs = make_inputs(2, 3000, 4, 64, 1, 64)
    one, two = (run(inputs, "triton", torch.float32, device="cuda", of_x=torch.bfloat16) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("decay", [1e-6, 1e-3, 60.0, 3000.0], ids="decay {}".format)
def test_slow_and_fast_decays(decay):
    inputs = make_inputs(1, 300, 3, 4, 1, 5, decay=decay)
    assert_close(run(inputs, "cpu", torch.float32), run(inputs, "naive", torch.float64), TOLERANCE)


@pytest.mark.parametrize("limit", [(0.3, 1.1), (0.0, 0.5), (0.4, float("inf"))], ids=str)
def test_steps_are_held_within_limits(limit):
    inputs = make_inputs(1, 100, 2, 3, 1, 4)
    expected = run(inputs, "naive", torch.float64, dt_limit=limit)
    assert_close(run(inputs, "cpu", torch.float32, dt_limit=limit), expected, TOLERANCE)
    d = torch.nn.functional.softplus(inputs["dt_BTH"] + inputs["dt_bias"]).clamp(*limit)
    by_hand = dict(inputs, dt_BTH=d, dt_bias=torch.zeros(2, dtype=torch.float64))
    assert relative_error(state_space_dual(**by_hand, implementation="naive"), expected["y"]) < 1e-12


@pytest.mark.parametrize("implementation", ["naive", "cpu"])
def test_pieces_with_carried_state_equal_the_whole(implementation):
    inputs = make_inputs(2, 150, 4, 3, 2, 5)
    dtype = torch.float64 if implementation == "naive" else torch.float32
    whole = run(inputs, "naive", torch.float64)
    leaves = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
    y, state, at = [], leaves["initial_state"], 0
    for size in (1, 63, 64, 22):
        own = {name: x[:, at : at + size] if x.dim() > 2 else x for name, x in leaves.items()}
        own["initial_state"] = state
        part, state = state_space_dual_with_state(**own, dt_softplus=True, implementation=implementation)
        y.append(part)
        at += size
    generator = torch.Generator().manual_seed(99)
    dy = torch.randn(2, 150, 4, 3, generator=generator, dtype=torch.float64).to(dtype)
    dstate = torch.randn(state.shape, generator=generator, dtype=torch.float64).to(dtype)
    torch.autograd.backward([torch.cat(y, 1), state], [dy, dstate])
    given = {"y": torch.cat(y, 1), "final state": state}
    assert_close(given | {f"gradient of {name}": x.grad for name, x in leaves.items()}, whole, TOLERANCE)


def test_steps_equal_the_sequence():
    inputs = make_inputs(2, 20, 4, 3, 2, 5)
    expected, final = state_space_dual_with_state(**inputs, dt_softplus=True, implementation="naive")
    state = inputs.pop("initial_state").clone()
    for t in range(20):
        one = {name.replace("T", ""): x[:, t] if x.dim() > 2 else x for name, x in inputs.items()}
        assert relative_error(state_space_dual_step(state, **one, dt_softplus=True), expected[:, t]) < 1e-12
    assert relative_error(state, final) < 1e-12


def test_the_original_program_gives_these_numbers():
    data = {name: x.double() for name, x in load_file(PARITY / "ssd_op_g2.safetensors").items()}
    names = {"x": "x_BTHK", "dt": "dt_BTH", "A": "A_H", "B": "B_BTGN", "C": "C_BTGN"}
    leaves = {name: data[name].requires_grad_() for name in (*names, "D", "z", "dt_bias", "initial_state")}
    arguments = {names.get(name, name): leaf for name, leaf in leaves.items() if name != "z"}
    y, state = state_space_dual_with_state(**arguments, dt_softplus=True, implementation="naive")
    out = y * torch.nn.functional.silu(leaves["z"])
    ((out * data["dout"]).sum() + (state * data["dfinal_state"]).sum()).backward()
    given = {"out": out, "y_before_gate": y, "final_state": state}
    given |= {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}
    assert_close(given, {name: data[name] for name in given}, 1e-6)
    first = {name: x[:, :200] if x.dim() > 2 and name != "initial_state" else x for name, x in arguments.items()}
    _, state = state_space_dual_with_state(**first, dt_softplus=True, implementation="naive")
    assert relative_error(state, data["final_state_first_200"]) < 1e-6


def test_arguments_that_do_not_fit_are_named():
    inputs = make_inputs(2, 5, 4, 3, 2, 5)
    for name, bad, words in (
        ("B_BTGN", torch.zeros(2, 5, 3, 5), "groups that divide the 4 heads"),
        ("C_BTGN", torch.zeros(2, 5, 1, 5), "C is"),
        ("D", torch.zeros(3), "D is"),
        ("initial_state", torch.zeros(2, 4, 5, 3), "initial_state is"),
        ("x_BTHK", torch.zeros(2, 0, 4, 3), "at least one position"),
        ("dt_BTH", torch.zeros(2, 5, 4, dtype=torch.int64), "dt must have a floating dtype"),
    ):
        with pytest.raises(ValueError, match=words):
            state_space_dual(**(inputs | {name: bad}))
    with pytest.raises(ValueError, match="dt_limit"):
        state_space_dual(**inputs, dt_limit=(1.0, 0.5))
