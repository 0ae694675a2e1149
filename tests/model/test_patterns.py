"""Patterns as people write them, and the architectures that papers compare, against published strings and counts."""

from dataclasses import replace

import pytest

from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.patterns import ARCHITECTURES, allocate, counts_of, parse_pattern
from dna_mamba.pipelines.presets import PRESETS, preset
from dna_mamba.pipelines.reports import _of_pattern
from dna_mamba.pipelines.settings import Asked
from dna_mamba.pipelines.settings import pretrain as settings


@pytest.mark.parametrize(
    "text, style, letters",
    [
        ("MMMM", "ours", "MMMM"),
        ("Mx4", "ours", "MMMM"),
        ("(SS-)x2*", "ours", "SS-SS-*"),
        ("M-M-A-M-", "ours", "M-M-*-M-"),
        ("((SS-)x2*)x2", "ours", "SS-SS-*SS-SS-*"),
        (" S S * ", "ours", "SS*"),
        ("M-M-*-M-", "megatron", "S-S-*-S-"),
        ("(M-)x3*", "megatron", "S-S-S-*"),
        ("Sx2*x3", "ours", "SS***"),
    ],
)
def test_a_pattern_is_read_as_it_is_meant(text, style, letters):
    assert parse_pattern(text, style) == letters


@pytest.mark.parametrize(
    "text, style, words",
    [
        ("", "ours", "is empty"),
        ("()", "ours", "is empty"),
        ("Mx0", "ours", "is empty"),
        ("MXM", "ours", "'X' stands for no layer"),
        ("m", "ours", "'m' stands for no layer"),
        ("S", "megatron", "'S' stands for no layer"),
        ("(MM", "ours", "opened and not closed"),
        ("MM)", "ours", "'\\)' stands for no layer"),
        ("x3", "ours", "'x3' stands for no layer"),
        ("Mx99999", "ours", "99,999 layers; take at most 4,096"),
        ("((Mx1000)x1000)x1000", "ours", "at most 4,096"),
        ("M" * 5000, "ours", "5,000 layers"),
        ("README.md", "ours", "stands for no layer"),
        ("M", "theirs", "choose ours or megatron"),
    ],
)
def test_what_is_no_pattern_is_told_in_one_line(text, style, words):
    with pytest.raises(InputError, match=words) as error:
        parse_pattern(text, style)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_the_allocation_gives_the_published_patterns():
    # Waleffe et al. 2024, and the example of Megatron-LM; their M is our S
    assert parse_pattern("M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-", "megatron") == allocate(
        56, 0.08, 0.5
    )
    assert parse_pattern("M-M-M--M-*M-M-M-M--*M-M-M-M-*M--M-M-M-*M-M--M-M-", "megatron") == allocate(48, 0.08, 0.5)
    assert counts_of(allocate(56, 0.08, 0.5)) == "28 MLP, 24 Mamba-2, 4 attention"


@pytest.mark.parametrize("num_layers", range(1, 100))
def test_attention_is_spread_and_never_first_or_last(num_layers):
    pattern = allocate(num_layers, 0.08, 0.5)
    assert len(pattern) == num_layers and pattern.count("*") == round(0.08 * num_layers)
    assert pattern.count("-") == round(0.5 * num_layers)
    if "*" in pattern:
        gaps = [len(part) for part in pattern.split("*")]
        assert min(gaps) > 0 and max(gaps) - min(gaps) <= 1


# Mamba paper, table of the DNA scaling; parameters with 16 rows of the embedding (mamba) and hidden widths rounded up to 128
SIZES = ((8, 64), (10, 96), (12, 128), (14, 192), (16, 256), (20, 384), (24, 512))
COUNTS = {
    "mamba": (262_720, 684_192, 1_401_472, 3_527_232, 7_012_608, 19_291_008, 40_694_272),
    "transformer++": (263_744, 555_552, 1_281_664, 3_102_528, 6_824_192, 17_708_928, 38_556_160),
}


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_have_the_parameters_that_were_counted_from_the_papers(name):
    given = [ARCHITECTURES[name].model(layers, width).num_parameters for layers, width in SIZES]
    assert tuple(given) == COUNTS[name]
    model = ARCHITECTURES[name].model(8, 64)
    assert DnaMamba(model).num_parameters() == model.num_parameters


def test_the_hybrid_of_eight_billion_has_its_parameters():
    hybrid = ARCHITECTURES["mamba2-hybrid"].model(56, 4096)
    hybrid = replace(
        hybrid,
        vocabulary_size=65_536,
        mamba2=replace(hybrid.mamba2, num_states=128, num_groups=8),
        attention=replace(hybrid.attention, num_heads=32, num_kv_heads=8),
    )
    # 109.6 M a Mamba-2 layer, 41.9 M an attention layer, 134.2 M an MLP (Megatron-LM); embedding and head are one here
    of_layers = hybrid.num_parameters - 65_536 * 4096
    assert abs(of_layers - (24 * 109.6e6 + 4 * 41.9e6 + 28 * 134.2e6)) < 3e6
    assert abs(of_layers + 2 * 256_000 * 4096 - 8.65e9) < 0.01e9


@pytest.mark.parametrize("name", PRESETS)
def test_a_size_goes_with_every_preset(name):
    config = settings(Asked(flags={}, model="16x64"), preset_name=name)
    assert config.preset == name and config.model.width == 64 and len(config.model.pattern) == 16
    expected = ARCHITECTURES.get(name, ARCHITECTURES["mamba"]).model(16, 64)
    assert config.model == expected
    assert preset(name).model.num_parameters > 0


def test_a_pattern_goes_with_its_style_and_not_with_a_size():
    config = settings(Asked(flags={}, pattern="(M-)x2*", pattern_style="megatron"), preset_name="small")
    assert config.model == BackboneConfig(pattern="S-S-*", width=128)
    with pytest.raises(InputError, match="give one of them"):
        settings(Asked(flags={}, pattern="M", model="4x64"))
    with pytest.raises(InputError, match="says how --pattern is read"):
        settings(Asked(flags={}, pattern_style="megatron"))
    with pytest.raises(InputError, match="15 layers are an odd number; take 16"):
        settings(Asked(flags={}, model="15x64"), preset_name="transformer++")


def test_a_hybrid_that_rounds_to_no_attention_says_so():
    few = settings(Asked(flags={}, model="6x64"), preset_name="mamba2-hybrid")
    assert _of_pattern(few) == [
        f"pattern {few.model.pattern}: 3 Mamba-2, 3 MLP; no attention among them, since its share of so few layers rounds to "
        f"none"
    ]
    enough = settings(Asked(flags={}, model="12x64"), preset_name="mamba2-hybrid")
    assert enough.model.pattern == "S-S-S-*-S-S-"
    assert _of_pattern(enough) == ["pattern S-S-S-*-S-S-: 6 MLP, 5 Mamba-2, 1 attention"]
    assert _of_pattern(settings(Asked(flags={}, model="12x64"), preset_name="mamba")) == []
