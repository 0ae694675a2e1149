"""Complete configurations, one function each."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from dna_mamba.errors import InputError, nearest
from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.patterns import ARCHITECTURES, Architecture
from dna_mamba.pipelines.configs.pretrain import PretrainConfig, TrainingConfig
from dna_mamba.training.optimizer import OptimizerConfig


def demo() -> PretrainConfig:
    """A small model on the genome in the package, below five minutes on two CPU cores."""
    return PretrainConfig(
        preset="demo",
        model=BackboneConfig(pattern="M" * 4, width=64),
        # small steps learn more from the same 6.6 million bases than large ones: docs/benchmarks.md
        training=TrainingConfig(
            seq_len=1024,
            base_budget=3200 * 2**11,
            bases_per_step=2**11,
            validate_every_steps=400,
            checkpoint_every_steps=400,
        ),
        optimizer=OptimizerConfig(peak_rate=6e-3),
    )


def small() -> PretrainConfig:
    """A 12 x 128 model in small steps: for a laptop or a first look at a genome."""
    return PretrainConfig(
        preset="small",
        model=BackboneConfig(pattern="M" * 12, width=128),
        training=TrainingConfig(seq_len=1024, base_budget=2**27, bases_per_step=2**16),
        optimizer=OptimizerConfig(peak_rate=4e-3),
    )


def mamba() -> PretrainConfig:
    """The paper's size scaling: 2^20 bases a step, 10,000 steps. Source: Mamba, appendix E.3.2, figure 5 left."""
    return PretrainConfig(
        preset="mamba",
        model=BackboneConfig(pattern="M" * 12, width=128),
        training=TrainingConfig(seq_len=1024, base_budget=10_000 * 2**20, bases_per_step=2**20),
        optimizer=OptimizerConfig(peak_rate=8e-3),
    )


def mamba_long() -> PretrainConfig:
    """The paper's length scaling: 2^24 bases a step, 20,000 steps, up to 2^20 bases of context. Figure 5 right."""
    base = mamba()
    training = replace(base.training, seq_len=2**20, base_budget=20_000 * 2**24, bases_per_step=2**24)
    return replace(base, preset="mamba-long", training=training)


PEAK_RATES = {"mamba2": 8e-3, "transformer++": 2e-3, "mamba2-hybrid": 4e-3, "mamba-hybrid": 4e-3}
"""The best of the Mamba paper for Transformers (appendix E.3.2), Mamba's own for Mamba-2, and for hybrids one between."""


def _of_architecture(name: str) -> PretrainConfig:
    base = mamba()
    return replace(
        base,
        preset=name,
        model=ARCHITECTURES[name].model(12, 128),
        optimizer=replace(base.optimizer, peak_rate=PEAK_RATES[name]),
    )


def architecture_of(name: str) -> Architecture:
    """Give the kind of model that a preset trains."""
    return ARCHITECTURES.get(name, ARCHITECTURES["mamba"])


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "demo": demo, "small": small, "mamba": mamba, "mamba-long": mamba_long,
    **{name: partial(_of_architecture, name) for name in PEAK_RATES},
}  # fmt: skip


def preset(name: str) -> PretrainConfig:
    """Find a preset by name."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown{nearest(name, PRESETS)}; choose {', '.join(PRESETS)}")
    return PRESETS[name]()
