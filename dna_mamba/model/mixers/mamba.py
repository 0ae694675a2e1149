# Shapes: B sequences, T positions, D model width, E inner width, N states, K taps, R rank of delta
"""The Mamba mixer (S6), letter M."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dna_mamba.errors import InputError
from dna_mamba.kernels.causal_conv1d import causal_conv1d_step
from dna_mamba.kernels.mamba_inner import mamba_inner, mamba_inner_states
from dna_mamba.kernels.selective_scan import selective_scan_step


@dataclass(frozen=True, kw_only=True, slots=True)
class MambaConfig:
    """Sizes of a Mamba layer; the defaults are the paper's."""

    num_states: int = 16
    expansion: int = 2
    """Inner width over model width."""
    num_taps: int = 4
    """Length of the causal convolution in bases."""
    delta_min: float = 1e-3
    delta_max: float = 0.1
    """The step sizes are initialised log-uniform between these two."""

    def __post_init__(self) -> None:
        if not (1 <= self.num_states <= 1024 and 1 <= self.expansion <= 64 and 2 <= self.num_taps <= 64):
            raise InputError("mamba: num_states must lie in 1 to 1024, expansion in 1 to 64 and num_taps in 2 to 64")
        if not 0 < self.delta_min <= self.delta_max < math.inf:
            raise InputError(f"mamba: delta_min {self.delta_min} and delta_max {self.delta_max} must be 0 < min <= max")

    def build(self, width: int) -> "MambaMixer":
        """Make a layer for this model width."""
        return MambaMixer(width, self)


class MambaState(NamedTuple):
    """All that the past means to the future of a Mamba layer."""

    conv_BKE: Tensor
    """The last K - 1 inputs of the convolution."""
    scan_BEN: Tensor
    """State of the scan, float32."""


class MambaMixer(nn.Module):
    """Convolve, then scan with step sizes, input and output weights that the sequence itself chooses.

    Parameter names, shapes and initialisation equal those of state-spaces/mamba (`mamba_simple.py`), so that
    checkpoints pass in both directions. Source: Gu and Dao 2023 (arXiv 2312.00752), algorithm 2 and figure 3.
    """

    def __init__(self, width: int, config: MambaConfig):
        super().__init__()
        self.inner_width = config.expansion * width
        self.delta_rank = math.ceil(width / 16)
        self.num_states = config.num_states
        self.implementation = "auto"
        E, R, N = self.inner_width, self.delta_rank, self.num_states
        self.in_proj = nn.Linear(width, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.num_taps, groups=E)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, N + 1, dtype=torch.float32)).repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, width, bias=False)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(R**-0.5), R**-0.5)
            log_min, log_max = math.log(config.delta_min), math.log(config.delta_max)
            delta_E = torch.exp(torch.rand(E) * (log_max - log_min) + log_min).clamp(min=1e-4)
            # the inverse of softplus
            self.dt_proj.bias.copy_(delta_E + torch.log(-torch.expm1(-delta_E)))

    def forward(self, x_BTD: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Mix along the positions; the state of the previous piece in, the state for the next piece out."""
        y_BTE, conv_BKE, scan_BEN = mamba_inner(
            self.in_proj(x_BTD),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            -torch.exp(self.A_log.float()),
            self.D,
            conv_state=None if state is None else state.conv_BKE,
            scan_state=None if state is None else state.scan_BEN,
            implementation=self.implementation,
        )
        return self.out_proj(y_BTE), MambaState(conv_BKE, scan_BEN)

    def forward_with_states(
        self, x_BTD: Tensor, state: MambaState | None, segments_S: Tensor
    ) -> tuple[Tensor, MambaState, MambaState]:
        """Mix one sequence as `forward` does, and give the states before positions 16 s too; on a GPU, without gradients."""
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
            conv_state=None if state is None else state.conv_BKE,
            scan_state=None if state is None else state.scan_BEN,
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

    def step(self, x_BD: Tensor, state: MambaState) -> Tensor:
        """Mix one position; the state is changed in place. Without gradients."""
        x_BE, z_BE = self.in_proj(x_BD).chunk(2, dim=-1)
        x_BE = causal_conv1d_step(
            state.conv_BKE,
            x_BE,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            implementation=self.implementation,
        )
        delta_BR, B_BN, C_BN = self.x_proj(x_BE).split([self.delta_rank, self.num_states, self.num_states], dim=-1)
        y_BE = selective_scan_step(
            state.scan_BEN,
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
