"""Fine-tuning on labelled genomes: the recipe, that it learns what tells classes apart, and that it repeats itself."""

import numpy as np
import pytest
import torch

from dna_mamba.data.labelled import LabelledContig, LabelledWindows
from dna_mamba.data.objectives import Labels
from dna_mamba.data.steps import Drawn, DrawnSteps
from dna_mamba.data.store.build import build
from dna_mamba.errors import InputError
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.class_metrics import report
from dna_mamba.reading.outputs import outputs_of_windows, probabilities
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.recipe import FinetuneConfig
from dna_mamba.training.step import Stepper
from tests.conftest import new_classifier


def test_the_papers_recipe_is_the_default():
    config = FinetuneConfig(seq_len=2**20)
    assert (config.epochs, config.steps_per_epoch, config.batch) == (10, 1024, 64)
    assert config.epoch_lengths() == [2**14, 2**15, 2**16, 2**17, 2**18, 2**19, *[2**20] * 4]
    assert FinetuneConfig(seq_len=2**14).epoch_lengths() == [2**14] * 10
    assert FinetuneConfig(seq_len=1024).epoch_lengths() == [1024] * 10
    rates = [
        config.optimizer.rate(step, 10 * 1024) for step in (0, 5 * 1024 - 1, 5 * 1024, 7 * 1024 + 512, 10 * 1024 - 1)
    ]
    assert rates == pytest.approx([1e-4 / 5120, 1e-4, 1e-4, (1e-4 + 1e-6) / 2, 1e-6], rel=1e-3)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"epochs": 3}, "3 epochs are too few for length warm-up"),
        ({"batch": 0}, "batch 0 must lie between"),
    ],
)
def test_a_bad_recipe_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        FinetuneConfig(**{"seq_len": 2**20, **change})


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    """Two classes of random sequence; in contig 'told' those of b hold a motif that those of a do not, in 'same' not."""
    folder = tmp_path_factory.mktemp("classes")
    stores = {}
    for seed, name in enumerate(("a-1", "b-1")):
        generator = np.random.default_rng(seed)
        told, same = (generator.choice(list("ACGT"), 20_000) for _ in range(2))
        if name == "b-1":
            for start in range(10, 19_980, 40):
                told[start : start + 8] = list("ACGTTGCA")
        path = folder / f"{name}.fa"
        path.write_text(f">told\n{''.join(told)}\n>same\n{''.join(same)}\n")
        stores[name] = build([path], folder / f"{name}.dna")
    return stores


def windows_of(genomes, contig, length, seed):
    contigs = [LabelledContig(label=name[0], genome=name, contig=contig, length=20_000) for name in genomes]
    return LabelledWindows(genomes, contigs, length, seed=seed)


def run(genomes, contig, frozen=False):
    torch.manual_seed(0)
    model = new_classifier(BackboneConfig(pattern="M", width=32), ("a", "b"), "mean")
    model.backbone.requires_grad_(not frozen)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = OptimizerConfig(peak_rate=1e-2, final_rate=1e-6, warmup_share=0.5)
    windows = windows_of(genomes, contig, 128, seed=1)

    def draw(length, epoch, index):
        place = windows.place(epoch, index)
        return Drawn(windows.stored(place), "ab".index(place.label), "ab".index(place.label), place.start)

    source = DrawnSteps(draw, [128, 128], steps_per_epoch=40, batch=16)
    stepper = Stepper(model, Labels(), optimizer, num_steps=len(source), stage_lengths=[128], contig_names=["a", "b"],
                      piece_bases=512)  # fmt: skip
    built = stepper.make_optimizer()
    for step in range(len(source)):
        stepper.step(source[step], built)
    held_out = windows_of(genomes, contig, 128, seed=2)
    places = held_out.places(200)
    found = outputs_of_windows(model, lambda i: held_out.stored(places[i]), 200, length=128, piece_bases=512)
    truth = np.array(["ab".index(place.label) for place in places])
    return model, before, stepper.read_steps(), report(probabilities(found), truth, ("a", "b"))


def test_it_learns_what_tells_classes_apart(genomes):
    _, _, steps, found = run(genomes, "told")
    assert [s.step for s in steps] == list(range(1, 81)) and {s.window_bases for s in steps} == {128}
    assert all(0 <= s.counts[0] <= 1 and s.counts[0] * 16 % 1 == 0 for s in steps) and steps[-1].counts[0] > 0.8
    assert 0.3 < steps[0].loss < 3 and steps[-1].loss < 0.3
    assert found.accuracy.low > 0.85


def test_frozen_backbones_stay_as_they_are(genomes):
    model, before, _, _ = run(genomes, "told", frozen=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("backbone."), name


def test_two_runs_are_the_same(genomes):
    one, two = (run(genomes, "same") for _ in range(2))
    assert [s.loss for s in one[2]] == [s.loss for s in two[2]]
    assert one[3].confusion.tolist() == two[3].confusion.tolist()
