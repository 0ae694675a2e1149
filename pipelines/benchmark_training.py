"""Time whole training steps: what a run does, on random bases."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dna_mamba.data.datamodule import TrainingData
from dna_mamba.data.length_warmup import Stage
from dna_mamba.data.objectives import NextBase, TokenPolicy, sum_of_weights
from dna_mamba.data.splits import default_split
from dna_mamba.data.steps import StepBatch, TrainingSteps
from dna_mamba.data.store.build import build
from dna_mamba.data.windows import plan_windows
from dna_mamba.device import find_device, find_precision
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig, parse_size
from dna_mamba.model.implementation import implementation_for
from dna_mamba.pipelines.benchmark import BenchResult, BenchRow, Cell, OnRow, Rows, make_result
from dna_mamba.pipelines.configs.bench import TrainBenchConfig
from dna_mamba.pipelines.machines import this_gpu
from dna_mamba.pipelines.planning import Cut, choose_cut, memory_of_step
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.step import Stepper


def run(
    config: TrainBenchConfig, *, on_phase: Callable[[str], None] | None = None, on_row: OnRow | None = None
) -> BenchResult:
    """Time optimizer steps of every model at every length."""
    say = on_phase or (lambda words: None)
    device = find_device(config.device)
    precision = find_precision(config.precision, device)
    rows = Rows(on_row)
    for size in config.models:
        pattern, width = parse_size(size)
        model = BackboneConfig(pattern=pattern, width=width)
        for length in config.lengths:
            say(f"{size}, windows of {length:,}")
            rows.append(BenchRow(f"{size} at {length:,}", _row(config, model, device, precision, length, say)))
    say("loader")
    loader = _loader_rates(config, device)
    for row, length in zip(rows, config.lengths * len(config.models), strict=True):
        row.cells["loader, million bases/s"] = loader[length] / 1e6
    return make_result(f"training steps of {config.bases_per_step:,} bases, {precision}", device, rows)


def _row(
    config: TrainBenchConfig,
    model: BackboneConfig,
    device: str,
    precision: str,
    length: int,
    say: Callable[[str], None],
) -> dict[str, Cell]:
    machine = this_gpu() if device == "cuda" else None
    num_windows = max(1, config.bases_per_step // length)
    if config.piece_bases is None:
        cut = choose_cut(model, precision, machine, [length], num_windows * length)
    else:
        again = min(config.recomputed_layers, len(model.pattern))
        cut = Cut(piece_bases=config.piece_bases, kept_pieces=1, recomputed_layers=again)
    torch.manual_seed(0)
    stepper = Stepper(
        DnaMamba(model).to(device).use_implementation(implementation_for(model, device)),
        NextBase(TokenPolicy()),
        OptimizerConfig(),
        num_steps=100,
        stage_lengths=[length],
        contig_names=["random"],
        piece_bases=cut.piece_bases,
        kept_pieces=cut.kept_pieces,
        say=say,
    )
    stepper.model.backbone.recomputed_layers = cut.recomputed_layers
    optimizer = stepper.make_optimizer()
    places = torch.zeros(num_windows, 3, dtype=torch.long)

    def batch() -> StepBatch:
        stored = torch.randint(0, 4, (num_windows, length), dtype=torch.uint8)
        weights = sum_of_weights(stored.numpy(), TokenPolicy())
        return StepBatch(stored.to(device), places, weights)

    batches = [batch() for _ in range(2)]

    def step(number: int) -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            stepper.step(batches[number % 2], optimizer)

    def wait() -> None:
        stepper.read_steps()
        if device == "cuda":
            torch.cuda.synchronize()

    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step(0)  # compiles
    wait()
    seconds = []
    for number in range(config.repeats):
        started = time.perf_counter()
        step(number)
        wait()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    bases = num_windows * length
    row: dict[str, Cell] = {
        "ms a step": 1e3 * median,
        "+-": 1e3 * (max(seconds) - min(seconds)) / 2,
        "million bases/s": bases / median / 1e6,
        "piece": stepper.piece_bases,
        "kept": stepper.kept_pieces,
        "layers again": cut.recomputed_layers,
    }
    if device == "cuda":
        row["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
        row["planned GiB"] = memory_of_step(model, precision, cut, length, num_windows).total / 2**30
        if config.profile:
            say(_profile(step, wait))
        del stepper, optimizer, batches
        torch.cuda.empty_cache()
    return row


def _profile(step: Callable[[int], None], wait: Callable[[], None]) -> str:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step(0)
        wait()
    return found.key_averages().table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=60)


def _loader_rates(config: TrainBenchConfig, device: str) -> dict[int, float]:
    """Read steps as a run does, from a random genome in main memory's file cache; give bases a second by length."""
    longest = max(config.lengths)
    num_bases = max(2**24, 2 * longest)
    letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, num_bases)]
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "random.fa"
        fasta.write_bytes(b">chr1\n" + letters.tobytes() + b"\n>chr2\n" + letters[:10_000].tobytes() + b"\n")
        genome = build([fasta], Path(folder) / "random.dna")
        split = default_split(genome)
        for length in set(config.lengths):
            num_steps = 8
            steps = TrainingSteps(
                genome,
                [Stage(window_bases=length, num_steps=num_steps)],
                [plan_windows(genome, split, length, rule="mamba", max_n=0.5)],
                bases_per_step=max(config.bases_per_step, length),
                seed=0,
                policy=TokenPolicy(),
            )
            loader = iter(TrainingData(steps, num_workers=2 if device == "cuda" else 0).train_dataloader())
            next(loader)  # the workers start
            started = time.perf_counter()
            bases = sum(batch.stored_BT.numel() for batch in loader)
            rates[length] = bases / (time.perf_counter() - started)
    return rates
