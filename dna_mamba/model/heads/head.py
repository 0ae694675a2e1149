# Shapes: B sequences, T positions, D model width, P pieces
"""What a head promises: everything that stands on the vectors of a backbone and has a loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dna_mamba.errors import InputError, nearest
from dna_mamba.model.config import POOLINGS


class Head(nn.Module, ABC):
    """Vectors in, outputs and their loss out.

    A head is made after its backbone, which takes its random numbers first. What it holds as parameters and buffers is saved
    under `head.`, and `settings` beside it: from both, `read` makes it again.
    """

    kind: ClassVar[str]
    """Its name in config.json and in HEADS."""
    additive: ClassVar[bool] = False
    """Whether it answers for every position; then `pool` and `fold` are not asked for."""
    counted: ClassVar[tuple[str, ...]] = ()
    """What `counts` gives, by name; columns of metrics.csv."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Give plain values that `read` makes the head from."""

    @classmethod
    @abstractmethod
    def read(cls, width: int, settings: Mapping[str, object], where: str) -> "Head":
        """Make a head from what stands in a file.

        Args:
            width: Of the vectors.
            settings: Of config.json, which anyone may have written.
            where: Name of the file, for messages.

        Raises:
            InputError: A setting is missing or refused.
        """

    @abstractmethod
    def forward(self, vectors: Tensor) -> Tensor:
        """Give the outputs of vectors (B, D), or of (B, T, D) where the head is additive."""

    @abstractmethod
    def sum_of_losses(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Add up the losses: a number with gradients."""

    def counts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give the sums that `counted` names."""
        return outputs.new_zeros(len(self.counted))

    def pool(self, vectors_BTD: Tensor) -> Tensor:
        """Give what a piece adds to the vectors of its sequences (B, D), float32 or better."""
        raise NotImplementedError

    def fold(self, parts_PBD: Tensor) -> Tensor:
        """Join the parts of pieces, in order, into one that stands for them all (B, D)."""
        raise NotImplementedError

    def pooled(self, parts_PBD: Tensor, num_positions: int) -> Tensor:
        """Join the parts of all pieces into one vector a sequence (B, D)."""
        raise NotImplementedError


class PooledHead(Head):
    """A head on one vector a sequence: that of its last position (as the Mamba paper has it), or the mean or maximum of all.

    Args:
        pooling: last, mean or max.

    Raises:
        InputError: The pooling is unknown.
    """

    def __init__(self, pooling: str):
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(
                f"pooling {pooling!r} is unknown{nearest(pooling, POOLINGS)}; choose {', '.join(POOLINGS)}"
            )
        self.pooling = pooling

    def pool(self, vectors_BTD: Tensor) -> Tensor:
        """Give the last vector, or the sum or maximum over the positions of the piece."""
        vectors_BTD = vectors_BTD.to(torch.promote_types(vectors_BTD.dtype, torch.float32))
        if self.pooling == "last":
            return vectors_BTD[:, -1]
        return vectors_BTD.sum(1) if self.pooling == "mean" else vectors_BTD.amax(1)

    def fold(self, parts_PBD: Tensor) -> Tensor:
        """Join parts into one; sums are kept in float64."""
        if self.pooling == "last":
            return parts_PBD[-1]
        return parts_PBD.amax(0) if self.pooling == "max" else parts_PBD.double().sum(0)

    def pooled(self, parts_PBD: Tensor, num_positions: int) -> Tensor:
        """Join the parts of all pieces into one vector a sequence."""
        folded_BD = self.fold(parts_PBD)
        return (folded_BD / num_positions).to(parts_PBD.dtype) if self.pooling == "mean" else folded_BD


def names_in(settings: Mapping[str, object], key: str, where: str) -> Sequence[str]:
    """Read a list of names.

    Raises:
        InputError: It is something else.
    """
    names = settings.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: {key} must be a list of names, not {names!r}")
    return names
