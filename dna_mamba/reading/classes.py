# Shapes: B sequences, T positions, D model width, K classes, P pieces
"""Vectors and class scores of whole sequences of any length, in memory for one piece."""

from collections.abc import Callable

import torch
from torch import Tensor

from dna_mamba.model.classifier import SequenceClassifier
from dna_mamba.model.state import ModelState
from dna_mamba.reading.pieces import bounds_of, in_pieces

MOST_PARTS = 1024
"""That are held; a chromosome in pieces would otherwise keep the vectors of all of them."""


@torch.no_grad()
def vectors_of(
    model: SequenceClassifier, tokens_of: Callable[[int, int], Tensor], length: int, piece_bases: int
) -> Tensor:
    """Give the vectors of sequences of one length; the same as of one pass up to rounding.

    Args:
        model: The classifier.
        tokens_of: Gives token ids (B, T) of positions from (included) to (excluded), asked for once and in order.
        length: Positions of each sequence.
        piece_bases: Positions computed at once.
    """

    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        return model.part(tokens_of(start, end), state)

    parts: list[Tensor] = []
    for piece in in_pieces(read, bounds_of(model.backbone, length, piece_bases)):
        parts.append(piece.output)
        if model.pooling == "last":
            parts = parts[-1:]
        elif len(parts) == MOST_PARTS:
            parts = [torch.stack(parts).amax(0) if model.pooling == "max" else torch.stack(parts).double().sum(0)]
    dtype = torch.promote_types(parts[0].dtype, parts[-1].dtype)
    return model.combine(torch.stack([part.to(dtype) for part in parts]), length)


def vectors_in_pieces(model: SequenceClassifier, tokens_BT: Tensor, piece_bases: int) -> Tensor:
    """Give the vectors of sequences in memory; see `vectors_of`."""
    return vectors_of(model, lambda start, end: tokens_BT[:, start:end], tokens_BT.shape[1], piece_bases)


@torch.no_grad()
def scores_in_pieces(model: SequenceClassifier, tokens_BT: Tensor, piece_bases: int) -> Tensor:
    """Score sequences of any length in memory for one piece; the same as `model(tokens_BT)` up to rounding."""
    return model.scores(vectors_in_pieces(model, tokens_BT, piece_bases))
