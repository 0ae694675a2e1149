"""Which implementation of an operation runs: the one place that decides."""

import torch

IMPLEMENTATIONS = ("auto", "naive", "cpu")


def choose(implementation: str, tensor: torch.Tensor) -> str:
    """Name the implementation to run on tensors like the one given.

    Args:
        implementation: 'auto' takes 'cpu' for float32 and bfloat16 tensors in main memory and 'naive' for all else; a
            name is taken at its word.
        tensor: The operation's main input; its device and dtype decide.

    Returns:
        'naive' or 'cpu'.

    Raises:
        ValueError: The name is unknown, or what it names cannot take this tensor.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    fused = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16)
    if implementation == "cpu" and not fused:
        raise ValueError(
            f"implementation 'cpu' takes float32 or bfloat16 tensors in main memory, not {tensor.dtype} on "
            f"{tensor.device}; 'naive' takes any"
        )
    if implementation == "auto":
        return "cpu" if fused else "naive"
    return implementation
