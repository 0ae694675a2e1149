# Shapes: B sequences, T positions, P pieces
"""What training and reading know of a model: a backbone, and what stands on top of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.state import LayerState, ModelState

if TYPE_CHECKING:
    from dna_mamba.model.backbone import Backbone


class Trainable(nn.Module, ABC):
    """A backbone with something on top that has a loss: a language model, or a sequence model with any head."""

    config: BackboneConfig
    backbone: "Backbone"
    counted: tuple[str, ...] = ()
    """What of its outputs is counted in training beside the loss, such as accuracy."""

    @property
    @abstractmethod
    def additive(self) -> bool:
        """Whether the loss is a sum over positions, so that each piece has its part; otherwise a sequence has one output."""

    @abstractmethod
    def part(self, inputs_BT: Tensor, state: Sequence[LayerState] | None = None) -> tuple[Tensor, ModelState]:
        """Read a piece of the sequences.

        Args:
            inputs_BT: Token ids.
            state: After the piece before; none at the start.

        Returns:
            Where the loss is additive, the outputs of these positions (B, T, ...); otherwise what they add to the vectors of
            the sequences (B, D). And the state after them.
        """

    def combine(self, parts_PBD: Tensor, num_positions: int) -> Tensor:
        """Turn the parts of all pieces, in order, into outputs of the sequences (B, ...); not where the loss is additive."""
        raise NotImplementedError

    @abstractmethod
    def sum_of_losses(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Add up the losses of outputs, each times its weight, in nats or what the head counts in: a number."""

    def counts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give for each name in `counted` the sum over the sequences, float64 (len(counted),)."""
        return outputs.new_zeros(len(self.counted))

    def use_implementation(self, implementation: str) -> Self:
        """Run the kernels of every layer with this implementation: 'auto', 'naive', 'cpu' or 'triton'."""
        self.backbone.use_implementation(implementation)
        return self
