# Shapes: B sequences, T positions, D model width, H heads, J heads of keys and values, K channels of a head
"""Mamba-2, attention and MLP layers against the original programs, other libraries and their equations written out."""

import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dna_mamba.errors import InputError
from dna_mamba.model.config import AttentionConfig, BackboneConfig, Mamba2Config, MLPConfig
from dna_mamba.model.mixers.attention import attend
from tests.kernels.tolerances import relative_error

PARITY = Path(__file__).resolve().parents[1] / "parity"


def naive(config, width):
    torch.manual_seed(0)
    layer = config.build(width).double()
    layer.implementation = "naive"
    return layer


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({}, "out"),
        ({"gate_first": False}, "out_norm_before_gate"),
        ({"delta_limit_low": 0.01, "delta_limit_high": 0.05}, "out_dt_limit_001_005"),
    ],
)
def test_a_mamba2_layer_gives_the_numbers_of_the_original(changes, name):
    data = {key: x.double() for key, x in load_file(PARITY / "mamba2" / "block.safetensors").items()}
    layer = naive(Mamba2Config(num_states=128, num_groups=2, **changes), 64)
    weights = {key.removeprefix("weight."): x for key, x in data.items() if key.startswith("weight.")}
    assert layer.load_state_dict(weights, strict=True)
    u = data["u"].requires_grad_()
    out, _ = layer(u)
    assert relative_error(out, data[name]) < 1e-6
    if name == "out":
        (out * data["dout"]).sum().backward()
        given = {f"grad.{key}": parameter.grad for key, parameter in layer.named_parameters()} | {"grad_u": u.grad}
        for key, expected in data.items():
            if key.startswith("grad"):
                assert relative_error(given[key], expected) < 1e-6, key


def test_a_mamba2_layer_begins_as_the_original_does():
    torch.manual_seed(0)
    layer = Mamba2Config().build(2048)
    decay_H, delta_H = layer.A_log.exp(), torch.nn.functional.softplus(layer.dt_bias)
    assert layer.num_heads == 64 and 1 <= decay_H.min() < 3 and 14 < decay_H.max() <= 16
    assert 1e-3 <= delta_H.min() < 2e-3 and 0.05 < delta_H.max() <= 0.1 + 1e-6
    assert 0.2 < float((delta_H < 0.01).float().mean()) < 0.8  # log-uniform: half of them
    assert bool((layer.D == 1).all()) and bool((layer.norm.weight == 1).all())


def by_hand(q_BHTK, k_BJSK, v_BJSK, window=None):
    """Attention as its equation stands, one query at a time."""
    shared = q_BHTK.shape[1] // k_BJSK.shape[1]
    k_BHSK, v_BHSK = (x.repeat_interleave(shared, 1) for x in (k_BJSK, v_BJSK))
    S, T = k_BHSK.shape[2], q_BHTK.shape[2]
    rows = []
    for t in range(T):
        last = S - T + t
        first = 0 if window is None else max(0, last - window + 1)
        scores = torch.einsum("bhk,bhsk->bhs", q_BHTK[:, :, t], k_BHSK[:, :, first : last + 1])
        shares = torch.softmax(scores / math.sqrt(q_BHTK.shape[3]), -1)
        rows.append(torch.einsum("bhs,bhsk->bhk", shares, v_BHSK[:, :, first : last + 1]))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("T, S", [(1, 1), (9, 9), (1, 30), (7, 30)])
@pytest.mark.parametrize("window", [None, 1, 4, 30, 100])
@pytest.mark.parametrize("J", [1, 2, 4])
def test_attention_is_what_its_equation_says(T, S, window, J, monkeypatch):
    q, k, v = draw(2, 4, T, 6), draw(2, J, S, 6, seed=1), draw(2, J, S, 6, seed=2)
    expected = by_hand(q, k, v, window)
    assert relative_error(attend(q, k, v, window=window), expected) < 1e-12
    monkeypatch.setattr("dna_mamba.model.mixers.attention.MASK_ELEMENTS", 64)  # rows of two queries
    assert relative_error(attend(q, k, v, window=window), expected) < 1e-12


