# Shapes: B sequences, T positions
"""The one loop over long sequences: piece after piece with carried state, in memory for one piece.

A model that is not causal has no state to carry: it is read whole, and never padded, since what follows a base changes its
vector.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dna_mamba.errors import InputError
from dna_mamba.model.backbone import Backbone
from dna_mamba.model.state import ModelState
from dna_mamba.model.trainable import Trainable

PIECES = {"cpu": 2**14, "cuda": 2**18}
"""Positions computed at once by kind of device; no result depends on it (up to rounding)."""
Bounds = Sequence[tuple[int, int]]
Read = Callable[[int, int, ModelState | None], tuple[Tensor, ModelState]]
"""Reads positions from (included) to (excluded) after a state; gives what is wanted of them and the state after them."""


class Piece(NamedTuple):
    """What was read of positions start to end - 1."""

    start: int
    end: int
    output: Tensor
    state: ModelState
    """After them."""


def piece_on(device: torch.device) -> int:
    """Give the positions that are computed at once on a device."""
    return PIECES.get(device.type, PIECES["cpu"])


def bounds_of(backbone: Backbone, length: int, piece: int, *, first: int | None = None) -> Bounds:
    """Cut positions 0 to length - 1 into pieces, for a model that can be read so; otherwise they are one piece.

    Args:
        backbone: Says whether it is causal.
        length: Positions.
        piece: Positions of a piece, the last one may be shorter.
        first: Of the first piece, if it has another length.
    """
    if not backbone.causal:
        return [(0, length)] if length else []
    first = min(piece if first is None else first, length)
    rest = [(start, min(start + piece, length)) for start in range(first, length, piece)]
    return [(0, first), *rest] if first else rest


def in_pieces(read: Read, bounds: Bounds, state: ModelState | None = None) -> Iterator[Piece]:
    """Read pieces one after the other, each from the state that the one before it left.

    Args:
        read: Reads one piece.
        bounds: Of all pieces, in order.
        state: Before the first.

    Yields:
        Each piece. What holds its output while the next is read keeps that memory.
    """
    for start, end in bounds:
        output, state = read(start, end, state)
        yield Piece(start, end, output, state)
        del output


def last_of(read: Read, bounds: Bounds, state: ModelState | None = None) -> Piece:
    """Read pieces as `in_pieces` does, at least one, and give the last."""
    for piece in in_pieces(read, bounds, state):
        last = piece
    return last


def check_causal(model: Trainable, what: str) -> None:
    """Refuse a reading that asks what comes next of a model that has seen it.

    Args:
        model: To be read.
        what: The reading, for the message.

    Raises:
        InputError: The model is not causal.
    """
    if not model.backbone.causal:
        raise InputError(
            f"{what} asks for the likelihood of the next base, and the pattern {model.config.pattern!r} has layers that read "
            f"both ways, which have seen it; take a model of causal layers (embed and classify read both kinds)"
        )
