"""What a run writes and shows while it trains: metrics, validation, checkpoints, signals, a progress bar."""

import contextlib
import csv
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch

from dna_mamba import signals
from dna_mamba.errors import TerminatedError
from dna_mamba.model.checkpoints.native import unshared_tensors
from dna_mamba.progress import Line
from dna_mamba.reading.losses import Score
from dna_mamba.training import checkpoint
from dna_mamba.training.language_model import LanguageModel, NotFiniteError, StepMetrics
from dna_mamba.training.metrics_csv import COLUMNS, SPEED_COLUMNS, UNUSUAL_COLUMNS, cut_metrics, read_metrics

FLUSH_SECONDS = 1.0
LOG_EVERY_STEPS = 10
"""Steps between points in TensorBoard; metrics.csv has every step."""


SPIKE_DEVIATIONS = 6
FEWEST_BEFORE_A_SPIKE, MOST_SPIKES_IN_A_ROW = 20, 10


class SpikeDetector:
    """Tells losses more than six standard deviations above the mean of the hundred before them, at the same window length.

    A spike does not make the next one usual; after ten in a row the level has changed, and the count begins anew.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=100)
        self._window_bases = self._in_a_row = 0

    def leap(self, window_bases: int, loss: float) -> tuple[float, float] | None:
        """Take a step's loss; give mean and deviation of those before it if it leaps above them."""
        if window_bases != self._window_bases or self._in_a_row >= MOST_SPIKES_IN_A_ROW:
            self._recent.clear()
            self._window_bases, self._in_a_row = window_bases, 0
        if not math.isfinite(loss):
            return None
        if len(self._recent) >= FEWEST_BEFORE_A_SPIKE:
            mean = sum(self._recent) / len(self._recent)
            deviation = max(math.sqrt(sum((x - mean) ** 2 for x in self._recent) / len(self._recent)), 1e-3)
            if loss > mean + SPIKE_DEVIATIONS * deviation:
                self._in_a_row += 1
                return mean, deviation
        self._recent.append(loss)
        self._in_a_row = 0
        return None


def _log(trainer: L.Trainer, values: dict[str, float], step: int) -> None:
    known = {name: value for name, value in values.items() if math.isfinite(value)}  # TensorBoard draws no others
    if trainer.logger is not None and known:
        trainer.logger.log_metrics(known, step=step)


