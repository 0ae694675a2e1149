"""Fine-tune a model for a task at one or more window lengths, beside baselines on the same windows."""

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from dna_mamba.data.objectives import Labels
from dna_mamba.data.steps import DrawnSteps
from dna_mamba.device import find_device, find_precision
from dna_mamba.errors import InputError, Interrupted, TerminatedError
from dna_mamba.files import write_json, write_text
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import (
    can_be_read,
    copy_tensors,
    from_pretrained,
    load_sequence_model,
    save_sequence_model,
)
from dna_mamba.model.implementation import implementation_for
from dna_mamba.model.sequence_model import SequenceModel
from dna_mamba.pipelines import run_directory
from dna_mamba.pipelines.config_files import dump_yaml
from dna_mamba.pipelines.configs.finetune import SCRATCH, FinetuneRunConfig, config_of_run
from dna_mamba.pipelines.evaluate import find_model
from dna_mamba.pipelines.machines import this_gpu
from dna_mamba.pipelines.pictures import draw_or_say
from dna_mamba.pipelines.planning import check_main_memory, choose_cut
from dna_mamba.pipelines.tasks.task import STATISTICS, AnyTask, Reader, ResultRow, Say, Task, Trained
from dna_mamba.reading.outputs import standardize
from dna_mamba.training import checkpoint
from dna_mamba.training.checkpoint import newest_intact
from dna_mamba.training.counters import Counters, read_counters
from dna_mamba.training.metrics_csv import finetuning
from dna_mamba.training.schedule import Recent, Schedule, Validation
from dna_mamba.training.step import Stepper

if TYPE_CHECKING:
    import lightning.pytorch as L

Config = TypeVar("Config", bound=FinetuneRunConfig)
MAY_DIFFER_ON_RESUME = ("checkpoint_every_steps", "num_workers", "piece_bases")


@dataclass(frozen=True, kw_only=True)
class LengthResult:
    """What one model and its baselines reached."""

    seq_len: int
    began_with: str
    """Checkpoint, or 'scratch'."""
    rows: tuple[ResultRow, ...]
    seconds: float
    """Of training, by this process."""
    bases: int
    """Seen in them: none where an earlier process had done all."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """All lengths."""

    out: Path
    labels: tuple[str, ...]
    lengths: tuple[LengthResult, ...]
    simulated: bool = False


def resolve(config: Config) -> Config:
    """Replace 'auto' by what it means on this machine, and the checkpoint by its absolute path."""
    device = find_device(config.device)
    begin = config.checkpoint
    if begin is not None and Path(begin).exists():
        begin = str(Path(begin).absolute())
    return replace(
        config,
        checkpoint=begin,
        model=SCRATCH if begin is None and config.model is None else config.model,
        device=device,
        precision=find_precision(config.precision, device),
    )


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a training begins with."""

    model: SequenceModel
    language_model: DnaMamba
    name: str


def _start(config: FinetuneRunConfig, task: AnyTask, length: int) -> _Start:
    torch.manual_seed(config.seed)
    if config.checkpoint is None:
        sizes = config.model or SCRATCH
        check_main_memory(sizes)
        language_model, name = DnaMamba(sizes), "scratch"
    else:
        name = config.checkpoint.replace("{seq_len}", str(length))
        directory, _ = find_model(Path(name))
        language_model, policy = from_pretrained(directory)
        if policy.get("start_token"):
            raise InputError(
                f"{name} was trained with a start token before each window, which fine-tuning does not write; take another "
                f"checkpoint"
            )
    model = SequenceModel.from_language_model(language_model, task.head)
    model.backbone.requires_grad_(not config.frozen)
    return _Start(model=model, language_model=language_model, name=name)


def check(config: FinetuneRunConfig, task: AnyTask, warn: Say | None = None) -> dict[int, str]:
    """Try all that can go wrong before anything is written; give what each length begins with, and say what is left out.

    Raises:
        InputError: A checkpoint is missing, or there are not enough windows of a length.
    """
    begins = {}
    for length in config.seq_lens:
        begins[length] = _start(config, task, length).name
        task.check(length, warn)
    return begins


