"""Which device a command runs on, and in which precision."""

from dna_mamba.errors import InputError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")


def check_device(device: str) -> None:
    """Refuse a name that is no device, without asking whether it is here.

    Raises:
        InputError: It is unknown.
    """
    if device not in DEVICES:
        raise InputError(f"device {device!r} is unknown; choose {', '.join(DEVICES)}")


def check_precision(precision: str) -> None:
    """Refuse a name that is no precision.

    Raises:
        InputError: It is unknown.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown; choose {', '.join(PRECISIONS)}")


def find_device(device: str) -> str:
    """Turn auto into cuda or cpu.

    Raises:
        InputError: The device is unknown or not here.
    """
    check_device(device)
    import torch  # here: a wrong word is told without it

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no GPU; dna-mamba doctor says why")
    return device


def find_precision(precision: str, device: str) -> str:
    """Turn auto into bf16 on a GPU and fp32 on a CPU."""
    return precision if precision != "auto" else "bf16" if device == "cuda" else "fp32"
