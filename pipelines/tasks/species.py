# Shapes: N windows, K classes
"""Fine-tuning for species, or any other labels of genomes: windows of labelled genomes, classes, baselines and controls."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dna_mamba.data.labelled import LabelledWindows, Place, write_places
from dna_mamba.data.steps import Drawn
from dna_mamba.errors import InputError
from dna_mamba.model.heads.classes import ClassHead
from dna_mamba.pipelines import finetune
from dna_mamba.pipelines.class_metrics import Baseline, ClassReport, Share, baselines, draw_confusion, report
from dna_mamba.pipelines.configs.species import FinetuneSpeciesConfig
from dna_mamba.pipelines.finetune import FinetuneResult
from dna_mamba.pipelines.labelled_genomes import LabelledGenomes, describe, identity, open_labelled
from dna_mamba.pipelines.likelihood_ratio import likelihood_ratio
from dna_mamba.pipelines.oracle import attainable, counted, read_truth
from dna_mamba.pipelines.pictures import draw_or_say
from dna_mamba.pipelines.simulate import TRUTH
from dna_mamba.pipelines.tasks.species_pictures import draw_series
from dna_mamba.pipelines.tasks.task import Reader, ResultRow, Say, Task, Trained
from dna_mamba.progress import Progress
from dna_mamba.reading.outputs import Windows, probabilities
from dna_mamba.training.schedule import Validation

if TYPE_CHECKING:
    import lightning.pytorch as L

MOST_BASELINE_BASES = 1 << 28
"""Windows of the baselines are fewer where they would hold more."""
MAX_MASKED = 0.1
"""Largest share of soft-masked bases in the windows that are called free of repeats."""
PARTS = ("train", "valid", "test", "held out")


def resolve(config: FinetuneSpeciesConfig) -> FinetuneSpeciesConfig:
    """Replace 'auto' by what it means on this machine, and paths by absolute ones."""
    data = config.data

    def absolute(name: str | None) -> str | None:
        return str(Path(name).absolute()) if name is not None and Path(name).exists() else name

    data = replace(
        data, manifest=absolute(data.manifest) or "", genomes=absolute(data.genomes), split=absolute(data.split)
    )
    return finetune.resolve(replace(config, data=data))


def open_task(
    config: FinetuneSpeciesConfig, *, on_progress: Progress | None = None, warn: Say | None = None
) -> "SpeciesTask":
    """Open the genomes of a resolved configuration.

    Raises:
        InputError: The manifest or a file is at fault, or the split cannot be made.
    """
    return SpeciesTask(config, open_labelled(config.data, on_progress=on_progress, warn=warn))


def plan_as_text(config: FinetuneSpeciesConfig, *, on_progress: Progress | None = None, warn: Say | None = None) -> str:
    """Check everything that a run needs, and say what it would do."""
    config = resolve(config)
    return finetune.plan_as_text(config, open_task(config, on_progress=on_progress, warn=warn), warn)


def run(
    config: FinetuneSpeciesConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    make_callbacks: Callable[[], Sequence["L.Callback"]] = list,
    on_progress: Progress | None = None,
    say: Say | None = None,
    warn: Say | None = None,
) -> FinetuneResult:
    """Fine-tune for species and score at every length; arguments and errors are those of `finetune.run`.

    Args:
        config: What to do.
        out: The run directory.
        resume: Go on with the run in `out`.
        overwrite: Replace the run in `out`.
        make_callbacks: Gives more Lightning callbacks, such as a progress bar, when a training begins.
        on_progress: Called while a FASTA is packed.
        say: Called with what is being done.
        warn: Called with sentences that deserve attention.
    """
    config = resolve(config)
    task = open_task(config, on_progress=on_progress, warn=warn)
    result = finetune.run(
        config, task, out, resume=resume, overwrite=overwrite, make_callbacks=make_callbacks, say=say, warn=warn
    )
    draw_or_say(lambda: draw_series(result, out / "accuracy.png"), out / "accuracy.png", warn)
    return result


class SpeciesTask(Task[FinetuneSpeciesConfig]):
    """Tell the classes of labelled genomes apart, on loci that were not trained on."""

    command: ClassVar[str] = "finetune species"
    validation: ClassVar[tuple[str, ...]] = ("valid_accuracy", "valid_log_loss")

    def __init__(self, config: FinetuneSpeciesConfig, genomes: LabelledGenomes):
        super().__init__(config)
        self.genomes, self.labels = genomes, genomes.labels
        self.simulated = (Path(config.data.manifest).parent / TRUTH).exists()
        self.found: ClassReport | None = None
        self._contigs = [(contig.genome, contig.contig) for contig in genomes.split.train]
        self._numbers = {contig: number for number, contig in enumerate(self._contigs)}
        self._drawn: dict[tuple[str, int], LabelledWindows] = {}
        self._places: dict[tuple[str, int], list[Place]] = {}

    def head(self, width: int) -> ClassHead:
        """Make a head that scores every class."""
        return ClassHead(width, self.labels, self.config.pooling)

    def describe(self) -> dict[str, object]:
        """Say which assemblies these are and how they are split."""
        return describe(self.genomes)

    def identity(self) -> str:
        """Give a checksum of the genomes and the split."""
        return identity(self.genomes)

    def seed_of(self, part: str) -> int:
        """Give the seed of a part's draws; that of the training moves no window that it is judged on."""
        return (self.config.seed if part == "train" else self.config.evaluation.seed) + PARTS.index(part)

    def _windows(self, part: str, length: int) -> LabelledWindows:
        if (part, length) not in self._drawn:
            self._drawn[part, length] = self.genomes.windows(part, length, self.seed_of(part), self.config.data)
        return self._drawn[part, length]

    def places(self, part: str, length: int) -> list[Place]:
        """Give the windows that validate or test."""
        if (part, length) not in self._places:
            evaluation = self.config.evaluation
            number = evaluation.valid_windows if part == "valid" else evaluation.test_windows
            self._places[part, length] = self._windows(part, length).places(number)
        return self._places[part, length]

    def check(self, length: int, warn: Say | None) -> None:
        """Try to draw windows of every part and class; say how many contigs are too short."""
        for part in PARTS if self.genomes.held_out is not None else PARTS[:3]:
            windows = self._windows(part, length)
            if warn and windows.too_short:
                held_out = self.genomes.held_out
                contigs = held_out.test if part == "held out" and held_out else getattr(self.genomes.split, part)
                warn(
                    f"{len(windows.too_short):,} of the {len(contigs):,} contigs of {part}, with "
                    f"{sum(c.length for c in windows.too_short):,} bases, are shorter than a window of {length:,} bases and "
                    f"are left out"
                )
            if part == "train":
                for label in windows.labels:
                    windows.try_class(label)
            else:
                self.places(part, length)

    def remark(self) -> str | None:
        """Say what contigs are in no part."""
        left_out = self.genomes.split.left_out
        if not left_out:
            return None
        return (
            f"{len(left_out):,} contigs with {sum(c.length for c in left_out):,} bases are in no part: without a verified "
            f"homologue, or with parts of several; dna-mamba genome audit lists them by class"
        )

    def plan(self) -> list[str]:
        """Count the bases of each part by class."""
        lines = []
        for part in ("train", "valid", "test", "left_out"):
            contigs = getattr(self.genomes.split, part)
            each = ", ".join(f"{label} {sum(c.length for c in contigs if c.label == label):,}" for label in self.labels)
            lines.append(f"{part.replace('_', ' ')}: {each} bases")
        return lines

    @property
    def contig_names(self) -> list[str]:
        """Name contigs with their assembly."""
        return [f"{genome}:{contig}" for genome, contig in self._contigs]

    def draw(self, length: int, epoch: int, index: int, purpose: int = 0) -> Drawn:
        """Draw a class, a contig of it, and a start."""
        windows = self._windows("train", length)
        place = windows.place(epoch, index, purpose)
        label, contig = self.labels.index(place.label), self._numbers[place.genome, place.contig]
        return Drawn(windows.stored(place), label, contig, place.start)

    def write_windows(self, length: int, folder: Path) -> None:
        """Write valid.tsv and test.tsv."""
        for part in ("valid", "test"):
            write_places(folder / f"{part}.tsv", self.places(part, length), length)

    def about_model(self) -> dict[str, object]:
        """Name the manifest."""
        return {"manifest": self.genomes.manifest.name}

    def _report(self, reader: Reader, windows: LabelledWindows, places: Sequence[Place]) -> ClassReport:
        found_NK = probabilities(reader.outputs(_reading(windows, places), len(places)))
        return report(found_NK, self._truth(places), self.labels, effective=windows.independent(places))

    def _truth(self, places: Sequence[Place]) -> np.ndarray:
        return np.array([self.labels.index(place.label) for place in places])

    def validate(self, reader: Reader) -> Validation:
        """Score the validation windows: accuracy, then log loss."""
        found = self._report(reader, self._windows("valid", reader.length), self.places("valid", reader.length))
        accuracy = found.accuracy
        return Validation(
            better=(accuracy.value, -found.log_loss),
            shown=f"{accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}), log loss {found.log_loss:.3f}",
            cells={"valid_accuracy": f"{accuracy.value:.17g}", "valid_log_loss": f"{found.log_loss:.17g}"},
            logged={"valid/accuracy": accuracy.value, "valid/log_loss": found.log_loss},
        )

    def rows(self, trained: Trained, say: Say) -> Iterator[list[ResultRow]]:
        """Answer the test windows, then the controls, the baselines, the likelihood ratio, the oracle, and chance."""
        reader, evaluation = trained.reader, self.config.evaluation
        test, places = self._windows("test", reader.length), self.places("test", reader.length)
        say("scoring the test windows")
        found = self.found = self._report(reader, test, places)
        sizes = reader.model.config
        detail = f"began with {trained.began_with}; epoch {trained.epoch} chosen on validation"
        yield [_row(f"{sizes.title}, {self.config.pooling}", detail, found)]
        yield self._controls(reader)
        number = min(evaluation.baseline_windows, MOST_BASELINE_BASES // reader.length)
        if evaluation.baseline_windows and number < 10 * len(self.labels):
            say(f"no k-mer baseline: windows of {reader.length:,} bases are too long to hold enough of them")
        elif evaluation.baseline_windows:
            say("fitting k-mer and GC baselines")
            yield [_row(b.name, b.chosen, b.report) for b in self._baselines(reader.length, number)]
        if evaluation.likelihood_ratio.steps:
            yield [self._likelihood_ratio(trained, test, places, say)]
        yield self._oracle(test, places, say)
        chance = 1 / len(self.labels)
        yield [ResultRow(name="chance", detail=f"{len(self.labels)} classes", value=chance)]

    def _likelihood_ratio(
        self, trained: Trained, test: LabelledWindows, places: Sequence[Place], say: Say
    ) -> ResultRow:
        name, reader = "likelihood ratio, one model a class", trained.reader
        if not trained.language_model.backbone.causal:
            return ResultRow(name=name, detail="not possible: the layers read both ways", value=None)
        say("training a language model a class, for the likelihood ratio")
        found_NK, words = likelihood_ratio(
            self.config.evaluation.likelihood_ratio, trained.language_model, self._windows("train", reader.length), test,
            places, self.labels, reader.piece_bases, trained.device, self.config.seed, say, reader.autocast,
        )  # fmt: skip
        found = report(found_NK, self._truth(places), self.labels, effective=test.independent(places))
        return _row(name, words, found)

    def _baselines(self, length: int, number: int) -> list[Baseline]:
        def read(windows: LabelledWindows, places: Sequence[Place]) -> tuple[np.ndarray, np.ndarray]:
            return np.stack([windows.stored(place) for place in places]), self._truth(places)

        train, valid, test = (self._windows(part, length) for part in ("train", "valid", "test"))
        of_test = self.places("test", length)
        return baselines(
            read(train, [train.place(0, i) for i in range(number)]),
            read(valid, self.places("valid", length)),
            read(test, of_test),
            self.labels,
            effective=test.independent(of_test),
        )

    def _controls(self, reader: Reader) -> list[ResultRow]:
        """Score windows without repeats, and other individuals."""
        rows = []
        if self.config.evaluation.repeats_stripped:
            rows.append(self._without_repeats(reader))
        if self.genomes.held_out is not None:
            windows = self._windows("held out", reader.length)
            found = self._report(reader, windows, self.places("held out", reader.length))
            rows.append(_row("the same, other individuals", ", ".join(self.config.data.held_out_assemblies), found))
        return rows

    def _without_repeats(self, reader: Reader) -> ResultRow:
        name = f"the same, windows with at most {MAX_MASKED:.0%} repeats and no N"
        number = self.config.evaluation.test_windows
        plain = [n for n, store in self.genomes.stores.items() if not any(c.num_masked for c in store.manifest.contigs)]
        if plain:
            return ResultRow(name=name, detail=f"not possible: {plain[0]} is not soft-masked", value=None)
        try:
            windows = self.genomes.windows(
                "test", reader.length, self.seed_of("test"), self.config.data, max_masked=MAX_MASKED, drop_n=True
            )
            found = self._report(reader, windows, windows.places(number))
        except InputError as error:
            return ResultRow(name=name, detail=f"not possible: {error}", value=None)
        return _row(name, f"{number:,} windows of their own draw", found)

    def _oracle(self, test: LabelledWindows, places: Sequence[Place], say: Say) -> list[ResultRow]:
        if not self.simulated:
            return []
        folder = Path(self.config.data.manifest).parent
        bases_of = dict.fromkeys(self.labels, 0)
        for one in self.genomes.manifest.classes:
            bases_of[one.label] += sum(self.genomes.stores[assembly.name].num_bases for assembly in one.assemblies)
        truth = read_truth(folder, bases_of)
        if set(truth.species) != set(self.labels):
            say("no oracle: the classes are not the species of the simulation")
            return []
        # what it sees in windows that overlap is the same; where nothing is planted, its answers are draws of their own
        overlapping = test.independent(places) if truth.branches else None
        answers = counted(truth, places, test.length, effective=overlapping)
        return [
            _counted("oracle, counted on the same windows", "sees every planted insertion in the window", answers),
            ResultRow(name="oracle, closed form", detail="from the rates", value=attainable(truth, test.length)),
        ]

    def draw_pictures(self, folder: Path, title: str) -> None:
        """Draw the confusion matrix."""
        assert self.found is not None
        draw_confusion(self.found, folder / "confusion.png", f"{'SIMULATED: ' if self.simulated else ''}{title}")


def _reading(windows: LabelledWindows, places: Sequence[Place]) -> Windows:
    return lambda i: windows.stored(places[i])


def _row(name: str, detail: str, found: ClassReport) -> ResultRow:
    return replace(_counted(name, detail, found.accuracy), report=found.as_dict())


def _counted(name: str, detail: str, share: Share) -> ResultRow:
    return ResultRow(name=name, detail=detail, value=share.value, accuracy=share)
