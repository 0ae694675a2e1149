"""The whole model on Triton kernels: interpreted in miniature, and on a GPU."""

import pytest
import torch

from dna_mamba.data.objectives import next_base
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.reading.generation import CapturedStep
from dna_mamba.training.piecewise import backward_in_pieces
from tests.kernels.tolerances import THROUGH_PROJECTIONS, relative_error

pytest.importorskip("triton", reason="triton is not installed")


def make_model(width, layers, device):
    torch.manual_seed(0)
    return DnaMamba(BackboneConfig(width=width, pattern="M" * layers)).to(device)


def tokens_of(batch, length, device):
    return torch.randint(7, 12, (batch, length), generator=torch.Generator().manual_seed(1)).to(device)


def loss_and_gradients(model, implementation, tokens_BT, piece_bases):
    model.use_implementation(implementation).zero_grad()
    weights_BT = torch.ones(tokens_BT.shape, device=tokens_BT.device)
    weights_BT[:, 3] = 0.0
    examples = next_base(tokens_BT, weights_BT)
    loss = backward_in_pieces(model, examples, divisor=tokens_BT.numel(), piece_bases=piece_bases).loss
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("piece_bases", [1000, 7])
def test_loss_and_gradients_equal_those_of_plain_torch(piece_bases, triton_device):
    model = make_model(8, 2, triton_device)
    tokens_BT = tokens_of(2, 20, triton_device)
    loss, gradients = loss_and_gradients(model, "triton", tokens_BT, piece_bases)
    expected_loss, expected = loss_and_gradients(model.double(), "naive", tokens_BT, 1000)
    assert abs(float(loss - expected_loss)) < 1e-6
    assert relative_error(gradients, expected) < 1e-5


def test_steps_give_the_scores_and_the_state_of_the_whole(triton_device):
    model = make_model(8, 2, triton_device).use_implementation("triton")
    tokens_BT = tokens_of(2, 9, triton_device)
    with torch.no_grad():
        logits_BTV, last = model(tokens_BT)
    state = model.new_state(2)
    stepped = torch.stack([model.step(tokens_BT[:, t], state) for t in range(9)], dim=1)
    assert relative_error(stepped, logits_BTV) < 1e-5
    for layer, expected in zip(state, last, strict=True):
        assert all(relative_error(a, b) < 1e-5 for a, b in zip(layer, expected, strict=True))


def test_the_model_compiles_without_a_graph_break(triton_device):
    model = make_model(8, 1, triton_device).use_implementation("triton")
    tokens_BT = tokens_of(1, 12, triton_device)
    results = []
    for function in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        logits_BTV, _ = function(tokens_BT)
        logits_BTV.square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_a_graph_needs_a_gpu():
    with pytest.raises(ValueError, match="needs a model on a GPU"):
        CapturedStep(make_model(8, 1, "cpu"), 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, THROUGH_PROJECTIONS)], ids=str)
def test_captured_steps_give_the_scores_of_the_whole(dtype, tolerance):
    model = make_model(64, 2, "cuda").use_implementation("triton")
    tokens_BT = tokens_of(3, 40, "cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits_BTV, _ = model(tokens_BT)
    captured = CapturedStep(model, 3, dtype)
    for _ in range(2):  # after a reset as at first
        stepped = torch.stack([captured(tokens_BT[:, t]).clone() for t in range(40)], dim=1)
        assert relative_error(stepped, logits_BTV) < tolerance
        captured.reset()


@pytest.mark.gpu
def test_autocast_on_a_gpu_stays_close_to_float32():
    model = make_model(64, 3, "cuda")
    tokens_BT = tokens_of(2, 700, "cuda")
    _, expected = loss_and_gradients(model, "naive", tokens_BT, 1000)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        _, given = loss_and_gradients(model, "triton", tokens_BT, 300)
    assert relative_error(given, expected) < THROUGH_PROJECTIONS


@pytest.mark.gpu
def test_per_base_likelihoods_stay_within_the_promise():
    # DESIGN: within 1e-4 nats in float32, 3e-2 in bfloat16
    model = make_model(64, 3, "cuda")
    tokens_BT = tokens_of(2, 3000, "cuda")
    with torch.no_grad():
        expected = model.double().use_implementation("naive")(tokens_BT)[0].log_softmax(-1)
        model.float().use_implementation("triton")
        assert (model(tokens_BT)[0].log_softmax(-1) - expected).abs().max() < 1e-4
        with torch.autocast("cuda", dtype=torch.bfloat16):
            given = model(tokens_BT)[0].log_softmax(-1)
        assert (given - expected).abs().max() < 3e-2
