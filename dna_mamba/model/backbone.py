# Shapes: B sequences, T positions, D model width, V vocabulary
"""The model: embedding, blocks, final norm and a head that shares the embedding's weights."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dna_mamba.kernels.rms_norm import rms_norm
from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.mixers.mamba import MambaConfig, MambaMixer, MambaState

ModelState = list[MambaState]
"""One entry a layer."""


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight a channel. Source: Zhang and Sennrich 2019, equation 4."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Give x over its root mean square, times the weight."""
        return rms_norm(x_BTD, self.weight, self.eps)


class Block(nn.Module):
    """x + mixer(norm(x)): the one residual form in the model, whatever the mixer is."""

    def __init__(self, layer: MambaConfig, width: int, eps: float):
        super().__init__()
        self.mixer = layer.build(width)
        self.norm = RMSNorm(width, eps)

    def forward(self, x_BTD: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Add the mixer's output to the residual stream, which stays in float32."""
        y_BTD, state = self.mixer(self.norm(x_BTD), state)
        return x_BTD + y_BTD, state


class Backbone(nn.Module):
    """Token ids in, one vector a base out."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.layers = nn.ModuleList(Block(layer, config.width, config.norm_eps) for layer in config.layers())
        self.norm_f = RMSNorm(config.width, config.norm_eps)

    def forward(self, tokens_BT: Tensor, state: Sequence[MambaState] | None = None) -> tuple[Tensor, ModelState]:
        """Give the vectors after the final norm and the state for the bases that follow."""
        x_BTD = self.embedding(tokens_BT.long())
        new_state = []
        for i, layer in enumerate(self.layers):
            x_BTD, layer_state = layer(x_BTD, None if state is None else state[i])
            new_state.append(layer_state)
        return self.norm_f(x_BTD), new_state


class DnaMamba(nn.Module):
    """A causal language model over bases.

    `forward(tokens_BT, state)` gives the scores of every next base and the state, which is all that the past means to
    the future: whole sequences, pieces of them and single bases take the same road and give the same numbers.
    Parameter names, shapes and initialisation equal those of `MambaLMHeadModel` in state-spaces/mamba.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        for layer in self.backbone.layers:
            mixer = layer.mixer
            assert isinstance(mixer, MambaMixer)
            weight = mixer.out_proj.weight
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            with torch.no_grad():
                # one residual a layer; the factor 2 in the original's comment belongs to layers with an MLP
                weight /= math.sqrt(len(config.pattern))

    def forward(self, tokens_BT: Tensor, state: Sequence[MambaState] | None = None) -> tuple[Tensor, ModelState]:
        """Score every next base.

        Args:
            tokens_BT: Token ids, any integer dtype.
            state: What a call on the bases before returned; none at the start of a sequence.

        Returns:
            logits_BTV in float32 (the tied head runs outside autocast) and the state after the last base.
        """
        x_BTD, new_state = self.backbone(tokens_BT, state)
        with torch.autocast(x_BTD.device.type, enabled=False):
            logits_BTV = F.linear(x_BTD, self.lm_head.weight)
        return logits_BTV, new_state

    def use_implementation(self, implementation: str) -> "DnaMamba":
        """Run the kernels of every layer with this implementation: 'auto', 'naive' or 'cpu'."""
        for module in self.modules():
            if isinstance(module, MambaMixer):
                module.implementation = implementation
        return self

    def num_parameters(self) -> int:
        """Count the parameters, shared ones once."""
        return sum(p.numel() for p in self.parameters())
