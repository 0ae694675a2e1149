# Shapes: B sequences, T positions, D model width, S segments
"""What a layer promises: all that a backbone, a reader, a trainer and a plan know of it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dna_mamba.model.norm import RMSNorm
from dna_mamba.model.state import LayerState, Stateless, map_state


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerMemory:
    """Bytes that a layer takes in training, its norm and the residual stream left out."""

    kept: float
    """A position: from forward to backward."""
    working: float
    """A position: beside that, while its backward runs."""
    state: float = 0.0
    """A sequence: between pieces."""
    state_a_base: float = 0.0
    """A sequence, for every position before the piece: of a state that grows."""


class Mixer(nn.Module):
    """A layer: vectors in, what it adds to the residual stream out, and its state from piece to piece.

    `forward`, `memory` and, where there is a state, `new_state` are what a layer must have; all else has a default that is
    right and may be slow.
    """

    causal: ClassVar[bool] = True
    """Whether no output depends on a later input; one that is not causal has no state and is read whole."""
    without_decay: ClassVar[tuple[str, ...]] = ()
    """Names of parameters of two and more dimensions that weight decay leaves alone."""
    implementation: str
    """Which kernels run it; see `dna_mamba.kernels.dispatch`."""

    def __init__(self) -> None:
        super().__init__()
        self.implementation = "auto"

    @property
    def to_stream(self) -> Tensor | None:
        """The matrix that writes to the residual stream: its first values are scaled down by depth. None has none."""
        return None

    @property
    def gives_states(self) -> bool:
        """Whether `forward_with_states` can be called."""
        return False

    def forward(self, x_BTD: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Mix along the positions.

        Args:
            x_BTD: The norm of the stream, in the dtype of matrix products.
            state: What a call on the positions before returned, or `new_state`; none at the start of a sequence.

        Returns:
            y_BTD and the state after the last position, a NamedTuple of tensors (sequences first) that is new, and through
            which gradients flow.
        """
        raise NotImplementedError

    def forward_with_states(
        self, x_BTD: Tensor, state: LayerState | None, segments_S: Tensor
    ) -> tuple[Tensor, LayerState, LayerState]:
        """Mix one sequence as `forward` does, and give the states before positions 16 s as those of S sequences."""
        raise NotImplementedError

    def new_state(self, num_sequences: int, dtype: torch.dtype) -> LayerState:
        """Give the state before the first position; dtype is that of matrix products."""
        return Stateless()

    def step_state(self, state: LayerState, capacity: int) -> LayerState:
        """Give a copy of a state for `step` to change in place; zeros in it are the state before the first position.

        Args:
            state: Of `forward` or `new_state`.
            capacity: Positions, those of the state included, that a state that grows must have room for.
        """
        return map_state(torch.clone, [state])[0]

    @torch.no_grad()
    def step(self, x_BD: Tensor, state: LayerState) -> Tensor:
        """Mix one position; a state of `step_state` is changed in place, so that a CUDA graph can hold it."""
        y_BTD, after = self(x_BD[:, None], state)
        for tensor, value in zip(state, after, strict=True):
            tensor.copy_(value)
        return y_BTD[:, 0]

    @property
    def steps_as_block(self) -> bool:
        """Whether `step_block` can be called: in float32, outside autocast."""
        return False

    def step_block(self, residual_BD: Tensor, norm: RMSNorm, state: LayerState) -> None:
        """Add what norm and layer make of one position to the stream, at once; stream and state are changed in place."""
        raise NotImplementedError

    def memory(self, item: int) -> LayerMemory:
        """Count what training takes with numbers of so many bytes in matrix products; a layer on the meta device can."""
        raise NotImplementedError

    def unfit_for_triton(self) -> str:
        """Say why the fused kernels of a GPU cannot run this layer; nothing if they can."""
        return ""
