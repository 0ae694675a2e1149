"""What a pretraining run is asked to do."""

from dataclasses import dataclass, field

from dna_mamba.data.length_warmup import lengths
from dna_mamba.data.selection import MAX_ORDER, TEST_BASES, DataConfig
from dna_mamba.device import check_device, check_precision
from dna_mamba.errors import InputError
from dna_mamba.kernels.implementations import IMPLEMENTATIONS
from dna_mamba.model.config import BackboneConfig
from dna_mamba.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How long, in which steps, and what is kept."""

    seq_len: int = 1024
    steps: int | None = None
    """Optimizer steps; without it the base budget decides."""
    base_budget: int = 2**23
    """Bases to train on when the steps are not given."""
    bases_per_step: int = 2**13
    """At least one window a step, so a longer seq_len raises it."""
    length_warmup: str = "mamba"
    piece_bases: int | None = None
    """Positions computed at once; longer windows go in pieces with carried state, shorter ones are batched up to this.
    None chooses from the free memory of the GPU, and 16,384 on a CPU; the run keeps what was chosen."""
    kept_pieces: int | None = None
    """How many pieces of a window, the last ones, are computed only once; those before are computed again in the backward.
    None chooses from the free memory, or is 1 where piece_bases is given."""
    recomputed_layers: int | None = None
    """Layers, the first ones, whose activations are computed again in the backward (activation checkpointing).
    None chooses from the free memory, or is 0 where piece_bases is given."""
    checkpoint_every_steps: int = 200
    validate_every_steps: int = 200
    keep_checkpoints: int = 3

    def __post_init__(self) -> None:
        lengths(self.length_warmup, self.seq_len)
        for name in ("bases_per_step", "base_budget", "checkpoint_every_steps", "validate_every_steps", "steps"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 2**50:
                raise InputError(f"training: {name} {value} must lie between 1 and 2^50")
        if self.keep_checkpoints < 2:
            raise InputError("training: keep_checkpoints must be at least 2")
        if self.piece_bases is not None and not 16 <= self.piece_bases <= 2**40:
            raise InputError(f"training: piece_bases {self.piece_bases} must lie between 16 and 2^40")
        if self.kept_pieces is not None and not 1 <= self.kept_pieces <= 2**40:
            raise InputError(f"training: kept_pieces {self.kept_pieces} must be at least 1")
        if self.recomputed_layers is not None and not 0 <= self.recomputed_layers <= 2**40:
            raise InputError(f"training: recomputed_layers {self.recomputed_layers} must not be negative")

    @property
    def real_bases_per_step(self) -> int:
        """Bases of an optimizer step of the last stage, in whole windows; other stages differ by less than a window."""
        return max(1, self.bases_per_step // self.seq_len) * self.seq_len

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.steps if self.steps is not None else max(1, self.base_budget // self.real_bases_per_step)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How many held-out bases are read."""

    valid_bases: int = 2**20
    """At most so many A, C, G and T at each validation, spread over the part."""
    test_bases: int = TEST_BASES
    """At most so many in the final table, spread over the part."""
    markov_max_order: int = 12
    """Largest order of the Markov models in the final table; -1 leaves them out."""

    def __post_init__(self) -> None:
        if min(self.valid_bases, self.test_bases) < 2:
            raise InputError("evaluation: valid_bases and test_bases must be at least 2")
        if not -1 <= self.markov_max_order <= MAX_ORDER:
            raise InputError(
                f"evaluation: markov_max_order {self.markov_max_order} must lie between -1 and {MAX_ORDER}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Everything a pretraining run depends on."""

    preset: str = "demo"
    """Where the values came from; for the record."""
    model: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "auto"
    """auto, fp32 or bf16; auto is bf16 on a GPU and fp32 on a CPU."""
    implementation: str = "auto"
    """Kernels: auto, naive, cpu or triton."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)
        check_precision(self.precision)
        if self.implementation not in IMPLEMENTATIONS:
            raise InputError(f"implementation {self.implementation!r} is unknown; choose {', '.join(IMPLEMENTATIONS)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} must lie between 0 and 2^63 - 1")
