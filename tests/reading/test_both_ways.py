# Shapes: B sequences, T positions, D model width
"""A layer that reads both ways: each reading is right, or refuses in one line; nothing is padded, nothing cut."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import dna_mamba as dm
from dna_mamba.data.objectives import Examples, NextBase
from dna_mamba.data.policy import TokenPolicy
from dna_mamba.data.store.build import build
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import save_pretrained, save_sequence_model
from dna_mamba.model.config import LETTERS, POOLINGS, BackboneConfig, Letter
from dna_mamba.model.mixers.mixer import LayerMemory, Mixer
from dna_mamba.model.state import Stateless
from dna_mamba.pipelines import classify, evaluate, generate, mutate, planning, pretrain, score_variants, track
from dna_mamba.pipelines.embed import embed_tokens
from dna_mamba.pipelines.machines import known_gpu
from dna_mamba.pipelines.presets import preset
from dna_mamba.reading.outputs import outputs_in_pieces
from dna_mamba.reading.settings import EmbedConfig
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.piecewise import backward_in_pieces
from dna_mamba.training.step import Stepper
from tests.conftest import classifier_from


@dataclass(frozen=True)
class NeighboursConfig:
    def build(self, width):
        return Neighbours()


class Neighbours(Mixer):
    """Adds to every position the mean of the whole sequence and the position after it."""

    causal = False

    def forward(self, x_BTD, state=None):
        after_BTD = torch.cat([x_BTD[:, 1:], torch.zeros_like(x_BTD[:, :1])], 1)
        return torch.tanh(x_BTD.mean(1, keepdim=True) + 0.5 * after_BTD), Stateless()

    def memory(self, item):
        return LayerMemory(kept=100.0, working=100.0)


@pytest.fixture(autouse=True)
def letter(monkeypatch):
    monkeypatch.setitem(LETTERS, "B", Letter("both ways", lambda backbone: NeighboursConfig()))


def make(pattern="MBM"):
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern=pattern, width=16)).eval().use_implementation("cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def some_tokens(*shape):
    return torch.randint(7, 11, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_vectors_are_those_of_each_sequence_read_whole_and_alone():
    model = make()
    sequences = [some_tokens(n).numpy().astype(np.uint8) for n in (50, 49, 48, 50, 7)]
    for layer in range(4):
        for pool in ("mean", "last", "max", "none", "window:10"):
            given = embed_tokens(model, sequences, EmbedConfig(layer=layer, pool=pool), piece_bases=20)
            for tokens_T, vectors in zip(sequences, given, strict=True):
                whole_TD = model.backbone.vectors_of_layer(torch.from_numpy(tokens_T)[None], layer)[0][0]
                expected = {"mean": whole_TD.mean(0), "last": whole_TD[-1], "max": whole_TD.amax(0), "none": whole_TD}
                windows = torch.stack([part.mean(0) for part in whole_TD.split(10)])
                assert np.abs(vectors - expected.get(pool, windows).numpy()).max() < 1e-5, (layer, pool)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_classes_are_those_of_whole_sequences(pooling):
    model = classifier_from(make(), ("a", "b", "c"), pooling)
    tokens_BT, targets_B = some_tokens(3, 41), torch.tensor([0, 2, 1])
    expected_BK = model(tokens_BT)
    torch.nn.functional.cross_entropy(expected_BK, targets_B).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    assert torch.allclose(outputs_in_pieces(model, tokens_BT, 8), expected_BK, atol=1e-5)
    backward_in_pieces(model, Examples(tokens_BT, targets_B, None), divisor=3.0, piece_bases=8)
    assert all(torch.allclose(p.grad, e, atol=1e-6) for p, e in zip(model.parameters(), expected, strict=True))


@pytest.fixture
def files(tmp_path):
    save_pretrained(make(), tmp_path / "m", {})
    letters = "".join("ACGT"[n] for n in np.random.default_rng(0).integers(0, 4, 300))
    (tmp_path / "x.fa").write_text(f">a\n{letters}\n>b\n{letters[:299]}\n")
    (tmp_path / "v.vcf").write_text(f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\na\t101\t.\t{letters[100]}\tGT\n")
    return tmp_path


def test_the_command_classifies_records_of_like_lengths_each_by_itself(files):
    model = classifier_from(make(), ("a", "b"), "mean")
    save_sequence_model(model, files / "c", {})
    genome = build([files / "x.fa"], files / "x.dna")
    rows = []
    classify.run(
        classify.ClassifyConfig(model=files / "c", sequences=str(files / "x.dna"), device="cpu", piece_bases=64),
        on_row=rows.append,
    )
    for row in rows:
        tokens_BT = torch.from_numpy(genome.tokens(row.interval).copy())[None]
        with torch.no_grad():
            assert np.allclose(row.probabilities, model(tokens_BT).softmax(1)[0], atol=1e-5)


def refused(what, call):
    with pytest.raises(InputError, match=rf"{what}.*both ways") as error:
        call()
    assert "\n" not in str(error.value)


def test_readings_of_the_next_base_are_refused_and_leave_nothing(files, monkeypatch):
    monkeypatch.chdir(files)
    model = dm.load("m", device="cpu")
    assert model.embed("ACGTACGT").shape == (16,)
    refused("scoring bases", lambda: model.score("ACGT"))
    refused("generating", lambda: model.generate("ACGT", 10))
    before = sorted(files.rglob("*"))
    common = {"genome": "x.fa", "device": "cpu"}
    refused("scoring variants", lambda: score_variants.run(
        score_variants.ScoreConfig(model=files / "m", variants=files / "v.vcf", out=files / "o.vcf", left=None, **common)
    ))  # fmt: skip
    refused("scoring variants", lambda: mutate.run(
        mutate.MutateConfig(model=files / "m", region="a:5-9", out=files / "m.tsv", **common)
    ))  # fmt: skip
    refused("scoring bases", lambda: track.run(
        track.TrackConfig(model=files / "m", regions=("a:5-50",), out=files / "t.bw", **common)
    ))  # fmt: skip
    refused("scoring bases", lambda: evaluate.run(
        evaluate.EvaluateConfig(model=files / "m", regions=("a:5-50",), out=files / "e", **common)
    ))  # fmt: skip
    refused("generating", lambda: generate.run(
        generate.GenerateConfig(model=files / "m", prompt="ACGT", length=5, out=files / "g.fa", device="cpu")
    ))  # fmt: skip
    assert sorted(files.rglob("*")) == before


def test_training_on_the_next_base_is_refused(tmp_path):
    config = replace(preset("demo"), model=make().config)
    refused("predicts the next base", lambda: pretrain.run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="both ways"):
        Stepper(make(), NextBase(TokenPolicy()), OptimizerConfig(), num_steps=1, stage_lengths=[9], contig_names=["c"],
                piece_bases=4)  # fmt: skip


def test_a_plan_never_cuts_what_is_read_whole():
    machine = replace(known_gpu("H100"), memory_bytes=2.0**30)
    cut = planning.choose_cut(make().config, "bf16", machine, [2**14], 2**14)
    assert cut.piece_bases >= 2**14
    with pytest.raises(InputError, match="does not fit"):
        planning.choose_cut(make().config, "bf16", machine, [2**24], 2**24)
