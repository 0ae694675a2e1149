"""One position through a whole Mamba block against its parts in float64: in the interpreter, or on a GPU."""

import pytest
import torch

from dna_mamba.kernels.mamba_step import mamba_step
from tests.kernels.tolerances import TOLERANCE, relative_error

pytest.importorskip("triton", reason="triton is not installed")


def make_inputs(B, D, E, N, R, K):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    return {
        "residual_BD": normal(B, D),
        "norm_weight_D": normal(D),
        "in_proj_FD": normal(2 * E, D, scale=D**-0.5),
        "conv_weight_EK": normal(E, K, scale=0.5),
        "conv_bias_E": normal(E),
        "x_proj_PE": normal(R + 2 * N, E, scale=E**-0.5),
        "dt_proj_ER": normal(E, R, scale=R**-0.5),
        "dt_bias_E": normal(E),
        "A_log_EN": normal(E, N),
        "D_E": normal(E),
        "out_proj_DE": normal(D, E, scale=E**-0.5),
        "conv_state_BKE": normal(B, K - 1, E),
        "scan_state_BEN": normal(B, E, N),
    }


def run(inputs, implementation, dtype, device, steps=3):
    own = {name: x.to(device, dtype, copy=True) for name, x in inputs.items()}
    for _ in range(steps):  # states of the step before are read
        mamba_step(**own, implementation=implementation)
    return {name: own[name] for name in ("residual_BD", "conv_state_BKE", "scan_state_BEN")}


# one sequence; few; more than a block of 16; sizes that fill no block
@pytest.mark.parametrize(
    "sizes",
    [(1, 16, 32, 16, 1, 4), (3, 20, 35, 3, 2, 3), (9, 24, 40, 5, 3, 2), (80, 40, 70, 16, 3, 4), (65, 20, 35, 3, 2, 3)],
)
def test_stream_and_states_equal_the_parts_in_float64(sizes, triton_device):
    inputs = make_inputs(*sizes)
    given = run(inputs, "triton", torch.float32, triton_device)
    for name, expected in run(inputs, "naive", torch.float64, "cpu").items():
        assert relative_error(given[name].cpu(), expected) < TOLERANCE[torch.float32], name


@pytest.mark.gpu
@pytest.mark.parametrize("B", [1, 8, 64, 65, 1024, 1025])
@pytest.mark.parametrize("D", [64, 128, 256])
def test_stream_and_states_of_real_sizes(B, D):
    inputs = make_inputs(B, D, 2 * D, 16, D // 16, 4)
    given = run(inputs, "triton", torch.float32, "cuda")
    for name, expected in run(inputs, "naive", torch.float64, "cuda").items():
        assert relative_error(given[name], expected) < TOLERANCE[torch.float32], name


@pytest.mark.gpu
@pytest.mark.gpu_memory(24)
def test_states_past_two_to_the_31():
    B = 2**31 // (256 * 16) + 16
    inputs = {name: x.float() for name, x in make_inputs(1, 128, 256, 16, 8, 4).items()}
    for name in ("residual_BD", "conv_state_BKE", "scan_state_BEN"):
        inputs[name] = inputs[name].expand(B, *inputs[name].shape[1:])
    given = run(inputs, "triton", torch.float32, "cuda", steps=1)
    for name in ("residual_BD", "scan_state_BEN"):
        assert torch.equal(given[name][0], given[name][-1]) and torch.equal(given[name][0], given[name][B // 2]), name


@pytest.mark.parametrize("change, words", [
    ({"residual_BD": torch.zeros(0, 16)}, "not empty"),
    ({"residual_BD": torch.zeros(2, 16, dtype=torch.bfloat16)}, "float32 or float64"),
    ({"norm_weight_D": torch.zeros(17)}, "norm_weight is (17,)"),
    ({"scan_state_BEN": torch.zeros(1, 32, 16, dtype=torch.float64)}, "scan_state is torch.float64"),
    ({"conv_state_BKE": torch.zeros(1, 32, 3).transpose(1, 2)}, "must be contiguous"),
    ({"A_log_EN": torch.zeros(3)}, "must be matrices"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, words):
    inputs = {name: x.float() for name, x in make_inputs(1, 16, 32, 16, 1, 4).items()} | change
    with pytest.raises(ValueError) as error:
        mamba_step(**inputs)
    assert words in str(error.value)


def test_a_block_too_wide_for_the_kernels_is_refused_by_name():
    inputs = {name: x.float() for name, x in make_inputs(1, 272, 544, 2, 1, 4).items()}
    with pytest.raises(ValueError, match="256, 512, 64 and 2 to 4 fit"):
        mamba_step(**inputs, implementation="triton")
    mamba_step(**inputs)
