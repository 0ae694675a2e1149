"""What a run writes and shows while it trains: metrics, validation, checkpoints, signals, a progress bar."""

import contextlib
import csv
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TextIO

import lightning.pytorch as L
import torch

from dna_mamba import signals
from dna_mamba.errors import TerminatedError
from dna_mamba.model.checkpoints.native import unshared_tensors
from dna_mamba.progress import Line
from dna_mamba.training import checkpoint
from dna_mamba.training.metrics_csv import SPEED_COLUMNS, UNUSUAL_COLUMNS, Columns, cut_metrics, read_metrics
from dna_mamba.training.module import TrainingModule
from dna_mamba.training.schedule import Recent, Schedule, Validation
from dna_mamba.training.spikes import SpikeDetector
from dna_mamba.training.step import NotFiniteError, StepMetrics, Stepper

if TYPE_CHECKING:
    from _csv import Writer

    from rich.console import Console

FLUSH_SECONDS = 1.0
LOG_EVERY_STEPS = 10
"""Steps between points in TensorBoard; metrics.csv has every step."""


def _log(trainer: L.Trainer, values: Mapping[str, float], step: int) -> None:
    known = {name: value for name, value in values.items() if math.isfinite(value)}  # TensorBoard draws no others
    if trainer.logger is not None and known:
        trainer.logger.log_metrics(known, step=step)


def peak_memory_gib() -> float:
    """Give the most memory that tensors took on the GPU, or without one, that the process took."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class Keeper(Protocol):
    """What a run does beside its steps."""

    @property
    def columns(self) -> Columns:
        """Of metrics.csv."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Stands in every checkpoint: what a run that goes on from it must have in common with this one."""

    def validate(self, recent: Recent) -> Validation:
        """Score held-out sequence; `recent` are the steps since the last validation that this process did."""

    def keep_best(self, step: int) -> None:
        """Let the model as it is after a step stand as the best, or as the newest until there was a validation."""

    def on_checkpoint(self) -> None:
        """Do what is to be done after a checkpoint was saved."""


