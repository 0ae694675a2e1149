"""One check of the shapes and devices of an operation's arguments."""

from torch import Tensor


def check_shapes(given: str, device_of: Tensor, expected: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    """Raise a ValueError that names the first tensor that has another shape or lies elsewhere.

    Args:
        given: What fixes the shapes, for the message.
        device_of: The main input, whose device all share.
        expected: Name, tensor (none passes) and shape of the others.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; with {given} it must be {shape}")
        if tensor.device != device_of.device:
            raise ValueError(f"{name} lies on {tensor.device}; like the input it must be on {device_of.device}")
