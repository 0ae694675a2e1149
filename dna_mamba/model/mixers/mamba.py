# Shapes: B sequences, T positions, D model width, E inner width, N states, K taps, R rank of delta
"""The Mamba mixer (S6), letter M."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dna_mamba.kernels.causal_conv1d import MAX_TAPS, causal_conv1d_step
from dna_mamba.kernels.mamba_inner import mamba_inner, mamba_inner_states
from dna_mamba.kernels.mamba_step import mamba_step, unfit
from dna_mamba.kernels.selective_scan import MAX_STATES, SEGMENT, STATES_AT_ONCE, selective_scan_step
from dna_mamba.model.config import MambaConfig
from dna_mamba.model.mixers.mixer import LayerMemory, Mixer
from dna_mamba.model.norm import RMSNorm
from dna_mamba.model.state import LayerState


class MambaState(NamedTuple):
    """All that the past means to the future of a Mamba layer."""

    conv_BKE: Tensor
    """The last K - 1 inputs of the convolution."""
    scan_BEN: Tensor
    """State of the scan, float32."""


class MambaMixer(Mixer):
    """Convolve, then scan with step sizes, input and output weights that the sequence itself chooses.

    Parameter names, shapes and initialisation equal those of state-spaces/mamba (`mamba_simple.py`), so that
    checkpoints pass in both directions. Source: Gu and Dao 2023 (arXiv 2312.00752), algorithm 2 and figure 3.
    """

    without_decay = ("A_log",)

    def __init__(self, width: int, config: MambaConfig):
        super().__init__()
        self.width, self.num_taps = width, config.num_taps
        self.inner_width = config.expansion * width
        self.delta_rank = math.ceil(width / 16)
        self.num_states = config.num_states
        E, R, N = self.inner_width, self.delta_rank, self.num_states
        self.in_proj = nn.Linear(width, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.num_taps, groups=E)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.A_log = nn.Parameter(torch.empty(E, N))
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, width, bias=False)
        if not self.A_log.is_meta:  # arithmetic on the meta device would load torch's compiler
            self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: MambaConfig) -> None:
        E, R, N = self.inner_width, self.delta_rank, self.num_states
        self.A_log.copy_(torch.log(torch.arange(1, N + 1, dtype=torch.float32)).repeat(E, 1))
        self.dt_proj.weight.uniform_(-(R**-0.5), R**-0.5)
        log_min, log_max = math.log(config.delta_min), math.log(config.delta_max)
        delta_E = torch.exp(torch.rand(E) * (log_max - log_min) + log_min).clamp(min=1e-4)
        # the inverse of softplus
        self.dt_proj.bias.copy_(delta_E + torch.log(-torch.expm1(-delta_E)))

    @property
    def to_stream(self) -> Tensor:
        """The projection back to the model's width."""
        return self.out_proj.weight

    @property
    def gives_states(self) -> bool:
        """Whether the fused scan runs it, whose states between segments are at hand."""
        return self.implementation == "triton" and self.num_states <= STATES_AT_ONCE

    def forward(self, x_BTD: Tensor, state: LayerState | None = None) -> tuple[Tensor, MambaState]:
        """Mix along the positions; the state of the previous piece in, the state for the next piece out."""
        conv_before, scan_before = (None, None) if state is None else state
        y_BTE, conv_BKE, scan_BEN = mamba_inner(
            self.in_proj(x_BTD),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            -torch.exp(self.A_log.float()),
            self.D,
            conv_state=conv_before,
            scan_state=scan_before,
            implementation=self.implementation,
        )
        return self.out_proj(y_BTE), MambaState(conv_BKE, scan_BEN)

    def forward_with_states(
        self, x_BTD: Tensor, state: LayerState | None, segments_S: Tensor
    ) -> tuple[Tensor, MambaState, MambaState]:
        """Mix one sequence as `forward` does, and give the states before positions 16 s too; on a GPU, without gradients."""
        conv_before, scan_before = (None, None) if state is None else state
        y_BTE, conv_BKE, scan_BEN, conv_SKE, scan_SEN = mamba_inner_states(
            self.in_proj(x_BTD),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            -torch.exp(self.A_log.float()),
            self.D,
            segments_S=segments_S,
            conv_state=conv_before,
            scan_state=scan_before,
        )
        return self.out_proj(y_BTE), MambaState(conv_BKE, scan_BEN), MambaState(conv_SKE, scan_SEN)

    def new_state(self, num_sequences: int, dtype: torch.dtype) -> MambaState:
        """Give the state before the first base, for `step`; dtype is that of the convolution's inputs."""
        weight = self.conv1d.weight
        num_before = weight.shape[-1] - 1
        return MambaState(
            torch.zeros(num_sequences, num_before, self.inner_width, dtype=dtype, device=weight.device),
            torch.zeros(num_sequences, self.inner_width, self.num_states, device=weight.device),
        )

    def step(self, x_BD: Tensor, state: LayerState) -> Tensor:
        """Mix one position; the state is changed in place. Without gradients."""
        conv_BKE, scan_BEN = state
        x_BE, z_BE = self.in_proj(x_BD).chunk(2, dim=-1)
        x_BE = causal_conv1d_step(
            conv_BKE,
            x_BE,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            implementation=self.implementation,
        )
        delta_BR, B_BN, C_BN = self.x_proj(x_BE).split([self.delta_rank, self.num_states, self.num_states], dim=-1)
        y_BE = selective_scan_step(
            scan_BEN,
            x_BE,
            F.linear(delta_BR, self.dt_proj.weight),
            -torch.exp(self.A_log.float()),
            B_BN,
            C_BN,
            D=self.D,
            z=z_BE,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            implementation=self.implementation,
        )
        return self.out_proj(y_BE)

    @property
    def steps_as_block(self) -> bool:
        """Whether one position passes through the whole block in few kernels, in full precision."""
        return not unfit(self.width, self.inner_width, self.num_states, self.num_taps)

    def step_block(self, residual_BD: Tensor, norm: RMSNorm, state: LayerState) -> None:
        """Add what norm and layer make of one position to the stream; stream and state are changed in place."""
        assert self.conv1d.bias is not None
        conv_BKE, scan_BEN = state
        mamba_step(
            residual_BD,
            norm.weight,
            self.in_proj.weight,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            self.A_log,
            self.D,
            self.out_proj.weight,
            conv_state_BKE=conv_BKE,
            scan_state_BEN=scan_BEN,
            eps=norm.eps,
            implementation=self.implementation,
        )

    def memory(self, item: int) -> LayerMemory:
        """Count the bytes of the fused kernels."""
        E, N = self.inner_width, self.num_states
        rows = 2 * 4 * (N + N % 2)  # B and C in float32
        tile = 64 if E > 32 else 32
        return LayerMemory(
            # x and z, convolution, delta and its low rank, B and C, states of segments, output of the scan
            kept=item * (2 * E + E + E + self.delta_rank) + rows + 4 * E * N / SEGMENT + item * E,
            # gradients of x and z, of the convolution, of delta, of the scan's output; partial sums of those of B and C
            working=item * (2 * E + E + E + E) + 2 * 4 * N * -(-E // tile) + rows,
            state=E * N * 4 + E * (self.num_taps - 1) * item,
        )

    def unfit_for_triton(self) -> str:
        """Say why the fused kernels cannot run it."""
        if self.num_states > MAX_STATES or not 2 <= self.num_taps <= MAX_TAPS:
            return f"at most {MAX_STATES} states and 2 to {MAX_TAPS} taps fit"
        return ""
