"""Complete configurations, one function each."""

from dataclasses import replace

from dna_mamba.errors import InputError, nearest
from dna_mamba.model.config import BackboneConfig
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


PRESETS = {"demo": demo, "small": small, "mamba": mamba, "mamba-long": mamba_long}


def preset(name: str) -> PretrainConfig:
    """Find a preset by name."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown{nearest(name, PRESETS)}; choose {', '.join(PRESETS)}")
    return PRESETS[name]()
