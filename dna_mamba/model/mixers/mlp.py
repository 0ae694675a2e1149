# Shapes: B sequences, T positions, D model width, F hidden width
"""The channel MLP, letter -: it mixes the channels of each base and knows nothing of the others."""

import torch.nn.functional as F
from torch import Tensor, nn

from dna_mamba.model.config import GATED, MLPConfig
from dna_mamba.model.mixers.mixer import LayerMemory, Mixer
from dna_mamba.model.state import LayerState, Stateless


class MLP(Mixer):
    """Up, through an activation, and down again.

    gelu: down(gelu(up(x))), in its exact form; relu2: the square of relu in its place (So et al. 2021, arXiv 2109.08668);
    swiglu: down(value * silu(gate)), two projections up (Shazeer 2020, arXiv 2002.05202, equation 6), of which the value
    stands first in `fc1`, as in the MLPs of state-spaces/mamba.
    """

    def __init__(self, width: int, config: MLPConfig):
        super().__init__()
        self.activation = config.activation
        self.hidden_width = config.hidden_width(width)
        self.gated = config.activation in GATED
        self.fc1 = nn.Linear(width, self.hidden_width * (2 if self.gated else 1), bias=False)
        self.fc2 = nn.Linear(self.hidden_width, width, bias=False)

    @property
    def to_stream(self) -> Tensor:
        """The projection back to the model's width."""
        return self.fc2.weight

    def forward(self, x_BTD: Tensor, state: LayerState | None = None) -> tuple[Tensor, Stateless]:
        """Mix the channels of every position."""
        up = self.fc1(x_BTD)
        if self.activation == "gelu":
            hidden = F.gelu(up)
        elif self.activation == "relu2":
            hidden = F.relu(up).square()
        else:
            value, gate = up.chunk(2, dim=-1)
            hidden = value * F.silu(gate)
        return self.fc2(hidden), Stateless()

    def memory(self, item: int) -> LayerMemory:
        """Count what goes up, what the activation keeps, and what goes down."""
        of_hidden = item * self.hidden_width
        up = of_hidden * (2 if self.gated else 1)
        extra = of_hidden if self.activation in ("relu2", "swiglu") else 0  # what the second product needs
        return LayerMemory(kept=up + extra + of_hidden, working=up + 2 * of_hidden)
