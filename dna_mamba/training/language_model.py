# Shapes: B windows, T bases
"""The Lightning module that pretrains a language model: one call, one optimizer step."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor

from dna_mamba.data.datamodule import StepBatch
from dna_mamba.data.objectives import TokenPolicy, tokens_and_weights
from dna_mamba.errors import StoppedError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.piecewise import backward_in_pieces

MAX_SKIPPED_IN_A_ROW = 3

# ours: backward is called inside training_step, with automatic optimization off
warnings.filterwarnings("ignore", message=".*in the `training_step`.*")


@dataclass(kw_only=True)
class Counters:
    """Where a run stands; part of every checkpoint."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    bases_seen: list[list[int]] = field(default_factory=list)
    """By stage and contig."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_valid_bits: float = math.inf
    best_step: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What a step did."""

    step: int
    """From 1."""
    window_bases: int
    train_loss: float
    """Nats per target, softmax over all 16 rows."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    bases: int
    skipped: bool


class LanguageModel(L.LightningModule):
    """Given a model and an optimizer config; holds the loss and the step."""

    def __init__(
        self,
        model: DnaMamba,
        optimizer: OptimizerConfig,
        policy: TokenPolicy,
        *,
        num_steps: int,
        stage_lengths: Sequence[int],
        contig_names: Sequence[str],
        piece_bases: int,
        counters: Counters | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.optimizer_config = optimizer
        self.policy = policy
        self.num_steps = num_steps
        self.stage_lengths = list(stage_lengths)
        self.contig_names = list(contig_names)
        self.piece_bases = piece_bases
        empty = [[0] * len(self.contig_names) for _ in self.stage_lengths]
        self.counters = counters or Counters(bases_seen=empty)
        self.last: StepMetrics | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build AdamW; the rate is set in every step."""
        return self.optimizer_config.build(self.model)

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Do one optimizer step on all its windows, in micro-batches and pieces that fit.

        Raises:
            StoppedError: Three steps in a row had a loss or gradient that is not finite.
        """
        stored_BT, places_B3 = batch
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        counters, length = self.counters, stored_BT.shape[1]
        rate = self.optimizer_config.rate(counters.step, self.num_steps)
        optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate(stored_BT)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_config.gradient_clip)
        loss_value, norm_value = float(loss), float(norm)
        skipped = not (math.isfinite(loss_value) and math.isfinite(norm_value))
        if not skipped:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        seen = counters.bases_seen[self.stage_lengths.index(length)]
        for contig, num_windows in zip(*np.unique(places_B3[:, 0].cpu().numpy(), return_counts=True), strict=True):
            seen[int(contig)] += int(num_windows) * length
        counters.skipped += skipped
        counters.skipped_in_a_row = counters.skipped_in_a_row + 1 if skipped else 0
        self.last = StepMetrics(
            step=counters.step,
            window_bases=length,
            train_loss=loss_value,
            gradient_norm=norm_value,
            learning_rate=rate,
            bases=stored_BT.numel(),
            skipped=skipped,
        )
        if counters.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise StoppedError(
                f"step {counters.step}: the loss ({loss_value}) or its gradient (norm {norm_value}) was not finite for "
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row; the windows of the last were {self._name(places_B3, length)}"
            )

    def _accumulate(self, stored_BT: Tensor) -> Tensor:
        weight_of_store = torch.from_numpy(self.policy.weights_of_store()).double()
        counts = torch.bincount(stored_BT[:, 0 if self.policy.start_token else 1 :].flatten().int().cpu(), minlength=16)
        divisor = float((counts * weight_of_store).sum()) + (len(stored_BT) if self.policy.end_token else 0)
        windows_at_once = max(1, self.piece_bases // stored_BT.shape[1])
        loss = torch.zeros((), device=stored_BT.device)
        for some_BT in stored_BT.split(windows_at_once):
            tokens_BT, weights_BT = tokens_and_weights(some_BT, self.policy)
            loss += backward_in_pieces(
                self.model, tokens_BT, weights_BT, divisor=max(divisor, 1e-9), piece_bases=max(2, self.piece_bases)
            )
        return loss

    def _name(self, places_B3: Tensor, length: int) -> str:
        named = [
            f"{self.contig_names[contig]}:{start + 1}-{start + length}{'(-)' if flipped else ''}"
            for contig, start, flipped in places_B3.tolist()
        ]
        return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
