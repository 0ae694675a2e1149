# Shapes: B sequences, T positions, D model width, K classes
"""Classes of whole sequences: a backbone, one vector a sequence, and a linear head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dna_mamba.errors import InputError
from dna_mamba.model.backbone import Backbone, DnaMamba
from dna_mamba.model.config import POOLINGS, BackboneConfig
from dna_mamba.model.state import LayerState, ModelState


class SequenceClassifier(nn.Module):
    """Reads a sequence once and scores every class.

    Args:
        config: Sizes of the backbone.
        labels: Names of the classes, in the order of the scores.
        pooling: The vector of a sequence: that of its last position (as the Mamba paper has it), or the mean or maximum over
            its positions.

    Raises:
        InputError: Fewer than two labels, one twice, or the pooling is unknown.
    """

    center_D: Tensor
    spread_D: Tensor

    def __init__(self, config: BackboneConfig, labels: Sequence[str], pooling: str = "last"):
        super().__init__()
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise InputError(f"labels {list(labels)} must be at least two, all different")
        if pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r} is unknown; choose {', '.join(POOLINGS)}")
        self.config, self.labels, self.pooling = config, tuple(labels), pooling
        self.backbone = Backbone(config)
        self.head = nn.Linear(config.width, len(labels))
        nn.init.normal_(self.head.weight, std=config.width**-0.5)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("center_D", torch.zeros(config.width))
        self.register_buffer("spread_D", torch.ones(config.width))

    def standardize(self, vectors_ND: Tensor) -> None:
        """From now on give the head vectors of mean 0 and standard deviation 1, as these have them; part of the model.

        What tells classes apart is small beside what all sequences share, above all in means over thousands of positions:
        without this the head learns slowly (docs/benchmarks.md).
        """
        self.center_D.copy_(vectors_ND.double().mean(0))
        self.spread_D.copy_(vectors_ND.double().std(0).clamp_min(1e-6))

    @classmethod
    def from_language_model(cls, model: DnaMamba, labels: Sequence[str], pooling: str = "last") -> "SequenceClassifier":
        """Take over the backbone of a pretrained model; the head is new."""
        classifier = cls(model.config, labels, pooling)
        classifier.backbone.load_state_dict(model.backbone.state_dict())
        return classifier

    def use_implementation(self, implementation: str) -> "SequenceClassifier":
        """Run the kernels of every layer with this implementation."""
        self.backbone.use_implementation(implementation)
        return self

    def part(self, tokens_BT: Tensor, state: Sequence[LayerState] | None = None) -> tuple[Tensor, ModelState]:
        """Give what a piece of the sequences adds to their vectors (B, D), in float32 or better, and the state after it.

        Parts of 'mean' are sums over positions, those of 'max' maxima, those of 'last' the last vectors; `combine` joins them.
        """
        vectors_BTD, state_ = self.backbone(tokens_BT, state)
        vectors_BTD = vectors_BTD.to(torch.promote_types(vectors_BTD.dtype, torch.float32))
        if self.pooling == "last":
            return vectors_BTD[:, -1], state_
        return (vectors_BTD.sum(1) if self.pooling == "mean" else vectors_BTD.amax(1)), state_

    def combine(self, parts_PBD: Tensor, num_positions: int) -> Tensor:
        """Join the parts of pieces, in order, into one vector a sequence."""
        if self.pooling == "last":
            return parts_PBD[-1]
        if self.pooling == "max":
            return parts_PBD.amax(0)
        return (parts_PBD.double().sum(0) / num_positions).to(parts_PBD.dtype)

    def scores(self, vectors_BD: Tensor) -> Tensor:
        """Give scores_BK of the vectors of sequences; the head runs outside autocast."""
        with torch.autocast(vectors_BD.device.type, enabled=False):
            vectors_BD = (vectors_BD.to(self.head.weight.dtype) - self.center_D) / self.spread_D
            return self.head(vectors_BD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Give scores_BK of whole sequences, read at once."""
        part_BD, _ = self.part(tokens_BT)
        return self.scores(self.combine(part_BD[None], tokens_BT.shape[1]))
