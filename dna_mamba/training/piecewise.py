# Shapes: B sequences, T positions, D model width, P pieces
"""Loss and gradients of long sequences in pieces, exactly, with memory that does not grow with the length.

The state is all that the past means to the future. So a sequence is read forward piece by piece, keeping only the
states between pieces, then backward from the last piece to the first: each piece is computed again with gradients and
receives the gradient of the state it handed on. Where the loss is a sum over positions, as many of the last pieces as fit in
memory are computed only once. Where a sequence has one output, the pieces' parts of it are kept from the way forward, and each
piece receives the gradient of its part too.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dna_mamba.data.objectives import Examples
from dna_mamba.model.state import LayerState, ModelState, map_state, tensors_of, with_tensors
from dna_mamba.model.trainable import Trainable
from dna_mamba.reading.pieces import Bounds, Read, bounds_of, in_pieces

SHORTEST_PIECE = 1024
"""Pieces are not halved below it when memory runs out."""


class Computed(NamedTuple):
    """What a backward tells; both are detached."""

    loss: Tensor
    """Sum of the weighted losses over the divisor."""
    counts: Tensor
    """What the model counts, summed over the targets; see `Trainable.counted`."""


def backward_in_pieces(
    model: Trainable, examples: Examples, *, divisor: float | Tensor, piece_bases: int, kept_pieces: int = 1
) -> Computed:
    """Add the gradients of (sum of weighted losses) / divisor to the parameters that want them.

    Args:
        model: Read in pieces if it is causal, whole otherwise.
        examples: Inputs, targets and weights, side by side.
        divisor: Usually the sum of the target weights of the whole optimizer step.
        piece_bases: Positions of a sequence computed at once; gradients do not depend on it (up to rounding).
        kept_pieces: How many pieces, the last ones, are computed once, with all that their backward needs kept in memory;
            those before them are computed twice. At least 1. Not where a sequence has one output.
    """
    bounds = bounds_of(model.backbone, examples.inputs_BT.shape[1], piece_bases)
    if model.additive:
        return _sum_over_positions(model, examples, bounds, divisor, max(1, kept_pieces))
    return _one_output_each(model, examples, bounds, divisor)


@torch.no_grad()
def _states_between(
    read: Read, bounds: Bounds, on_output: Callable[[Tensor], object] | None = None
) -> list[ModelState | None]:
    """Read pieces forward; give the state that enters each of them, and the one that leaves the last.

    Args:
        read: Reads a piece.
        bounds: Of all pieces.
        on_output: Takes what was read of each.
    """
    entering: list[ModelState | None] = [None]
    blocks: list[Tensor | None] = []
    for number, piece in enumerate(in_pieces(read, bounds)):
        if on_output:
            on_output(piece.output)
        kept = tensors_of(piece.state)
        if number == 1:
            # One block for all pieces: small tensors kept one by one would lie among the large ones that each piece
            # frees, and the allocator could use none of those holes again. A state that grows lies by itself.
            first = entering.pop()
            assert first is not None
            before = tensors_of(first)
            blocks = [
                x.new_empty(len(bounds), *x.shape) if x.shape == old.shape else None
                for x, old in zip(kept, before, strict=True)
            ]
            entering.append(with_tensors(first, _put(before, blocks, 0)))
            del first, before
        entering.append(with_tensors(piece.state, _put(kept, blocks, number)))
        del piece, kept
    return entering


def _put(tensors: Sequence[Tensor], blocks: Sequence[Tensor | None], number: int) -> list[Tensor]:
    """Copy tensors into a row of their blocks, where they have one."""
    if not blocks:
        return list(tensors)
    kept = []
    for x, block in zip(tensors, blocks, strict=True):
        if block is not None:
            block[number] = x
            x = block[number]
        kept.append(x)
    return kept


def _leaves_of(state: Sequence[LayerState] | None) -> ModelState | None:
    """Cut the graph where a state enters a piece."""
    return None if state is None else map_state(lambda x: x.detach().requires_grad_(), state)


def _backward_of_piece(
    result: Tensor,
    gradient: Tensor,
    leaving: ModelState,
    leaving_gradients: Sequence[Tensor | None] | None,
    entered: ModelState | None,
) -> list[Tensor | None] | None:
    """Add to the parameters' gradients those through a piece's result and the state it handed on.

    Returns:
        The gradients of the state that entered, as `leaving_gradients` of the piece before, None where nothing depends on
        it; none at the first.
    """
    outputs, gradients = [result], [gradient]
    if leaving_gradients is not None:
        for x, wanted in zip(tensors_of(leaving), leaving_gradients, strict=True):
            if wanted is not None and x.requires_grad:
                outputs.append(x)
                gradients.append(wanted)
    torch.autograd.backward(outputs, gradients)
    return None if entered is None else [x.grad for x in tensors_of(entered)]


class _Piece:
    """A piece computed with gradients, its graph cut where its state enters."""

    def __init__(
        self,
        model: Trainable,
        examples: Examples,
        bounds: tuple[int, int],
        state: Sequence[LayerState] | None,
        divisor: float | Tensor,
    ):
        here = slice(*bounds)
        self.entered = _leaves_of(state)
        outputs, self.leaving = model.part(examples.inputs_BT[:, here], self.entered)
        weights = None if examples.weights is None else examples.weights[:, here]
        targets = examples.targets[:, here]
        total = model.sum_of_losses(outputs, targets, weights)
        self.loss = (total / divisor).to(total.dtype)
        self.counts = model.counts(outputs.detach(), targets)

    def backward(self, leaving_gradients: Sequence[Tensor | None] | None) -> list[Tensor | None] | None:
        """Add to the parameters' gradients; give those of the state that entered."""
        return _backward_of_piece(self.loss, torch.ones_like(self.loss), self.leaving, leaving_gradients, self.entered)


