"""What fine-tuning for species is asked to do."""

from dataclasses import dataclass, field

from dna_mamba.errors import InputError, nearest
from dna_mamba.pipelines.configs.finetune import FinetuneRunConfig
from dna_mamba.pipelines.labelled_genomes import LabelledDataConfig
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.recipe import FinetuneConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LikelihoodRatioConfig:
    """How the model of each class is trained, from where the classifier begins."""

    steps: int = 0
    """Of each class; 0 leaves this baseline out."""
    batch: int = 8
    peak_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 10**9 or not 1 <= self.batch <= 10**6 or not 0 < self.peak_rate < 1:
            raise InputError(
                f"likelihood_ratio: steps {self.steps} must not be negative, batch {self.batch} at least 1, peak_rate "
                f"{self.peak_rate} between 0 and 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeciesEvaluationConfig:
    """What is scored."""

    valid_windows: int = 1000
    """After each epoch; the best epoch is kept."""
    test_windows: int = 2000
    """Once, at the end."""
    seed: int = 0
    """Of the windows to validate and test on; they do not depend on the seed of the training."""
    baseline_windows: int = 4000
    """Training windows of the k-mer and GC baselines; 0 leaves them out."""
    likelihood_ratio: LikelihoodRatioConfig = field(default_factory=LikelihoodRatioConfig)
    repeats_stripped: bool = True
    """Score windows with few soft-masked bases too, where all assemblies are soft-masked."""

    def __post_init__(self) -> None:
        for name in ("valid_windows", "test_windows"):
            if not 2 <= getattr(self, name) <= 10**7:
                raise InputError(f"evaluation: {name} {getattr(self, name)} must lie between 2 and 10,000,000")
        if not 0 <= self.seed < 2**62:
            raise InputError(f"evaluation: seed {self.seed} must lie between 0 and 2^62")
        if not 0 <= self.baseline_windows <= 10**7:
            raise InputError(f"evaluation: baseline_windows {self.baseline_windows} must lie between 0 and 10,000,000")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSpeciesConfig(FinetuneRunConfig):
    """Fine-tuning for species, or any other labels of genomes, in full."""

    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    evaluation: SpeciesEvaluationConfig = field(default_factory=SpeciesEvaluationConfig)

    def __post_init__(self) -> None:
        if not self.data.manifest:
            raise InputError(
                "finetune species needs --manifest: a YAML file, or great-apes or hyenadna-5 from the package"
            )
        FinetuneRunConfig.__post_init__(self)


def paper(manifest: str) -> FinetuneSpeciesConfig:
    """The Mamba paper's recipe; only the vectors are standardized, which the paper does not do."""
    evaluation = SpeciesEvaluationConfig(likelihood_ratio=LikelihoodRatioConfig(steps=256))
    return FinetuneSpeciesConfig(data=LabelledDataConfig(manifest=manifest), evaluation=evaluation)


def small(manifest: str) -> FinetuneSpeciesConfig:
    """Minutes on two CPU cores: mean pooling, 4 epochs of 75 steps of 8 windows, from the model in the package."""
    return FinetuneSpeciesConfig(
        preset="small",
        data=LabelledDataConfig(manifest=manifest),
        checkpoint="human-4x64",
        pooling="mean",
        recipe=FinetuneConfig(
            seq_len=1024,
            epochs=4,
            steps_per_epoch=75,
            batch=8,
            optimizer=OptimizerConfig(peak_rate=3e-3, final_rate=1e-5, warmup_share=0.1, fewest_warmup_steps=0),
        ),
        evaluation=SpeciesEvaluationConfig(valid_windows=200, test_windows=600, baseline_windows=3000),
    )


PRESETS = {"paper": paper, "small": small}


def preset(name: str, manifest: str) -> FinetuneSpeciesConfig:
    """Find a preset by name."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown{nearest(name, PRESETS)}; choose {', '.join(PRESETS)}")
    return PRESETS[name](manifest)
