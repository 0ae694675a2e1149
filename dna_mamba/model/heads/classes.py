# Shapes: B sequences, D model width, K classes
"""One of several classes a sequence: a linear head and the cross-entropy."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dna_mamba.errors import InputError
from dna_mamba.model.heads.head import PooledHead, names_in


class ClassHead(PooledHead):
    """Scores of every class; their softmax is the probability.

    Args:
        width: Of the vectors.
        labels: Names of the classes, in the order of the scores.
        pooling: The vector of a sequence; see `PooledHead`.

    Raises:
        InputError: Fewer than two labels, one twice, or the pooling is unknown.
    """

    kind: ClassVar[str] = "classes"
    counted: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __init__(self, width: int, labels: Sequence[str], pooling: str = "last"):
        super().__init__(pooling)
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise InputError(f"labels {list(labels)} must be at least two, all different")
        self.labels = tuple(labels)
        linear = nn.Linear(width, len(labels))
        self.weight, self.bias = linear.weight, linear.bias
        nn.init.normal_(self.weight, std=width**-0.5)
        nn.init.zeros_(self.bias)

    def settings(self) -> dict[str, object]:
        """Give labels and pooling."""
        return {"labels": list(self.labels), "pooling": self.pooling}

    @classmethod
    def read(cls, width: int, settings: Mapping[str, object], where: str) -> "ClassHead":
        """Make a head from labels and pooling."""
        return cls(width, names_in(settings, "labels", where), str(settings.get("pooling")))

    def forward(self, vectors: Tensor) -> Tensor:
        """Give scores_BK."""
        return F.linear(vectors, self.weight, self.bias)

    def sum_of_losses(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Add up the cross-entropies, nats; targets are numbers of classes (B,)."""
        if weights is None:
            return F.cross_entropy(outputs, targets, reduction="sum")
        return (F.cross_entropy(outputs, targets, reduction="none") * weights).sum()

    def counts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Count the right answers."""
        return (outputs.argmax(1) == targets).sum(dtype=torch.float64)[None]