def _sum_over_positions(
    model: Trainable, examples: Examples, bounds: Bounds, divisor: float | Tensor, kept_pieces: int
) -> Computed:
    num_again = max(0, len(bounds) - kept_pieces)

    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        return model.backbone(examples.inputs_BT[:, start:end], state)

    entering = _states_between(read, bounds[:num_again])
    kept = [_Piece(model, examples, bounds[num_again], entering.pop(), divisor)]
    for number in range(num_again + 1, len(bounds)):
        kept.append(_Piece(model, examples, bounds[number], kept[-1].leaving, divisor))
    loss = torch.zeros((), dtype=torch.float64, device=examples.inputs_BT.device)
    counts = torch.zeros(len(model.counted), dtype=torch.float64, device=loss.device)
    gradients: list[Tensor | None] | None = None
    for number in reversed(range(len(bounds))):
        piece = kept.pop() if kept else _Piece(model, examples, bounds[number], entering.pop(), divisor)
        gradients = piece.backward(gradients)
        loss += piece.loss.detach()
        counts += piece.counts
        del piece  # before the next is computed, not after
    return Computed(loss.to(torch.float32), counts)


def _one_output_each(model: Trainable, examples: Examples, bounds: Bounds, divisor: float | Tensor) -> Computed:
    inputs_BT = examples.inputs_BT
    # with a frozen backbone pieces are computed once
    trains_backbone = any(parameter.requires_grad for parameter in model.backbone.parameters())

    def backward(parts_PBD: Tensor) -> Computed:
        outputs = model.combine(parts_PBD, inputs_BT.shape[1])
        total = model.sum_of_losses(outputs, examples.targets, examples.weights)
        loss = (total / divisor).to(total.dtype)
        loss.backward()
        return Computed(loss.detach(), model.counts(outputs.detach(), examples.targets))

    if len(bounds) == 1 and trains_backbone:
        part_BD, _ = model.part(inputs_BT)
        return backward(part_BD[None])
    parts: list[Tensor] = []
    entering = _states_between(
        lambda start, end, state: model.part(inputs_BT[:, start:end], state), bounds, parts.append
    )
    entering.pop()  # nothing follows the last
    parts_PBD = torch.stack(parts).requires_grad_(trains_backbone)
    computed = backward(parts_PBD)
    if not trains_backbone:
        return computed
    wanted_PBD = parts_PBD.grad
    assert wanted_PBD is not None
    leaving_gradients: list[Tensor | None] | None = None
    for number in reversed(range(len(bounds))):
        start, end = bounds[number]
        entered = _leaves_of(entering.pop())
        part_BD, leaving = model.part(inputs_BT[:, start:end], entered)
        wanted_BD = wanted_PBD[number].to(part_BD.dtype)
        leaving_gradients = _backward_of_piece(part_BD, wanted_BD, leaving, leaving_gradients, entered)
        del part_BD, leaving  # before the piece before it is computed, not after
    return computed
