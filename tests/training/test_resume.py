"""Runs that are killed, interrupted and resumed equal the unbroken run: losses to the bit, weights by SHA-256."""

import hashlib
import json
import os
import random
import shutil
import signal
import time

import pytest

from dna_mamba.errors import InputError
from dna_mamba.training import checkpoint
from dna_mamba.training.checkpoint import newest_intact
from dna_mamba.training.metrics_csv import read_metrics
from tests.bad_input.test_models import resealed
from tests.test_faults import AT
from tests.zygote import Zygote

STEPS = 24


def arguments(fasta, out, *more):
    # three stages of 1,024, 2,048 and 4,096 bases: 6, 6 and 12 steps
    return [
        *("pretrain", "--genome", fasta, "--model", "2x16", "--seq-len", "4096", "--steps", STEPS, "--seed", "7"),
        *("--set", "training.bases_per_step=4096", "--set", "training.checkpoint_every_steps=2"),
        *("--set", "training.validate_every_steps=5", "--set", "evaluation.markov_max_order=-1"),
        *("--out", out, *more),
    ]


def losses(out):
    return [(row["step"], row["train_loss"], row["valid_bits_per_base"]) for row in read_metrics(out / "metrics.csv")]


def weights(out):
    final = checkpoint.path_of_step(out / "checkpoints", STEPS)
    best = hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
    return hashlib.sha256((final / "model.safetensors").read_bytes()).hexdigest(), best


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    process = Zygote(tmp_path_factory.mktemp("zygote"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def unbroken(toy_fasta, tmp_path_factory, zygote):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    done = zygote.run(*arguments(toy_fasta, out))
    assert done.code == 0, done.stderr
    assert [int(step) for step, _, _ in losses(out)] == list(range(1, STEPS + 1))
    assert {row["window_bases"] for row in read_metrics(out / "metrics.csv")} == {"1024", "2048", "4096"}
    return out


def start(zygote, fasta, out, *more):
    return zygote.start(*arguments(fasta, out, *more))


def wait_for_step(out, step, process):
    """Wait until a run has written the row of a step, or has ended."""
    while process.wait(0) is None:
        metrics = out / "metrics.csv"
        newest = [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(out / "checkpoints")]
        if newest and newest[-1] >= step:
            return
        if metrics.exists() and metrics.read_text().count("\n") > step:
            return
        time.sleep(0.002)


@pytest.mark.parametrize("num_workers, num_kills, seed", [(0, 1, 1), (2, 2, 2), (0, 3, 3)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    toy_fasta, unbroken, tmp_path, zygote, num_workers, num_kills, seed
):
    out = tmp_path / "run"
    generator = random.Random(seed)
    kill_steps = sorted(generator.sample(range(1, STEPS - 1), num_kills))
    for i, step in enumerate(kill_steps):
        process = start(zygote, toy_fasta, out, "--num-workers", num_workers, *(["--resume"] if i else []))
        wait_for_step(out, step, process)
        time.sleep(generator.random() * 0.05)  # within a step, a validation or a save
        process.kill()
        process.wait()
    done = zygote.run(*arguments(toy_fasta, out, "--resume", "--num-workers", num_workers))
    assert done.code == 0, done.stderr
    assert losses(out) == losses(unbroken)
    assert weights(out) == weights(unbroken)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(toy_fasta, unbroken, tmp_path, zygote):
    again, other = tmp_path / "again", tmp_path / "other"
    assert zygote.run(*arguments(toy_fasta, again, "--num-workers", 2)).code == 0
    assert losses(again) == losses(unbroken) and weights(again) == weights(unbroken)
    assert zygote.run(*arguments(toy_fasta, other, "--seed", 8)).code in (0, 2)
    assert not other.exists() or losses(other) != losses(unbroken)


def test_a_resume_with_another_configuration_names_the_difference(toy_fasta, unbroken, zygote):
    done = zygote.run("pretrain", "--out", unbroken, "--resume", "--set", "optimizer.peak_rate=0.5")
    assert done.code == 2
    assert "optimizer.peak_rate was 0.004 and is now 0.5" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _edit(path):
    counters = json.loads(path.read_text())
    path.write_text(json.dumps({**counters, "step": 3}))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda c: _flip(c / "model.safetensors"), "model.safetensors does not match its SHA-256"),
        (lambda c: _flip(c / "optimizer.safetensors"), "optimizer.safetensors does not match its SHA-256"),
        (lambda c: os.truncate(c / "model.safetensors", 100), "model.safetensors has 100 bytes, expected"),
        (lambda c: (c / "rng.safetensors").write_bytes(b""), "rng.safetensors has 0 bytes"),
        (lambda c: _edit(c / "counters.json"), "counters.json"),
        (lambda c: (c / "rng.safetensors").unlink(), "rng.safetensors cannot be read"),
        (lambda c: (c / "checksums.json").write_text("{}"), "checksums.json lists \\[\\]"),
        (lambda c: (c / "checksums.json").unlink(), "no readable checksums.json"),
    ],
    ids=["flip", "flip optimizer", "cut", "empty", "edit", "missing", "no sums", "no checksums"],
)
def test_fault15_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_offered(
    unbroken, tmp_path, damage, words
):
    folder = tmp_path / "checkpoints"
    shutil.copytree(unbroken / "checkpoints", folder)
    newest, before = checkpoint.list_checkpoints(folder)[-1], checkpoint.list_checkpoints(folder)[-2]
    damage(newest)
    with pytest.raises(InputError, match=words) as error:
        newest_intact(folder)
    assert newest.name in str(error.value) and f"--resume-from {before}" in str(error.value)


