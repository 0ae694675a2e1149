"""Models of the Hugging Face hub by their names."""

import re
from pathlib import Path

from dna_mamba.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def from_hub(name: str) -> Path:
    """Give the local copy of a model on the Hugging Face hub; only its two files are fetched, and nothing is executed.

    Args:
        name: owner/model.

    Raises:
        InputError: huggingface_hub is not installed, or there is no such model, or the hub cannot be reached.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError:
        raise InputError(f"{name} is no directory here; to look on the hub, pip install huggingface_hub") from None
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        paths = [Path(hf_hub_download(name, file)) for file in ("config.json", "model.safetensors")]
    except Exception as error:  # of many kinds, all from the network or the hub's answer
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"{name} is no directory here, and the hub did not give it: {first[:200]}") from error
    return paths[0].parent
