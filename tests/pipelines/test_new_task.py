# Shapes: B windows, T bases, D width
"""A task and heads that the package does not know, defined here, go through all that fine-tuning does.

The recipes "Add a head" and "Add a task" of CONTRIBUTING.md follow this file.
"""

import csv
import io
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from dna_mamba.data.objectives import Examples
from dna_mamba.data.steps import Drawn
from dna_mamba.errors import InputError, Interrupted, StoppedError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import (
    load_classifier,
    load_sequence_model,
    save_pretrained,
    save_sequence_model,
)
from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.heads import HEADS
from dna_mamba.model.heads.classes import ClassHead
from dna_mamba.model.heads.head import Head, PooledHead
from dna_mamba.model.sequence_model import SequenceModel
from dna_mamba.pipelines import finetune
from dna_mamba.pipelines.configs.finetune import FinetuneRunConfig
from dna_mamba.pipelines.tasks.task import ResultRow, Task
from dna_mamba.reading.outputs import outputs_in_pieces, standardize
from dna_mamba.training import checkpoint, recipe
from dna_mamba.training import step as training
from dna_mamba.training.callbacks import ProgressBar
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.piecewise import backward_in_pieces
from dna_mamba.training.recipe import FinetuneConfig
from dna_mamba.training.schedule import Validation
from tests.conftest import dna_mamba


class NumberHead(PooledHead):
    """One number a window, squared error."""

    kind = "number"
    counted = ("close",)

    def __init__(self, width, pooling):
        super().__init__(pooling)
        self.linear = nn.Linear(width, 1)

    def settings(self):
        return {"pooling": self.pooling}

    @classmethod
    def read(cls, width, settings, where):
        return cls(width, str(settings.get("pooling")))

    def forward(self, vectors):
        return self.linear(vectors)[:, 0]

    def sum_of_losses(self, outputs, targets, weights):
        return F.mse_loss(outputs, targets.to(outputs.dtype), reduction="sum")

    def counts(self, outputs, targets):
        return ((outputs - targets).abs() < 0.1).sum(dtype=torch.float64)[None]


class EachBaseHead(Head):
    """A yes or no for every base."""

    kind = "each-base"
    additive = True
    counted = ("right",)

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def settings(self):
        return {}

    @classmethod
    def read(cls, width, settings, where):
        return cls(width)

    def forward(self, vectors):
        return self.linear(vectors)[..., 0]

    def sum_of_losses(self, outputs, targets, weights):
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="sum")

    def counts(self, outputs, targets):
        return ((outputs > 0) == (targets > 0.5)).sum(dtype=torch.float64)[None]


def is_gc(stored):
    return (stored == 1) | (stored == 2)  # A, C, G, T are 0 to 3


