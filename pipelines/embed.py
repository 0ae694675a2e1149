# Shapes: B sequences, T positions, D model width, W windows
"""Vectors of sequences, of their windows or of their bases, from any layer of a language model, read with a carried state."""

import csv
import dataclasses
import errno
import hashlib
import itertools
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dna_mamba.data.build import Progress
from dna_mamba.data.genome import GenomeStore
from dna_mamba.data.intervals import Interval
from dna_mamba.data.unpack import open_text, printable_text
from dna_mamba.data.vocabulary import N, count_uracil, reverse_complement_tokens, tokens_of
from dna_mamba.device import find_device
from dna_mamba.errors import InputError, check_regular, nearest
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.state import ModelState
from dna_mamba.pipelines.evaluate import find_model
from dna_mamba.pipelines.sequences import Named, load_language_model, open_sequences, read_piece, warn_if_longer
from dna_mamba.pipelines.vector_files import UnfinishedVectors, check_format, write_file
from dna_mamba.values import whole

PIECES = {"cpu": 2**14, "cuda": 2**18}
"""Positions computed at once; vectors do not depend on it (up to rounding)."""
MOST_AT_ONCE = 512
PART_BASES, PART_SEQUENCES = 2**18, 1024
"""Of a part of the work: what is sorted by length together, noted when it is done, and given to one shard."""
SEQUENCE_COLUMNS = ("sequence", "seq")
NAME_COLUMNS = ("name", "id")
POOLS = ("mean", "last", "max", "none", "window:N")
STRANDS = ("forward", "both")
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
        layer = whole(self.layer)
        if not isinstance(self.pool, str) or layer is None:
            raise InputError(f"pool {self.pool!r} and layer {self.layer!r}: expected a word and a whole number")
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "pool", str(self.pool))
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


Reader = Callable[[int, int, int, bool], np.ndarray]
"""Gives token ids of a sequence, positions from and to (counted along the strand), of the other strand or not."""
Put = Callable[[int, int, np.ndarray, bool], None]
"""Takes rows (W, D) of a sequence from a row on, to average with what stands there or not."""


@dataclass(frozen=True)
class Sequences:
    """What is embedded: places with names, and how to read them."""

    places: Sequence[Named]
    read: Reader
    identity: str
    """Differs where the bases do."""
    num_without_base: Callable[[], int] = lambda: 0
    """Counts the sequences that hold no A, C, G or T."""

    @property
    def lengths(self) -> list[int]:
        """Bases of each."""
        return [len(interval) for interval, _ in self.places]


def of_genome(genome: GenomeStore, places: Sequence[Named]) -> Sequences:
    """Read intervals of a genome; strand '-' is read as the reverse complement."""
    flipped = {"+": "-", "-": "+"}

    def read(number: int, start: int, end: int, other_strand: bool) -> np.ndarray:
        place = places[number][0]
        if other_strand:
            place = Interval(place.contig, place.start, place.end, flipped[place.strand])
        return read_piece(genome, place, start, end)

    def num_without_base() -> int:
        by_contig: dict[str, list[Interval]] = {}
        for place, _ in places:
            by_contig.setdefault(place.contig, []).append(place)
        number = 0
        for contig, some in by_contig.items():
            starts, ends = np.array([one.start for one in some]), np.array([one.end for one in some])
            number += int(np.count_nonzero(genome.count_n(contig, starts, ends) == ends - starts))
        return number

    return Sequences(places, read, genome.manifest.bases_sha256, num_without_base)


def of_tokens(tokens: Sequence[np.ndarray], names: Sequence[str], identity: str = "") -> Sequences:
    """Read sequences of token ids (uint8) in memory."""

    def read(number: int, start: int, end: int, other_strand: bool) -> np.ndarray:
        whole = tokens[number]
        if other_strand:  # position t of the other strand is the complement of position length - 1 - t
            return reverse_complement_tokens(whole[len(whole) - end : len(whole) - start])
        return whole[start:end]

    places = [(Interval(name, 0, len(one), "+"), name) for one, name in zip(tokens, names, strict=True)]
    return Sequences(places, read, identity, lambda: sum(not bool((one < N).any()) for one in tokens))


