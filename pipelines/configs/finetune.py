"""What fine-tuning is asked to do, whatever the task."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from dna_mamba.device import check_device, check_precision
from dna_mamba.errors import InputError, nearest
from dna_mamba.model.config import POOLINGS, BackboneConfig
from dna_mamba.pipelines.config_files import load_yaml
from dna_mamba.training.recipe import FinetuneConfig
from dna_mamba.values import read_config

SCRATCH = BackboneConfig(pattern="M" * 12, width=128)
"""Trained where neither a checkpoint nor sizes are given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneRunConfig:
    """All of a fine-tuning run but its data and what is scored, which the config of a task adds."""

    preset: str = "paper"
    seq_lens: tuple[int, ...] = (1024,)
    """Window lengths, one model each."""
    checkpoint: str | None = None
    """Run or model directory to begin with, perhaps with {seq_len} in it; none trains from scratch."""
    model: BackboneConfig | None = None
    """Sizes from scratch, 12 x 128 if nothing is said; a checkpoint brings its own."""
    pooling: str = "last"
    frozen: bool = False
    """Train the head alone."""
    recipe: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(seq_len=1024))
    """Its seq_len is replaced by each of seq_lens."""
    piece_bases: int | None = None
    """Positions computed at once; none chooses from the memory of the GPU."""
    checkpoint_every_steps: int = 256
    num_workers: int | None = None
    """Processes that read windows; none are 2 for a GPU and 0 otherwise. The windows do not depend on it."""
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.pooling not in POOLINGS:
            raise InputError(
                f"pooling {self.pooling!r} is unknown{nearest(self.pooling, POOLINGS)}; choose {', '.join(POOLINGS)}"
            )
        if self.frozen and self.checkpoint is None:
            raise InputError("--frozen trains the head of a pretrained model; name one with --checkpoint")
        if self.checkpoint is not None and self.model is not None:
            raise InputError(
                f"model.* does nothing beside checkpoint {self.checkpoint!r}, which brings its own sizes; leave it out, or set "
                f"checkpoint=null to train from scratch"
            )
        if not self.seq_lens or len(set(self.seq_lens)) < len(self.seq_lens):
            raise InputError(f"seq_lens {list(self.seq_lens)} must be one or more different lengths")
        for length in self.seq_lens:
            self.recipe_of(length)
        if self.checkpoint_every_steps < 1:
            raise InputError(f"checkpoint_every_steps {self.checkpoint_every_steps} must be at least 1")
        if self.num_workers is not None and not 0 <= self.num_workers <= 1024:
            raise InputError(f"num_workers {self.num_workers} must lie between 0 and 1024")
        check_precision(self.precision)
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} must lie between 0 and 2^63 - 1")

    def recipe_of(self, length: int) -> FinetuneConfig:
        """Give the recipe at a window length."""
        return replace(self.recipe, seq_len=length)


Config = TypeVar("Config", bound=FinetuneRunConfig)


def config_of_run(kind: type[Config], out: Path) -> Config:
    """Read the configuration of a run."""
    path = out / "config.yaml"
    if not path.exists():
        raise InputError(f"--resume: {out} holds no run to go on with (no config.yaml in it)")
    values = load_yaml(path)
    if values.get("checkpoint") is not None:
        values["model"] = None  # runs of older versions wrote one down that was not used
    if isinstance(recipe := values.get("recipe"), dict):
        recipe.pop("piece_bases", None)  # so too
    return read_config(kind, values, str(path))
