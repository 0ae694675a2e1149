"""Checkpoints that are complete or absent, verified before use, and hold no pickle.

A checkpoint is a directory: tensors as safetensors, counters as JSON, and checksums.json with size and SHA-256 of each.
It is written beside its final name, synced, and renamed.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from dna_mamba.errors import InputError, check_regular
from dna_mamba.files import json_text, sync_directory, write_synced

CHECKSUMS = "checksums.json"
FORMAT_VERSION = 1
TENSOR_FILES = ("model", "optimizer", "rng")
NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    counters: dict[str, object]


def path_of_step(folder: Path, step: int) -> Path:
    """Name the checkpoint written after so many optimizer steps."""
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Give the checkpoints of a run, oldest first; unfinished ones have other names."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Read the step from a checkpoint's name."""
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def save(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; on any failure nothing is left and what was there is untouched.

    Raises:
        InputError: The disk is full or may not be written.
    """
    files = {f"{name}.safetensors": save_safetensors(getattr(checkpoint, name)) for name in TENSOR_FILES}
    counters = {"format_version": FORMAT_VERSION, **checkpoint.counters}
    files["counters.json"] = json_text(counters, indent=1).encode()
    checksums = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    files[CHECKSUMS] = json.dumps(checksums, indent=1).encode()
    final = path_of_step(folder, step)
    unfinished = folder / f".{final.name}.writing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in [*folder.glob(".step-*.writing"), *folder.glob(".step-*.deleting")]:  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        _check_space(folder, sum(map(len, files.values())))
        unfinished.mkdir()
        for name, content in files.items():
            write_synced(unfinished / name, content)
        sync_directory(unfinished)
        if final.exists():  # written before an interruption at the same step
            _delete(final)
        unfinished.rename(final)
        sync_directory(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the disk is full while saving {final}; free space and run again with --resume"
            ) from error
        raise InputError(f"cannot save {final}: {error.strerror}; mend it and run again with --resume") from error
    return final


def _check_space(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < 1.2 * needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest checkpoints and the best, after the newest was verified."""
    paths = list_checkpoints(folder)
    if len(paths) <= keep:
        return
    verify(paths[-1])
    for path in paths[:-keep]:
        if step_of(path) != best_step:
            _delete(path)


def _delete(path: Path) -> None:
    """Take the name away first: a checkpoint under its name is whole."""
    leaving = path.with_name(f".{path.name}.deleting")
    shutil.rmtree(leaving, ignore_errors=True)
    path.rename(leaving)
    shutil.rmtree(leaving)


def verify(path: Path) -> dict[str, bytes]:
    """Read the files of a checkpoint and compare each with its SHA-256.

    Raises:
        InputError: A file is missing, cut or changed; the message names it.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} is no checkpoint: expected a directory with {CHECKSUMS}; pickled checkpoints are not read"
        )
    try:
        checksums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in checksums.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"checkpoint {path} has no readable {CHECKSUMS}, so it cannot be trusted") from error
    needed = {f"{name}.safetensors" for name in TENSOR_FILES} | {"counters.json"}
    if set(expected) != needed:
        raise InputError(f"checkpoint {path}: {CHECKSUMS} lists {sorted(expected)}, expected {sorted(needed)}")
    files = {}
    for name, (size, sha256) in expected.items():
        check_regular(path / name, "a file of the checkpoint")
        try:
            content = (path / name).read_bytes()
        except OSError as error:
            raise InputError(f"checkpoint {path}: {name} cannot be read ({error.strerror})") from error
        if len(content) != size:
            raise InputError(
                f"checkpoint {path}: {name} has {len(content):,} bytes, expected {size:,}; it was cut or edited"
            )
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InputError(f"checkpoint {path}: {name} does not match its SHA-256; it was damaged or edited")
        files[name] = content
    return files


def step_of_counters(path: Path) -> int:
    """Give the step that the counters of a checkpoint must say: the one in its name, set aside or not."""
    match = re.match(r"step-(\d{8,})", path.name)
    if match is None:
        raise InputError(f"{path} is no checkpoint by its name; expected step- and the number of its step")
    return int(match[1])


def load(path: Path) -> Checkpoint:
    """Verify and read a checkpoint.

    Raises:
        InputError: A file is damaged, of a newer format, or holds something else than a checkpoint does.
    """
    files = verify(path)
    try:
        tensors = {name: load_safetensors(files[f"{name}.safetensors"]) for name in TENSOR_FILES}
        counters = json.loads(files["counters.json"])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"checkpoint {path} cannot be read: {error}") from error
    if (
        not isinstance(counters, dict)
        or type(counters.get("step")) is not int
        or counters["step"] != step_of_counters(path)
    ):
        raise InputError(f"checkpoint {path}: counters.json does not say the step of its name")
    version = counters.pop("format_version", FORMAT_VERSION)  # of 0.1 before it was written
    if version != FORMAT_VERSION:
        raise InputError(f"checkpoint {path} has format version {version!r}, this dna-mamba reads {FORMAT_VERSION}")
    return Checkpoint(counters=counters, **tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Give the state of every parameter as 'exp_avg.NAME' and so on; names maps id(parameter) to its name."""
    return {
        f"{key}.{names[id(parameter)]}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
    where: str,
) -> None:
    """Put the state of every parameter back."""
    if not tensors:
        return
    for name, parameter in parameters:
        state = {}
        keys = ("step", "exp_avg", "exp_avg_sq")
        if not any(f"{key}.{name}" in tensors for key in keys):
            continue  # it never had a gradient
        for key in keys:
            value = tensors.get(f"{key}.{name}")
            expected = parameter.shape if key != "step" else torch.Size([])
            if value is None or value.shape != expected or not bool(value.isfinite().all()):
                raise InputError(f"{where}: the optimizer state of {name!r} is missing, misshapen or not finite")
            state[key] = value.to(parameter.device).clone()
        optimizer.state[parameter] = state


def rng_tensors() -> dict[str, Tensor]:
    """Give the state of torch's random number generators as bytes."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # asking would make a context, which a run on the CPU has no use for
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def load_rng_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Set torch's random number generators."""
    try:
        torch.set_rng_state(tensors["cpu"])
        if "cuda" in tensors and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(tensors["cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{where}: rng.safetensors does not hold the state of torch's random numbers") from error


def newest_intact(folder: Path, offer: str = "go on from the one before it with --resume-from {}") -> Checkpoint | None:
    """Load the newest checkpoint of a run; none if there is none.

    Args:
        folder: Holds the checkpoints.
        offer: What to do if it is damaged; {} stands for the newest that is intact.

    Raises:
        InputError: It is damaged; the message names the newest one that is intact.
    """
    paths = list_checkpoints(folder)
    if not paths:
        return None
    try:
        return load(paths[-1])
    except InputError as error:
        intact = next((path for path in reversed(paths[:-1]) if _is_intact(path)), None)
        words = offer.format(intact) if intact else "no other checkpoint is intact"
        raise InputError(f"{error}; {words}") from error


def _is_intact(path: Path) -> bool:
    try:
        verify(path)
    except InputError:
        return False
    return True


def set_aside(paths: Sequence[Path]) -> None:
    """Rename checkpoints that a run will not use any more, so that they are never taken for its newest."""
    for path in paths:
        number = 1
        while (aside := path.with_name(f"{path.name}.set-aside-{number}")).exists():
            number += 1
        path.rename(aside)
