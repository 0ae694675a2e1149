# Shapes: B sequences, D model width, V vocabulary, S steps held, J candidates
"""Drawing in plain torch, with noise that is a function of seed, sequence and step."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from dna_mamba.kernels.rms_norm import rms_norm

CANDIDATES = 4
"""Tokens, one after the other in the vocabulary, of which one is drawn."""
WORD = 0xFFFFFFFF
BLOCK, BLOCK_NUMBERS = 256, 2**18
"""Steps whose random numbers are made at once, and sequences times steps at most."""


def _philox(counters: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Tensor:
    """Give word 0 of Philox4x32-10 (Salmon et al. 2011, section 3.3), in int64."""

    def product(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = x & 0xFFFF, x >> 16  # halves: 64 bits of a whole product would be one too many
        hi = (constant * high + (constant * low >> 16)) >> 16
        return hi, (constant * x) & WORD

    c0, c1, c2, c3 = counters
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(10):
        hi0, lo0 = product(0xD2511F53, c0)
        hi1, lo1 = product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0


def uniforms(seed: int, steps: Tensor, num_sequences: int) -> Tensor:
    """Give the random numbers of steps (S,), each in (0, 1), float32 (S, B, J)."""
    counter_SBJ = torch.arange(num_sequences * CANDIDATES, device=steps.device).view(1, num_sequences, CANDIDATES)
    zero = torch.zeros_like(counter_SBJ)
    low, high = ((steps & WORD)[:, None, None], (steps >> 32)[:, None, None])
    words = _philox((counter_SBJ + 0 * low, low + zero, high + zero, zero + 0 * low), seed)
    return ((words >> 9).float() + 0.5) * 2**-23  # one bit more and the largest would round to 1


@functools.lru_cache(maxsize=2)
def _block(seed: int, block: int, size: int, num_sequences: int) -> Tensor:
    return uniforms(seed, torch.arange(block * size, (block + 1) * size), num_sequences)


def _uniforms_of_step(seed: int, step_1: Tensor, num_sequences: int) -> Tensor:
    """Give (B, J); in main memory many steps are made at once, which costs little more than one."""
    if step_1.is_cuda:  # a CUDA graph cannot look at the step
        return uniforms(seed, step_1, num_sequences)[0]
    step, size = int(step_1), max(1, min(BLOCK, BLOCK_NUMBERS // num_sequences))
    return _block(seed, step // size, size, num_sequences)[step % size]


def probabilities(logits_BJ: Tensor, temperature: float, top_k: int, top_p: float, greedy: bool) -> Tensor:
    """Give what candidates are drawn with; of equals the first counts as the likelier."""
    if greedy:
        return F.one_hot(logits_BJ.argmax(-1), CANDIDATES).to(logits_BJ.dtype)
    p_BJ = (logits_BJ / temperature).softmax(-1)
    if top_k == CANDIDATES and top_p == 1:
        return p_BJ
    first = torch.arange(CANDIDATES, device=p_BJ.device)
    one, other = p_BJ[:, :, None], p_BJ[:, None, :]
    likelier_BJJ = (other > one) | ((other == one) & (first[None, None, :] < first[None, :, None]))
    # a candidate stays if what is likelier than it has not reached top_p yet
    before_BJ = (other * likelier_BJJ).sum(-1)
    keep_BJ = (before_BJ < top_p) & (likelier_BJJ.sum(-1) < top_k)
    kept_BJ = p_BJ * keep_BJ
    return kept_BJ / kept_BJ.sum(-1, keepdim=True)


@torch.no_grad()
def next_token_naive(
    residual_BD: Tensor,
    norm_weight_D: Tensor,
    head_VD: Tensor,
    kept_SB: Tensor,
    sums_B: Tensor,
    step_1: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    greedy: bool,
    first: int,
    eps: float,
) -> None:
    """Draw with torch; see `next_token`."""
    norm_BD = rms_norm(residual_BD, norm_weight_D, eps, implementation="naive")
    assert isinstance(norm_BD, Tensor)
    logits_BJ = F.linear(norm_BD, head_VD[first : first + CANDIDATES])
    p_BJ = probabilities(logits_BJ, temperature, top_k, top_p, greedy)
    noise_BJ = -torch.log(_uniforms_of_step(seed, step_1, len(residual_BD)).to(p_BJ.dtype))
    drawn_B = torch.where(p_BJ > 0, p_BJ / noise_BJ, -1.0).argmax(-1)
    sums_B += logits_BJ.double().log_softmax(-1).gather(-1, drawn_B[:, None])[:, 0]
    tokens_B = drawn_B + first
    kept_SB.index_copy_(0, step_1 % len(kept_SB), tokens_B[None].to(torch.uint8))
    residual_BD.copy_(F.embedding(tokens_B, head_VD))
    step_1 += 1
