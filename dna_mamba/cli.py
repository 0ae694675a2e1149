"""The command line: one short function a command. Heavy imports stay inside the commands, so that --help is quick."""

import errno
import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from dna_mamba import signals
from dna_mamba.errors import InputError, Interrupted, StoppedError, TerminatedError, printable

app = App(
    name="dna-mamba",
    help="Pretrain, evaluate and use Mamba language models of DNA.",
    version_flags=["--version"],
    version=partial(metadata.version, "dna-mamba"),
    help_format="plaintext",
)
genome_app = App(name="genome", help="Pack genomes into stores and look into them.")
bench_app = App(name="bench", help="Measure speed and memory on this machine.")
finetune_app = App(name="finetune", help="Teach a pretrained model, or a new one, to tell classes apart.")
simulate_app = App(name="simulate", help="Make SIMULATED genomes with a known answer.")
app.command(genome_app)
app.command(bench_app)
app.command(finetune_app)
app.command(simulate_app)

# names of files and contigs are text, not markup
stderr = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)
stdout = Console(soft_wrap=True, markup=False, emoji=False)

Many = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def _progress_of_packing() -> tuple[Any, Any]:
    from dna_mamba.progress import Packing

    packing = Packing(stderr)
    return packing, packing


def _progress_of_bases(what: str = "reading") -> tuple[Any, Any]:
    from dna_mamba.progress import Reading

    reading = Reading(stderr, what)
    return reading, reading


def _warn(words: str) -> None:
    stderr.print(f"warning: {printable(words)}", highlight=False)


def _say(words: str) -> None:
    stderr.print(printable(words), highlight=False)


def _print_json(values: Any) -> None:
    from dna_mamba.files import json_text

    print(json_text(values, indent=1, default=str))


@genome_app.command
def build(
    fasta: Annotated[tuple[Path, ...], Parameter(negative="")],
    /,
    *,
    out: Path,
    rna: Flag = False,
    overwrite: Flag = False,
) -> None:
    """Pack FASTA or GenBank files (plain, gzip or bgzip) into a genome store.

    Parameters
    ----------
    fasta
        The files; their contigs keep this order.
    out
        Directory of the store, by habit with the ending .dna.
    rna
        Read U as T; otherwise U becomes N.
    overwrite
        Replace a store that exists.
    """
    from dna_mamba.data.build import build as build_store

    update, progress = _progress_of_packing()
    with progress:
        store = build_store(fasta, out, rna=rna, overwrite=overwrite, on_progress=update, warn=_warn)
    other = sum(c.num_other for c in store.manifest.contigs)
    print(f"{len(store.contigs)} contigs, {store.num_bases:,} bases -> {out}")
    if other:
        print(f"{other:,} letters other than A, C, G, T and N became N")


@genome_app.command
def verify(store: Path, /) -> None:
    """Compare every byte of a store with the SHA-256 in its manifest, and its source files with what they were.

    Parameters
    ----------
    store
        The genome store.
    """
    from dna_mamba.data.genome import GenomeStore

    opened = GenomeStore.open(store)
    opened.verify()
    opened.check_sources()
    print(f"{store}: {opened.num_bases:,} bases, SHA-256 matches")


@genome_app.command
def show(genome: Path, region: str, /, *, reverse_complement: Flag = False) -> None:
    """Print the bases of a region as FASTA. A plain FASTA with its .fai is read in place, anything else as a store.

    Parameters
    ----------
    genome
        Genome store, FASTA or GenBank file.
    region
        CONTIG:START-END, 1-based with both ends included, as in samtools.
    reverse_complement
        Print the other strand.
    """
    from dataclasses import replace

    from dna_mamba.data.build import can_fetch_indexed, fetch_indexed, indexed_lengths, open_genome
    from dna_mamba.data.intervals import parse_region

    strand = "-" if reverse_complement else "+"
    if can_fetch_indexed(genome):
        interval = replace(parse_region(region, indexed_lengths(genome)), strand=strand)
        bases = fetch_indexed(genome, interval)
    else:
        update, progress = _progress_of_packing()
        with progress:
            opened = open_genome(genome, verify=False, on_progress=update, warn=_warn)
        interval = replace(opened.region(region), strand=strand)
        bases = opened.fetch(interval)
    print(f">{interval}")
    for start in range(0, len(bases), 60):
        print(bases[start : start + 60])


def _refuse_idle(command: Callable[..., Any], where: str, **options: Any) -> None:
    """Refuse options that cannot act there, unless they have their default."""
    for name, value in options.items():
        if value != inspect.signature(command).parameters[name].default:
            raise InputError(f"--{name.replace('_', '-')} does nothing {where}; leave it out")


