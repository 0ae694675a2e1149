"""What a person sees: results on stdout; progress, remarks and warnings on stderr."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from dna_mamba.errors import InputError, printable

if TYPE_CHECKING:
    from dna_mamba.progress import Packing, Reading

# names of files and contigs are text, not markup
stderr = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)
stdout = Console(soft_wrap=True, markup=False, emoji=False)


def packing() -> tuple["Packing", "Packing"]:
    """Give what takes the progress of packing, and the context that shows it."""
    from dna_mamba.progress import Packing

    line = Packing(stderr)
    return line, line


def reading(what: str = "reading") -> tuple["Reading", "Reading"]:
    """Give what takes the bases that were read, and the context that shows it."""
    from dna_mamba.progress import Reading

    line = Reading(stderr, what)
    return line, line


def warn(words: str) -> None:
    """Print what deserves attention."""
    stderr.print(f"warning: {printable(words)}", highlight=False)


def say(words: str) -> None:
    """Print what is being done."""
    stderr.print(printable(words), highlight=False)


def print_json(values: object) -> None:
    """Print results for other programs."""
    from dna_mamba.files import json_text

    print(json_text(values, indent=1, default=str))


def refuse_idle(command: Callable[..., object], where: str, **options: object) -> None:
    """Refuse options that cannot act there, unless they have their default."""
    for name, value in options.items():
        if value != inspect.signature(command).parameters[name].default:
            raise InputError(f"--{name.replace('_', '-')} does nothing {where}; leave it out")
