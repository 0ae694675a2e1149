# Shapes: B sequences, T positions, D model width, V vocabulary
"""The model: embedding, blocks, final norm and a head that shares the embedding's weights."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dna_mamba.kernels.cross_entropy import cross_entropy
from dna_mamba.model.config import BackboneConfig, MixerConfig
from dna_mamba.model.mixers.mixer import Mixer
from dna_mamba.model.norm import RMSNorm
from dna_mamba.model.state import LayerState, ModelState
from dna_mamba.model.trainable import Trainable


class Block(nn.Module):
    """x + mixer(norm(x)): the one residual form in the model, whatever the mixer is.

    What the mixer adds is handed on beside the stream, since the next norm adds and normalises in one pass over memory.
    """

    def __init__(self, layer: MixerConfig, width: int, eps: float):
        super().__init__()
        self.mixer = layer.build(width)
        self.norm = RMSNorm(width, eps)

    def forward(
        self, y_BTD: Tensor, residual_BTD: Tensor | None, state: LayerState | None = None
    ) -> tuple[Tensor, Tensor, LayerState]:
        """Give what the mixer adds, the residual stream that it is to be added to, and the mixer's state."""
        norm_BTD, residual_BTD = self.norm(y_BTD, residual_BTD, _matrix_dtype(y_BTD))
        y_BTD, state = self.mixer(norm_BTD, state)
        return y_BTD, residual_BTD, state


def _matrix_dtype(x: Tensor) -> torch.dtype | None:
    """Give the dtype of matrix products under autocast, so that the norm writes what they read."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class Backbone(nn.Module):
    """Token ids in, one vector a base out."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.layers = nn.ModuleList(Block(layer, config.width, config.norm_eps) for layer in config.layers())
        self.norm_f = RMSNorm(config.width, config.norm_eps)
        self.recomputed_layers = 0
        """So many, the first ones, are computed again in the backward, which needs not keep their activations; exact."""

    def mixers(self) -> list[Mixer]:
        """Give the layers without their norms, in order."""
        return [block.mixer for block in self.layers if isinstance(block, Block)]

    @property
    def causal(self) -> bool:
        """Whether no vector depends on a later base, so that sequences can be read in pieces, or padded on the right."""
        return all(mixer.causal for mixer in self.mixers())

    def use_implementation(self, implementation: str) -> None:
        """Run the kernels of every layer with this implementation."""
        for module in self.modules():
            if isinstance(module, Mixer | RMSNorm):
                module.implementation = implementation

    def forward(self, tokens_BT: Tensor, state: Sequence[LayerState] | None = None) -> tuple[Tensor, ModelState]:
        """Give the vectors after the final norm and the state for the bases that follow."""
        y_BTD, residual_BTD = self.embedding(tokens_BT.long()), None
        new_state = []
        for i, layer in enumerate(self.layers):
            inputs = (y_BTD, residual_BTD, None if state is None else state[i])
            if i < self.recomputed_layers and torch.is_grad_enabled():
                y_BTD, residual_BTD, layer_state = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                y_BTD, residual_BTD, layer_state = layer(*inputs)
            new_state.append(layer_state)
        return self.norm_f(y_BTD, residual_BTD)[0], new_state

    def vectors_of_layer(
        self, tokens_BT: Tensor, layer: int, state: Sequence[LayerState] | None = None
    ) -> tuple[Tensor, ModelState]:
        """Give the residual stream after so many layers; after all of them, the final norm of it, as `forward` does.

        Args:
            tokens_BT: Token ids.
            layer: 0 (the embedding) to the number of layers.
            state: Of the layers up to there, from the call on the bases before.

        Returns:
            vectors_BTD and the state of these layers.

        Raises:
            ValueError: There is no such layer.
        """
        if not 0 <= layer <= len(self.layers):
            raise ValueError(f"layer {layer} must lie between 0 (the embedding) and {len(self.layers)} (the last)")
        y_BTD, residual_BTD = self.embedding(tokens_BT.long()), None
        new_state = []
        for i in range(layer):
            y_BTD, residual_BTD, layer_state = self.layers[i](y_BTD, residual_BTD, None if state is None else state[i])
            new_state.append(layer_state)
        if layer == len(self.layers):
            return self.norm_f(y_BTD, residual_BTD)[0], new_state
        return y_BTD if residual_BTD is None else y_BTD + residual_BTD, new_state

    @torch.no_grad()
    def forward_with_states(
        self, tokens_BT: Tensor, state: Sequence[LayerState] | None, segments_S: Tensor
    ) -> tuple[Tensor, ModelState, ModelState]:
        """Read one sequence as `forward` does, and give the states before positions 16 s too: what forks start from.

        Args:
            tokens_BT: Of one sequence, on a GPU.
            state: Before its first base.
            segments_S: Numbers s, int64.

        Returns:
            vectors_BTD, the state after the last base, and states of S sequences.
        """
        y_BTD, residual_BTD = self.embedding(tokens_BT.long()), None
        new_state, states = [], []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Block)
            norm_BTD, residual_BTD = layer.norm(y_BTD, residual_BTD, _matrix_dtype(y_BTD))
            y_BTD, layer_state, layer_states = layer.mixer.forward_with_states(
                norm_BTD, None if state is None else state[i], segments_S
            )
            new_state.append(layer_state)
            states.append(layer_states)
        return self.norm_f(y_BTD, residual_BTD)[0], new_state, states

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: Sequence[LayerState]) -> Tensor:
        """Give the vector of one base a sequence; the state is changed in place."""
        y_BD, residual_BD = self.embedding(tokens_B.long()), None
        if _matrix_dtype(y_BD) is None and y_BD.dtype == torch.float32:
            self.advance(y_BD, state)
            return self.norm_f(y_BD, None)[0]
        for layer, layer_state in zip(self.layers, state, strict=True):
            assert isinstance(layer, Block)
            norm_BD, residual_BD = layer.norm(y_BD, residual_BD, _matrix_dtype(y_BD))
            y_BD = layer.mixer.step(norm_BD, layer_state)
        return self.norm_f(y_BD, residual_BD)[0]

    @torch.no_grad()
    def advance(self, residual_BD: Tensor, state: Sequence[LayerState]) -> None:
        """Take the residual stream of one position from the embedding to the final norm; all in place, float32.

        Args:
            residual_BD: Embeddings; holds the sum of what all layers add when this returns.
            state: Of `DnaMamba.step_state`.
        """
        y_BD, total_BD = residual_BD, None  # the stream is the sum of both, or the former alone
        for layer, layer_state in zip(self.layers, state, strict=True):
            assert isinstance(layer, Block)
            if layer.mixer.steps_as_block:
                if total_BD is not None:
                    y_BD, total_BD = torch.add(total_BD, y_BD, out=residual_BD), None
                layer.mixer.step_block(residual_BD, layer.norm, layer_state)
                continue
            norm_BD, total_BD = layer.norm(y_BD, total_BD)
            y_BD = layer.mixer.step(norm_BD, layer_state)
        if total_BD is not None:
            torch.add(total_BD, y_BD, out=residual_BD)


