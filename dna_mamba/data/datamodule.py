# Shapes: B windows, T bases
"""Batches for Lightning: one item is all the windows of one optimizer step."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import partial
from multiprocessing.synchronize import Event

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Sampler

from dna_mamba import signals
from dna_mamba.data.steps import StepBatch, StepSource


def _leave_signals_to_the_run(ended: Event, worker: int) -> None:
    """Ignore what is sent to the whole process group: the run finishes its step, saves, and then stops its workers.

    Once it is done with them SIGTERM ends them: it is what multiprocessing sends, and waits for, at the end of a process.
    """
    signals.take(signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if ended.is_set() else None)


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
        self._ended: Event | None = None

    def train_dataloader(self) -> DataLoader:
        """Load one step an item; batches are made by the dataset."""
        start = None
        if self.num_workers:
            self._ended = multiprocessing.Event()
            atexit.register(self._ended.set)  # before multiprocessing's own, which was registered earlier
            start = partial(_leave_signals_to_the_run, self._ended)
        return DataLoader(
            self.steps,
            batch_size=None,
            sampler=_Steps(self.first_step, len(self.steps)),
            num_workers=self.num_workers,
            worker_init_fn=start,
            pin_memory=self.pin_memory,  # which makes a context of the GPU
        )

    def release(self) -> None:
        """Let the workers be ended: nothing more is read."""
        if self._ended is not None:
            self._ended.set()
            atexit.unregister(self._ended.set)

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Move bases and targets; what the host counts with stays in main memory, so that nothing waits for the GPU."""
        targets = None if batch.targets is None else batch.targets.to(device, non_blocking=True)
        return batch._replace(stored_BT=batch.stored_BT.to(device, non_blocking=True), targets=targets)
