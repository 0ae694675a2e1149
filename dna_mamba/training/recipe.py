"""The recipe of fine-tuning; loads no torch."""

from dataclasses import dataclass, field
from typing import ClassVar

from dna_mamba.errors import InputError
from dna_mamba.training.optimizer import OptimizerConfig

FIRST_LENGTH = 2**14
"""Where length warm-up begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """The recipe. The defaults are those of the Mamba paper (arXiv 2312.00752), appendix E.3.

    AdamW, 10 epochs of 1,024 steps, batch 64 at every length, 5 epochs of linear warm-up and 5 of cosine to 1e-6, 1e-4 at its
    peak; above 2^14 bases one epoch at each power of two first.
    """

    FORMERLY: ClassVar[dict[str, str]] = {"piece_bases": "piece_bases"}

    seq_len: int = field(default=1024, metadata={"instead": "seq_lens"})
    epochs: int = 10
    steps_per_epoch: int = 1024
    batch: int = 64
    """Windows of a step."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            peak_rate=1e-4, final_rate=1e-6, warmup_share=0.5, fewest_warmup_steps=0
        )
    )
    standardize_windows: int = 256
    """Training windows whose vectors give the head its zero and its unit; 0 leaves vectors as they are, as in the paper."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "epochs", "steps_per_epoch", "batch"):
            if not 1 <= getattr(self, name) <= 2**40:
                raise InputError(f"finetune: {name} {getattr(self, name)} must lie between 1 and 2^40")
        if not 0 <= self.standardize_windows <= 2**20 or self.standardize_windows == 1:
            raise InputError(
                f"finetune: standardize_windows {self.standardize_windows} must be 0, or lie between 2 and 2^20"
            )
        if len(self.epoch_lengths()) > self.epochs:
            raise InputError(
                f"finetune: {self.epochs} epochs are too few for length warm-up from {FIRST_LENGTH:,} to {self.seq_len:,} "
                f"bases; take at least {len(self.epoch_lengths())}"
            )

    def epoch_lengths(self) -> list[int]:
        """Give the window length of each epoch: above 2^14 one at each power of two from there, then full length."""
        first, length = [], FIRST_LENGTH
        while length < self.seq_len:
            first.append(length)
            length *= 2
        return first + [self.seq_len] * max(1, self.epochs - len(first))
