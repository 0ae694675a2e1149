# Shapes: N windows, K classes
"""Fine-tune a classifier of labelled genomes at one or more window lengths, beside baselines on the same windows."""

import csv
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dna_mamba import signals
from dna_mamba.data.build import Progress
from dna_mamba.data.labelled import LabelledWindows, Place, write_places
from dna_mamba.device import find_device, find_precision
from dna_mamba.errors import InputError, Interrupted, StoppedError, TerminatedError
from dna_mamba.files import write_json, write_text
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import (
    can_be_read,
    copy_tensors,
    from_pretrained,
    load_classifier,
    save_classifier,
    unshared_tensors,
)
from dna_mamba.model.classifier import SequenceClassifier
from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.implementation import implementation_for
from dna_mamba.pipelines import run_directory
from dna_mamba.pipelines.class_metrics import Baseline, ClassReport, Share, baselines, draw_confusion, report
from dna_mamba.pipelines.config_files import dump_yaml
from dna_mamba.pipelines.configs.species import FinetuneSpeciesConfig, config_of_run
from dna_mamba.pipelines.evaluate import find_model
from dna_mamba.pipelines.labelled_genomes import LabelledGenomes, describe, identity, open_labelled
from dna_mamba.pipelines.likelihood_ratio import likelihood_ratio
from dna_mamba.pipelines.machines import this_gpu
from dna_mamba.pipelines.oracle import attainable, counted, read_truth
from dna_mamba.pipelines.pictures import draw_or_say, figure_of, save
from dna_mamba.pipelines.planning import check_main_memory, choose_cut
from dna_mamba.pipelines.simulate import TRUTH
from dna_mamba.training import checkpoint
from dna_mamba.training.checkpoint import newest_intact
from dna_mamba.training.finetuning import FinetuneStep, finetune, probabilities
from dna_mamba.training.language_model import MAX_SKIPPED_IN_A_ROW

