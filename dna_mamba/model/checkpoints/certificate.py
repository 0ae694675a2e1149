# Shapes: T positions, D model width, E inner width, N states, K taps, R rank of delta, V vocabulary
"""A second reading of a Mamba checkpoint: its logits from its own tensors, by the equations, in float64.

Sizes are those of the tensors and no configuration is asked, so that a fault in reading one shows. It needs no other package.
Source: Gu and Dao 2023 (arXiv 2312.00752), algorithm 2; RMSNorm: Zhang and Sennrich 2019, equation 4.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def _norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps) * weight_D


def _mamba(x_TD: Tensor, of: Mapping[str, Tensor]) -> Tensor:
    E, N = of["A_log"].shape
    K, R = of["conv1d.weight"].shape[-1], of["dt_proj.weight"].shape[1]
    u_TE, z_TE = (x_TD @ of["in_proj.weight"].T).split(E, dim=-1)
    padded = F.pad(u_TE.T[None], (K - 1, 0))
    u_TE = F.silu(F.conv1d(padded, of["conv1d.weight"], of.get("conv1d.bias"), groups=E)[0].T)
    delta_TR, B_TN, C_TN = (u_TE @ of["x_proj.weight"].T).split([R, N, N], dim=-1)
    delta_TE = F.softplus(delta_TR @ of["dt_proj.weight"].T + of["dt_proj.bias"])
    A_EN = -of["A_log"].exp()
    h_EN = torch.zeros_like(A_EN)
    rows = []
    for delta_E, u_E, B_N, C_N in zip(delta_TE, u_TE, B_TN, C_TN, strict=True):
        h_EN = (delta_E[:, None] * A_EN).exp() * h_EN + (delta_E * u_E)[:, None] * B_N
        rows.append(h_EN @ C_N + of["D"] * u_E)
    return (torch.stack(rows) * F.silu(z_TE)) @ of["out_proj.weight"].T


@torch.no_grad()
def naive_logits(tensors: Mapping[str, Tensor], tokens_T: Tensor, eps: float) -> Tensor:
    """Give logits_TV of a sequence of the checkpoint's own token ids, float64.

    Args:
        tensors: By the names of state-spaces/mamba; a tied head may lack.
        tokens_T: Ids of the checkpoint's vocabulary.
        eps: Of the norms.

    Raises:
        KeyError: A tensor is missing.
        RuntimeError: Shapes do not fit each other.
    """
    own = {name: tensor.double() for name, tensor in tensors.items()}
    embedding_VD = own["backbone.embedding.weight"]
    layers = 1 + max(int(name.split(".")[2]) for name in own if name.startswith("backbone.layers."))
    x_TD = embedding_VD[tokens_T]
    for number in range(layers):
        prefix = f"backbone.layers.{number}."
        of = {name.removeprefix(prefix + "mixer."): tensor for name, tensor in own.items() if name.startswith(prefix)}
        x_TD = x_TD + _mamba(_norm(x_TD, own[prefix + "norm.weight"], eps), of)
    head_VD = own.get("lm_head.weight", embedding_VD)
    return _norm(x_TD, own["backbone.norm_f.weight"], eps) @ head_VD.T
