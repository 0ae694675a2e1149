# Shapes: B sequences, V vocabulary
"""One base at a time with carried states."""

import torch
from torch import Tensor

from dna_mamba.model.backbone import DnaMamba


class CapturedStep:
    """`DnaMamba.step` as one CUDA graph: a step then costs one launch instead of hundreds.

    Args:
        model: On a GPU. Its weights are read anew in every step; replacing its tensors is not seen.
        num_sequences: Sequences of each step.
        dtype: Of matrix products: float32, or bfloat16 for autocast.

    Raises:
        ValueError: The model is not on a GPU.
    """

    def __init__(self, model: DnaMamba, num_sequences: int, dtype: torch.dtype = torch.float32):
        weight = model.lm_head.weight
        if not weight.is_cuda:
            raise ValueError(f"a CUDA graph needs a model on a GPU; this one is on {weight.device}: call model.step")
        self.state = model.new_state(num_sequences, dtype)
        self._tokens_B = torch.zeros(num_sequences, dtype=torch.long, device=weight.device)
        self._graph = torch.cuda.CUDAGraph()
        enabled = dtype != torch.float32

        def step() -> Tensor:
            # the cache of cast weights would keep tensors of an earlier graph
            with torch.autocast("cuda", dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False):
                return model.step(self._tokens_B, self.state)

        with torch.cuda.device(weight.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()  # compiles what is to be compiled; capturing may not
                step()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._logits_BV = step()
        self.reset()

    def reset(self) -> None:
        """Return to the state before the first base."""
        for layer in self.state:
            for tensor in layer:
                tensor.zero_()

    def __call__(self, tokens_B: Tensor) -> Tensor:
        """Score the next base of each sequence after these; the result is overwritten by the next call.

        Raises:
            ValueError: Not one token for each sequence that the graph was captured for.
        """
        if tokens_B.shape != self._tokens_B.shape:
            raise ValueError(f"tokens are {tuple(tokens_B.shape)}; this graph takes {tuple(self._tokens_B.shape)}")
        self._tokens_B.copy_(tokens_B)
        self._graph.replay()
        return self._logits_BV
