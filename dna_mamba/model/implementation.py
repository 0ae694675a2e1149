"""Which kernels run a model on a device: the one place that decides, for training, reading and generation alike."""

from dna_mamba.errors import InputError
from dna_mamba.kernels.dispatch import HAS_TRITON, interpreted
from dna_mamba.model.config import BackboneConfig


def unfit_for_triton(config: BackboneConfig, *, here: bool = True) -> str:
    """Say why the fused kernels of a GPU cannot run a model; nothing if they can.

    Args:
        config: Of the model.
        here: They are to run on this machine, which needs the package triton.
    """
    for mixer in config.mixers():
        if unfit := mixer.unfit_for_triton():
            return unfit
    return "" if HAS_TRITON or not here else "the package triton is not installed"


def implementation_for(config: BackboneConfig, device: str, wanted: str = "auto", *, here: bool = True) -> str:
    """Name the kernels that a model runs with: 'cpu', 'triton' or 'naive'.

    Args:
        config: Of the model.
        device: cpu or cuda.
        wanted: 'auto' takes the fastest that can run it; a name is taken at its word.
        here: It is to run on this machine.

    Raises:
        InputError: What was named cannot run this model there.
    """
    unfit = unfit_for_triton(config, here=here)
    if wanted == "auto":
        return "cpu" if device == "cpu" else "naive" if unfit else "triton"
    if wanted == "cpu" and device != "cpu":
        raise InputError("implementation 'cpu' runs on --device cpu alone; choose 'triton', 'naive' or 'auto'")
    if wanted == "triton" and device != "cuda" and not interpreted():
        raise InputError("implementation 'triton' runs on --device cuda alone; choose 'cpu', 'naive' or 'auto'")
    if wanted == "triton" and unfit:
        raise InputError(f"implementation 'triton' cannot run this model: {unfit}; choose 'naive' or 'auto'")
    return wanted
