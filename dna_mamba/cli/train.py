"""Training: pretrain, plan it, and fine-tune."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dna_mamba.cli import console, options
from dna_mamba.cli.apps import app, finetune_app
from dna_mamba.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from dna_mamba.pipelines.machines import Machine


@app.command
def pretrain(
    *,
    genome: options.GenomeToTrain = None,
    seq_len: options.SeqLen = None,
    steps: options.Steps = None,
    model: options.Size = None,
    pattern: options.Pattern = None,
    pattern_style: options.PatternStyle = None,
    preset: options.Preset = None,
    split: options.Split = None,
    valid: options.Valid = (),
    test: options.Test = (),
    length_warmup: options.LengthWarmup = None,
    window_rule: str | None = None,
    max_n: float | None = None,
    rna: options.Rna = False,
    num_workers: options.NumWorkers = None,
    piece_len: options.PieceLen = None,
    device: options.DeviceIfGiven = None,
    precision: options.PrecisionIfGiven = None,
    seed: options.SeedOfRun = None,
    config: options.Settings = None,
    set_: options.Set = (),
    out: Path | None = None,
    resume: options.Resume = False,
    resume_from: Path | None = None,
    overwrite: options.Overwrite = False,
    print_config: options.PrintConfig = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Pretrain a model on a genome. Without arguments: the demo, a small model on 2,000,000 bases of human chromosome 20.

    Parameters
    ----------
    window_rule
        mamba, hyenadna or tile.
    max_n
        Largest share of N in a window.
    out
        Run directory; without it runs/pretrain-001 or the next free number.
    resume_from
        Go on from this checkpoint of the run, setting newer ones aside.
    """
    from dna_mamba.pipelines import settings

    resume = resume or resume_from is not None
    _check_run(out, preset, resume=resume, overwrite=overwrite)
    flags = {
        "data": {"genome": genome, "split": split, "valid": valid or None, "test": test or None,
                 "window_rule": window_rule, "max_n": max_n, "num_workers": num_workers, "rna": rna or None},
        "training": {"seq_len": seq_len, "steps": steps, "length_warmup": length_warmup},
        "device": device, "precision": precision, "seed": seed,
    }  # fmt: skip
    asked = settings.Asked(
        file=config,
        flags=flags,
        model=model,
        pattern=pattern,
        pattern_style=pattern_style,
        assignments=(*_piece_settings(piece_len), *set_),
    )
    resolved = settings.pretrain(asked, preset_name=preset, run=out if resume else None)
    if print_config:
        _print_config(resolved)
        return
    from dna_mamba.pipelines import reports

    update, progress = console.packing()
    if dry_run:
        from dna_mamba.pipelines import pretrain_plan

        with progress:
            print(reports.plan_as_text(pretrain_plan.plan(resolved, update, console.warn)))
        return
    from dna_mamba.pipelines import pretrain as pipeline
    from dna_mamba.pipelines import run_directory

    result = pipeline.run(
        resolved,
        out or run_directory.next_free("pretrain"),
        resume=resume,
        resume_from=resume_from,
        overwrite=overwrite,
        make_callbacks=_bar,
        on_progress=update,
        warn=console.warn,
        on_plan=lambda plan: console.say(reports.plan_as_text(plan)),
        on_phase=console.say,
    )
    if json:
        console.print_json(reports.pretrain_as_dict(result))
    else:
        console.stdout.print(reports.pretrain_as_table(result))
        print(reports.pretrain_as_text(result))


@app.command
def plan(
    *,
    genome: options.GenomeToTrain = None,
    seq_len: options.SeqLen = None,
    steps: options.Steps = None,
    model: options.Size = None,
    pattern: options.Pattern = None,
    pattern_style: options.PatternStyle = None,
    preset: options.Preset = None,
    split: options.Split = None,
    valid: options.Valid = (),
    test: options.Test = (),
    length_warmup: options.LengthWarmup = None,
    piece_len: options.PieceLen = None,
    precision: options.PrecisionIfGiven = None,
    config: options.Settings = None,
    set_: options.Set = (),
    gpu: str | None = None,
    gpu_memory: float | None = None,
    gpus: int = 1,
    json: options.Json = False,
) -> None:
    """Say what a pretraining run would need before anything runs: stages, pieces, memory by part, bases a second, hours.

    Speed is measured on the GPU or CPU at hand, or taken from a table with --gpu. A schedule that does not fit is refused;
    the first stage that fails is named, and what would fit.

    Parameters
    ----------
    gpu
        Plan for this GPU, which need not be here: H100 or H200.
    gpu_memory
        GiB of the GPU's memory, if it is not what the table or the GPU says.
    gpus
        Share the windows of a step among so many; this version trains on one, so this is for the hours alone.
    """
    from dna_mamba.pipelines import machines, settings

    if gpus < 1 or (gpu_memory is not None and not gpu_memory > 0):
        raise InputError(f"--gpus {gpus} and --gpu-memory {gpu_memory} must be positive")
    machine = None if gpu is None else machines.known_gpu(gpu)
    planned = machine is not None or gpus > 1 or gpu_memory is not None
    flags = {
        "data": {"genome": genome, "split": split, "valid": valid or None, "test": test or None},
        "training": {"seq_len": seq_len, "steps": steps, "length_warmup": length_warmup},
        "device": "cuda" if planned else None, "precision": precision,
    }  # fmt: skip
    asked = settings.Asked(
        file=config,
        flags=flags,
        model=model,
        pattern=pattern,
        pattern_style=pattern_style,
        assignments=(*_piece_settings(piece_len), *set_),
    )
    resolved = settings.pretrain(asked, preset_name=preset)
    from dna_mamba.pipelines import pretrain_plan as pipeline
    from dna_mamba.pipelines import reports

    if planned:
        machine = _machine_to_plan_for(machine, gpu_memory, gpus)
    update, progress = console.packing()
    with progress:
        result = pipeline.plan(resolved, update, console.warn, machine)
    console.print_json(reports.plan_as_dict(result)) if json else print(reports.plan_as_text(result))


