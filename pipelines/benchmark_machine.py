"""A machine to time kernels on: calls in turn on inputs of their own, against what the GPU can do at most."""

import contextlib
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dna_mamba.pipelines.benchmark import BenchRow, OnRow, quiet
from dna_mamba.pipelines.configs.bench import KernelBenchConfig

Call = Callable[[], object]
TOO_SLOW_SECONDS = 10.0
TOO_SLOW_TO_COMPILE_SECONDS = 90.0
ROTATED_BYTES = 2**28
"""Inputs smaller than this are rotated, so that none lies in a cache from the call before."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A machine to time on, and what it can do at most."""

    device: str
    dtype: torch.dtype
    config: KernelBenchConfig
    bytes_a_second: float | None
    exps_a_second: float | None
    say: Callable[[str], None]
    busy: Tensor
    """Memory to write to, for about a millisecond."""
    on_row: OnRow | None = None

    @property
    def implementations(self) -> tuple[str, ...]:
        """Name ours to time: the reference and the fastest on this machine."""
        return ("naive", "triton") if self.device == "cuda" else ("naive", "cpu")

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Draw random numbers, never zeros."""
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)

    def time(self, calls: list[Call]) -> tuple[float, float] | str:
        """Time calls on inputs of their own in turn: median and half the spread in ms, or why there is none."""
        try:
            with within(TOO_SLOW_TO_COMPILE_SECONDS):
                started = time.perf_counter()
                calls[0]()
                self.wait()
                if time.perf_counter() - started > TOO_SLOW_SECONDS:
                    started = time.perf_counter()
                    calls[0]()  # the first may have compiled
                    self.wait()
                    if time.perf_counter() - started > TOO_SLOW_SECONDS:
                        return "too slow"
            times = [self._once(calls[i % len(calls)]) for i in range(self.config.repeats)]
        except Exception as error:
            return why_none(error)
        return statistics.median(times), (max(times) - min(times)) / 2

    def time_with_host(self, call: Call) -> tuple[float, float]:
        """Time a call as a loop over it takes, launches included: median and half the spread in ms."""
        count = 20

        def loop() -> None:
            for _ in range(count):
                call()
            self.wait()

        loop()
        times = []
        for _ in range(self.config.repeats):
            started = time.perf_counter()
            loop()
            times.append(1e3 * (time.perf_counter() - started) / count)
        return statistics.median(times), (max(times) - min(times)) / 2

    def wait(self) -> None:
        """Let the GPU finish."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _once(self, call: Call) -> float:
        if self.device == "cpu":
            started = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - started)
        # The GPU is kept busy while the host prepares the call, so that launching it is not part of its time; the same
        # bytes push what the call before has read out of the caches.
        for _ in range(4):
            self.busy.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def row(
        self,
        name: str,
        make: Callable[[], tuple[Call, Call]],
        input_bytes: float,
        floors_ms: tuple[float, float] | None = None,
    ) -> BenchRow:
        """Time forward, and forward and backward, of what make gives for inputs of its own."""
        self.say(name)
        with quiet():
            return self._row(name, make, input_bytes, floors_ms)

    def _row(
        self,
        name: str,
        make: Callable[[], tuple[Call, Call]],
        input_bytes: float,
        floors_ms: tuple[float, float] | None,
    ) -> BenchRow:
        row = BenchRow(name)
        torch.manual_seed(0)  # so that all see the same numbers
        try:
            pairs = [make() for _ in range(max(1, min(8, int(ROTATED_BYTES // max(1.0, input_bytes)))))]
        except Exception as error:
            return BenchRow(name, dict.fromkeys(("forward ms", "forward+backward ms"), why_none(error)))
        found: tuple[float, float] | str = ""
        for column, index in (("forward", 0), ("forward+backward", 1)):
            found = self.time([pair[index] for pair in pairs])
            if isinstance(found, str):
                row.cells[f"{column} ms"] = found
                continue
            row.cells[f"{column} ms"], row.cells[f"{column} +-"] = found
            if floors_ms is not None:
                row.cells[f"{column}: times floor"] = found[0] / floors_ms[index]
        if self.device == "cuda":
            if not isinstance(found, str):  # forward and backward ran: once more, watched
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                kept = pairs[0][1]()
                row.cells["peak beyond inputs MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
                del kept
            del pairs
            torch.cuda.empty_cache()
        return row

    def bytes_ms(self, count: float) -> float:
        """Give the time in which so many bytes can be moved."""
        assert self.bytes_a_second is not None
        return 1e3 * count / self.bytes_a_second


def why_none(error: Exception) -> str:
    """Name what kept a call from being timed; a competitor's compiler or import can raise anything, and the table goes on."""
    if isinstance(error, TimeoutError):
        return "too slow to compile"
    if isinstance(error, torch.cuda.OutOfMemoryError) or "memory" in str(error):
        return "does not fit"
    return f"fails: {type(error).__name__}"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError when the work inside takes longer; outside the main thread there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
