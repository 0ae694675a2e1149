# Shapes: B windows, T bases
"""The windows of every optimizer step, as a function of the seed and the step alone."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dna_mamba.data.length_warmup import Stage, stage_of_step
from dna_mamba.data.objectives import sum_of_weights
from dna_mamba.data.policy import TokenPolicy
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import reverse_complement_store
from dna_mamba.data.windows import Windows, flips_of_epoch, order_of_epoch


class StepBatch(NamedTuple):
    """All the windows of one optimizer step."""

    stored_BT: Tensor
    """Store bytes, uint8."""
    places_B3: Tensor
    """Place of each window, int64: contig number, first base, other strand or not."""
    sum_of_weights: float
    """Of all targets."""
    targets: Tensor | None = None
    """What the data say of each window (B, ...); none where the bases say it themselves."""


class StepSource(Dataset[StepBatch]):
    """The windows of every optimizer step of a run, by its number from 0."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the steps."""

    @abstractmethod
    def __getitem__(self, step: int) -> StepBatch:
        """Read the windows of a step; neither workers nor earlier steps enter."""


class Drawn(NamedTuple):
    """A window that was drawn for training."""

    stored_T: np.ndarray
    """Store bytes, uint8."""
    target: int | float | np.ndarray
    """What the data say of it: the number of its class, say."""
    contig: int
    """Number of its contig."""
    start: int
    """First base, 0-based."""


class DrawnSteps(StepSource):
    """Steps of windows that are drawn one by one: window i of an epoch follows from the epoch and i alone.

    Args:
        draw: Gives a window by its length, epoch and number in the epoch (from 0).
        epoch_lengths: Bases of the windows of each epoch.
        steps_per_epoch: Optimizer steps of an epoch.
        batch: Windows of a step.
    """

    def __init__(
        self,
        draw: Callable[[int, int, int], Drawn],
        epoch_lengths: Sequence[int],
        *,
        steps_per_epoch: int,
        batch: int,
    ):
        self.draw, self.epoch_lengths = draw, tuple(epoch_lengths)
        self.steps_per_epoch, self.batch = steps_per_epoch, batch

    def __len__(self) -> int:
        return len(self.epoch_lengths) * self.steps_per_epoch

    def __getitem__(self, step: int) -> StepBatch:
        epoch, number = divmod(step, self.steps_per_epoch)
        drawn = [self.draw(self.epoch_lengths[epoch], epoch, number * self.batch + i) for i in range(self.batch)]
        targets = torch.from_numpy(np.array([one.target for one in drawn]))
        return StepBatch(
            torch.from_numpy(np.stack([one.stored_T for one in drawn])),
            torch.tensor([[one.contig, one.start, 0] for one in drawn]),
            float(self.batch),
            targets.float() if targets.is_floating_point() else targets,
        )


class TrainingSteps(StepSource):
    """The windows of every optimizer step, as a function of the seed and the step alone.

    Window i of epoch e of a stage follows from (seed, stage, e, i); neither workers nor earlier steps enter.
    """

    def __init__(
        self,
        genome: GenomeStore,
        stages: Sequence[Stage],
        windows: Sequence[Windows],
        *,
        bases_per_step: int,
        seed: int,
        policy: TokenPolicy,
    ):
        self.genome = genome
        self.stages = tuple(stages)
        self.windows = tuple(windows)
        self.bases_per_step = bases_per_step
        self.seed = seed
        self.policy = policy

    def __len__(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    def windows_per_step(self, stage: int) -> int:
        """Count the windows of a step, so that its bases are the same in every stage (up to less than one window)."""
        return max(1, self.bases_per_step // self.stages[stage].window_bases)

    def places(self, step: int) -> tuple[int, np.ndarray]:
        """Give the window length of a step (counted from 0) and the place of each of its windows (B, 3)."""
        stage, step_in_stage = stage_of_step(self.stages, step)
        windows = self.windows[stage]
        per_step = self.windows_per_step(stage)
        ranks = np.arange(step_in_stage * per_step, (step_in_stage + 1) * per_step)
        epochs, positions = np.divmod(ranks, len(windows))
        chosen = np.empty((per_step, 3), np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            order, flips = self._epoch(stage, int(epoch))
            numbers = order[positions[rows]]
            chosen[rows] = np.stack([windows.contigs[numbers], windows.starts[numbers], flips[numbers]], axis=1)
        return windows.length, chosen

    def _epoch(self, stage: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return _epoch(self.seed, stage, epoch, len(self.windows[stage]), self.policy.reverse_complement)

    def __getitem__(self, step: int) -> StepBatch:
        length, places = self.places(step)
        stored = self.genome.stored_batch(places[:, 0], places[:, 1], length)
        for row in np.flatnonzero(places[:, 2]):
            stored[row] = reverse_complement_store(stored[row])
        return StepBatch(torch.from_numpy(stored), torch.from_numpy(places), sum_of_weights(stored, self.policy))


@lru_cache(maxsize=4)
def _epoch(seed: int, stage: int, epoch: int, num_windows: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    return order_of_epoch(seed, stage, epoch, num_windows), flips_of_epoch(seed, stage, epoch, num_windows, share)