MOST_BASELINE_BASES = 1 << 28
"""Windows of the baselines are fewer where they would hold more."""
MAX_MASKED = 0.1
"""Largest share of soft-masked bases in the windows that are called free of repeats."""
COLUMNS = ("step", "epoch", "window_bases", "loss", "accuracy", "gradient_norm", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class LengthResult:
    """What one classifier and its baselines reached."""

    seq_len: int
    began_with: str
    """Checkpoint, or 'scratch'."""
    rows: tuple[dict[str, Any], ...]
    """Name, detail, accuracy (correct, number, value, low, high) and, where it is a classifier, its report."""
    seconds: float
    bases: int
    """Seen in training."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSpeciesResult:
    """All lengths."""

    out: Path
    labels: tuple[str, ...]
    lengths: tuple[LengthResult, ...]
    simulated: bool = False


def resolve(config: FinetuneSpeciesConfig) -> FinetuneSpeciesConfig:
    """Replace 'auto' by what it means on this machine, and paths by absolute ones."""
    device = find_device(config.device)
    precision = find_precision(config.precision, device)
    data = config.data

    def absolute(name: str | None) -> str | None:
        return str(Path(name).absolute()) if name is not None and Path(name).exists() else name

    data = replace(
        data, manifest=absolute(data.manifest) or "", genomes=absolute(data.genomes), split=absolute(data.split)
    )
    model = SCRATCH if config.checkpoint is None and config.model is None else config.model
    return replace(
        config, data=data, checkpoint=absolute(config.checkpoint), model=model, device=device, precision=precision
    )


SCRATCH = BackboneConfig(pattern="M" * 12, width=128)
"""Trained where neither a checkpoint nor sizes are given."""


def _begin(
    config: FinetuneSpeciesConfig, length: int, labels: Sequence[str]
) -> tuple[SequenceClassifier, DnaMamba, str]:
    """Make the classifier of a length, and the language model that it begins with."""
    torch.manual_seed(config.seed)
    if config.checkpoint is None:
        model = config.model or SCRATCH
        check_main_memory(model)
        language_model, name = DnaMamba(model), "scratch"
        return SequenceClassifier.from_language_model(language_model, labels, config.pooling), language_model, name
    name = config.checkpoint.replace("{seq_len}", str(length))
    directory, _ = find_model(Path(name))
    language_model, policy = from_pretrained(directory)
    if policy.get("start_token"):
        raise InputError(
            f"{name} was trained with a start token before each window, which a classifier does not write; take another "
            f"checkpoint"
        )
    classifier = SequenceClassifier.from_language_model(language_model, labels, config.pooling)
    classifier.backbone.requires_grad_(not config.frozen)
    return classifier, language_model, name


def _seed(config: FinetuneSpeciesConfig, part: str) -> int:
    seed = config.seed if part == "train" else config.evaluation.seed  # the same windows, whatever is trained
    return seed + ("train", "valid", "test", "held out").index(part)


def check(
    config: FinetuneSpeciesConfig, genomes: LabelledGenomes, warn: Callable[[str], None] | None = None
) -> dict[int, str]:
    """Try all that can go wrong before anything is written; give what each length begins with, and say what is left out.

    Raises:
        InputError: A checkpoint is missing, or a class has no window of a length in some part.
    """
    begins = {}
    for length in config.seq_lens:
        _, _, begins[length] = _begin(config, length, genomes.labels)
        parts = ["train", "valid", "test", *(["held out"] if genomes.held_out is not None else [])]
        for part in parts:
            windows = genomes.windows(part, length, _seed(config, part), config.data)
            if warn and windows.too_short:
                number = len(
                    genomes.held_out.test if part == "held out" and genomes.held_out else getattr(genomes.split, part)
                )
                warn(
                    f"{len(windows.too_short):,} of the {number:,} contigs of {part}, with "
                    f"{sum(c.length for c in windows.too_short):,} bases, are shorter than a window of {length:,} bases and "
                    f"are left out"
                )
            if part == "train":
                for label in windows.labels:
                    windows.try_class(label)
            else:
                name = "valid_windows" if part == "valid" else "test_windows"
                windows.places(getattr(config.evaluation, name))
    return begins


def plan_as_text(
    config: FinetuneSpeciesConfig, *, on_progress: Progress | None = None, warn: Callable[[str], None] | None = None
) -> str:
    """Check everything that a run needs, and say what it would do."""
    config = resolve(config)
    genomes = open_labelled(config.data, on_progress=on_progress, warn=warn)
    lines = []
    for part in ("train", "valid", "test", "left_out"):
        contigs = getattr(genomes.split, part)
        each = ", ".join(f"{label} {sum(c.length for c in contigs if c.label == label):,}" for label in genomes.labels)
        lines.append(f"{part.replace('_', ' ')}: {each} bases")
    for length, began_with in check(config, genomes, warn).items():
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
    config: FinetuneSpeciesConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
    on_step: Callable[[FinetuneStep, int], None] | None = None,
) -> FinetuneSpeciesResult:
    """Fine-tune and score at every length, and write a run directory.

    Args:
        config: What to do.
        out: The run directory.
        resume: Go on with the run in `out`.
        overwrite: Replace the run in `out`.
        on_progress: Called while a FASTA is packed.
        say: Called with what is being done.
        warn: Called with sentences that deserve attention.
        on_step: Called after each step with what it did and the steps of the classifier in all.

    Raises:
        InputError: Something in the configuration, the data or the run directory is at fault.
        StoppedError: A loss was not finite.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
    """
    say = say or (lambda words: None)
    config = resolve(config)
    genomes = open_labelled(config.data, on_progress=on_progress, warn=warn)
    if warn and genomes.split.left_out:
        bases = sum(c.length for c in genomes.split.left_out)
        warn(
            f"{len(genomes.split.left_out):,} contigs with {bases:,} bases are in no part: without a verified homologue, or "
            f"with parts of several; dna-mamba genome audit lists them by class"
        )
    begins = check(config, genomes, warn)
    lock = run_directory.prepare(out, resume=resume, overwrite=overwrite)
    length = 0
    try:
        if resume:
            _check_same(config, genomes, out)
        else:
            write_text(out / "config.yaml", dump_yaml(config))
            write_json(
                out / "run.json",
                {
                    "command": "finetune species",
                    "versions": run_directory.versions(),
                    "hardware": run_directory.hardware(config.device),
                    "seed": config.seed,
                    "labels": list(genomes.labels),
                    "begins_with": {str(length): name for length, name in begins.items()},
                    "identity": identity(genomes),
                    **describe(genomes),
                },
            )
        found = []
        for length in config.seq_lens:
            folder = out / "lengths" / str(length)
            one = _read_result(folder / "results.json") if resume else None
            if one is None:
                one = _Length(config, genomes, length, folder, resume, say, on_step).run()
            found.append(one)
        result = FinetuneSpeciesResult(
            out=out, labels=genomes.labels, lengths=tuple(found), simulated=_is_simulated(config)
        )
        write_json(
            out / "results.json",
            {"labels": list(genomes.labels), "simulated": result.simulated, "lengths": [asdict(one) for one in found]},
        )
        draw_or_say(lambda: draw_series(result, out / "accuracy.png"), out / "accuracy.png", warn)
        return result
    except TerminatedError as error:  # between trainings: what was trained is saved
        newest = checkpoint.list_checkpoints(out / "lengths" / str(length) / "checkpoints") if length else []
        raise Interrupted(error.number, out, checkpoint.step_of(newest[-1]) if newest else 0) from error
    finally:
        lock.release()


def _is_simulated(config: FinetuneSpeciesConfig) -> bool:
    return (Path(config.data.manifest).parent / TRUTH).exists()


def _check_same(config: FinetuneSpeciesConfig, genomes: LabelledGenomes, out: Path) -> None:
    old = config_of_run(out)
    every = config.checkpoint_every_steps
    if replace(old, device=config.device, checkpoint_every_steps=every) != config:
        raise InputError(
            f"--resume: these settings differ from those of {out}; leave them out, or choose another --out"
        )
    try:
        recorded = json.loads((out / "run.json").read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{out / 'run.json'} cannot be read: {error}; choose another --out") from error
    if recorded != identity(genomes):
        raise InputError(f"--resume: the genomes or their split are no longer those of {out}; choose another --out")


def _read_result(path: Path) -> LengthResult | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not values.pop("complete", True):
            return None
    except (OSError, ValueError, AttributeError):
        return None
    return LengthResult(**{**values, "rows": tuple(values["rows"])})


class SignalsWait:
    """While the block runs, a first signal is remembered and not acted upon: a step is ended and saved first."""

    received: int | None = None

    def __enter__(self) -> "SignalsWait":
        """Take the signals over, where this is the main thread."""
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.before = signals.take(self._remember)
        return self

    def _remember(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise TerminatedError(number)  # a second signal: stop at once, the last checkpoint stands
        self.received = number

    def __exit__(self, *rest: object) -> None:
        """Give them back."""
        signals.give_back(self.before)


class _Length:
    """One length of a run."""

    signals = SignalsWait()

    def __init__(
        self,
        config: FinetuneSpeciesConfig,
        genomes: LabelledGenomes,
        length: int,
        folder: Path,
        resume: bool,
        say: Callable[[str], None],
        on_step: Callable[[FinetuneStep, int], None] | None = None,
    ):
        self.config, self.genomes, self.length, self.folder, self.say = config, genomes, length, folder, say
        self.classifier, self.language_model, self.began_with = _begin(config, length, genomes.labels)
        self.recipe = config.recipe_of(length)
        machine = this_gpu() if config.device == "cuda" else None
        bases = min(self.recipe.batch * length, 2**62)
        cut = choose_cut(self.classifier.config, config.precision, machine, [length], bases, kept_pieces=1)
        self.recipe = replace(self.recipe, piece_bases=config.piece_bases or cut.piece_bases)
        implementation = implementation_for(self.classifier.config, config.device)
        self.classifier.use_implementation(implementation).to(config.device)
        self.language_model.use_implementation(implementation)
        self.classifier.backbone.recomputed_layers = 0 if config.piece_bases else cut.recomputed_layers
        self.resume, self.on_step = resume, on_step
        self.found: ClassReport | None = None
        self.places = {
            part: self._windows(part).places(getattr(config.evaluation, f"{part}_windows"))
            for part in ("valid", "test")
        }

    def _windows(self, part: str, length: int | None = None, **options: Any) -> LabelledWindows:
        return self.genomes.windows(part, length or self.length, _seed(self.config, part), self.config.data, **options)

    def _autocast(self) -> torch.autocast:
        # without the cache: in a context that outlives an optimizer step it would hand out weights as they were
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.config.device, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _report(self, model: SequenceClassifier, windows: LabelledWindows, places: Sequence[Place]) -> ClassReport:
        model.eval()
        with self._autocast():
            found_NK, truth_N = probabilities(model, windows, places, self.recipe.piece_bases)
        return report(found_NK, truth_N, self.genomes.labels, effective=windows.independent(places))

    def run(self) -> LengthResult:
        self.folder.mkdir(parents=True, exist_ok=True)
        for part, places in self.places.items():
            write_places(self.folder / f"{part}.tsv", places, self.length)
        started = time.monotonic()
        bases = self._train()
        seconds = time.monotonic() - started
        rows: list[dict[str, Any]] = []

        def note(complete: bool) -> LengthResult:
            result = LengthResult(
                seq_len=self.length, began_with=self.began_with, rows=tuple(rows), seconds=seconds, bases=bases
            )
            write_json(self.folder / "results.json", {**asdict(result), "complete": complete})
            return result

        for some in self._rows():  # each is on the disk before the next is worked on
            rows += some
            note(False)
        result = note(True)
        draw_or_say(self._draw, self.folder / "confusion.png", self.say)
        return result

    def _draw(self) -> None:
        assert self.found is not None
        simulated = "SIMULATED: " if _is_simulated(self.config) else ""
        title = f"{simulated}{self.classifier.config.title} on windows of {self.length:,} bases"
        draw_confusion(self.found, self.folder / "confusion.png", title)

    def _train(self) -> int:
        """Train, keep the best epoch in model/, and give the bases seen."""
        checkpoints = self.folder / "checkpoints"
        names = {id(parameter): name for name, parameter in self.classifier.named_parameters()}
        optimizer = self.recipe.optimizer.build(self.classifier)
        best: tuple[float, float] | None = None
        first_step = skipped_in_a_row = 0
        total = self.recipe.epochs * self.recipe.steps_per_epoch
        loaded = newest_intact(checkpoints, "move it away to go on from {}") if self.resume else None
        if loaded is not None:
            copy_tensors(self.classifier, loaded.model, str(checkpoints))
            trained = [(n, p) for n, p in self.classifier.named_parameters() if f"exp_avg.{n}" in loaded.optimizer]
            checkpoint.load_optimizer_tensors(optimizer, trained, loaded.optimizer, str(checkpoints))
            first_step, best, skipped_in_a_row = _counters(loaded.counters, total, str(checkpoints))
            self.say(f"going on after step {first_step:,}")
            if best is not None and not can_be_read(self.folder / "model", load_classifier):
                self.say(
                    f"the best model is no longer in {self.folder / 'model'}: the newest takes its place, and the next "
                    f"validation is the first to compare with"
                )
                best = None
                self._keep(first_step // self.recipe.steps_per_epoch)
        metrics = self.folder / "metrics.csv"
        _cut_rows(metrics, first_step)
        valid = self._windows("valid")
        epoch_started = time.monotonic()
        recent: list[FinetuneStep] = []

        def save(step: int) -> None:
            if not all(bool(parameter.isfinite().all()) for parameter in self.classifier.parameters()):
                return  # weights that are not finite never take the place of good ones
            state = checkpoint.Checkpoint(
                model=unshared_tensors(self.classifier),
                optimizer=checkpoint.optimizer_tensors(optimizer, names),
                rng=checkpoint.rng_tensors(),
                counters={"step": step, "best": best, "skipped_in_a_row": skipped_in_a_row},
            )
            checkpoint.save(checkpoints, step, state)
            checkpoint.prune(checkpoints, 2, None)

        with open(metrics, "a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")

            def on_step(step: FinetuneStep) -> None:
                nonlocal skipped_in_a_row
                skipped_in_a_row = 0 if math.isfinite(step.loss + step.gradient_norm) else skipped_in_a_row + 1
                recent.append(step)
                if self.on_step:
                    self.on_step(step, total)
                rows.writerow([getattr(step, name) for name in COLUMNS])
                file.flush()
                at_epoch_end = step.step % self.recipe.steps_per_epoch == 0  # saved by on_epoch, after its validation
                if step.step % self.config.checkpoint_every_steps == 0 and not at_epoch_end:
                    save(step.step)
                if self.signals.received is not None and not at_epoch_end:
                    save(step.step)
                    raise Interrupted(self.signals.received, self.folder.parent.parent, step.step)

            def on_epoch(epoch: int) -> None:
                nonlocal best, epoch_started
                found = self._report(self.classifier, valid, self.places["valid"])
                self.classifier.train()
                seen = sum(self.recipe.batch * step.window_bases for step in recent)
                speed = seen / max(1e-9, time.monotonic() - epoch_started)
                self.say(
                    f"{self.length:,} bases, epoch {epoch + 1}/{self.recipe.epochs} (windows of "
                    f"{recent[-1].window_bases:,}): loss {np.mean([s.loss for s in recent]):.3f}, accuracy "
                    f"{np.mean([s.accuracy for s in recent]):.3f}, on validation {found.accuracy.value:.3f} "
                    f"({found.accuracy.low:.3f} to {found.accuracy.high:.3f}); {speed:,.0f} bases/s"
                )
                recent.clear()
                epoch_started = time.monotonic()
                now = (found.accuracy.value, -found.log_loss)
                full_length = self.recipe.epoch_lengths()[epoch] == self.length
                if not all(math.isfinite(number) for number in now):
                    self.say(
                        f"epoch {epoch + 1}: validation gave {now}, which is compared with nothing; model/ stays as it was"
                    )
                    full_length = full_length and best is None  # until one can be compared, the newest stands there
                    now = (-1.0, -1e300)
                if full_length and (best is None or now > best):
                    best = now
                    self._keep(epoch + 1)
                save((epoch + 1) * self.recipe.steps_per_epoch)
                if self.signals.received is not None:
                    steps = (epoch + 1) * self.recipe.steps_per_epoch
                    raise Interrupted(self.signals.received, self.folder.parent.parent, steps)

            if first_step < total:
                try:
                    with self._autocast(), SignalsWait() as self.signals:
                        finetune(
                            self.classifier, lambda length: self._windows("train", length), self.recipe,
                            optimizer=optimizer, first_step=first_step, skipped_in_a_row=skipped_in_a_row,
                            on_step=on_step, on_epoch=on_epoch,
                        )  # fmt: skip
                except StoppedError as error:
                    saved = checkpoint.list_checkpoints(checkpoints)
                    good = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved before"
                    raise StoppedError(f"{error}; {good}") from error
        lengths = self.recipe.epoch_lengths()[: self.recipe.epochs]
        return sum(lengths) * self.recipe.steps_per_epoch * self.recipe.batch

    def _keep(self, epoch: int) -> None:
        """Let the classifier as it is, after so many epochs, stand in model/."""
        about = {
            "seq_len": self.length,
            "manifest": self.genomes.manifest.name,
            "began_with": self.began_with,
            "epoch": epoch,
            "piece_bases": self.recipe.piece_bases,
        }
        save_classifier(self.classifier, self.folder / "model", about)

    def _rows(self) -> Iterator[list[dict[str, Any]]]:
        evaluation = self.config.evaluation
        model, about = load_classifier(self.folder / "model")
        model.use_implementation(implementation_for(model.config, self.config.device)).to(self.config.device)
        test = self._windows("test")
        self.say("scoring the test windows")
        found = self.found = self._report(model, test, self.places["test"])
        detail = f"began with {self.began_with}; epoch {about['epoch']} chosen on validation"
        yield [_row(f"{self.classifier.config.title}, {self.config.pooling}", detail, found.accuracy, found)]
        yield self._controls(model)
        number = min(evaluation.baseline_windows, MOST_BASELINE_BASES // self.length)
        if evaluation.baseline_windows and number < 10 * len(self.genomes.labels):
            self.say(f"no k-mer baseline: windows of {self.length:,} bases are too long to hold enough of them")
        elif evaluation.baseline_windows:
            self.say("fitting k-mer and GC baselines")
            yield [_row(b.name, b.chosen, b.report.accuracy, b.report) for b in self._baselines(number)]
        if evaluation.likelihood_ratio.steps and not self.classifier.backbone.causal:
            yield [_row("likelihood ratio, one model a class", "not possible: the layers read both ways", None, None)]
        elif evaluation.likelihood_ratio.steps:
            self.say("training a language model a class, for the likelihood ratio")
            found_NK, truth_N, words = likelihood_ratio(
                evaluation.likelihood_ratio, self.language_model, self._windows("train"), test, self.places["test"],
                self.genomes.labels, self.recipe.piece_bases, self.config.device, self.config.seed, self.say, self._autocast,
            )  # fmt: skip
            effective = test.independent(self.places["test"])
            ratio = report(found_NK, truth_N, self.genomes.labels, effective=effective)
            yield [_row("likelihood ratio, one model a class", words, ratio.accuracy, ratio)]
        yield self._oracle()
        yield [_row("chance", f"{len(self.genomes.labels)} classes", None, None, 1 / len(self.genomes.labels))]

    def _baselines(self, number: int) -> list[Baseline]:
        def read(windows: LabelledWindows, places: Sequence[Place]) -> tuple[np.ndarray, np.ndarray]:
            labels = np.array([self.genomes.labels.index(place.label) for place in places])
            return np.stack([windows.stored(place) for place in places]), labels

        train = self._windows("train")
        return baselines(
            read(train, [train.place(0, i) for i in range(number)]),
            read(self._windows("valid"), self.places["valid"]),
            read(self._windows("test"), self.places["test"]),
            self.genomes.labels,
            effective=self._windows("test").independent(self.places["test"]),
        )

    def _controls(self, model: SequenceClassifier) -> list[dict[str, Any]]:
        """Score windows without repeats, and other individuals."""
        rows = []
        number = self.config.evaluation.test_windows
        if self.config.evaluation.repeats_stripped:
            name = f"the same, windows with at most {MAX_MASKED:.0%} repeats and no N"
            plain = [
                n for n, store in self.genomes.stores.items() if not any(c.num_masked for c in store.manifest.contigs)
            ]
            if plain:
                rows.append(_row(name, f"not possible: {plain[0]} is not soft-masked", None, None))
            else:
                try:
                    windows = self._windows("test", max_masked=MAX_MASKED, drop_n=True)
                    found = self._report(model, windows, windows.places(number))
                    rows.append(_row(name, f"{number:,} windows of their own draw", found.accuracy, found))
                except InputError as error:
                    rows.append(_row(name, f"not possible: {error}", None, None))
        if self.genomes.held_out is not None:
            windows = self._windows("held out")
            found = self._report(model, windows, windows.places(number))
            names = ", ".join(self.config.data.held_out_assemblies)
            rows.append(_row("the same, other individuals", names, found.accuracy, found))
        return rows

    def _oracle(self) -> list[dict[str, Any]]:
        if not _is_simulated(self.config):
            return []
        folder = Path(self.config.data.manifest).parent
        bases_of = dict.fromkeys(self.genomes.labels, 0)
        for one in self.genomes.manifest.classes:
            bases_of[one.label] += sum(self.genomes.stores[assembly.name].num_bases for assembly in one.assemblies)
        truth = read_truth(folder, bases_of)
        if set(truth.species) != set(self.genomes.labels):
            self.say("no oracle: the classes are not the species of the simulation")
            return []
        best = attainable(truth, self.length)
        # what it sees in windows that overlap is the same; where nothing is planted, its answers are draws of their own
        overlapping = self._windows("test").independent(self.places["test"]) if truth.branches else None
        answers = counted(truth, self.places["test"], self.length, effective=overlapping)
        words = "sees every planted insertion in the window"
        return [
            _row("oracle, counted on the same windows", words, answers, None),
            _row("oracle, closed form", "from the rates", None, None, best),
        ]


def _row(
    name: str, detail: str, accuracy: Share | None, found: ClassReport | None, value: float | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "detail": detail, "accuracy": None if accuracy is None else asdict(accuracy)}
    row["value"] = value if accuracy is None else accuracy.value
    row["report"] = None if found is None else found.as_dict()
    return row


def _counters(values: dict[str, Any], num_steps: int, where: str) -> tuple[int, tuple[float, float] | None, int]:
    """Read step, best so far and steps skipped in a row; hashes say that nothing changed, not that it was ours."""
    step, best, skipped = values.get("step"), values.get("best"), values.get("skipped_in_a_row", 0)
    numbers = isinstance(best, list) and len(best) == 2 and all(type(x) is float for x in best)
    whole = (
        type(step) is int and 0 <= step <= num_steps and type(skipped) is int and 0 <= skipped < MAX_SKIPPED_IN_A_ROW
    )
    if not whole or not (best is None or numbers):
        raise InputError(f"{where}: counters.json holds something else than where a run of {num_steps:,} steps stands")
    assert isinstance(step, int) and isinstance(skipped, int)
    return step, None if best is None else (best[0], best[1]), skipped


def _cut_rows(path: Path, last_step: int) -> None:
    """Keep the header and the rows up to a step; what is torn goes too."""
    kept = [",".join(COLUMNS)]
    if last_step and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            step = line.split(",")[0]
            if line.count(",") == len(COLUMNS) - 1 and step.isdigit() and int(step) <= last_step:
                kept.append(line)
    write_text(path, "\n".join(kept) + "\n")


# Mamba (arXiv 2312.00752), table 4: great apes, five classes, one run a cell
PAPER = {
    "Mamba 1.4M (paper, great apes)": (31.47, 27.50, 27.66, 40.72, 42.41, 71.67),
    "Mamba 7M (paper, great apes)": (30.00, 29.01, 31.48, 43.73, 56.60, 81.31),
    "HyenaDNA 1.4M (paper, great apes)": (28.04, 28.43, 41.17, 42.22, 31.10, 54.87),
}
PAPER_LENGTHS = tuple(2**k for k in range(10, 21, 2))
GREAT_APES = {"human", "chimpanzee", "bonobo", "gorilla", "orangutan"}


def draw_series(result: FinetuneSpeciesResult, picture: Path) -> Path:
    """Draw accuracy against window length with intervals, beside the paper's curve where the classes are the great apes."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = figure_of(8, 4.8)
    axes = figure.subplots()
    names = list(dict.fromkeys(row["name"] for one in result.lengths for row in one.rows if row["value"] is not None))
    for number, name in enumerate(names):
        points = [
            (one.seq_len, row)
            for one in result.lengths
            for row in one.rows
            if row["name"] == name and row["value"] is not None
        ]
        # side by side, so that no point hides another
        aside = 1.0 + 0.035 * (number - len(names) / 2)
        x, y = [p[0] * aside for p in points], [p[1]["value"] for p in points]
        if name == "chance":
            axes.axhline(y[0], color="grey", linestyle=":", label="chance")
            continue
        if all(p[1]["accuracy"] for p in points):
            low = [row["value"] - row["accuracy"]["low"] for _, row in points]
            high = [row["accuracy"]["high"] - row["value"] for _, row in points]
            axes.errorbar(x, y, yerr=[low, high], marker="o", capsize=3, color=f"C{number}", label=name)
        else:
            axes.plot(x, y, marker="s", linestyle="--", color=f"C{number}", label=name)
    if result.simulated:
        axes.set_title("SIMULATED", color="firebrick")
    elif set(result.labels) == GREAT_APES:
        for (name, values), style in zip(PAPER.items(), ("-", "--", ":"), strict=True):
            axes.plot(
                PAPER_LENGTHS, [v / 100 for v in values], color="lightgrey", linestyle=style, zorder=0, label=name
            )
    lengths = [one.seq_len for one in result.lengths]
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    if len(lengths) == 1:  # what would lie on one line stands side by side
        axes.set_xlim(lengths[0] / 1.6, lengths[0] * 1.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}"))
    axes.set_ylim(0, 1)
    axes.set_xlabel("window, bases")
    axes.set_ylabel("accuracy (95 % interval)")
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, picture)
