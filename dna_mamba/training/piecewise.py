# Shapes: B sequences, T positions
"""Loss and gradients of long sequences in pieces, exactly, with memory that does not grow with the length.

The state is all that the past means to the future. So a sequence is read forward piece by piece, keeping only the
states between pieces, then backward from the last piece to the first: each piece is computed again with gradients and
receives the gradient of the state it handed on. As many of the last pieces as fit in memory are computed only once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dna_mamba.kernels.cross_entropy import cross_entropy
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.state import LayerState, ModelState, map_state, tensors_of, with_tensors
from dna_mamba.reading.pieces import bounds_of, check_causal

SHORTEST_PIECE = 1024
"""Pieces are not halved below it when memory runs out."""


def sum_of_losses(
    model: DnaMamba, tokens_BT: Tensor, weights_BT: Tensor, state: Sequence[LayerState] | None
) -> tuple[Tensor, ModelState]:
    """Sum the weighted losses of positions 1 to T - 1 (T - 1 predicts nothing); run all T - 1 predecessors at once."""
    logits_BTV, new_state = model(tokens_BT[:, :-1], state)
    losses_BT = cross_entropy(
        logits_BTV, tokens_BT[:, 1:], weights_BT[:, 1:].to(logits_BTV.dtype), implementation=model.implementation
    )
    return losses_BT.sum(), new_state


@torch.no_grad()
def _entering_states(model: DnaMamba, tokens_BT: Tensor, bounds: Sequence[tuple[int, int]]) -> list[ModelState | None]:
    """Read pieces forward; give the state that enters each of them, and the one that leaves the last."""
    entering: list[ModelState | None] = [None]
    blocks: list[Tensor] | None = None
    for number, (start, end) in enumerate(bounds):
        _, state = model.backbone(tokens_BT[:, start:end], entering[-1])
        if blocks is None:
            # One block for all pieces: small tensors kept one by one would lie among the large ones that each piece
            # frees, and the allocator could use none of those holes again.
            blocks = [x.new_empty(len(bounds), *x.shape) for x in tensors_of(state)]
        kept = []
        for x, block in zip(tensors_of(state), blocks, strict=True):
            if x.shape == block.shape[1:]:
                block[number] = x
                x = block[number]
            kept.append(x)  # a state that grows lies by itself
        entering.append(with_tensors(state, kept))
        del state, x, kept
    return entering


def leaves_of(state: Sequence[LayerState] | None) -> ModelState | None:
    """Cut the graph where a state enters a piece."""
    return None if state is None else map_state(lambda x: x.detach().requires_grad_(), state)


def backward_of_piece(
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
        model: DnaMamba,
        tokens_BT: Tensor,
        weights_BT: Tensor,
        state: Sequence[LayerState] | None,
        divisor: float | Tensor,
    ):
        self.entered = leaves_of(state)
        total, self.leaving = sum_of_losses(model, tokens_BT, weights_BT, self.entered)
        self.loss = (total / divisor).to(total.dtype)

    def backward(self, leaving_gradients: Sequence[Tensor | None] | None) -> list[Tensor | None] | None:
        """Add to the parameters' gradients; give those of the state that entered."""
        return backward_of_piece(self.loss, torch.ones_like(self.loss), self.leaving, leaving_gradients, self.entered)


def backward_in_pieces(
    model: DnaMamba,
    tokens_BT: Tensor,
    weights_BT: Tensor,
    *,
    divisor: float | Tensor,
    piece_bases: int,
    kept_pieces: int = 1,
) -> Tensor:
    """Add the gradients of (sum of weighted losses) / divisor to the parameters; return that loss, detached.

    Args:
        model: The language model.
        tokens_BT: Token ids.
        weights_BT: Weight of each position as a target; the first is no target.
        divisor: Usually the sum of the target weights of the whole optimizer step.
        piece_bases: Positions of a sequence computed at once; gradients do not depend on it (up to rounding).
        kept_pieces: How many pieces, the last ones, are computed once, with all that their backward needs kept in memory;
            those before them are computed twice. At least 1.

    Raises:
        InputError: The model is not causal.
    """
    check_causal(model, "training on the next base")
    T = tokens_BT.shape[1]
    # piece i holds the predecessors start to end - 1, and predicts start + 1 to end
    bounds = bounds_of(model.backbone, T - 1, piece_bases)
    num_again = max(0, len(bounds) - max(1, kept_pieces))
    entering = _entering_states(model, tokens_BT, bounds[:num_again])

    def compute(number: int, state: Sequence[LayerState] | None) -> _Piece:
        start, end = bounds[number]
        return _Piece(model, tokens_BT[:, start : end + 1], weights_BT[:, start : end + 1], state, divisor)

    kept = [compute(num_again, entering.pop())]
    for number in range(num_again + 1, len(bounds)):
        kept.append(compute(number, kept[-1].leaving))
    loss = torch.zeros((), dtype=torch.float64, device=tokens_BT.device)
    gradients: list[Tensor | None] | None = None
    for number in reversed(range(len(bounds))):
        piece = kept.pop() if kept else compute(number, entering.pop())
        gradients = piece.backward(gradients)
        loss += piece.loss.detach()
        del piece  # before the next is computed, not after
    return loss.to(torch.float32)
