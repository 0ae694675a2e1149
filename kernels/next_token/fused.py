# Shapes: B sequences, D model width, V vocabulary, S steps held, J candidates; the kernel holds a block BB of B
"""Drawing for GPUs in Triton: one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dna_mamba.kernels.fused_functions import LOG2_E

J = tl.constexpr(4)


@triton.jit(do_not_specialize=("num_sequences", "seed", "first", "num_kept"))
def _draw(
    residual_ptr, norm_ptr, head_ptr, kept_ptr, sums_ptr, step_ptr, eps, temperature, top_k, top_p, seed, first,
    num_sequences, width, num_kept,
    D: tl.constexpr, BB: tl.constexpr, GREEDY: tl.constexpr, FILTER: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)
    d, j = tl.arange(0, D), tl.arange(0, J)
    real, wide = b < num_sequences, d < width
    both = real[:, None] & wide[None, :]
    x = tl.load(residual_ptr + b[:, None] * width + d[None, :], both, 0.0)
    x *= 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / width + eps)[:, None]
    x *= tl.load(norm_ptr + d, wide, 0.0)[None, :]
    head = tl.load(head_ptr + (first + j[:, None]) * width + d[None, :], wide[None, :], 0.0)
    logits = tl.sum(x[:, None, :] * head[None, :, :], axis=2)
    shifted = logits - tl.max(logits, axis=1)[:, None]
    log_p = shifted - tl.log(tl.sum(tl.exp(shifted), axis=1))[:, None]
    step = tl.load(step_ptr)
    if GREEDY:
        drawn = tl.argmax(logits, axis=1)
    else:
        p = tl.exp2(LOG2_E * shifted / temperature)
        p = p / tl.sum(p, axis=1)[:, None]
        if FILTER:
            one, other = p[:, :, None], p[:, None, :]
            likelier = (other > one) | ((other == one) & (j[None, None, :] < j[None, :, None]))
            before = tl.sum(tl.where(likelier, other, 0.0), axis=2)
            rank = tl.sum(tl.where(likelier, 1, 0), axis=2)
            p = tl.where((before < top_p) & (rank < top_k), p, 0.0)
        counter = (b[:, None] * J + j[None, :]).to(tl.uint32)
        zero = counter * 0
        words, _, _, _ = tl.philox(
            seed, counter, zero + (step & 0xFFFFFFFF).to(tl.uint32), zero + (step >> 32).to(tl.uint32), zero
        )
        uniform = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
        drawn = tl.argmax(tl.where(p > 0, p / -tl.log(uniform), -1.0), axis=1)
    gained = tl.sum(tl.where(j[None, :] == drawn[:, None], log_p, 0.0), axis=1)
    tl.store(sums_ptr + b, tl.load(sums_ptr + b, real, 0.0) + gained.to(tl.float64), real)
    token = first + drawn
    tl.store(kept_ptr + (step % num_kept) * num_sequences + b, token.to(tl.uint8), real)
    vector = tl.load(head_ptr + token[:, None] * width + d[None, :], both, 0.0)
    tl.store(residual_ptr + b[:, None] * width + d[None, :], vector, both)


@torch.library.custom_op("dna_mamba::next_token", mutates_args=("residual", "kept", "sums", "step"))
def next_token_triton(
    residual: Tensor,
    norm_weight: Tensor,
    head: Tensor,
    kept: Tensor,
    sums: Tensor,
    step: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    greedy: bool,
    first: int,
    eps: float,
) -> None:
    """Run the Triton kernel; see `next_token`."""
    num_sequences, width = residual.shape
    D = triton.next_power_of_2(width)
    block = max(1, min(8, 1024 // D)) if num_sequences > 8 else 1
    with torch.cuda.device_of(residual):
        _draw[(-(-num_sequences // block),)](
            residual, norm_weight.contiguous(), head.contiguous(), kept, sums, step, eps, temperature, top_k, top_p, seed,
            first, num_sequences, width, kept.shape[0],
            D=D, BB=block, GREEDY=greedy, FILTER=top_k < 4 or top_p < 1, num_warps=4,
        )  # fmt: skip
    step += 1  # after all programs have read it


@next_token_triton.register_fake
def _(residual, norm_weight, head, kept, sums, step, temperature, top_k, top_p, seed, greedy, first, eps):
    return None
