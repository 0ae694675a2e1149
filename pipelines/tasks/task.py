# Shapes: N windows, T bases, D model width
"""What a task promises: where its windows come from, the head that answers, and what its answers are held against."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from dna_mamba.data.steps import Drawn
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.heads.head import Head
from dna_mamba.model.sequence_model import SequenceModel
from dna_mamba.pipelines.class_metrics import Share
from dna_mamba.pipelines.configs.finetune import FinetuneRunConfig
from dna_mamba.reading.outputs import Windows, outputs_of_windows
from dna_mamba.training.schedule import Validation

STATISTICS = 1
"""Purpose of the draws that standardize vectors: none of them is one that trains."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """What one model, baseline or control reached on the test windows."""

    name: str
    detail: str
    value: float | None
    """The number of the table; none where it was not possible, and the detail says why."""
    accuracy: Share | None = None
    """Behind the value, where it is a share of right answers."""
    report: Mapping[str, Any] | None = None
    """All that was measured, as plain values."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "ResultRow":
        """Make a row from what stands in results.json.

        Raises:
            TypeError: It is something else.
        """
        share = values["accuracy"]
        return cls(**{**values, "accuracy": None if share is None else Share(**share)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A model at one window length, and how it is read on this machine."""

    model: SequenceModel
    length: int
    piece_bases: int
    autocast: Callable[[], torch.autocast]

    def outputs(self, windows: Windows, number: int) -> Tensor:
        """Give the outputs (N, ...) of windows."""
        self.model.eval()
        with self.autocast():
            return outputs_of_windows(self.model, windows, number, length=self.length, piece_bases=self.piece_bases)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A model that was trained, and where it came from."""

    reader: Reader
    """Of the epoch that validation chose."""
    language_model: DnaMamba
    """What the training began with; baselines may begin there too."""
    began_with: str
    epoch: int
    device: str


Config = TypeVar("Config", bound=FinetuneRunConfig)


class Task(ABC, Generic[Config]):
    """One supervised task on windows of several lengths.

    Args:
        config: Of the run, resolved.
    """

    command: ClassVar[str]
    """As it is called: 'finetune species'."""
    validation: ClassVar[tuple[str, ...]] = ()
    """Columns of metrics.csv that a validation fills."""
    labels: tuple[str, ...] = ()
    """Names of the classes, where there are any."""
    simulated: bool = False

    def __init__(self, config: Config):
        self.config = config

    @abstractmethod
    def head(self, width: int) -> Head:
        """Make the head that answers, for vectors of this width."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Say what the data are, for run.json."""

    @abstractmethod
    def identity(self) -> str:
        """Give a checksum of the data: what a run that is resumed must find unchanged."""

    @abstractmethod
    def check(self, length: int, warn: Say | None) -> None:
        """Try all that can go wrong at a window length before anything is written, and say what is left out.

        Raises:
            InputError: There are not enough windows of this length.
        """

    @property
    @abstractmethod
    def contig_names(self) -> list[str]:
        """Name what windows are drawn from, by the numbers that `draw` gives."""

    @abstractmethod
    def draw(self, length: int, epoch: int, index: int, purpose: int = 0) -> Drawn:
        """Draw a training window: it follows from these numbers and the seed alone; other purposes than 0 do not train."""

    @abstractmethod
    def validate(self, reader: Reader) -> Validation:
        """Answer the validation windows."""

    @abstractmethod
    def rows(self, trained: Trained, say: Say) -> Iterator[list[ResultRow]]:
        """Answer the test windows and set what others reach beside it; the model's own row comes first, one by one."""

    def remark(self) -> str | None:
        """Say what of the data deserves attention, once a run."""
        return None

    def plan(self) -> list[str]:
        """Say what the data are, for --dry-run."""
        return []

    def write_windows(self, length: int, folder: Path) -> None:
        """Write down which windows validate and test."""

    def about_model(self) -> dict[str, object]:
        """Give what stands in the config.json of the model beside its window length."""
        return {}

    def draw_pictures(self, folder: Path, title: str) -> None:
        """Draw what `rows` found."""


AnyTask = Task[Any]
"""Whatever its settings are."""
