"""One optimizer step: loss, groups, learning rate, and steps that are not finite."""

import math

import pytest
import torch
import torch.nn.functional as F

from dna_mamba.data.objectives import NextBase, TokenPolicy, sum_of_weights
from dna_mamba.data.steps import StepBatch
from dna_mamba.errors import InputError, StoppedError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.step import Stepper
from tests.conftest import dna_mamba


def make_module(piece_bases=10_000, policy=None, width=16):
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="MM", width=width))
    return Stepper(
        model,
        NextBase(policy or TokenPolicy()),
        OptimizerConfig(),
        num_steps=10,
        stage_lengths=[40],
        contig_names=["c"],
        piece_bases=piece_bases,
    )


def batch_of(stored_BT, policy=None):
    places = torch.tensor([[0, 40 * i, 0] for i in range(len(stored_BT))])
    return StepBatch(stored_BT, places, sum_of_weights(stored_BT.numpy(), policy or TokenPolicy()))


def stored(seed=0):
    return torch.randint(0, 5, (6, 40), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("piece_bases", [16, 50, 100, 10_000])
def test_loss_is_the_sum_over_targets_by_their_number_however_the_step_is_cut(piece_bases):
    module = make_module(piece_bases)
    tokens = stored().long() + 7
    logits = module.model(tokens[:, :-1])[0]
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=11)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in module.model.named_parameters()}
    module.model.zero_grad()
    loss = module._accumulate(batch_of(stored(), module.objective.policy)).loss
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in module.model.named_parameters():
        assert (parameter.grad - gradients[name]).norm() < 1e-5 * gradients[name].norm(), name


def test_soft_masked_bases_count_by_their_weight():
    module = make_module(policy=TokenPolicy(soft_mask_weight=0.1))
    masked = stored()
    masked[:, 20:] |= 8
    tokens = (masked & 7).long() + 7
    logits = module.model(tokens[:, :-1])[0]
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(6, 39)
    weights = (tokens[:, 1:] < 11).float()
    weights[:, 19:] *= 0.1
    assert float(module._accumulate(batch_of(masked, module.objective.policy)).loss) == pytest.approx(
        float(((losses * weights).sum() / weights.sum()).detach()), rel=1e-5
    )


def test_weight_decay_spares_a_log_d_biases_norms_and_embeddings():
    module = make_module()
    names = {id(p): n for n, p in module.model.named_parameters()}
    decayed, exempt = module.make_optimizer().param_groups
    assert decayed["weight_decay"] == 0.1 and exempt["weight_decay"] == 0.0
    assert {names[id(p)].split("mixer.")[-1] for p in decayed["params"]} == {
        "in_proj.weight",
        "conv1d.weight",
        "x_proj.weight",
        "dt_proj.weight",
        "out_proj.weight",
    }
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    config = OptimizerConfig(peak_rate=1.0, final_rate=0.1, warmup_share=0.1, fewest_warmup_steps=0)
    rates = [config.rate(step, 101) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("num_steps, warmup_steps", [(1, 1), (12, 6), (60, 30), (101, 40), (1000, 100)])
def test_a_short_run_warms_up_for_forty_steps_or_half_of_it(num_steps, warmup_steps):
    config = OptimizerConfig()
    rates = [config.rate(step, num_steps) for step in range(num_steps)]
    assert rates[:warmup_steps] == pytest.approx([8e-3 * (step + 1) / warmup_steps for step in range(warmup_steps)])
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)


@pytest.mark.parametrize("name, value", [("peak_rate", math.nan), ("peak_rate", 0.0), ("gradient_clip", -1.0)])
def test_a_bad_setting_is_refused(name, value):
    with pytest.raises(InputError, match=name):
        OptimizerConfig(**{name: value})