def plan_as_text(config: FinetuneRunConfig, task: AnyTask, warn: Say | None = None) -> str:
    """Check everything that a run needs, and say what it would do."""
    lines = task.plan()
    for length, began_with in check(config, task, warn).items():
        recipe = config.recipe_of(length)
        stages: dict[int, int] = {}
        for window in recipe.epoch_lengths()[: recipe.epochs]:
            stages[window] = stages.get(window, 0) + 1
        steps = ", ".join(
            f"{count} x {recipe.steps_per_epoch:,} steps of {window:,}" for window, count in stages.items()
        )
        bases = sum(window * count for window, count in stages.items()) * recipe.steps_per_epoch * recipe.batch
        lines.append(f"windows of {length:,} bases from {began_with}: {steps}; batch {recipe.batch}, {bases:,} bases")
    return "\n".join(lines)


def run(
    config: Config,
    task: Task[Config],
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    make_callbacks: Callable[[], Sequence["L.Callback"]] = list,
    say: Say | None = None,
    warn: Say | None = None,
) -> FinetuneResult:
    """Fine-tune and score at every length, and write a run directory.

    Args:
        config: What to do, resolved.
        task: What to teach.
        out: The run directory.
        resume: Go on with the run in `out`.
        overwrite: Replace the run in `out`.
        make_callbacks: Gives more Lightning callbacks, such as a progress bar, when a training begins.
        say: Called with what is being done.
        warn: Called with sentences that deserve attention.

    Raises:
        InputError: Something in the configuration, the data or the run directory is at fault.
        StoppedError: Three steps in a row were not finite.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
    """
    remark = task.remark()
    if warn and remark:
        warn(remark)
    begins = check(config, task, warn)
    lock = run_directory.prepare(out, resume=resume, overwrite=overwrite)
    length = 0
    try:
        if resume:
            _check_same(config, task, out)
        else:
            write_text(out / "config.yaml", dump_yaml(config))
        if not (out / "run.json").exists():
            _record(config, task, begins, out)
        found = []
        for length in config.seq_lens:
            folder = out / "lengths" / str(length)
            one = _read_result(folder / "results.json") if resume else None
            if one is None:
                one = _Length(config, task, length, folder, say or (lambda words: None)).run(resume, make_callbacks)
            found.append(one)
            gc.collect()  # a trainer and its callbacks know each other, and with them the model of this length
        result = FinetuneResult(out=out, labels=task.labels, lengths=tuple(found), simulated=task.simulated)
        write_json(
            out / "results.json",
            {"labels": list(task.labels), "simulated": task.simulated, "lengths": [asdict(one) for one in found]},
        )
        return result
    except TerminatedError as error:  # between trainings: what was trained is saved
        newest = checkpoint.list_checkpoints(out / "lengths" / str(length) / "checkpoints") if length else []
        raise Interrupted(error.number, out, checkpoint.step_of(newest[-1]) if newest else 0) from error
    finally:
        lock.release()


def _record(config: FinetuneRunConfig, task: AnyTask, begins: dict[int, str], out: Path) -> None:
    """Write run.json: what was run, on what."""
    write_json(
        out / "run.json",
        {
            "command": task.command,
            "versions": run_directory.versions(),
            "hardware": run_directory.hardware(config.device),
            "seed": config.seed,
            "labels": list(task.labels),
            "begins_with": {str(length): name for length, name in begins.items()},
            "identity": task.identity(),
            **task.describe(),
        },
    )


