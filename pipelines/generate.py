"""New sequence from a language model, as FASTA with log-likelihoods."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dna_mamba.alphabet import A, C, G, T
from dna_mamba.data.selection import load_genome
from dna_mamba.data.vocabulary import BASE_BITS, tokens_of
from dna_mamba.device import find_device
from dna_mamba.errors import InputError
from dna_mamba.files import WholeFile, check_is_no_input, check_writable
from dna_mamba.pipelines.configs.read import GenerateConfig
from dna_mamba.pipelines.sequences import load_language_model, warn_if_longer
from dna_mamba.progress import Progress
from dna_mamba.reading.generation import generate

LINE = 60
LONGEST_NAME = 200
"""Longer letters are never looked for as a file."""
LETTERS = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, kw_only=True)
class GeneratedSequence:
    """One sequence."""

    name: str
    letters: str
    log_likelihood: float
    """Of its bases given the prompt, in nats."""

    @property
    def bits_per_base(self) -> float:
        """Mean surprise in bits."""
        return -self.log_likelihood / len(self.letters) / math.log(2)

    def as_fasta(self) -> str:
        """Give a record; the prompt is not part of it."""
        lines = [self.letters[i : i + LINE] for i in range(0, len(self.letters), LINE)]
        head = f">{self.name} log_likelihood={self.log_likelihood:.4f} nats bits_per_base={self.bits_per_base:.4f}"
        return "\n".join([head, *lines]) + "\n"


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """All sequences."""

    sequences: tuple[GeneratedSequence, ...]
    prompt_bases: int
    seconds: float


def read_prompt(
    prompt: str,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    *,
    rna: bool = False,
) -> torch.Tensor:
    """Give the token ids of a prompt: letters, or the first record of a file; U is T with `rna`, and N without.

    Raises:
        InputError: It is neither letters of DNA nor a file that can be read, or it holds no base.
    """
    tokens_T = _tokens_of_prompt(prompt, on_progress, warn, rna)
    num_n = int((tokens_T > T).sum())
    if num_n == len(tokens_T):
        raise InputError(f"--prompt {prompt[:40]} holds no A, C, G or T; give at least one base")
    if warn and num_n:
        warn(f"{num_n:,} of the {len(tokens_T):,} letters of the prompt say no base and are read as N")
    return tokens_T


def _tokens_of_prompt(
    prompt: str, on_progress: Progress | None, warn: Callable[[str], None] | None, rna: bool
) -> torch.Tensor:
    if LETTERS.fullmatch(prompt) and (len(prompt) > LONGEST_NAME or not Path(prompt).exists()):
        try:
            return torch.from_numpy(tokens_of(prompt, rna).copy())
        except ValueError as error:
            raise InputError(f"--prompt: {error}; give letters of DNA, or a FASTA file") from error
    if not prompt:
        raise InputError("--prompt is empty; give at least one base, or a FASTA file")
    genome = load_genome(prompt, on_progress, warn, rna=rna)
    first = next((contig for contig in genome.manifest.contigs if contig.length), None)
    if first is None:
        raise InputError(f"--prompt {prompt} holds no base")
    stored = genome.stored(first.name, 0, first.length)
    return torch.from_numpy((stored & BASE_BITS) + A)


def run(
    config: GenerateConfig,
    *,
    on_bases: Callable[[int], None] | None = None,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> GenerateResult:
    """Generate, and write a FASTA file if `out` is given.

    Raises:
        InputError: The model, the prompt or the output is at fault.
    """
    started = time.monotonic()
    device = find_device(config.device)
    model = load_language_model(config.model, device, "generating")
    check_is_no_input(config.out, config.prompt)
    check_writable(config.out)
    prompt_T = read_prompt(config.prompt, on_progress, warn, rna=config.rna)
    warn_if_longer(model.trained_bases, len(prompt_T) + config.length, warn)
    found = generate(
        model,
        prompt_T,
        config.length,
        num_sequences=config.num,
        config=config.sampling,
        seed=config.seed,
        on_bases=on_bases,
    )
    letters = bytes.maketrans(bytes([A, C, G, T]), b"ACGT")
    sequences = tuple(
        GeneratedSequence(
            name=f"generated_{number + 1}",
            letters=tokens_T.numpy().tobytes().translate(letters).decode(),
            log_likelihood=float(value),
        )
        for number, (tokens_T, value) in enumerate(zip(found.tokens_BT, found.log_likelihoods_B, strict=True))
    )
    if config.out is not None:
        with WholeFile(config.out) as path:
            path.write_text("".join(sequence.as_fasta() for sequence in sequences), encoding="utf-8")
    return GenerateResult(sequences=sequences, prompt_bases=len(prompt_T), seconds=time.monotonic() - started)
