"""The command line: one short function a command. Heavy imports stay inside the commands, so that --help is quick."""

from dna_mamba.cli.apps import app
from dna_mamba.cli.main import main

__all__ = ["app", "main"]
