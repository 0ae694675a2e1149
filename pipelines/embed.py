# Shapes: B sequences, T positions, D model width, W windows
"""Vectors of sequences, of their windows or of their bases, from any layer of a language model, read with a carried state."""

import csv
import dataclasses
import errno
import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dna_mamba.alphabet import N
from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.unpack import open_text, printable_text
from dna_mamba.data.vocabulary import count_uracil, reverse_complement_tokens, tokens_of
from dna_mamba.device import find_device
from dna_mamba.errors import InputError, check_regular
from dna_mamba.files import UNWRITABLE
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.configs.read import EmbedRunConfig
from dna_mamba.pipelines.evaluate import find_model
from dna_mamba.pipelines.sequences import Named, load_language_model, open_sequences, read_piece, warn_if_longer
from dna_mamba.pipelines.vector_files import UnfinishedVectors, write_file
from dna_mamba.progress import Progress
from dna_mamba.reading.settings import EmbedConfig
from dna_mamba.reading.vectors import Reader, Vectors, num_rows_of

PART_BASES, PART_SEQUENCES = 2**18, 1024
"""Of a part of the work: what is sorted by length together, noted when it is done, and given to one shard."""
SEQUENCE_COLUMNS = ("sequence", "seq")
NAME_COLUMNS = ("name", "id")
COLUMNS = ("contig", "start", "end", "strand", "name")


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


def _column_of_sequences(header: Sequence[str], path: Path) -> int:
    if any("\0" in column for column in header):
        raise InputError(f"{path} is not text; expected a table with a column named sequence")
    where = [number for number, name in enumerate(header) if name in SEQUENCE_COLUMNS]
    if not where:
        raise InputError(f"{path} has the columns {', '.join(header)[:200] or 'none'}; expected one named sequence")
    if len(where) > 1:
        raise InputError(
            f"{path} has {len(where)} columns named {' or '.join(SEQUENCE_COLUMNS)}; leave the name to the one to read"
        )
    return where[0]


def read_csv(path: Path, warn: Callable[[str], None] | None = None, *, rna: bool = False) -> Sequences:
    """Read a table with a header: a column `sequence` (or seq), and perhaps `name` (or id); .csv or .tsv, plain or gzipped.

    Letters are read as in a FASTA: U is N, unless `rna` says that it is T.

    Raises:
        InputError: A column is missing, or a row holds no letters of DNA; the message names file and line.
    """
    tokens, names, num_uracil = [], [], 0
    digest = hashlib.sha256()
    for where, letters, name in _rows_of_csv(path):
        try:
            one = tokens_of(letters, rna).copy()
            num_uracil += 0 if rna else count_uracil(letters)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        if not len(one):
            raise InputError(f"{where}: the sequence is empty")
        if len(name.splitlines()) > 1:
            raise InputError(f"{where}: the name goes over lines; is a quote left open?")
        tokens.append(one)
        names.append(name)
        digest.update(one.tobytes() + b"\n" + name.encode("utf-8", "surrogateescape") + b"\n")
    if not tokens:
        raise InputError(f"{path} holds no sequence")
    if warn and num_uracil:
        warn(f"{num_uracil:,} letters U became N; --rna reads them as T")
    return of_tokens(tokens, names, digest.hexdigest())


