# Shapes: B sequences, T positions, D model width, H heads of queries, J heads of keys and values, K channels of a head,
# S positions read so far, C room for positions, P taps, F channels of queries, keys and values
"""Causal self-attention, letter *: every base looks up every base before it, or the last of them."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dna_mamba.kernels.causal_conv1d import causal_conv1d_step, causal_conv1d_with_state
from dna_mamba.model.config import AttentionConfig
from dna_mamba.model.mixers.mixer import LayerMemory, Mixer
from dna_mamba.model.state import LayerState

MASK_ELEMENTS = 1 << 24
"""Of a mask that is written out; longer stretches are read in rows of queries."""


class AttentionState(NamedTuple):
    """What may still be looked up; it grows with every position, up to the window where there is one."""

    keys_BSJK: Tensor
    """Not rotated: only distances matter, so positions may count from anywhere."""
    values_BSJK: Tensor
    conv_BPF: Tensor
    """The last P - 1 inputs of the convolution; of no length without one."""


class Room(NamedTuple):
    """The same with room for more, for `step`."""

    keys_BCJK: Tensor
    """Rotated by their positions, in any order: place s holds position s, s + C, ..."""
    values_BCJK: Tensor
    conv_BPF: Tensor
    used_B: Tensor
    """Positions read."""


class Attention(Mixer):
    """softmax(Q K^T / sqrt(K)) V over the present and the positions before it, in heads that may share keys and values.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 1; shared keys Ainslie et al. 2023 (arXiv 2305.13245); rotary
    positions Su et al. 2021 (arXiv 2104.09864), in halves, not interleaved. Names of parameters are those of `MHA` in
    state-spaces/mamba: rows of `in_proj` are all heads of queries, then of keys, then of values.
    """

    def __init__(self, width: int, config: AttentionConfig):
        super().__init__()
        self.window, self.rotary_base, self.num_taps = config.window, config.rotary_base, config.num_taps
        K = self.head_width = config.head_width_of(width)
        H = self.num_heads = config.num_heads_of(width)
        J = self.num_kv_heads = config.num_kv_heads or H
        self.rotary_width = config.rotary_width(width)
        self.in_proj = nn.Linear(width, (H + 2 * J) * K, bias=False)
        F_ = self.in_proj.out_features
        self.conv1d = nn.Conv1d(F_, F_, config.num_taps, groups=F_) if config.num_taps else None
        self.out_proj = nn.Linear(H * K, width, bias=False)

    @property
    def to_stream(self) -> Tensor:
        """The projection back to the model's width."""
        return self.out_proj.weight

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take queries (..., H, K), keys and values (..., J, K) apart."""
        H, J = self.num_heads, self.num_kv_heads
        return x.unflatten(-1, (-1, self.head_width)).split([H, J, J], dim=-2)

    def forward(self, x_BTD: Tensor, state: LayerState | None = None) -> tuple[Tensor, AttentionState]:
        """Mix along the positions; what was read before in, and what may be looked up later out."""
        x_BTF = self.in_proj(x_BTD)
        before = None if state is None else AttentionState(*state)
        conv_BPF = x_BTF.new_zeros(len(x_BTF), 0, x_BTF.shape[-1])
        if self.conv1d is not None:
            x_BTF, conv_BPF = causal_conv1d_with_state(
                x_BTF,
                self.conv1d.weight[:, 0],
                self.conv1d.bias,
                initial_state=None if before is None else before.conv_BPF,
                implementation=self.implementation,
            )
        q_BTHK, k_BSJK, v_BSJK = self._split(x_BTF)
        if before is not None:
            k_BSJK = torch.cat([before.keys_BSJK.to(k_BSJK.dtype), k_BSJK], 1)
            v_BSJK = torch.cat([before.values_BSJK.to(v_BSJK.dtype), v_BSJK], 1)
        T, S = q_BTHK.shape[1], k_BSJK.shape[1]
        at_S = torch.arange(S, device=q_BTHK.device)
        rotated_BTHK, rotated_BSJK = self._rotated(q_BTHK, at_S[S - T :]), self._rotated(k_BSJK, at_S)
        y_BHTK = attend(*(x.transpose(1, 2) for x in (rotated_BTHK, rotated_BSJK, v_BSJK)), window=self.window)
        kept = S if self.window is None else min(S, self.window - 1)
        # a view would keep the whole projection
        after = AttentionState(k_BSJK[:, S - kept :].clone(), v_BSJK[:, S - kept :].clone(), conv_BPF)
        return self.out_proj(y_BHTK.transpose(1, 2).flatten(-2)), after

    def _rotated(self, x: Tensor, at: Tensor) -> Tensor:
        """Rotate queries or keys (B, T, heads, K) by their positions (T,)."""
        if not self.rotary_width:
            return x
        half = self.rotary_width // 2
        # float64: in float32 an angle of a million radians is off by 0.06
        rates = self.rotary_base ** (torch.arange(half, device=x.device, dtype=torch.float64) / -half)
        angle = (at.to(torch.float64)[:, None] * rates)[:, None]
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        one, two, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
        turned = torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1).to(x.dtype)
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    def new_state(self, num_sequences: int, dtype: torch.dtype) -> AttentionState:
        """Give the state before the first base: nothing to look up."""
        new = self.out_proj.weight.new_zeros
        empty = new(num_sequences, 0, self.num_kv_heads, self.head_width, dtype=dtype)
        return AttentionState(
            empty, empty.clone(), new(num_sequences, max(0, self.num_taps - 1), self.in_proj.out_features, dtype=dtype)
        )

    def step_state(self, state: LayerState, capacity: int) -> Room:
        """Give room for so many positions, or for the window, and put there what was read."""
        before = AttentionState(*state)
        B, S, J, K = before.keys_BSJK.shape
        num_places = capacity if self.window is None else min(capacity, self.window)
        keys = before.keys_BSJK.new_zeros(B, max(1, num_places), J, K)
        values = torch.zeros_like(keys)
        keys[:, :S] = self._rotated(before.keys_BSJK, torch.arange(S, device=keys.device))
        values[:, :S] = before.values_BSJK
        used_B = torch.full((B,), S, device=keys.device)
        return Room(keys, values, before.conv_BPF.clone(), used_B)

    @torch.no_grad()
    def step(self, x_BD: Tensor, state: LayerState) -> Tensor:
        """Mix one position; the state is changed in place."""
        room = Room(*state)
        x_BF = self.in_proj(x_BD)
        if self.conv1d is not None:
            x_BF = causal_conv1d_step(
                room.conv_BPF,
                x_BF,
                self.conv1d.weight[:, 0],
                self.conv1d.bias,
                implementation=self.implementation,
            )
        q_BHK, k_BJK, v_BJK = self._split(x_BF)
        q_BHK, k_BJK = self._rotated_each(q_BHK, room.used_B), self._rotated_each(k_BJK, room.used_B)
        num_places = room.keys_BCJK.shape[1]
        at = (room.used_B % num_places)[:, None, None, None].expand(-1, 1, *k_BJK.shape[1:])
        room.keys_BCJK.scatter_(1, at, k_BJK[:, None].to(room.keys_BCJK.dtype))
        room.values_BCJK.scatter_(1, at, v_BJK[:, None].to(room.values_BCJK.dtype))
        filled_BC = torch.arange(num_places, device=x_BD.device) <= room.used_B[:, None]
        room.used_B.add_(1)
        y_BH1K = F.scaled_dot_product_attention(
            q_BHK[:, :, None],
            room.keys_BCJK.transpose(1, 2).to(q_BHK.dtype),
            room.values_BCJK.transpose(1, 2).to(q_BHK.dtype),
            attn_mask=filled_BC[:, None, None],
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        return self.out_proj(y_BH1K[:, :, 0].flatten(-2))

    def _rotated_each(self, x_BHK: Tensor, at_B: Tensor) -> Tensor:
        """Rotate each sequence by a position of its own."""
        return self._rotated(x_BHK[None], at_B)[0]

    def memory(self, item: int) -> LayerMemory:
        """Count what torch's fused attention keeps: no matrix of scores is ever written."""
        F_, E = self.in_proj.out_features, self.num_heads * self.head_width
        of_state = 2 * item * self.num_kv_heads * self.head_width
        rotated = item * (E + self.num_kv_heads * self.head_width) if self.rotary_width else 0
        return LayerMemory(
            # queries, keys and values, their rotations, the copy for what follows, the output and the sums of exponentials
            kept=item * F_ + rotated + of_state + item * E + 4 * self.num_heads,
            working=2 * item * F_ + 2 * item * E + rotated,
            state=item * F_ * max(0, self.num_taps - 1),
            state_a_base=of_state,
        )


