"""FASTA in, a pretrained causal Mamba out."""

import contextlib
import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer import trainer as lightning_trainer

from dna_mamba.data.build import Progress
from dna_mamba.data.datamodule import PretrainingData, TrainingSteps
from dna_mamba.data.fingerprints import fingerprints
from dna_mamba.data.genome import GenomeStore
from dna_mamba.data.intervals import Interval, subtract
from dna_mamba.data.length_warmup import Stage, lengths, plan_stages
from dna_mamba.data.markov import STRENGTHS, MarkovModels
from dna_mamba.data.samples import Stretch, sample
from dna_mamba.data.selection import DEMO, load_genome, load_split
from dna_mamba.data.splits import Split
from dna_mamba.data.vocabulary import BASE_BITS
from dna_mamba.data.windows import Windows, check_length, known_bases, plan_windows, read_by
from dna_mamba.device import find_device, find_precision
from dna_mamba.errors import InputError, Interrupted, StoppedError
from dna_mamba.files import write_json, write_text
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import can_be_read, copy_tensors, from_pretrained, save_pretrained
from dna_mamba.model.implementation import implementation_for
from dna_mamba.pipelines import run_directory
from dna_mamba.pipelines.config_files import dump_yaml, load_yaml, read_config
from dna_mamba.pipelines.configs.pretrain import PretrainConfig, TrainingConfig
from dna_mamba.pipelines.machines import Machine, this_gpu
from dna_mamba.pipelines.planning import (
    Cut,
    Memory,
    check_main_memory,
    choose_cut,
    longest_piece_that_fits,
    measure_or_none,
    memory_of_step,
    num_parameters,
    seconds_a_base,
    tabled_speed,
)
from dna_mamba.reading.losses import RegionScores, Score, score_regions
from dna_mamba.training import checkpoint
from dna_mamba.training.callbacks import RunRecorder
from dna_mamba.training.checkpoint import newest_intact, set_aside
from dna_mamba.training.language_model import Counters, LanguageModel

MARKOV_CHOICE_BASES = 2**22
"""Of validation, that the order and strength of Markov models are chosen on at most."""