def _rows_of_csv(path: Path) -> Iterator[tuple[str, str, str]]:
    """Give where each row stands, for messages, its sequence and its name."""
    csv.field_size_limit(2**31 - 1)  # a field may hold a sequence of any length
    delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    check_regular(path, "a table with a column named sequence")
    try:
        with open_text(path, newline="", errors="surrogateescape") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = [column.strip().lower() for column in next(rows, [])]
            at = _column_of_sequences(header, path)
            named = [header.index(name) for name in NAME_COLUMNS if name in header]
            for number, row in enumerate(rows, 2):
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(f"{path}, row {number}: {len(row)} columns, the header has {len(header)}")
                name = next((row[place] for place in named if row[place].strip()), f"row{number - 1}")
                yield f"{path}, row {number}", printable_text(row[at].strip()), name
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _embed(
    model: DnaMamba, sequences: Sequences, config: EmbedConfig, piece_bases: int | None,
    on_bases: Callable[[int], None] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    lengths = sequences.lengths
    found = [np.zeros((num_rows_of(config, length), model.config.width), np.float32) for length in lengths]

    def put(number: int, first: int, rows: np.ndarray, average: bool) -> None:
        place = found[number][first : first + len(rows)]
        place[:] = (place + rows) / 2 if average else rows

    Vectors(model, sequences.read, lengths, config, put, piece_bases=piece_bases, on_bases=on_bases).read(
        range(len(lengths))
    )
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
    if unknown := sequences.num_without_base():
        warn(f"{unknown:,} of {len(lengths):,} sequences hold no A, C, G or T: their vectors say nothing of a base")
    rows = ShardRows.of(parts, lengths, config.embed)
    plan = _plan(config, sequences, device)
    vectors = UnfinishedVectors(config.out, plan, rows.total, model.config.width, warn)
    with _kept_or_cleared(vectors, config.out):
        resumed = sum(lengths[n] for number, part in enumerate(parts) if number in vectors.done for n in part)
        _read_parts(model, sequences, config, parts, rows, vectors, on_bases)
        write_file(
            vectors,
            lambda start, end: columns_of(sequences.places, config.embed, rows.first, rows.numbers, start, end),
            rows.before,
        )
    vectors.clear()
    return EmbedResult(
        out=config.out, num_rows=rows.total, width=model.config.width, num_bases=sum(lengths[n] for n in rows.numbers),
        resumed_bases=resumed, seconds=time.monotonic() - started,
    )  # fmt: skip


class ShardRows(NamedTuple):
    """The rows of a shard."""

    numbers: range
    """Of its sequences."""
    first: np.ndarray
    """Row of the file where each begins, and one more for the end; int64."""
    before: int
    """Rows of the shards before."""

    @property
    def total(self) -> int:
        """Rows of the file."""
        return int(self.first[-1])

    @staticmethod
    def of(parts: Sequence[range], lengths: Sequence[int], config: EmbedConfig) -> "ShardRows":
        """Count the rows of a shard, which may have no part."""
        numbers = range(parts[0].start, parts[-1].stop) if parts else range(0)
        ends = np.cumsum([num_rows_of(config, lengths[n]) for n in numbers], dtype=np.int64)
        before = sum(num_rows_of(config, lengths[n]) for n in range(numbers.start))
        return ShardRows(numbers, np.concatenate([[0], ends]), before)


def _read_parts(
    model: DnaMamba, sequences: Sequences, config: EmbedRunConfig, parts: Sequence[range], rows: ShardRows,
    vectors: UnfinishedVectors, on_bases: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    """Read what an earlier run has not done."""
    lengths = sequences.lengths
    todo = [(number, part) for number, part in enumerate(parts) if number not in vectors.done]
    strands = 2 if config.embed.strands == "both" else 1
    total = strands * sum(lengths[n] for _, part in todo for n in part)

    def put(number: int, first: int, values: np.ndarray, average: bool) -> None:
        vectors.write(int(rows.first[number - rows.numbers.start]) + first, values, average)

    say = (lambda bases: on_bases(bases, total)) if on_bases else None
    work = Vectors(model, sequences.read, lengths, config.embed, put, piece_bases=config.piece_bases, on_bases=say)
    for number, part in todo:
        work.read(part)
        vectors.finish(number)


@contextmanager
def _kept_or_cleared(vectors: UnfinishedVectors, out: Path) -> Iterator[None]:
    """Keep what is done, whatever ends a run, but on a full disk or where the input was at fault."""
    try:
        yield
    except BaseException as error:
        cause = error.__cause__ if isinstance(error, InputError) and isinstance(error.__cause__, OSError) else error
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or isinstance(cause, InputError):
            vectors.clear()
        else:
            vectors.close()
        if isinstance(error, OSError) and error.filename is None and error.errno in UNWRITABLE:
            raise InputError(f"cannot write {out}: {error.strerror}; choose another -o") from error
        raise


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
