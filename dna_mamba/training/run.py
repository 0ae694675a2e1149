"""A training run: steps, validations and checkpoints, until it is done or asked to stop. The one place that needs Lightning."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import lightning.pytorch as L
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer import trainer as lightning_trainer

from dna_mamba.data.datamodule import TrainingData
from dna_mamba.data.steps import StepSource
from dna_mamba.errors import Interrupted, StoppedError
from dna_mamba.training import checkpoint
from dna_mamba.training.callbacks import Keeper, RunRecorder
from dna_mamba.training.module import TrainingModule
from dna_mamba.training.schedule import Schedule
from dna_mamba.training.step import Stepper


def train(
    stepper: Stepper,
    steps: StepSource,
    keeper: Keeper,
    schedule: Schedule,
    folder: Path,
    *,
    device: str,
    precision: str,
    num_workers: int | None = None,
    saved: checkpoint.Checkpoint | None = None,
    callbacks: Sequence[L.Callback] = (),
    run: Path | None = None,
) -> None:
    """Do the steps that are left, with validations and checkpoints.

    Args:
        stepper: Its counters say which steps are left; its model is trained in place.
        steps: All steps of the run.
        keeper: Scores, and keeps the best.
        schedule: When to validate and save.
        folder: metrics.csv, checkpoints/ and tensorboard/ stand in it.
        device: cpu or cuda.
        precision: fp32 or bf16.
        num_workers: Processes that read windows; none are 2 for a GPU and 0 otherwise.
        saved: What the run goes on from.
        callbacks: More of Lightning's.
        run: The directory that --resume takes, if it is not the folder.

    Raises:
        StoppedError: Three steps in a row were not finite, or a process that reads windows was stopped.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
    """
    run = run or folder
    recorder = RunRecorder(folder, stepper, keeper, schedule, resume_from=saved)
    if num_workers is None:
        num_workers = 2 if device == "cuda" else 0
    data = TrainingData(steps, first_step=stepper.counters.step, num_workers=num_workers, pin_memory=device == "cuda")
    try:
        _fit(TrainingModule(stepper), data, folder, device, precision, [recorder, *callbacks])
    except StoppedError as error:
        saved_paths = checkpoint.list_checkpoints(recorder.checkpoints)
        good = f"the last good checkpoint is {saved_paths[-1]}" if saved_paths else "no checkpoint was saved before"
        raise StoppedError(f"{error}; {good}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise StoppedError(
            f"a process that reads windows was stopped from outside ({' '.join(str(error).split())[:120]}), perhaps for "
            f"want of memory; go on with --out {run} --resume, with --num-workers 0 if it happens again"
        ) from error
    if recorder.received is not None:
        raise Interrupted(recorder.received, run, stepper.counters.step)


def _fit(
    module: TrainingModule,
    data: TrainingData,
    folder: Path,
    device: str,
    precision: str,
    callbacks: list[L.Callback],
) -> None:
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # adverts, and devices that the plan has named already
    begun = any((folder / "tensorboard").glob("events.*"))
    # points of steps that are done anew would stand there twice, those of a run killed before its first checkpoint too
    logger = TensorBoardLogger(
        str(folder),
        name="",
        version="tensorboard",
        purge_step=module.stepper.counters.step + 1 if begun else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer = L.Trainer(
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=1,
            precision="32-true" if precision == "fp32" else "bf16-mixed",
            max_epochs=1,
            logger=logger,
            callbacks=callbacks,
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        try:
            with _gpus_left_alone() if device == "cpu" else contextlib.nullcontext():
                trainer.fit(module, data)
        finally:
            data.release()


@contextlib.contextmanager
def _gpus_left_alone() -> Iterator[None]:
    """Keep Lightning from saving the random states of GPUs before it trains on the CPU: asking makes a context on each."""
    usual = lightning_trainer.isolate_rng
    lightning_trainer.isolate_rng = partial(usual, include_cuda=False)
    try:
        yield
    finally:
        lightning_trainer.isolate_rng = usual
