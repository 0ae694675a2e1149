# Shapes: B sequences, T positions, D model width, P pieces
"""A backbone, the zero and unit of its vectors, and a head."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dna_mamba.model.backbone import Backbone, DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.heads.head import Head
from dna_mamba.model.state import LayerState, ModelState
from dna_mamba.model.trainable import Trainable


class SequenceModel(Trainable):
    """Reads sequences once and says what its head says.

    Args:
        config: Sizes of the backbone.
        make_head: Makes the head from the width of the vectors.
    """

    center_D: Tensor
    spread_D: Tensor

    def __init__(self, config: BackboneConfig, make_head: Callable[[int], Head]):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = make_head(config.width)
        self.register_buffer("center_D", torch.zeros(config.width))
        self.register_buffer("spread_D", torch.ones(config.width))

    @classmethod
    def from_language_model(cls, model: DnaMamba, make_head: Callable[[int], Head]) -> "SequenceModel":
        """Take over the backbone of a pretrained model; the head is new."""
        found = cls(model.config, make_head)
        found.backbone.load_state_dict(model.backbone.state_dict())
        return found

    @property
    def additive(self) -> bool:
        """Whether the head answers for every position."""
        return self.head.additive

    @property
    def counted(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the head counts."""
        return self.head.counted

    def standardize(self, vectors_ND: Tensor) -> None:
        """From now on give the head vectors of mean 0 and standard deviation 1, as these have them; part of the model.

        What tells sequences apart is small beside what all share, above all in means over thousands of positions: without
        this a head learns slowly (docs/benchmarks.md).
        """
        self.set_zero_and_unit(vectors_ND.double().mean(0), vectors_ND.double().std(0))

    def set_zero_and_unit(self, mean_D: Tensor, deviation_D: Tensor) -> None:
        """Take mean and standard deviation as zero and unit of the vectors that the head is given."""
        self.center_D.copy_(mean_D)
        self.spread_D.copy_(deviation_D.clamp_min(1e-6))

    def part(self, inputs_BT: Tensor, state: Sequence[LayerState] | None = None) -> tuple[Tensor, ModelState]:
        """Give the outputs of a piece, or what it adds to the vectors of its sequences, and the state after it."""
        vectors_BTD, new_state = self.backbone(inputs_BT, state)
        return (self.outputs(vectors_BTD) if self.additive else self.head.pool(vectors_BTD)), new_state

    def combine(self, parts_PBD: Tensor, num_positions: int) -> Tensor:
        """Give the outputs of sequences from the parts of their pieces."""
        return self.outputs(self.head.pooled(parts_PBD, num_positions))

    def outputs(self, vectors: Tensor) -> Tensor:
        """Give the outputs of vectors (B, D), or (B, T, D) of an additive head; the head runs outside autocast."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = (vectors.to(self.center_D.dtype) - self.center_D) / self.spread_D
            return self.head(vectors)

    def sum_of_losses(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Add up what the head loses."""
        return self.head.sum_of_losses(outputs, targets, weights)

    def counts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give what the head counts."""
        return self.head.counts(outputs, targets)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Give the outputs of whole sequences, read at once."""
        part, _ = self.part(tokens_BT)
        return part if self.additive else self.combine(part[None], tokens_BT.shape[1])
