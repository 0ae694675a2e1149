"""FASTA in, a pretrained causal Mamba out."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dna_mamba.data.fingerprints import fingerprints
from dna_mamba.data.intervals import Interval
from dna_mamba.data.objectives import NextBase
from dna_mamba.data.samples import Stretch
from dna_mamba.data.selection import load_genome, load_split
from dna_mamba.data.splits import Split
from dna_mamba.data.steps import TrainingSteps
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.windows import read_by
from dna_mamba.errors import InputError
from dna_mamba.files import write_json, write_text
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import can_be_read, copy_tensors, from_pretrained, save_pretrained
from dna_mamba.pipelines import run_directory
from dna_mamba.pipelines.config_files import dump_yaml, load_yaml
from dna_mamba.pipelines.configs.pretrain import PretrainConfig
from dna_mamba.pipelines.pretrain_plan import Plan, plan_of, resolve, sample_of
from dna_mamba.pipelines.pretrain_results import PretrainResult, finish
from dna_mamba.progress import Progress
from dna_mamba.reading.losses import score_regions
from dna_mamba.training import checkpoint
from dna_mamba.training.checkpoint import newest_intact, set_aside
from dna_mamba.training.counters import Counters, read_counters
from dna_mamba.training.metrics_csv import PRETRAINING
from dna_mamba.training.schedule import Recent, Schedule, Validation
from dna_mamba.training.step import Stepper
from dna_mamba.values import read_config

if TYPE_CHECKING:
    import lightning.pytorch as L

MAY_DIFFER_ON_RESUME = {
    ("data", "num_workers"),
    ("training", "checkpoint_every_steps"),
    ("training", "piece_bases"),
    ("training", "kept_pieces"),
    ("training", "recomputed_layers"),
    ("training", "keep_checkpoints"),
}


def config_of_run(out: Path) -> PretrainConfig:
    """Read the resolved configuration of a run."""
    path = out / "config.yaml"
    return read_config(PretrainConfig, load_yaml(path), str(path))


def _check_same(old: PretrainConfig, new: PretrainConfig, out: Path) -> None:
    def differences(a: object, b: object, path: tuple[str, ...]) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return [d for key in a for d in differences(a[key], b[key], (*path, key))]
        if a == b or path in MAY_DIFFER_ON_RESUME:
            return []
        return [f"{'.'.join(path)} was {a!r} and is now {b!r}"]

    found = differences(asdict(old), asdict(new), ())
    if found:
        raise InputError(
            f"--resume: the run in {out} has another configuration: {'; '.join(found)}; leave these as they were"
        )


def _resume(out: Path, resume_from: Path | None) -> checkpoint.Checkpoint | None:
    folder = out / "checkpoints"
    if resume_from is None:
        return newest_intact(folder)
    return checkpoint.load(resume_from)


def _identity(config: PretrainConfig, genome: GenomeStore, split: Split) -> dict[str, str]:
    """Give hashes of all that a checkpoint must have in common with the run that goes on from it."""
    values, before = ({**asdict(config), "model": config.model.as_dict()} for _ in range(2))
    optimizer, num_steps = config.optimizer, config.training.num_steps
    if optimizer.warmup_steps(num_steps) == replace(optimizer, fewest_warmup_steps=0).warmup_steps(num_steps):
        for one in (
            values,
            before,
        ):  # where it changes nothing, checkpoints from before there was such a setting are known
            del one["optimizer"]["fewest_warmup_steps"]
    for one in (values, before):  # nor is there a trace of a setting that is as it was before there was one
        if not one["data"]["rna"]:
            del one["data"]["rna"]
    for section, key in MAY_DIFFER_ON_RESUME:
        del values[section][key]
        if key != "piece_bases":
            del before[section][key]

    def sha256(content: object) -> str:
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    return {
        "config_sha256": sha256(values),
        # of checkpoints from before pieces might differ
        "config_sha256_with_pieces": sha256(before),
        "genome_sha256": genome.manifest.bases_sha256,
        "split_sha256": sha256(run_directory.describe_split(split)),
    }


def run(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    resume_from: Path | None = None,
    overwrite: bool = False,
    make_callbacks: Callable[[], Sequence["L.Callback"]] = list,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_phase: Callable[[str], None] | None = None,
) -> PretrainResult:
    """Pretrain a model.

    Args:
        config: What to do; 'auto' values are resolved first.
        out: The run directory.
        resume: Go on with the run in `out` from its newest checkpoint, or from its start if there is none.
        resume_from: Go on from this checkpoint instead.
        overwrite: Replace the run in `out`.
        make_callbacks: Gives more Lightning callbacks, such as a progress bar, when training begins.
        on_progress: Called while a FASTA is packed.
        warn: Called with a sentence when something deserves attention.
        on_plan: Called with the plan before the first step.
        on_phase: Called with a few words when the work after training goes on.

    Raises:
        InputError: Something in the configuration, the data or the run directory is at fault.
        StoppedError: Three steps in a row were not finite.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
    """
    config = resolve(config)
    resume = resume or resume_from is not None
    fresh = not out.exists()
    genome = load_genome(config.data.genome, on_progress, warn, rna=config.data.rna)
    split = load_split(genome, config.data, warn)
    # before the directory is made: a bad request leaves nothing behind
    the_plan, steps = plan_of(config, genome, split, timed=not (resume and _has_ended(out)))
    lock = run_directory.prepare(out, resume=resume, overwrite=overwrite)
    try:
        return _run_locked(
            config, out, resume, resume_from, make_callbacks, genome, split, the_plan, steps, on_plan, on_phase, warn
        )
    finally:
        lock.release()
        if fresh and not (out / "config.yaml").exists():
            (out / "run.lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it may be gone
                out.rmdir()


def _run_locked(
    config: PretrainConfig,
    out: Path,
    resume: bool,
    resume_from: Path | None,
    make_callbacks: Callable[[], Sequence["L.Callback"]],
    genome: GenomeStore,
    split: Split,
    the_plan: Plan,
    steps: TrainingSteps,
    on_plan: Callable[[Plan], None] | None,
    on_phase: Callable[[str], None] | None,
    warn: Callable[[str], None] | None,
) -> PretrainResult:
    started = time.monotonic()
    identity = _identity(config, genome, split)
    saved = _find_saved(config, out, resume_from, identity) if resume else None
    if on_plan:
        on_plan(the_plan)
    if not (out / "config.yaml").exists() or not resume or config_of_run(out) != config:
        write_text(out / "config.yaml", dump_yaml(config))
    torch.manual_seed(config.seed)
    model = DnaMamba(config.model).use_implementation(config.implementation)
    trained = read_by(genome, steps.windows)
    trained_on = _by_contig(trained)
    about = asdict(config.data.policy), config.training.seq_len, trained_on, fingerprints(genome, trained_on)

    def save(model: DnaMamba, name: str) -> None:
        save_pretrained(model, out / name, *about)

    if saved is None:
        counters = Counters(bases_seen=[[0] * len(genome.contigs) for _ in the_plan.stages])
    else:
        counters = _put_back(config, out, model, saved, identity, len(the_plan.stages), len(genome.contigs), save, warn)

    keeper = _PretrainKeeper(config, out, genome, split, the_plan, model, counters, identity, save)
    keeper.on_checkpoint()
    bases_before = sum(map(sum, counters.bases_seen))
    if counters.step < len(steps):
        _train(config, out, the_plan, steps, keeper, saved, make_callbacks(), warn)
    seconds = time.monotonic() - started
    save(model, "model-last")
    identity_of_results = identity | {"step": str(counters.step)}
    return finish(
        config,
        out,
        counters,
        identity_of_results,
        genome,
        split,
        the_plan,
        trained,
        seconds,
        bases_before,
        on_phase,
        warn,
    )


class _PretrainKeeper:
    """Scores the validation part, keeps the best model in model/, and writes run.json."""

    columns = PRETRAINING

    def __init__(
        self,
        config: PretrainConfig,
        out: Path,
        genome: GenomeStore,
        split: Split,
        the_plan: Plan,
        model: DnaMamba,
        counters: Counters,
        identity: dict[str, str],
        save: Callable[[DnaMamba, str], None],
    ):
        self.config, self.out, self.genome, self.split, self.the_plan = config, out, genome, split, the_plan
        self.model, self.counters, self.identity, self.save = model, counters, identity, save
        self.valid: list[Stretch] | None = None

    def validate(self, recent: Recent) -> Validation:
        if self.valid is None:
            self.valid = sample_of(self.config, self.genome, self.split, "valid", self.config.evaluation.valid_bases)
        bits = score_regions(self.model, self.genome, self.valid, self.config.data.policy).total.bits_per_base
        return Validation(
            better=(-bits,), shown=f"{bits} bits per base", cells={"valid_bits_per_base": f"{bits:.17g}"},
            logged={"valid/bits_per_base": bits},
        )  # fmt: skip

    def keep_best(self, step: int) -> None:
        self.save(self.model, "model")

    def on_checkpoint(self) -> None:
        _record(self.config, self.out, self.genome, self.split, self.the_plan, self.counters)


def _train(
    config: PretrainConfig,
    out: Path,
    the_plan: Plan,
    steps: TrainingSteps,
    keeper: _PretrainKeeper,
    saved: checkpoint.Checkpoint | None,
    callbacks: Sequence["L.Callback"],
    warn: Callable[[str], None] | None,
) -> None:
    """Do the steps that are left."""
    from dna_mamba.training.run import train  # here: a run that had ended needs no training framework

    def keep_smaller(piece_bases: int, kept_pieces: int) -> None:
        smaller = replace(config.training, piece_bases=piece_bases, kept_pieces=kept_pieces)
        write_text(out / "config.yaml", dump_yaml(replace(config, training=smaller)))

    cut, training = the_plan.cut, config.training
    keeper.model.backbone.recomputed_layers = cut.recomputed_layers
    stepper = Stepper(
        keeper.model, NextBase(config.data.policy), config.optimizer, num_steps=len(steps),
        stage_lengths=[stage.window_bases for stage in the_plan.stages],
        contig_names=[contig.name for contig in keeper.genome.manifest.contigs], piece_bases=cut.piece_bases,
        kept_pieces=cut.kept_pieces, counters=keeper.counters, say=warn, on_smaller=keep_smaller,
    )  # fmt: skip
    schedule = Schedule(
        validate_every_steps=training.validate_every_steps, checkpoint_every_steps=training.checkpoint_every_steps,
        keep_checkpoints=training.keep_checkpoints,
    )  # fmt: skip
    train(
        stepper, steps, keeper, schedule, out, device=config.device, precision=config.precision,
        num_workers=config.data.num_workers, saved=saved, callbacks=callbacks,
    )  # fmt: skip


def _find_saved(
    config: PretrainConfig, out: Path, resume_from: Path | None, identity: dict[str, str]
) -> checkpoint.Checkpoint | None:
    """Read the checkpoint to go on from, if there is one; refuse one of another run."""
    _check_same(config_of_run(out), config, out)
    saved = _resume(out, resume_from)
    for name, what in (
        ("genome_sha256", f"{config.data.genome} holds other bases"),
        ("split_sha256", f"the split {config.data.split or ''} has other intervals"),
        ("config_sha256", "the checkpoint was written with another configuration"),
    ):
        known = {identity[name], identity[f"{name}_with_pieces"] if name == "config_sha256" else identity[name]}
        if saved is not None and saved.counters.get(name) not in known:
            raise InputError(f"--resume: {what} than when the run in {out} was started; put back what it was")
    return saved


def _put_back(
    config: PretrainConfig,
    out: Path,
    model: DnaMamba,
    saved: checkpoint.Checkpoint,
    identity: dict[str, str],
    num_stages: int,
    num_contigs: int,
    save: Callable[[DnaMamba, str], None],
    warn: Callable[[str], None] | None,
) -> Counters:
    """Give a model the weights of a checkpoint, see that model/ holds the best before it, and give where the run stands."""
    folder = out / "checkpoints"
    copy_tensors(model, saved.model, str(folder))
    values = {name: value for name, value in saved.counters.items() if name not in identity}
    counters = read_counters(values, (num_stages, num_contigs), config.training.num_steps, str(folder))
    set_aside([p for p in checkpoint.list_checkpoints(folder) if checkpoint.step_of(p) > counters.step])
    best = None if counters.best_step is None else checkpoint.path_of_step(folder, counters.best_step)
    if best is not None and best.is_dir():  # model/ may be ahead of the checkpoint that the run goes on from
        best_model = DnaMamba(config.model)
        copy_tensors(best_model, checkpoint.load(best).model, str(best))
        save(best_model, "model")
    elif best is not None and not can_be_read(out / "model", from_pretrained):
        if warn:
            warn(
                f"the best model, of step {counters.best_step:,}, is neither in {folder} nor in {out / 'model'}: the "
                f"newest takes its place, and the next validation is the first to compare with"
            )
        counters.best = counters.best_step = None
        save(model, "model")
    return counters


def _record(
    config: PretrainConfig, out: Path, genome: GenomeStore, split: Split, the_plan: Plan, counters: Counters
) -> None:
    """Write run.json: what was run, on what, and how far it is."""
    names = [contig.name for contig in genome.manifest.contigs]
    seen = [dict(zip(names, row, strict=True)) for row in counters.bases_seen]
    stages = [{**asdict(stage), "bases_seen": s} for stage, s in zip(the_plan.stages, seen, strict=True)]
    write_json(
        out / "run.json",
        {
            "command": "pretrain",
            "versions": run_directory.versions(),
            "hardware": run_directory.hardware(config.device),
            "seed": config.seed,
            "genome": run_directory.describe_genome(genome) | {"rna": config.data.rna},
            "split": run_directory.describe_split(split),
            "policy": asdict(config.data.policy),
            "stages": stages,
            "step": counters.step,
            "num_steps": sum(stage.num_steps for stage in the_plan.stages),
            "skipped_steps": counters.skipped,
            "best_step": counters.best_step,
            "best_valid_bits_per_base": None if counters.best is None else -counters.best[0],
            "num_parameters": the_plan.num_parameters,
        },
    )


def _has_ended(out: Path) -> bool:
    """Say whether nothing is left to train by what the run has written of itself; its checkpoints decide."""
    try:
        record = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return bool(record["step"] == record["num_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _by_contig(intervals: Sequence[Interval]) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for interval in intervals:
        found.setdefault(interval.contig, []).append([interval.start, interval.end])
    return found
