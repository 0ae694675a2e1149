# Shapes: B sequences, T positions
"""Loss and gradients of a step as one CUDA graph: small steps then cost the GPU's time, not the host's."""

from functools import lru_cache

import torch
from torch import Tensor

from dna_mamba.model.backbone import DnaMamba
from dna_mamba.training.piecewise import backward_in_pieces

MAX_BASES = 2**19
"""Of a step: the GPU is busy longer with more than the host needs to launch them."""


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: matrix products keep memory of their own for every stream."""
    return torch.cuda.Stream(device)


class CapturedGradients:
    """`backward_in_pieces` of sequences of one shape, in one piece; gradients are overwritten, not added to.

    Args:
        model: On a GPU.
        tokens_BT: Token ids that give the shape.
        weights_BT: Target weights.
    """

    def __init__(self, model: DnaMamba, tokens_BT: Tensor, weights_BT: Tensor):
        self.tokens_BT, self.weights_BT = tokens_BT.clone(), weights_BT.clone()
        self.divisor = torch.ones((), dtype=torch.float64, device=tokens_BT.device)
        self.parameters = list(model.parameters())
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._graph = torch.cuda.CUDAGraph()
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None

        def run() -> Tensor:
            torch._foreach_zero_(self.gradients)
            # the cache of cast weights would keep those of this step for all later ones
            with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
                return backward_in_pieces(
                    model, self.tokens_BT, self.weights_BT, divisor=self.divisor, piece_bases=tokens_BT.shape[1]
                )

        with torch.cuda.device(tokens_BT.device):
            self._put_gradients()
            stream = _stream(tokens_BT.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                run()  # compiles what is to be compiled; capturing may not
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.empty_cache()  # the graph brings memory of its own
            with torch.cuda.graph(self._graph, stream=stream):
                self._loss = run()

    def _put_gradients(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def __call__(self, tokens_BT: Tensor, weights_BT: Tensor, divisor: float) -> Tensor:
        """Set the parameters' gradients to those of (sum of weighted losses) / divisor; return that loss."""
        self.tokens_BT.copy_(tokens_BT)
        self.weights_BT.copy_(weights_BT)
        self.divisor.fill_(divisor)
        self._put_gradients()
        self._graph.replay()
        return self._loss.clone()
