"""A run is a directory that says how to repeat it."""

import functools
import json
import platform
import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dna_mamba.data.splits import Split
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.errors import InputError

PACKAGES = ("dna-mamba", "torch", "lightning", "numpy", "numba", "safetensors", "triton")


WRITTEN = {
    *("config.yaml", "run.json", "run.lock", "metrics.csv", "speed.csv", "unusual.csv", "results.json"),
    *("loss.png", "report.png", "accuracy.png", "checkpoints", "model", "model-last", "tensorboard", "lengths"),
}
"""Names of all that stands in a run directory; one with anything else is never overwritten."""


def _is_run(path: Path) -> bool:
    try:
        return bool(json.loads((path / "run.json").read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return (path / "config.yaml").exists() and not (path / "run.json").exists()


def next_free(command: str) -> Path:
    """Name the first of runs/<command>-001, -002, ... that does not exist."""
    number = 1
    while (path := Path("runs") / f"{command}-{number:03d}").exists():
        number += 1
    return path


def prepare(path: Path, *, resume: bool, overwrite: bool) -> FileLock:
    """Make a run directory, or take one over, and lock it against other processes.

    Raises:
        InputError: It exists and neither resume nor overwrite was asked for, it is in use, or it cannot be made.
    """
    filled = _check_out(path, resume=resume, overwrite=overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / "run.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is working in {path}; wait for it or choose another --out") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    if filled and overwrite and not resume:
        for entry in path.iterdir():
            if entry.name != "run.lock":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return lock


def _check_out(path: Path, *, resume: bool, overwrite: bool) -> bool:
    """Refuse a directory that cannot be used so; say whether it holds anything."""
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"--out {path} is a file; choose a directory")
    except OSError as error:
        raise InputError(f"--out {str(path)[:80]!r} cannot be used: {error.strerror}; choose another") from error
    filled = path.is_dir() and any(entry.name != "run.lock" for entry in path.iterdir())
    if filled and not (resume or overwrite):
        raise InputError(
            f"--out {path} exists; pass --resume to go on with it, --overwrite to replace it, or choose another"
        )
    if filled and overwrite and not resume and not _is_ours(path):
        raise InputError(
            f"--out {path} exists and is no run, or holds other files, so it is not overwritten; choose another"
        )
    if resume and not (path / "config.yaml").exists():
        raise InputError(f"--resume: {path} holds no run to go on with (no config.yaml in it)")
    return filled


def _is_ours(path: Path) -> bool:
    return _is_run(path) and not {entry.name for entry in path.iterdir()} - WRITTEN


@functools.cache  # every checkpoint writes them, and metadata takes 30 ms to read
def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages a run depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, object]:
    """Say what machine this is."""
    found: dict[str, object] = {
        "device": device,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return found


def describe_genome(genome: GenomeStore) -> dict[str, object]:
    """Say which genome this is, so that another can tell whether theirs is the same."""
    return {
        "store": str(genome.path),
        "sources": [asdict(source) for source in genome.manifest.sources],
        "bases_sha256": genome.manifest.bases_sha256,
        "contigs": len(genome.contigs),
        "bases": genome.num_bases,
    }


def describe_split(split: Split) -> dict[str, list[list[object]]]:
    """List the intervals of each part as [contig, start, end], 0-based, end excluded."""
    return {name: [[i.contig, i.start, i.end] for i in split.part(name)] for name in ("train", "valid", "test")}