MAY_DIFFER_ON_RESUME = {
    ("data", "num_workers"),
    ("training", "checkpoint_every_steps"),
    ("training", "piece_bases"),
    ("training", "kept_pieces"),
    ("training", "recomputed_layers"),
    ("training", "keep_checkpoints"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the final table."""

    name: str
    bits_per_base: float
    detail: str = ""

    @property
    def perplexity(self) -> float:
        """Two to the power of the bits per base."""
        return 2.0**self.bits_per_base

    @property
    def is_baseline(self) -> bool:
        """Whether it is what the model is held against."""
        return self.name == "uniform" or self.name.startswith("Markov ")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do."""

    config: PretrainConfig
    num_parameters: int
    stages: tuple[Stage, ...]
    windows_per_step: tuple[int, ...]
    num_windows: tuple[int, ...]
    num_dropped: tuple[int, ...]
    train_bases: int
    """A, C, G and T of the training part; of the other two as well."""
    unread_bases: tuple[int, ...]
    """Of these, by stage, those that lie in no window of it."""
    never_read_bases: int
    """Of these, those that lie in no window of any stage."""
    valid_bases: int
    test_bases: int
    machine: Machine | None
    """The GPU that it is planned for; none is a CPU."""
    memory: tuple[Memory, ...]
    """Of a step of each stage, on a GPU."""
    bases_per_second: tuple[float, ...]
    """Of each stage; NaN where it is not known."""

    @property
    def hours(self) -> tuple[float, ...]:
        """Of the training of each stage."""
        num_gpus = 1 if self.machine is None else self.machine.num_gpus
        return tuple(
            # the busiest GPU decides: a window is not shared among several
            stage.num_steps * -(-windows // num_gpus) * stage.window_bases / rate / 3600
            for stage, windows, rate in zip(self.stages, self.windows_per_step, self.bases_per_second, strict=True)
        )

    @property
    def where(self) -> str:
        """Name the device."""
        if self.machine is None:
            return self.config.device
        return self.machine.name if self.machine.num_gpus == 1 else f"{self.machine.num_gpus} x {self.machine.name}"

    @property
    def cut(self) -> Cut:
        """How every step is cut up."""
        training = self.config.training
        return _cut_of(training)

    @property
    def num_bases(self) -> int:
        """Bases that the run reads, windows seen again counted again."""
        return sum(
            stage.num_steps * windows * stage.window_bases
            for stage, windows in zip(self.stages, self.windows_per_step, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """Where the run is and what came out."""

    out: Path
    num_steps: int
    num_skipped: int
    seconds: float
    train_bases_per_second: float
    model: RegionScores
    rows: tuple[Row, ...]
    """Model, Markov models and uniform on the same held-out bases, best first."""
    markov: tuple[dict[str, Any], ...]
    """Every order: plain and interpolated bits per base."""
    loss_picture: Path
    best_plain_order: int | None
    best_interpolated_order: int | None


def resolve(config: PretrainConfig, machine: Machine | None = None) -> PretrainConfig:
    """Replace every 'auto' by what it means on this machine, so that a resumed run does not choose anew.

    Args:
        config: What was asked for.
        machine: Plan for this GPU, which need not be here.
    """
    if not config.model.causal:
        raise InputError(
            f"pretraining predicts the next base, and the pattern {config.model.pattern!r} has layers that read both ways, "
            f"which have seen it; take layers that read forward"
        )
    if machine is not None and config.device in ("auto", "cuda"):
        device = "cuda"
    else:
        device = find_device(config.device)
    if device == "cpu":
        check_main_memory(config.model)
    precision = find_precision(config.precision, device)
    implementation = implementation_for(config.model, device, config.implementation, here=machine is None)
    training = config.training
    if device == "cuda" and machine is None:
        machine = this_gpu()
    training = replace(training, **asdict(_choose_cut(config, precision, machine)))
    data = config.data
    genome = data.genome if data.genome == DEMO else str(Path(data.genome).absolute())  # a run is resumed from anywhere
    data = replace(data, genome=genome, split=None if data.split is None else str(Path(data.split).absolute()))
    return replace(
        config, data=data, training=training, device=device, precision=precision, implementation=implementation
    )


def _choose_cut(config: PretrainConfig, precision: str, machine: Machine | None) -> Cut:
    """Fill in what the configuration leaves open."""
    training, layers = config.training, len(config.model.pattern)
    again = None if training.recomputed_layers is None else min(training.recomputed_layers, layers)
    if training.piece_bases is not None:
        return Cut(
            piece_bases=training.piece_bases, kept_pieces=training.kept_pieces or 1, recomputed_layers=again or 0
        )
    return choose_cut(
        config.model,
        precision,
        machine,
        lengths(training.length_warmup, training.seq_len),
        training.bases_per_step,
        kept_pieces=training.kept_pieces,
        recomputed_layers=again,
    )


def _plan(
    config: PretrainConfig, genome: GenomeStore, split: Split, machine: Machine | None = None
) -> tuple[Plan, TrainingSteps]:
    training = config.training
    check_length(genome, split, training.seq_len)
    stages = plan_stages(training.length_warmup, training.seq_len, training.num_steps)
    windows = tuple(
        plan_windows(genome, split, stage.window_bases, rule=config.data.window_rule, max_n=config.data.max_n)
        for stage in stages
    )
    steps = TrainingSteps(
        genome,
        stages,
        windows,
        bases_per_step=max(training.bases_per_step, training.seq_len),
        seed=config.seed,
        policy=config.data.policy,
    )
    windows_per_step = tuple(steps.windows_per_step(i) for i in range(len(stages)))
    if machine is None and config.device == "cuda":
        machine = this_gpu()
    memory: tuple[Memory, ...] = ()
    cut = _cut_of(training)
    if machine is not None and config.implementation == "triton":  # nothing else keeps so little
        memory = tuple(
            memory_of_step(config.model, config.precision, cut, stage.window_bases, windows_)
            for stage, windows_ in zip(stages, windows_per_step, strict=True)
        )
        _check_memory(config, machine, stages, memory)
    plan = Plan(
        config=config,
        machine=machine,
        memory=memory,
        bases_per_second=_speeds(config, machine, stages, windows_per_step, cut),
        num_parameters=num_parameters(config.model),
        stages=stages,
        windows_per_step=windows_per_step,
        num_windows=tuple(len(w) for w in windows),
        num_dropped=tuple(w.num_too_many_n + w.num_no_room for w in windows),
        train_bases=known_bases(genome, split.train),
        unread_bases=tuple(_unread(genome, split, [some]) for some in windows),
        never_read_bases=_unread(genome, split, windows),
        valid_bases=known_bases(genome, split.valid),
        test_bases=known_bases(genome, split.test),
    )
    for name, most in (("valid", config.evaluation.valid_bases), ("test", config.evaluation.test_bases)):
        if split.part(name):
            sample_of(config, genome, split, name, most)  # what cannot be scored is refused here
    return plan, steps


def _unread(genome: GenomeStore, split: Split, windows: Sequence[Windows]) -> int:
    """Count the known bases of the training part that lie in none of these windows."""
    return known_bases(genome, subtract(split.train, read_by(genome, windows)))


def sample_of(config: PretrainConfig, genome: GenomeStore, split: Split, part: str, most: int) -> list[Stretch]:
    """Choose what is scored of a part of the split."""
    return sample(
        genome, split.part(part), most, context=config.training.seq_len, start_token=config.data.policy.start_token,
        what=f"the {part} part",
    )  # fmt: skip


def _cut_of(training: TrainingConfig) -> Cut:
    assert training.piece_bases is not None and training.kept_pieces is not None
    return Cut(
        piece_bases=training.piece_bases,
        kept_pieces=training.kept_pieces,
        recomputed_layers=training.recomputed_layers or 0,
    )


def _check_memory(config: PretrainConfig, machine: Machine, stages: Sequence[Stage], memory: Sequence[Memory]) -> None:
    for stage, parts in zip(stages, memory, strict=True):
        if parts.total <= machine.budget:
            continue
        cut, training = _cut_of(config.training), config.training
        piece = longest_piece_that_fits(
            config.model, config.precision, machine, [s.window_bases for s in stages], training.bases_per_step, cut
        )
        advice = "" if piece is None else f"--piece-len {piece} would fit, and "
        raise InputError(
            f"the stage of {stage.window_bases:,} bases needs {parts.total / 2**30:.1f} GiB and {machine.budget / 2**30:.1f} "
            f"GiB are free for it on {machine.name}: {advice}--piece-len auto chooses what does"
        )


def _speeds(
    config: PretrainConfig, machine: Machine | None, stages: Sequence[Stage], windows: Sequence[int], cut: Cut
) -> tuple[float, ...]:
    """Give bases a second of each stage: measured here, or from the table of a GPU that is not here."""
    found: list[float] = []
    # three stages are measured, those between go as the one before them
    chosen = {0, (len(stages) - 1) // 2, len(stages) - 1}
    for number, (stage, windows_per_step) in enumerate(zip(stages, windows, strict=True)):
        if number not in chosen:
            found.append(found[-1])
            continue
        if machine is not None and not machine.present:
            usual = config.precision == "bf16" and config.implementation == "triton"
            speed = tabled_speed(config.model, machine) if usual else None
        else:
            speed = measure_or_none(
                config.model,
                config.implementation,
                config.device,
                config.precision,
                stage.window_bases,
                cut,
                windows_per_step,
            )
        seconds = float("nan")
        if speed is not None:
            seconds = seconds_a_base(
                speed, stage.window_bases, cut, len(config.model.pattern), windows_per_step * stage.window_bases
            )
        found.append(1.0 / seconds)
    return tuple(found)


def plan(
    config: PretrainConfig,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Check everything and say what a run would do, without training and without writing a run directory.

    Args:
        config: What is asked for.
        on_progress: Called while a FASTA is packed.
        warn: Called with a sentence when something deserves attention.
        machine: Plan for this GPU, which need not be here.

    Raises:
        InputError: Something in the configuration or the data is at fault, or a stage does not fit in memory.
    """
    config = resolve(config, machine)
    if machine is not None and config.device != "cuda":
        raise InputError(f"a plan for {machine.name} is one for a GPU; leave device {config.device!r} out")
    genome = load_genome(config.data.genome, on_progress, warn, rna=config.data.rna)
    result, steps = _plan(config, genome, load_split(genome, config.data, warn), machine)
    steps[0]  # one real batch
    return result


def config_of_run(out: Path) -> PretrainConfig:
    """Read the resolved configuration of a run."""
    path = out / "config.yaml"
    return read_config(PretrainConfig, load_yaml(path), str(path))


def _check_same(old: PretrainConfig, new: PretrainConfig, out: Path) -> None:
    def differences(a: Any, b: Any, path: tuple[str, ...]) -> list[str]:
        if isinstance(a, dict):
            return [d for key in a for d in differences(a[key], b[key], (*path, key))]
        if a == b or path in MAY_DIFFER_ON_RESUME:
            return []
        return [f"{'.'.join(path)} was {a!r} and is now {b!r}"]

    found = differences(asdict(old), asdict(new), ())
    if found:
        raise InputError(
            f"--resume: the run in {out} has another configuration: {'; '.join(found)}; leave these as they were"
        )


def _resume(out: Path, resume_from: Path | None) -> checkpoint.Checkpoint | None:
    folder = out / "checkpoints"
    if resume_from is None:
        return newest_intact(folder)
    return checkpoint.load(resume_from)


def _identity(config: PretrainConfig, genome: GenomeStore, split: Split) -> dict[str, str]:
    """Give hashes of all that a checkpoint must have in common with the run that goes on from it."""
    values = asdict(config)
    before = asdict(config)
    optimizer, num_steps = config.optimizer, config.training.num_steps
    if optimizer.warmup_steps(num_steps) == replace(optimizer, fewest_warmup_steps=0).warmup_steps(num_steps):
        for one in (
            values,
            before,
        ):  # where it changes nothing, checkpoints from before there was such a setting are known
            del one["optimizer"]["fewest_warmup_steps"]
    for one in (values, before):  # nor is there a trace of a setting that is as it was before there was one
        if not one["data"]["rna"]:
            del one["data"]["rna"]
    for section, key in MAY_DIFFER_ON_RESUME:
        del values[section][key]
        if key != "piece_bases":
            del before[section][key]

    def sha256(content: Any) -> str:
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    return {
        "config_sha256": sha256(values),
        # of checkpoints from before pieces might differ
        "config_sha256_with_pieces": sha256(before),
        "genome_sha256": genome.manifest.bases_sha256,
        "split_sha256": sha256(run_directory.describe_split(split)),
    }


def run(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    resume_from: Path | None = None,
    overwrite: bool = False,
    callbacks: Sequence[L.Callback] = (),
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_phase: Callable[[str], None] | None = None,
) -> PretrainResult:
    """Pretrain a model.

    Args:
        config: What to do; 'auto' values are resolved first.
        out: The run directory.
        resume: Go on with the run in `out` from its newest checkpoint, or from its start if there is none.
        resume_from: Go on from this checkpoint instead.
        overwrite: Replace the run in `out`.
        callbacks: More Lightning callbacks, such as a progress bar.
        on_progress: Called while a FASTA is packed.
        warn: Called with a sentence when something deserves attention.
        on_plan: Called with the plan before the first step.
        on_phase: Called with a few words when the work after training goes on.

    Raises:
        InputError: Something in the configuration, the data or the run directory is at fault.
        StoppedError: Three steps in a row were not finite.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
    """
    config = resolve(config)
    resume = resume or resume_from is not None
    fresh = not out.exists()
    genome = load_genome(config.data.genome, on_progress, warn, rna=config.data.rna)
    split = load_split(genome, config.data, warn)
    the_plan, steps = _plan(config, genome, split)  # before the directory is made: a bad request leaves nothing behind
    lock = run_directory.prepare(out, resume=resume, overwrite=overwrite)
    try:
        return _run_locked(
            config, out, resume, resume_from, callbacks, genome, split, the_plan, steps, on_plan, on_phase, warn
        )
    finally:
        lock.release()
        if fresh and not (out / "config.yaml").exists():
            (out / "run.lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it may be gone
                out.rmdir()


def _run_locked(
    config: PretrainConfig,
    out: Path,
    resume: bool,
    resume_from: Path | None,
    callbacks: Sequence[L.Callback],
    genome: GenomeStore,
    split: Split,
    the_plan: Plan,
    steps: TrainingSteps,
    on_plan: Callable[[Plan], None] | None,
    on_phase: Callable[[str], None] | None,
    warn: Callable[[str], None] | None,
) -> PretrainResult:
    started = time.monotonic()
    identity = _identity(config, genome, split)
    saved = None
    if resume:
        old = config_of_run(out)
        _check_same(old, config, out)
        saved = _resume(out, resume_from)
        for name, what in (
            ("genome_sha256", f"{config.data.genome} holds other bases"),
            ("split_sha256", f"the split {config.data.split or ''} has other intervals"),
            ("config_sha256", "the checkpoint was written with another configuration"),
        ):
            known = {identity[name], identity[f"{name}_with_pieces"] if name == "config_sha256" else identity[name]}
            if saved is not None and saved.counters.get(name) not in known:
                raise InputError(f"--resume: {what} than when the run in {out} was started; put back what it was")
    if on_plan:
        on_plan(the_plan)
    if not (out / "config.yaml").exists() or not resume or config_of_run(out) != config:
        write_text(out / "config.yaml", dump_yaml(config))

    def keep_smaller(piece_bases: int, kept_pieces: int) -> None:
        smaller = replace(config.training, piece_bases=piece_bases, kept_pieces=kept_pieces)
        write_text(out / "config.yaml", dump_yaml(replace(config, training=smaller)))

    torch.manual_seed(config.seed)
    model = DnaMamba(config.model).use_implementation(config.implementation)
    trained = read_by(genome, steps.windows)
    policy = config.data.policy
    trained_on = _by_contig(trained)
    about = asdict(policy), config.training.seq_len, trained_on, fingerprints(genome, trained_on)
    counters = None
    if saved is not None:
        copy_tensors(model, saved.model, str(out / "checkpoints"))
        counters = _counters(
            {k: v for k, v in saved.counters.items() if k not in identity},
            (len(the_plan.stages), len(genome.contigs)),
            len(steps),
            str(out / "checkpoints"),
        )
        folder = out / "checkpoints"
        set_aside([p for p in checkpoint.list_checkpoints(folder) if checkpoint.step_of(p) > counters.step])
        best = None if counters.best_step is None else checkpoint.path_of_step(folder, counters.best_step)
        if best is not None and best.is_dir():  # model/ may be ahead of the checkpoint that the run goes on from
            best_model = DnaMamba(config.model)
            copy_tensors(best_model, checkpoint.load(best).model, str(best))
            save_pretrained(best_model, out / "model", *about)
        elif best is not None and not can_be_read(out / "model", from_pretrained):
            if warn:
                warn(
                    f"the best model, of step {counters.best_step:,}, is neither in {folder} nor in {out / 'model'}: the "
                    f"newest takes its place, and the next validation is the first to compare with"
                )
            counters.best_valid_bits, counters.best_step = math.inf, None
            save_pretrained(model, out / "model", *about)
    module = LanguageModel(
        model,
        config.optimizer,
        policy,
        num_steps=len(steps),
        stage_lengths=[stage.window_bases for stage in the_plan.stages],
        contig_names=[contig.name for contig in genome.manifest.contigs],
        piece_bases=the_plan.cut.piece_bases,
        kept_pieces=the_plan.cut.kept_pieces,
        counters=counters,
        say=warn,
        on_smaller=keep_smaller,
    )
    model.backbone.recomputed_layers = the_plan.cut.recomputed_layers
    valid = sample_of(config, genome, split, "valid", config.evaluation.valid_bases)

    def validate(module: LanguageModel) -> Score:
        return score_regions(module.model, genome, valid, policy).total

    def save_best(module: LanguageModel) -> None:
        save_pretrained(module.model, out / "model", *about)

    def record(module: LanguageModel) -> None:
        names = [contig.name for contig in genome.manifest.contigs]
        seen = [dict(zip(names, row, strict=True)) for row in module.counters.bases_seen]
        stages = [{**asdict(stage), "bases_seen": s} for stage, s in zip(the_plan.stages, seen, strict=True)]
        write_json(
            out / "run.json",
            {
                "command": "pretrain",
                "versions": run_directory.versions(),
                "hardware": run_directory.hardware(config.device),
                "seed": config.seed,
                "genome": run_directory.describe_genome(genome) | {"rna": config.data.rna},
                "split": run_directory.describe_split(split),
                "policy": asdict(policy),
                "stages": stages,
                "step": module.counters.step,
                "num_steps": module.num_steps,
                "skipped_steps": module.counters.skipped,
                "best_step": module.counters.best_step,
                "best_valid_bits_per_base": module.counters.best_valid_bits if module.counters.best_step else None,
                "num_parameters": the_plan.num_parameters,
            },
        )

    record(module)
    recorder = RunRecorder(
        out,
        validate=validate,
        save_best=save_best,
        on_checkpoint=record,
        extra_counters=identity,
        checkpoint_every_steps=config.training.checkpoint_every_steps,
        validate_every_steps=config.training.validate_every_steps,
        keep_checkpoints=config.training.keep_checkpoints,
        resume_from=saved,
    )
    first_step, bases_before = module.counters.step, sum(map(sum, module.counters.bases_seen))
    if first_step < len(steps):
        data = PretrainingData(
            steps, first_step=first_step, num_workers=_num_workers(config), pin_memory=config.device == "cuda"
        )
        try:
            _fit(config, out, module, data, [recorder, *callbacks])
        except StoppedError as error:
            saved_paths = checkpoint.list_checkpoints(recorder.checkpoints)
            good = f"the last good checkpoint is {saved_paths[-1]}" if saved_paths else "no checkpoint was saved before"
            raise StoppedError(f"{error}; {good}") from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise StoppedError(
                f"a process that reads windows was stopped from outside ({' '.join(str(error).split())[:120]}), perhaps for "
                f"want of memory; go on with --out {out} --resume, with --num-workers 0 if it happens again"
            ) from error
    if recorder.received is not None:
        raise Interrupted(recorder.received, out, module.counters.step)
    seconds = time.monotonic() - started
    save_pretrained(module.model, out / "model-last", *about)
    return _finish(config, out, module, genome, split, the_plan, trained, seconds, bases_before, on_phase, warn)


def _by_contig(intervals: Sequence[Interval]) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for interval in intervals:
        found.setdefault(interval.contig, []).append([interval.start, interval.end])
    return found


def _counters(values: dict[str, Any], shape: tuple[int, int], num_steps: int, where: str) -> Counters:
    """Read the counters of a checkpoint; hashes say that nothing changed, not that it was ours."""
    if "best_valid_bits" in values and values["best_valid_bits"] is None:  # JSON has no infinity
        values = {**values, "best_valid_bits": math.inf}
    seen, best = values.get("bases_seen"), values.get("best_step")
    table = (
        isinstance(seen, list)
        and len(seen) == shape[0]
        and all(isinstance(row, list) and len(row) == shape[1] and all(type(n) is int for n in row) for row in seen)
    )
    numbers = [
        values.get(name) for name in ("step", "skipped", "skipped_in_a_row", *([] if best is None else ["best_step"]))
    ]
    right = table and all(type(n) is int and 0 <= n <= num_steps for n in numbers)
    if (
        not right
        or type(values.get("best_valid_bits")) is not float
        or set(values) != set(Counters.__dataclass_fields__)
    ):
        raise InputError(f"{where}: counters.json holds something else than where a run of {num_steps:,} steps stands")
    return Counters(**values)


def _num_workers(config: PretrainConfig) -> int:
    if config.data.num_workers is not None:
        return config.data.num_workers
    return 2 if config.device == "cuda" else 0


def _fit(
    config: PretrainConfig, out: Path, module: LanguageModel, data: PretrainingData, callbacks: list[L.Callback]
) -> None:
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # adverts, and devices that the plan has named already
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer = L.Trainer(
            accelerator="cpu" if config.device == "cpu" else "gpu",
            devices=1,
            precision="32-true" if config.precision == "fp32" else "bf16-mixed",
            max_epochs=1,
            logger=TensorBoardLogger(str(out), name="", version="tensorboard"),
            callbacks=callbacks,
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        with _gpus_left_alone() if config.device == "cpu" else contextlib.nullcontext():
            trainer.fit(module, data)


@contextlib.contextmanager
def _gpus_left_alone() -> Iterator[None]:
    """Keep Lightning from saving the random states of GPUs before it trains on the CPU: asking makes a context on each."""
    usual = lightning_trainer.isolate_rng
    lightning_trainer.isolate_rng = partial(usual, include_cuda=False)
    try:
        yield
    finally:
        lightning_trainer.isolate_rng = usual


def _finish(
    config: PretrainConfig,
    out: Path,
    module: LanguageModel,
    genome: GenomeStore,
    split: Split,
    the_plan: Plan,
    trained: Sequence[Interval],
    seconds: float,
    bases_before: int,
    on_phase: Callable[[str], None] | None,
    warn: Callable[[str], None] | None,
) -> PretrainResult:
    """Score the model, then fit what it is compared with, then draw: what is known is written before the next begins."""
    say = on_phase or (lambda words: None)
    identity = _identity(config, genome, split) | {"step": str(module.counters.step)}
    known = _read_results(out / "results.json", identity)
    if known is not None:
        say("the run had ended; its results are read from results.json")
        scores, rows, markov, best = known
    else:
        part = "test" if split.test else "valid"
        test = sample_of(config, genome, split, part, config.evaluation.test_bases)
        say("scoring held-out bases")
        model, _ = from_pretrained(out / "model")
        model.use_implementation(config.implementation).to(config.device)
        scores = score_regions(model, genome, test, config.data.policy)
        rows = [
            Row(name=config.model.title, bits_per_base=scores.total.bits_per_base,
                detail=f"{the_plan.num_parameters:,} parameters"),
            Row(name="uniform", bits_per_base=2.0, detail="a guess among A, C, G, T"),
        ]  # fmt: skip
        markov, best = (), (None, None)
        complete = config.evaluation.markov_max_order < 0
        _write_results(out / "results.json", part, scores, rows, markov, best, identity if complete else {})
        if not complete:
            say("fitting Markov models on the same training bases")
            markov, plain, interpolated = markov_table(config, genome, split, trained, test, scores.total.num_bases)
            best = plain, interpolated
            rows += [
                Row(name=f"Markov order {plain}, plain", bits_per_base=markov[plain]["test_plain"],
                    detail="order chosen on validation"),
                Row(name=f"Markov order {interpolated}, interpolated", bits_per_base=markov[interpolated]["test_interpolated"],
                    detail=f"order and a = {markov[interpolated]['strength']:g} chosen on validation"),
            ]  # fmt: skip
            rows.sort(key=lambda row: row.bits_per_base)
            _write_results(out / "results.json", part, scores, rows, markov, best, identity)
    trained_bases = sum(map(sum, module.counters.bases_seen)) - bases_before
    result = PretrainResult(
        out=out,
        num_steps=module.counters.step,
        num_skipped=module.counters.skipped,
        seconds=seconds,
        train_bases_per_second=trained_bases / max(seconds, 1e-9),
        model=scores,
        rows=tuple(rows),
        markov=tuple(markov),
        loss_picture=out / "loss.png",
        best_plain_order=best[0],
        best_interpolated_order=best[1],
    )
    if known is None or not (out / "loss.png").exists() or not (out / "report.png").exists():
        _draw(config, out, the_plan, result, warn)
    return result


def _draw(
    config: PretrainConfig, out: Path, the_plan: Plan, result: PretrainResult, warn: Callable[[str], None] | None
) -> None:
    """Draw the run; a picture that fails is a remark."""
    from dna_mamba.pipelines.pictures import draw_losses, draw_or_say, draw_report

    mine = result.model.total.bits_per_base
    reference = {row.name: row.bits_per_base for row in result.rows if row.is_baseline}
    draw_or_say(
        lambda: draw_losses(out / "metrics.csv", out / "loss.png", reference, config.model.title, mine),
        out / "loss.png", warn,
    )  # fmt: skip
    stages = zip(the_plan.stages, the_plan.windows_per_step, strict=True)
    stage_words = "\n".join(
        f"  {stage.num_steps:,} steps of {count:,} x {stage.window_bases:,} bases" for stage, count in stages
    )
    words = (
        f"{config.model.title}, {the_plan.num_parameters:,} parameters\non {the_plan.where}, {config.precision}\n"
        f"{stage_words}\nheld-out bits per base: {mine:.4f}\n"
        + "\n".join(f"  {row.name}: {row.bits_per_base:.4f}" for row in result.rows)
    )
    draw_or_say(
        lambda: draw_report(out / "metrics.csv", out / "speed.csv", out / "report.png", words), out / "report.png", warn
    )


def _write_results(
    path: Path,
    part: str,
    scores: RegionScores,
    rows: Sequence[Row],
    markov: Sequence[dict[str, Any]],
    best: Sequence[int | None],
    identity: dict[str, str],
) -> None:
    """Write results.json; without an identity it is one that more is to come to."""
    write_json(
        path,
        {
            "held_out": part,
            "complete": bool(identity),
            "bases_scored": scores.total.num_bases,
            "table": [{**asdict(row), "perplexity": row.perplexity} for row in rows],
            "markov": list(markov),
            "best_markov_orders": list(best),
            "scores": asdict(scores),
            "identity": identity,
        },
    )


Known = tuple[RegionScores, list[Row], tuple[dict[str, Any], ...], Sequence[int | None]]


def _read_results(path: Path, identity: dict[str, str]) -> Known | None:
    """Read results that were completed by this very run; anything else is made anew."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not identity or values["identity"] != identity:
            return None
        strata = {name: Score(**values["scores"][name]) for name in ("total", "upper_case", "soft_masked", "after_n")}
        scores = RegionScores(**strata, num_n=values["scores"]["num_n"])
        rows = [Row(**{name: row[name] for name in ("name", "bits_per_base", "detail")}) for row in values["table"]]
        return scores, rows, tuple(values["markov"]), values["best_markov_orders"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def markov_table(
    config: PretrainConfig,
    genome: GenomeStore,
    split: Split,
    train: Sequence[Interval],
    test: Sequence[Stretch],
    num_targets: int,
) -> tuple[tuple[dict[str, Any], ...], int, int]:
    """Fit Markov models on what the model can read in training and score them on the model's targets.

    Args:
        config: Of the run.
        genome: The store.
        split: Its parts.
        train: The bases that lie in training windows.
        test: What the model was scored on.
        num_targets: Bases that the model scored.

    Returns:
        A row an order, the best plain order and the best interpolated order, both chosen on validation.
    """
    both = config.data.policy.reverse_complement > 0
    start_token = config.data.policy.start_token  # then the model scores the first base of a region too
    models = MarkovModels.fit(genome, train, both_strands=both, max_order=config.evaluation.markov_max_order)

    def stretches(chosen: Sequence[Stretch]) -> list[tuple[np.ndarray, int]]:
        return [
            (
                genome.stored(one.contig, one.read_from, one.end) & BASE_BITS,
                one.first_target(start_token) - one.read_from,
            )
            for one in chosen
        ]

    most = min(config.evaluation.test_bases, MARKOV_CHOICE_BASES)
    on_valid = models.score(stretches(sample_of(config, genome, split, "valid", most)))
    strength_of_order = np.argmin(on_valid.interpolated, axis=0)
    used = np.unique(strength_of_order)
    on_test = models.score(stretches(test), strengths=[STRENGTHS[n] for n in used])
    assert on_test.num_targets == num_targets, "the models are scored on the same bases"
    best_plain = int(np.argmin(on_valid.plain))
    best_of_order = on_valid.interpolated.min(axis=0)
    best_interpolated = int(np.argmin(best_of_order))
    place_of = {int(n): place for place, n in enumerate(used)}
    rows = tuple(
        {
            "order": k,
            "valid_plain": float(on_valid.plain[k]),
            "test_plain": float(on_test.plain[k]),
            "valid_interpolated": float(best_of_order[k]),
            "test_interpolated": float(on_test.interpolated[place_of[int(strength_of_order[k])], k]),
            "strength": float(STRENGTHS[int(strength_of_order[k])]),
        }
        for k in range(models.max_order + 1)
    )
    return rows, best_plain, best_interpolated
