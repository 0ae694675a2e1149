# Shapes: T positions, V vocabulary
"""Checkpoints of others: read into our format, written in theirs, and compared with transformers' own model."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from dna_mamba.alphabet import A
from dna_mamba.data.objectives import TokenPolicy
from dna_mamba.errors import InputError, check_regular
from dna_mamba.files import whole_directory, write_bytes, write_json
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.certificate import naive_logits
from dna_mamba.model.checkpoints.mamba_ssm import (
    SIDE_FILE,
    TRANSFORMERS,
    config_for,
    import_checkpoint,
    read_config,
    read_tensors,
    tensors_for,
)
from dna_mamba.model.checkpoints.native import from_pretrained, read_fingerprints, read_trained_on, save_pretrained
from dna_mamba.pipelines.configs.models import ExportConfig, ImportConfig
from dna_mamba.pipelines.evaluate import find_model
from dna_mamba.values import Json
from dna_mamba.values import read_config as read_values

PROBE_BASES, CERTIFIED_BASES = 512, 200
LARGEST_DIFFERENCE = 1e-3
"""Of a logit, over the largest of all: float32 against float64 differs by some 1e-5."""


@dataclass(frozen=True, kw_only=True)
class CheckpointResult:
    """What was written."""

    out: Path
    format: str
    """Of the other side."""
    num_parameters: int
    largest_difference: float
    """Of logits on a probe sequence, over the largest: our model in float32 against a naive forward of the other side's own
    tensors in float64."""
    against_transformers: float | None
    """The same, in float32, against transformers' model; none where it could not be compared."""
    remarks: tuple[str, ...]
    """What was noticed beside, and why there is no comparison with transformers."""


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
    eps = found.model.config.norm_eps
    difference = _certified(found.model, found.tensors, config.token_ids, eps, config.checkpoint)
    policy, about = _side_file(config.checkpoint)
    whole_directory(config.out, lambda path: save_pretrained(found.model, path, asdict(policy), **about))
    against, remark = _against_transformers(found.model, config.checkpoint, found.format, config.token_ids)
    return CheckpointResult(
        out=config.out, format=found.format, num_parameters=found.model.num_parameters(), largest_difference=difference,
        against_transformers=against, remarks=(*remark, *_share_of_no_tokens(found.model)),
    )  # fmt: skip


def export_model(config: ExportConfig) -> CheckpointResult:
    """Write a model as state-spaces/mamba or transformers reads it, and beside it what their configurations have no place for.

    Raises:
        InputError: There is no model, it cannot be written so, or the output exists.
    """
    _new_directory(config.out)
    directory, _ = find_model(config.model)
    model, policy = from_pretrained(directory)
    values, tensors = config_for(model, config.format), tensors_for(model, config.format)
    about = {
        "policy": policy, "trained_bases": model.trained_bases, "trained_on": model.trained_on,
        "fingerprints": model.fingerprints,
    }  # fmt: skip

    differences = []

    def write(path: Path) -> None:
        path.mkdir()
        # made in memory: a disk that is full is then told by the system, not by the libraries in words of their own
        write_bytes(path / "model.safetensors", save_safetensors(tensors, metadata={"format": "pt"}))
        if config.format != TRANSFORMERS:
            pickled = io.BytesIO()
            torch.save(tensors, pickled)
            write_bytes(path / "pytorch_model.bin", pickled.getvalue())  # the one file that its from_pretrained reads
        write_json(path / "config.json", values)
        write_json(path / SIDE_FILE, about)
        read = import_checkpoint(path).tensors
        differences.append(_certified(model, read, None, model.config.norm_eps, config.out))

    whole_directory(config.out, write)
    against, remark = _against_transformers(model, config.out, config.format, None)
    if policy.get("start_token"):
        remark = (
            *remark,
            "the model was trained with a start token (id 2) before each window, which others must write too",
        )
    return CheckpointResult(
        out=config.out, format=config.format, num_parameters=model.num_parameters(), largest_difference=differences[0],
        against_transformers=against, remarks=(*remark, *_share_of_no_tokens(model)),
    )  # fmt: skip


def _certified(
    model: DnaMamba, tensors: Mapping[str, Tensor], token_ids: tuple[int, ...] | None, eps: float, where: Path
) -> float:
    """Compare with the equations on the other side's tensors; refuse what differs."""
    difference = _certificate(model, tensors, token_ids, eps)
    if not difference < LARGEST_DIFFERENCE:
        raise InputError(
            f"{where}: logits differ by {difference:.3g} from those of its own tensors by the equations of Mamba; nothing was "
            f"written"
        )
    return difference