def _machine_to_plan_for(machine: "Machine | None", gpu_memory: float | None, gpus: int) -> "Machine":
    """Give the GPU that was named, or the one that is here, with the memory and the number that were asked for."""
    from dataclasses import replace

    from dna_mamba.pipelines import machines

    if machine is None:
        import torch

        if not torch.cuda.is_available():
            raise InputError("--gpus and --gpu-memory need a GPU to plan for: add --gpu H100 or --gpu H200")
        machine = machines.this_gpu()
    memory = machine.memory_bytes if gpu_memory is None else gpu_memory * 2**30
    return replace(machine, memory_bytes=memory, num_gpus=gpus)


@finetune_app.command
def species(
    *,
    manifest: str | None = None,
    checkpoint: str | None = None,
    seq_len: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = (),
    model: options.Size = None,
    pooling: str | None = None,
    frozen: options.Flag = False,
    preset: str | None = None,
    genomes: str | None = None,
    split_by: str | None = None,
    split: str | None = None,
    valid: options.Many = (),
    test: options.Many = (),
    hold_out: options.Many = (),
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    batch: int | None = None,
    num_workers: options.NumWorkers = None,
    device: options.DeviceIfGiven = None,
    precision: options.PrecisionIfGiven = None,
    seed: options.SeedOfRun = None,
    config: options.Settings = None,
    set_: options.Set = (),
    out: Path | None = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    print_config: options.PrintConfig = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
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
    out
        Run directory; without it runs/finetune-001 or the next free number.
    """
    from dna_mamba.pipelines import settings

    _check_run(out, preset, resume=resume, overwrite=overwrite)
    flags = {
        "data": {"manifest": manifest, "genomes": genomes, "split_by": split_by, "split": split, "valid": valid or None,
                 "test": test or None, "held_out_assemblies": hold_out or None},
        "recipe": {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "batch": batch},
        "seq_lens": seq_len or None, "checkpoint": checkpoint, "pooling": pooling, "frozen": frozen or None,
        "num_workers": num_workers, "device": device, "precision": precision, "seed": seed,
    }  # fmt: skip
    asked = settings.Asked(file=config, flags=flags, model=model, assignments=set_)
    resolved = settings.species(asked, preset_name=preset, run=out if resume else None)
    if print_config:
        _print_config(resolved)
        return
    from dna_mamba.pipelines import reports, run_directory
    from dna_mamba.pipelines.tasks import species as pipeline

    update, progress = console.packing()
    with progress:
        if dry_run:
            print(pipeline.plan_as_text(resolved, on_progress=update, warn=console.warn))
            return
        result = pipeline.run(
            resolved, out or run_directory.next_free("finetune"), resume=resume, overwrite=overwrite, on_progress=update,
            make_callbacks=_bar, say=console.say, warn=console.warn,
        )  # fmt: skip
    if json:
        console.print_json(reports.finetune_as_dict(result))
        return
    for table in reports.finetune_as_tables(result):
        console.stdout.print(table)
    of_last = result.out if len(result.lengths) == 1 else result.out / "lengths" / str(result.lengths[-1].seq_len)
    print(f"run: {result.out}\npicture: {result.out / 'accuracy.png'}\nnext: dna-mamba classify {of_last} FASTA")


def _check_run(out: Path | None, preset: str | None, *, resume: bool, overwrite: bool) -> None:
    """Refuse what cannot be asked of a run directory."""
    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if resume and preset is not None:
        raise InputError("--preset has no effect on a run that is resumed; leave it out")
    if resume and out is None:
        raise InputError("--resume needs --out, the directory of the run to go on with")
    if out is not None and str(out) in ("", "."):
        raise InputError("--out needs the name of a directory for the run, such as runs/first")


def _print_config(config: "DataclassInstance") -> None:
    from dna_mamba.pipelines.config_files import dump_yaml

    print(dump_yaml(config), end="")


def _bar() -> list[Any]:
    from dna_mamba.training.callbacks import ProgressBar  # here: only what trains loads its framework

    return [ProgressBar(console.stderr)]


def _piece_settings(piece_len: str | None) -> tuple[str, ...]:
    """Put --piece-len over what a file or a run says; what goes with its pieces is then chosen anew."""
    if piece_len is None:
        return ()
    piece = piece_bases(piece_len)
    number = "null" if piece is None else str(piece)
    return (f"training.piece_bases={number}", "training.kept_pieces=null", "training.recomputed_layers=null")


def piece_bases(text: str | None) -> int | None:
    """Read --piece-len."""
    if text is None or text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"--piece-len {text!r} must be a number of bases or auto")
    if len(text) > 12:
        raise InputError(f"--piece-len {text} is longer than any sequence; take at most 2^40")
    return int(text)
