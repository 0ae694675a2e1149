# Shapes: B windows, T positions, K classes
"""Fine-tuning a classifier on windows of labelled genomes, after the recipe of the Mamba paper."""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import A
from dna_mamba.data.labelled import LabelledWindows, Place
from dna_mamba.errors import StoppedError
from dna_mamba.model.classifier import SequenceClassifier
from dna_mamba.reading.classes import scores_in_pieces, vectors_in_pieces
from dna_mamba.training.classification import backward_of_classes
from dna_mamba.training.language_model import MAX_SKIPPED_IN_A_ROW
from dna_mamba.training.recipe import FinetuneConfig

STATISTICS = 1
"""Purpose of the draws that standardize vectors: none of them is one that trains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneStep:
    """What a step did."""

    step: int
    """From 1."""
    epoch: int
    window_bases: int
    loss: float
    """Nats a window."""
    accuracy: float
    gradient_norm: float
    learning_rate: float


def batch_of(windows: LabelledWindows, places: Sequence[Place], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Read windows: token ids (B, T) uint8 and classes (B,)."""
    tokens_BT = torch.from_numpy(np.stack([windows.stored(place) for place in places]) + A)
    return tokens_BT, torch.tensor([list(labels).index(place.label) for place in places])


@torch.no_grad()
def standardize(model: SequenceClassifier, windows: LabelledWindows, config: FinetuneConfig) -> None:
    """Set the zero and the unit of a classifier's vectors from training windows of their own draw."""
    device = model.head.weight.device
    at_once = max(1, config.piece_bases // windows.length)
    vectors = []
    for first in range(0, config.standardize_windows, at_once):
        last = min(first + at_once, config.standardize_windows)
        places = [windows.place(0, i, STATISTICS) for i in range(first, last)]
        tokens_BT, _ = batch_of(windows, places, model.labels)
        vectors.append(vectors_in_pieces(model, tokens_BT.to(device), config.piece_bases))
    model.standardize(torch.cat(vectors))


def finetune(
    model: SequenceClassifier,
    windows_of: Callable[[int], LabelledWindows],
    config: FinetuneConfig,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    first_step: int = 0,
    skipped_in_a_row: int = 0,
    on_step: Callable[[FinetuneStep], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train a classifier on its device; what of it wants no gradient stays as it is.

    Args:
        model: The classifier.
        windows_of: Gives the training windows of a length; window i of epoch e is drawn from its seed, e and i alone.
        config: The recipe.
        optimizer: With its state, to go on; without it a new one.
        first_step: Steps that were done before.
        skipped_in_a_row: How many of them, the last ones, were not finite.
        on_step: Called after each step.
        on_epoch: Called after each epoch, with its number from 0.

    Raises:
        StoppedError: Three steps in a row were not finite; one or two are left out.
    """
    device = model.head.weight.device
    optimizer = optimizer or config.optimizer.build(model)
    num_steps = config.epochs * config.steps_per_epoch
    lengths = config.epoch_lengths()
    if first_step == 0 and config.standardize_windows:
        standardize(model, windows_of(config.seq_len), config)
    windows_of = functools.cache(windows_of)

    def read(step: int) -> list[tuple[Tensor, Tensor]]:
        epoch, number = divmod(step, config.steps_per_epoch)
        windows = windows_of(lengths[epoch])
        places = [windows.place(epoch, number * config.batch + i) for i in range(config.batch)]
        at_once = max(1, config.piece_bases // windows.length)
        return [
            batch_of(windows, places[first : first + at_once], model.labels)
            for first in range(0, config.batch, at_once)
        ]

    with ThreadPoolExecutor(1) as reader:  # the windows of a step are read while the one before it is computed
        following = reader.submit(read, first_step) if first_step < num_steps else None
        for step in range(first_step, num_steps):
            assert following is not None
            parts = following.result()
            following = reader.submit(read, step + 1) if step + 1 < num_steps else None
            rate = config.optimizer.rate(step, num_steps)
            losses, right = [], []
            optimizer.zero_grad(set_to_none=True)
            for tokens_BT, targets_B in parts:
                targets_B = targets_B.to(device, non_blocking=True)
                part, scores_BK = backward_of_classes(
                    model, tokens_BT.to(device, non_blocking=True), targets_B, divisor=config.batch,
                    piece_bases=config.piece_bases,
                )  # fmt: skip
                losses.append(part)
                right.append((scores_BK.argmax(1) == targets_B).sum())
            gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clip)
            loss, norm = float(torch.stack(losses).sum()), float(gradient_norm)
            finite = math.isfinite(loss) and math.isfinite(norm)
            skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
            if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise StoppedError(
                    f"step {step + 1}: the loss ({loss}) or its gradient (norm {norm}) was not finite for "
                    f"{MAX_SKIPPED_IN_A_ROW} steps in a row"
                )
            for group in optimizer.param_groups:
                group["lr"] = rate
            if finite:  # a step that is not finite is left out
                optimizer.step()
            epoch = step // config.steps_per_epoch
            if on_step:
                on_step(
                    FinetuneStep(
                        step=step + 1, epoch=epoch, window_bases=lengths[epoch], loss=loss,
                        accuracy=int(torch.stack(right).sum()) / config.batch, gradient_norm=norm, learning_rate=rate,
                    )
                )  # fmt: skip
            if on_epoch and (step + 1) % config.steps_per_epoch == 0:
                on_epoch(epoch)


@torch.no_grad()
def probabilities(
    model: SequenceClassifier, windows: LabelledWindows, places: Sequence[Place], piece_bases: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give class probabilities (N, K) and true classes (N,) of a fixed set of windows."""
    device = model.head.weight.device
    at_once = max(1, piece_bases // windows.length)
    found, truth = [], []
    for first in range(0, len(places), at_once):
        tokens_BT, targets_B = batch_of(windows, places[first : first + at_once], model.labels)
        scores_BK = scores_in_pieces(model, tokens_BT.to(device), piece_bases)
        found.append(scores_BK.double().softmax(1).cpu().numpy())
        truth.append(targets_B.numpy())
    return np.concatenate(found), np.concatenate(truth)
