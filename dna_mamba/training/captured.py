# Shapes: B sequences, T positions
"""Loss and gradients of a step as one CUDA graph: small steps then cost the GPU's time, not the host's."""

from functools import lru_cache

import torch

from dna_mamba.data.objectives import Examples
from dna_mamba.model.trainable import Trainable
from dna_mamba.training.piecewise import Computed, backward_in_pieces

MAX_BASES = 2**19
"""Of a step: the GPU is busy longer with more than the host needs to launch them."""


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: matrix products keep memory of their own for every stream."""
    return torch.cuda.Stream(device)


class CapturedGradients:
    """`backward_in_pieces` of examples of one shape, in one piece; gradients are overwritten, not added to.

    Args:
        model: On a GPU.
        examples: Give the shape.
    """

    def __init__(self, model: Trainable, examples: Examples):
        self.examples = Examples(*(None if x is None else x.clone() for x in examples))  # type: ignore[arg-type]
        inputs_BT = self.examples.inputs_BT
        self.divisor = torch.ones((), dtype=torch.float64, device=inputs_BT.device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._graph = torch.cuda.CUDAGraph()
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None

        def run() -> Computed:
            torch._foreach_zero_(self.gradients)
            # the cache of cast weights would keep those of this step for all later ones
            with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
                return backward_in_pieces(
                    model, self.examples, divisor=self.divisor, piece_bases=max(1, inputs_BT.shape[1])
                )

        with torch.cuda.device(inputs_BT.device):
            self._put_gradients()
            stream = _stream(inputs_BT.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                run()  # compiles what is to be compiled; capturing may not
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.empty_cache()  # the graph brings memory of its own
            with torch.cuda.graph(self._graph, stream=stream):
                self._computed = run()

    @property
    def num_bases(self) -> int:
        """Positions of a step."""
        return self.examples.inputs_BT.numel()

    def fits(self, examples: Examples) -> bool:
        """Say whether these have the shape of those that were captured."""
        return all(
            (x is None) == (own is None) and (x is None or own is None or x.shape == own.shape)
            for x, own in zip(examples, self.examples, strict=True)
        )

    def _put_gradients(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def __call__(self, examples: Examples, divisor: float) -> Computed:
        """Set the parameters' gradients to those of (sum of weighted losses) / divisor; return what was computed."""
        for own, x in zip(self.examples, examples, strict=True):
            if own is not None and x is not None:
                own.copy_(x)
        self.divisor.fill_(divisor)
        self._put_gradients()
        self._graph.replay()
        return Computed(*(x.clone() for x in self._computed))
