"""DNA language models of your own: pretrain a Mamba on single bases, from FASTA, on a laptop or a GPU."""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dna_mamba.api import DnaModel, load
    from dna_mamba.embedder import Embedder

# a bar of a library that we do not show; in notebooks it would be a red box above every first result
warnings.filterwarnings("ignore", message="IProgress not found")

__all__ = ["DnaModel", "Embedder", "load"]

_HOME = {"DnaModel": "dna_mamba.api", "load": "dna_mamba.api", "Embedder": "dna_mamba.embedder"}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: `import dna_mamba` alone takes no time."""
    if name not in _HOME:
        raise AttributeError(f"module 'dna_mamba' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