def rotated_by_hand(x_BTHK, width, base):
    """Rotate pairs (i, i + width / 2) of the first channels by position / base^(2 i / width)."""
    found = x_BTHK.clone()
    for t in range(x_BTHK.shape[1]):
        for i in range(width // 2):
            angle = t / base ** (2 * i / width)
            one, two = x_BTHK[:, t, :, i], x_BTHK[:, t, :, i + width // 2]
            found[:, t, :, i] = one * math.cos(angle) - two * math.sin(angle)
            found[:, t, :, i + width // 2] = one * math.sin(angle) + two * math.cos(angle)
    return found


@pytest.mark.parametrize("rotary", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("window", [None, 5])
def test_an_attention_layer_is_what_its_equations_say(rotary, window):
    base = {"rotary_base": 100.0} if rotary else {}
    config = AttentionConfig(num_heads=4, head_width=8, num_kv_heads=2, rotary=rotary, window=window, **base)
    layer, x_BTD = naive(config, 24), draw(2, 13, 24)
    q, k, v = (x_BTD @ layer.in_proj.weight.T).unflatten(-1, (8, 8)).split([4, 2, 2], 2)
    q, k = (rotated_by_hand(w, int(8 * rotary), 100.0) for w in (q, k))
    y_BHTK = by_hand(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), window)
    expected = y_BHTK.transpose(1, 2).flatten(2) @ layer.out_proj.weight.T
    assert relative_error(layer(x_BTD)[0], expected) < 1e-12


@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(head_width=8, rotary=1.0, window=6, num_taps=3),
        AttentionConfig(head_width=8, num_kv_heads=1, rotary=0.5),
        AttentionConfig(head_width=8, window=1, rotary=1.0),
        Mamba2Config(num_states=5, head_width=8, num_groups=2, skip_a_channel=True, gate_first=False),
    ],
    ids=["window, taps", "shared keys", "window of one", "Mamba-2"],
)
def test_pieces_and_steps_are_the_sequence_read_at_once(config):
    layer, x_BTD = naive(config, 24), draw(2, 40, 24)
    if hasattr(layer, "conv1d") and layer.conv1d is not None:
        torch.nn.init.normal_(layer.conv1d.bias)
    expected, _ = layer(x_BTD)
    for sizes in ([1, 4, 20, 15], [39, 1], [6, 6, 28]):
        state, found = None, []
        for part in x_BTD.split(sizes, 1):
            y, state = layer(part, state)
            found.append(y)
        assert relative_error(torch.cat(found, 1), expected) < 1e-10
    for read in (0, 3, 17):  # from a state of so many positions, with room for all that follow
        _, state = layer(x_BTD[:, :read]) if read else (None, layer.new_state(2, torch.float64))
        state = layer.step_state(state, 40)
        for t in range(read, 40):
            assert relative_error(layer.step(x_BTD[:, t], state), expected[:, t]) < 1e-6, (read, t)


def test_a_window_keeps_no_more_than_it_needs():
    layer = naive(AttentionConfig(head_width=8, window=6), 24)
    _, state = layer(draw(1, 40, 24))
    assert state.keys_BSJK.shape[1] == 5 and layer.step_state(state, 1000).keys_BCJK.shape[1] == 6


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)], ids=str)
def test_angles_of_a_million_positions_are_right(dtype, most):
    layer = AttentionConfig(head_width=8, rotary=1.0).build(8).to(dtype)  # positions and rates are not of that dtype
    x = torch.ones(1, 1, 1, 8, dtype=dtype)
    given = layer._rotated(x, torch.tensor([1_000_003]))[0, 0, 0]
    expected = torch.tensor([math.cos(1_000_003) - math.sin(1_000_003), math.cos(1_000_003) + math.sin(1_000_003)])
    assert given.dtype == dtype and torch.allclose(given[[0, 4]].float(), expected, atol=most)


