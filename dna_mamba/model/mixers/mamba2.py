# Shapes: B sequences, T positions, D model width, E inner width, H heads, K channels of a head, G groups, N states, P taps,
# F = E + 2 G N channels of the convolution
"""The Mamba-2 mixer (SSD), letter S."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dna_mamba.kernels.causal_conv1d import MAX_TAPS, causal_conv1d_step, causal_conv1d_with_state
from dna_mamba.kernels.gated_rms_norm import gated_rms_norm
from dna_mamba.kernels.state_space_dual import state_space_dual_step, state_space_dual_with_state, unfit
from dna_mamba.model.config import Mamba2Config
from dna_mamba.model.mixers.mixer import LayerMemory, Mixer
from dna_mamba.model.state import LayerState

CHUNK = 64
"""Positions between the states that the backward keeps, at least."""


class Mamba2State(NamedTuple):
    """All that the past means to the future of a Mamba-2 layer."""

    conv_BPF: Tensor
    """The last P - 1 inputs of the convolution."""
    scan_BHKN: Tensor
    """State of the scan, float32."""


class GatedNorm(nn.Module):
    """The weight of the norm behind the scan."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))


class Mamba2Mixer(Mixer):
    """One projection makes all inputs of the scan; convolve, scan with one decay a head, gate, normalise, project back.

    Parameter names, shapes and initialisation equal those of state-spaces/mamba (`mamba2.py`), so that checkpoints pass in
    both directions. Source: Dao and Gu 2024 (arXiv 2405.21060), section 7 and figure 6.
    """

    without_decay = ("D",)
    eps = 1e-5
    """Of the norm behind the scan."""

    def __init__(self, width: int, config: Mamba2Config):
        super().__init__()
        self.config = config
        E = self.inner_width = config.expansion * width
        K = self.head_width = config.head_width_of(width)
        H, G, N = E // K, config.num_groups, config.num_states
        self.num_heads = H
        self.parts = (E, E + 2 * G * N, H)
        """Rows of the projection: gate, what is convolved (input, B and C), steps."""
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.conv1d = nn.Conv1d(self.parts[1], self.parts[1], config.num_taps, groups=self.parts[1])
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.A_log = nn.Parameter(torch.empty(H))
        self.D = nn.Parameter(torch.ones(H, K) if config.skip_a_channel else torch.ones(H))
        self.norm = GatedNorm(E)
        self.out_proj = nn.Linear(E, width, bias=False)
        if not self.A_log.is_meta:  # arithmetic on the meta device would load torch's compiler
            self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        config, H = self.config, self.num_heads
        log_min, log_max = math.log(config.delta_min), math.log(config.delta_max)
        delta_H = torch.exp(torch.rand(H) * (log_max - log_min) + log_min).clamp(min=1e-4)
        self.dt_bias.copy_(delta_H + torch.log(-torch.expm1(-delta_H)))  # the inverse of softplus
        self.A_log.copy_(torch.empty(H).uniform_(config.decay_min, config.decay_max).log())

    @property
    def to_stream(self) -> Tensor:
        """The projection back to the model's width."""
        return self.out_proj.weight

    def _split(self, x_TF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take apart what the convolution gives, any leading dimensions: x (..., H, K), B and C (..., G, N)."""
        G, N = self.config.num_groups, self.config.num_states
        x, B, C = x_TF.split([self.inner_width, G * N, G * N], dim=-1)
        return x.unflatten(-1, (-1, self.head_width)), B.unflatten(-1, (G, N)), C.unflatten(-1, (G, N))

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        return gated_rms_norm(
            y, z, self.norm.weight, num_groups=self.config.num_groups, eps=self.eps, gate_first=self.config.gate_first,
            implementation=self.implementation,
        )  # fmt: skip

    def forward(self, x_BTD: Tensor, state: LayerState | None = None) -> tuple[Tensor, Mamba2State]:
        """Mix along the positions; the state of the previous piece in, the state for the next piece out."""
        conv_before, scan_before = (None, None) if state is None else state
        z_BTE, x_BTF, dt_BTH = self.in_proj(x_BTD).split(self.parts, dim=-1)
        x_BTF, conv_BPF = causal_conv1d_with_state(
            x_BTF,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            initial_state=conv_before,
            implementation=self.implementation,
        )
        x_BTHK, B_BTGN, C_BTGN = self._split(x_BTF)
        y_BTHK, scan_BHKN = state_space_dual_with_state(
            x_BTHK,
            dt_BTH,
            -torch.exp(self.A_log.float()),
            B_BTGN,
            C_BTGN,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            dt_limit=self.config.delta_limit,
            initial_state=scan_before,
            implementation=self.implementation,
        )
        return self.out_proj(self._gated(y_BTHK.flatten(-2), z_BTE)), Mamba2State(conv_BPF, scan_BHKN)

    def new_state(self, num_sequences: int, dtype: torch.dtype) -> Mamba2State:
        """Give the state before the first base; dtype is that of the convolution's inputs."""
        weight, config = self.conv1d.weight, self.config
        return Mamba2State(
            torch.zeros(num_sequences, config.num_taps - 1, self.parts[1], dtype=dtype, device=weight.device),
            torch.zeros(num_sequences, self.num_heads, self.head_width, config.num_states, device=weight.device),
        )

    @torch.no_grad()
    def step(self, x_BD: Tensor, state: LayerState) -> Tensor:
        """Mix one position; the state is changed in place."""
        conv_BPF, scan_BHKN = state
        z_BE, x_BF, dt_BH = self.in_proj(x_BD).split(self.parts, dim=-1)
        x_BF = causal_conv1d_step(
            conv_BPF,
            x_BF,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            implementation=self.implementation,
        )
        x_BHK, B_BGN, C_BGN = self._split(x_BF)
        y_BHK = state_space_dual_step(
            scan_BHKN,
            x_BHK,
            dt_BH,
            -torch.exp(self.A_log.float()),
            B_BGN,
            C_BGN,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            dt_limit=self.config.delta_limit,
        )
        return self.out_proj(self._gated(y_BHK.flatten(-2), z_BE))

    def memory(self, item: int) -> LayerMemory:
        """Count the bytes of the scan in chunks."""
        E, F, H = self.parts
        N = self.config.num_states
        projected = item * (E + F + H)
        return LayerMemory(
            # the projection, the convolution, states of chunks, output of the scan and of the norm
            kept=projected + item * F + 4 * E * N / CHUNK + item * 2 * E,
            # their gradients, gradients of the states, steps, sums and what the gradients of the steps are made of
            working=projected + item * (2 * F + 2 * E) + 4 * E * N / CHUNK + 4 * 8 * H,
            state=4 * E * N + item * F * (self.config.num_taps - 1),
        )

    def unfit_for_triton(self) -> str:
        """Say why the fused kernels cannot run it."""
        if not 2 <= self.config.num_taps <= MAX_TAPS:
            return f"2 to {MAX_TAPS} taps fit"
        return unfit(self.head_width, self.config.num_states)
