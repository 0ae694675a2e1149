# Shapes: B sequences, T positions, D model width, S positions of the past, C room for positions
"""A layer is one file: layers that nobody else knows of go every way that Mamba goes, through the seam of mixer.py alone."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dna_mamba.data.objectives import Examples, next_base
from dna_mamba.data.selection import load_genome, load_split
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.formats import FORMATS
from dna_mamba.model.checkpoints.mamba_ssm import config_for
from dna_mamba.model.checkpoints.native import from_pretrained, save_pretrained
from dna_mamba.model.config import LETTERS, BackboneConfig, Letter
from dna_mamba.model.mixers.mixer import LayerMemory, Mixer
from dna_mamba.model.state import tensors_of
from dna_mamba.pipelines import planning, pretrain, pretrain_plan
from dna_mamba.pipelines.embed import embed_tokens
from dna_mamba.pipelines.machines import known_gpu
from dna_mamba.pipelines.planning import Cut, memory_of_step
from dna_mamba.pipelines.presets import preset
from dna_mamba.pipelines.settings import Asked
from dna_mamba.pipelines.settings import pretrain as pretrain_settings
from dna_mamba.reading.forks import score_alleles
from dna_mamba.reading.generation import CapturedStep, generate
from dna_mamba.reading.outputs import outputs_in_pieces
from dna_mamba.reading.settings import EmbedConfig, SamplingConfig
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.piecewise import backward_in_pieces
from tests.conftest import classifier_from
from tests.reading.test_forks import alleles_of, from_scratch, tokens_of_length


class AverageState(NamedTuple):
    mean_BD: Tensor


@dataclass(frozen=True)
class AverageConfig:
    def build(self, width):
        return Average(width)


class Average(Mixer):
    """An exponential moving average of every channel: h_t = a h_{t-1} + (1 - a) x_t, with a learned decay a."""

    without_decay = ("mix_DD",)

    def __init__(self, width):
        super().__init__()
        self.mix_DD = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.rate_D = nn.Parameter(torch.randn(width))

    def forward(self, x_BTD, state=None):
        a_D = self.rate_D.sigmoid()
        h_BD = torch.zeros_like(x_BTD[:, 0]) if state is None else state[0]
        found = []
        for x_BD in x_BTD.unbind(1):
            h_BD = a_D * h_BD + (1 - a_D) * x_BD
            found.append(h_BD)
        return torch.stack(found, 1) @ self.mix_DD, AverageState(h_BD)

    def new_state(self, num_sequences, dtype):
        return AverageState(self.rate_D.new_zeros(num_sequences, len(self.rate_D)))

    def memory(self, item):
        width = len(self.rate_D)
        return LayerMemory(kept=1000.0 * width, working=10.0 * width, state=4.0 * width)


@dataclass(frozen=True)
class ChannelsConfig:
    hidden: int = 24

    def build(self, width):
        return Channels(width, self.hidden)


class Channels(Mixer):
    """A channel MLP: what it gives a position follows from that position alone."""

    def __init__(self, width, hidden):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    @property
    def to_stream(self):
        return self.down.weight

    def forward(self, x_BTD, state=None):
        return self.down(torch.nn.functional.gelu(self.up(x_BTD))), self.new_state(len(x_BTD), x_BTD.dtype)

    def memory(self, item):
        return LayerMemory(kept=2000.0, working=3000.0)


class KeysAndValues(NamedTuple):
    keys_BSD: Tensor
    values_BSD: Tensor


class Room(NamedTuple):
    keys_BCD: Tensor
    values_BCD: Tensor
    used_B: Tensor


@dataclass(frozen=True)
class AttentionConfig:
    def build(self, width):
        return Attention(width)


class Attention(Mixer):
    """Plain causal attention with one head; its state, the keys and values, grows with every position."""

    def __init__(self, width):
        super().__init__()
        self.project, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    @property
    def to_stream(self):
        return self.out.weight

    def forward(self, x_BTD, state=None):
        queries_BTD, keys_BSD, values_BSD = (part.clone() for part in self.project(x_BTD).chunk(3, -1))
        if state is not None:
            keys_BSD, values_BSD = (torch.cat(pair, 1) for pair in zip(state, (keys_BSD, values_BSD), strict=True))
        S, T = keys_BSD.shape[1], x_BTD.shape[1]
        scores_BTS = queries_BTD @ keys_BSD.mT / x_BTD.shape[-1] ** 0.5
        later_TS = torch.arange(S, device=x_BTD.device) > torch.arange(S - T, S, device=x_BTD.device)[:, None]
        mixed_BTD = scores_BTS.masked_fill(later_TS, -torch.inf).softmax(-1) @ values_BSD
        return self.out(mixed_BTD), KeysAndValues(keys_BSD, values_BSD)

    def new_state(self, num_sequences, dtype):
        empty = self.out.weight.new_zeros(num_sequences, 0, len(self.out.weight), dtype=dtype)
        return KeysAndValues(empty, empty)

    def step_state(self, state, capacity):
        B, S, D = state.keys_BSD.shape
        room = Room(*(x.new_zeros(B, capacity, D) for x in state), torch.full((B,), S, device=state.keys_BSD.device))
        room.keys_BCD[:, :S], room.values_BCD[:, :S] = state
        return room

    @torch.no_grad()
    def step(self, x_BD, state):
        query_BD, key_BD, value_BD = self.project(x_BD).chunk(3, -1)
        at_B1D = state.used_B[:, None, None].expand(-1, 1, x_BD.shape[-1])
        state.keys_BCD.scatter_(1, at_B1D, key_BD[:, None])
        state.values_BCD.scatter_(1, at_B1D, value_BD[:, None])
        later_BC = torch.arange(state.keys_BCD.shape[1], device=x_BD.device) > state.used_B[:, None]
        scores_BC = torch.einsum("bd,bcd->bc", query_BD, state.keys_BCD) / x_BD.shape[-1] ** 0.5
        shares_BC = scores_BC.masked_fill(later_BC, -torch.inf).softmax(-1)
        state.used_B.add_(1)
        return self.out(torch.einsum("bc,bcd->bd", shares_BC, state.values_BCD))

    def memory(self, item):
        width = len(self.out.weight)
        return LayerMemory(kept=4.0 * item * width, working=5.0 * item * width, state_a_base=2.0 * item * width)


PATTERNS = ("MEM", "MCM", "MKM", "ECK", "S", "S-*-", "M*S")


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    for letter, name, config in (
        ("E", "moving average", AverageConfig()),
        ("C", "channel MLP", ChannelsConfig()),
        ("K", "plain attention", AttentionConfig()),
    ):
        monkeypatch.setitem(LETTERS, letter, Letter(name, lambda backbone, config=config: config))


@pytest.fixture(params=PATTERNS)
def model(request):
    return make(request.param)


def make(pattern, width=16, dtype=torch.float32):
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern=pattern, width=width)).eval()
    model.use_implementation("naive" if dtype == torch.float64 else "auto")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.lm_head.weight.mul_(8)  # far from uniform
    return model.to(dtype)


def tolerance(pattern):
    return 2e-6 if set("MS") & set(pattern) else 1e-11  # decays are float32, whatever the model is


def some_tokens(*shape):
    return torch.randint(7, 12, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("piece_bases, kept_pieces", [(7, 1), (7, 3), (33, 1), (1, 2)])
def test_pieces_give_the_gradients_of_the_whole(pattern, piece_bases, kept_pieces):
    tokens_BT, weights_BT = some_tokens(2, 40), torch.rand(2, 40, dtype=torch.float64)
    whole, pieces = make(pattern, dtype=torch.float64), make(pattern, dtype=torch.float64)
    expected = backward_in_pieces(whole, next_base(tokens_BT, weights_BT), divisor=9.0, piece_bases=1000).loss
    given = backward_in_pieces(
        pieces, next_base(tokens_BT, weights_BT), divisor=9.0, piece_bases=piece_bases, kept_pieces=kept_pieces
    ).loss
    assert given == pytest.approx(float(expected), rel=1e-6)
    for (name, one), other in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < tolerance(pattern) * one.grad.norm(), name


def test_layers_computed_again_give_the_same_gradients(model):
    tokens_BT, weights_BT = some_tokens(2, 30), torch.ones(2, 30)
    found = []
    for layers in (0, len(model.config.pattern)):
        model.zero_grad()
        model.backbone.recomputed_layers = layers
        backward_in_pieces(model, next_base(tokens_BT, weights_BT), divisor=1.0, piece_bases=9, kept_pieces=2)
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@torch.no_grad()
def test_steps_are_the_sequence_read_at_once(model):
    tokens_BT = some_tokens(3, 30)
    expected_BTV, _ = model(tokens_BT)
    _, state = model(tokens_BT[:, :10])
    state = model.step_state(state, 30)
    for t in range(10, 30):
        assert torch.allclose(model.step(tokens_BT[:, t], state), expected_BTV[:, t], atol=2e-4), t


def check_generation(model, device):
    prompt_T = some_tokens(9).to(torch.uint8)
    drawn = generate(model, prompt_T, 40, num_sequences=3, seed=4, piece_bases=4, config=SamplingConfig())
    read_BT = torch.cat([prompt_T.expand(3, -1), drawn.tokens_BT], 1).to(device)
    with torch.no_grad():
        log_p = model(read_BT[:, :-1])[0][:, 8:, 7:11].double().log_softmax(-1).cpu()
    expected_B = log_p.gather(-1, drawn.tokens_BT.long()[..., None] - 7).sum((1, 2))
    assert torch.allclose(drawn.log_likelihoods_B, expected_B, atol=2e-3)


def test_what_is_drawn_has_the_likelihood_that_reading_gives_it(model):
    check_generation(model, "cpu")


@pytest.mark.gpu
def test_a_captured_step_is_the_sequence_read_at_once(model):
    model = model.cuda()
    check_generation(model, "cuda")
    tokens_BT = some_tokens(2, 20).cuda()
    with torch.no_grad():
        expected_BTV, _ = model(tokens_BT)
    step = CapturedStep(model, 2, capacity=20)
    for _ in range(2):  # after a reset too
        for t in range(20):
            assert torch.allclose(step(tokens_BT[:, t]), expected_BTV[:, t], atol=2e-3), t
        step.reset()


@pytest.mark.parametrize("left", [None, 20])
def test_variants_get_the_scores_of_reading_each_from_scratch(model, device, left):
    sequence = tokens_of_length(90)
    alleles = alleles_of(sequence, np.random.default_rng(2), 12)
    model = model.to(device)
    scores = score_alleles(
        model, lambda start, end: sequence[start:end], 90, alleles, left=left, right=15, distance=True
    )
    model = model.to("cpu").use_implementation("naive")
    expected = [from_scratch(model, sequence, allele, left, 15) for allele in alleles]
    assert np.abs(scores.ratios - expected).max() < 5e-4


@torch.no_grad()
def test_every_layer_gives_its_vectors_in_pieces_and_in_batches(model):
    sequences = [some_tokens(n).numpy().astype(np.uint8) for n in (50, 13, 31, 50)]
    for layer in range(len(model.config.pattern) + 1):
        for pool in ("mean", "last", "none", "window:7"):
            given = embed_tokens(model, sequences, EmbedConfig(layer=layer, pool=pool), piece_bases=14)
            for tokens_T, vectors in zip(sequences, given, strict=True):
                whole_TD = model.backbone.vectors_of_layer(torch.from_numpy(tokens_T)[None], layer)[0][0]
                windows = {"mean": [whole_TD.mean(0)], "last": [whole_TD[-1]], "none": whole_TD}.get(
                    pool, [part.mean(0) for part in whole_TD.split(7)]
                )
                expected = torch.stack(tuple(windows)).numpy().reshape(vectors.shape)
                assert np.abs(vectors - expected).max() < 1e-4, (layer, pool)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_classifier_reads_and_learns_in_pieces(pattern):
    language_model = make(pattern, dtype=torch.float64)
    tokens_BT, targets_B = some_tokens(3, 40), torch.tensor([0, 1, 1])
    found = []
    for piece_bases in (1000, 9):
        torch.manual_seed(1)
        model = classifier_from(language_model, ("a", "b"), "mean").double()
        model.use_implementation("naive")
        examples = Examples(tokens_BT, targets_B, None)
        loss, right = backward_in_pieces(model, examples, divisor=3.0, piece_bases=piece_bases)
        scores_BK = outputs_in_pieces(model, tokens_BT, piece_bases)
        assert torch.allclose(scores_BK, model(tokens_BT), rtol=tolerance(pattern))
        assert right.tolist() == [int((scores_BK.argmax(1) == targets_B).sum())]
        found.append((loss, [parameter.grad for parameter in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert all((a - b).norm() <= tolerance(pattern) * a.norm() for a, b in zip(found[0][1], found[1][1], strict=True))


def test_the_plan_counts_the_layer_and_not_mamba_instead():
    cut = Cut(piece_bases=256, kept_pieces=1)

    def memory(pattern):
        return memory_of_step(BackboneConfig(pattern=pattern, width=16), "fp32", cut, 1024, 1)

    of_norm = 4 * 16 + 4 * 16  # stream and norm, float32
    added = {"E": 1000 * 16, "C": 2000, "K": 4 * 4 * 16}
    for letter, kept in added.items():
        assert memory(f"M{letter}").activations - memory("M").activations == 256 * (kept + of_norm), letter
    assert memory("MC").working - memory("M").working == 256 * (3000 + 4 * 16 + 2 * 4 * 16) - (
        memory("M").working - planning.LIBRARIES
    )
    # five states lie between four pieces: of the average 4 bytes a channel; keys and values grow, on average to a half
    assert memory("ME").states - memory("M").states == 5 * 4 * 16
    assert memory("MK").states - memory("M").states == (3 / 2 + 2) * 2 * 4 * 16 * 1024
    again = replace(cut, recomputed_layers=1)
    saved = (
        memory("MC").activations
        - memory_of_step(BackboneConfig(pattern="CM", width=16), "fp32", again, 1024, 1).activations
    )
    assert saved == 256 * 2000


def test_parameters_are_counted_without_making_the_model(model):
    assert model.config.num_parameters == model.num_parameters() == sum(p.numel() for p in model.parameters())


def test_decay_spares_what_the_layer_says():
    model = make("ME")
    exempt = {id(parameter) for parameter in OptimizerConfig().build(model).param_groups[1]["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in exempt and parameter.ndim > 1}
    assert names == {"backbone.embedding.weight", "backbone.layers.0.mixer.A_log", "backbone.layers.1.mixer.mix_DD"}


def test_a_model_is_the_same_after_saving(model, tmp_path):
    save_pretrained(model, tmp_path / "model", {})
    loaded, _ = from_pretrained(tmp_path / "model")
    tokens_BT = some_tokens(2, 20)
    assert loaded.config == model.config and torch.equal(loaded(tokens_BT)[0], model(tokens_BT)[0])


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_refuses_what_the_format_cannot_say(model, format):
    with pytest.raises(InputError, match=rf"{model.config.pattern}.*{format} has a place for Mamba layers alone"):
        config_for(model, format)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_run_resumes_to_the_bit_and_its_plan_fits_a_gpu(pattern, tmp_path):
    small = preset("demo")
    config = replace(
        small,
        model=BackboneConfig(pattern=pattern, width=16),
        training=replace(small.training, seq_len=64, steps=4, bases_per_step=128, checkpoint_every_steps=2,
                         validate_every_steps=2, piece_bases=40, length_warmup="none"),
        evaluation=replace(small.evaluation, valid_bases=200, test_bases=200, markov_max_order=1),
        device="cpu",
    )  # fmt: skip
    result = pretrain.run(config, tmp_path / "whole")
    assert result.rows[0].name or result.model.total.num_bases
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000004")
    (tmp_path / "resumed" / "results.json").unlink()
    pretrain.run(config, tmp_path / "resumed", resume=True)
    weights = [Path(tmp_path, name, "model-last", "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]
    on_gpu = replace(config, device="auto", training=replace(config.training, piece_bases=None))
    plan = pretrain_plan.plan(on_gpu, machine=known_gpu("H100"))
    assert plan.memory and plan.num_parameters == config.model.num_parameters and plan.hours[0] != plan.hours[0]


@pytest.mark.parametrize("pattern", ["M", "E", "K", "S", "*"])
def test_a_state_keeps_no_more_memory_than_its_numbers_take(pattern):
    """A view of a piece would keep the whole piece for as long as its last bases."""
    model = make(pattern)
    with torch.no_grad():
        _, state = model(some_tokens(1, 300))
    for tensor in tensors_of(state):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_a_model_is_written_as_before_there_was_a_letter_that_it_has_none_of(tmp_path):
    """So that runs and models of before a layer came go on, and older versions read what has none of it."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Grown(BackboneConfig):
        average: AverageConfig = AverageConfig()

    assert (
        "average" not in Grown(pattern="MM").as_dict()
        and Grown(pattern="MM").as_dict() == BackboneConfig(pattern="MM").as_dict()
    )
    config = pretrain_plan.resolve(replace(preset("demo"), device="cpu", model=BackboneConfig(pattern="MM", width=16)))
    genome = load_genome("demo")
    split = load_split(genome, config.data)
    known = pretrain._identity(config, genome, split)
    assert known == pretrain._identity(replace(config, model=Grown(pattern="MM", width=16)), genome, split)
    assert known != pretrain._identity(replace(config, model=Grown(pattern="ME", width=16)), genome, split)


def test_sizes_of_a_layer_that_the_pattern_has_none_of_are_refused():
    with pytest.raises(InputError, match="model.mamba does nothing here: the pattern 'EC' has no such layer"):
        pretrain_settings(Asked(flags={}, assignments=["model.pattern=EC", "model.mamba.num_states=8"]))
