# Shapes: B windows, T bases
"""The windows of every optimizer step, as a function of the seed and the step alone."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dna_mamba.data.genome import GenomeStore
from dna_mamba.data.length_warmup import Stage, stage_of_step
from dna_mamba.data.objectives import sum_of_weights
from dna_mamba.data.policy import TokenPolicy
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


class TrainingSteps(Dataset[StepBatch]):
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
