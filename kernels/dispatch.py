"""Which implementation of an operation runs: the one place that decides."""

import importlib.util
import os

import torch

from dna_mamba.kernels.implementations import IMPLEMENTATIONS

COMPILED = (torch.float32, torch.bfloat16)
"""Dtypes that the compiled implementations take."""


HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on tensors in main memory: for tests, thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _check_triton(tensor: torch.Tensor, unfit: str) -> None:
    if not HAS_TRITON:
        raise ValueError("implementation 'triton' needs the package triton, which comes with torch's CUDA builds")
    if tensor.dtype not in COMPILED or not (tensor.is_cuda or interpreted()):
        raise ValueError(
            f"implementation 'triton' takes float32 or bfloat16 tensors on a GPU, not {tensor.dtype} on "
            f"{tensor.device}; 'naive' takes any"
        )
    if unfit:
        raise ValueError(f"implementation 'triton' cannot take this: {unfit}; 'naive' can")


def choose(implementation: str, tensor: torch.Tensor, unfit_for_triton: str = "") -> str:
    """Name the implementation to run on tensors like the one given.

    Args:
        implementation: 'auto' takes 'triton' for float32 and bfloat16 tensors on a GPU, 'cpu' for those in main memory, and
            'naive' for all else; a name is taken at its word.
        tensor: The operation's main input; its device and dtype decide.
        unfit_for_triton: Why the Triton kernels cannot take these arguments; empty if they can.

    Returns:
        'naive', 'cpu' or 'triton'.

    Raises:
        ValueError: The name is unknown, or what it names cannot take this tensor.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    device, known = tensor.device.type, tensor.dtype in COMPILED
    if implementation == "cpu" and not (device == "cpu" and known):
        raise ValueError(
            f"implementation 'cpu' takes float32 or bfloat16 tensors in main memory, not {tensor.dtype} on "
            f"{tensor.device}; 'naive' takes any"
        )
    if implementation == "triton":
        _check_triton(tensor, unfit_for_triton)
    if implementation != "auto":
        return implementation
    if device == "cuda" and known and not unfit_for_triton and HAS_TRITON:
        return "triton"
    return "cpu" if device == "cpu" and known else "naive"
