"""Heads by the name that config.json has for them. A new one is a file here and a line below; head.py says what it promises."""

from dna_mamba.model.heads.classes import ClassHead
from dna_mamba.model.heads.head import Head

HEADS: dict[str, type[Head]] = {"classes": ClassHead}
