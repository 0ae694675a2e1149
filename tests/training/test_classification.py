"""Classes of sequences: pooling, and gradients in pieces against those of the whole."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dna_mamba.data.objectives import Examples
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import POOLINGS, BackboneConfig
from dna_mamba.reading.outputs import outputs_in_pieces
from dna_mamba.training.piecewise import backward_in_pieces
from tests.conftest import classifier_from, new_classifier

CONFIG = BackboneConfig(pattern="MM", width=16)
LABELS = ("human", "chimpanzee", "gorilla")


def make(pooling, seed=0):
    torch.manual_seed(seed)
    return new_classifier(CONFIG, LABELS, pooling)


def batch(B=3, T=100):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(7, 12, (B, T), generator=generator), torch.tensor([2, 0, 1])[:B]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_are_those_of_the_pooled_vectors(pooling):
    model, (tokens, _) = make(pooling).double(), batch()
    with torch.no_grad():
        vectors, _ = model.backbone(tokens)
        pooled = {"last": vectors[:, -1], "mean": vectors.mean(1), "max": vectors.max(1).values}[pooling]
        expected = F.linear(pooled, model.head.weight, model.head.bias)
        torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)
        for piece in (1, 33, 100):
            torch.testing.assert_close(outputs_in_pieces(model, tokens, piece), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("piece_bases", [7, 33, 50, 99, 100])
def test_gradients_in_pieces_equal_those_of_the_whole(pooling, piece_bases):
    whole, pieces = make(pooling), make(pooling)
    tokens, targets = batch()
    expected = F.cross_entropy(whole(tokens), targets, reduction="sum") / 5.0
    expected.backward()
    loss, right = backward_in_pieces(pieces, Examples(tokens, targets, None), divisor=5.0, piece_bases=piece_bases)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert right.tolist() == [int((whole(tokens).argmax(1) == targets).sum())]
    for (name, a), b in zip(pieces.named_parameters(), whole.parameters(), strict=True):
        assert (a.grad - b.grad).norm() < 1e-5 * b.grad.norm() + 1e-9, name


@pytest.mark.parametrize("piece_bases", [33, 100])
def test_a_frozen_backbone_trains_the_head_alone(piece_bases):
    whole, frozen = make("mean"), make("mean")
    tokens, targets = batch()
    (F.cross_entropy(whole(tokens), targets, reduction="sum") / 3.0).backward()
    frozen.backbone.requires_grad_(False)
    backward_in_pieces(frozen, Examples(tokens, targets, None), divisor=3.0, piece_bases=piece_bases)
    assert all(p.grad is None for p in frozen.backbone.parameters())
    torch.testing.assert_close(frozen.head.weight.grad, whole.head.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_sequence_does_not_depend_on_its_companions():
    model, (tokens, _) = make("last"), batch()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[1:2], model(tokens[1:2]), rtol=1e-4, atol=1e-5)


def test_the_backbone_of_a_pretrained_model_is_taken_over():
    torch.manual_seed(3)
    pretrained = DnaMamba(CONFIG)
    before = copy.deepcopy(pretrained.state_dict())
    model = classifier_from(pretrained, LABELS, "mean")
    tokens, targets = batch()
    with torch.no_grad():
        assert torch.equal(model.backbone(tokens)[0], pretrained.backbone(tokens)[0])
    backward_in_pieces(model, Examples(tokens, targets, None), divisor=1.0, piece_bases=50)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(
        torch.equal(before[name], x) for name, x in pretrained.state_dict().items()
    )  # a copy, not the same tensors


def test_it_learns_which_pattern_a_sequence_holds():
    model = make("mean")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        targets = torch.randint(0, 3, (16,), generator=generator)
        tokens = torch.randint(7, 11, (16, 60), generator=generator)
        tokens[:, :30:3] = (7 + targets)[:, None]  # in the first of three pieces
        optimizer.zero_grad()
        backward_in_pieces(model, Examples(tokens, targets, None), divisor=16.0, piece_bases=25)
        optimizer.step()
    with torch.no_grad():
        assert (model(tokens).argmax(1) == targets).float().mean() > 0.8


@pytest.mark.parametrize(
    "make_it, words",
    [
        (lambda: new_classifier(CONFIG, ["a"]), "at least two"),
        (lambda: new_classifier(CONFIG, ["a", "a"]), "all different"),
        (lambda: new_classifier(CONFIG, LABELS, "median"), "pooling 'median' is unknown"),
    ],
)
def test_a_bad_classifier_is_refused(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()
