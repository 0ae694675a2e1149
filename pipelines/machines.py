"""GPUs that runs are planned for: the one that is here, and those whose speed was measured; loads no torch by itself."""

from dataclasses import dataclass

from dna_mamba.errors import InputError

RESERVE = 0.10
"""Share of a GPU's free memory that is left for the context, libraries and fragments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where a run is planned for."""

    name: str
    memory_bytes: float
    present: bool = True
    """Whether it is this machine, so that its speed can be measured."""
    num_gpus: int = 1

    @property
    def budget(self) -> float:
        """Bytes that tensors may take."""
        return self.memory_bytes * (1 - RESERVE)


# Bytes that the driver reports; nanoseconds a base and layer, forward and backward, and forward alone: c0 + c1 W + c2 W^2 with
# W the model width; bfloat16, 16 states. Fitted to bench block, bench norm and (H100) bench train: docs/benchmarks.md.
KNOWN_GPUS: dict[str, tuple[float, tuple[float, float, float], tuple[float, float, float]]] = {
    "H100": (79.2 * 2**30, (2.5, 0.128, 4.7e-5), (1.1, 0.0325, 1.7e-5)),
    "H200": (139.8 * 2**30, (3.8, 0.103, 6.2e-5), (1.0, 0.0300, 1.7e-5)),
}


def known_gpu(name: str) -> Machine:
    """Give a GPU by name.

    Raises:
        InputError: It is not one whose speed was measured.
    """
    if name.upper() not in KNOWN_GPUS:
        raise InputError(
            f"GPU {name!r} is not in the table; choose {' or '.join(KNOWN_GPUS)}, or plan on the machine itself"
        )
    return Machine(name=name.upper(), memory_bytes=KNOWN_GPUS[name.upper()][0], present=False)


def this_gpu() -> Machine:
    """Describe the current GPU and what is free on it."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return Machine(name=torch.cuda.get_device_name(), memory_bytes=float(free))