def peak_memory_gib() -> float:
    """Give the most memory that tensors took on the GPU, or without one, that the process took."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class RunRecorder(L.Callback):
    """After every step: validate if it is time, write the metrics, save a checkpoint if it is time, obey signals.

    One callback, so that the order is plain: the metrics of a step are written before its checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        validate: Callable[[LanguageModel], Score],
        save_best: Callable[[LanguageModel], None],
        on_checkpoint: Callable[[LanguageModel], None],
        extra_counters: dict[str, Any],
        checkpoint_every_steps: int,
        validate_every_steps: int,
        keep_checkpoints: int,
        resume_from: checkpoint.Checkpoint | None,
    ):
        self.folder = folder
        self.validate = validate
        self.save_best = save_best
        self.on_checkpoint = on_checkpoint
        self.extra_counters = extra_counters
        self.checkpoint_every_steps = checkpoint_every_steps
        self.validate_every_steps = validate_every_steps
        self.keep_checkpoints = keep_checkpoints
        self.resume_from = resume_from
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}
        self._files: list[Any] = []

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back what a checkpoint holds, open metrics.csv, and take over the signals from Lightning."""
        assert isinstance(pl_module, LanguageModel)
        if self.resume_from is not None:
            optimizer = trainer.optimizers[0]
            named = list(pl_module.model.named_parameters())
            checkpoint.load_optimizer_tensors(optimizer, named, self.resume_from.optimizer, str(self.folder))
            checkpoint.load_rng_tensors(self.resume_from.rng, str(self.folder))
        self._files = []
        self._rows, self._speed_rows, self._unusual_rows = (
            self._open(name, columns, pl_module.counters.step)
            for name, columns in (
                ("metrics.csv", COLUMNS),
                ("speed.csv", SPEED_COLUMNS),
                ("unusual.csv", UNUSUAL_COLUMNS),
            )
        )
        self._spikes = SpikeDetector()
        for row in read_metrics(self.folder / "metrics.csv"):
            self._spikes.leap(int(row["window_bases"]), float(row["train_loss"]))
        self._flushed = time.monotonic()
        self._handlers = signals.take(self._on_signal)

    def _open(self, name: str, columns: Sequence[str], last_step: int) -> Any:
        path = self.folder / name
        cut_metrics(path, last_step)
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
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step that just ended."""
        assert isinstance(pl_module, LanguageModel)
        counters = pl_module.counters
        valid = ""
        done = counters.step == pl_module.num_steps
        improved = False
        validate = done or counters.step % self.validate_every_steps == 0
        due = done or counters.step % self.checkpoint_every_steps == 0
        # what is not needed at once is read while the GPU works on the next step
        wait = validate or due or pl_module.device.type == "cpu"
        read = pl_module.read_steps(leave=0 if wait else 1)
        if validate:
            pl_module.make_room()
            bits = self.validate(pl_module).bits_per_base
            valid = f"{bits:.17g}"
            _log(trainer, {"valid/bits_per_base": bits}, counters.step)
            if not math.isfinite(bits):
                pl_module.say(
                    f"step {counters.step}: validation gave {bits} bits per base, which is compared with nothing; model/ stays "
                    f"as it was"
                )
            elif bits < counters.best_valid_bits:
                counters.best_valid_bits, counters.best_step = bits, counters.step
                self.save_best(pl_module)
                improved = True
        stop = self.received is not None  # also a signal that came meanwhile
        if stop:
            try:
                read += pl_module.read_steps()
            except NotFiniteError as error:
                error.read[:0] = read
                raise
        for metrics in read:
            self._write(trainer, pl_module, metrics, valid if metrics.step == counters.step else "")
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            for file in self._files:
                file.flush()
            self._flushed = time.monotonic()
        if (due or improved or stop) and all(bool(p.isfinite().all()) for p in pl_module.model.parameters()):
            self.save(trainer, pl_module)  # weights that are not finite never take the place of good ones
        if stop:
            trainer.should_stop = True

    def _write(self, trainer: L.Trainer, module: LanguageModel, metrics: StepMetrics, valid: str) -> None:
        bits_per_base = metrics.train_loss / 0.6931471805599453
        self._rows.writerow(
            [
                *(metrics.step, metrics.window_bases, f"{metrics.train_loss:.17g}", f"{bits_per_base:.6f}"),
                *(f"{metrics.gradient_norm:.9g}", f"{metrics.learning_rate:.9g}", metrics.bases),
                *(int(metrics.skipped), valid),
            ]
        )
        leap = self._spikes.leap(metrics.window_bases, metrics.train_loss)
        if metrics.skipped or leap is not None:
            kind = "not finite" if metrics.skipped else "spike"
            loss, norm = f"{metrics.train_loss:.17g}", f"{metrics.gradient_norm:.9g}"
            mean, deviation = ("", "") if leap is None else (f"{leap[0]:.9g}", f"{leap[1]:.9g}")
            windows = " ".join(module.name_windows(metrics))
            self._unusual_rows.writerow([metrics.step, kind, loss, norm, mean, deviation, windows])
            what = "its numbers were not finite, so it was left out" if metrics.skipped else f"the loss leapt to {loss}"
            module.say(f"step {metrics.step}: {what}; unusual.csv names its windows")
        rate = metrics.bases / metrics.seconds if metrics.seconds > 0 else float("nan")
        memory = peak_memory_gib()
        if rate == rate:  # the first step of a run compiles and has no step before it
            self._speed_rows.writerow([metrics.step, f"{rate:.6g}", f"{memory:.4f}"])
        if metrics.step % LOG_EVERY_STEPS == 0:
            names = ("train_loss", "gradient_norm", "learning_rate", "window_bases")
            values = {f"train/{name}": float(getattr(metrics, name)) for name in names}
            values[f"train_loss_by_window/{metrics.window_bases}"] = metrics.train_loss
            _log(trainer, values | {"speed/bases_per_second": rate, "speed/peak_memory_gib": memory}, metrics.step)

    def save(self, trainer: L.Trainer, module: LanguageModel) -> Path:
        """Write a checkpoint of the run as it stands after the last step."""
        for file in self._files:
            file.flush()
        names = {id(parameter): name for name, parameter in module.model.named_parameters()}
        path = checkpoint.save(
            self.checkpoints,
            module.counters.step,
            checkpoint.Checkpoint(
                model=unshared_tensors(module.model),
                optimizer=checkpoint.optimizer_tensors(trainer.optimizers[0], names),
                rng=checkpoint.rng_tensors(),
                counters={**asdict(module.counters), **self.extra_counters},
            ),
        )
        checkpoint.prune(self.checkpoints, self.keep_checkpoints, module.counters.best_step)
        if module.counters.best_step is None:
            self.save_best(module)  # until a validation says which is best, the newest stands there
        self.on_checkpoint(module)
        return path

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close metrics.csv and give the signals and the memory of a captured step back."""
        assert isinstance(pl_module, LanguageModel)
        pl_module._captured = None
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the rows of the steps that stopped the run, then close."""
        read = list(exception.read) if isinstance(exception, NotFiniteError) else []
        with contextlib.suppress(Exception):  # after a fault of the GPU nothing can be read
            assert isinstance(pl_module, LanguageModel)
            read += pl_module.read_steps()
        if self._files:
            for metrics in read:
                assert isinstance(pl_module, LanguageModel)
                self._write(trainer, pl_module, metrics, "")
        self.close()

    def close(self) -> None:
        """Close metrics.csv and give the signals back; may be called twice."""
        for file in self._files:
            file.close()
        self._files = []
        signals.give_back(self._handlers)
        self._handlers = {}


