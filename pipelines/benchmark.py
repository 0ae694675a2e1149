"""Measure on this machine, ours beside others, on the same inputs in one run."""

import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dna_mamba.kernels.selective_scan import selective_scan
from dna_mamba.pipelines import run_directory
from dna_mamba.pipelines.configs.bench import GenomeBenchConfig, ScanBenchConfig

Cell = str | float | int | None
"""Of a table: a number, or why there is none."""


@dataclass(slots=True)
class BenchRow:
    """What was measured, and its numbers by column of the table."""

    what: str
    cells: dict[str, Cell] = field(default_factory=dict)

    def number(self, column: str) -> float:
        """Give a cell that is a number."""
        value = self.cells[column]
        assert isinstance(value, (int, float)), (self.what, column, value)
        return float(value)

    def as_dict(self) -> dict[str, Cell]:
        """Give plain values, as JSON has them."""
        return {"what": self.what, **self.cells}


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A table of measurements and what it ran on."""

    title: str
    hardware: str
    versions: dict[str, str]
    rows: tuple[BenchRow, ...]

    @property
    def columns(self) -> list[str]:
        """Name the columns beside the first, in the order in which they came."""
        return list(dict.fromkeys(column for row in self.rows for column in row.cells))


OnRow = Callable[[BenchRow], None]


class Rows(list[BenchRow]):
    """Measurements, handed on as they come, so that a benchmark that is stopped has said what it found.

    Args:
        on_row: Called with each row when it is added.
    """

    def __init__(self, on_row: OnRow | None = None):
        super().__init__()
        self._on_row = on_row or (lambda row: None)

    def append(self, row: BenchRow) -> None:
        """Add a row and hand it on."""
        super().append(row)
        self._on_row(row)

    def extend(self, rows: Iterable[BenchRow]) -> None:
        """Add rows one by one."""
        for row in rows:
            self.append(row)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what a competitor, its compiler or its processes print out of the output of a benchmark."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def make_result(title: str, device: str, rows: Sequence[BenchRow]) -> BenchResult:
    """Put the rows into one table, with what they ran on."""
    hardware = ", ".join(f"{key} {value}" for key, value in run_directory.hardware(device).items())
    return BenchResult(title=title, hardware=hardware, versions=run_directory.versions(), rows=tuple(rows))


def _seconds(function: Callable[[], object], repeats: int) -> float:
    """Time a call: the median of some runs after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _peak_growth(config: "ScanBenchConfig", implementation: str) -> int:
    """Bytes by which a forward and backward raised the peak memory of a process of their own.

    A process that has measured other things before holds freed memory, in which a peak would not show.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_growth_here, config, implementation).result()


def _peak_growth_here(config: "ScanBenchConfig", implementation: str) -> int:
    import psutil

    # compile first, on a shape too small to count
    _scan_calls(scan_inputs(1, 2, config.channels, config.states), implementation)[1]()
    inputs = scan_inputs(config.batch, config.length, config.channels, config.states)
    _, both = _scan_calls(inputs, implementation)
    process = psutil.Process()
    before = peak = process.memory_info().rss
    stop = threading.Event()

    def watch() -> None:  # the system's own record of the peak is inherited from the parent process
        nonlocal peak
        while not stop.wait(0.0005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = both()
    peak = max(peak, process.memory_info().rss)
    stop.set()
    watcher.join()
    del kept
    return peak - before


def scan_inputs(batch: int, length: int, channels: int, states: int) -> dict[str, Tensor]:
    """Draw inputs of the size that a trained layer has: decays from none to complete, never zeros."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "A": -torch.arange(1, states + 1, dtype=torch.float32).repeat(channels, 1),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": torch.ones(channels),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels) - 4.0,
    }


def _scan_calls(inputs: dict[str, Tensor], implementation: str) -> tuple[Callable[[], object], Callable[[], object]]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    gradient = torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(1))

    def forward() -> Tensor:
        with torch.no_grad():
            y = selective_scan(**leaves, delta_softplus=True, implementation=implementation)
        assert isinstance(y, Tensor)
        return y

    def both() -> object:
        y = selective_scan(**leaves, delta_softplus=True, implementation=implementation)
        assert isinstance(y, Tensor)
        return y, torch.autograd.grad(y, list(leaves.values()), gradient)

    return forward, both


