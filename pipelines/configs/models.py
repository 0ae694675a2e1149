"""What import and export are asked to do."""

from dataclasses import dataclass
from pathlib import Path

from dna_mamba.errors import InputError
from dna_mamba.model.checkpoints.formats import FORMATS, TRANSFORMERS


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """What to read and where to write."""

    checkpoint: Path
    out: Path
    token_ids: tuple[int, ...] | None = None
    """Its ids of A, C, G, T and N; without them it has ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What to write and for whom."""

    model: Path
    out: Path
    format: str = TRANSFORMERS

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"--format {self.format!r} is unknown; choose {' or '.join(FORMATS)}")