def attend(q_BHTK: Tensor, k_BJSK: Tensor, v_BJSK: Tensor, *, window: int | None = None) -> Tensor:
    """Attend from the last T of S positions to each and those before it, the last `window` of them, itself included.

    Torch's fused kernels do the work; no matrix of T x S scores is written.

    Args:
        q_BHTK: Queries.
        k_BJSK: Keys; J divides H, and consecutive heads share.
        v_BJSK: Values.
        window: So many positions are seen; none sees all.

    Returns:
        y_BHTK.
    """
    (T, S), shared = (q_BHTK.shape[2], k_BJSK.shape[2]), q_BHTK.shape[1] != k_BJSK.shape[1]
    first = S - T
    if window is None or window >= S:
        if T == S:
            return F.scaled_dot_product_attention(q_BHTK, k_BJSK, v_BJSK, is_causal=True, enable_gqa=shared)
        if T == 1:
            return F.scaled_dot_product_attention(q_BHTK, k_BJSK, v_BJSK, enable_gqa=shared)
        window = S
    rows = max(1, min(T, MASK_ELEMENTS // S if window >= S else max(512, math.isqrt(MASK_ELEMENTS) - window)))
    at_S = torch.arange(S, device=q_BHTK.device)
    parts = []
    for start in range(0, T, rows):
        end = min(start + rows, T)
        low, high = max(0, first + start - window + 1), first + end
        behind = at_S[first + start : high, None] - at_S[low:high]
        parts.append(
            F.scaled_dot_product_attention(
                q_BHTK[:, :, start:end],
                k_BJSK[:, :, low:high],
                v_BJSK[:, :, low:high],
                attn_mask=(behind >= 0) & (behind < window),
                enable_gqa=shared,
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
