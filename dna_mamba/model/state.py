# Shapes: B sequences
"""What the past means to the future: a NamedTuple of tensors a layer, sequences first in every tensor.

A state is either of one size (a recurrence) or grows with what was read (the keys and values of attention). Whoever carries
it along a sequence need not know which.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LayerState = tuple[Tensor, ...]
"""A NamedTuple in truth: of the layer's own kind, which these functions keep."""
ModelState = list[LayerState]
"""One entry a layer."""


class Stateless(NamedTuple):
    """The state of a layer to which the past means nothing."""


def map_state(function: Callable[[Tensor], Tensor], state: Sequence[LayerState]) -> ModelState:
    """Do the same to every tensor of a state."""
    return [type(layer)(*map(function, layer)) for layer in state]


def tensors_of(state: Sequence[LayerState]) -> list[Tensor]:
    """List the tensors of all layers, in order."""
    return [tensor for layer in state for tensor in layer]


def with_tensors(state: Sequence[LayerState], tensors: Sequence[Tensor]) -> ModelState:
    """Give a state of the same layers that holds these tensors, in the order of `tensors_of`."""
    rest = iter(tensors)
    return map_state(lambda _: next(rest), state)


def num_bytes(state: Sequence[LayerState]) -> int:
    """Count the bytes that a state takes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state))


def alike(one: Sequence[LayerState], other: Sequence[LayerState]) -> bool:
    """Say whether two states can be joined: those that grow can if they have read equally much."""
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(a.shape[1:] == b.shape[1:] for a, b in pairs)


def join(states: Sequence[Sequence[LayerState]]) -> ModelState:
    """Put the sequences of several states that are alike into one state."""
    return with_tensors(states[0], [torch.cat(parts) for parts in zip(*map(tensors_of, states), strict=True)])


def rows_of(state: Sequence[LayerState], rows_B: Tensor) -> ModelState:
    """Choose sequences of a state, in any order and any number of times."""
    return map_state(lambda tensor: tensor[rows_B], state)


def repeated(state: Sequence[LayerState], num_sequences: int) -> ModelState:
    """Give the state of one sequence to several; a view."""
    return map_state(lambda tensor: tensor.expand(num_sequences, *tensor.shape[1:]), state)