def read_csv(path: Path, warn: Callable[[str], None] | None = None, *, rna: bool = False) -> Sequences:
    """Read a table with a header: a column `sequence` (or seq), and perhaps `name` (or id); .csv or .tsv, plain or gzipped.

    Letters are read as in a FASTA: U is N, unless `rna` says that it is T.

    Raises:
        InputError: A column is missing, or a row holds no letters of DNA; the message names file and line.
    """
    csv.field_size_limit(2**31 - 1)  # a field may hold a sequence of any length
    delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    tokens, names, num_uracil = [], [], 0
    digest = hashlib.sha256()
    check_regular(path, "a table with a column named sequence")
    try:
        with open_text(path, newline="", errors="surrogateescape") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = [column.strip().lower() for column in next(rows, [])]
            if any("\0" in column for column in header):
                raise InputError(f"{path} is not text; expected a table with a column named sequence")
            where = [number for number, name in enumerate(header) if name in SEQUENCE_COLUMNS]
            if not where:
                raise InputError(
                    f"{path} has the columns {', '.join(header)[:200] or 'none'}; expected one named sequence"
                )
            if len(where) > 1:
                raise InputError(
                    f"{path} has {len(where)} columns named {' or '.join(SEQUENCE_COLUMNS)}; leave the name to the one to read"
                )
            named = [header.index(name) for name in NAME_COLUMNS if name in header]
            for number, row in enumerate(rows, 2):
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(f"{path}, row {number}: {len(row)} columns, the header has {len(header)}")
                letters = printable_text(row[where[0]].strip())
                try:
                    one = tokens_of(letters, rna).copy()
                    num_uracil += 0 if rna else count_uracil(letters)
                except ValueError as error:
                    raise InputError(f"{path}, row {number}: {error}") from None
                if not len(one):
                    raise InputError(f"{path}, row {number}: the sequence is empty")
                name = next((row[place] for place in named if row[place].strip()), f"row{number - 1}")
                if len(name.splitlines()) > 1:
                    raise InputError(f"{path}, row {number}: the name goes over lines; is a quote left open?")
                tokens.append(one)
                names.append(name)
                digest.update(one.tobytes() + b"\n" + names[-1].encode("utf-8", "surrogateescape") + b"\n")
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not tokens:
        raise InputError(f"{path} holds no sequence")
    if warn and num_uracil:
        warn(f"{num_uracil:,} letters U became N; --rna reads them as T")
    return of_tokens(tokens, names, digest.hexdigest())


def _batches(numbers: Sequence[int], lengths: Sequence[int], piece: int) -> Iterator[list[int]]:
    """Give numbers of sequences to read together: neighbours in length, at most a fifth of them padding."""
    some: list[int] = []
    for number in sorted(numbers, key=lambda n: lengths[n]):
        length = lengths[number]
        fits = len(some) < MOST_AT_ONCE and (len(some) + 1) * length <= piece
        if some and not (fits and length <= 1.25 * lengths[some[0]]):
            yield some
            some = []
        some.append(number)
    if some:
        yield some


