"""Our model directory: config.json and model.safetensors. Nothing in it is pickled, nothing executes on load."""

import hashlib
import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from dna_mamba.errors import InputError, check_regular
from dna_mamba.files import write_bytes
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.model.heads import HEADS
from dna_mamba.model.heads.classes import ClassHead
from dna_mamba.model.sequence_model import SequenceModel
from dna_mamba.values import Json, read_config

FORMAT_VERSION = 1
TrainedOn = dict[str, list[list[int]]]
"""Intervals by contig: [start, end], 0-based, end excluded."""
Fingerprints = dict[str, dict[str, str]]
"""Hashes of pieces by contig, as `dna_mamba.data.fingerprints` gives them."""
LANGUAGE_MODEL, CLASSIFIER = "dna-mamba", "dna-mamba-classifier"
TIED = "lm_head.weight"


def unshared_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Give parameters and buffers by name, in main memory, shared ones once."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def copy_tensors(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors into a model that has exactly these names and shapes.

    Raises:
        InputError: A tensor is missing, extra, misshapen or not finite; the message names the first.
    """
    tensors = dict(tensors)
    own = unshared_tensors(model)
    shared = set(model.state_dict()) - set(own)
    for name in shared & set(tensors):
        if not torch.equal(tensors.pop(name), tensors.get("backbone.embedding.weight", torch.empty(0))):
            raise InputError(f"{where}: {name!r} differs from the embedding, but in this model the two are one")
    other = "it belongs to a model of another configuration"
    for name, tensor in own.items():
        if name not in tensors:
            raise InputError(f"{where} lacks the tensor {name!r}; {other}")
        if tensors[name].shape != tensor.shape:
            raise InputError(
                f"{where}: {name!r} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}; {other}"
            )
        if not tensors[name].is_floating_point():
            raise InputError(f"{where}: {name!r} holds {tensors[name].dtype}, expected floating-point numbers")
        if not bool(tensors[name].isfinite().all()):
            raise InputError(
                f"{where}: {name!r} holds numbers that are not finite, so nothing could be computed with it; take another "
                f"checkpoint"
            )
    if extra := sorted(set(tensors) - set(own)):
        raise InputError(f"{where} has the unexpected tensor {extra[0]!r}; {other}")
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def save_pretrained(
    model: DnaMamba,
    path: Path,
    policy: dict[str, object],
    trained_bases: int | None = None,
    trained_on: TrainedOn | None = None,
    fingerprints: Fingerprints | None = None,
) -> None:
    """Write a model directory; each file is replaced whole.

    Args:
        model: The model.
        path: The directory; made if it is not there.
        policy: How its training treated N, strands and the ends of windows, as plain values.
        trained_bases: Longest window that it was trained on, if that is known.
        trained_on: Intervals that it was trained on by contig, 0-based, end excluded, if they are known.
        fingerprints: What each of these contigs is known again by, as `dna_mamba.data.fingerprints` gives it.
    """
    about: dict[str, object] = {"policy": policy} | ({} if trained_bases is None else {"trained_bases": trained_bases})
    about |= {} if trained_on is None else {"trained_on": trained_on}
    about |= {} if fingerprints is None else {"fingerprints": fingerprints}
    _save(model, path, {"model_type": LANGUAGE_MODEL, "backbone": model.config.as_dict(), **about})


def save_sequence_model(model: SequenceModel, path: Path, training: dict[str, object]) -> None:
    """Write the directory of a sequence model; each file is replaced whole.

    Args:
        model: The model; its head must be in HEADS to be read again.
        path: The directory; made if it is not there.
        training: What its windows were, as plain values: seq_len, manifest and so on.
    """
    head = model.head
    # classifiers are written as before there were other heads
    about = head.settings() if head.kind == ClassHead.kind else {"head": {"kind": head.kind, **head.settings()}}
    config = {"model_type": CLASSIFIER, "backbone": model.config.as_dict(), **about, "training": training}
    _save(model, path, config)


def _save(model: nn.Module, path: Path, config: dict[str, object]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    model_type = config.pop("model_type")
    config = {"model_type": model_type, "format_version": FORMAT_VERSION, "checksum": CHECKSUM, **config}
    write_bytes(path / "model.safetensors", with_checksum(unshared_tensors(model), config))
    write_bytes(path / "config.json", (json.dumps(config, indent=1) + "\n").encode())


CHECKSUM = "sha256 in model.safetensors"
NO_CHECKSUM = b"0" * 64


def _sha256_of(config: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def with_checksum(tensors: dict[str, Tensor], config: dict[str, object]) -> bytes:
    """Write tensors as a safetensors file whose metadata hold two SHA-256: of config.json, and of the file itself.

    The latter is that of the file with zeros in its place.
    """
    metadata = {"format": "pt", "config_sha256": _sha256_of(config), "sha256": NO_CHECKSUM.decode()}
    content = save_safetensors(tensors, metadata=metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    # safetensors writes metadata in a random order; the same tensors shall give the same bytes
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode().ljust(start - 8)
    content = content[:8] + text + content[start:]
    return content.replace(NO_CHECKSUM, hashlib.sha256(content).hexdigest().encode(), 1)


def check_checksum(content: bytes, config: dict[str, object], where: Path) -> None:
    """Compare a safetensors file, and the configuration beside it, with the SHA-256 in its metadata.

    Args:
        content: The file.
        config: Says whether there must be one; files of other programs have none and pass.
        where: Name of the file, for the message.

    Raises:
        InputError: They differ, or there is none.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
        about = header.get("__metadata__", {})
        expected = about.get("sha256")
    except (ValueError, AttributeError, RecursionError):
        return  # safetensors itself says what is wrong with it
    if not isinstance(expected, str) or len(expected) != len(NO_CHECKSUM):
        if config.get("checksum") == CHECKSUM:
            raise InputError(f"{where} has lost the SHA-256 in it: it was damaged or edited; take another copy")
        return
    digest = hashlib.sha256(content[:8] + content[8:start].replace(expected.encode(), NO_CHECKSUM, 1))
    digest.update(memoryview(content)[start:])
    if digest.hexdigest() != expected:
        raise InputError(f"{where} does not match the SHA-256 in it: it was damaged or edited; take another copy")
    if about.get("config_sha256", _sha256_of(config)) != _sha256_of(config):
        raise InputError(
            f"{where.parent / 'config.json'} does not match the SHA-256 in {where.name}: it was damaged or edited; take "
            f"another copy"
        )