class ShareOfGc(Task[FinetuneRunConfig]):
    """The share of G and C of a window, or whether each base is one."""

    command = "finetune gc"
    validation = ("valid_error",)
    each_base = False

    def __init__(self, config, seed=0):
        super().__init__(config)
        generator = np.random.default_rng(seed)
        shares = np.repeat(generator.uniform(0, 1, 100), 40)  # GC-rich and poor stretches of 40 bases
        gc = generator.random(4000) < shares
        self.bases = np.where(gc, generator.integers(1, 3, 4000), generator.choice([0, 3], 4000)).astype(np.uint8)

    def head(self, width):
        return EachBaseHead(width) if self.each_base else NumberHead(width, self.config.pooling)

    def describe(self):
        return {"bases": len(self.bases)}

    def identity(self):
        return str(self.bases.sum())

    def check(self, length, warn):
        if length > 2000:
            raise InputError(f"windows of {length} bases are longer than a part; take at most 2,000")

    @property
    def contig_names(self):
        return ["toy"]

    def target(self, stored):
        return is_gc(stored).astype(np.float32) if self.each_base else np.float32(is_gc(stored).mean())

    def draw(self, length, epoch, index, purpose=0):
        start = int(np.random.default_rng([self.config.seed, epoch, index, purpose]).integers(2000 - length))
        stored = self.bases[start : start + length]
        return Drawn(stored, self.target(stored), 0, start)

    def _held_out(self, length, first):
        return [self.bases[i : i + length] for i in range(first, first + 900, 30)]

    def error(self, reader, first):
        windows = self._held_out(reader.length, first)
        outputs = reader.outputs(lambda i: windows[i], len(windows))
        outputs = outputs.sigmoid() if self.each_base else outputs
        return float((outputs.cpu().numpy() - np.stack([self.target(w) for w in windows])).__abs__().mean())

    def validate(self, reader):
        error = self.error(reader, 2000)
        return Validation(better=(-error,), shown=f"error {error:.4f}", cells={"valid_error": f"{error:.17g}"},
                          logged={"valid/error": error})  # fmt: skip

    def rows(self, trained, say):
        say("scoring")
        yield [ResultRow(name="model", detail=f"epoch {trained.epoch}", value=self.error(trained.reader, 3000))]
        truth = np.stack([self.target(w) for w in self._held_out(trained.reader.length, 3000)])
        yield [
            ResultRow(
                name="mean of training", detail="", value=float(np.abs(truth - is_gc(self.bases[:2000]).mean()).mean())
            )
        ]


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(HEADS, NumberHead.kind, NumberHead)
    monkeypatch.setitem(HEADS, EachBaseHead.kind, EachBaseHead)


def config_of(**changes):
    usual = FinetuneConfig(
        seq_len=50,
        epochs=3,
        steps_per_epoch=25,
        batch=4,
        standardize_windows=20,
        optimizer=OptimizerConfig(peak_rate=2e-2),
    )
    values = {"seq_lens": (50,), "model": BackboneConfig(pattern="M", width=16), "pooling": "mean", "recipe": usual,
              "device": "cpu", "checkpoint_every_steps": 10}  # fmt: skip
    return finetune.resolve(FinetuneRunConfig(**{**values, **changes}))


def run(out, *, task=ShareOfGc, resume=False, make_callbacks=list, say=None, **changes):
    config = config_of(**changes)
    return finetune.run(config, task(config), out, resume=resume, make_callbacks=make_callbacks, say=say)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(out):
    return load_file(out / "lengths" / "50" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HEADS, NumberHead.kind, NumberHead)
        out = tmp_path_factory.mktemp("gc") / "run"
        said = []
        return out, run(out, say=said.append), said


HEADS_AND_TARGETS = {
    "number": (lambda width: NumberHead(width, "mean"), lambda: torch.rand(3).double()),
    "each base": (EachBaseHead, lambda: torch.rand(3, 40).double()),
    "classes": (lambda width: ClassHead(width, ("a", "b"), "max"), lambda: torch.tensor([0, 1, 1])),
}


@pytest.mark.parametrize("make_head, make_targets", HEADS_AND_TARGETS.values(), ids=HEADS_AND_TARGETS)
@pytest.mark.parametrize("piece_bases, kept_pieces", [(7, 1), (33, 1), (16, 2), (1, 1)])
def test_gradients_of_a_new_head_in_pieces_are_those_of_the_whole(make_head, make_targets, piece_bases, kept_pieces):
    torch.manual_seed(0)
    model = SequenceModel(BackboneConfig(pattern="MM", width=16), make_head).double()
    tokens_BT = torch.randint(7, 11, (3, 40), generator=torch.Generator().manual_seed(1))
    targets = make_targets()
    loss = model.sum_of_losses(model(tokens_BT), targets, None) / 5
    loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    found = backward_in_pieces(
        model, Examples(tokens_BT, targets, None), divisor=5.0, piece_bases=piece_bases, kept_pieces=kept_pieces
    )
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert float(found.counts[0]) == float(model.counts(model(tokens_BT), targets)[0])
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).norm() < 1e-5 * gradient.norm() + 1e-9