def _check_same(config: FinetuneRunConfig, task: AnyTask, out: Path) -> None:
    old = config_of_run(type(config), out)
    free = {name: getattr(config, name) for name in MAY_DIFFER_ON_RESUME}
    recipe = replace(old.recipe, seq_len=config.recipe.seq_len)  # which seq_lens decide
    if replace(old, device=config.device, recipe=recipe, **free) != config:
        raise InputError(
            f"--resume: these settings differ from those of {out}; leave them out, or choose another --out"
        )
    if not (out / "run.json").exists():
        return  # it was stopped before that was written
    try:
        recorded = json.loads((out / "run.json").read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{out / 'run.json'} cannot be read: {error}; choose another --out") from error
    if recorded != task.identity():
        raise InputError(f"--resume: the data or their split are no longer those of {out}; choose another --out")


def _read_result(path: Path) -> LengthResult | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not values.pop("complete", True):
            return None
        return LengthResult(**{**values, "rows": tuple(ResultRow.read(row) for row in values["rows"])})
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


class _Length:
    """One length of a run: trains its model, keeps the best, and collects what is held against it."""

    identity: dict[str, str] = {}  # noqa: RUF012 - never changed; run.json has what a resumed run is held against

    def __init__(self, config: FinetuneRunConfig, task: AnyTask, length: int, folder: Path, say: Say):
        self.config, self.task, self.length, self.folder, self.say = config, task, length, folder, say
        self.recipe = config.recipe_of(length)
        self.start = _start(config, task, length)
        self.model = self.start.model
        machine = this_gpu() if config.device == "cuda" else None
        bases = min(self.recipe.batch * length, 2**62)
        cut = choose_cut(self.model.config, config.precision, machine, [length], bases, kept_pieces=1)
        self.piece_bases = config.piece_bases or cut.piece_bases
        implementation = implementation_for(self.model.config, config.device)
        self.model.use_implementation(implementation).to(config.device)
        self.start.language_model.use_implementation(implementation)
        self.model.backbone.recomputed_layers = 0 if config.piece_bases else cut.recomputed_layers
        self.columns = finetuning(self.recipe.steps_per_epoch, self.model.counted, task.validation)
        self.first_step = 0
        """Steps that an earlier process had done."""
        self.since = 0.0
        """When the training, or its last epoch, began."""
        self.lengths = self.recipe.epoch_lengths()[: self.recipe.epochs]
        self.stepper = Stepper(
            self.model, Labels(), self.recipe.optimizer, num_steps=len(self.lengths) * self.recipe.steps_per_epoch,
            stage_lengths=list(dict.fromkeys(self.lengths)), contig_names=task.contig_names, piece_bases=self.piece_bases,
            say=say, advice="take a smaller model, or shorter windows (--seq-len)",
        )  # fmt: skip

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.config.device, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _reader(self, model: SequenceModel) -> Reader:
        pieces = self.stepper.piece_bases  # smaller than at first where memory ran out
        return Reader(model=model, length=self.length, piece_bases=pieces, autocast=self._autocast)

    def run(self, resume: bool, make_callbacks: Callable[[], Sequence["L.Callback"]]) -> LengthResult:
        """Train what is left to train, then score."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.task.write_windows(self.length, self.folder)
        started = time.monotonic()
        self._train(resume, make_callbacks)
        seconds = time.monotonic() - started
        epoch_of = (step // self.recipe.steps_per_epoch for step in range(self.first_step, self.stepper.num_steps))
        bases = self.recipe.batch * sum(self.lengths[epoch] for epoch in epoch_of)
        rows: list[ResultRow] = []

        def note(complete: bool) -> LengthResult:
            result = LengthResult(
                seq_len=self.length, began_with=self.start.name, rows=tuple(rows), seconds=seconds, bases=bases
            )
            write_json(self.folder / "results.json", {**asdict(result), "complete": complete})
            return result

        model, about = load_sequence_model(self.folder / "model")
        model.use_implementation(implementation_for(model.config, self.config.device)).to(self.config.device)
        trained = Trained(
            reader=self._reader(model), language_model=self.start.language_model, began_with=self.start.name,
            epoch=about.get("epoch", 0), device=self.config.device,
        )  # fmt: skip
        for some in self.task.rows(trained, self.say):  # each is on the disk before the next is worked on
            rows += some
            note(False)
        result = note(True)
        title = f"{self.model.config.title} on windows of {self.length:,} bases"
        draw_or_say(lambda: self.task.draw_pictures(self.folder, title), self.folder, self.say)
        return result

    def _train(self, resume: bool, make_callbacks: Callable[[], Sequence["L.Callback"]]) -> None:
        """Do the steps that are left."""
        saved = newest_intact(self.folder / "checkpoints", "move it away to go on from {}") if resume else None
        if saved is not None:
            self._put_back(saved)
        elif self.recipe.standardize_windows:
            with self._autocast():
                standardize(
                    self.model, lambda i: self.task.draw(self.length, 0, i, STATISTICS).stored_T,
                    self.recipe.standardize_windows, length=self.length, piece_bases=self.piece_bases,
                )  # fmt: skip
        recipe, stepper = self.recipe, self.stepper
        self.first_step = stepper.counters.step
        if stepper.counters.step == stepper.num_steps:
            return
        from dna_mamba.training.run import train  # here: a run that had ended needs no training framework

        steps = DrawnSteps(self.task.draw, self.lengths, steps_per_epoch=recipe.steps_per_epoch, batch=recipe.batch)
        schedule = Schedule(
            validate_every_steps=recipe.steps_per_epoch, checkpoint_every_steps=self.config.checkpoint_every_steps,
            keep_checkpoints=2, keep_best=False, save_after_validation=True,
        )  # fmt: skip
        self.since = time.monotonic()
        train(
            stepper, steps, self, schedule, self.folder, device=self.config.device, precision=self.config.precision,
            num_workers=self.config.num_workers, saved=saved, callbacks=make_callbacks(), run=self.folder.parent.parent,
        )  # fmt: skip

    def _put_back(self, saved: checkpoint.Checkpoint) -> None:
        """Give the model the weights of a checkpoint, and see that model/ holds the best before it."""
        where = str(self.folder / "checkpoints")
        copy_tensors(self.model, saved.model, where)
        stepper = self.stepper
        shape = len(stepper.stage_lengths), len(stepper.contig_names)
        counters: Counters = read_counters(saved.counters, shape, stepper.num_steps, where)
        stepper.counters = counters
        self.say(f"going on after step {counters.step:,}")
        if counters.best is not None and not can_be_read(self.folder / "model", load_sequence_model):
            self.say(
                f"the best model is no longer in {self.folder / 'model'}: the newest takes its place, and the next "
                f"validation is the first to compare with"
            )
            counters.best = counters.best_step = None
            self.keep_best(counters.step)

    def validate(self, recent: Recent) -> Validation:
        """Answer the validation windows, and say what the epoch was like."""
        seconds = time.monotonic() - self.since
        found = self.task.validate(self._reader(self.model))
        epoch, num_epochs = -(-recent.last_step // self.recipe.steps_per_epoch), self.recipe.epochs
        pairs = zip(self.model.counted, recent.counts, strict=True)
        counted = "".join(f", {name} {recent.mean(total):.3f}" for name, total in pairs)
        self.say(
            f"{self.length:,} bases, epoch {epoch}/{num_epochs} (windows of {recent.window_bases:,}): loss "
            f"{recent.mean(recent.loss):.3f}{counted}, on validation {found.shown}; {recent.bases / max(1e-9, seconds):,.0f} "
            f"bases/s"
        )
        self.since = time.monotonic()
        return replace(found, counts=recent.window_bases == self.length)

    def keep_best(self, step: int) -> None:
        """Let the model as it is after a step stand in model/."""
        about = {
            "seq_len": self.length,
            **self.task.about_model(),
            "began_with": self.start.name,
            "epoch": step // self.recipe.steps_per_epoch,
            "piece_bases": self.stepper.piece_bases,
        }
        save_sequence_model(self.model, self.folder / "model", about)

    def on_checkpoint(self) -> None:
        """Nothing else is written."""
