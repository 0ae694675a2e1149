"""The training of a pretraining run: the one part that needs Lightning."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning.pytorch as L
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer import trainer as lightning_trainer

from dna_mamba.data.datamodule import PretrainingData
from dna_mamba.data.steps import TrainingSteps
from dna_mamba.errors import Interrupted, StoppedError
from dna_mamba.files import write_text
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.config_files import dump_yaml
from dna_mamba.pipelines.configs.pretrain import PretrainConfig
from dna_mamba.pipelines.pretrain_plan import Plan
from dna_mamba.reading.losses import RegionScores
from dna_mamba.training import checkpoint
from dna_mamba.training.callbacks import RunRecorder
from dna_mamba.training.counters import Counters
from dna_mamba.training.language_model import LanguageModel


def _num_workers(config: PretrainConfig) -> int:
    if config.data.num_workers is not None:
        return config.data.num_workers
    return 2 if config.device == "cuda" else 0


def _fit(
    config: PretrainConfig, out: Path, module: LanguageModel, data: PretrainingData, callbacks: list[L.Callback]
) -> None:
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # adverts, and devices that the plan has named already
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer = L.Trainer(
            accelerator="cpu" if config.device == "cpu" else "gpu",
            devices=1,
            precision="32-true" if config.precision == "fp32" else "bf16-mixed",
            max_epochs=1,
            logger=TensorBoardLogger(str(out), name="", version="tensorboard"),
            callbacks=callbacks,
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        with _gpus_left_alone() if config.device == "cpu" else contextlib.nullcontext():
            trainer.fit(module, data)


@contextlib.contextmanager
def _gpus_left_alone() -> Iterator[None]:
    """Keep Lightning from saving the random states of GPUs before it trains on the CPU: asking makes a context on each."""
    usual = lightning_trainer.isolate_rng
    lightning_trainer.isolate_rng = partial(usual, include_cuda=False)
    try:
        yield
    finally:
        lightning_trainer.isolate_rng = usual


def train(
    config: PretrainConfig,
    out: Path,
    model: DnaMamba,
    counters: Counters,
    steps: TrainingSteps,
    the_plan: Plan,
    validate: Callable[[DnaMamba], RegionScores],
    *,
    saved: checkpoint.Checkpoint | None,
    identity: dict[str, str],
    contig_names: Sequence[str],
    save: Callable[[DnaMamba, str], None],
    record: Callable[[], None],
    callbacks: Sequence[L.Callback],
    warn: Callable[[str], None] | None,
) -> None:
    """Do the steps that are left, with validations and checkpoints.

    Args:
        config: Of the run.
        out: The run directory.
        model: Trained in place.
        counters: Where the run stands; kept up to date.
        steps: All steps of the run.
        the_plan: Stages, and how a step is cut up.
        validate: Scores held-out bases.
        saved: What the run goes on from.
        identity: What a checkpoint must have in common with the run.
        contig_names: Of the genome.
        save: Writes a model directory of this name in the run.
        record: Writes run.json.
        callbacks: More of Lightning's.
        warn: Called with sentences that deserve attention.

    Raises:
        StoppedError: Three steps in a row were not finite, or a process that reads windows was stopped.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
    """

    def keep_smaller(piece_bases: int, kept_pieces: int) -> None:
        smaller = replace(config.training, piece_bases=piece_bases, kept_pieces=kept_pieces)
        write_text(out / "config.yaml", dump_yaml(replace(config, training=smaller)))

    module = LanguageModel(
        model,
        config.optimizer,
        config.data.policy,
        num_steps=len(steps),
        stage_lengths=[stage.window_bases for stage in the_plan.stages],
        contig_names=contig_names,
        piece_bases=the_plan.cut.piece_bases,
        kept_pieces=the_plan.cut.kept_pieces,
        counters=counters,
        say=warn,
        on_smaller=keep_smaller,
    )
    model.backbone.recomputed_layers = the_plan.cut.recomputed_layers
    recorder = RunRecorder(
        out,
        validate=lambda module: validate(module.model).total,
        save_best=lambda module: save(module.model, "model"),
        on_checkpoint=lambda module: record(),
        extra_counters=identity,
        checkpoint_every_steps=config.training.checkpoint_every_steps,
        validate_every_steps=config.training.validate_every_steps,
        keep_checkpoints=config.training.keep_checkpoints,
        resume_from=saved,
    )
    data = PretrainingData(
        steps, first_step=counters.step, num_workers=_num_workers(config), pin_memory=config.device == "cuda"
    )
    try:
        _fit(config, out, module, data, [recorder, *callbacks])
    except StoppedError as error:
        saved_paths = checkpoint.list_checkpoints(recorder.checkpoints)
        good = f"the last good checkpoint is {saved_paths[-1]}" if saved_paths else "no checkpoint was saved before"
        raise StoppedError(f"{error}; {good}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise StoppedError(
            f"a process that reads windows was stopped from outside ({' '.join(str(error).split())[:120]}), perhaps for "
            f"want of memory; go on with --out {out} --resume, with --num-workers 0 if it happens again"
        ) from error
    if recorder.received is not None:
        raise Interrupted(recorder.received, out, counters.step)