def test_a_new_task_learns_and_leaves_all_that_a_run_leaves(unbroken):
    out, result, said = unbroken
    model, baseline = result.lengths[0].rows
    assert model.value < 0.5 * baseline.value, (model, baseline)
    folder = out / "lengths" / "50"
    steps = rows_of(folder / "metrics.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, 76))
    assert {row["epoch"] for row in steps} == {"0", "1", "2"} and float(steps[-1]["close"]) > 0.5
    validated = [row["step"] for row in steps if row["valid_error"]]
    assert validated == ["25", "50", "75"]
    assert len(rows_of(folder / "speed.csv")) == 74 and (folder / "unusual.csv").exists()
    assert list((folder / "tensorboard").glob("events.*"))
    assert json.loads((out / "run.json").read_text())["command"] == "finetune gc"
    assert any("epoch 3/3" in words and "close 0." in words and "error 0." in words for words in said)
    loaded, about = load_sequence_model(folder / "model")
    assert (
        isinstance(loaded.head, NumberHead)
        and about["epoch"] == int(min(steps, key=lambda r: float(r["valid_error"] or 9))["epoch"]) + 1
    )


def test_a_command_that_wants_classes_refuses_another_head(unbroken, tmp_path):
    with pytest.raises(InputError, match="answers with 'number', not with classes"):
        load_classifier(unbroken[0] / "lengths" / "50" / "model")
    (tmp_path / "x.fa").write_text(">a\nACGTACGT\n")
    done = dna_mamba("classify", unbroken[0], tmp_path / "x.fa")  # a process that does not know the head
    assert done.returncode == 2 and "the head 'number' is unknown; this dna-mamba knows classes" in done.stderr


def test_a_head_that_answers_for_every_base_learns_too(tmp_path):
    class EachBase(ShareOfGc):
        each_base = True

    model, baseline = run(tmp_path / "run", task=EachBase).lengths[0].rows
    assert model.value < 0.1 < 0.4 < baseline.value
    loaded, _ = load_sequence_model(tmp_path / "run" / "lengths" / "50" / "model")
    save_sequence_model(loaded, tmp_path / "again", {})
    tokens = torch.arange(40)[None] % 4 + 7
    again, _ = load_sequence_model(tmp_path / "again")
    assert torch.equal(loaded(tokens), again(tokens))
    assert torch.allclose(outputs_in_pieces(loaded, tokens, 7), loaded(tokens), atol=1e-5)


def test_every_position_of_an_additive_head_counts_for_its_zero_and_unit():
    torch.manual_seed(0)
    model = SequenceModel(BackboneConfig(pattern="M", width=16), EachBaseHead)
    windows = np.random.default_rng(0).integers(0, 4, (5, 40)).astype(np.uint8)
    standardize(model, lambda i: windows[i], 5, length=40, piece_bases=16)
    with torch.no_grad():
        vectors = model.backbone(torch.from_numpy(windows + 7))[0].flatten(0, 1).double()
    torch.testing.assert_close(model.center_D.double(), vectors.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.spread_D.double(), vectors.std(0), rtol=1e-4, atol=1e-6)


def in_step(monkeypatch, steps, action):
    original, calls = training.backward_in_pieces, []

    def acting(model, *arguments, **options):
        calls.append(1)
        found = original(model, *arguments, **options)
        return action(model, found) or found if len(calls) in steps else found

    monkeypatch.setattr(training, "backward_in_pieces", acting)


def test_a_run_that_is_stopped_goes_on_to_the_same_bits_with_any_number_of_workers(unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        in_step(patch, {33}, lambda model, found: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match=f"after step 33; go on with --out {tmp_path / 'run'} --resume"):
            run(tmp_path / "run")
    assert [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(tmp_path / "run/lengths/50/checkpoints")] == [
        30,
        33,
    ]
    rest = run(tmp_path / "run", resume=True, num_workers=2)
    # seconds and bases of the process, so that their ratio is a speed
    assert rest.lengths[0].bases * 75 == unbroken[1].lengths[0].bases * (75 - 33)
    assert all(torch.equal(weights(tmp_path / "run")[name], x) for name, x in weights(unbroken[0]).items())
    assert rows_of(tmp_path / "run/lengths/50/metrics.csv") == rows_of(unbroken[0] / "lengths/50/metrics.csv")


def test_a_loss_that_leaps_and_one_that_is_not_finite_are_named_with_their_windows(tmp_path, monkeypatch):
    said = []
    leap = iter([1e6, float("nan")])
    in_step(monkeypatch, {40, 44}, lambda model, found: found._replace(loss=found.loss + next(leap)))
    run(tmp_path / "run", say=said.append)
    found = rows_of(tmp_path / "run/lengths/50/unusual.csv")
    assert [(row["step"], row["kind"]) for row in found] == [("40", "spike"), ("44", "not finite")]
    windows = [
        ShareOfGc(config_of()).draw(50, 1, 14 * 4 + i) for i in range(4)
    ]  # step 40 is the 15th of the second epoch
    assert found[0]["windows"].split(" ") == [f"toy:{one.start + 1}-{one.start + 50}" for one in windows]
    assert sum("unusual.csv names its windows" in words for words in said) == 2
    assert [row["step"] for row in rows_of(tmp_path / "run/lengths/50/metrics.csv") if row["skipped"] == "1"] == ["44"]


def test_three_steps_in_a_row_that_are_not_finite_stop_the_run(tmp_path, monkeypatch):
    in_step(monkeypatch, {40, 41, 42}, lambda model, found: found._replace(loss=found.loss * float("nan")))
    with pytest.raises(
        StoppedError, match=r"step 42: .* the windows of the last were toy:.*; the last good checkpoint is"
    ):
        run(tmp_path / "run")


def test_memory_that_runs_out_cuts_the_step_smaller_and_the_run_goes_on(unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SHORTEST_PIECE", 16)
    said, original = [], SequenceModel.part

    def part(self, inputs_BT, state=None):
        if inputs_BT.numel() > 100 and torch.is_grad_enabled():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(self, inputs_BT, state)

    monkeypatch.setattr(SequenceModel, "part", part)
    run(tmp_path / "run", say=said.append)
    assert any("step 1 ran out of memory; it begins anew" in words for words in said)
    steps = [rows_of(out / "lengths/50/metrics.csv") for out in (unbroken[0], tmp_path / "run")]
    assert len(steps[1]) == 75
    for one, other in list(zip(*steps, strict=True))[:20]:  # later AdamW has made much of the rounding
        assert float(other["loss"]) == pytest.approx(float(one["loss"]), rel=1e-2)


def test_the_bar_shows_what_the_loss_is(tmp_path):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=150)
    run(tmp_path / "run", make_callbacks=lambda: [ProgressBar(console)])
    assert "step 75/75" in text.getvalue() and "loss 0." in text.getvalue() and "bits/base" not in text.getvalue()


def test_bad_data_are_refused_before_anything_is_written(tmp_path):
    longer = replace(config_of().recipe, seq_len=2500)
    with pytest.raises(InputError, match="longer than a part"):
        run(tmp_path / "run", seq_lens=(2500,), recipe=longer)
    assert not (tmp_path / "run").exists()


def test_other_data_under_a_run_that_is_resumed_are_told(unbroken, tmp_path):
    config = config_of()
    with pytest.raises(InputError, match="the data or their split are no longer those"):
        finetune.run(config, ShareOfGc(config, seed=1), unbroken[0], resume=True)


def test_soft_masked_bases_are_read_as_bases(unbroken, tmp_path):
    class Lower(ShareOfGc):
        def draw(self, length, epoch, index, purpose=0):
            drawn = super().draw(length, epoch, index, purpose)
            return drawn._replace(stored_T=drawn.stored_T | 8 * (np.arange(length) % 2 == 0).astype(np.uint8))

    run(tmp_path / "run", task=Lower)
    assert all(torch.equal(weights(tmp_path / "run")[name], x) for name, x in weights(unbroken[0]).items())


def test_a_training_in_a_thread_of_a_notebook_or_server_works(unbroken, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, tmp_path / "run").result()
    assert all(torch.equal(weights(tmp_path / "run")[name], x) for name, x in weights(unbroken[0]).items())


def test_what_never_had_a_gradient_and_whole_numbers_are_resumed(tmp_path, monkeypatch):
    class Idle(ShareOfGc):
        def head(self, width):
            head = super().head(width)
            head.extra = nn.Parameter(torch.ones(3))
            return head

        def validate(self, reader):
            return replace(super().validate(reader), better=(3,))

    monkeypatch.setattr(
        NumberHead, "read", classmethod(lambda cls, width, settings, where: Idle(config_of()).head(width))
    )
    with monkeypatch.context() as patch:
        in_step(patch, {33}, lambda model, found: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(tmp_path / "run", task=Idle)
    assert run(tmp_path / "run", task=Idle, resume=True).lengths[0].rows[0].detail == "epoch 1"  # no other was better


@pytest.mark.parametrize("damaged", ["5,0", "5,0,50,,,,,,,", '5,0,"50'])
def test_a_damaged_row_of_metrics_is_dropped_on_resume(unbroken, tmp_path, damaged):
    shutil.copytree(unbroken[0], tmp_path / "run")
    folder = tmp_path / "run/lengths/50"
    lines = (folder / "metrics.csv").read_text().splitlines()
    lines[5] = damaged
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    shutil.rmtree(folder / "checkpoints/step-00000075")
    for name in ("results.json", "lengths/50/results.json"):
        (tmp_path / "run" / name).unlink()
    said = []
    run(tmp_path / "run", resume=True, say=said.append)
    dropped = sum("metrics.csv: rows that could not be read were dropped: 1" in words for words in said)
    assert dropped == (damaged != "5,0,50,,,,,,,")  # which is a row, if an empty one, and stays
    assert all(torch.equal(weights(tmp_path / "run")[name], x) for name, x in weights(unbroken[0]).items())


def test_a_head_on_a_frozen_backbone_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Its optimizer holds no state of the backbone; trainers that match states by their place refuse it, or mix them up."""
    torch.manual_seed(3)
    save_pretrained(DnaMamba(BackboneConfig(pattern="M", width=16)), tmp_path / "begin", {})
    frozen = {"model": None, "checkpoint": str(tmp_path / "begin"), "frozen": True}
    run(tmp_path / "whole", **frozen)
    with monkeypatch.context() as patch:
        in_step(patch, {33}, lambda model, found: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(tmp_path / "run", **frozen)
    run(tmp_path / "run", resume=True, **frozen)
    given, expected, begin = (
        weights(tmp_path / "run"),
        weights(tmp_path / "whole"),
        load_file(tmp_path / "begin/model.safetensors"),
    )
    assert all(torch.equal(given[name], x) for name, x in expected.items())
    assert all(torch.equal(given[name], x) for name, x in begin.items() if name in given)
    assert not torch.equal(given["head.linear.weight"], torch.zeros_like(given["head.linear.weight"]))


def test_a_run_that_was_stopped_before_its_record_was_written_goes_on(tmp_path, unbroken):
    (tmp_path / "run").mkdir()
    shutil.copy(unbroken[0] / "config.yaml", tmp_path / "run")
    run(tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"] == "finetune gc"


def test_an_epoch_of_a_warm_up_length_is_never_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "FIRST_LENGTH", 25)  # epochs of 25, 50 and 50 bases
    scores = iter([9.0, 2.0, 1.0])

    class Falling(ShareOfGc):
        def validate(self, reader):
            return replace(super().validate(reader), better=(next(scores),))

    assert run(tmp_path / "run", task=Falling).lengths[0].rows[0].detail == "epoch 2"
    steps = rows_of(tmp_path / "run/lengths/50/metrics.csv")
    assert [row["window_bases"] for row in steps] == ["25"] * 25 + ["50"] * 50
