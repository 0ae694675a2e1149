"""What Lightning trains: a stepper in its clothes."""

import warnings

import lightning.pytorch as L
import torch

from dna_mamba.data.steps import StepBatch
from dna_mamba.training.step import Stepper

# ours: backward is called inside training_step, with automatic optimization off
warnings.filterwarnings("ignore", message=".*in the `training_step`.*")


class TrainingModule(L.LightningModule):
    """One call, one optimizer step. Given a stepper, it moves the model and hands on the batches; it decides nothing."""

    def __init__(self, stepper: Stepper):
        super().__init__()
        self.automatic_optimization = False
        self.stepper = stepper
        self.model = stepper.model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer."""
        return self.stepper.make_optimizer()

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Do one optimizer step on all windows of a batch."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.stepper.step(batch, optimizer)
