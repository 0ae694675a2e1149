# Shapes: B sequences, T positions, D model width, K classes, P pieces
"""Loss and gradients of a sequence classifier in pieces, exactly, with memory that does not grow with the length.

The sequence is read forward in pieces, keeping the state that enters each and what each adds to the vector of the sequence.
From these the loss, and its gradient with respect to what each piece added; then every piece is computed again, from the
last to the first, and receives that gradient and the one of the state it handed on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dna_mamba.model.classifier import SequenceClassifier
from dna_mamba.model.state import ModelState
from dna_mamba.reading.pieces import bounds_of, in_pieces
from dna_mamba.training.piecewise import backward_of_piece, leaves_of


def backward_of_classes(
    model: SequenceClassifier, tokens_BT: Tensor, targets_B: Tensor, *, divisor: float, piece_bases: int
) -> tuple[Tensor, Tensor]:
    """Add the gradients of (sum of cross-entropies) / divisor to the parameters that want them.

    Args:
        model: The classifier; with a frozen backbone (no parameter of it wants a gradient) pieces are computed once.
        tokens_BT: Token ids.
        targets_B: Class of each sequence.
        divisor: Usually the sequences of the whole optimizer step.
        piece_bases: Positions computed at once; gradients do not depend on it (up to rounding).

    Returns:
        That loss, detached, and scores_BK.
    """
    T = tokens_BT.shape[1]
    bounds = bounds_of(model.backbone, T, piece_bases)
    trains_backbone = any(parameter.requires_grad for parameter in model.backbone.parameters())

    def loss_of(parts_PBD: Tensor) -> tuple[Tensor, Tensor]:
        scores_BK = model.scores(model.combine(parts_PBD, T))
        return F.cross_entropy(scores_BK, targets_B, reduction="sum") / divisor, scores_BK

    if len(bounds) == 1 and trains_backbone:
        part_BD, _ = model.part(tokens_BT)
        loss, scores_BK = loss_of(part_BD[None])
        loss.backward()
        return loss.detach(), scores_BK.detach()
    entering: list[ModelState | None] = [None]
    parts: list[Tensor] = []

    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        return model.part(tokens_BT[:, start:end], state)

    with torch.no_grad():
        for piece in in_pieces(read, bounds):
            parts.append(piece.output)
            entering.append(piece.state)
    entering.pop()  # nothing follows the last
    parts_PBD = torch.stack(parts).requires_grad_(trains_backbone)
    loss, scores_BK = loss_of(parts_PBD)
    loss.backward()
    if not trains_backbone:
        return loss.detach(), scores_BK.detach()
    wanted_PBD = parts_PBD.grad
    assert wanted_PBD is not None
    leaving_gradients: list[Tensor | None] | None = None
    for number in reversed(range(len(bounds))):
        start, end = bounds[number]
        entered = leaves_of(entering.pop())
        part_BD, leaving = model.part(tokens_BT[:, start:end], entered)
        wanted_BD = wanted_PBD[number].to(part_BD.dtype)
        leaving_gradients = backward_of_piece(part_BD, wanted_BD, leaving, leaving_gradients, entered)
        del part_BD, leaving  # before the piece before it is computed, not after
    return loss.detach(), scores_BK.detach()