@pytest.mark.parametrize("activation", ["gelu", "relu2", "swiglu"])
def test_an_mlp_is_what_its_equation_says(activation):
    layer, x = naive(MLPConfig(activation=activation, expansion=2.5), 8), draw(3, 5, 8)
    up = x @ layer.fc1.weight.T
    if activation == "gelu":
        hidden = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
    elif activation == "relu2":
        hidden = up.clamp(min=0) ** 2
    else:
        hidden = up[..., :20] * up[..., 20:] / (1 + torch.exp(-up[..., 20:]))
    assert relative_error(layer(x)[0], hidden @ layer.fc2.weight.T) < 1e-12


def test_widths_of_heads_and_hidden_layers():
    assert [AttentionConfig().num_heads_of(width) for width in (16, 64, 96, 128, 192, 256, 512)] == [
        1,
        2,
        3,
        4,
        6,
        4,
        8,
    ]
    assert [Mamba2Config().head_width_of(width) for width in (16, 64, 96, 118)] == [32, 64, 64, 4]
    gated = MLPConfig(activation="swiglu", expansion=8 / 3, round_to=128)
    assert [gated.hidden_width(width) for width in (64, 96, 128, 192)] == [256, 256, 384, 512]
    assert MLPConfig(expansion=8 / 3).hidden_width(96) == 256


CHANGES = {
    Mamba2Config: {
        "num_states": 8, "expansion": 1, "head_width": 8, "num_groups": 2, "num_taps": 3, "delta_min": 0.01, "delta_max": 0.5,
        "decay_min": 4.0, "decay_max": 3.0, "delta_limit_low": 0.2, "delta_limit_high": 0.002, "gate_first": False,
        "skip_a_channel": True,
    },
    AttentionConfig: {
        "num_heads": 1, "head_width": 4, "num_kv_heads": 1, "rotary": 0.5, "rotary_base": 10.0, "window": 2, "num_taps": 2,
    },
    MLPConfig: {"activation": "relu2", "expansion": 2.0, "round_to": 128},
}  # fmt: skip
USUAL = {Mamba2Config: {"head_width": 16}, AttentionConfig: {"head_width": 8, "rotary": 1.0}, MLPConfig: {}}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_size_acts(kind):
    assert set(CHANGES[kind]) == {one.name for one in fields(kind)}
    usual = naive(kind(**USUAL[kind]), 16)
    for name, value in CHANGES[kind].items():
        other = naive(kind(**{**USUAL[kind], name: value}), 16)
        shapes = [parameter.shape for parameter in other.parameters()]
        same = shapes == [parameter.shape for parameter in usual.parameters()]
        assert not same or not torch.allclose(other(draw(1, 9, 16))[0], usual(draw(1, 9, 16))[0]), name


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Mamba2Config(num_groups=3).build(64), "num_groups 3 must divide the 2 heads"),
        (lambda: Mamba2Config(num_states=0), "num_states must lie in"),
        (lambda: Mamba2Config(delta_limit_low=1.0, delta_limit_high=0.5), "0 <= low <= high"),
        (lambda: AttentionConfig(num_kv_heads=3).build(128), "num_kv_heads 3 must divide the 4 heads"),
        (lambda: AttentionConfig(window=0), "at least 1"),
        (lambda: AttentionConfig(rotary=1.5), "must lie in 0 to 1"),
        (lambda: AttentionConfig(rotary_base=5.0), "does nothing without rotary"),
        (lambda: AttentionConfig(head_width=8, rotary=0.1).build(64), "less than two of them"),
        (lambda: MLPConfig(activation="tanh"), "choose one of gelu, relu2, swiglu"),
        (lambda: MLPConfig(expansion=-1), "must lie in 0 to 64"),
        (lambda: BackboneConfig(pattern="MX"), "unknown letter 'X'.*M .Mamba., S .Mamba-2., . .attention., - .MLP."),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
