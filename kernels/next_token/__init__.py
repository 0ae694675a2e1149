# Shapes: B sequences, D model width, V vocabulary, S steps held, J candidates
"""Draw the next token of each sequence and put its vector at the head of the residual stream."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dna_mamba.kernels.dispatch import choose
from dna_mamba.kernels.shapes import check_shapes

from .naive import CANDIDATES, next_token_naive, probabilities, uniforms

__all__ = ["CANDIDATES", "MAX_WIDTH", "Sampling", "next_token", "probabilities", "uniforms"]

MAX_WIDTH = 1024
"""Of the Triton kernel, which holds a whole vector."""
GREEDY = 1e-6
"""A temperature below this takes the likeliest: dividing by it would overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to draw."""

    temperature: float = 1.0
    top_k: int = CANDIDATES
    top_p: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest is taken."""
        return self.temperature < GREEDY


def next_token(
    residual_BD: Tensor,
    norm_weight_D: Tensor,
    head_VD: Tensor,
    kept_SB: Tensor,
    sums_B: Tensor,
    step_1: Tensor,
    sampling: Sampling,
    *,
    first: int,
    eps: float = 1e-5,
    implementation: str = "auto",
) -> None:
    """Normalise, score the candidates, draw one, add its log-likelihood and replace the stream by its vector, all in place.

    Of candidates with probabilities p, the one with the largest p / Exponential(1) is drawn, which is a draw from p; the
    noise of sequence b at step s is word 0 of Philox4x32-10 with counter (4 b + candidate, s, s / 2^32, 0) and the seed as
    key, so that a sequence depends on the seed and its number, and neither on its companions nor on the device.

    Args:
        residual_BD: The stream after the last block, float32, contiguous; holds the vectors of what was drawn when this
            returns.
        norm_weight_D: Of the final norm.
        head_VD: Output weights, which are the embedding too.
        kept_SB: Tokens drawn, uint8; row step % S is written.
        sums_B: Sums of log-likelihoods over the candidates at temperature 1, in nats, float64.
        step_1: Number of the step, int64; one more when this returns.
        sampling: How to draw.
        first: Token id of the first candidate.
        eps: Of the norm.
        implementation: 'auto', 'naive', 'cpu' (as 'naive') or 'triton' (GPU, up to 1,024 wide; 'auto' takes 'naive' beyond).

    Raises:
        ValueError: Shapes or dtypes disagree, or the implementation cannot take these tensors.
    Source: Salmon et al. 2011 (Philox); Holtzman et al. 2020 (top-p).
    """
    if residual_BD.dim() != 2 or residual_BD.numel() == 0 or not residual_BD.is_contiguous():
        raise ValueError(f"residual must be (batch, width), contiguous and not empty, not {tuple(residual_BD.shape)}")
    num_sequences, width = residual_BD.shape
    if kept_SB.dim() != 2 or head_VD.dim() != 2 or not 0 <= first <= head_VD.shape[0] - CANDIDATES:
        raise ValueError(f"kept and head must be matrices, with tokens {first} to {first + CANDIDATES - 1} in the head")
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "norm_weight": (norm_weight_D, (width,)),
        "head": (head_VD, (head_VD.shape[0], width)),
        "kept": (kept_SB, (kept_SB.shape[0], num_sequences)),
        "sums": (sums_B, (num_sequences,)),
        "step": (step_1, (1,)),
    }
    check_shapes(f"residual {tuple(residual_BD.shape)}", residual_BD, expected)
    dtypes = {"kept": (kept_SB, torch.uint8), "sums": (sums_B, torch.float64), "step": (step_1, torch.int64),
              "norm_weight": (norm_weight_D, residual_BD.dtype), "head": (head_VD, residual_BD.dtype)}  # fmt: skip
    for name, (tensor, dtype) in dtypes.items():
        if tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")
    unfit = "" if width <= MAX_WIDTH and residual_BD.dtype == torch.float32 else f"width {width} of {residual_BD.dtype}"
    arguments = (residual_BD, norm_weight_D, head_VD, kept_SB, sums_B, step_1)
    if choose(implementation, residual_BD, unfit) == "triton":
        from .fused import next_token_triton  # here, so that a machine without Triton never imports it

        run: Callable[..., None] = next_token_triton
    else:
        run = next_token_naive
    run(*arguments, sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed, sampling.greedy, first, eps)