@genome_app.command
def audit(
    genome: Path,
    /,
    *,
    split: Path | None = None,
    valid: Many = (),
    test: Many = (),
    seq_len: int = 1024,
    window_rule: str = "mamba",
    max_n: float = 0.5,
    split_by: str = "homologue",
    genomes: Path | None = None,
    against: Path | None = None,
    tile: int = 512,
    json: Flag = False,
) -> None:
    """Count the bases that parts of a split share, and those that training windows share with validation and test.

    Of a manifest of labelled genomes: bases of each class and part, loci in two parts, and 31-mers that parts share. With
    --against: the 31-mers of this genome that stand in another one, and the tiles made of them.

    Parameters
    ----------
    genome
        Genome store or FASTA; 'demo' is the genome in the package; or a manifest of labelled genomes (YAML, or its name).
    split
        BED with CONTIG START END SPLIT; without it and --valid the default split is audited. Of a manifest: NAME and PART.
    valid
        Regions (1-based) or contigs held out for validation. Of a manifest: human chromosomes, or contigs.
    test
        Regions or contigs held out for test. Of a manifest: human chromosomes, or contigs.
    seq_len
        Length of the training windows in bases.
    window_rule
        mamba, hyenadna or tile.
    max_n
        Largest share of N in a window.
    split_by
        Of a manifest: homologue or contig.
    genomes
        Of a manifest: folder that genome fetch filled; without it genomes/NAME.
    against
        Another genome store or FASTA, such as the one that a model was pretrained on.
    tile
        With --against: bases of a tile.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import audit as pipeline
    from dna_mamba.pipelines.manifests import SHIPPED

    if against is not None:
        _refuse_idle(audit, "with --against", split=split, valid=valid, test=test, seq_len=seq_len, window_rule=window_rule,
                     max_n=max_n, split_by=split_by, genomes=genomes)  # fmt: skip
    elif genome.suffix in (".yaml", ".yml") or str(genome) in SHIPPED:
        _refuse_idle(audit, "for a manifest", seq_len=seq_len, window_rule=window_rule, max_n=max_n, tile=tile)
    else:
        _refuse_idle(audit, "without a manifest", split_by=split_by, genomes=genomes)
        _refuse_idle(audit, "without --against", tile=tile)
    update, progress = _progress_of_packing()
    if against is not None:
        with progress:
            shared = pipeline.run_against(str(genome), str(against), tile_bases=tile, on_progress=update, warn=_warn)
        _print_json(shared.as_dict()) if json else print(shared.as_text())
        return
    if genome.suffix in (".yaml", ".yml") or str(genome) in SHIPPED:
        from dna_mamba.pipelines import labelled_genomes

        data = labelled_genomes.LabelledDataConfig(
            manifest=str(genome), genomes=None if genomes is None else str(genomes), split_by=split_by, valid=valid, test=test,
            split=None if split is None else str(split),
        )  # fmt: skip
        with progress:
            found = labelled_genomes.audit(
                labelled_genomes.open_labelled(data, on_progress=update, warn=_warn), split_by
            )
        _print_json(found.as_dict()) if json else print(found.as_text())
        if found.loci_in_two_parts:
            raise StoppedError(f"{len(found.loci_in_two_parts)} loci are in two parts")
        return
    with progress:
        result = pipeline.run(
            pipeline.AuditConfig(
                genome=str(genome), split=None if split is None else str(split), valid=valid, test=test,
                seq_len=seq_len, window_rule=window_rule, max_n=max_n,
            ),
            on_progress=update,
            warn=_warn,
        )  # fmt: skip
    if json:
        _print_json(result.as_dict())
    else:
        print(result.as_text())
    if result.num_shared:
        raise StoppedError(f"{result.num_shared:,} bases are shared between parts")


@genome_app.command
def fetch(manifest: Path, /, *, out: Path | None = None, list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
          json: Flag = False) -> None:  # fmt: skip
    """Download the genomes of a manifest and pack them into stores. What was cut off goes on where it stopped.

    Checksums of the manifest are checked; where it names none, the first download is recorded and later ones must equal it.

    Parameters
    ----------
    manifest
        YAML file, or a manifest in the package: great-apes, hyenadna-5.
    out
        Directory for files, stores and fetched.json; without it genomes/NAME.
    list_
        Say what would be fetched, and stop.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import manifests as pipeline

    read = pipeline.read_genome_manifest(manifest)
    if list_:
        for one in read.classes:
            for assembly in one.assemblies:
                untried = "" if assembly.tried else "  (URL not tried)"
                print(f"{one.label}\t{assembly.name}\t{assembly.generation}\t{assembly.url or assembly.fasta}{untried}")
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:

        def update(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        found = pipeline.fetch(read, out or Path("genomes") / read.name, on_progress=update, say=_warn)
    if json:
        _print_json([{"label": f.label, "assembly": f.assembly.name, "store": str(f.store), "sha256": f.sha256,
                      "homologues": f.homologue_of} for f in found])  # fmt: skip
    else:
        for f in found:
            print(
                f"{f.label}\t{f.assembly.name}\t{f.store}\t{len(f.homologue_of)} contigs with a known human homologue"
            )


@app.command
def pretrain(
    *,
    genome: str | None = None,
    seq_len: int | None = None,
    steps: int | None = None,
    model: str | None = None,
    pattern: str | None = None,
    preset: str | None = None,
    split: str | None = None,
    valid: Many = (),
    test: Many = (),
    length_warmup: str | None = None,
    window_rule: str | None = None,
    max_n: float | None = None,
    rna: Flag = False,
    num_workers: int | None = None,
    piece_len: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    seed: int | None = None,
    config: Path | None = None,
    set_: Annotated[
        tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative="", show_default=False)
    ] = (),
    out: Path | None = None,
    resume: Flag = False,
    resume_from: Path | None = None,
    overwrite: Flag = False,
    print_config: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Pretrain a model on a genome. Without arguments: the demo, a small model on 2,000,000 bases of human chromosome 20.

    Parameters
    ----------
    genome
        FASTA (plain, gzip, bgzip), GenBank file or genome store; 'demo' is the genome in the package.
    seq_len
        Bases of a training window.
    steps
        Optimizer steps; without it the preset's budget of bases decides.
    model
        Blocks x width, such as 4x64, 12x128 (1.4 million parameters) or 16x256 (7 million).
    pattern
        Layers instead of a number of blocks, one letter each: M is Mamba.
    preset
        Values to start from: demo, small, mamba or mamba-long.
    split
        BED with CONTIG START END SPLIT (train, valid, test).
    valid
        Regions (1-based, as in chr20:8000001-9000000) or contigs held out for validation.
    test
        Regions or contigs held out for the final table.
    length_warmup
        mamba (double from 1,024), hyenadna (double from 64) or none.
    window_rule
        mamba, hyenadna or tile.
    max_n
        Largest share of N in a window.
    rna
        Read U of files as T; otherwise U is N.
    num_workers
        Processes that read windows; by default 2 on a GPU and 0 on a CPU.
    piece_len
        Bases computed at once, or auto (from the GPU's free memory). Longer windows go in pieces, exactly.
    device
        auto, cpu or cuda.
    precision
        auto, fp32 or bf16.
    seed
        The same seed gives the same run.
    config
        YAML file of settings, as --print-config prints it; flags win over it.
    set_
        Any other setting, as section.key=value, for example training.checkpoint_every_steps=100.
    out
        Run directory; without it runs/pretrain-001 or the next free number.
    resume
        Go on with the run in --out; its settings are taken from there.
    resume_from
        Go on from this checkpoint of the run, setting newer ones aside.
    overwrite
        Replace the run in --out.
    print_config
        Print the resolved settings as YAML and stop.
    dry_run
        Check everything, print what would run, and stop.
    json
        Print the results as JSON.
    """
    from dna_mamba.pipelines.pretrain_settings import settings

    resume = resume or resume_from is not None
    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if resume and preset is not None:
        raise InputError("--preset has no effect on a run that is resumed; leave it out")
    if out is not None and str(out) in ("", "."):
        raise InputError("--out needs the name of a directory for the run, such as runs/first")
    flags = {
        "data": {"genome": genome, "split": split, "valid": valid or None, "test": test or None,
                 "window_rule": window_rule, "max_n": max_n, "num_workers": num_workers, "rna": rna or None},
        "training": {"seq_len": seq_len, "steps": steps, "length_warmup": length_warmup},
        "device": device, "precision": precision, "seed": seed,
    }  # fmt: skip
    if resume and out is None:
        raise InputError("--resume needs --out, the directory of the run to go on with")
    resolved = settings(
        flags,
        model=model,
        pattern=pattern,
        preset_name=preset,
        file=config,
        assignments=(*_piece_settings(piece_len), *set_),
        run=out if resume else None,
    )
    if print_config:
        from dna_mamba.pipelines.config_files import dump_yaml

        print(dump_yaml(resolved), end="")
        return
    from dna_mamba.pipelines import pretrain as pipeline
    from dna_mamba.pipelines import reports, run_directory

    update, progress = _progress_of_packing()
    if dry_run:
        with progress:
            print(reports.plan_as_text(pipeline.plan(resolved, update, _warn)))
        return
    from dna_mamba.training.callbacks import ProgressBar

    result = pipeline.run(
        resolved,
        out or run_directory.next_free("pretrain"),
        resume=resume,
        resume_from=resume_from,
        overwrite=overwrite,
        callbacks=[ProgressBar(stderr)],
        on_progress=update,
        warn=_warn,
        on_plan=lambda plan: _say(reports.plan_as_text(plan)),
        on_phase=_say,
    )
    if json:
        _print_json(reports.pretrain_as_dict(result))
    else:
        stdout.print(reports.pretrain_as_table(result))
        print(reports.pretrain_as_text(result))


@app.command
def plan(
    *,
    genome: str | None = None,
    seq_len: int | None = None,
    steps: int | None = None,
    model: str | None = None,
    preset: str | None = None,
    split: str | None = None,
    valid: Many = (),
    test: Many = (),
    length_warmup: str | None = None,
    piece_len: str | None = None,
    precision: str | None = None,
    config: Path | None = None,
    set_: Annotated[
        tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative="", show_default=False)
    ] = (),
    gpu: str | None = None,
    gpu_memory: float | None = None,
    gpus: int = 1,
    json: Flag = False,
) -> None:
    """Say what a pretraining run would need before anything runs: stages, pieces, memory by part, bases a second, hours.

    Speed is measured on the GPU or CPU at hand, or taken from a table with --gpu. A schedule that does not fit is refused;
    the first stage that fails is named, and what would fit.

    Parameters
    ----------
    genome
        FASTA, GenBank file or genome store; 'demo' is the genome in the package.
    seq_len
        Bases of a training window.
    steps
        Optimizer steps; without it the preset's budget of bases decides.
    model
        Blocks x width, such as 12x128.
    preset
        Values to start from: demo, small, mamba or mamba-long.
    split
        BED with CONTIG START END SPLIT (train, valid, test).
    valid
        Regions or contigs held out for validation.
    test
        Regions or contigs held out for the final table.
    length_warmup
        mamba, hyenadna or none.
    piece_len
        Bases computed at once, or auto.
    precision
        auto, fp32 or bf16.
    config
        YAML file of settings.
    set_
        Any other setting, as section.key=value.
    gpu
        Plan for this GPU, which need not be here: H100 or H200.
    gpu_memory
        GiB of the GPU's memory, if it is not what the table or the GPU says.
    gpus
        Share the windows of a step among so many; this version trains on one, so this is for the hours alone.
    json
        Print JSON.
    """
    from dataclasses import replace

    from dna_mamba.pipelines import planning, reports
    from dna_mamba.pipelines import pretrain as pipeline
    from dna_mamba.pipelines.pretrain_settings import settings

    if gpus < 1 or (gpu_memory is not None and not gpu_memory > 0):
        raise InputError(f"--gpus {gpus} and --gpu-memory {gpu_memory} must be positive")
    machine = None
    if gpu is not None:
        machine = planning.known_gpu(gpu)
    elif gpus > 1 or gpu_memory is not None:
        import torch

        if not torch.cuda.is_available():
            raise InputError("--gpus and --gpu-memory need a GPU to plan for: add --gpu H100 or --gpu H200")
        machine = planning.this_gpu()
    if machine is not None:
        memory = machine.memory_bytes if gpu_memory is None else gpu_memory * 2**30
        machine = replace(machine, memory_bytes=memory, num_gpus=gpus)
    flags = {
        "data": {"genome": genome, "split": split, "valid": valid or None, "test": test or None},
        "training": {"seq_len": seq_len, "steps": steps, "length_warmup": length_warmup},
        "device": None if machine is None else "cuda", "precision": precision,
    }  # fmt: skip
    resolved = settings(
        flags, model=model, preset_name=preset, file=config, assignments=(*_piece_settings(piece_len), *set_)
    )
    update, progress = _progress_of_packing()
    with progress:
        result = pipeline.plan(resolved, update, _warn, machine)
    _print_json(reports.plan_as_dict(result)) if json else print(reports.plan_as_text(result))


def _piece_settings(piece_len: str | None) -> tuple[str, ...]:
    """Put --piece-len over what a file or a run says; what goes with its pieces is then chosen anew."""
    if piece_len is None:
        return ()
    piece = _piece_bases(piece_len)
    number = "null" if piece is None else str(piece)
    return (f"training.piece_bases={number}", "training.kept_pieces=null", "training.recomputed_layers=null")


def _piece_bases(text: str | None) -> int | None:
    """Read --piece-len."""
    if text is None or text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"--piece-len {text!r} must be a number of bases or auto")
    if len(text) > 12:
        raise InputError(f"--piece-len {text} is longer than any sequence; take at most 2^40")
    return int(text)


@app.command
def evaluate(
    model: Path,
    /,
    *,
    genome: str | None = None,
    split: Literal["train", "valid", "test"] = "test",
    split_file: Path | None = None,
    valid: Many = (),
    test: Many = (),
    region: Many = (),
    window: int = 8192,
    max_bases: int = 2**24,
    rna: Flag = False,
    device: str = "auto",
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Score held-out bases: bits per base and perplexity, by kind of base, and by length of left context.

    Parameters
    ----------
    model
        Run directory, the model directory in it, or human-4x64, which ships in the package.
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
    rna
        Read U of files as T; otherwise U is N.
    device
        auto, cpu or cuda; always float32.
    out
        Write results.json, context.csv and context.png into this new directory.
    json
        Print the results as JSON.
    """
    from dna_mamba.pipelines import evaluate as pipeline
    from dna_mamba.pipelines import reports

    update, progress = _progress_of_packing()
    advance, reading = _progress_of_bases("scoring")
    with progress, reading:
        result = pipeline.run(
            pipeline.EvaluateConfig(
                model=model, genome=genome, split=split, split_file=split_file, valid=valid, test=test, regions=region,
                window_bases=window, max_bases=max_bases, rna=rna, device=device, out=out,
            ),
            on_progress=update,
            warn=_warn,
            on_bases=advance,
        )  # fmt: skip
    if json:
        _print_json(reports.evaluation_as_dict(result))
    else:
        for table in reports.evaluation_as_tables(result):
            stdout.print(table)
        if result.out:
            print(f"results.json, context.csv and context.png -> {result.out}")


@finetune_app.command
def species(
    *,
    manifest: str | None = None,
    checkpoint: str | None = None,
    seq_len: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = (),
    model: str | None = None,
    pooling: str | None = None,
    frozen: Flag = False,
    preset: str | None = None,
    genomes: str | None = None,
    split_by: str | None = None,
    split: str | None = None,
    valid: Many = (),
    test: Many = (),
    hold_out: Many = (),
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    batch: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    seed: int | None = None,
    config: Path | None = None,
    set_: Annotated[
        tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative="", show_default=False)
    ] = (),
    out: Path | None = None,
    resume: Flag = False,
    overwrite: Flag = False,
    print_config: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Fine-tune a classifier of species, or of any other labels, and score it beside baselines on the same windows.

    Parameters
    ----------
    manifest
        Labelled genomes: a YAML file, or great-apes or hyenadna-5 from the package (fetch them first).
    checkpoint
        Run or model directory to begin with; {seq_len} in it stands for the window length. Without it: from scratch.
    seq_len
        Bases of a window; several train one classifier each and draw accuracy against length.
    model
        Blocks x width from scratch, such as 12x128.
    pooling
        The vector of a window: last (as in the Mamba paper), mean or max.
    frozen
        Train the head alone.
    preset
        paper (the Mamba paper's recipe) or small (minutes on a CPU).
    genomes
        Folder that genome fetch filled; without it genomes/NAME.
    split_by
        homologue (human chromosome that a contig descends from) or contig (its name).
    split
        Table of NAME and PART (train, valid, test), tab-separated.
    valid
        Human chromosomes, or contigs, for validation; without it and --test the manifest's.
    test
        Human chromosomes, or contigs, for test.
    hold_out
        Assemblies of other individuals, on which the classifier is tested beside.
    epochs
        Epochs; the first are of shorter windows where --seq-len is above 16,384.
    steps_per_epoch
        Optimizer steps of an epoch.
    batch
        Windows of a step.
    device
        auto, cpu or cuda.
    precision
        auto, fp32 or bf16.
    seed
        The same seed gives the same run.
    config
        YAML file of settings, as --print-config prints it; flags win over it.
    set_
        Any other setting, as section.key=value, for example recipe.optimizer.peak_rate=3e-4.
    out
        Run directory; without it runs/finetune-001 or the next free number.
    resume
        Go on with the run in --out; its settings are taken from there.
    overwrite
        Replace the run in --out.
    print_config
        Print the resolved settings as YAML and stop.
    dry_run
        Check everything, say what would run, and stop.
    json
        Print the results as JSON.
    """
    from dna_mamba.pipelines.finetune_settings import settings

    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if resume and (out is None or preset is not None):
        raise InputError(
            "--resume needs --out, the directory of the run to go on with, and takes its preset from there"
        )
    flags = {
        "data": {"manifest": manifest, "genomes": genomes, "split_by": split_by, "split": split, "valid": valid or None,
                 "test": test or None, "held_out_assemblies": hold_out or None},
        "recipe": {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "batch": batch},
        "seq_lens": seq_len or None, "checkpoint": checkpoint, "pooling": pooling, "frozen": frozen or None,
        "device": device, "precision": precision, "seed": seed,
    }  # fmt: skip
    resolved = settings(
        flags, model=model, preset_name=preset, file=config, assignments=set_, run=out if resume else None
    )
    if print_config:
        from dna_mamba.pipelines.config_files import dump_yaml

        print(dump_yaml(resolved), end="")
        return
    from dna_mamba.pipelines import finetune_species as pipeline
    from dna_mamba.pipelines import reports, run_directory
    from dna_mamba.progress import Line

    update, progress = _progress_of_packing()
    with progress, Line(stderr, "training") as line:
        if dry_run:
            print(pipeline.plan_as_text(resolved, on_progress=update, warn=_warn))
            return

        def on_step(step: Any, total: int) -> None:
            parts = [f"step {step.step:,}/{total:,}", f"loss {step.loss:.3f}", f"windows of {step.window_bases:,}"]
            line.update(step.step, total, parts=parts)

        result = pipeline.run(
            resolved, out or run_directory.next_free("finetune"), resume=resume, overwrite=overwrite, on_progress=update,
            say=_say, warn=_warn, on_step=on_step,
        )  # fmt: skip
    if json:
        _print_json(reports.finetune_as_dict(result))
        return
    for table in reports.finetune_as_tables(result):
        stdout.print(table)
    of_last = result.out if len(result.lengths) == 1 else result.out / "lengths" / str(result.lengths[-1].seq_len)
    print(f"run: {result.out}\npicture: {result.out / 'accuracy.png'}\nnext: dna-mamba classify {of_last} FASTA")


@app.command
def classify(
    model: Path,
    sequences: str,
    /,
    *,
    genome: str | None = None,
    window: int | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    rna: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Say which class records, intervals or windows belong to, with probabilities. Records are read in full, at any length.

    Parameters
    ----------
    model
        Run of finetune species, or a model directory in it.
    sequences
        FASTA, GenBank or genome store (a row a record), or BED with --genome (a row an interval).
    genome
        Genome that a BED refers to.
    window
        A row for each window of so many bases; the model answers best at the length it was trained at.
    out
        Write the table to this TSV file; without it, to stdout.
    rna
        Read U of files as T; otherwise U is N.
    device
        auto, cpu or cuda; always float32.
    json
        Print a summary as JSON; needs --out.
    """
    if json and out is None:
        raise InputError("--json prints a summary beside the table; say where the table goes with --out")
    from dna_mamba.pipelines import classify as pipeline

    def show_labels(labels: tuple[str, ...]) -> None:
        print("\t".join(pipeline.columns_of(labels)))

    def show(row: Any) -> None:
        print("\t".join(pipeline.cells_of(row)))

    config = pipeline.ClassifyConfig(
        model=model, sequences=sequences, genome=genome, window_bases=window, out=out, rna=rna, device=device
    )
    update, progress = _progress_of_packing()
    advance, reading = _progress_of_bases()
    with progress, reading:
        result = pipeline.run(
            config, on_labels=None if out else show_labels, on_row=None if out else show, on_progress=update, warn=_warn,
            on_bases=advance if out else None,
        )  # fmt: skip
    if json:
        _print_json({"out": str(out), "rows": result.num_rows, "bases": result.num_bases, "counts": result.counts,
                     "bases_per_second": result.num_bases / max(result.seconds, 1e-9)})  # fmt: skip
    elif out:
        counts = ", ".join(f"{label} {count:,}" for label, count in result.counts.items())
        print(f"{result.num_rows:,} rows, {result.num_bases:,} bases -> {out} ({counts})")


@app.command
def embed(
    model: Path,
    sequences: str,
    /,
    *,
    out: Annotated[Path, Parameter(alias="-o")],
    genome: str | None = None,
    layer: int = -1,
    pool: str = "mean",
    strands: Literal["forward", "both"] = "forward",
    window: int | None = None,
    shard: str = "1/1",
    rna: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Write vectors of sequences, their windows or their bases, each read in full with a carried state.

    A run that was ended, however, goes on where it stopped when the same command is given again.

    Parameters
    ----------
    model
        Run directory, the model directory in it, or human-4x64, which ships in the package.
    sequences
        FASTA, GenBank or genome store (each record), BED with --genome (each interval), or .csv or .tsv with a column
        named sequence, and perhaps name (each row).
    out
        File to write; its ending says the format: .npz, .parquet, .h5ad or .zarr.
    genome
        Genome that a BED refers to.
    layer
        0 is the embedding, 1 the first layer, ...; -1 the last, after the final norm, -2 the one before it.
    pool
        mean, last or max over a sequence, window:N for the mean of every N bases, or none for a vector a base.
    strands
        both averages with the reverse complement.
    window
        Cut the input into windows of so many bases first, each read without the bases before it.
    shard
        i/n: embed the i-th of n shares, on one of n machines; joined in order they are the one run, to the bit.
    rna
        Read U of files as T; otherwise U is N.
    device
        auto, cpu or cuda; always float32.
    json
        Print a summary as JSON.
    """
    from dna_mamba.pipelines import embed as pipeline

    number, _, of = shard.partition("/")
    if not (number.isdecimal() and of.isdecimal() and shard.isascii()):
        raise InputError(f"--shard {shard!r} is not i/n, such as 1/4")
    config = pipeline.EmbedRunConfig(
        model=model, sequences=sequences, out=out, genome=genome, window_bases=window, device=device,
        embed=pipeline.EmbedConfig(layer=layer, pool=pool, strands=strands), shard=(int(number), int(of)), rna=rna,
    )  # fmt: skip
    update, progress = _progress_of_packing()
    advance, reading = _progress_of_bases()
    with progress, reading:
        result = pipeline.run(config, on_progress=update, warn=_warn, on_bases=advance)
    speed = (result.num_bases - result.resumed_bases) / max(result.seconds, 1e-9)
    if result.resumed_bases:
        _say(f"{result.resumed_bases:,} bases had been read by an earlier run")
    if json:
        _print_json({"out": str(out), "rows": result.num_rows, "width": result.width, "bases": result.num_bases,
                     "bases_per_second": speed})  # fmt: skip
    else:
        print(
            f"{result.num_rows:,} vectors of {result.width}, {result.num_bases:,} bases at {speed:,.0f} bases/s -> {out}"
        )


@app.command
def score(
    model: Path,
    variants: Path,
    /,
    *,
    genome: str,
    out: Annotated[Path, Parameter(alias="-o")],
    left: str = "full",
    right: int = 512,
    strands: Literal["forward", "both"] = "forward",
    distance: Flag = False,
    prefix: str = "DM",
    skip_mismatches: Flag = False,
    rna: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Score variants: log P(ALT and the right flank | left context) minus the same of REF, in nats.

    Parameters
    ----------
    model
        Run directory, the model directory in it, or human-4x64, which ships in the package.
    variants
        VCF file, plain, gzip or bgzip.
    genome
        FASTA or genome store that REF refers to; 'demo' is the one in the package.
    out
        File to write; its ending says the format: .vcf, .vcf.gz, .tsv or .parquet.
    left
        Bases of left context, or full: from the first base of the contig, in one pass for all its records.
    right
        Bases of right flank that are scored with each allele.
    strands
        both averages with the score on the other strand.
    distance
        Add DMDIST, the distance between the mean vectors of ALT and REF with their flank.
    prefix
        Of the names of the INFO fields and columns; another one keeps the scores of an earlier run.
    skip_mismatches
        Pass over records whose REF is not in the genome (ref_mismatch) or that are on none of its contigs (no_contig), instead
        of stopping.
    rna
        Read U of files as T; otherwise U is N.
    device
        auto, cpu or cuda; always float32.
    json
        Print a summary as JSON.
    """
    from dna_mamba.pipelines import score_variants as pipeline

    config = pipeline.ScoreConfig(
        model=model, variants=variants, genome=genome, out=out, left=_left(left), right=right, strands=strands,
        distance=distance, skip_mismatches=skip_mismatches, prefix=prefix, rna=rna, device=device, command=_command(),
    )  # fmt: skip
    update, progress = _progress_of_packing()
    advance, reading = _progress_of_bases()
    with progress, reading:
        result = pipeline.run(config, say=_say, on_progress=update, warn=_warn, on_bases=advance)
    if json:
        _print_json(
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
    model: Path,
    /,
    *,
    genome: str,
    region: str,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    picture: Path | None = None,
    left: str = "16384",
    right: int = 512,
    strands: Literal["forward", "both"] = "forward",
    rna: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Score every possible substitution in a region, as score does, into a table, a heat-map or both.

    Parameters
    ----------
    model
        Run directory, the model directory in it, or human-4x64, which ships in the package.
    genome
        FASTA or genome store; 'demo' is the one in the package.
    region
        1-based, both ends included, as in chr20:9000001-9000200.
    out
        Table to write: .tsv or .parquet, a row a substitution.
    picture
        PNG file with a heat-map, of up to 3,000 bases.
    left
        Bases before the region where its one pass begins, or full: the first base of the contig.
    right
        Bases of right flank that are scored with each substitution.
    strands
        both averages with the score on the other strand.
    rna
        Read U of files as T; otherwise U is N.
    device
        auto, cpu or cuda; always float32.
    json
        Print a summary as JSON.
    """
    from dna_mamba.pipelines import mutate as pipeline

    config = pipeline.MutateConfig(
        model=model, genome=genome, region=region, out=out, picture=picture, left=_left(left), right=right,
        strands=strands, rna=rna, device=device,
    )  # fmt: skip
    update, progress = _progress_of_packing()
    advance, reading = _progress_of_bases()
    with progress, reading:
        result = pipeline.run(config, say=_say, on_progress=update, warn=_warn, on_bases=advance)
    where = " and ".join(str(path) for path in (out, picture) if path is not None)
    substitutions = 3 * sum(base in "ACGT" for base in result.letters)
    if json:
        _print_json(
            {"out": where, "bases": len(result.letters), "substitutions": substitutions, "seconds": result.seconds}
        )
    else:
        print(f"{substitutions:,} substitutions of {len(result.letters):,} bases in {result.seconds:,.0f} s -> {where}")


@app.command
def track(
    model: Path,
    /,
    *,
    genome: str,
    region: Many = (),
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    picture: Path | None = None,
    left: int = 16384,
    rna: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Write bits per base along a genome as bigWig, as a picture, or both.

    Parameters
    ----------
    model
        Run directory, the model directory in it, or human-4x64, which ships in the package.
    genome
        FASTA or genome store; 'demo' is the one in the package.
    region
        Regions (1-based); without them every contig.
    out
        bigWig file, .bw or .bigwig.
    picture
        PNG file.
    left
        Bases read before each region, as context.
    rna
        Read U of files as T; otherwise U is N.
    device
        auto, cpu or cuda; always float32.
    json
        Print a summary as JSON.
    """
    from dna_mamba.pipelines import track as pipeline

    config = pipeline.TrackConfig(
        model=model, genome=genome, regions=region, out=out, picture=picture, left=left, rna=rna, device=device
    )
    update, progress = _progress_of_packing()
    advance, reading = _progress_of_bases()
    with progress, reading:
        result = pipeline.run(config, say=_say, on_progress=update, warn=_warn, on_bases=advance)
    where = " and ".join(str(path) for path in (out, picture) if path is not None)
    if json:
        _print_json(
            {"out": where, "bases": result.num_bases, "bits_per_base": result.bits_per_base, "seconds": result.seconds}
        )
    else:
        print(f"{result.num_bases:,} bases, {result.bits_per_base:.4f} bits per base -> {where}")


@app.command
def generate(
    model: Path,
    /,
    *,
    prompt: str = "ACGT",
    length: int = 1000,
    num: int = 1,
    temperature: float = 1.0,
    top_k: int = 4,
    top_p: float = 1.0,
    seed: int = 0,
    rna: Flag = False,
    device: str = "auto",
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Flag = False,
) -> None:
    """Draw new sequence from a language model, as FASTA with log-likelihoods in nats.

    Parameters
    ----------
    model
        Run directory, the model directory in it, or human-4x64, which ships in the package.
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
    rna
        Read U of files as T; otherwise U is N.
    device
        auto, cpu or cuda; always float32.
    out
        Write the FASTA to this file; without it, to stdout.
    json
        Print a summary as JSON; needs --out.
    """
    if json and out is None:
        raise InputError("--json prints a summary beside the FASTA; say where that goes with --out")
    from dna_mamba.pipelines import generate as pipeline
    from dna_mamba.reading.settings import SamplingConfig

    config = pipeline.GenerateConfig(
        model=model, prompt=prompt, length=length, num=num, seed=seed, rna=rna, device=device, out=out,
        sampling=SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p),
    )  # fmt: skip
    update, progress = _progress_of_packing()
    with progress:
        result = pipeline.run(config, on_progress=update, warn=_warn)
    if json:
        _print_json({"out": str(out), "prompt_bases": result.prompt_bases, "seconds": result.seconds,
                     "sequences": [{"name": s.name, "bases": len(s.letters), "log_likelihood": s.log_likelihood,
                                    "bits_per_base": s.bits_per_base} for s in result.sequences]})  # fmt: skip
    elif out is None:
        print("".join(sequence.as_fasta() for sequence in result.sequences), end="")
    else:
        print(f"{num:,} sequences of {length:,} bases -> {out}")


@app.command(name="import")
def import_(
    checkpoint: Path,
    /,
    *,
    out: Annotated[Path, Parameter(alias="-o")],
    token_ids: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (),
    json: Flag = False,
) -> None:
    """Read a Mamba checkpoint of state-spaces/mamba or transformers into a model directory, and compare its logits.

    Parameters
    ----------
    checkpoint
        Local directory with config.json and model.safetensors or pytorch_model.bin (nothing in it is executed).
    out
        New model directory.
    token_ids
        Its ids of A, C, G, T and N, where its vocabulary is not ours (7 8 9 10 11); other tokens are left out.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import checkpoints as pipeline

    config = pipeline.ImportConfig(checkpoint=checkpoint, out=out, token_ids=token_ids or None)
    _print_checkpoint(pipeline.import_model(config), "from", json)


@app.command
def export(
    model: Path,
    /,
    *,
    out: Annotated[Path, Parameter(alias="-o")],
    format: str = "transformers",
    json: Flag = False,
) -> None:
    """Write a model as transformers (MambaForCausalLM) or state-spaces/mamba (MambaLMHeadModel) reads it.

    Parameters
    ----------
    model
        Run directory, the model directory in it, or human-4x64, which ships in the package.
    out
        New directory.
    format
        transformers or mamba_ssm.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import checkpoints as pipeline

    _print_checkpoint(pipeline.export_model(pipeline.ExportConfig(model=model, out=out, format=format)), "for", json)


def _print_checkpoint(result: Any, word: str, json: bool) -> None:
    if json:
        _print_json({"out": str(result.out), "format": result.format, "parameters": result.num_parameters,
                     "largest_difference_of_logits": result.largest_difference,
                     "against_transformers": result.against_transformers, "remarks": list(result.remarks)})  # fmt: skip
        return
    print(f"{result.num_parameters:,} parameters {word} {result.format} -> {result.out}")
    print(
        f"largest difference of a logit from the equations in float64, over the largest logit: {result.largest_difference:.2g}"
    )
    if result.against_transformers is not None:
        print(
            f"largest difference of a logit from transformers' own model, over the largest logit, on 512 bases: "
            f"{result.against_transformers:.2g}"
        )
    for remark in result.remarks:
        _warn(remark)


@simulate_app.command
def apes(
    *,
    genome: str = "demo",
    out: Path,
    preset: str = "benchmark",
    diagnostics: Literal["on", "off"] = "on",
    contig_bases: int | None = None,
    insertions_per_mb: float | None = None,
    inner_insertions_per_mb: float | None = None,
    diagnostic_share: float | None = None,
    seed: int = 0,
    json: Flag = False,
) -> None:
    """Let human sequence evolve along the tree of the great apes into SIMULATED genomes of all five, with the truth beside.

    Parameters
    ----------
    genome
        FASTA or genome store of human sequence; 'demo' is the one in the package.
    out
        New directory for a FASTA a species, manifest.yaml, events.tsv (every planted insertion) and truth.json.
    preset
        benchmark (an oracle reaches 63 % at 4,096 bases) or realistic (2.4 insertions a megabase).
    diagnostics
        off plants nothing and lets all lineages mutate alike: no classifier may beat chance.
    contig_bases
        Length of the contigs that the sequence is cut into; each is a locus of its own in splits.
    insertions_per_mb
        New mobile elements on each branch that ends today.
    inner_insertions_per_mb
        The same on inner branches.
    diagnostic_share
        Of an element's positions, those that are a lineage's own.
    seed
        The same seed gives the same genomes.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import simulate as pipeline

    given = {
        "contig_bases": contig_bases,
        "insertions_per_mb": insertions_per_mb,
        "inner_insertions_per_mb": inner_insertions_per_mb,
        "diagnostic_share": diagnostic_share,
    }
    values = pipeline.preset(preset) | {name: value for name, value in given.items() if value is not None}
    config = pipeline.SimulateConfig(genome=genome, diagnostics=diagnostics == "on", seed=seed, **values)
    update, progress = _progress_of_packing()
    with progress:
        result = pipeline.run(config, out, on_progress=update, say=_say, warn=_warn)
    if json:
        _print_json({"out": str(result.out), "bases": result.bases_of, "insertions": result.num_events_of,
                     "substitutions": result.substitutions_of, "divergence_from_human": result.divergence_of})  # fmt: skip
    else:
        for name, bases in result.bases_of.items():
            planted = sum(result.num_events_of[branch] for branch in pipeline.path_of(name))
            print(f"SIMULATED {name}: {len(result.contigs)} contigs, {bases:,} bases, {planted:,} planted insertions")
        apart = ", ".join(f"{name} {share:.2%}" for name, share in result.divergence_of.items())
        print(f"differ from human at: {apart} of the ancestor's bases that both have kept")
        print(f"manifest: {result.out / 'manifest.yaml'}")


@app.command
def doctor(*, json: Flag = False) -> None:
    """Check what this machine can do, run the kernels against their reference, and say what is missing.

    Parameters
    ----------
    json
        Print JSON.
    """
    try:
        from dna_mamba.pipelines import doctor as pipeline
    except ImportError as error:
        raise StoppedError(
            f"{error.name} cannot be imported ({error}); install it: pip install {error.name}"
        ) from error

    result = pipeline.run(pipeline.DoctorConfig())
    if json:
        _print_json([{"check": c.name, "ok": c.ok, "found": c.found, "advice": c.advice} for c in result.checks])
    else:
        for check in result.checks:
            advice = f"; {check.advice}" if check.advice else ""
            print(f"{'ok  ' if check.ok else 'MEND'}  {check.name}: {check.found}{advice}")
    if not result.ok:
        raise StoppedError("something needs mending; see the lines marked MEND")


Shape = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)]


def _parse_shapes(shape: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    try:
        shapes: Any = tuple(tuple(int(part) for part in text.split(",")) for text in shape)
        if any(len(sizes) != 3 for sizes in shapes):
            raise ValueError
    except ValueError as error:
        raise InputError(f"--shape {' '.join(shape)!r} is not BATCH,CHANNELS,LENGTH, such as 1,256,1048576") from error
    return shapes


def _bench(run: Callable[..., Any], json: bool) -> None:
    """Run a benchmark; its rows are shown as they come, as lines of the JSON document or on stderr, then all in one table."""
    from dna_mamba.files import json_text
    from dna_mamba.pipelines import reports

    begun = False

    def on_row(row: dict[str, Any]) -> None:
        nonlocal begun
        if json:
            print((", " if begun else '{"as_they_came": [\n') + json_text(row, default=str), flush=True)
            begun = True
            return
        numbers = (
            f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
        _say("  " + "; ".join(list(numbers)[:4]))

    result = run(on_phase=_say, on_row=on_row)
    if not json:
        stdout.print(reports.bench_as_table(result))
        return
    print(
        ("" if begun else '{"as_they_came": [')
        + "], "
        + json_text(reports.bench_as_dict(result), indent=1, default=str)[1:]
    )


def _bench_kernels(
    what: str, *, shape: tuple[str, ...] = (), alone: bool = False, json: bool = False, **options: Any
) -> None:
    from dna_mamba.pipelines import benchmark_kernels as pipeline

    config = pipeline.KernelBenchConfig(what=what, shapes=_parse_shapes(shape), competitors=not alone, **options)
    _bench(partial(pipeline.run, config), json)


@bench_app.command
def scan(
    *,
    device: str = "auto",
    precision: str = "auto",
    shape: Shape = (),
    states: int = 16,
    repeats: int = 7,
    alone: Flag = False,
    with_: Annotated[
        tuple[str, ...], Parameter(name="--with", consume_multiple=True, negative="", show_default=False)
    ] = (),
    json: Flag = False,
) -> None:
    """Time the selective scan, forward and backward, and its memory.

    On a GPU: ours beside the plain loop, torch's associative_scan compiled, attention and an FFT convolution at the same
    width and bases, and mamba_ssm where it is installed, as times of the floor that the GPU's exponentials and memory set. On a
    CPU: compiled beside plain, as ratios of one run.

    Parameters
    ----------
    device
        auto, cpu or cuda.
    precision
        fp32 or bf16 inputs; auto is bf16 on a GPU; a CPU computes in fp32.
    shape
        BATCH,CHANNELS,LENGTH; on a GPU one or more, by default a list of typical ones; on a CPU one, by default 1,256,16384.
    states
        States a channel.
    repeats
        Runs of each; the median is printed.
    alone
        Leave the competitors out, on a GPU.
    with_
        Slow extras on a CPU: transformers (a Mamba block in its plain-torch path at length 4,096; minutes), million (time a
        base at 1,048,576 positions).
    json
        Print JSON.
    """
    import torch

    if device != "cpu" and (device != "auto" or torch.cuda.is_available()):
        if with_:
            raise InputError(f"--with {' '.join(with_)} is timed on a CPU alone; add --device cpu")
        _bench_kernels("scan", device=device, precision=precision, shape=shape, states=states, repeats=repeats,
                       alone=alone, json=json)  # fmt: skip
        return
    from dna_mamba.pipelines import benchmark as pipeline

    if precision not in ("auto", "fp32"):
        raise InputError(f"--precision {precision!r}: on a CPU the scan is timed in fp32; leave it out")
    if alone:
        raise InputError("--alone leaves out what runs on a GPU; on a CPU the two implementations are compared")
    shapes = _parse_shapes(shape) or ((1, 256, 16384),)
    if len(shapes) > 1:
        raise InputError(f"--shape {' '.join(shape)}: on a CPU one shape at a time")
    sequences, channels, length = shapes[0]
    config = pipeline.ScanBenchConfig(
        batch=sequences, length=length, channels=channels, states=states, repeats=repeats, extras=with_
    )
    _bench(partial(pipeline.run_scan, config), json)


@bench_app.command
def conv(
    *,
    device: str = "auto",
    precision: str = "auto",
    shape: Shape = (),
    repeats: int = 7,
    alone: Flag = False,
    json: Flag = False,
) -> None:
    """Time the causal convolution (4 taps, silu) against the memory it must move.

    Parameters
    ----------
    device
        auto, cpu or cuda.
    precision
        fp32 or bf16; auto is bf16 on a GPU.
    shape
        BATCH,CHANNELS,LENGTH, one or more; without it a list of typical ones.
    repeats
        Runs of each; the median is printed.
    alone
        Leave the plain version and causal_conv1d out.
    json
        Print JSON.
    """
    _bench_kernels("conv", device=device, precision=precision, shape=shape, repeats=repeats, alone=alone, json=json)


@bench_app.command
def norm(
    *, device: str = "auto", precision: str = "auto", repeats: int = 7, alone: Flag = False, json: Flag = False
) -> None:
    """Time the norm with its residual sum against the memory it must move.

    Parameters
    ----------
    device
        auto, cpu or cuda.
    precision
        fp32 or bf16 inputs beside the float32 residual; auto is bf16 on a GPU.
    repeats
        Runs of each; the median is printed.
    alone
        Leave the plain version out.
    json
        Print JSON.
    """
    _bench_kernels("norm", device=device, precision=precision, repeats=repeats, alone=alone, json=json)


@bench_app.command
def loss(*, device: str = "auto", repeats: int = 7, alone: Flag = False, json: Flag = False) -> None:
    """Time the next-base loss against the memory it must move.

    Parameters
    ----------
    device
        auto, cpu or cuda.
    repeats
        Runs of each; the median is printed.
    alone
        Leave the plain version out.
    json
        Print JSON.
    """
    _bench_kernels("loss", device=device, repeats=repeats, alone=alone, json=json)


@bench_app.command
def step(
    *, device: str = "auto", precision: str = "auto", repeats: int = 7, alone: Flag = False, json: Flag = False
) -> None:
    """Time one base through whole models, as generation does it: as called, and on a GPU as one CUDA graph.

    Parameters
    ----------
    device
        auto, cpu or cuda.
    precision
        fp32 or bf16; auto is bf16 on a GPU.
    repeats
        Runs of each; the median is printed.
    alone
        Leave plain torch out.
    json
        Print JSON.
    """
    _bench_kernels("step", device=device, precision=precision, repeats=repeats, alone=alone, json=json)


@bench_app.command
def block(
    *,
    device: str = "auto",
    precision: str = "auto",
    shape: Shape = (),
    states: int = 16,
    repeats: int = 7,
    alone: Flag = False,
    json: Flag = False,
) -> None:
    """Time a whole Mamba block, projections included, as it is trained.

    Parameters
    ----------
    device
        auto, cpu or cuda.
    precision
        fp32 or bf16; auto is bf16 on a GPU.
    shape
        BATCH,WIDTH,LENGTH, one or more; without it widths of 128, 256 and 1024 at 1,048,576 bases.
    states
        States a channel.
    repeats
        Runs of each; the median is printed.
    alone
        Leave the plain version and mamba_ssm out.
    json
        Print JSON.
    """
    _bench_kernels("block", device=device, precision=precision, shape=shape, states=states, repeats=repeats, alone=alone,
                   json=json)  # fmt: skip


@bench_app.command
def train(
    *,
    model: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ("6x128",),
    seq_len: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (1024, 16384, 131072, 1048576),
    bases_per_step: int = 2**20,
    piece_len: str | None = None,
    recomputed_layers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    repeats: int = 5,
    profile: Flag = False,
    json: Flag = False,
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
    piece_len
        Bases computed at once, or auto (from the GPU's free memory).
    recomputed_layers
        With --piece-len: so many layers are computed again in the backward (activation checkpointing).
    device
        auto, cpu or cuda.
    precision
        auto, fp32 or bf16.
    repeats
        Steps of each after the first; the median is printed.
    profile
        Print the kernels that take most time, on a GPU.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import benchmark_training as pipeline

    config = pipeline.TrainBenchConfig(
        models=model, lengths=seq_len, bases_per_step=bases_per_step, piece_bases=_piece_bases(piece_len),
        recomputed_layers=recomputed_layers, device=device, precision=precision, repeats=repeats, profile=profile,
    )  # fmt: skip
    _bench(partial(pipeline.run, config), json)


@bench_app.command(name="species")
def bench_species(
    *, genome: str = "demo", quick: Flag = False, seed: int = 0, out: Path = Path("runs/species-benchmark"),
    seq_len: int = 4096, overwrite: Flag = False, json: Flag = False,
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
    json
        Print JSON.
    """
    from dna_mamba.pipelines import benchmark_species as pipeline

    config = pipeline.SpeciesBenchConfig(genome=genome, quick=quick, seed=seed, seq_len=seq_len)
    result = pipeline.run(config, out, overwrite=overwrite, say=_say, warn=_warn)
    _print_json(result.as_dict()) if json else print(result.as_text())
    if leaks := result.leaks():
        raise StoppedError(f"leak: without diagnostics {leaks[0]}, which does not hold chance")


@bench_app.command(name="score")
def bench_score(
    *, model: str = "human-4x64", variants: str | None = None, genome: str = "demo", records: int = 32, left: int = 16384,
    right: int = 512, batch: int = 32, device: str = "auto", json: Flag = False,
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
    device
        auto, cpu or cuda.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import benchmark_score as pipeline

    config = pipeline.ScoreBenchConfig(
        model=model,
        variants=variants,
        genome=genome,
        records=records,
        left=left,
        right=right,
        batch=batch,
        device=device,
    )
    _bench(partial(pipeline.run, config), json)


@bench_app.command(name="genome")
def bench_genome(*, megabases: int = 32, json: Flag = False) -> None:
    """Time packing and reading of a random genome against pyfaidx, as ratios of one run.

    Parameters
    ----------
    megabases
        Size of the genome that is made up for it.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import benchmark as pipeline

    _bench(partial(pipeline.run_genome, pipeline.GenomeBenchConfig(megabases=megabases)), json)


@bench_app.command(name="vcf")
def bench_vcf(
    *, records: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (100_000, 1_000_000),
    samples: int = 1, json: Flag = False,
) -> None:  # fmt: skip
    """Time reading and writing of VCF by score, nothing in it to be scored, beside bcftools view, as ratios of one run.

    Parameters
    ----------
    records
        Records of the files that are made up for it, one or more numbers; memory is printed for each.
    samples
        Samples a record.
    json
        Print JSON.
    """
    from dna_mamba.pipelines import benchmark_vcf as pipeline

    _bench(partial(pipeline.run, pipeline.VcfBenchConfig(records=records, samples=samples)), json)


FAULTS_OF_THE_PLACE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR),
)
"""What a disk, a path or its permissions can do; other errors of the system are bugs of ours."""
OUT_OF_MEMORY = "the memory ran out"
MEMORY_ADVICE = (
    "nothing was left half-written. Free memory, or take less at once: pretrain has --piece-len, --num-workers 0 and --resume, "
    "finetune --set piece_bases=N, other commands a smaller model"
)


def _on_signal(number: int, frame: Any) -> None:
    raise TerminatedError(number)


def main() -> None:
    """Run a command; turn errors into one line and an exit code: 2 the user's input, 3 our checks, 128 + N signals."""
    before = signals.take(_on_signal)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the locale cannot write is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        _run()
    except TerminatedError as error:
        name = signal.Signals(error.number).name
        _fail(f"stopped by {name}; {_how_to_go_on()}", 128 + error.number)
    finally:
        signals.give_back(before)


def _how_to_go_on() -> str:
    """Say what is left of a command that was ended: runs go on, embedding goes on by itself, all else begins again."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command in ("pretrain", "finetune"):
        return "what is saved is whole. If the run had begun, it goes on with the same --out and --resume"
    if command == "embed":
        return "what is done is kept: the same command goes on from there"
    return "nothing was left half-written; begin again with the same command"


def _negative_numbers_as_values(words: Sequence[str]) -> list[str]:
    """Join '--steps -5' into '--steps=-5', so that what is wrong with it is said by whoever reads it."""
    joined: list[str] = []
    for word in words:
        is_number = re.fullmatch(r"-\d[\d.,e+-]*", word) is not None
        if is_number and joined and re.fullmatch(r"--[a-z-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _run() -> None:
    try:
        app(
            _negative_numbers_as_values(sys.argv[1:]),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, head for instance, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CycloptsError as error:
        _fail(" ".join(str(error).split()) + " See dna-mamba --help.", 2)
    except InputError as error:
        _fail(" ".join(str(error).split()), 2)
    except Interrupted as error:
        _fail(" ".join(str(error).split()), 128 + error.number)
    except StoppedError as error:
        _fail(" ".join(str(error).split()), 3)
    except MemoryError as error:
        _fail(f"{OUT_OF_MEMORY} ({' '.join(str(error).split()) or 'nothing left'}); {MEMORY_ADVICE}", 3)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            _fail(f"{OUT_OF_MEMORY}; {MEMORY_ADVICE}", 3)
        if error.errno not in FAULTS_OF_THE_PLACE:
            raise
        where = f" while writing or reading {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else str(error.strerror)
        mend = "free space" if full else "mend the place (does it exist, may it be written?)"
        resume = "; a run that had begun goes on with --resume" if sys.argv[1:2] in (["pretrain"], ["finetune"]) else ""
        _fail(f"{what}{where}; {mend} and try again{resume}", 2)
    except Exception as error:
        short = ("DefaultCPUAllocator", "can't start new thread")
        if any(words in str(error) for words in short) or type(error).__name__ == "OutOfMemoryError":
            _fail(f"{OUT_OF_MEMORY} ({str(error).strip().splitlines()[0][:200]}); {MEMORY_ADVICE}", 3)
        raise


def _fail(words: str, code: int) -> None:
    if os.environ.get("DNA_MAMBA_DEBUG") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"dna-mamba: {printable(words)}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
