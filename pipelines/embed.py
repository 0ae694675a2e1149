# Shapes: B sequences, T positions, D model width, W windows
"""Vectors of sequences, of their windows or of their bases, from any layer of a language model, read with a carried state."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dna_mamba.data.build import Progress
from dna_mamba.data.genome import GenomeStore
from dna_mamba.data.intervals import Interval
from dna_mamba.data.vocabulary import N, reverse_complement_tokens
from dna_mamba.errors import InputError, nearest
from dna_mamba.model.backbone import DnaMamba, ModelState
from dna_mamba.pipelines.sequences import Named, WholeFile, find_device, load_language_model, open_sequences, read_piece

PIECES = {"cpu": 2**14, "cuda": 2**18}
"""Positions computed at once; vectors do not depend on it (up to rounding)."""
MOST_AT_ONCE = 512
POOLS = ("mean", "last", "max", "none", "window:N")
STRANDS = ("forward", "both")
FORMATS = (".npz", ".parquet", ".h5ad", ".zarr")
COLUMNS = ("contig", "start", "end", "strand", "name")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """Which vectors."""

    layer: int = -1
    """0 is the embedding, 1 the first layer, and so on; -1 the last, after the final norm, -2 the one before it."""
    pool: str = "mean"
    """mean, last or max over a sequence; window:N the mean of every N bases; none a vector a base."""
    strands: str = "forward"
    """both averages with the reverse complement, read from its own start; positions stay those of the forward strand."""

    def __post_init__(self) -> None:
        if self.pool not in POOLS[:4] and not re.fullmatch(r"window:[1-9][0-9]{0,11}", self.pool):
            raise InputError(f"pool {self.pool!r} is unknown{nearest(self.pool, POOLS)}; choose {', '.join(POOLS)}")
        if self.strands not in STRANDS:
            raise InputError(f"strands {self.strands!r} is unknown; choose forward or both")

    @property
    def window(self) -> int | None:
        """Bases of a window, 1 for a vector a base; none pools whole sequences."""
        return 1 if self.pool == "none" else int(self.pool[7:]) if self.pool.startswith("window:") else None

    def layer_of(self, model: DnaMamba) -> int:
        """Count the layer from the embedding."""
        depth = len(model.config.pattern)
        layer = self.layer if self.layer >= 0 else depth + 1 + self.layer
        if not 0 <= layer <= depth:
            raise InputError(
                f"layer {self.layer} is not in this model: 0 is the embedding, {depth} (or -1) the last layer"
            )
        return layer


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


Reader = Callable[[Sequence[int], int, int, bool], np.ndarray]
"""Gives token ids (B, T) of some sequences, positions from and to (counted along the strand; N past the end), of the other
strand or not."""


def _batches(lengths: Sequence[int], piece: int) -> Iterator[list[int]]:
    """Give numbers of sequences to read together: neighbours in length, at most a fifth of them padding."""
    some: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        length = lengths[number]
        fits = len(some) < MOST_AT_ONCE and (len(some) + 1) * length <= piece
        if some and not (fits and length <= 1.25 * lengths[some[0]]):
            yield some
            some = []
        some.append(number)
    if some:
        yield some


def _padded(pieces: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Put tokens side by side, shorter ones filled with N on the right."""
    tokens_BT = np.full((len(pieces), length), N, np.uint8)
    for row, tokens in enumerate(pieces):
        tokens_BT[row, : len(tokens)] = tokens
    return tokens_BT