class DnaMamba(Trainable):
    """A causal language model over bases.

    `forward(tokens_BT, state)` gives the scores of every next base and the state, which is all that the past means to
    the future: whole sequences, pieces of them and single bases take the same road and give the same numbers.
    Parameter names, shapes and initialisation equal those of `MambaLMHeadModel` in state-spaces/mamba.
    """

    trained_bases: int | None = None
    """Longest window that it was trained on, where it was loaded from a directory that says so."""
    trained_on: dict[str, list[list[int]]] | None = None
    """Intervals that it was trained on by contig ([start, end], 0-based, end excluded), where that is known."""
    fingerprints: dict[str, dict[str, str]] | None = None
    """What each of these contigs is known again by: see `dna_mamba.data.fingerprints`."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.implementation = "auto"
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        for weight in (mixer.to_stream for mixer in self.backbone.mixers()):
            if weight is None:
                continue
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            with torch.no_grad():
                # one residual a layer; the factor 2 in the original's comment belongs to layers with an MLP
                weight.div_(math.sqrt(len(config.pattern)))

    def forward(self, tokens_BT: Tensor, state: Sequence[LayerState] | None = None) -> tuple[Tensor, ModelState]:
        """Score every next base.

        Args:
            tokens_BT: Token ids, any integer dtype.
            state: What a call on the bases before returned; none at the start of a sequence.

        Returns:
            logits_BTV in float32 (the tied head runs outside autocast) and the state after the last base.
        """
        x_BTD, new_state = self.backbone(tokens_BT, state)
        return self.head(x_BTD), new_state

    def head(self, x: Tensor) -> Tensor:
        """Turn vectors (..., D) into scores of the next base (..., V)."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, self.lm_head.weight)

    @property
    def additive(self) -> bool:
        """Every position has scores and a loss of its own."""
        return True

    def part(self, inputs_BT: Tensor, state: Sequence[LayerState] | None = None) -> tuple[Tensor, ModelState]:
        """Give the scores of a piece, as `forward` does."""
        return self(inputs_BT, state)

    def sum_of_losses(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Add up the cross-entropies of targets_BT under logits_BTV, each times its weight; nats, over all tokens."""
        weights = None if weights is None else weights.to(outputs.dtype)
        return cross_entropy(outputs, targets, weights, implementation=self.implementation).sum()

    def new_state(self, num_sequences: int, dtype: torch.dtype = torch.float32) -> ModelState:
        """Give the state before the first base; dtype is that of matrix products, bfloat16 under autocast."""
        return [mixer.new_state(num_sequences, dtype) for mixer in self.backbone.mixers()]

    def step_state(self, state: Sequence[LayerState], capacity: int) -> ModelState:
        """Give a copy of a state for `step` to change in place; zeros in it are the state before the first base.

        Args:
            state: Of `new_state`, or of `forward` on the bases before.
            capacity: Bases, those read before included, that a state that grows must have room for.
        """
        pairs = zip(self.backbone.mixers(), state, strict=True)
        return [mixer.step_state(layer, capacity) for mixer, layer in pairs]

    def step(self, tokens_B: Tensor, state: Sequence[LayerState]) -> Tensor:
        """Score the base after one more base of each sequence.

        The same function as `forward` at length 1, but the state is changed in place, so that nothing is allocated that a
        CUDA graph could not hold; see `generation.CapturedStep`. Without gradients.

        Args:
            tokens_B: Token ids, any integer dtype.
            state: Of `step_state`; where no layer's state grows, that of `new_state` or `forward` does as well.

        Returns:
            logits_BV in float32.
        """
        x_BD = self.backbone.step(tokens_B, state)
        with torch.no_grad():
            return self.head(x_BD)

    def use_implementation(self, implementation: str) -> "DnaMamba":
        """Run the kernels of every layer with this implementation: 'auto', 'naive', 'cpu' or 'triton'."""
        self.implementation = implementation
        self.backbone.use_implementation(implementation)
        return self

    def num_parameters(self) -> int:
        """Count the parameters, shared ones once."""
        return sum(p.numel() for p in self.parameters())
