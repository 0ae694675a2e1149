# Shapes: B windows, T bases
"""One optimizer step, whatever is trained: loss and gradients cut up as they fit, the update, and what a step did."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dna_mamba.data.objectives import Objective
from dna_mamba.data.steps import StepBatch
from dna_mamba.errors import StoppedError
from dna_mamba.model.trainable import Trainable
from dna_mamba.reading.pieces import check_causal
from dna_mamba.training.captured import MAX_BASES, CapturedGradients
from dna_mamba.training.counters import Counters
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.piecewise import SHORTEST_PIECE, Computed, backward_in_pieces

MAX_SKIPPED_IN_A_ROW = 3
SMALLER = (
    "take a smaller --model, more --set training.recomputed_layers, or fewer training.bases_per_step (dna-mamba plan says what "
    "each needs)"
)
"""What to do where no cut fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What a step did; one line of metrics.csv."""

    step: int
    """From 1."""
    window_bases: int
    loss: float
    """Nats per target, softmax over all 16 rows, of a language model; what the head loses a window otherwise."""
    counts: tuple[float, ...]
    """Shares of the targets that the model counts, such as accuracy, in the order of `Trainable.counted`."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    bases: int
    skipped: bool
    seconds: float
    """Since the step before it ended, what came between them included; 0 of the first."""
    places_B3: Tensor = field(repr=False, compare=False)
    """Of its windows; `Stepper.name_windows` names them."""


class NotFiniteError(StoppedError):
    """Too many steps in a row had no finite numbers; `read` holds those that were read at last."""

    def __init__(self, words: str, read: list[StepMetrics]):
        super().__init__(words)
        self.read = read


@dataclass(frozen=True, kw_only=True, slots=True)
class _About:
    """What of a step is known before its numbers are."""

    step: int
    window_bases: int
    learning_rate: float
    bases: int
    seconds: float
    num_targets: int
    places_B3: Tensor