class RunRecorder(L.Callback):
    """After every step: validate if it is time, write the metrics, save a checkpoint if it is time, obey signals.

    One callback, so that the order is plain: the metrics of a step are written before its checkpoint.

    Args:
        folder: metrics.csv and checkpoints/ stand in it.
        stepper: Does the steps.
        keeper: Does the rest.
        schedule: When.
        resume_from: What the run goes on from.
    """

    def __init__(
        self,
        folder: Path,
        stepper: Stepper,
        keeper: Keeper,
        schedule: Schedule,
        *,
        resume_from: checkpoint.Checkpoint | None,
    ):
        self.folder, self.stepper, self.keeper, self.schedule = folder, stepper, keeper, schedule
        self.resume_from = resume_from
        self.received: int | None = None
        self._handlers: dict[int, signals.Handler] = {}
        self._files: list[TextIO] = []
        self._recent = Recent()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back what a checkpoint holds, open metrics.csv, and take over the signals from Lightning."""
        if self.resume_from is not None:
            optimizer = trainer.optimizers[0]
            named = [(name, p) for name, p in self.stepper.model.named_parameters() if p.requires_grad]
            checkpoint.load_optimizer_tensors(optimizer, named, self.resume_from.optimizer, str(self.folder))
            checkpoint.load_rng_tensors(self.resume_from.rng, str(self.folder))
        self._files = []
        self._rows, self._speed_rows, self._unusual_rows = (
            self._open(name, columns, self.stepper.counters.step)
            for name, columns in (
                ("metrics.csv", self.keeper.columns.names),
                ("speed.csv", SPEED_COLUMNS),
                ("unusual.csv", UNUSUAL_COLUMNS),
            )
        )
        self._spikes = SpikeDetector()
        for row in read_metrics(self.folder / "metrics.csv"):
            with contextlib.suppress(ValueError):  # a row that somebody has edited tells nothing
                self._spikes.leap(int(row["window_bases"]), float(row[self.keeper.columns.loss]))
        self._flushed = time.monotonic()
        self._handlers = signals.take(self._on_signal)

    def _open(self, name: str, columns: Sequence[str], last_step: int) -> "Writer":
        path = self.folder / name
        if num_unreadable := cut_metrics(path, last_step, columns):
            self.stepper.say(f"{path}: rows that could not be read were dropped: {num_unreadable:,}")
        fresh = not path.exists()
        file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed in close()
        self._files.append(file)
        rows = csv.writer(file)
        if fresh:
            rows.writerow(columns)
            file.flush()
        return rows

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise TerminatedError(number)  # a second signal: stop at once, the last checkpoint stands
        self.received = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Record the step that just ended."""
        stepper, counters = self.stepper, self.stepper.counters
        step = counters.step
        validate, due = self.schedule.validates(step, stepper.num_steps), self.schedule.saves(step, stepper.num_steps)
        # what is not needed at once is read while the GPU works on the next step
        wait = validate or due or pl_module.device.type == "cpu"
        read = stepper.read_steps(leave=0 if wait else 1)
        for metrics in read:
            self._recent.add(metrics)
        found = self._validate(trainer) if validate else None
        improved = found is not None and counters.best_step == step
        stop = self.received is not None  # also a signal that came meanwhile
        if stop:
            read += self._read_rest(read)
        for metrics in read:
            self._write(trainer, metrics, found.cells if found is not None and metrics.step == step else {})
        self._flush_now_and_then()
        if (due or improved or stop) and _finite(stepper.model):
            self.save(trainer)  # weights that are not finite never take the place of good ones
        if stop:
            trainer.should_stop = True

    def _read_rest(self, read: list[StepMetrics]) -> list[StepMetrics]:
        """Give the numbers of the steps after those that were read."""
        try:
            return self.stepper.read_steps()
        except NotFiniteError as error:
            error.read[:0] = read
            raise

    def _flush_now_and_then(self) -> None:
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            for file in self._files:
                file.flush()
            self._flushed = time.monotonic()

    def _validate(self, trainer: L.Trainer) -> Validation:
        """Score held-out sequence, and let the model stand as the best if it is."""
        stepper, counters = self.stepper, self.stepper.counters
        stepper.make_room()
        stepper.model.eval()
        found = self.keeper.validate(self._recent)
        stepper.model.train()
        self._recent = Recent()
        _log(trainer, found.logged, counters.step)
        if not found.finite:
            stepper.say(
                f"step {counters.step}: validation gave {found.shown}, which is compared with nothing; model/ stays as it was"
            )
        elif found.counts and (counters.best is None or found.better > counters.best):
            counters.best, counters.best_step = tuple(map(float, found.better)), counters.step
            self.keeper.keep_best(counters.step)
        return found

    def _write(self, trainer: L.Trainer, metrics: StepMetrics, validation: Mapping[str, str]) -> None:
        self._rows.writerow(self.keeper.columns.row(metrics, validation))
        leap = self._spikes.leap(metrics.window_bases, metrics.loss)
        if metrics.skipped or leap is not None:
            kind = "not finite" if metrics.skipped else "spike"
            loss, norm = f"{metrics.loss:.17g}", f"{metrics.gradient_norm:.9g}"
            mean, deviation = ("", "") if leap is None else (f"{leap[0]:.9g}", f"{leap[1]:.9g}")
            windows = " ".join(self.stepper.name_windows(metrics))
            self._unusual_rows.writerow([metrics.step, kind, loss, norm, mean, deviation, windows])
            what = "its numbers were not finite, so it was left out" if metrics.skipped else f"the loss leapt to {loss}"
            self.stepper.say(f"step {metrics.step}: {what}; unusual.csv names its windows")
        rate = metrics.bases / metrics.seconds if metrics.seconds > 0 else float("nan")
        memory = peak_memory_gib()
        if rate == rate:  # the first step of a run compiles and has no step before it
            self._speed_rows.writerow([metrics.step, f"{rate:.6g}", f"{memory:.4f}"])
        if metrics.step % LOG_EVERY_STEPS == 0:
            loss_name = self.keeper.columns.loss
            values = {
                f"train/{loss_name}": metrics.loss,
                **{f"train/{n}": v for n, v in zip(self.stepper.model.counted, metrics.counts, strict=True)},
                **{
                    f"train/{n}": float(getattr(metrics, n)) for n in ("gradient_norm", "learning_rate", "window_bases")
                },
                f"{loss_name}_by_window/{metrics.window_bases}": metrics.loss,
            }
            _log(trainer, values | {"speed/bases_per_second": rate, "speed/peak_memory_gib": memory}, metrics.step)

    def save(self, trainer: L.Trainer) -> Path:
        """Write a checkpoint of the run as it stands after the last step."""
        for file in self._files:
            file.flush()
        for logger in trainer.loggers:  # what it holds back would be lost if the process were killed
            logger.save()
        model, counters = self.stepper.model, self.stepper.counters
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        path = checkpoint.save(
            self.checkpoints,
            counters.step,
            checkpoint.Checkpoint(
                model=unshared_tensors(model),
                optimizer=checkpoint.optimizer_tensors(trainer.optimizers[0], names),
                rng=checkpoint.rng_tensors(),
                counters={**asdict(counters), **self.keeper.identity},
            ),
        )
        best = counters.best_step if self.schedule.keep_best else None
        checkpoint.prune(self.checkpoints, self.schedule.keep_checkpoints, best)
        if counters.best_step is None:
            self.keeper.keep_best(counters.step)  # until a validation says which is best, the newest stands there
        self.keeper.on_checkpoint()
        return path

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close metrics.csv and give the signals and the memory of a captured step back."""
        self.stepper.let_go()
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the rows of the steps that stopped the run, then close."""
        read = list(exception.read) if isinstance(exception, NotFiniteError) else []
        with contextlib.suppress(Exception):  # after a fault of the GPU nothing can be read
            read += self.stepper.read_steps()
        if self._files:
            for metrics in read:
                self._write(trainer, metrics, {})
        self.close()

    def close(self) -> None:
        """Close metrics.csv and give the signals back; may be called twice."""
        for file in self._files:
            file.close()
        self._files = []
        signals.give_back(self._handlers)
        self._handlers = {}