def run_scan(
    config: ScanBenchConfig, *, on_phase: Callable[[str], None] | None = None, on_row: OnRow | None = None
) -> BenchResult:
    """Time forward and forward+backward of every implementation that runs on a CPU."""
    say = on_phase or (lambda words: None)
    implementations = ["naive", "cpu"]
    inputs = scan_inputs(config.batch, config.length, config.channels, config.states)
    size = sum(tensor.numel() * 4 for tensor in inputs.values())
    rows = Rows(on_row)
    for name in implementations:
        say(f"{name}: {config.batch} x {config.length:,} positions, {config.channels} channels, {config.states} states")
        forward, both = _scan_calls(inputs, name)
        repeats = 1 if name == "naive" else config.repeats
        row = BenchRow(name)
        row.cells["forward ms"] = 1e3 * _seconds(forward, repeats)
        row.cells["forward+backward ms"] = 1e3 * _seconds(both, repeats)
        row.cells["peak growth / (inputs + gradients)"] = _peak_growth(config, name) / (2 * size)
        rows.append(row)
    if len(rows) == 2:
        for column in ("forward", "forward+backward"):
            rows[1].cells[f"{column}: times naive"] = rows[0].number(f"{column} ms") / rows[1].number(f"{column} ms")
    if "million" in config.extras:
        rows.extend(_million(config, implementations[-1], say))
    if "transformers" in config.extras:
        rows.extend(_transformers(say))
    shape = f"batch {config.batch}, length {config.length:,}, {config.channels} channels, {config.states} states"
    return make_result(f"selective scan, {shape}", "cpu", rows)


def _million(config: ScanBenchConfig, implementation: str, say: Callable[[str], None]) -> list[BenchRow]:
    rows: list[BenchRow] = []
    for length in (16_384, 1_048_576):
        say(f"{implementation}: {length:,} positions")
        forward, both = _scan_calls(scan_inputs(1, length, config.channels, config.states), implementation)
        repeats = 1 if length > 16_384 else config.repeats
        rows.append(
            BenchRow(
                f"{implementation} at {length:,}",
                {
                    "forward ms": 1e3 * _seconds(forward, repeats),
                    "forward+backward ms": 1e3 * _seconds(both, repeats),
                },
            )
        )
    for column in ("forward", "forward+backward"):
        per_base = [row.number(f"{column} ms") / length for row, length in zip(rows, (16_384, 1_048_576), strict=True)]
        rows[1].cells[f"{column}: time a base, times that at 16,384"] = per_base[1] / per_base[0]
    return rows


