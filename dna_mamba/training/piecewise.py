# Shapes: B sequences, T positions
"""Loss and gradients of long sequences in pieces, exactly, with memory that does not grow with the length.

The state is all that the past means to the future. So a sequence is read forward piece by piece, keeping only the
states between pieces, then backward from the last piece to the first: each piece is computed again with gradients and
receives the gradient of the state it handed on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dna_mamba.kernels.cross_entropy import cross_entropy
from dna_mamba.model.backbone import DnaMamba, ModelState
from dna_mamba.model.mixers.mamba import MambaState


def sum_of_losses(
    model: DnaMamba, tokens_BT: Tensor, weights_BT: Tensor, state: Sequence[MambaState] | None
) -> tuple[Tensor, ModelState]:
    """Sum the weighted losses of positions 1 to T - 1 (T - 1 predicts nothing); run all T - 1 predecessors at once."""
    logits_BTV, new_state = model(tokens_BT[:, :-1], state)
    losses_BT = cross_entropy(
        logits_BTV, tokens_BT[:, 1:], weights_BT[:, 1:].to(logits_BTV.dtype), implementation=model.implementation
    )
    return losses_BT.sum(), new_state


@torch.no_grad()
def _entering_states(
    model: DnaMamba, tokens_BT: Tensor, bounds: Sequence[tuple[int, int]]
) -> list[list[MambaState] | None]:
    """Read the sequence forward and keep the state that enters each piece."""
    entering: list[list[MambaState] | None] = [None]
    for number, (start, end) in enumerate(bounds[:-1]):
        _, state = model.backbone(tokens_BT[:, start:end], entering[-1])
        if number == 0:
            # One block for all pieces: small tensors kept one by one would lie among the large ones that each piece
            # frees, and the allocator could use none of those holes again.
            kept = [[x.new_empty(len(bounds) - 1, *x.shape) for x in layer] for layer in state]
        for layer, blocks in zip(state, kept, strict=True):
            for x, block in zip(layer, blocks, strict=True):
                block[number] = x
        entering.append([MambaState(*(block[number] for block in blocks)) for blocks in kept])
        del state, layer, x
    return entering


def backward_in_pieces(
    model: DnaMamba, tokens_BT: Tensor, weights_BT: Tensor, *, divisor: float, piece_bases: int
) -> Tensor:
    """Add the gradients of (sum of weighted losses) / divisor to the parameters; return that loss, detached.

    Args:
        model: The language model.
        tokens_BT: Token ids.
        weights_BT: Weight of each position as a target; the first is no target.
        divisor: Usually the sum of the target weights of the whole optimizer step.
        piece_bases: Positions of a sequence computed at once; gradients do not depend on it (up to rounding).
    """
    T = tokens_BT.shape[1]
    # piece i holds the predecessors start to end - 1, and predicts start + 1 to end
    bounds = [(start, min(start + piece_bases, T - 1)) for start in range(0, T - 1, piece_bases)]
    if len(bounds) == 1:
        total, _ = sum_of_losses(model, tokens_BT, weights_BT, None)
        (total / divisor).backward()
        return total.detach() / divisor
    entering = _entering_states(model, tokens_BT, bounds)
    loss = torch.zeros((), dtype=torch.float64, device=tokens_BT.device)
    leaving_gradients: list[Tensor] | None = None
    for (start, end), state in zip(reversed(bounds), reversed(entering), strict=True):
        inputs = None
        if state is not None:
            inputs = [MambaState(*(x.detach().requires_grad_() for x in layer)) for layer in state]
        total, leaving = sum_of_losses(model, tokens_BT[:, start : end + 1], weights_BT[:, start : end + 1], inputs)
        outputs, gradients = [total / divisor], [torch.ones_like(total)]
        if leaving_gradients is not None:
            outputs += [x for layer in leaving for x in layer]
            gradients += leaving_gradients
        torch.autograd.backward(outputs, gradients)
        loss += total.detach() / divisor
        del total, leaving, outputs, gradients  # before the next piece is computed, not after
        if inputs is not None:
            leaving_gradients = [x.grad for layer in inputs for x in layer]  # type: ignore[misc]
    return loss.to(torch.float32)
