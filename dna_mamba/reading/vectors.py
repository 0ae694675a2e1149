# Shapes: B sequences, T positions, D model width, W windows
"""Vectors of sequences, of their windows or of their bases, from any layer of a model, read in pieces."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import N
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.state import ModelState
from dna_mamba.reading.pieces import Bounds, Piece, bounds_of, in_pieces, piece_on
from dna_mamba.reading.settings import EmbedConfig

MOST_AT_ONCE = 512
Reader = Callable[[int, int, int, bool], np.ndarray]
"""Gives token ids of a sequence, positions from and to (counted along the strand), of the other strand or not."""
Put = Callable[[int, int, np.ndarray, bool], None]
"""Takes rows (W, D) of a sequence from a row on, to average with what stands there or not."""


class _Sums:
    """What is kept of the vectors of some sequences while they are read in pieces; shorter ones are padded on the right.

    A causal model says nothing about a base that depends on what follows, so padding changes no vector before it; the vectors
    of the padding itself are left out here.
    """

    def __init__(self, config: EmbedConfig, lengths: Sequence[int], width: int, device: torch.device):
        self.config, self.lengths = config, lengths
        self.lengths_B1 = torch.tensor(lengths, device=device)[:, None]
        B = len(lengths)
        if config.pool in ("last", "max"):
            self.kept = torch.full((B, width), -torch.inf, dtype=torch.float64, device=device)
        else:
            self.window = config.window or max(lengths)
            self.num_windows = -(-max(lengths) // self.window)
            # sums over many positions need float64; a vector a base is no sum. The last row takes what is padding
            dtype = torch.float32 if self.window == 1 else torch.float64
            self.kept = torch.zeros(B * self.num_windows + 1, width, dtype=dtype, device=device)

    def add(self, vectors_BTD: Tensor, first: int, backwards: bool) -> None:
        """Take in positions from `first` on; backwards, they are those of the other strand."""
        B, T, _ = vectors_BTD.shape
        vectors_BTD = vectors_BTD.float()
        places_BT = torch.arange(first, first + T, device=vectors_BTD.device).expand(B, T)
        inside_BT = places_BT < self.lengths_B1
        if self.config.pool == "last":
            rows, columns = (places_BT == self.lengths_B1 - 1).nonzero(as_tuple=True)
            self.kept[rows] = vectors_BTD[rows, columns].double()
            return
        if self.config.pool == "max":
            most_BD = vectors_BTD.masked_fill(~inside_BT[..., None], -torch.inf).amax(1).double()
            self.kept = torch.maximum(self.kept, most_BD)
            return
        if backwards:
            places_BT = self.lengths_B1 - 1 - places_BT
        rows_BT = torch.arange(B, device=places_BT.device)[:, None] * self.num_windows + places_BT // self.window
        rows_BT = torch.where(inside_BT, rows_BT, B * self.num_windows)
        self.kept.index_add_(0, rows_BT.flatten(), vectors_BTD.flatten(0, 1).to(self.kept.dtype))

    def vectors(self) -> list[np.ndarray]:
        """Give (D,) of each sequence, or (W, D) of windows and bases."""
        kept = self.kept.cpu().numpy()
        if self.config.pool in ("last", "max"):
            return list(kept)
        found = []
        for number, length in enumerate(self.lengths):
            size = length if self.config.window is None else self.window
            starts = np.arange(0, length, size)
            means_WD = kept[number * self.num_windows : number * self.num_windows + len(starts)]
            if size > 1:
                means_WD = means_WD / (np.minimum(starts + size, length) - starts)[:, None]
            found.append(means_WD[0] if self.config.window is None else means_WD)
        return found


def _batches(numbers: Sequence[int], lengths: Sequence[int], piece: int, *, padded: bool) -> Iterator[list[int]]:
    """Give numbers of sequences to read together: neighbours in length, at most a fifth of them padding, if there may be."""
    some: list[int] = []
    for number in sorted(numbers, key=lambda n: lengths[n]):
        length = lengths[number]
        fits = len(some) < MOST_AT_ONCE and (len(some) + 1) * length <= piece
        if some and not (fits and length <= (1.25 if padded else 1) * lengths[some[0]]):
            yield some
            some = []
        some.append(number)
    if some:
        yield some


def num_rows_of(config: EmbedConfig, length: int) -> int:
    """Count the vectors of a sequence."""
    return 1 if config.window is None else -(-length // config.window)


class Vectors:
    """Reads sequences and hands on their rows.

    Args:
        model: On its device.
        reader: Reads the sequences.
        lengths: Of all of them.
        config: Which vectors.
        put: Takes the rows.
        piece_bases: Positions computed at once; longer sequences are read in pieces with carried state.
        on_bases: Called with bases that were read.

    Raises:
        InputError: There is no such layer.
    """

    def __init__(
        self,
        model: DnaMamba,
        reader: Reader,
        lengths: Sequence[int],
        config: EmbedConfig,
        put: Put,
        *,
        piece_bases: int | None = None,
        on_bases: Callable[[int], None] | None = None,
    ):
        self.model, self.config, self.put, self.on_bases = model, config, put, on_bases
        self.reader, self.lengths = reader, lengths
        self.device = model.lm_head.weight.device
        self.causal = model.backbone.causal
        self.piece = piece_bases or piece_on(self.device)
        self.layer = config.layer_of(model)

    @torch.no_grad()
    def read(self, numbers: Sequence[int]) -> None:
        """Embed some sequences, those of like lengths together."""
        for some in _batches(numbers, self.lengths, self.piece, padded=self.causal):
            for other_strand in (False, True) if self.config.strands == "both" else (False,):
                window = self.config.window
                long = self.causal and len(some) == 1 and self.lengths[some[0]] > self.piece
                if long and window is not None and window <= self.piece:
                    self._in_windows(some[0], window, other_strand)
                else:
                    self._whole(some, other_strand)

    def _pieces(self, numbers: Sequence[int], bounds: Bounds, other_strand: bool) -> Iterator[Piece]:
        """Give the vectors of some sequences, piece by piece."""

        def read(start: int, end: int, state: ModelState | None) -> tuple[Tensor, ModelState]:
            pieces = [
                self.reader(number, start, min(end, self.lengths[number]), other_strand)
                if start < self.lengths[number]
                else np.zeros(0, np.uint8)
                for number in numbers
            ]
            tokens_BT = np.full((len(pieces), end - start), N, np.uint8)  # shorter ones are filled on the right
            for row, tokens in enumerate(pieces):
                tokens_BT[row, : len(tokens)] = tokens
            found = self.model.backbone.vectors_of_layer(torch.from_numpy(tokens_BT).to(self.device), self.layer, state)
            if self.on_bases:
                self.on_bases(sum(len(tokens) for tokens in pieces))
            return found

        return in_pieces(read, bounds)

    def _whole(self, numbers: Sequence[int], other_strand: bool) -> None:
        """Hold what is kept of these sequences until they are read."""
        lengths = [self.lengths[number] for number in numbers]
        sums = _Sums(self.config, lengths, self.model.config.width, self.device)
        for piece in self._pieces(numbers, bounds_of(self.model.backbone, max(lengths), self.piece), other_strand):
            sums.add(piece.output, piece.start, other_strand)
        for number, vectors in zip(numbers, sums.vectors(), strict=True):
            self.put(number, 0, np.atleast_2d(vectors), other_strand)

    def _in_windows(self, number: int, window: int, other_strand: bool) -> None:
        """Hand on the windows of each piece; pieces end where windows do, on the other strand too."""
        length, step = self.lengths[number], self.piece // window * window
        first = length % step if other_strand else step
        for piece in self._pieces([number], bounds_of(self.model.backbone, length, step, first=first), other_strand):
            sums = _Sums(self.config, [piece.end - piece.start], self.model.config.width, self.device)
            sums.add(piece.output, 0, other_strand)
            at = (length - piece.end if other_strand else piece.start) // window
            self.put(number, at, sums.vectors()[0], other_strand)
