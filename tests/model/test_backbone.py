"""The model against transformers' Mamba, counted parameters, and exactness."""

import pytest
import torch

from dna_mamba.data.objectives import next_base
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig, parse_size
from dna_mamba.training.piecewise import backward_in_pieces

TOLERANCE = 1e-5


def make_model(layers=3, width=32, seed=0, implementation="cpu"):
    torch.manual_seed(seed)
    model = DnaMamba(BackboneConfig(pattern="M" * layers, width=width)).use_implementation(implementation)
    with torch.no_grad():  # random weights everywhere: initial ones and zeros hide mistakes
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def random_tokens(*shape, seed=0):
    return torch.randint(7, 12, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "size, vocabulary, parameters",
    [
        ("12x128", 16, 1_401_472),
        ("16x256", 16, 7_012_608),
        ("8x64", 16, 262_720),
        ("24x512", 16, 40_694_272),
    ],
)
def test_parameter_counts_equal_the_published_sizes(size, vocabulary, parameters):
    pattern, width = parse_size(size)
    with torch.device("meta"):
        model = DnaMamba(BackboneConfig(pattern=pattern, width=width, vocabulary_size=vocabulary))
    assert model.num_parameters() == parameters
    # with the paper's vocabulary of 8 rows, the embedding has 8 rows less: 1,400,448 and 7,010,560
    assert model.num_parameters() - 8 * width in (1_400_448, 7_010_560, 262_208, 40_690_176)


@pytest.fixture(scope="module")
def twin():
    """Ours in float32 and transformers' in float64, with the same random weights."""
    from transformers import MambaConfig, MambaForCausalLM

    ours = make_model()
    theirs = MambaForCausalLM(
        MambaConfig(
            vocab_size=16, hidden_size=32, num_hidden_layers=3, state_size=16, use_bias=False, use_mambapy=False
        )
    )
    weights = {k.replace("backbone.embedding.", "backbone.embeddings."): v for k, v in ours.state_dict().items()}
    assert theirs.load_state_dict(weights).missing_keys == []
    return ours, theirs.eval()


def test_logits_equal_transformers(twin):
    ours, theirs = twin
    tokens = random_tokens(2, 150)
    with torch.no_grad():
        given, expected = ours(tokens)[0], theirs(tokens, use_cache=False).logits
    assert (given - expected).norm() / expected.norm() < TOLERANCE


def test_gradients_equal_transformers(twin):
    ours, theirs = twin
    tokens = random_tokens(2, 60)
    upstream = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(3))
    ours.zero_grad(), theirs.zero_grad()
    ours(tokens)[0].backward(upstream)
    theirs(tokens, use_cache=False).logits.backward(upstream)
    expected = {k.replace("embeddings.", "embedding."): p.grad for k, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < TOLERANCE, (name, float(error))


def test_initialisation_is_that_of_the_official_model():
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="M" * 4, width=64))
    mixer = model.backbone.layers[0].mixer
    assert torch.equal(mixer.A_log[5], torch.log(torch.arange(1.0, 17.0)))
    assert torch.equal(mixer.D, torch.ones(128))
    delta = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert delta.min() >= 0.99e-3 and delta.max() <= 0.101
    assert 0.005 < delta.log().mean().exp() < 0.02  # log-uniform: the middle is 0.01
    assert mixer.dt_proj.weight.abs().max() <= 0.5  # rank 4: uniform within 4^-1/2
    # kaiming_uniform(sqrt 5) over sqrt(4 layers): within 1/sqrt(128)/2
    assert 0.9 < mixer.out_proj.weight.abs().max() * 128**0.5 * 2 <= 1.0
    assert 0.019 < model.backbone.embedding.weight.std() < 0.021
    assert model.lm_head.weight is model.backbone.embedding.weight


@pytest.mark.parametrize("implementation", ["naive", "cpu"])
def test_pieces_and_single_steps_equal_the_whole(implementation):
    model = make_model(implementation=implementation)
    tokens = random_tokens(2, 70)
    with torch.no_grad():
        whole, last = model(tokens)
        state, pieces = None, []
        for start, end in ((0, 1), (1, 2), (2, 3), (3, 40), (40, 70)):
            logits, state = model(tokens[:, start:end], state)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)
    for given, expected in zip(state, last, strict=True):
        torch.testing.assert_close(given.scan_BEN, expected.scan_BEN, rtol=1e-4, atol=1e-5)


def test_a_base_moves_no_score_before_it():
    model, tokens = make_model(), random_tokens(1, 50)
    changed = tokens.clone()
    changed[0, 30] = 7 + (changed[0, 30] - 6) % 4
    with torch.no_grad():
        before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30], after[:, 30])


def test_a_sequence_does_not_depend_on_its_companions():
    model, tokens = make_model(), random_tokens(4, 50)
    with torch.no_grad():
        together, alone = model(tokens)[0][2:3], model(tokens[2:3])[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept_pieces", [1, 2, 50])
@pytest.mark.parametrize("piece_bases", [2, 7, 33, 64, 98])
def test_gradients_in_pieces_equal_those_of_the_whole(piece_bases, kept_pieces):
    tokens, weights = random_tokens(2, 100), torch.rand(2, 100, generator=torch.Generator().manual_seed(1))
    whole, pieces = make_model(), make_model()
    expected = backward_in_pieces(whole, next_base(tokens, weights), divisor=10.0, piece_bases=1000).loss
    examples = next_base(tokens, weights)
    given = backward_in_pieces(pieces, examples, divisor=10.0, piece_bases=piece_bases, kept_pieces=kept_pieces).loss
    assert abs(float(given / expected) - 1) < TOLERANCE
    for (name, a), b in zip(pieces.named_parameters(), whole.parameters(), strict=True):
        assert (a.grad - b.grad).norm() / b.grad.norm() < TOLERANCE, name


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: BackboneConfig(pattern="MMQ"), "unknown letter 'Q'"),
        (lambda: BackboneConfig(pattern=""), "is empty"),
        (lambda: BackboneConfig(width=0), "width 0"),
        (lambda: parse_size("12*128"), "'12\\*128' is not blocks x width"),
    ],
)
def test_a_bad_size_is_named(make, words):
    with pytest.raises(InputError, match=words):
        make()
