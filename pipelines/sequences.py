"""What commands read: records of a file, intervals of a genome, windows of either."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dna_mamba.data.intervals import Interval, read_bed
from dna_mamba.data.selection import load_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import tokens_of_store
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import from_pretrained
from dna_mamba.model.implementation import implementation_for
from dna_mamba.pipelines.evaluate import find_model
from dna_mamba.progress import Progress
from dna_mamba.reading.pieces import check_causal

Named = tuple[Interval, str]
"""A place and its name."""


def load_language_model(path: Path, device: str, next_base: str | None = None) -> DnaMamba:
    """Load a model for reading sequence as it stands, on a device.

    Args:
        path: Run directory, model directory, or a name.
        device: cpu or cuda.
        next_base: What the likelihood of the next base is asked for, in words, if it is.

    Raises:
        InputError: There is none, it is damaged, it was trained with a start token, which these commands do not write, or it
            does not say what comes next.
    """
    directory, _ = find_model(path)
    model, policy = from_pretrained(directory)
    if next_base is not None:
        check_causal(model, next_base)
    if policy.get("start_token"):
        raise InputError(
            f"{path} was trained with a start token before each window; evaluate knows it, this command does not yet"
        )
    return model.use_implementation(implementation_for(model.config, device)).to(device)


def warn_if_longer(trained: int | None, bases: int, warn: Callable[[str], None] | None) -> None:
    """Say so when more bases are read in one go than a model was trained on; nothing where that is not known."""
    if warn and trained is not None and bases > trained:
        warn(
            f"the model was trained on windows of {trained:,} bases and reads up to {bases:,} in one go here; dna-mamba "
            f"evaluate shows what longer context does to it"
        )


BED_ENDINGS = (
    *(".bed", ".bed3", ".bed4", ".bed5", ".bed6", ".bed9", ".bed12"),
    *(".narrowpeak", ".broadpeak", ".gappedpeak", ".bedgraph", ".summits"),
)
"""Endings of files whose first three columns are those of BED."""


def is_bed(path: str) -> bool:
    """Say whether a file names intervals, by its ending."""
    return path.lower().removesuffix(".gz").removesuffix(".bgz").endswith(BED_ENDINGS)


def open_sequences(
    sequences: str,
    genome: str | None,
    window_bases: int | None = None,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    *,
    rna: bool = False,
) -> tuple[GenomeStore, list[Named]]:
    """Open a FASTA, GenBank file or store (each record is read), or a BED with its genome (each interval is).

    Args:
        sequences: The file.
        genome: Genome of a BED.
        window_bases: Cut all into windows of this length, side by side; the last of each may be shorter.
        on_progress: Called while a FASTA is packed.
        warn: Called with sentences that deserve attention.
        rna: Read U of a file as T.

    Raises:
        InputError: A file is at fault, an interval ends past its contig, or the genome is missing or too many.
    """
    bed = is_bed(sequences)
    if bed and genome is None:
        raise InputError(f"{sequences} names intervals; say of which genome with --genome")
    if not bed and genome is not None:
        raise InputError(f"--genome goes with a BED file; {sequences} does not end in .bed, .narrowPeak or the like")
    store = load_genome(str(genome) if bed else sequences, on_progress, warn, rna=rna)
    whole = _of_bed(Path(sequences), store, warn) if bed else _records(store)
    if not whole:
        raise InputError(f"{sequences} holds no base")
    if window_bases is None:
        return store, whole
    return store, [
        (Interval(interval.contig, start, min(start + window_bases, interval.end), interval.strand), name)
        for interval, name in whole
        for start in range(interval.start, interval.end, window_bases)
    ]


def _records(genome: GenomeStore) -> list[Named]:
    return [(Interval(c.name, 0, c.length), c.name) for c in genome.manifest.contigs if c.length]


def _of_bed(path: Path, genome: GenomeStore, warn: Callable[[str], None] | None) -> list[Named]:
    found: list[Named] = []
    for line, interval, columns in read_bed(path, warn):
        where = f"{path}, line {line}"
        try:
            length = genome.contig(interval.contig).length
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if interval.end > length:
            raise InputError(f"{where}: {interval} ends past {interval.contig}, which has {length:,} bases")
        found.append((interval, columns[0] if columns and columns[0] not in ("", ".") else str(interval)))
    return found


def read_piece(genome: GenomeStore, interval: Interval, start: int, end: int) -> np.ndarray:
    """Read positions start to end - 1 of an interval, counted along its strand, as token ids."""
    if interval.strand == "-":
        return genome.tokens(Interval(interval.contig, interval.end - end, interval.end - start, "-"))
    return tokens_of_store(genome.stored(interval.contig, interval.start + start, interval.start + end))


class Reached:
    """Turns places that a pass has reached into steps; another pass begins where a lower place is reached.

    Args:
        on_bases: Takes bases done since the last call and bases in all.
        reach: Where a pass ends.
        total: Bases of all passes.
    """

    def __init__(self, on_bases: Callable[[int, int], None], reach: int, total: int):
        self.on_bases, self.reach, self.total, self.at = on_bases, reach, total, 0

    def __call__(self, place: int) -> None:
        """Take the place that the pass has reached."""
        if place < self.at:
            self.at = 0
        place = min(place, self.reach)
        if place > self.at:
            self.on_bases(place - self.at, self.total)
            self.at = place
