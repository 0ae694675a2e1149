"""Variant effects: records of a VCF, and all substitutions of a region."""

import sys
from pathlib import Path

from dna_mamba.cli import console, options
from dna_mamba.cli.apps import app
from dna_mamba.errors import InputError


@app.command
def score(
    model: options.Model,
    variants: Path,
    /,
    *,
    genome: options.Genome,
    out: options.Out,
    left: str = "full",
    right: options.Right = 512,
    strands: options.Strands = "forward",
    distance: options.Flag = False,
    prefix: str = "DM",
    skip_mismatches: options.Flag = False,
    rna: options.Rna = False,
    device: options.ReadingDevice = "auto",
    json: options.Json = False,
) -> None:
    """Score variants: log P(ALT and the right flank | left context) minus the same of REF, in nats.

    Parameters
    ----------
    variants
        VCF file, plain, gzip or bgzip.
    out
        File to write; its ending says the format: .vcf, .vcf.gz, .tsv or .parquet.
    left
        Bases of left context, or full: from the first base of the contig, in one pass for all its records.
    distance
        Add DMDIST, the distance between the mean vectors of ALT and REF with their flank.
    prefix
        Of the names of the INFO fields and columns; another one keeps the scores of an earlier run.
    skip_mismatches
        Pass over records whose REF is not in the genome (ref_mismatch) or that are on none of its contigs (no_contig), instead
        of stopping.
    """
    from dna_mamba.pipelines.configs import score as configs

    config = configs.ScoreConfig(
        model=model, variants=variants, genome=genome, out=out, left=_left(left), right=right, strands=strands,
        distance=distance, skip_mismatches=skip_mismatches, prefix=prefix, rna=rna, device=device, command=_command(),
    )  # fmt: skip
    from dna_mamba.pipelines import score_variants as pipeline

    update, progress = console.packing()
    advance, reading = console.reading()
    with progress, reading:
        result = pipeline.run(config, say=console.say, on_progress=update, warn=console.warn, on_bases=advance)
    if json:
        console.print_json(
            {"out": str(out), "records": result.num_records, "alleles": result.status_counts, "seconds": result.seconds}
        )
    else:
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(result.status_counts.items()))
        print(f"{result.num_records:,} records ({counts}) in {result.seconds:,.0f} s -> {out}")


def _command() -> str:
    """Give the command line, without the name of the output: the same scores are the same bytes under any name."""
    import shlex

    words, kept = iter(sys.argv[1:]), ["dna-mamba"]
    for word in words:
        if word in ("-o", "--out"):
            next(words, None)
        elif not word.startswith(("-o=", "--out=")):
            kept.append(word)
    return shlex.join(kept)


def _left(text: str) -> int | None:
    if text != "full" and not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise InputError(f"--left {text!r} must be a number of bases, or full")
    return None if text == "full" else int(text)


@app.command
def mutate(
    model: options.Model,
    /,
    *,
    genome: options.Genome,
    region: str,
    out: options.OutIfGiven = None,
    picture: Path | None = None,
    left: str = "16384",
    right: options.Right = 512,
    strands: options.Strands = "forward",
    rna: options.Rna = False,
    device: options.ReadingDevice = "auto",
    json: options.Json = False,
) -> None:
    """Score every possible substitution in a region, as score does, into a table, a heat-map or both.

    Parameters
    ----------
    region
        1-based, both ends included, as in chr20:9000001-9000200.
    out
        Table to write: .tsv or .parquet, a row a substitution.
    picture
        PNG file with a heat-map, of up to 3,000 bases.
    left
        Bases before the region where its one pass begins, or full: the first base of the contig.
    """
    from dna_mamba.pipelines.configs import score as configs

    config = configs.MutateConfig(
        model=model, genome=genome, region=region, out=out, picture=picture, left=_left(left), right=right,
        strands=strands, rna=rna, device=device,
    )  # fmt: skip
    from dna_mamba.pipelines import mutate as pipeline

    update, progress = console.packing()
    advance, reading = console.reading()
    with progress, reading:
        result = pipeline.run(config, say=console.say, on_progress=update, warn=console.warn, on_bases=advance)
    where = " and ".join(str(path) for path in (out, picture) if path is not None)
    substitutions = 3 * sum(base in "ACGT" for base in result.letters)
    if json:
        console.print_json(
            {"out": where, "bases": len(result.letters), "substitutions": substitutions, "seconds": result.seconds}
        )
    else:
        print(f"{substitutions:,} substitutions of {len(result.letters):,} bases in {result.seconds:,.0f} s -> {where}")