def _transformers(say: Callable[[str], None]) -> list[BenchRow]:
    """Time a Mamba block of width 128 in transformers' plain-torch path beside ours, with the same weights."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer as Theirs

    from dna_mamba.model.mixers.mamba import MambaConfig as OurConfig

    torch.manual_seed(0)
    theirs = Theirs(MambaConfig(hidden_size=128, state_size=16, num_hidden_layers=1, use_bias=False), layer_idx=0)
    ours = OurConfig().build(128)
    ours.load_state_dict(theirs.state_dict())
    x_BTD = torch.randn(1, 4096, 128)
    rows: list[BenchRow] = []
    calls: list[tuple[str, torch.nn.Module, Callable[[Tensor], Tensor]]] = [
        ("transformers Mamba block at 4,096", theirs, lambda x: theirs(x)),
        ("our Mamba block at 4,096", ours, lambda x: ours(x)[0]),
    ]
    for name, module, call in calls:
        say(name)
        repeats = 1 if module is theirs else 5
        forward_seconds = both_seconds = float("inf")
        if module is not theirs:
            call(x_BTD).sum().backward()  # compile
        for _ in range(repeats):
            started = time.perf_counter()
            with torch.no_grad():
                call(x_BTD)
            forward_seconds = min(forward_seconds, time.perf_counter() - started)
            started = time.perf_counter()
            call(x_BTD).sum().backward()
            both_seconds = min(both_seconds, time.perf_counter() - started)
        rows.append(BenchRow(name, {"forward ms": 1e3 * forward_seconds, "forward+backward ms": 1e3 * both_seconds}))
    for column in ("forward", "forward+backward"):
        rows[1].cells[f"{column}: times transformers"] = rows[0].number(f"{column} ms") / rows[1].number(f"{column} ms")
    return rows


def run_genome(
    config: GenomeBenchConfig, *, on_phase: Callable[[str], None] | None = None, on_row: OnRow | None = None
) -> BenchResult:
    """Pack a random genome and read windows from it, beside pyfaidx decoding to the same codes."""
    import pyfaidx

    from dna_mamba.data.intervals import Interval
    from dna_mamba.data.store.build import build
    from dna_mamba.data.vocabulary import reverse_complement_tokens

    say = on_phase or (lambda words: None)
    generator = np.random.default_rng(0)
    num_bases = config.megabases * 2**20
    rows = Rows(on_row)
    code_of = np.full(256, 11, np.uint8)
    for value, letter in enumerate("ACGT"):
        code_of[ord(letter)] = code_of[ord(letter.lower())] = 7 + value
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "random.fa"
        letters = np.frombuffer(b"ACGT", np.uint8)[generator.integers(0, 4, num_bases)]
        lines = np.full((num_bases // 64, 65), ord("\n"), np.uint8)
        lines[:, :64] = letters.reshape(-1, 64)
        fasta.write_bytes(b">chr1\n" + lines.tobytes())
        say("building")
        started = time.perf_counter()
        store = build([fasta], Path(folder) / "random.dna")
        ours = time.perf_counter() - started
        started = time.perf_counter()
        reader = pyfaidx.Fasta(str(fasta))
        length = len(reader["chr1"][:].seq)
        theirs = time.perf_counter() - started
        assert length == num_bases
        rows.append(BenchRow("build a store, against pyfaidx index + read", {"ours us": ours * 1e6,
                     "pyfaidx us": theirs * 1e6, "times pyfaidx": theirs / ours}))  # fmt: skip
        for window, count in ((2**20, 24), (1024, 1024)):
            say(f"windows of {window:,}")
            starts = generator.integers(0, num_bases - window, count)
            intervals = [Interval("chr1", int(start), int(start) + window) for start in starts]

            def by_pyfaidx(starts: np.ndarray = starts, window: int = window) -> None:
                for start in starts.tolist():
                    code_of[np.frombuffer(reader["chr1"][start : start + window].seq.encode(), np.uint8)]

            def by_store(intervals: list[Interval] = intervals) -> None:
                for interval in intervals:
                    store.tokens(interval)

            def by_copy(starts: np.ndarray = starts, window: int = window) -> None:
                for start in starts.tolist():
                    store.stored("chr1", start, start + window).copy()

            def in_batches(starts: np.ndarray = starts, window: int = window) -> None:
                for first in range(0, len(starts), 256):
                    store.tokens_batch(["chr1"] * 256, starts[first : first + 256], window)

            theirs = _seconds(by_pyfaidx, 7) / count
            ours, copy = _seconds(by_store, 7) / count, _seconds(by_copy, 7) / count
            rows.append(BenchRow(f"tokens of {window:,} bases", {"ours us": ours * 1e6, "pyfaidx us": theirs * 1e6,
                         "times pyfaidx": theirs / ours, "copy us": copy * 1e6, "of a copy": ours / copy}))  # fmt: skip
            if window == 1024:
                batched = _seconds(in_batches, 7) / count
                rows.append(BenchRow("tokens of 1,024 bases in batches of 256", {"ours us": batched * 1e6,
                             "pyfaidx us": theirs * 1e6, "times pyfaidx": theirs / batched}))  # fmt: skip
        tokens = store.tokens(Interval("chr1", 0, 2**20))
        seconds = _seconds(lambda: reverse_complement_tokens(tokens), 20)
        rows.append(BenchRow("reverse complement of 2^20 tokens", {"ours us": seconds * 1e6}))
    return make_result(f"genome store, {config.megabases} Mb of random sequence", "cpu", rows)
