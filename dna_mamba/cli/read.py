"""Reading with a model: losses, classes, vectors, tracks, new sequence."""

from pathlib import Path
from typing import Any, Literal

from dna_mamba.cli import console, options
from dna_mamba.cli.apps import app
from dna_mamba.errors import InputError


@app.command
def evaluate(
    model: options.Model,
    /,
    *,
    genome: str | None = None,
    split: Literal["train", "valid", "test"] = "test",
    split_file: Path | None = None,
    valid: options.Many = (),
    test: options.Many = (),
    region: options.Many = (),
    window: int = 8192,
    max_bases: int = 2**24,
    rna: options.Rna = False,
    device: options.ReadingDevice = "auto",
    out: Path | None = None,
    json: options.Json = False,
) -> None:
    """Score held-out bases: bits per base and perplexity, by kind of base, and by length of left context.

    Parameters
    ----------
    genome
        Genome to score; without it the one that the run was trained on.
    split
        Part to score: train, valid or test, of the split that the run recorded.
    split_file
        BED with CONTIG START END SPLIT, instead of the recorded split.
    valid
        Regions or contigs that make up validation, instead of the recorded split.
    test
        Regions or contigs that make up test, instead of the recorded split.
    region
        Score these regions (1-based, as in samtools: chr20:9000001-9100000, chr20:9000001-, chr20) and no split.
    window
        Longest left context in the table of loss against context, in bases.
    max_bases
        Score at most so many A, C, G and T, spread evenly over the part; the table of left context reads windows of its own, at
        least 16 a row.
    out
        Write results.json, context.csv and context.png into this new directory.
    """
    from dna_mamba.pipelines.configs import read as configs

    config = configs.EvaluateConfig(
        model=model, genome=genome, split=split, split_file=split_file, valid=valid, test=test, regions=region,
        window_bases=window, max_bases=max_bases, rna=rna, device=device, out=out,
    )  # fmt: skip
    from dna_mamba.pipelines import evaluate as pipeline
    from dna_mamba.pipelines import reports

    update, progress = console.packing()
    advance, reading = console.reading("scoring")
    with progress, reading:
        result = pipeline.run(config, on_progress=update, warn=console.warn, on_bases=advance)
    if json:
        console.print_json(reports.evaluation_as_dict(result))
    else:
        for table in reports.evaluation_as_tables(result):
            console.stdout.print(table)
        if result.out:
            print(f"results.json, context.csv and context.png -> {result.out}")


@app.command
def classify(
    model: Path,
    sequences: str,
    /,
    *,
    genome: options.GenomeOfBed = None,
    window: int | None = None,
    out: options.OutIfGiven = None,
    rna: options.Rna = False,
    device: options.ReadingDevice = "auto",
    json: options.Flag = False,
) -> None:
    """Say which class records, intervals or windows belong to, with probabilities. Records are read in full, at any length.

    Parameters
    ----------
    model
        Run of finetune species, or a model directory in it.
    sequences
        FASTA, GenBank or genome store (a row a record), or BED with --genome (a row an interval).
    window
        A row for each window of so many bases; the model answers best at the length it was trained at.
    out
        Write the table to this TSV file; without it, to standard output.
    json
        Print a summary as JSON; needs --out.
    """
    if json and out is None:
        raise InputError("--json prints a summary beside the table; say where the table goes with --out")
    from dna_mamba.pipelines.configs import read as configs

    def show_labels(labels: tuple[str, ...]) -> None:
        print("\t".join(pipeline.columns_of(labels)))

    def show(row: Any) -> None:
        print("\t".join(pipeline.cells_of(row)))

    config = configs.ClassifyConfig(
        model=model, sequences=sequences, genome=genome, window_bases=window, out=out, rna=rna, device=device
    )
    from dna_mamba.pipelines import classify as pipeline

    update, progress = console.packing()
    advance, reading = console.reading()
    with progress, reading:
        result = pipeline.run(
            config, on_labels=None if out else show_labels, on_row=None if out else show, on_progress=update, warn=console.warn,
            on_bases=advance if out else None,
        )  # fmt: skip
    if json:
        console.print_json({"out": str(out), "rows": result.num_rows, "bases": result.num_bases, "counts": result.counts,
                     "bases_per_second": result.num_bases / max(result.seconds, 1e-9)})  # fmt: skip
    elif out:
        counts = ", ".join(f"{label} {count:,}" for label, count in result.counts.items())
        print(f"{result.num_rows:,} rows, {result.num_bases:,} bases -> {out} ({counts})")


