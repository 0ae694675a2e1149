# Shapes: B windows, T bases
"""Batches for Lightning: one item is all the windows of one optimizer step."""

import signal
from collections.abc import Iterator

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Sampler

from dna_mamba import signals
from dna_mamba.data.steps import StepBatch, StepSource


def _leave_signals_to_the_run(worker: int) -> None:
    """Ignore what is sent to the whole process group: the run finishes its step, saves, and then stops its workers."""
    signals.take(signal.SIG_IGN)


class _Steps(Sampler[int]):
    def __init__(self, first: int, end: int):
        self.first, self.end = first, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.end))

    def __len__(self) -> int:
        return self.end - self.first


class TrainingData(L.LightningDataModule):
    """Feeds the steps from `first_step` on, in order, whatever the number of workers; pinned memory is for a GPU alone."""

    def __init__(self, steps: StepSource, *, first_step: int = 0, num_workers: int = 0, pin_memory: bool = False):
        super().__init__()
        self.pin_memory = pin_memory
        self.steps = steps
        self.first_step = first_step
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader:
        """Load one step an item; batches are made by the dataset."""
        return DataLoader(
            self.steps,
            batch_size=None,
            sampler=_Steps(self.first_step, len(self.steps)),
            num_workers=self.num_workers,
            worker_init_fn=_leave_signals_to_the_run,
            pin_memory=self.pin_memory,  # which makes a context of the GPU
        )

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Move bases and targets; what the host counts with stays in main memory, so that nothing waits for the GPU."""
        targets = None if batch.targets is None else batch.targets.to(device, non_blocking=True)
        return batch._replace(stored_BT=batch.stored_BT.to(device, non_blocking=True), targets=targets)