SHIPPED = ("human-4x64",)
"""Models in the package, by name."""


def shipped(name: str) -> Path:
    """Give the directory of a model that ships in the package."""
    return Path(str(resources.files("dna_mamba") / "assets" / name))


def from_pretrained(path: str | os.PathLike[str]) -> tuple[DnaMamba, dict[str, object]]:
    """Load a model directory.

    Returns:
        The model on the CPU in evaluation mode, and the policy it was trained with, as plain values.

    Raises:
        InputError: The directory is none of ours, is damaged, or its tensors do not fit its configuration.
    """
    config, tensors, where = _read(Path(path), LANGUAGE_MODEL)
    model = DnaMamba(_backbone_config(config.get("backbone"), where, tensors))
    copy_tensors(model, tensors, where)
    policy = config.get("policy")
    if not isinstance(policy, dict):
        raise InputError(f"{where} lacks the policy (how N, strands and ends of windows were treated)")
    bases = config.get("trained_bases")
    model.trained_bases = bases if type(bases) is int else None
    model.trained_on = read_trained_on(config.get("trained_on"), where)
    model.fingerprints = read_fingerprints(config.get("fingerprints"), where)
    return model.eval(), policy


def read_trained_on(values: object, where: str) -> TrainedOn | None:
    """Read the intervals of a training; none where there are none.

    Raises:
        InputError: They are something else than intervals by contig.
    """
    if values is None:
        return None
    rows = [row for some in values.values() for row in some] if isinstance(values, dict) else []
    if not isinstance(values, dict) or not all(
        isinstance(row, list) and len(row) == 2 and all(type(x) is int for x in row) for row in rows
    ):
        raise InputError(f"{where}: trained_on must hold a list of [start, end] for each contig")
    return values


