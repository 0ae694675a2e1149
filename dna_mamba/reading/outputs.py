# Shapes: N windows, B sequences, T positions, D model width, K classes
"""Vectors and outputs of whole sequences of any length, in memory for one piece."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import A
from dna_mamba.data.vocabulary import BASE_BITS
from dna_mamba.model.sequence_model import SequenceModel
from dna_mamba.model.state import ModelState
from dna_mamba.reading.pieces import bounds_of, in_pieces

MOST_PARTS = 1024
"""That are held; a chromosome in pieces would otherwise keep the vectors of all of them."""


@torch.no_grad()
def vectors_of(model: SequenceModel, tokens_of: Callable[[int, int], Tensor], length: int, piece_bases: int) -> Tensor:
    """Give the vectors of sequences of one length; the same as of one pass up to rounding.

    Args:
        model: Its head takes one vector a sequence.
        tokens_of: Gives token ids (B, T) of positions from (included) to (excluded), asked for once and in order.
        length: Positions of each sequence.
        piece_bases: Positions computed at once.
    """

    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        return model.part(tokens_of(start, end), state)

    parts: list[Tensor] = []
    for piece in in_pieces(read, bounds_of(model.backbone, length, piece_bases)):
        parts.append(piece.output)
        if len(parts) == MOST_PARTS:
            parts = [model.head.fold(torch.stack(parts))]
    dtype = torch.promote_types(parts[0].dtype, parts[-1].dtype)
    return model.head.pooled(torch.stack([part.to(dtype) for part in parts]), length)


def vectors_in_pieces(model: SequenceModel, tokens_BT: Tensor, piece_bases: int) -> Tensor:
    """Give the vectors of sequences in memory; see `vectors_of`."""
    return vectors_of(model, lambda start, end: tokens_BT[:, start:end], tokens_BT.shape[1], piece_bases)


@torch.no_grad()
def outputs_in_pieces(model: SequenceModel, tokens_BT: Tensor, piece_bases: int) -> Tensor:
    """Give the outputs of sequences of any length in memory for one piece; the same as `model(tokens_BT)` up to rounding."""
    if not model.additive:
        return model.outputs(vectors_in_pieces(model, tokens_BT, piece_bases))

    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        return model.part(tokens_BT[:, start:end], state)

    bounds = bounds_of(model.backbone, tokens_BT.shape[1], piece_bases)
    return torch.cat([piece.output for piece in in_pieces(read, bounds)], dim=1)


Windows = Callable[[int], np.ndarray]
"""Gives window i as store bytes."""


def _batches(windows: Windows, number: int, length: int, piece_bases: int, device: torch.device) -> Iterator[Tensor]:
    at_once = max(1, piece_bases // length)
    for first in range(0, number, at_once):
        stored = np.stack([windows(i) for i in range(first, min(first + at_once, number))])
        yield torch.from_numpy((stored & BASE_BITS) + A).to(device)


@torch.no_grad()
def outputs_of_windows(model: SequenceModel, windows: Windows, number: int, *, length: int, piece_bases: int) -> Tensor:
    """Give the outputs (N, ...) of windows of one length, on the model's device.

    Args:
        model: On its device.
        windows: Gives them by number.
        number: How many.
        length: Bases of each.
        piece_bases: Positions computed at once.
    """
    batches = _batches(windows, number, length, piece_bases, model.center_D.device)
    return torch.cat([outputs_in_pieces(model, tokens_BT, piece_bases) for tokens_BT in batches])


@torch.no_grad()
def standardize(model: SequenceModel, windows: Windows, number: int, *, length: int, piece_bases: int) -> None:
    """Set the zero and the unit of a model's vectors from windows of one length; arguments as `outputs_of_windows`."""
    batches = _batches(windows, number, length, piece_bases, model.center_D.device)
    if not model.additive:
        model.standardize(torch.cat([vectors_in_pieces(model, tokens_BT, piece_bases) for tokens_BT in batches]))
        return
    # of every position there is a vector: too many to be held
    count, total_D, squares_D = 0, torch.zeros_like(model.center_D).double(), torch.zeros_like(model.center_D).double()
    for tokens_BT in batches:
        for piece in _vectors_of_positions(model, tokens_BT, piece_bases):
            vectors_ND = piece.flatten(0, 1).double()
            count += len(vectors_ND)
            total_D += vectors_ND.sum(0)
            squares_D += (vectors_ND * vectors_ND).sum(0)
    mean_D = total_D / count
    variance_D = (squares_D - count * mean_D * mean_D) / max(1, count - 1)
    model.set_zero_and_unit(mean_D, variance_D.clamp_min(0).sqrt())


def _vectors_of_positions(model: SequenceModel, tokens_BT: Tensor, piece_bases: int) -> Iterator[Tensor]:
    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        return model.backbone(tokens_BT[:, start:end], state)

    for piece in in_pieces(read, bounds_of(model.backbone, tokens_BT.shape[1], piece_bases)):
        yield piece.output


def probabilities(outputs_NK: Tensor) -> np.ndarray:
    """Turn scores of classes (N, K) into probabilities, float64."""
    return outputs_NK.double().softmax(1).cpu().numpy()