@torch.no_grad()
def _embed(
    model: DnaMamba,
    lengths: Sequence[int],
    read: Reader,
    config: EmbedConfig,
    piece_bases: int | None,
    on_bases: Callable[[int], None] | None,
) -> list[np.ndarray]:
    device = model.lm_head.weight.device
    piece = piece_bases or PIECES[device.type]
    layer = config.layer_of(model)
    found: list[np.ndarray] = [np.zeros(0)] * len(lengths)

    def vectors_of(numbers: Sequence[int], other_strand: bool) -> list[np.ndarray]:
        longest = max(lengths[number] for number in numbers)
        sums = _Sums(config, [lengths[number] for number in numbers], model.config.width, device)
        state: ModelState | None = None
        for start in range(0, longest, piece):
            tokens_BT = torch.from_numpy(read(numbers, start, min(start + piece, longest), other_strand)).to(device)
            vectors_BTD, state = model.backbone.vectors_of_layer(tokens_BT, layer, state)
            sums.add(vectors_BTD, start, other_strand)
        return sums.vectors()

    for some in _batches(lengths, piece):
        vectors = vectors_of(some, False)
        if config.strands == "both":
            vectors = [(one + other) / 2 for one, other in zip(vectors, vectors_of(some, True), strict=True)]
        for number, vector in zip(some, vectors, strict=True):
            found[number] = vector.astype(np.float32)
        if on_bases:
            on_bases(sum(lengths[number] for number in some))
    return found


