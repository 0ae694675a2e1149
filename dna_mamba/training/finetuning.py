# Shapes: B windows, T positions, K classes
"""Fine-tuning a classifier on windows of labelled genomes, after the recipe of the Mamba paper."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dna_mamba.data.labelled import LabelledWindows, Place
from dna_mamba.data.vocabulary import A
from dna_mamba.errors import InputError, StoppedError
from dna_mamba.model.classifier import SequenceClassifier
from dna_mamba.training.classification import backward_of_classes, scores_in_pieces
from dna_mamba.training.optimizer import OptimizerConfig

FIRST_LENGTH = 2**14
"""Where length warm-up begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """The recipe. The defaults are those of the Mamba paper (arXiv 2312.00752), appendix E.3.

    AdamW, 10 epochs of 1,024 steps, batch 64 at every length, 5 epochs of linear warm-up and 5 of cosine to 1e-6, 1e-4 at its
    peak; above 2^14 bases one epoch at each power of two first.
    """

    seq_len: int
    epochs: int = 10
    steps_per_epoch: int = 1024
    batch: int = 64
    """Windows of a step."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(peak_rate=1e-4, final_rate=1e-6, warmup_share=0.5)
    )
    piece_bases: int = 2**14
    """Positions computed at once; shorter windows are batched up to this."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "epochs", "steps_per_epoch", "batch", "piece_bases"):
            if not 1 <= getattr(self, name) <= 2**40:
                raise InputError(f"finetune: {name} {getattr(self, name)} must lie between 1 and 2^40")
        if len(self.epoch_lengths()) > self.epochs:
            raise InputError(
                f"finetune: {self.epochs} epochs are too few for length warm-up from {FIRST_LENGTH:,} to {self.seq_len:,} "
                f"bases; take at least {len(self.epoch_lengths())}"
            )

    def epoch_lengths(self) -> list[int]:
        """Give the window length of each epoch: above 2^14 one at each power of two from there, then full length."""
        first, length = [], FIRST_LENGTH
        while length < self.seq_len:
            first.append(length)
            length *= 2
        return first + [self.seq_len] * max(1, self.epochs - len(first))


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


def finetune(
    model: SequenceClassifier,
    windows_of: Callable[[int], LabelledWindows],
    config: FinetuneConfig,
    *,
    on_step: Callable[[FinetuneStep], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train a classifier on its device; what of it wants no gradient stays as it is.

    Args:
        model: The classifier.
        windows_of: Gives the training windows of a length; window i of epoch e is drawn from its seed, e and i alone.
        config: The recipe.
        on_step: Called after each step.
        on_epoch: Called after each epoch, with its number from 0.

    Raises:
        StoppedError: A loss is not finite.
    """
    device = model.head.weight.device
    optimizer, num_steps = config.optimizer.build(model), config.epochs * config.steps_per_epoch
    step = 0
    for epoch, length in enumerate(config.epoch_lengths()[: config.epochs]):
        windows = windows_of(length)
        at_once = max(1, config.piece_bases // length)
        for number in range(config.steps_per_epoch):
            places = [windows.place(epoch, number * config.batch + i) for i in range(config.batch)]
            optimizer.zero_grad(set_to_none=True)
            loss, right = 0.0, 0
            for first in range(0, config.batch, at_once):
                tokens_BT, targets_B = batch_of(windows, places[first : first + at_once], model.labels)
                targets_B = targets_B.to(device)
                part, scores_BK = backward_of_classes(
                    model, tokens_BT.to(device), targets_B, divisor=config.batch, piece_bases=config.piece_bases
                )
                loss += float(part)
                right += int((scores_BK.argmax(1) == targets_B).sum())
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clip))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise StoppedError(f"step {step + 1}: the loss ({loss}) or its gradient (norm {norm}) is not finite")
            rate = config.optimizer.rate(step, num_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            step += 1
            if on_step:
                on_step(
                    FinetuneStep(
                        step=step, epoch=epoch, window_bases=length, loss=loss, accuracy=right / config.batch,
                        gradient_norm=norm, learning_rate=rate,
                    )
                )  # fmt: skip
        if on_epoch:
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
