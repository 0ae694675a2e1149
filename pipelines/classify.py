# Shapes: B sequences, T positions, K classes
"""Class probabilities of records, intervals or windows, each read in full in memory that does not grow with its length."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dna_mamba.alphabet import A
from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.windows import known_bases
from dna_mamba.device import find_device
from dna_mamba.errors import InputError
from dna_mamba.files import check_is_no_input, write_table
from dna_mamba.model.checkpoints.native import load_classifier
from dna_mamba.model.heads.classes import ClassHead
from dna_mamba.model.implementation import implementation_for
from dna_mamba.model.sequence_model import SequenceModel
from dna_mamba.pipelines.configs.read import ClassifyConfig
from dna_mamba.pipelines.sequences import open_sequences, read_piece, warn_if_longer
from dna_mamba.progress import Progress
from dna_mamba.reading.outputs import probabilities, vectors_of
from dna_mamba.reading.pieces import piece_on

MOST_AT_ONCE = 512
NO_BASE = "no_base"
"""Answer where a sequence holds no A, C, G or T; its probabilities are left empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One answer."""

    interval: Interval
    name: str
    label: str
    probabilities: tuple[float, ...]
    share_n: float
    """Of the bases that are none of A, C, G and T."""


@dataclass(frozen=True, kw_only=True)
class ClassifyResult:
    """What was classified."""

    labels: tuple[str, ...]
    num_rows: int
    num_bases: int
    seconds: float
    counts: dict[str, int]
    """Rows by answer."""


def find_classifier(path: Path) -> Path:
    """Find the model directory from a run with one length, the folder of a length, or the directory itself.

    Raises:
        InputError: There is none, or there are several.
    """
    for folder in (path, path / "model"):
        if (folder / "config.json").exists():
            return folder
    found = sorted((path / "lengths").glob("*/model/config.json"), key=lambda file: int(file.parts[-3]))
    if len(found) == 1:
        return found[0].parent
    if found:
        lengths = ", ".join(file.parts[-3] for file in found)
        raise InputError(f"{path} has models of lengths {lengths}; name one, such as {found[-1].parent}")
    raise InputError(f"{path} is neither a classifier nor a fine-tuning run: no config.json found")


def run(
    config: ClassifyConfig,
    *,
    on_labels: Callable[[tuple[str, ...]], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_bases: Callable[[int, int], None] | None = None,
) -> ClassifyResult:
    """Classify, and write a table (TSV) if `out` is given; the table is whole or absent. Rows are also handed to `on_row`.

    Raises:
        InputError: The model, the sequences or the output is at fault.
    """
    started = time.monotonic()
    device = find_device(config.device)
    if config.out is not None and config.out.is_dir():
        raise InputError(f"-o {config.out} is a directory; name a file in it")
    check_is_no_input(config.out, config.sequences, config.genome)
    model, head, training = load_classifier(find_classifier(config.model))
    model.use_implementation(implementation_for(model.config, device)).to(device)
    genome, intervals = open_sequences(
        config.sequences, config.genome, config.window_bases, on_progress, warn, rna=config.rna
    )
    if not known_bases(genome, [place for place, _ in intervals]):
        raise InputError(f"{config.sequences} holds no A, C, G or T, so there is nothing to classify")
    warn_if_longer(training.get("seq_len"), max(map(len, (place for place, _ in intervals)), default=0), warn)
    if on_labels:
        on_labels(head.labels)
    counts = dict.fromkeys(head.labels, 0)
    num_rows = num_bases = 0
    all_bases = sum(len(place) for place, _ in intervals)

    def rows() -> Iterator[Row]:
        nonlocal num_rows, num_bases
        for row in classify(model, genome, intervals, config.piece_bases or piece_on(torch.device(device))):
            counts[row.label] = counts.get(row.label, 0) + 1
            num_rows, num_bases = num_rows + 1, num_bases + len(row.interval)
            if on_row:
                on_row(row)
            if on_bases:
                on_bases(len(row.interval), all_bases)
            yield row

    if config.out is None:
        for _ in rows():
            pass
    else:
        write_table(config.out, columns_of(head.labels), (cells_of(row) for row in rows()))
    return ClassifyResult(
        labels=head.labels, num_rows=num_rows, num_bases=num_bases, seconds=time.monotonic() - started, counts=counts
    )


def columns_of(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Name the columns of the table."""
    return ("contig", "start", "end", "strand", "name", "label", "share_n", *(f"p_{label}" for label in labels))


def cells_of(row: Row) -> tuple[str, ...]:
    """Give a row of the table; coordinates are 0-based, end excluded."""
    i = row.interval
    numbers = ("" if p != p else f"{p:.6g}" for p in row.probabilities)
    return (i.contig, str(i.start), str(i.end), i.strand, row.name, row.label, f"{row.share_n:.4g}", *numbers)


@torch.no_grad()
def classify(
    model: SequenceModel, genome: GenomeStore, intervals: Iterable[tuple[Interval, str]], piece_bases: int
) -> Iterator[Row]:
    """Give a row for each interval, in order; neighbours of one length are read together, long ones in pieces."""
    waiting: list[tuple[Interval, str]] = []
    for interval, name in intervals:
        fits = waiting and len(waiting[0][0]) == len(interval) and (len(waiting) + 1) * len(interval) <= piece_bases
        if waiting and not (fits and len(waiting) < MOST_AT_ONCE):
            yield from _rows(model, genome, waiting, piece_bases)
            waiting = []
        waiting.append((interval, name))
    if waiting:
        yield from _rows(model, genome, waiting, piece_bases)


def _rows(
    model: SequenceModel, genome: GenomeStore, some: list[tuple[Interval, str]], piece_bases: int
) -> Iterator[Row]:
    device = model.center_D.device
    length = len(some[0][0])
    num_n = np.zeros(len(some), np.int64)

    def tokens_of(start: int, end: int) -> torch.Tensor:
        tokens = np.stack([read_piece(genome, interval, start, end) for interval, _ in some])
        np.add(num_n, (tokens > A + 3).sum(1), out=num_n)
        return torch.from_numpy(tokens).to(device)

    head = model.head
    assert isinstance(head, ClassHead)
    found_BK = probabilities(model.outputs(vectors_of(model, tokens_of, length, piece_bases)))
    for (interval, name), found_K, n in zip(some, found_BK.tolist(), num_n.tolist(), strict=True):
        label = head.labels[int(np.argmax(found_K))]
        if n == length:  # nothing was said that could tell classes apart
            label, found_K = NO_BASE, [float("nan")] * len(found_K)
        yield Row(interval=interval, name=name, label=label, probabilities=tuple(found_K), share_n=n / length)
