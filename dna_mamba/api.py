# Shapes: N sequences, T positions, D model width
"""Three lines to a result: `import dna_mamba as dm; model = dm.load("human-4x64"); model.embed("ACGT...")`."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dna_mamba.alphabet import A, T
from dna_mamba.data.texts import Sequences, texts_of
from dna_mamba.data.vocabulary import count_uracil, tokens_of
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.state import ModelState
from dna_mamba.reading.generation import generate
from dna_mamba.reading.settings import EmbedConfig, SamplingConfig


def load(path: str | os.PathLike[str], *, device: str = "auto", rna: bool = False) -> "DnaModel":
    """Load a language model.

    Args:
        path: Run directory, model directory, the name of a model in the package (human-4x64), or owner/name on the Hugging
            Face hub.
        device: auto, cpu or cuda. All numbers are float32.
        rna: Read U of sequences as T; otherwise it is N, as in a FASTA.

    Raises:
        InputError: There is no model, it is damaged, or the device is not here.
    """
    from dna_mamba.device import find_device
    from dna_mamba.pipelines.sequences import load_language_model

    if not isinstance(path, str | os.PathLike):
        raise InputError(f"load({path!r}): expected a directory, or the name of a model")
    return DnaModel(load_language_model(Path(path), find_device(device)), rna=rna)


class DnaModel(nn.Module):
    """A pretrained language model of DNA; `forward` is the model's own, on token ids."""

    def __init__(self, model: DnaMamba, *, rna: bool = False):
        super().__init__()
        self.model = model
        self.rna = rna

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.model.config.width

    def forward(self, tokens_BT: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        """Score every next base; see `DnaMamba.forward`."""
        logits_BTV, new_state = self.model(tokens_BT, state)
        return logits_BTV, new_state

    def embed(
        self,
        sequences: Sequences,
        *,
        layer: int = -1,
        pool: str = "mean",
        strands: Literal["forward", "both"] = "forward",
    ) -> np.ndarray | list[np.ndarray]:
        """Give vectors of sequences, float32; a sequence of any length is read in full, in pieces with carried state.

        Args:
            sequences: One sequence (letters of either case, or a Seq or SeqRecord of Biopython), or several; IUPAC codes, and U
                unless the model was loaded with rna=True, are read as N.
            layer: 0 is the embedding, 1 the first layer, ...; -1 the last, after the final norm.
            pool: mean, last or max over a sequence; window:N the mean of every N bases; none a vector a base.
            strands: both averages with the reverse complement.

        Returns:
            (D,) of one sequence and (N, D) of several, (0, D) of none; with pool none or window:N (W, D), or a list of them.

        Raises:
            InputError: A sequence is empty or no DNA, or there is no such layer or pool.
        """
        texts, single = texts_of(sequences)
        vectors = self._embed(texts, EmbedConfig(layer=layer, pool=pool, strands=strands))
        if single:
            return vectors[0]
        if pool not in ("mean", "last", "max"):
            return vectors
        return np.stack(vectors) if vectors else np.zeros((0, self.width), np.float32)

    def _embed(self, sequences: Sequence[str], config: EmbedConfig) -> list[np.ndarray]:
        from dna_mamba.pipelines.embed import embed_tokens

        tokens = [self._tokens(text) for text in sequences]
        if unknown := sum(not bool((tokens_T <= T).any()) for tokens_T in tokens):
            warnings.warn(
                f"{unknown:,} of {len(tokens):,} sequences hold no A, C, G or T: their vectors say nothing of a base",
                stacklevel=3,
            )
        return embed_tokens(self.model, tokens, config)

    @torch.no_grad()
    def score(self, sequences: Sequences, *, per_base: bool = False) -> object:
        """Give log-likelihoods in nats, over A, C, G and T; the first base has no predecessor and is not scored.

        Letters that say no base add nothing to a sum, so sums of sequences with different numbers of them are not to be
        compared; per base they are NaN, and so is the sum of a sequence in which nothing can be scored.

        Args:
            sequences: One sequence, or several.
            per_base: Give log P of every base after the first instead of their sum; NaN where it is none of A, C, G, T.

        Returns:
            A number, or an array (T - 1,) per base, of one sequence; an array (N,), or a list of arrays, of several.

        Raises:
            InputError: A sequence is empty or no DNA.
        """
        from dna_mamba.reading.losses import losses_in_pieces

        device = self.model.lm_head.weight.device
        found = []
        texts, single = texts_of(sequences)
        for text in texts:
            tokens_T = self._tokens(text)
            pieces = losses_in_pieces(self.model, torch.from_numpy(tokens_T)[None].to(device), PIECE)
            log_p = np.concatenate([np.zeros(0), *(-losses_BT[0].double().cpu().numpy() for losses_BT in pieces)])
            known = tokens_T[1:] <= T
            log_p = np.where(known, log_p, np.nan)
            one_base = len(tokens_T) == 1 and tokens_T[0] <= T  # nothing follows it: an empty sum
            found.append(log_p if per_base else float(log_p[known].sum()) if known.any() or one_base else math.nan)
        if single:
            return found[0]
        return found if per_base else np.array(found)

    def _tokens(self, text: str) -> np.ndarray:
        if not text:
            raise InputError("a sequence is empty; give at least one base")
        try:
            tokens = tokens_of(text, self.rna).copy()
        except ValueError as error:
            raise InputError(str(error)) from error
        if not self.rna and (number := count_uracil(text)):
            warnings.warn(f"{number:,} letters U are read as N; load(..., rna=True) reads them as T", stacklevel=4)
        return tokens

    def generate(
        self,
        prompt: str = "ACGT",
        length: int = 1000,
        *,
        num: int = 1,
        temperature: float = 1.0,
        top_k: int = 4,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Draw new sequences after a prompt, which is not part of them.

        Args:
            prompt: Letters, at least one.
            length: New bases of each sequence.
            num: Sequences.
            temperature: Above 1 more varied; 0 takes the likeliest base.
            top_k: Draw from so many likeliest bases.
            top_p: Draw from the fewest bases that together have this probability.
            seed: The same seed gives the same sequences on the same kind of device.

        Raises:
            InputError: The prompt is empty or no DNA, or a number is out of range.
        """
        config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        texts, single = texts_of(prompt)
        if not single:
            raise InputError("generate takes one prompt; call it for each")
        prompt_T = torch.from_numpy(self._tokens(texts[0]))
        if not bool((prompt_T <= T).any()):
            raise InputError("the prompt holds no A, C, G or T; give at least one base")
        drawn = generate(self.model, prompt_T, length, num_sequences=num, config=config, seed=seed)
        return ["".join("ACGT"[token - A] for token in tokens_T.tolist()) for tokens_T in drawn.tokens_BT]


PIECE = 2**14
