# Shapes: B sequences, T positions, D channels, N states
"""The Triton scan against the equations in float64: in the interpreter on small shapes, on a GPU on all."""

import threading

import numpy as np
import pytest
import torch
from numba import njit, prange

from dna_mamba.kernels.selective_scan import selective_scan, selective_scan_step, selective_scan_with_state
from tests.kernels.test_selective_scan import make_inputs, run
from tests.kernels.tolerances import TOLERANCE, assert_close, relative_error

pytest.importorskip("triton", reason="triton is not installed")

from dna_mamba.kernels.selective_scan import fused

EXACT = TOLERANCE[torch.float32]
BY_POSITION = ("u", "delta", "B", "C", "z")


def cast(inputs, dtype, device):
    """Give what has a position in the dtype, the rest in float32."""
    return {name: x.to(device, dtype if name in BY_POSITION else torch.float32) for name, x in inputs.items()}


def run_mixed(inputs, dtype, device, seq_idx=None):
    """As in training: activations in the dtype, parameters and states in float32."""
    leaves = {name: x.requires_grad_() for name, x in cast(inputs, dtype, device).items()}
    options = {"delta_softplus": True, "implementation": "triton"}
    y, state = selective_scan_with_state(**leaves, seq_idx=seq_idx, **options)
    generator = torch.Generator().manual_seed(99)
    dy, dstate = (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (y, state))
    torch.autograd.backward([y, state], [dy, dstate])
    return {"y": y, "final state": state, **{f"gradient of {name}": x.grad for name, x in leaves.items()}}


def compare(inputs, device, dtype=torch.float32, tolerance=None, **options):
    given = run(inputs, "triton", dtype, device=device, **options)
    expected = run(inputs, "naive", torch.float64, device=device, **options)
    assert_close(given, expected, tolerance or TOLERANCE[dtype])


@pytest.mark.parametrize("T", [1, 2, 63, 130])
def test_outputs_and_every_gradient_equal_the_float64_loop(T, triton_device):
    compare(make_inputs(2, T, 35, 3), triton_device)


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 2, 63, 130, 1000, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_outputs_and_every_gradient_equal_the_float64_loop(T, dtype):
    inputs = make_inputs(2, T, 128, 16)
    inputs = {name: x.to(dtype).double() if name in BY_POSITION else x for name, x in inputs.items()}
    expected = run(inputs, "naive", torch.float64, device="cuda")
    assert_close(run_mixed(inputs, dtype, "cuda"), expected, TOLERANCE[dtype])


def test_sixteen_states_of_two_warps(triton_device):
    compare(make_inputs(1, 20, 128, 16), triton_device)


@pytest.mark.parametrize("D, N", [(1, 1), (40, 6)], ids=str)
def test_any_number_of_channels_and_states(D, N, triton_device):
    compare(make_inputs(2, 20, D, N), triton_device)


def test_more_than_sixteen_states_run_in_groups(triton_device):
    compare(make_inputs(1, 12, 34, 21), triton_device)


@pytest.mark.gpu
def test_sixty_four_states():
    compare(make_inputs(2, 50, 128, 64), "cuda")


@pytest.mark.parametrize("resets", [(16, 256), (100,), (40, 190)], ids=str)
def test_the_length_in_chunks_with_resets(resets, triton_device):
    # so slow a decay that what passes a reset would show in the next chunk; some resets open a segment or a chunk
    inputs = make_inputs(1, 272, 5, 1, delta_scale=0.1)
    inputs["delta_bias"] = inputs["delta_bias"] * 0.1 - 6
    cut = fused.plan(1, 272, 5, 1)
    assert cut.num_chunks == 2 and cut.chunk_positions == 256
    seq_idx = torch.zeros(1, 272, dtype=torch.int32)
    for start in resets:
        seq_idx[:, start:] = 1 - seq_idx[0, start]
    compare(inputs, triton_device, seq_idx=seq_idx, tolerance=3e-5)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("resets", [False, True])