class _Unread:
    """A step whose numbers may still be on their way from the GPU."""

    def __init__(self, told: Sequence[Tensor], about: _About):
        numbers = torch.cat([x.double().reshape(-1) for x in told])
        self.about, self.arrived = about, None
        if numbers.is_cuda:
            self.numbers = torch.empty(len(numbers), dtype=torch.float64, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()
        else:
            self.numbers = numbers

    def read(self) -> StepMetrics:
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm, *counts = self.numbers.tolist()
        about = self.about
        return StepMetrics(
            step=about.step, window_bases=about.window_bases, loss=loss, gradient_norm=norm,
            counts=tuple(count / max(1, about.num_targets) for count in counts), learning_rate=about.learning_rate,
            bases=about.bases, skipped=not (math.isfinite(loss) and math.isfinite(norm)), seconds=about.seconds,
            places_B3=about.places_B3,
        )  # fmt: skip


class Stepper:
    """Trains a model, one step a call.

    Args:
        model: Trained in place; what of it wants no gradient stays as it is.
        objective: What is asked of it.
        optimizer: Settings of the optimizer.
        num_steps: Of the whole run, which the learning rate follows.
        stage_lengths: Window lengths that will come, for what is counted by stage.
        contig_names: By number, for messages.
        piece_bases: Positions computed at once, over all windows of a micro-batch.
        kept_pieces: Pieces of a window that are computed only once.
        counters: Where the run stands; kept up to date.
        say: Called with sentences that deserve attention.
        on_smaller: Called with piece_bases and kept_pieces when memory ran out and they were made smaller.
        advice: What to do where no cut fits, for the message.

    Raises:
        InputError: The model has seen what the objective asks for.
    """

    def __init__(
        self,
        model: Trainable,
        objective: Objective,
        optimizer: OptimizerConfig,
        *,
        num_steps: int,
        stage_lengths: Sequence[int],
        contig_names: Sequence[str],
        piece_bases: int,
        kept_pieces: int = 1,
        counters: Counters | None = None,
        say: Callable[[str], None] | None = None,
        on_smaller: Callable[[int, int], None] | None = None,
        advice: str = SMALLER,
    ):
        if objective.looks_ahead:
            check_causal(model, f"training on {objective.name}")
        self.model, self.objective, self.optimizer_config = model, objective, optimizer
        self.num_steps = num_steps
        self.stage_lengths = list(stage_lengths)
        self.contig_names = list(contig_names)
        empty = [[0] * len(self.contig_names) for _ in self.stage_lengths]
        self.counters = counters or Counters(bases_seen=empty)
        self.piece_bases, self.kept_pieces = piece_bases, kept_pieces
        self.on_smaller = on_smaller or (lambda piece_bases, kept_pieces: None)
        self.say = say or (lambda words: None)
        self.advice = advice
        self.last: StepMetrics | None = None
        """The newest that was read."""
        self.capture = True
        """Run small steps on a GPU as one CUDA graph."""
        self._captured: CapturedGradients | None = None
        self._unread: list[_Unread] = []
        self._ended: float | None = None

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Build AdamW; the rate is set in every step."""
        return self.optimizer_config.build(self.model)

    def step(self, batch: StepBatch, optimizer: torch.optim.Optimizer) -> None:
        """Do one optimizer step on all windows of a batch, in micro-batches and pieces that fit, without waiting for the GPU.

        An update from numbers that are not finite is left out there. The numbers are read later, by `read_steps`: the next
        step can be launched before this one has ended.
        """
        counters, length = self.counters, batch.stored_BT.shape[1]
        rate = self.optimizer_config.rate(counters.step, self.num_steps)
        optimizer.zero_grad(set_to_none=True)
        loss, counts = self._accumulate_what_fits(batch, optimizer)
        num_targets = 0 if batch.targets is None else batch.targets.numel()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_config.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # the fused optimizer leaves parameters and moments as they are where this is 1
        optimizer.found_inf = (~(loss.isfinite() & norm.isfinite())).float()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        seen = counters.bases_seen[self.stage_lengths.index(length)]
        for contig, num_windows in zip(*np.unique(batch.places_B3[:, 0].numpy(), return_counts=True), strict=True):
            seen[int(contig)] += int(num_windows) * length
        now = time.monotonic()
        about = _About(
            step=counters.step, window_bases=length, learning_rate=rate, bases=batch.stored_BT.numel(),
            seconds=now - self._ended if self._ended is not None else 0.0, num_targets=num_targets,
            places_B3=batch.places_B3,
        )  # fmt: skip
        self._ended = now
        self._unread.append(_Unread([loss, norm, counts], about))

    def read_steps(self, *, leave: int = 0) -> list[StepMetrics]:
        """Give the numbers of the steps not read yet, oldest first, and count the skipped ones.

        Args:
            leave: So many of the newest are left for the next call; reading those before them need not wait for them.

        Raises:
            StoppedError: Three steps in a row had a loss or gradient that is not finite. It carries what was read.
        """
        read = []
        while len(self._unread) > leave:
            unread = self._unread.pop(0)
            metrics = self.last = unread.read()
            read.append(metrics)
            counters = self.counters
            counters.skipped += metrics.skipped
            counters.skipped_in_a_row = counters.skipped_in_a_row + 1 if metrics.skipped else 0
            if counters.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise NotFiniteError(
                    f"step {metrics.step}: the loss ({metrics.loss}) or its gradient (norm {metrics.gradient_norm}) "
                    f"was not finite for {MAX_SKIPPED_IN_A_ROW} steps in a row; the windows of the last were "
                    f"{_first(self.name_windows(metrics))}",
                    read,
                )
        return read

    def _accumulate_what_fits(self, batch: StepBatch, optimizer: torch.optim.Optimizer) -> Computed:
        """Compute loss and gradients; where memory runs out, cut smaller and begin the step anew: the numbers stay the same."""
        while True:
            try:
                return self._accumulate(batch)
            except torch.cuda.OutOfMemoryError as error:
                self._captured = None
                smaller = self._smaller(batch.stored_BT.shape[1])
                if smaller is None:
                    raise StoppedError(
                        f"step {self.counters.step + 1} does not fit in the GPU's memory in pieces of {self.piece_bases:,} "
                        f"bases, the smallest tried; {self.advice}"
                    ) from error
                self.piece_bases, self.kept_pieces = smaller
                self.on_smaller(*smaller)
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.say(
                f"step {self.counters.step + 1} ran out of memory; it begins anew, and the run goes on, in pieces of "
                f"{self.piece_bases:,} bases, of which {self.kept_pieces} are computed only once; the numbers do not change"
            )

    def _smaller(self, length: int) -> tuple[int, int] | None:
        if self.kept_pieces > 1 and self.piece_bases < length:
            in_use = min(self.kept_pieces, -(-length // self.piece_bases))
            return self.piece_bases, max(1, in_use // 2)
        piece = min(self.piece_bases, 1 << (self.piece_bases - 1).bit_length() - 1)  # the next power of two below
        if not self.model.backbone.causal and piece < length:
            return None  # it is read whole, one window at a time already
        return (piece, self.kept_pieces) if piece >= SHORTEST_PIECE else None

    def _accumulate(self, batch: StepBatch) -> Computed:
        """Compute loss and gradients, and what the model counts."""
        stored_BT = batch.stored_BT
        windows_at_once = max(1, self.piece_bases // stored_BT.shape[1])
        in_one_go = len(stored_BT) <= windows_at_once and stored_BT.shape[1] <= self.piece_bases
        if stored_BT.is_cuda and self.capture and in_one_go and stored_BT.numel() <= MAX_BASES:
            return self._accumulate_captured(batch)
        self._captured = None  # its memory is that of a whole step
        loss = torch.zeros((), device=stored_BT.device)
        counts = torch.zeros(len(self.model.counted), dtype=torch.float64, device=stored_BT.device)
        for first in range(0, len(stored_BT), windows_at_once):
            some = slice(first, first + windows_at_once)
            examples = self.objective.examples(stored_BT[some], None if batch.targets is None else batch.targets[some])
            computed = backward_in_pieces(
                self.model,
                examples,
                divisor=max(batch.sum_of_weights, 1e-9),
                piece_bases=max(2, self.piece_bases),
                kept_pieces=self.kept_pieces,
            )
            loss += computed.loss
            counts += computed.counts
        return Computed(loss, counts)

    def _accumulate_captured(self, batch: StepBatch) -> Computed:
        examples = self.objective.examples(batch.stored_BT, batch.targets)
        captured = self._captured
        if captured is None or not captured.fits(examples):
            self._captured = None  # its memory goes before the next is captured
            try:
                captured = self._captured = CapturedGradients(self.model, examples)
            except RuntimeError as error:
                if isinstance(error.__context__, torch.cuda.OutOfMemoryError):  # ending the capture failed as well
                    raise error.__context__ from error
                raise
        return captured(examples, max(batch.sum_of_weights, 1e-9))

    def make_room(self) -> None:
        """Give back the memory of a large captured step; the next step captures anew."""
        if self._captured is not None and self._captured.num_bases > MAX_BASES // 4:
            self._captured = None

    def let_go(self) -> None:
        """Give back the memory of any captured step."""
        self._captured = None

    def name_windows(self, metrics: StepMetrics) -> list[str]:
        """Name the windows of a step: CONTIG:START-END, with (-) on the other strand."""
        return [
            f"{self.contig_names[contig]}:{start + 1}-{start + metrics.window_bases}{'(-)' if flipped else ''}"
            for contig, start, flipped in metrics.places_B3.tolist()
        ]


def _first(named: Sequence[str], most: int = 4) -> str:
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")