def num_rows_of(config: EmbedConfig, length: int) -> int:
    """Count the vectors of a sequence."""
    return 1 if config.window is None else -(-length // config.window)


class _Embedding:
    """Reads sequences and hands on their rows."""

    def __init__(
        self, model: DnaMamba, sequences: Sequences, config: EmbedConfig, piece_bases: int | None, put: Put,
        on_bases: Callable[[int], None] | None,
    ):  # fmt: skip
        self.model, self.config, self.put, self.on_bases = model, config, put, on_bases
        self.sequences, self.lengths = sequences, sequences.lengths
        self.device = model.lm_head.weight.device
        self.piece = piece_bases or PIECES[self.device.type]
        self.layer = config.layer_of(model)

    @torch.no_grad()
    def read(self, numbers: Sequence[int]) -> None:
        """Embed some sequences, those of like lengths together."""
        for some in _batches(numbers, self.lengths, self.piece):
            for other_strand in (False, True) if self.config.strands == "both" else (False,):
                window = self.config.window
                if len(some) == 1 and window is not None and window <= self.piece < self.lengths[some[0]]:
                    self._in_windows(some[0], window, other_strand)
                else:
                    self._whole(some, other_strand)

    def _vectors(self, numbers: Sequence[int], start: int, end: int, other_strand: bool, state: ModelState | None):
        pieces = [
            self.sequences.read(number, start, min(end, self.lengths[number]), other_strand)
            if start < self.lengths[number]
            else np.zeros(0, np.uint8)
            for number in numbers
        ]
        tokens_BT = np.full((len(pieces), end - start), N, np.uint8)  # shorter ones are filled on the right
        for row, tokens in enumerate(pieces):
            tokens_BT[row, : len(tokens)] = tokens
        vectors_BTD, state = self.model.backbone.vectors_of_layer(
            torch.from_numpy(tokens_BT).to(self.device), self.layer, state
        )
        if self.on_bases:
            self.on_bases(sum(len(tokens) for tokens in pieces))
        return vectors_BTD, state

    def _whole(self, numbers: Sequence[int], other_strand: bool) -> None:
        """Hold what is kept of these sequences until they are read."""
        lengths = [self.lengths[number] for number in numbers]
        sums = _Sums(self.config, lengths, self.model.config.width, self.device)
        state: ModelState | None = None
        for start in range(0, max(lengths), self.piece):
            end = min(start + self.piece, max(lengths))
            vectors_BTD, state = self._vectors(numbers, start, end, other_strand, state)
            sums.add(vectors_BTD, start, other_strand)
        for number, vectors in zip(numbers, sums.vectors(), strict=True):
            self.put(number, 0, np.atleast_2d(vectors), other_strand)

    def _in_windows(self, number: int, window: int, other_strand: bool) -> None:
        """Hand on the windows of each piece; pieces end where windows do, on the other strand too."""
        length, step = self.lengths[number], self.piece // window * window
        first = length % step if other_strand else 0
        bounds = sorted({0, first, *range(first, length, step), length})
        state: ModelState | None = None
        for start, end in itertools.pairwise(bounds):
            vectors_BTD, state = self._vectors([number], start, end, other_strand, state)
            sums = _Sums(self.config, [end - start], self.model.config.width, self.device)
            sums.add(vectors_BTD, 0, other_strand)
            at = (length - end if other_strand else start) // window
            self.put(number, at, sums.vectors()[0], other_strand)


def _embed(
    model: DnaMamba, sequences: Sequences, config: EmbedConfig, piece_bases: int | None,
    on_bases: Callable[[int], None] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    lengths = sequences.lengths
    found = [np.zeros((num_rows_of(config, length), model.config.width), np.float32) for length in lengths]

    def put(number: int, first: int, rows: np.ndarray, average: bool) -> None:
        place = found[number][first : first + len(rows)]
        place[:] = (place + rows) / 2 if average else rows

    _Embedding(model, sequences, config, piece_bases, put, on_bases).read(range(len(lengths)))
    return [rows[0] for rows in found] if config.window is None else found


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
        on_bases: Called with bases that were read.

    Raises:
        InputError: There is no such layer.
    """
    return _embed(model, of_genome(genome, intervals), config, piece_bases, on_bases)


def embed_tokens(
    model: DnaMamba, sequences: Sequence[np.ndarray], config: EmbedConfig, *, piece_bases: int | None = None
) -> list[np.ndarray]:
    """Give the vectors of sequences of token ids (uint8), in their order; see `embed`."""
    return _embed(model, of_tokens(sequences, [""] * len(sequences)), config, piece_bases)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRunConfig:
    """What to embed, and where to."""

    model: Path
    sequences: str
    """FASTA, GenBank file or genome store; BED with `genome`; .csv or .tsv with a column named sequence."""
    out: Path
    genome: str | None = None
    window_bases: int | None = None
    embed: EmbedConfig = EmbedConfig()
    shard: tuple[int, int] = (1, 1)
    """This one, from 1, of so many; joined in order they are the one run, to the bit. One may be empty."""
    rna: bool = False
    """Read U of a file as T."""
    device: str = "auto"
    piece_bases: int | None = None

    def __post_init__(self) -> None:
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
    resumed_bases: int
    """Of these, what an earlier run had done."""
    seconds: float


def parts_of(lengths: Sequence[int]) -> list[range]:
    """Cut sequences, in their order, into parts of about `PART_BASES`; a longer sequence is a part of its own."""
    parts, first, bases = [], 0, 0
    for number, length in enumerate(lengths):
        if number > first and (bases + length > PART_BASES or number - first == PART_SEQUENCES):
            parts.append(range(first, number))
            first, bases = number, 0
        bases += length
    return [*parts, range(first, len(lengths))] if lengths else parts


def shard_of(parts: Sequence[range], lengths: Sequence[int], shard: tuple[int, int]) -> list[range]:
    """Give the parts of a shard: neighbours, so that shards joined in order are the one run; about equal in bases."""
    number, of = shard
    total, before, mine = sum(lengths), 0, []
    for part in parts:
        bases = sum(lengths[n] for n in part)
        if (2 * before + bases) * of // (2 * total) == number - 1:  # where its middle lies
            mine.append(part)
        before += bases
    return mine


def _open(config: EmbedRunConfig, on_progress: Progress | None, warn: Callable[[str], None] | None) -> Sequences:
    if config.sequences.removesuffix(".gz").endswith((".csv", ".tsv")):
        if config.genome is not None:
            raise InputError(f"--genome goes with a BED file; {config.sequences} does not end in .bed")
        table = read_csv(Path(config.sequences), warn, rna=config.rna)
        if config.window_bases is None:
            return table
        raise InputError("--window cuts records of FASTA and BED; for a table take --pool window:N")
    return of_genome(
        *open_sequences(config.sequences, config.genome, config.window_bases, on_progress, warn, rna=config.rna)
    )


def run(
    config: EmbedRunConfig,
    *,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_bases: Callable[[int, int], None] | None = None,
) -> EmbedResult:
    """Embed and write a file: a row a sequence, window or base, with contig, start, end, strand and name.

    Vectors go to a hidden folder beside the output as they are made; a run that was killed goes on where it stopped.

    Args:
        config: What to do.
        on_progress: Called while a FASTA is packed.
        warn: Called with sentences that deserve attention.
        on_bases: Called with bases read just now and bases to read in all.

    Raises:
        InputError: The model, the sequences, the layer or the output is at fault, or a library for the format is missing.
    """
    started = time.monotonic()
    warn = warn or (lambda words: None)
    device = find_device(config.device)
    check_format(config.out)
    model = load_language_model(config.model, device)
    config.embed.layer_of(model)
    sequences = _open(config, on_progress, warn)
    lengths = sequences.lengths
    warn_if_longer(model.trained_bases, max(lengths, default=0), warn)
    parts = shard_of(parts_of(lengths), lengths, config.shard)
    if not parts:
        warn(
            f"--shard {config.shard[0]}/{config.shard[1]} has nothing to do: there are fewer parts of 2^18 bases than shards"
        )
    numbers = range(parts[0].start, parts[-1].stop) if parts else range(0)
    first_rows = np.concatenate(
        [[0], np.cumsum([num_rows_of(config.embed, lengths[n]) for n in numbers], dtype=np.int64)]
    )
    if unknown := sequences.num_without_base():
        warn(f"{unknown:,} of {len(lengths):,} sequences hold no A, C, G or T: their vectors say nothing of a base")
    plan = _plan(config, sequences, device)
    vectors = UnfinishedVectors(config.out, plan, int(first_rows[-1]), model.config.width, warn)
    try:
        num_bases = sum(lengths[n] for n in numbers)
        done = [part for number, part in enumerate(parts) if number in vectors.done]
        resumed = sum(lengths[n] for part in done for n in part)
        strands = 2 if config.embed.strands == "both" else 1
        total = strands * (num_bases - resumed)

        def put(number: int, first: int, rows: np.ndarray, average: bool) -> None:
            vectors.write(int(first_rows[number - numbers.start]) + first, rows, average)

        say = (lambda bases: on_bases(bases, total)) if on_bases else None
        work = _Embedding(model, sequences, config.embed, config.piece_bases, put, say)
        for number, part in enumerate(parts):
            if number not in vectors.done:
                work.read(part)
                vectors.finish(number)
        before = sum(num_rows_of(config.embed, lengths[n]) for n in range(numbers.start)) if parts else 0
        write_file(
            vectors,
            lambda start, end: columns_of(sequences.places, config.embed, first_rows, numbers, start, end),
            before,
        )
    except BaseException as error:
        cause = error.__cause__ if isinstance(error, InputError) and isinstance(error.__cause__, OSError) else error
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or isinstance(cause, InputError):
            vectors.clear()
        else:  # whatever it was, what is done is not lost
            vectors.close()
        raise
    vectors.clear()
    return EmbedResult(
        out=config.out, num_rows=int(first_rows[-1]), width=model.config.width, num_bases=num_bases, resumed_bases=resumed,
        seconds=time.monotonic() - started,
    )  # fmt: skip


def _plan(config: EmbedRunConfig, sequences: Sequences, device: str) -> dict[str, object]:
    """Say all that the vectors and their order depend on."""
    digest = hashlib.sha256()
    directory, _ = find_model(config.model)
    for path in sorted(directory.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    places = hashlib.sha256()
    for interval, name in sequences.places:
        row = f"{interval.contig}\t{interval.start}\t{interval.end}\t{interval.strand}\t{name}\n"
        places.update(row.encode("utf-8", "surrogateescape"))
    return {
        "model": digest.hexdigest(), "bases": sequences.identity, "places": places.hexdigest(), "device": device,
        "embed": dataclasses.asdict(config.embed), "shard": list(config.shard), "piece_bases": config.piece_bases,
        "part": [PART_BASES, PART_SEQUENCES],
    }  # fmt: skip


def columns_of(
    places: Sequence[Named], config: EmbedConfig, first_rows: np.ndarray, numbers: range, start: int, end: int
) -> dict[str, np.ndarray]:
    """Say what rows start to end - 1 are.

    Args:
        places: All sequences.
        config: Which vectors.
        first_rows: First row of each of `numbers`, and the number of rows.
        numbers: Sequences that have rows here.
        start: First row.
        end: Row after the last.

    Returns:
        contig, start, end (0-based, end excluded), strand and name; windows of the reverse strand lie where they were read.
    """
    rows = np.arange(start, end)
    which = np.searchsorted(first_rows, rows, side="right") - 1
    used, row_in_used = np.unique(which, return_inverse=True)
    some = [places[numbers.start + int(n)] for n in used]
    lows = np.array([interval.start for interval, _ in some], np.int64)[row_in_used]
    highs = np.array([interval.end for interval, _ in some], np.int64)[row_in_used]
    reverse = np.array([interval.strand == "-" for interval, _ in some], bool)[row_in_used]
    if config.window is not None:
        offset = (rows - first_rows[which]) * config.window
        until = np.minimum(offset + config.window, highs - lows)
        lows, highs = (
            np.where(reverse, highs - until, lows + offset), np.where(reverse, highs - offset, lows + until)
        )  # fmt: skip

    def words(values: list[str]) -> np.ndarray:
        return np.array([printable_text(value) for value in values], dtype=str)[row_in_used]

    return {
        "contig": words([interval.contig for interval, _ in some]),
        "start": lows,
        "end": highs,
        "strand": words([interval.strand for interval, _ in some]),
        "name": words([name for _, name in some]),
    }