def test_the_carry_over_groups_of_chunks(resets, backward, triton_device):
    num_chunks = 2 * fused.GROUP + 6
    generator = torch.Generator().manual_seed(0)
    ends, first = (torch.randn(2, *s, 3, 50, generator=generator, dtype=torch.float64) for s in [(num_chunks,), ()])
    A2 = -torch.rand(3, 50, generator=generator, dtype=torch.float64)
    sums = torch.rand(2, num_chunks, 50, generator=generator, dtype=torch.float64) * 0.1
    kept = (torch.rand(2, num_chunks, generator=generator) > 0.05).double()
    assert 0 < (kept == 0).sum() < 20
    expected, carried = torch.empty_like(ends), first.clone()
    for i in reversed(range(num_chunks)) if backward else range(num_chunks):
        expected[:, i] = carried
        decay = torch.exp2(A2 * sums[:, i, None]) * (kept[:, i, None, None] if resets else 1.0)
        carried = decay * carried + ends[:, i]
    given, *rest = (x.to(triton_device, torch.float32) for x in (ends, A2, sums, kept, first))
    fused._join(given, *rest, backward=backward, resets=resets)
    assert relative_error(given, expected) < EXACT


@pytest.mark.gpu
def test_many_chunks_in_groups_with_resets():
    inputs = make_inputs(1, 20_000, 128, 16, delta_scale=0.1)
    inputs["delta_bias"] = inputs["delta_bias"] - 4
    assert fused.plan(1, 20_000, 128, 132).num_chunks > 2 * fused.GROUP
    seq_idx = (torch.arange(20_000) // 7008).int()[None]  # resets open a segment
    compare(inputs, "cuda", seq_idx=seq_idx, tolerance=3e-5)


@pytest.mark.parametrize("missing", ["D", "z", "delta_bias", "initial_state"])
def test_absent_arguments_are_neutral(missing, triton_device):
    inputs = make_inputs(1, 20, 34, 2)
    del inputs[missing]
    compare(inputs, triton_device)


def test_delta_without_softplus(triton_device):
    inputs = make_inputs(1, 20, 34, 2)
    inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs(), inputs["delta_bias"].abs()
    compare(inputs, triton_device, softplus=False)


@pytest.mark.parametrize("shift", [-12.0, 10.0])
def test_decays_from_almost_none_to_complete(shift, triton_device):
    # softplus(-12) = 6e-6 keeps the state for 100,000 positions; softplus(10) forgets it at once
    inputs = make_inputs(1, 70, 16, 2)
    inputs["delta_bias"] = inputs["delta_bias"] * 0.1 + shift
    inputs["delta"] = inputs["delta"] * 0.1
    compare(inputs, triton_device, tolerance=3e-5)  # of the gradient of A; all else 1e-6


def test_slices_of_wider_tensors_are_read_as_they_lie(triton_device):
    inputs = cast(make_inputs(2, 20, 34, 4), torch.float32, triton_device)
    expected = selective_scan(**inputs, delta_softplus=True, implementation="triton")
    wide = torch.cat([inputs["u"], inputs["z"], inputs["B"], inputs["C"]], dim=-1)
    u, z, B, C = wide.split([34, 34, 4, 4], dim=-1)
    sliced = {**inputs, "u": u, "z": z, "B": B, "C": C}
    assert torch.equal(selective_scan(**sliced, delta_softplus=True, implementation="triton"), expected)


@pytest.mark.parametrize("cut", [1, 16, 21])
def test_pieces_with_carried_state_equal_the_whole(cut, triton_device):
    inputs = cast(make_inputs(2, 50, 16, 2), torch.float32, triton_device)
    options = {"delta_softplus": True, "implementation": "triton"}
    whole, last = selective_scan_with_state(**inputs, **options)
    first = {n: x[:, :cut] if n in BY_POSITION else x for n, x in inputs.items()}
    second = {n: x[:, cut:] if n in BY_POSITION else x for n, x in inputs.items()}
    y1, state = selective_scan_with_state(**first, **options)
    y2, final = selective_scan_with_state(**{**second, "initial_state": state}, **options)
    torch.testing.assert_close(torch.cat([y1, y2], 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(final, last, rtol=1e-5, atol=1e-5)


def test_two_runs_are_equal_to_the_bit(triton_device):
    shape = (2, 5000, 128, 16) if triton_device == "cuda" else (1, 20, 34, 2)
    inputs = make_inputs(*shape)
    one, two = (run(inputs, "triton", torch.float32, device=triton_device) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_later_positions_do_not_move_earlier_outputs_and_nan_is_not_hidden(triton_device):
    inputs = cast(make_inputs(1, 40, 16, 2), torch.float32, triton_device)
    before = selective_scan(**inputs, delta_softplus=True, implementation="triton")
    inputs["u"][0, 25, 3] = float("nan")
    after = selective_scan(**inputs, delta_softplus=True, implementation="triton")
    assert torch.equal(before[:, :25], after[:, :25])
    assert torch.isnan(after[0, 25:, 3]).all() and torch.isfinite(after[0, :, 4:]).all()


def test_zero_and_huge_inputs_stay_finite(triton_device):
    inputs = cast(make_inputs(1, 20, 16, 2), torch.float32, triton_device)
    zero = {name: torch.zeros_like(x) if name in ("u", "initial_state") else x for name, x in inputs.items()}
    y = selective_scan(**zero, implementation="triton")
    assert torch.equal(y, torch.zeros_like(y))
    huge = {**inputs, "delta": torch.full_like(inputs["delta"], 1e4)}
    given = run({n: x.double().cpu() for n, x in huge.items()}, "triton", torch.float32, device=triton_device)
    assert all(torch.isfinite(x).all() for x in given.values())


def test_steps_equal_the_whole(triton_device):
    inputs = cast(make_inputs(2, 12, 35, 3), torch.float32, triton_device)
    inputs["delta"][:, 0] -= 20.0  # softplus at its small end
    whole, last = selective_scan_with_state(**inputs, delta_softplus=True, implementation="naive")
    state = inputs.pop("initial_state").clone()
    for t in range(12):
        now = {n: x[:, t] if n in BY_POSITION else x for n, x in inputs.items()}
        y = selective_scan_step(state, **now, delta_softplus=True, implementation="triton")
        assert relative_error(y, whole[:, t]) < EXACT
    assert relative_error(state, last) < EXACT


def test_it_compiles_without_a_graph_break(triton_device):
    inputs = cast(make_inputs(1, 20, 34, 2), torch.float32, triton_device)

    def loss(**leaves):
        y, state = selective_scan_with_state(**leaves, delta_softplus=True, implementation="triton")
        return y.square().sum() + state.sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        function(**leaves).backward()
        results.append([x.grad for x in leaves.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_activation_checkpointing_and_threads_change_nothing(triton_device):
    inputs = cast(make_inputs(1, 20, 34, 2), torch.float32, triton_device)

    def gradients(checkpointed):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}

        def scan(*tensors):
            return selective_scan(
                **dict(zip(leaves, tensors, strict=True)), delta_softplus=True, implementation="triton"
            )

        if checkpointed:
            y = torch.utils.checkpoint.checkpoint(scan, *leaves.values(), use_reentrant=False)
        else:
            y = scan(*leaves.values())
        y.square().sum().backward()
        return [x.grad for x in leaves.values()]

    expected = gradients(False)
    found = [gradients(True)]
    threads = [threading.Thread(target=lambda: found.append(gradients(False))) for _ in range(3)]
    if triton_device == "cuda":  # the interpreter keeps its place in global variables
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == (4 if triton_device == "cuda" else 1)
    for given in found:
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


def test_what_the_kernels_do_not_take_is_named(triton_device):
    inputs = cast(make_inputs(1, 4, 8, 65), torch.float32, triton_device)
    with pytest.raises(ValueError, match="65 states; at most 64 fit"):
        selective_scan(**inputs, implementation="triton")
    with pytest.raises(ValueError, match="at least one state"):
        selective_scan(**{n: x[..., :0] if n in ("A", "B", "C", "initial_state") else x for n, x in inputs.items()})
    with pytest.raises(ValueError, match="'triton' takes float32 or bfloat16"):
        selective_scan(**{n: x.double() for n, x in inputs.items()}, implementation="triton")


def test_the_plan_covers_every_position_once():
    for B, T, D, multiprocessors in [(1, 1, 1, 132), (1, 2**20, 256, 132), (1024, 1024, 256, 132), (8, 8192, 2048, 132),
                                     (64, 16_384, 256, 132), (1, 999_999, 192, 78), (3, 257, 100, 1)]:  # fmt: skip
        cut = fused.plan(B, T, D, multiprocessors)
        assert (cut.num_chunks - 1) * cut.chunk_positions < T <= cut.num_chunks * cut.chunk_positions
        assert (cut.num_tiles - 1) * cut.tile * cut.warps < D <= cut.num_tiles * cut.tile * cut.warps


@pytest.mark.gpu
@pytest.mark.gpu_memory(60)
def test_offsets_past_two_to_the_31_elements():
    # 2,359,296,000 elements: a 32-bit offset would wrap inside the last tenth of the sequence
    T, D, tail = 2_304_000, 1024, 4096
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    inputs = {
        "u": normal(1, T, D),
        "delta": normal(1, T, D),
        "B": normal(1, T, 16),
        "C": normal(1, T, 16),
        "z": normal(1, T, D),
    }
    rest = {"A": -torch.rand(D, 16, device="cuda") - 0.1, "D": torch.ones(D, device="cuda")}
    options = {"delta_softplus": True, "implementation": "triton"}
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y = selective_scan(**leaves, **rest, **options)
    dy = torch.zeros_like(y)
    dy[:, -tail // 2 :] = 1.0
    y.backward(dy)
    # delta is about 0.8 and A at most -0.1: what lies 2,048 positions back has decayed by e^-160
    end = {name: x.detach()[:, -tail:].clone().requires_grad_() for name, x in inputs.items()}
    y_end = selective_scan(**end, **rest, **options)
    y_end.backward(dy[:, -tail:])
    half = tail // 2
    assert relative_error(y[:, -half:], y_end[:, -half:]) < 1e-4
    for name in inputs:
        assert relative_error(leaves[name].grad[:, -half:], end[name].grad[:, -half:]) < 1e-4, name


@njit(parallel=True, error_model="numpy")
def _float64_channel(u, delta, keep, A, B, C, first, dy, dlast, h, y, du, ddelta, dA, dB, dC, last, dfirst):
    """One channel of the scan without skip and gate, and its gradients; rows are states."""
    T, N = u.shape[0], A.shape[0]
    for n in prange(N):
        state = first[n]
        for t in range(T):
            state = np.exp(A[n] * delta[t]) * keep[t] * state + delta[t] * u[t] * B[t, n]
            h[n, t] = state
            y[n, t] = C[t, n] * state
            dC[t, n] += dy[t] * state
        last[n] = state
        adjoint, total = dlast[n], 0.0
        for t in range(T - 1, -1, -1):
            adjoint += C[t, n] * dy[t]
            a = np.exp(A[n] * delta[t]) * keep[t]
            w = adjoint * a * (h[n, t - 1] if t > 0 else first[n])
            du[n, t] = adjoint * B[t, n] * delta[t]
            ddelta[n, t] = adjoint * B[t, n] * u[t] + A[n] * w
            dB[t, n] += adjoint * delta[t] * u[t]
            total += delta[t] * w
            adjoint *= a
        dA[n], dfirst[n] = total, adjoint


def in_float64(inputs, resets_T):
    """Give what `run` gives, channel by channel: it fits in memory at any length."""
    x = {name: tensor.detach()[0] if tensor.dim() == 3 else tensor.detach() for name, tensor in inputs.items()}
    (T, D), N = x["u"].shape, x["A"].shape[1]
    generator = torch.Generator().manual_seed(99)
    dy = torch.randn(1, T, D, generator=generator, dtype=torch.float64)[0]
    dlast = torch.randn(1, D, N, generator=generator, dtype=torch.float64)[0]
    raw, s = x["delta"] + x["delta_bias"], torch.sigmoid(x["z"])
    delta, gate = torch.nn.functional.softplus(raw), x["z"] * s
    d = dy * gate  # of what stands before the gate
    y, du, ddelta = (torch.empty(T, D, dtype=torch.float64) for _ in range(3))
    last, dfirst, dA = (torch.empty(D, N, dtype=torch.float64) for _ in range(3))
    dB, dC = (torch.zeros(T, N, dtype=torch.float64) for _ in range(2))
    parts = [np.empty((N, T)) for _ in range(4)]
    keep = 1.0 - resets_T.double().numpy()
    columns = {name: tensor.T.contiguous().numpy() for name, tensor in (("u", x["u"]), ("delta", delta), ("d", d))}
    A, B, C, first = (x[name].numpy() for name in ("A", "B", "C", "initial_state"))
    for c in range(D):
        _float64_channel(columns["u"][c], columns["delta"][c], keep, A[c], B, C, first[c], columns["d"][c], dlast[c].numpy(),
                         *parts, dA[c].numpy(), dB.numpy(), dC.numpy(), last[c].numpy(), dfirst[c].numpy())  # fmt: skip
        for whole, part in zip((y, du, ddelta), parts[1:], strict=True):
            whole[:, c] = torch.from_numpy(part.sum(0))
    y += x["D"] * x["u"]
    ddelta *= torch.sigmoid(raw)
    return {
        "y": (y * gate)[None],
        "final state": last[None],
        "gradient of u": (du + x["D"] * d)[None],
        "gradient of delta": ddelta[None],
        "gradient of A": dA,
        "gradient of B": dB[None],
        "gradient of C": dC[None],
        "gradient of D": (d * x["u"]).sum(0),
        "gradient of z": (dy * y * s * (1 + x["z"] * (1 - s)))[None],
        "gradient of delta_bias": ddelta.sum(0),
        "gradient of initial_state": dfirst[None],
    }


def test_the_reference_in_pieces_equals_the_float64_loop():
    inputs = make_inputs(1, 40, 3, 2)
    seq_idx = torch.tensor([[0] * 16 + [1] * 24], dtype=torch.int32)
    expected = run(inputs, "naive", torch.float64, seq_idx=seq_idx)
    assert_close(in_float64(inputs, torch.arange(40) == 16), expected, 1e-12)


@pytest.mark.gpu
@pytest.mark.gpu_memory(60)
def test_a_million_positions_equal_the_float64_recurrence():
    T, D, N = 2**20, 128, 16
    inputs = make_inputs(1, T, D, N)
    inputs["delta_bias"] = inputs["delta_bias"] - 4
    inputs = {n: (x.bfloat16() if n in BY_POSITION else x.float()).double() for n, x in inputs.items()}
    seq_idx = torch.zeros(1, T, dtype=torch.int32)
    seq_idx[:, 400_000:] = 1
    seq_idx[:, 2**19 :] = 2
    resets_T = torch.zeros(T, dtype=torch.bool)
    resets_T[[400_000, 2**19]] = True
    expected = in_float64(inputs, resets_T)
    given = run(inputs, "triton", torch.float32, seq_idx=seq_idx, device="cuda")
    # the terms of the gradient of A cancel over a million positions
    assert_close(given, {n: x for n, x in expected.items() if n != "gradient of A"}, EXACT)
    assert_close(given, {"gradient of A": expected["gradient of A"]}, 3e-5)
    given = run_mixed(inputs, torch.bfloat16, "cuda", seq_idx.to("cuda"))
    assert_close(given, expected, TOLERANCE[torch.bfloat16])
