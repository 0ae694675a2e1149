"""bench: speed and memory on this machine."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dna_mamba.cli import console, options
from dna_mamba.cli.apps import bench_app
from dna_mamba.cli.train import piece_bases
from dna_mamba.device import check_device
from dna_mamba.errors import InputError, StoppedError

if TYPE_CHECKING:
    from dna_mamba.pipelines.benchmark import BenchRow


def _parse_shapes(shape: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    try:
        shapes = []
        for text in shape:
            batch, channels, length = map(int, text.split(","))
            shapes.append((batch, channels, length))
    except ValueError as error:
        raise InputError(f"--shape {' '.join(shape)!r} is not BATCH,CHANNELS,LENGTH, such as 1,256,1048576") from error
    return tuple(shapes)


def _bench(run: Callable[..., Any], json: bool) -> None:
    """Run a benchmark; its rows are shown as they come, as lines of the JSON document or on stderr, then in one table."""
    from dna_mamba.files import json_text
    from dna_mamba.pipelines import reports

    begun = False

    def on_row(row: "BenchRow") -> None:
        nonlocal begun
        if json:
            print((", " if begun else '{"as_they_came": [\n') + json_text(row.as_dict(), default=str), flush=True)
            begun = True
            return
        numbers = (
            f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.as_dict().items()
        )
        console.say("  " + "; ".join(list(numbers)[:4]))

    result = run(on_phase=console.say, on_row=on_row)
    if not json:
        console.stdout.print(reports.bench_as_table(result))
        return
    print(
        ("" if begun else '{"as_they_came": [')
        + "], "
        + json_text(reports.bench_as_dict(result), indent=1, default=str)[1:]
    )


def _bench_kernels(
    what: str, *, shape: tuple[str, ...] = (), alone: bool = False, json: bool = False, **options: Any
) -> None:
    from dna_mamba.pipelines.configs import bench as configs

    config = configs.KernelBenchConfig(what=what, shapes=_parse_shapes(shape), competitors=not alone, **options)
    from dna_mamba.pipelines import benchmark_kernels as pipeline

    _bench(partial(pipeline.run, config), json)


@bench_app.command
def scan(
    *,
    device: options.Device = "auto",
    precision: str = "auto",
    shape: options.Words = (),
    states: options.States = 16,
    repeats: options.Repeats = 7,
    alone: options.Alone = False,
    with_: Annotated[
        tuple[str, ...], Parameter(name="--with", consume_multiple=True, negative="", show_default=False)
    ] = (),
    json: options.Json = False,
) -> None:
    """Time the selective scan, forward and backward, and its memory.

    On a GPU: ours beside the plain loop, torch's associative_scan compiled, attention and an FFT convolution at the same
    width and bases, and mamba_ssm where it is installed, as times of the floor that the GPU's exponentials and memory set. On a
    CPU: compiled beside plain, as ratios of one run.

    Parameters
    ----------
    precision
        fp32 or bf16 inputs; auto is bf16 on a GPU; a CPU computes in fp32.
    shape
        BATCH,CHANNELS,LENGTH; on a GPU one or more, by default a list of typical ones; on a CPU one, by default 1,256,16384.
    with_
        Slow extras on a CPU: transformers (a Mamba block in its plain-torch path at length 4,096; minutes), million (time a
        base at 1,048,576 positions).
    """
    from dna_mamba.pipelines.configs import bench as configs

    shapes = _parse_shapes(shape) or ((1, 256, 16384),)
    check_device(device)
    import torch

    if device != "cpu" and (device != "auto" or torch.cuda.is_available()):
        if with_:
            raise InputError(f"--with {' '.join(with_)} is timed on a CPU alone; add --device cpu")
        _bench_kernels("scan", device=device, precision=precision, shape=shape, states=states, repeats=repeats,
                       alone=alone, json=json)  # fmt: skip
        return
    if precision not in ("auto", "fp32"):
        raise InputError(f"--precision {precision!r}: on a CPU the scan is timed in fp32; leave it out")
    if alone:
        raise InputError("--alone leaves out what runs on a GPU; on a CPU the two implementations are compared")
    if len(shapes) > 1:
        raise InputError(f"--shape {' '.join(shape)}: on a CPU one shape at a time")
    sequences, channels, length = shapes[0]
    config = configs.ScanBenchConfig(
        batch=sequences, length=length, channels=channels, states=states, repeats=repeats, extras=with_
    )
    from dna_mamba.pipelines import benchmark as pipeline

    _bench(partial(pipeline.run_scan, config), json)


@bench_app.command
def conv(
    *,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    shape: options.Shape = (),
    repeats: options.Repeats = 7,
    alone: options.Alone = False,
    json: options.Json = False,
) -> None:
    """Time the causal convolution (4 taps, silu) against the memory it must move."""
    _bench_kernels("conv", device=device, precision=precision, shape=shape, repeats=repeats, alone=alone, json=json)


@bench_app.command
def norm(
    *,
    device: options.Device = "auto",
    precision: str = "auto",
    repeats: options.Repeats = 7,
    alone: options.Alone = False,
    json: options.Json = False,
) -> None:
    """Time the norm with its residual sum against the memory it must move.

    Parameters
    ----------
    precision
        fp32 or bf16 inputs beside the float32 residual; auto is bf16 on a GPU.
    """
    _bench_kernels("norm", device=device, precision=precision, repeats=repeats, alone=alone, json=json)


@bench_app.command
def loss(
    *,
    device: options.Device = "auto",
    repeats: options.Repeats = 7,
    alone: options.Alone = False,
    json: options.Json = False,
) -> None:
    """Time the next-base loss against the memory it must move."""
    _bench_kernels("loss", device=device, repeats=repeats, alone=alone, json=json)


@bench_app.command
def step(
    *,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    repeats: options.Repeats = 7,
    alone: options.Alone = False,
    json: options.Json = False,
) -> None:
    """Time one base through whole models, as generation does it: as called, and on a GPU as one CUDA graph."""
    _bench_kernels("step", device=device, precision=precision, repeats=repeats, alone=alone, json=json)


@bench_app.command
def block(
    *,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    shape: options.Words = (),
    states: options.States = 16,
    repeats: options.Repeats = 7,
    alone: options.Alone = False,
    json: options.Json = False,
) -> None:
    """Time a whole Mamba block, projections included, as it is trained.

    Parameters
    ----------
    shape
        BATCH,WIDTH,LENGTH, one or more; without it widths of 128, 256 and 1024 at 1,048,576 bases.
    """
    _bench_kernels("block", device=device, precision=precision, shape=shape, states=states, repeats=repeats, alone=alone,
                   json=json)  # fmt: skip


@bench_app.command
def train(
    *,
    model: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ("6x128",),
    seq_len: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (1024, 16384, 131072, 1048576),
    bases_per_step: int = 2**20,
    piece_len: options.PieceLen = None,
    recomputed_layers: int = 0,
    device: options.Device = "auto",
    precision: str = "auto",
    repeats: int = 5,
    profile: options.Flag = False,
    json: options.Json = False,
) -> None:
    """Time whole training steps on random bases: forward, backward, clipping and AdamW; memory; and the loader beside them.

    Parameters
    ----------
    model
        Blocks x width, one or more.
    seq_len
        Lengths of the windows, one or more.
    bases_per_step
        Bases of an optimizer step, at least one window.
    recomputed_layers
        With --piece-len: so many layers are computed again in the backward (activation checkpointing).
    precision
        auto, fp32 or bf16.
    repeats
        Steps of each after the first; the median is printed.
    profile
        Print the kernels that take most time, on a GPU.
    """
    from dna_mamba.pipelines.configs import bench as configs

    config = configs.TrainBenchConfig(
        models=model, lengths=seq_len, bases_per_step=bases_per_step, piece_bases=piece_bases(piece_len),
        recomputed_layers=recomputed_layers, device=device, precision=precision, repeats=repeats, profile=profile,
    )  # fmt: skip
    from dna_mamba.pipelines import benchmark_training as pipeline

    _bench(partial(pipeline.run, config), json)


@bench_app.command(name="species")
def bench_species(
    *, genome: str = "demo", quick: options.Flag = False, seed: int = 0, out: Path = Path("runs/species-benchmark"),
    seq_len: int = 4096, overwrite: options.Flag = False, json: options.Json = False,
) -> None:  # fmt: skip
    """Simulate great apes with and without diagnostic insertions, fine-tune on both, and compare with baselines and oracle.

    Parameters
    ----------
    genome
        Human sequence to begin with; 'demo' is the one in the package.
    quick
        Leave the likelihood-ratio baseline out.
    seed
        Of simulation, windows and training.
    out
        Directory for genomes, runs, table.md and pictures.
    seq_len
        Bases of a window.
    overwrite
        Replace an earlier benchmark in --out.
    """
    from dna_mamba.pipelines.configs import bench as configs

    config = configs.SpeciesBenchConfig(genome=genome, quick=quick, seed=seed, seq_len=seq_len)
    from dna_mamba.pipelines import benchmark_species as pipeline

    result = pipeline.run(config, out, overwrite=overwrite, say=console.say, warn=console.warn)
    console.print_json(result.as_dict()) if json else print(result.as_text())
    if leaks := result.leaks():
        raise StoppedError(f"leak: without diagnostics {leaks[0]}, which does not hold chance")


@bench_app.command(name="score")
def bench_score(
    *, model: str = "human-4x64", variants: str | None = None, genome: str = "demo", records: int = 32, left: int = 16384,
    right: int = 512, batch: int = 32, device: options.Device = "auto", json: options.Json = False,
) -> None:  # fmt: skip
    """Time variant scores: one pass with forks for all records, beside a sample of alleles scored from scratch.

    Parameters
    ----------
    model
        Run directory, model directory, or human-4x64.
    variants
        VCF; without it the 2,968 records of chr20:8,000,001-10,000,000 in the package.
    genome
        Genome of the VCF.
    records
        Records of the sample.
    left
        Left context from scratch.
    right
        Right flank.
    batch
        Sequences of a batch from scratch.
    """
    from dna_mamba.pipelines.configs import bench as configs

    config = configs.ScoreBenchConfig(
        model=model,
        variants=variants,
        genome=genome,
        records=records,
        left=left,
        right=right,
        batch=batch,
        device=device,
    )
    from dna_mamba.pipelines import benchmark_score as pipeline

    _bench(partial(pipeline.run, config), json)


@bench_app.command(name="genome")
def bench_genome(*, megabases: int = 32, json: options.Json = False) -> None:
    """Time packing and reading of a random genome against pyfaidx, as ratios of one run.

    Parameters
    ----------
    megabases
        Size of the genome that is made up for it.
    """
    from dna_mamba.pipelines.configs import bench as configs

    config = configs.GenomeBenchConfig(megabases=megabases)
    from dna_mamba.pipelines import benchmark as pipeline

    _bench(partial(pipeline.run_genome, config), json)


@bench_app.command(name="vcf")
def bench_vcf(
    *, records: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (100_000, 1_000_000),
    samples: int = 1, json: options.Json = False,
) -> None:  # fmt: skip
    """Time reading and writing of VCF by score, nothing in it to be scored, beside bcftools view, as ratios of one run.

    Parameters
    ----------
    records
        Records of the files that are made up for it, one or more numbers; memory is printed for each.
    samples
        Samples a record.
    """
    from dna_mamba.pipelines.configs import bench as configs

    config = configs.VcfBenchConfig(records=records, samples=samples)
    from dna_mamba.pipelines import benchmark_vcf as pipeline

    _bench(partial(pipeline.run, config), json)