def _side_file(checkpoint: Path) -> tuple[TokenPolicy, Json]:
    """Read what export wrote beside a checkpoint: policy, longest window and intervals of its training."""
    path = checkpoint / SIDE_FILE
    if not path.exists():
        return TokenPolicy(), {}
    check_regular(path, "JSON")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        bases = values.get("trained_bases")
        if not (bases is None or type(bases) is int):
            raise ValueError("a value of a wrong type")
        about = {
            "trained_bases": bases,
            "trained_on": read_trained_on(values.get("trained_on"), str(path)),
            "fingerprints": read_fingerprints(values.get("fingerprints"), str(path)),
        }
        return read_values(TokenPolicy, values["policy"], str(path)), about
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); move it away to import the weights alone") from error


def _probe(token_ids: tuple[int, ...] | None, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a sequence of A, C, G, T and N as our ids and as those of a checkpoint."""
    ids = torch.tensor(token_ids if token_ids is not None else range(A, A + 5))
    probe_T = torch.randint(0, 5, (length,), generator=torch.Generator().manual_seed(0))
    return probe_T + A, ids[probe_T]


@torch.no_grad()
def _certificate(
    model: DnaMamba, tensors: Mapping[str, Tensor], token_ids: tuple[int, ...] | None, eps: float
) -> float:
    """Give the largest difference of a logit of A, C, G, T and N from the naive forward of the tensors, in float64."""
    ours_T, theirs_T = _probe(token_ids, CERTIFIED_BASES)
    ids = list(token_ids if token_ids is not None else range(A, A + 5))
    try:
        expected_TV = naive_logits(tensors, theirs_T, eps)[:, ids]
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"the tensors are not those of a Mamba by its equations: {error}") from error
    given_TV = model.use_implementation("cpu")(ours_T[None])[0][0, :, A : A + 5]
    scale = max(1.0, float(expected_TV.abs().max()))
    return float((given_TV.double() - expected_TV).abs().max()) / scale


@torch.no_grad()
def _share_of_no_tokens(model: DnaMamba) -> tuple[str, ...]:
    """Say so where rows of the head that are no base take a share of the probability: others count them in losses."""
    ours_T, _ = _probe(None, CERTIFIED_BASES)
    share_TV = model.use_implementation("cpu")(ours_T[None])[0][0].softmax(-1)
    share = float(1 - share_TV[:, A : A + 5].sum(-1).mean())
    if share < 1e-3:
        return ()
    return (
        f"{share:.0%} of the probability lies on the rows that are no base (it was trained little, or import filled rows with "
        f"zeros, and the head is tied): our numbers count A, C, G and T alone, but losses and generate of transformers and "
        f"mamba_ssm count all 16 rows",
    )


def _against_transformers(
    model: DnaMamba, path: Path, kind: str, token_ids: tuple[int, ...] | None
) -> tuple[float | None, tuple[str, ...]]:
    """Give the largest difference of logits from transformers' model, or why there is none: never a reason to stop."""
    if find_spec("transformers") is None:
        return None, ()
    try:
        difference = _difference(model, path, kind, token_ids)
    except Exception as error:  # whatever that package, or one that it loads, runs into here
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return None, (f"not compared with transformers, which could not run it here: {first[:200]}",)
    if difference < LARGEST_DIFFERENCE:
        return difference, ()
    return difference, (
        f"transformers' own model of these files differs by {difference:.3g}; ours follows the equations of Mamba on the same "
        f"tensors",
    )


@torch.no_grad()
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
        tensors.setdefault("lm_head.weight", tensors["backbone.embeddings.weight"])  # tied heads may be stored once
        theirs.load_state_dict(tensors, strict=True)
    ids = list(token_ids if token_ids is not None else range(A, A + 5))
    ours_T, theirs_T = _probe(token_ids, PROBE_BASES)
    expected_TV: Tensor = theirs.eval()(theirs_T[None], use_cache=False).logits[0][:, ids]
    given_TV = model.use_implementation("cpu")(ours_T[None])[0][0, :, A : A + 5]
    return float((given_TV - expected_TV).abs().max() / expected_TV.abs().max().clamp(min=1))
