# Shapes: T positions, V vocabulary
"""Checkpoints of others: read into our format, written in theirs, and compared with transformers' own model."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dna_mamba.data.objectives import TokenPolicy
from dna_mamba.data.vocabulary import A
from dna_mamba.errors import InputError
from dna_mamba.files import json_text, whole_directory
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.mamba_ssm import (
    FORMATS,
    TRANSFORMERS,
    config_for,
    import_checkpoint,
    read_config,
    read_tensors,
    tensors_for,
)
from dna_mamba.model.checkpoints.native import from_pretrained, save_pretrained
from dna_mamba.pipelines.evaluate import find_model

PROBE_BASES = 512


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


@dataclass(frozen=True, kw_only=True)
class CheckpointResult:
    """What was written."""

    out: Path
    format: str
    """Of the other side."""
    num_parameters: int
    largest_difference: float | None
    """Of logits on a probe sequence, ours against transformers' model; none where transformers is not installed."""


def _new_directory(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"-o {out} exists; name a new directory")


def import_model(config: ImportConfig) -> CheckpointResult:
    """Read a checkpoint of state-spaces/mamba or transformers and write our model directory.

    Raises:
        InputError: The checkpoint cannot be read, differs from our model, or the output exists.
    """
    _new_directory(config.out)
    found = import_checkpoint(config.checkpoint, config.token_ids)
    difference = _against_transformers(found.model, config.checkpoint, found.format, config.token_ids)
    if difference is not None and not difference < 1e-2:
        raise InputError(
            f"{config.checkpoint}: logits differ by {difference:.3g} from those of transformers; nothing was written"
        )
    whole_directory(config.out, lambda path: save_pretrained(found.model, path, asdict(TokenPolicy())))
    return CheckpointResult(
        out=config.out, format=found.format, num_parameters=found.model.num_parameters(), largest_difference=difference
    )


def export_model(config: ExportConfig) -> CheckpointResult:
    """Write a model as state-spaces/mamba or transformers reads it.

    Raises:
        InputError: There is no model, it cannot be written so, or the output exists.
    """
    _new_directory(config.out)
    directory, _ = find_model(config.model)
    model, _ = from_pretrained(directory)
    values, tensors = config_for(model, config.format), tensors_for(model, config.format)

    def write(path: Path) -> None:
        path.mkdir()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        if config.format != TRANSFORMERS:
            torch.save(tensors, path / "pytorch_model.bin")  # the one file that its from_pretrained reads
        (path / "config.json").write_text(json_text(values, indent=1) + "\n", encoding="utf-8")

    whole_directory(config.out, write)
    difference = _against_transformers(model, config.out, config.format, None)
    return CheckpointResult(
        out=config.out, format=config.format, num_parameters=model.num_parameters(), largest_difference=difference
    )


@torch.no_grad()
def _against_transformers(model: DnaMamba, path: Path, kind: str, token_ids: tuple[int, ...] | None) -> float | None:
    """Give the largest difference of logits on random bases, the checkpoint read by transformers where it can be."""
    if find_spec("transformers") is None:
        return None
    try:
        return _difference(model, path, kind, token_ids)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: transformers cannot read it, so it cannot be compared: {first[:200]}") from error


def _difference(model: DnaMamba, path: Path, kind: str, token_ids: tuple[int, ...] | None) -> float:
    from transformers import MambaConfig, MambaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _, values, _, rows = read_config(path)
    if kind == TRANSFORMERS:
        theirs = MambaForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    else:
        values = config_for(model, TRANSFORMERS) | {"vocab_size": rows}
        theirs = MambaForCausalLM(
            MambaConfig(**{k: v for k, v in values.items() if k not in ("architectures", "dtype")})
        )
        tensors = {
            name.replace("embedding.", "embeddings."): tensor.float() for name, tensor in read_tensors(path).items()
        }
        theirs.load_state_dict(tensors, strict=True)
    ids = torch.tensor(token_ids if token_ids is not None else range(A, A + 5))
    probe_T = torch.randint(0, 5, (PROBE_BASES,), generator=torch.Generator().manual_seed(0))
    expected_TV: Tensor = theirs.eval()(ids[probe_T][None], use_cache=False).logits[0][:, ids]
    given_TV = model.use_implementation("cpu")(probe_T[None] + A)[0][0, :, A : A + 5]
    return float((given_TV - expected_TV).abs().max())