def embed(
    model: DnaMamba,
    genome: GenomeStore,
    intervals: Sequence[Named],
    config: EmbedConfig,
    *,
    piece_bases: int | None = None,
    on_bases: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Give the vectors of intervals, in their order, float32: (D,) each, or (W, D) of windows and bases.

    Those of like lengths are read together; neither that nor the length of pieces changes a vector (up to rounding).

    Args:
        model: On its device.
        genome: Holds the intervals.
        intervals: Places with names; strand '-' is read as the reverse complement.
        config: Which vectors.
        piece_bases: Positions computed at once; longer sequences are read in pieces with carried state.
        on_bases: Called with bases that are done.

    Raises:
        InputError: There is no such layer.
    """
    flipped = {"+": "-", "-": "+"}

    def read(numbers: Sequence[int], start: int, end: int, other_strand: bool) -> np.ndarray:
        pieces = []
        for number in numbers:
            place = intervals[number][0]
            if other_strand:
                place = Interval(place.contig, place.start, place.end, flipped[place.strand])
            last = min(end, len(place))
            pieces.append(read_piece(genome, place, start, last) if last > start else np.zeros(0, np.uint8))
        return _padded(pieces, end - start)

    return _embed(model, [len(interval) for interval, _ in intervals], read, config, piece_bases, on_bases)


def embed_tokens(
    model: DnaMamba, sequences: Sequence[np.ndarray], config: EmbedConfig, *, piece_bases: int | None = None
) -> list[np.ndarray]:
    """Give the vectors of sequences of token ids (uint8), in their order; see `embed`."""

    def read(numbers: Sequence[int], start: int, end: int, other_strand: bool) -> np.ndarray:
        whole = [sequences[number] for number in numbers]
        if other_strand:
            whole = [reverse_complement_tokens(tokens) for tokens in whole]
        return _padded([tokens[start:end] for tokens in whole], end - start)

    return _embed(model, [len(tokens) for tokens in sequences], read, config, piece_bases, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRunConfig:
    """What to embed, and where to."""

    model: Path
    sequences: str
    out: Path
    genome: str | None = None
    window_bases: int | None = None
    embed: EmbedConfig = EmbedConfig()
    shard: tuple[int, int] = (1, 1)
    """This one, from 1, of so many: shards take rows i, i + n, and so on."""
    device: str = "auto"
    piece_bases: int | None = None

    def __post_init__(self) -> None:
        if self.out.suffix not in FORMATS:
            raise InputError(f"-o {self.out} must end in {', '.join(FORMATS)}: the ending says the format")
        if not 1 <= self.shard[0] <= self.shard[1] <= 10**6:
            raise InputError(f"--shard {self.shard[0]}/{self.shard[1]} is not i/n with i from 1 to n")
        if self.window_bases is not None and self.window_bases < 1:
            raise InputError(f"--window {self.window_bases} must be at least 1 base")


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """What was written."""

    out: Path
    num_rows: int
    width: int
    num_bases: int
    seconds: float


def run(
    config: EmbedRunConfig,
    *,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_bases: Callable[[int], None] | None = None,
) -> EmbedResult:
    """Embed and write a file: a row a sequence, window or base, with contig, start, end, strand and name.

    Raises:
        InputError: The model, the sequences, the layer or the output is at fault, or a library for the format is missing.
    """
    started = time.monotonic()
    device = find_device(config.device)
    _check_format(config.out)
    model = load_language_model(config.model, device)
    config.embed.layer_of(model)
    genome, intervals = open_sequences(config.sequences, config.genome, config.window_bases, on_progress, warn)
    intervals = intervals[config.shard[0] - 1 :: config.shard[1]]
    if not intervals:
        raise InputError(f"--shard {config.shard[0]}/{config.shard[1]} has no sequence; take fewer shards")
    vectors = embed(model, genome, intervals, config.embed, piece_bases=config.piece_bases, on_bases=on_bases)
    rows, table = as_rows(intervals, vectors, config.embed)
    with WholeFile(config.out) as path:
        write_vectors(path, rows, table)
    return EmbedResult(
        out=config.out, num_rows=len(table), width=table.shape[1],
        num_bases=sum(len(interval) for interval, _ in intervals), seconds=time.monotonic() - started,
    )  # fmt: skip


def as_rows(
    intervals: Sequence[Named], vectors: Sequence[np.ndarray], config: EmbedConfig
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Give the columns that say which row is what, and all vectors (rows, D)."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for (interval, name), vector in zip(intervals, vectors, strict=True):
        window = config.window
        if window is None:
            places = [(interval.start, interval.end)]
        else:
            offsets = [(start, min(start + window, len(interval))) for start in range(0, len(interval), window)]
            if interval.strand == "-":
                places = [(interval.end - end, interval.end - start) for start, end in offsets]
            else:
                places = [(interval.start + start, interval.start + end) for start, end in offsets]
        assert len(places) == (1 if window is None else len(vector))
        for start, end in places:
            for key, value in zip(COLUMNS, (interval.contig, start, end, interval.strand, name), strict=True):
                columns[key].append(value)
    kinds = {"start": np.int64, "end": np.int64}
    rows = {key: np.array(values, dtype=kinds.get(key, str)) for key, values in columns.items()}
    return rows, np.concatenate([np.atleast_2d(vector) for vector in vectors])


def _check_format(out: Path) -> None:
    needed = {".parquet": ("pandas", "pyarrow"), ".h5ad": ("anndata",), ".zarr": ("anndata", "zarr")}.get(
        out.suffix, ()
    )
    from importlib.util import find_spec

    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise InputError(f"-o {out} needs {' and '.join(missing)}; pip install 'dna-mamba[formats]', or write .npz")
    if out.suffix == ".zarr" and out.exists():
        raise InputError(f"-o {out} exists; choose another")


def write_vectors(path: Path, rows: dict[str, np.ndarray], vectors: np.ndarray) -> None:
    """Write rows and vectors in the format that the ending names."""
    if path.suffix == ".npz":
        with open(path, "wb") as file:
            np.savez(file, embeddings=vectors, **rows)  # type: ignore[arg-type]
        return
    import pandas as pd

    if path.suffix == ".parquet":
        names = [f"e{i}" for i in range(vectors.shape[1])]
        pd.concat([pd.DataFrame(rows), pd.DataFrame(vectors, columns=names)], axis=1).to_parquet(path, index=False)
        return
    import anndata

    table = anndata.AnnData(X=vectors, obs=pd.DataFrame(rows, index=[str(i) for i in range(len(vectors))]))
    if path.suffix == ".h5ad":
        table.write_h5ad(path)
    else:
        path.unlink()  # a zarr store is a directory
        table.write_zarr(path)
