# Shapes: B sequences, V vocabulary
"""One base at a time with carried states."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dna_mamba.alphabet import A
from dna_mamba.errors import InputError
from dna_mamba.kernels.next_token import Sampling, next_token
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.state import ModelState, repeated, tensors_of
from dna_mamba.reading.pieces import bounds_of, check_causal, last_of
from dna_mamba.reading.settings import SamplingConfig
from dna_mamba.values import whole


class CapturedStep:
    """`DnaMamba.step` as one CUDA graph: a step then costs one launch instead of hundreds.

    Args:
        model: On a GPU. Its weights are read anew in every step; replacing its tensors is not seen.
        num_sequences: Sequences of each step.
        dtype: Of matrix products: float32, or bfloat16 for autocast.
        capacity: Steps until `reset` that a state that grows has room for.

    Raises:
        ValueError: The model is not on a GPU.
    """

    def __init__(
        self, model: DnaMamba, num_sequences: int, dtype: torch.dtype = torch.float32, *, capacity: int = 2**14
    ):
        weight = model.lm_head.weight
        if not weight.is_cuda:
            raise ValueError(f"a CUDA graph needs a model on a GPU; this one is on {weight.device}: call model.step")
        self.state = model.step_state(model.new_state(num_sequences, dtype), capacity)
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
        for tensor in tensors_of(self.state):
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


@dataclass(frozen=True, kw_only=True)
class Generated:
    """New sequences."""

    tokens_BT: Tensor
    """Token ids (uint8) on the CPU, without the prompt."""
    log_likelihoods_B: Tensor
    """Of what was drawn, given the prompt, in nats, at temperature 1 over all four bases (float64)."""


class Draw:
    """One step: the last base is read, the next one drawn and kept, its log-likelihood added; all in place.

    Args:
        model: In float32.
        state: Of `step_state`, after all bases of the prompt but the last; changed.
        tokens_B: The last base of the prompt.
        config: How to draw.
        seed: Of the random numbers.
    """

    KEPT = 4096
    """Steps whose bases are held; take them before they are overwritten."""

    def __init__(self, model: DnaMamba, state: ModelState, tokens_B: Tensor, config: SamplingConfig, seed: int):
        self.model, self.state = model, state
        self.sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, seed=seed)
        num_sequences, device = len(tokens_B), tokens_B.device
        with torch.no_grad():
            self.residual_BD = model.backbone.embedding(tokens_B.long()).contiguous()
        self.sums_B = torch.zeros(num_sequences, dtype=torch.float64, device=device)
        self.kept_SB = torch.zeros(self.KEPT, num_sequences, dtype=torch.uint8, device=device)
        self.step_1 = torch.zeros(1, dtype=torch.long, device=device)

    @torch.no_grad()
    def __call__(self) -> None:
        """Draw the next base of each sequence."""
        backbone = self.model.backbone
        backbone.advance(self.residual_BD, self.state)
        next_token(
            self.residual_BD,
            backbone.norm_f.weight,
            self.model.lm_head.weight,
            self.kept_SB,
            self.sums_B,
            self.step_1,
            self.sampling,
            first=A,
            eps=backbone.norm_f.eps,
            implementation=self.model.implementation,
        )


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
        seed: The same seed gives the same sequences: number k depends on the seed and k alone, not on how many are drawn,
            and between devices rounding apart.
        piece_bases: Bases of the prompt that are read at once.
        on_bases: Called with the bases of each sequence that are done, now and then.

    Raises:
        InputError: The prompt is empty, a number is not positive, or the model is not causal.
    """
    if not len(prompt_T):
        raise InputError("the prompt is empty; give at least one base")
    given = length, num_sequences, seed
    if None in map(whole, given) or not 0 <= seed < 2**63:
        raise InputError(
            f"length {length!r}, number {num_sequences!r} and seed {seed!r} must be whole, the seed 0 to 2^63 - 1"
        )
    length, num_sequences, seed = map(int, given)
    if length < 1 or num_sequences < 1:
        raise InputError(f"{num_sequences} sequences of {length} bases were asked for; both must be at least 1")
    check_causal(model, "generating")
    device = model.lm_head.weight.device

    def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
        return model(prompt_T[None, start:end].to(device), state)

    bounds = bounds_of(model.backbone, len(prompt_T) - 1, piece_bases)
    state = last_of(read, bounds).state if bounds else model.new_state(1)
    own = model.step_state(repeated(state, num_sequences), len(prompt_T) + length)
    draw = Draw(model, own, prompt_T[-1:].to(device).expand(num_sequences), config or SamplingConfig(), seed)
    step = captured(draw) if device.type == "cuda" else draw
    tokens_BT = torch.zeros(num_sequences, length, dtype=torch.uint8)
    for start in range(0, length, Draw.KEPT):
        stop = min(start + Draw.KEPT, length)
        for _ in range(start, stop):
            step()
        tokens_BT[:, start:stop] = draw.kept_SB[: stop - start].T.cpu()
        if on_bases:
            on_bases(stop)
    return Generated(tokens_BT=tokens_BT, log_likelihoods_B=draw.sums_B.cpu())


def captured(draw: Draw) -> Callable[[], None]:
    """Capture a step as a CUDA graph, drawing included; the draw is as it was before."""
    changed = [draw.residual_BD, draw.sums_B, draw.step_1, *tensors_of(draw.state)]
    before = [tensor.clone() for tensor in changed]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(draw.residual_BD.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            draw()  # compiles what is to be compiled; capturing may not
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            draw()
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    return graph.replay