@app.command
def embed(
    model: options.Model,
    sequences: str,
    /,
    *,
    out: options.Out,
    genome: options.GenomeOfBed = None,
    layer: int = -1,
    pool: str = "mean",
    strands: options.Strands = "forward",
    window: int | None = None,
    shard: str = "1/1",
    rna: options.Rna = False,
    device: options.ReadingDevice = "auto",
    json: options.Json = False,
) -> None:
    """Write vectors of sequences, their windows or their bases, each read in full with a carried state.

    A run that was ended, however, goes on where it stopped when the same command is given again.

    Parameters
    ----------
    sequences
        FASTA, GenBank or genome store (each record), BED with --genome (each interval), or .csv or .tsv with a column
        named sequence, and perhaps name (each row).
    out
        File to write; its ending says the format: .npz, .parquet, .h5ad or .zarr.
    layer
        0 is the embedding, 1 the first layer, ...; -1 the last, after the final norm, -2 the one before it.
    pool
        mean, last or max over a sequence, window:N for the mean of every N bases, or none for a vector a base.
    window
        Cut the input into windows of so many bases first, each read without the bases before it.
    shard
        i/n: embed the i-th of n shares, on one of n machines; joined in order they are the one run, to the bit.
    """
    from dna_mamba.pipelines.configs import read as configs

    number, _, of = shard.partition("/")
    if not (number.isdecimal() and of.isdecimal() and shard.isascii()):
        raise InputError(f"--shard {shard!r} is not i/n, such as 1/4")
    config = configs.EmbedRunConfig(
        model=model, sequences=sequences, out=out, genome=genome, window_bases=window, device=device,
        embed=configs.EmbedConfig(layer=layer, pool=pool, strands=strands), shard=(int(number), int(of)), rna=rna,
    )  # fmt: skip
    from dna_mamba.pipelines import embed as pipeline

    update, progress = console.packing()
    advance, reading = console.reading()
    with progress, reading:
        result = pipeline.run(config, on_progress=update, warn=console.warn, on_bases=advance)
    speed = (result.num_bases - result.resumed_bases) / max(result.seconds, 1e-9)
    if result.resumed_bases:
        console.say(f"{result.resumed_bases:,} bases had been read by an earlier run")
    if json:
        console.print_json({"out": str(out), "rows": result.num_rows, "width": result.width, "bases": result.num_bases,
                     "bases_per_second": speed})  # fmt: skip
    else:
        print(
            f"{result.num_rows:,} vectors of {result.width}, {result.num_bases:,} bases at {speed:,.0f} bases/s -> {out}"
        )


@app.command
def track(
    model: options.Model,
    /,
    *,
    genome: options.Genome,
    region: options.Many = (),
    out: options.OutIfGiven = None,
    picture: Path | None = None,
    left: int = 16384,
    rna: options.Rna = False,
    device: options.ReadingDevice = "auto",
    json: options.Json = False,
) -> None:
    """Write bits per base along a genome as bigWig, as a picture, or both.

    Parameters
    ----------
    region
        Regions (1-based); without them every contig.
    out
        bigWig file, .bw or .bigwig.
    picture
        PNG file.
    left
        Bases read before each region, as context.
    """
    from dna_mamba.pipelines.configs import read as configs

    config = configs.TrackConfig(
        model=model, genome=genome, regions=region, out=out, picture=picture, left=left, rna=rna, device=device
    )
    from dna_mamba.pipelines import track as pipeline

    update, progress = console.packing()
    advance, reading = console.reading()
    with progress, reading:
        result = pipeline.run(config, say=console.say, on_progress=update, warn=console.warn, on_bases=advance)
    where = " and ".join(str(path) for path in (out, picture) if path is not None)
    if json:
        console.print_json(
            {"out": where, "bases": result.num_bases, "bits_per_base": result.bits_per_base, "seconds": result.seconds}
        )
    else:
        print(f"{result.num_bases:,} bases, {result.bits_per_base:.4f} bits per base -> {where}")


@app.command
def generate(
    model: options.Model,
    /,
    *,
    prompt: str = "ACGT",
    length: int = 1000,
    num: int = 1,
    temperature: float = 1.0,
    top_k: int = 4,
    top_p: float = 1.0,
    seed: int = 0,
    rna: options.Rna = False,
    device: options.ReadingDevice = "auto",
    out: options.OutIfGiven = None,
    json: options.Flag = False,
) -> None:
    """Draw new sequence from a language model, as FASTA with log-likelihoods in nats.

    Parameters
    ----------
    prompt
        Letters, or a FASTA file whose first record is read, at any length.
    length
        New bases of each sequence.
    num
        Sequences.
    temperature
        Above 1 more varied, below 1 less; 0 takes the likeliest base.
    top_k
        Draw from so many likeliest bases, 1 to 4.
    top_p
        Draw from the fewest bases that together have this probability.
    seed
        The same seed gives the same sequences: number k depends on the seed and k, not on how many are drawn.
    out
        Write the FASTA to this file; without it, to standard output.
    json
        Print a summary as JSON; needs --out.
    """
    if json and out is None:
        raise InputError("--json prints a summary beside the FASTA; say where that goes with --out")
    from dna_mamba.pipelines.configs import read as configs
    from dna_mamba.reading.settings import SamplingConfig

    config = configs.GenerateConfig(
        model=model, prompt=prompt, length=length, num=num, seed=seed, rna=rna, device=device, out=out,
        sampling=SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p),
    )  # fmt: skip
    from dna_mamba.pipelines import generate as pipeline

    update, progress = console.packing()
    with progress:
        result = pipeline.run(config, on_progress=update, warn=console.warn)
    if json:
        console.print_json({"out": str(out), "prompt_bases": result.prompt_bases, "seconds": result.seconds,
                     "sequences": [{"name": s.name, "bases": len(s.letters), "log_likelihood": s.log_likelihood,
                                    "bits_per_base": s.bits_per_base} for s in result.sequences]})  # fmt: skip
    elif out is None:
        print("".join(sequence.as_fasta() for sequence in result.sequences), end="")
    else:
        print(f"{num:,} sequences of {length:,} bases -> {out}")