class ProgressBar(L.Callback):
    """A line with the share of the steps done, the time left, loss in bits per base, bases per second and more, as it fits."""

    def __init__(self, console: Any):
        self.console = console
        self.line = Line(console, "training", transient=False)
        self._smoothed: float | None = None
        self._window = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        assert isinstance(pl_module, LanguageModel)
        self._started: float | None = None
        self._bases = 0
        self._shown = pl_module.counters.step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; without a terminal print a line a minute."""
        assert isinstance(pl_module, LanguageModel)
        last = pl_module.last
        if last is None or last.step == self._shown:  # the numbers of a step on a GPU come one step later
            return
        since, self._shown = last.step - self._shown, last.step
        bits = last.train_loss / 0.6931471805599453
        if last.window_bases != self._window:  # the loss is shown by stage
            self._window, self._smoothed = last.window_bases, None
        self._smoothed = bits if self._smoothed is None else 0.95 * self._smoothed + 0.05 * bits
        if self._started is None:
            self._started = time.monotonic()  # the first step compiles
        else:
            self._bases += last.bases * since
        rate = self._bases / max(time.monotonic() - self._started, 1e-9)
        parts = [
            f"step {last.step:,}/{pl_module.num_steps:,}", f"{self._smoothed:.3f} bits/base", f"{rate:,.0f} bases/s",
            f"windows of {last.window_bases:,}", f"gradient {last.gradient_norm:.2f}", f"rate {last.learning_rate:.1e}",
            f"{peak_memory_gib():.1f} GiB",
        ]  # fmt: skip
        self.line.update(last.step, pl_module.num_steps, parts=parts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it stands."""
        self.line.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the bar as it stands."""
        self.line.stop()