def test_fault24_memory_that_runs_out_cuts_the_step_smaller_and_changes_no_number(monkeypatch):
    monkeypatch.setattr("dna_mamba.training.step.SHORTEST_PIECE", 16)
    roomy, tight = make_module(40), make_module(4096)
    said = []
    kept = []
    tight.say, tight.on_smaller = said.append, lambda *cut: kept.append(cut)
    computed = []
    original = tight.model.forward

    def forward(tokens_BT, state=None):
        computed.append(tokens_BT.numel())
        if tokens_BT.numel() > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(tokens_BT, state)

    tight.model.forward = forward
    for module in (roomy, tight):
        optimizer = module.make_optimizer()
        for seed in range(2):
            module.step(batch_of(stored(seed)), optimizer)
        module.read_steps()
    assert len(said) == 6 and "step 1 ran out of memory" in said[0]  # 2,048 to 64: one window at a time
    assert max(computed[-6:]) <= 100 and kept[-1] == (64, 1)
    for one, two in zip(roomy.model.parameters(), tight.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_fault24_memory_that_is_never_enough_stops_the_run_in_one_line():
    module = make_module(4096)

    def forward(tokens_BT, state=None):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    module.model.forward = forward
    with pytest.raises(StoppedError, match="step 1 does not fit in the GPU's memory in pieces of 1,024 bases"):
        module.step(batch_of(stored()), module.make_optimizer())


def test_kept_pieces_are_given_up_before_pieces_are_halved():
    module = make_module(4096)
    module.kept_pieces = 8
    cuts = []
    while True:
        smaller = module._smaller(20_000)
        if smaller is None:
            break
        module.piece_bases, module.kept_pieces = smaller
        cuts.append(smaller)
    assert cuts == [(4096, 2), (4096, 1), (2048, 1), (1024, 1)]


def poisoned_run(toy_fasta, out, bad_steps, **environment):
    """Run the command line with gradients that are NaN in some steps."""
    import os
    import subprocess
    import sys

    from tests.conftest import ROOT

    arguments = [
        "pretrain",
        "--genome",
        str(toy_fasta),
        "--model",
        "1x16",
        "--seq-len",
        "128",
        "--steps",
        "12",
        "--out",
        str(out),
    ]
    arguments += [
        "--set",
        "training.bases_per_step=256",
        "training.checkpoint_every_steps=3",
        "evaluation.markov_max_order=-1",
    ]
    code = f"""
import sys
import torch
from dna_mamba.training.step import Stepper
original = Stepper._accumulate
def poisoned(self, stored):
    loss = original(self, stored)
    if self.counters.step + 1 in {bad_steps!r}:
        next(self.model.parameters()).grad.fill_(float("nan"))
    return loss
Stepper._accumulate = poisoned
sys.argv = ["dna-mamba"] + {arguments!r}
from dna_mamba.cli import main
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=900)


def test_a_step_that_is_not_finite_is_skipped_and_counted(toy_fasta, tmp_path):
    import json

    from dna_mamba.training.metrics_csv import read_metrics

    done = poisoned_run(toy_fasta, tmp_path / "run", {2, 3, 7})
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows if row["skipped"] == "1"] == ["2", "3", "7"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["skipped_steps"] == 3
    assert "3 steps were skipped" in done.stdout


def test_three_in_a_row_stop_the_run_with_step_windows_and_checkpoint(toy_fasta, tmp_path):
    done = poisoned_run(toy_fasta, tmp_path / "run", {5, 6, 7})
    assert done.returncode == 3
    message = done.stderr.strip().splitlines()[-1]
    assert (
        "step 7" in message
        and "chr" in message
        and "the last good checkpoint is" in message
        and "step-00000006" in message
    ), message


def test_help_of_the_module_is_quiet(toy_fasta, tmp_path):
    done = dna_mamba("pretrain", "--genome", toy_fasta, "--dry-run", "--seq-len", 256)
    assert done.returncode == 0 and "12x128" in done.stdout and not (tmp_path / "runs").exists()


def test_a_signal_during_validation_still_saves(toy_fasta, tmp_path):
    import os
    import subprocess
    import sys

    from tests.conftest import ROOT

    code = """
import os, signal, sys
from dna_mamba.pipelines import pretrain
from dna_mamba.reading.losses import Score
original, calls = pretrain.score_regions, []
def score(*arguments, **options):
    calls.append(1)
    found = original(*arguments, **options)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        object.__setattr__(found, "total", Score(num_bases=1, nats=99.0))  # no improvement
    return found
pretrain.score_regions = score
from dna_mamba.cli import main
main()
"""
    arguments = [
        "pretrain",
        "--genome",
        str(toy_fasta),
        "--model",
        "1x16",
        "--seq-len",
        "64",
        "--steps",
        "60",
        "--out",
        "run",
    ]
    arguments += [
        "--set",
        "training.bases_per_step=64",
        "training.validate_every_steps=20",
        "training.checkpoint_every_steps=50",
    ]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=900, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 143 and "after step 40" in done.stderr, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000040").is_dir()


def test_a_captured_step_is_let_go_when_steps_are_launched_again():
    module = make_module()
    module._captured = object()
    module._accumulate(batch_of(stored()))
    assert module._captured is None


def test_checkpoints_from_before_pieces_could_differ_are_known(toy_fasta, tmp_path):
    import hashlib
    import json
    from dataclasses import asdict

    from dna_mamba.data import selection
    from dna_mamba.pipelines import pretrain, pretrain_plan

    config = pretrain_plan.resolve(pretrain.PretrainConfig(device="cpu"))
    genome = selection.load_genome(str(toy_fasta))
    old = {**asdict(config), "model": config.model.as_dict()}  # layers that have come since stand in no older file
    for section, key in (("data", "num_workers"), ("training", "checkpoint_every_steps"), ("training", "keep_checkpoints"),
                         ("training", "kept_pieces"), ("training", "recomputed_layers"),
                         ("data", "rna"), ("optimizer", "fewest_warmup_steps")):  # fmt: skip
        del old[section][key]
    assert old["training"]["piece_bases"] == 16_384
    expected = hashlib.sha256(json.dumps(old, sort_keys=True, default=str).encode()).hexdigest()
    found = pretrain._identity(config, genome, selection.load_split(genome, config.data))
    assert found["config_sha256_with_pieces"] == expected != found["config_sha256"]