def read_fingerprints(values: object, where: str) -> Fingerprints | None:
    """Read the fingerprints of training contigs; none where there are none.

    Raises:
        InputError: They are something else than hashes of pieces by contig.
    """
    if values is None:
        return None
    if not isinstance(values, dict):
        raise InputError(f"{where}: fingerprints must hold hashes of pieces for each contig")
    for pieces in values.values():
        if not isinstance(pieces, dict) or not all(isinstance(text, str) for pair in pieces.items() for text in pair):
            raise InputError(f"{where}: fingerprints must hold hashes of pieces for each contig")
    return values


def can_be_read(path: Path, load: Callable[[Path], object]) -> bool:
    """Say whether `from_pretrained` or `load_sequence_model` would read a directory."""
    try:
        load(path)
    except InputError:
        return False
    return True


def load_sequence_model(path: str | os.PathLike[str]) -> tuple[SequenceModel, Json]:
    """Load the directory of a sequence model.

    Returns:
        The model on the CPU in evaluation mode, and what its windows were, as plain values.

    Raises:
        InputError: The directory is none of ours, is damaged, or its tensors do not fit its configuration.
    """
    config, tensors, where = _read(Path(path), CLASSIFIER)
    settings, training = config.get("head", {**config, "kind": ClassHead.kind}), config.get("training")
    if not isinstance(training, dict):
        raise InputError(f"{where} lacks the section 'training'")
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in HEADS:
        raise InputError(f"{where}: the head {kind!r} is unknown; this dna-mamba knows {', '.join(HEADS)}")
    backbone = _backbone_config(config.get("backbone"), where, tensors)
    model = SequenceModel(backbone, lambda width: HEADS[kind].read(width, settings, where))
    copy_tensors(model, tensors, where)
    return model.eval(), training


def load_classifier(path: str | os.PathLike[str]) -> tuple[SequenceModel, ClassHead, Json]:
    """Load a sequence model that tells classes apart; also its head, which has the labels.

    Raises:
        InputError: As `load_sequence_model`, and where the head is another.
    """
    model, training = load_sequence_model(path)
    if not isinstance(model.head, ClassHead):
        raise InputError(f"{path} answers with {model.head.kind!r}, not with classes; take a classifier")
    return model, model.head, training


def _read(path: Path, model_type: str) -> tuple[Json, dict[str, Tensor], str]:
    """Read both files of a model directory of this type."""
    file = path / "config.json"
    check_regular(file, "JSON")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is no model directory: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != model_type:
        kinds = {LANGUAGE_MODEL: "a language model (from pretrain)", CLASSIFIER: "a classifier (from finetune)"}
        is_other = f"is {kinds[found]}" if isinstance(found, str) and found in kinds else "is no dna-mamba model"
        raise InputError(
            f"{path} {is_other} by its config.json; {kinds[model_type]} is needed: model_type {model_type!r}"
        )
    if config.get("format_version") != FORMAT_VERSION or config["format_version"] is True:
        raise InputError(
            f"{file} has format version {config.get('format_version')!r}, this dna-mamba reads {FORMAT_VERSION}"
        )
    weights = path / "model.safetensors"
    check_regular(weights, "a safetensors file")
    try:
        content = weights.read_bytes()
        check_checksum(content, config, weights)
        return config, load_safetensors(content), str(path)
    except OSError as error:
        raise InputError(f"cannot read {weights}: {error.strerror}") from error
    except SafetensorError as error:
        raise InputError(f"{weights} is damaged or no safetensors file: {error}") from error


def check_size(config: BackboneConfig, tensors: dict[str, Tensor], where: str) -> None:
    """Refuse a configuration of another size than its weights before a model of that size is made."""
    found = sum(tensor.numel() for tensor in tensors.values())
    if config.num_parameters > 4 * found + 10**6:
        raise InputError(
            f"{where}: the configuration is one of {config.num_parameters:,} parameters, but the weights have {found:,}"
        )


def _backbone_config(values: object, where: str, tensors: dict[str, Tensor]) -> BackboneConfig:
    if not isinstance(values, dict):
        raise InputError(f"{where} lacks the section 'backbone'")
    config = read_config(BackboneConfig, values, where, "backbone")
    check_size(config, tensors, where)
    return config