def test_resume_from_goes_on_from_an_older_checkpoint(toy_fasta, unbroken, tmp_path, zygote):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    older = checkpoint.list_checkpoints(out / "checkpoints")[-2]
    _flip(checkpoint.list_checkpoints(out / "checkpoints")[-1] / "model.safetensors")
    refused = zygote.run("pretrain", "--out", out, "--resume")
    assert refused.code == 2 and str(older) in refused.stderr
    done = zygote.run("pretrain", "--out", out, "--resume-from", older)
    assert done.code == 0, done.stderr
    assert losses(out) == losses(unbroken) and weights(out) == weights(unbroken)


def test_a_checkpoint_of_another_configuration_or_a_pickle_is_refused(unbroken, tmp_path):
    import torch

    from dna_mamba.model.backbone import DnaMamba
    from dna_mamba.model.checkpoints.native import copy_tensors
    from dna_mamba.model.config import BackboneConfig

    saved = checkpoint.load(checkpoint.list_checkpoints(unbroken / "checkpoints")[-1])
    with pytest.raises(InputError, match="is \\(16, 16\\), expected \\(16, 32\\); it belongs to a model of another"):
        copy_tensors(DnaMamba(BackboneConfig(pattern="MM", width=32)), saved.model, "x")
    with pytest.raises(InputError, match="lacks the tensor 'backbone.layers.2"):
        copy_tensors(DnaMamba(BackboneConfig(pattern="MMM", width=16)), saved.model, "x")
    with pytest.raises(InputError, match="unexpected tensor 'backbone.layers.1"):
        copy_tensors(DnaMamba(BackboneConfig(pattern="M", width=16)), saved.model, "x")
    pickle = tmp_path / "step-00000001"
    torch.save({"a": 1}, pickle)
    with pytest.raises(InputError, match="pickled checkpoints are not read"):
        checkpoint.load(pickle)


def test_the_newest_checkpoints_and_the_best_are_kept(unbroken):
    steps = {checkpoint.step_of(p) for p in checkpoint.list_checkpoints(unbroken / "checkpoints")}
    best = json.loads((unbroken / "run.json").read_text())["best_step"]
    assert best in steps and steps == {20, 22, 24, best} | set(sorted(steps)[-3:])
    assert (
        json.loads((unbroken / "checkpoints" / f"step-{best:08d}" / "counters.json").read_text())["best_step"] == best
    )


def test_a_run_killed_before_its_first_row_goes_on(toy_fasta, unbroken, tmp_path, zygote):
    out = tmp_path / "run"
    process = start(zygote, toy_fasta, out)
    while not (out / "metrics.csv").exists() and process.wait(0) is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    (out / "metrics.csv").write_bytes(b"")  # as if the header had been lost too
    done = zygote.run(*arguments(toy_fasta, out, "--resume"))
    assert done.code == 0, done.stderr
    assert losses(out) == losses(unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_saves_with_workers_too(toy_fasta, unbroken, tmp_path, zygote, number):
    out = tmp_path / "run"
    code = "import os; os.setsid()\n" + AT.format(step=4, name="rng.safetensors", action=f"os.killpg(0, {int(number)})")
    process = zygote.run(*arguments(toy_fasta, out, "--num-workers", 2), code=code)
    assert process.code == 128 + number, process.stderr
    assert checkpoint.list_checkpoints(out / "checkpoints")
    done = zygote.run("pretrain", "--out", out, "--resume")
    assert done.code == 0, done.stderr
    assert losses(out) == losses(unbroken) and weights(out) == weights(unbroken)


def test_counters_before_the_first_validation_are_json_that_others_read(toy_fasta, unbroken, tmp_path, zygote):
    out = tmp_path / "run"
    stopped = zygote.run(
        *arguments(toy_fasta, out), code=AT.format(step=4, name="rng.safetensors", action="os._exit(9)")
    )
    assert stopped.code == 9
    newest = checkpoint.list_checkpoints(out / "checkpoints")[-1]
    text = (newest / "counters.json").read_text()
    values = json.loads(text, parse_constant=pytest.fail)
    assert values.pop("best") is None
    # those of before held bits, and a bare Infinity where there were none
    resealed(newest, "counters.json", json.dumps(values | {"best_valid_bits": float("inf")}).encode())
    done = zygote.run("pretrain", "--out", out, "--resume")
    assert done.code == 0, done.stderr
    assert losses(out) == losses(unbroken) and weights(out) == weights(unbroken)


def test_a_checkpoint_of_another_run_changes_nothing(toy_fasta, unbroken, tmp_path, zygote):
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(unbroken, out)
    shutil.copytree(unbroken, other)
    foreign = checkpoint.list_checkpoints(other / "checkpoints")[-2]
    counters = json.loads((foreign / "counters.json").read_text())
    resealed(foreign, "counters.json", json.dumps({**counters, "config_sha256": "0" * 64}).encode())
    before = sorted(p.name for p in (out / "checkpoints").iterdir())
    done = zygote.run("pretrain", "--out", out, "--resume-from", foreign)
    assert done.code == 2 and "another configuration" in done.stderr
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == before
