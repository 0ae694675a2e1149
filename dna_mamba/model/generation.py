# Shapes: B sequences, V vocabulary
"""One base at a time with carried states."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba, ModelState

A = 7
ACGT = slice(A, A + 4)
"""Token ids of the four bases, as data/vocabulary.py has them."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next base is drawn from the scores of A, C, G and T; nothing else is ever drawn."""

    temperature: float = 1.0
    """Scores are divided by it; 0 takes the likeliest base."""
    top_k: int = 4
    """Draw from so many likeliest bases."""
    top_p: float = 1.0
    """Draw from the fewest likeliest bases that together have this probability (Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature {self.temperature} must be a number from 0 up")
        if not 1 <= self.top_k <= 4:
            raise InputError(f"top_k {self.top_k} must be 1 to 4: there are four bases")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} must be above 0 and at most 1")

    def probabilities(self, logits_B4: Tensor) -> Tensor:
        """Give what bases are drawn with, from scores of A, C, G and T."""
        if self.temperature < 1e-6:  # the limit; dividing by it would overflow
            return F.one_hot(logits_B4.argmax(-1), 4).to(logits_B4.dtype)
        probabilities_B4 = (logits_B4 / self.temperature).softmax(-1)
        if self.top_k == 4 and self.top_p == 1:
            return probabilities_B4
        sorted_B4, order_B4 = probabilities_B4.sort(dim=-1, descending=True)
        # a base stays if what is likelier than it has not reached top_p yet
        keep_B4 = sorted_B4.cumsum(-1) - sorted_B4 < self.top_p
        keep_B4 &= torch.arange(4, device=logits_B4.device) < self.top_k
        kept_B4 = torch.zeros_like(probabilities_B4).scatter(-1, order_B4, sorted_B4 * keep_B4)
        return kept_B4 / kept_B4.sum(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """New sequences."""

    tokens_BT: Tensor
    """Token ids (uint8) on the CPU, without the prompt."""
    log_likelihoods_B: Tensor
    """Of what was drawn, given the prompt, in nats, at temperature 1 over all four bases (float64)."""


class _Draw:
    """One step: a base is drawn, its log-likelihood added, and the next one scored; all in place."""

    def __init__(self, model: DnaMamba, state: ModelState, logits_BV: Tensor, config: SamplingConfig, seed: int):
        device = logits_BV.device
        self.model, self.state, self.config = model, state, config
        self.logits_BV = logits_BV.clone()
        self.tokens_B = torch.zeros(len(logits_BV), dtype=torch.long, device=device)
        self.sums_B = torch.zeros(len(logits_BV), dtype=torch.float64, device=device)
        self.generator = torch.Generator(device).manual_seed(seed)

    @torch.no_grad()
    def __call__(self) -> None:
        logits_B4 = self.logits_BV[:, ACGT].float()
        probabilities_B4 = self.config.probabilities(logits_B4)
        # the largest of p / Exponential(1) is a draw from p (as torch.multinomial has it, which a CUDA graph cannot hold)
        noise_B4 = torch.empty_like(probabilities_B4).exponential_(generator=self.generator)
        drawn_B = (probabilities_B4 / noise_B4.clamp_min(1e-30)).argmax(-1)
        self.sums_B += logits_B4.log_softmax(-1).gather(-1, drawn_B[:, None])[:, 0].double()
        self.tokens_B.copy_(drawn_B + A)
        self.logits_BV.copy_(self.model.step(self.tokens_B, self.state))


@torch.no_grad()
def generate(
    model: DnaMamba,
    prompt_T: Tensor,
    length: int,
    *,
    num_sequences: int = 1,
    config: SamplingConfig | None = None,
    seed: int = 0,
    piece_bases: int = 2**16,
    on_bases: Callable[[int], None] | None = None,
) -> Generated:
    """Draw new bases after a prompt, in memory and time a base that do not grow with either.

    Args:
        model: On a CPU or GPU; on a GPU a step, drawing included, is one CUDA graph.
        prompt_T: Token ids, at least one, any number; read in pieces, all bases of a piece at once.
        length: New bases of each sequence.
        num_sequences: Drawn independently.
        config: How; without it at temperature 1.
        seed: The same seed on the same kind of device, with the same number of sequences, gives the same sequences.
        piece_bases: Bases of the prompt that are read at once.
        on_bases: Called with the bases of each sequence that are done, now and then.

    Raises:
        InputError: The prompt is empty, or a number is not positive.
    """
    config = config or SamplingConfig()
    if not len(prompt_T):
        raise InputError("the prompt is empty; give at least one base")
    if length < 1 or num_sequences < 1:
        raise InputError(f"{num_sequences} sequences of {length} bases were asked for; both must be at least 1")
    device = model.lm_head.weight.device
    state: ModelState | None = None
    for start in range(0, len(prompt_T), piece_bases):
        logits_BTV, state = model(prompt_T[None, start : start + piece_bases].to(device), state)
    assert state is not None
    own = model.new_state(num_sequences)
    for mine, read in zip(own, state, strict=True):
        for tensor, value in zip(mine, read, strict=True):
            tensor.copy_(value.expand_as(tensor))
    logits_BV = logits_BTV[:, -1].expand(num_sequences, -1)
    draw = _Draw(model, own, logits_BV, config, seed)
    step: Callable[[], None] = draw
    if device.type == "cuda":
        step = _captured(draw)
    tokens_TB = torch.zeros(length, num_sequences, dtype=torch.uint8, device=device)
    for t in range(length):
        step()
        tokens_TB[t] = draw.tokens_B
        if on_bases and (t + 1) % 4096 == 0:
            on_bases(t + 1)
    return Generated(tokens_BT=tokens_TB.T.contiguous().cpu(), log_likelihoods_B=draw.sums_B.cpu())


def _captured(draw: _Draw) -> Callable[[], None]:
    """Capture a step as a CUDA graph; the draw is as it was before."""
    kept = [[tensor.clone() for tensor in layer] for layer in draw.state]
    logits_BV, seed_state = draw.logits_BV.clone(), draw.generator.get_state()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(draw.generator)
    with torch.cuda.device(draw.logits_BV.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            draw()  # compiles what is to be compiled; capturing may not
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            draw()
    for layer, before in zip(draw.state, kept, strict=True):
        for tensor, value in zip(layer, before, strict=True):
            tensor.copy_(value)
    draw.logits_BV.copy_(logits_BV)
    draw.sums_B.zero_()
    draw.generator.set_state(seed_state)
    return graph.replay
