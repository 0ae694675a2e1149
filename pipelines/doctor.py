"""What this machine can do, and what is missing."""

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from dna_mamba.data.store.cache import cache_directory
from dna_mamba.kernels.dispatch import HAS_TRITON
from dna_mamba.kernels.selective_scan import selective_scan

TOLERANCE = 1e-5
"""Relative error of float32 kernels against the float64 reference; rounding leaves about 1e-7."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig:
    """How much disk should be free."""

    needed_disk_gib: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorResult:
    """All findings."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing needs mending."""
        return all(check.ok for check in self.checks)


def run(config: DoctorConfig) -> DoctorResult:
    """Look at versions, devices, memory and disk, and run a forward and backward against the reference."""
    checks = [
        Check(name="Python", ok=True, found=f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _torch(),
        _devices(),
        _triton(),
        _numba(),
        _memory(),
        _disk(config.needed_disk_gib),
        _kernel("cpu", torch.device("cpu")),
    ]
    if torch.cuda.is_available():
        checks.append(_kernel("naive", torch.device("cuda")))
        if HAS_TRITON:
            checks.append(_kernel("triton", torch.device("cuda")))
    return DoctorResult(checks=tuple(checks))


def _torch() -> Check:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU only"
    return Check(name="torch", ok=True, found=f"{torch.__version__} ({build}), {torch.get_num_threads()} threads")


def _devices() -> Check:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"{p.name} with {p.total_memory / 2**30:.0f} GiB" for p in names)
        return Check(name="GPU", ok=True, found=found)
    has_driver = Path("/proc/driver/nvidia/version").exists()
    if has_driver and torch.version.cuda is None:
        advice = (
            "there is an NVIDIA driver: pip install --force-reinstall torch from the usual index takes the CUDA build"
        )
        return Check(name="GPU", ok=False, found="none that torch can use", advice=advice)
    if has_driver:
        return Check(
            name="GPU", ok=False, found="torch cannot use the NVIDIA driver", advice="is it older than torch's CUDA?"
        )
    return Check(name="GPU", ok=True, found="none; everything runs on the CPU")


def _triton() -> Check:
    installed = importlib.util.find_spec("triton") is not None
    if installed:
        import triton

        return Check(name="Triton", ok=True, found=triton.__version__)
    return Check(
        name="Triton", ok=True, found="not installed; it comes with the CUDA builds of torch, a CPU needs none"
    )


def _numba() -> Check:
    try:
        import numba
    except ImportError as error:
        return Check(name="numba", ok=False, found=f"cannot be imported ({error})", advice="pip install numba")
    try:
        from numba.core.caching import FunctionCache  # noqa: F401

        from dna_mamba.kernels.selective_scan import cpu

        cached = bool(cpu._forward.stats.cache_path)
    except (ImportError, AttributeError, RuntimeError):
        cached = False
    where = "compiled kernels are kept between runs" if cached else "compiled kernels are not kept between runs"
    advice = "" if cached else "set NUMBA_CACHE_DIR to a folder that can be written"
    return Check(
        name="numba",
        ok=True,
        found=f"{numba.__version__}, Python threads of our own ({torch.get_num_threads()}); {where}",
        advice=advice,
    )


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    free = memory.available / 2**30
    advice = "" if free >= 2 else "the demo needs about 1.5 GiB; close something"
    return Check(name="memory", ok=free >= 2, found=f"{free:.1f} of {memory.total / 2**30:.1f} GiB free", advice=advice)


def _disk(needed_gib: float) -> Check:
    cache = cache_directory()
    place = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    writable = os.access(place, os.W_OK)
    advice = "" if free >= needed_gib and writable else "set DNA_MAMBA_CACHE to a folder with space that can be written"
    found = f"{free:.1f} GiB free for packed genomes in {cache}{'' if writable else ', which cannot be written'}"
    return Check(name="disk", ok=free >= needed_gib and writable, found=found, advice=advice)


def _kernel(implementation: str, device: torch.device) -> Check:
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (2, 130, 20), "delta": (2, 130, 20), "A": (20, 16), "B": (2, 130, 16), "C": (2, 130, 16)}
    shapes |= {"D": (20,), "z": (2, 130, 20), "delta_bias": (20,), "initial_state": (2, 20, 16)}
    exact = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    exact["A"] = -exact["A"].abs() - 0.1
    gradient = torch.randn(2, 130, 20, generator=generator, dtype=torch.float64)

    def results(inputs: dict[str, torch.Tensor], name: str) -> list[torch.Tensor]:
        leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
        y = selective_scan(**leaves, delta_softplus=True, implementation=name)
        assert isinstance(y, torch.Tensor)
        y.backward(gradient.to(y))
        return [y.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]

    name = f"kernels ({implementation} on {device.type})"
    try:
        given = results({key: value.float().to(device) for key, value in exact.items()}, implementation)
    except Exception as error:  # a broken compiler or driver can raise anything; a doctor reports it
        return Check(
            name=name,
            ok=False,
            found=f"fail: {type(error).__name__}: {error}",
            advice="reinstall numba, triton and torch",
        )
    errors = [
        float((g.double().cpu() - e).norm() / e.norm()) for g, e in zip(given, results(exact, "naive"), strict=True)
    ]
    good = max(errors) < TOLERANCE
    found = f"forward and backward of the scan within {max(errors):.1e} of the float64 reference"
    return Check(name=name, ok=good, found=found, advice="" if good else "do not train here; please report this")