class ProgressBar(L.Callback):
    """A line with the share of the steps done, the time left, loss, bases per second and more, as it fits."""

    def __init__(self, console: "Console"):
        self.console = console
        self.line = Line(console, "training", transient=False)
        self._smoothed: float | None = None
        self._window = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        assert isinstance(pl_module, TrainingModule)
        self._started: float | None = None
        self._bases = 0
        self._shown = pl_module.stepper.counters.step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Move the bar; without a terminal print a line a minute."""
        assert isinstance(pl_module, TrainingModule)
        stepper, last = pl_module.stepper, pl_module.stepper.last
        if last is None or last.step == self._shown:  # the numbers of a step on a GPU come one step later
            return
        since, self._shown = last.step - self._shown, last.step
        if last.window_bases != self._window:  # the loss is shown by stage
            self._window, self._smoothed = last.window_bases, None
        self._smoothed = last.loss if self._smoothed is None else 0.95 * self._smoothed + 0.05 * last.loss
        if self._started is None:
            self._started = time.monotonic()  # the first step compiles
        else:
            self._bases += last.bases * since
        rate = self._bases / max(time.monotonic() - self._started, 1e-9)
        parts = [
            f"step {last.step:,}/{stepper.num_steps:,}", stepper.objective.words(self._smoothed), f"{rate:,.0f} bases/s",
            f"windows of {last.window_bases:,}", f"gradient {last.gradient_norm:.2f}", f"rate {last.learning_rate:.1e}",
            f"{peak_memory_gib():.1f} GiB",
        ]  # fmt: skip
        self.line.update(last.step, stepper.num_steps, parts=parts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it stands."""
        self.line.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the bar as it stands."""
        self.line.stop()


def _finite(model: torch.nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())
