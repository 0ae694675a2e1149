"""Bits per base along a genome, as bigWig and as a picture."""

import contextlib
import math
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dna_mamba.data.intervals import Interval, merge
from dna_mamba.data.objectives import TokenPolicy
from dna_mamba.data.selection import load_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import BASE_BITS, STORE_T
from dna_mamba.data.windows import known_bases
from dna_mamba.device import find_device
from dna_mamba.errors import InputError
from dna_mamba.files import WholeFile, check_writable
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.configs.read import TrackConfig
from dna_mamba.pipelines.pictures import draw_or_say, figure_of, save
from dna_mamba.pipelines.sequences import load_language_model, warn_if_longer
from dna_mamba.progress import Progress
from dna_mamba.reading.losses import stream_losses

MOST_PANELS = 20
"""Of the picture."""
POINTS = 2000
"""Of the picture; each is the mean of so many bases that they span the region."""


@dataclass(frozen=True, kw_only=True)
class TrackResult:
    """What was written."""

    num_bases: int
    """That have a value."""
    bits_per_base: float
    seconds: float


def bits_along(model: DnaMamba, genome: GenomeStore, region: Interval, left: int) -> Iterator[tuple[int, np.ndarray]]:
    """Read a region with a carried state, from up to `left` bases before it on.

    Yields:
        Offsets in the region and the bits of the bases from there on (float32), in order; NaN where none is known: a base that
        is none of A, C, G, T has no value, nor has the first base that is read at all.
    """
    at = max(0, region.start - left) + 1
    first = Interval(region.contig, at - 1, region.end)
    if at > region.start:
        yield 0, np.full(1, np.nan, np.float32)
    for stored, losses in stream_losses(model, genome, first, TokenPolicy()):
        values = np.where((stored & BASE_BITS) <= STORE_T, losses / math.log(2), np.nan).astype(np.float32)
        skip = max(0, region.start - at)
        if skip < len(values):
            yield at + skip - region.start, values[skip:]
        at += len(values)


class _Picture:
    """Means of so many bases that a region is a few thousand points."""

    def __init__(self, region: Interval):
        self.region, self.size = region, max(1, len(region) // POINTS)
        number = -(-len(region) // self.size)
        self.sums, self.counts = np.zeros(number), np.zeros(number)

    def add(self, offset: int, values: np.ndarray) -> None:
        """Take in values from an offset on."""
        known = np.flatnonzero(~np.isnan(values))
        places = (offset + known) // self.size
        self.sums += np.bincount(places, values[known], minlength=len(self.sums))
        self.counts += np.bincount(places, minlength=len(self.sums))

    def means(self) -> np.ndarray:
        """Give the points, NaN where nothing is known."""
        return np.divide(self.sums, self.counts, out=np.full(len(self.sums), np.nan), where=self.counts > 0)


def run(
    config: TrackConfig,
    *,
    say: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_bases: Callable[[int, int], None] | None = None,
) -> TrackResult:
    """Score every base of the regions and write them.

    Raises:
        InputError: The model, the genome, a region or an output is at fault, or a library for bigWig is missing.
    """
    started = time.monotonic()
    if config.out is not None and find_spec("pyBigWig") is None:
        raise InputError(f"-o {config.out} needs pyBigWig; pip install pyBigWig, or take --picture alone")
    device = find_device(config.device)
    model = load_language_model(config.model, device, "scoring bases")
    check_writable(config.out, config.picture)
    genome = load_genome(config.genome, on_progress, warn, rna=config.rna)
    regions = _in_order(genome, config.regions)
    warn_if_longer(model.trained_bases, max(map(len, regions)), warn)
    all_bases = sum(map(len, regions))
    if config.out is not None:
        _check_room(config.out, all_bases)
    pictures = [_Picture(region) for region in regions]
    num_known, total = 0, 0.0
    with contextlib.ExitStack() as files:
        bigwig = None
        if config.out is not None:
            path = files.enter_context(WholeFile(config.out))
            bigwig = _BigWig(path, genome)
        for region, picture in zip(regions, pictures, strict=True):
            if say:
                say(f"reading {region}")
            for offset, values in bits_along(model, genome, region, config.left):
                if bigwig is not None:
                    bigwig.add(region, offset, values)
                picture.add(offset, values)
                if on_bases:
                    on_bases(len(values), all_bases)
                known = values[~np.isnan(values)]
                num_known, total = num_known + len(known), total + float(known.sum(dtype=np.float64))
        if not num_known:
            raise InputError(
                "no base of the regions is one of A, C, G, T with a base read before it, so there is no value to write; name "
                "others"
            )
        if bigwig is not None:
            bigwig.close(num_known)
    _draw_as_asked(config, pictures, warn)
    return TrackResult(
        num_bases=num_known,
        bits_per_base=total / num_known,
        seconds=time.monotonic() - started,
    )


def _in_order(genome: GenomeStore, texts: Sequence[str]) -> list[Interval]:
    """Read regions, all contigs where none is named, joined and in the order of the genome."""
    regions = [genome.region(text) for text in texts]
    if not regions:
        regions = [Interval(c.name, 0, c.length) for c in genome.manifest.contigs if c.length]
    order = {contig.name: number for number, contig in enumerate(genome.manifest.contigs)}
    regions = sorted(merge(regions), key=lambda r: (order[r.contig], r.start))
    if not known_bases(genome, regions):
        raise InputError("the regions hold no A, C, G or T, so there is no value to write; name others")
    return regions


def _draw_as_asked(config: TrackConfig, pictures: Sequence[_Picture], warn: Callable[[str], None] | None) -> None:
    if config.picture is None:
        return
    drawn = config.picture
    if config.out is not None:  # the track is there; a picture that fails is a remark
        draw_or_say(lambda: _draw(drawn, pictures), drawn, warn)
    else:
        _draw(drawn, pictures)


def _check_room(out: Path, num_bases: int) -> None:
    """Refuse to write what may not fit: on a full disk pyBigWig corrupts memory and takes the program with it."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    needed, free = 6 * num_bases + 2**20, shutil.disk_usage(folder).free
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:  # ulimit -f
        free = min(free, limit)
    if needed > free:
        raise InputError(
            f"-o {out}: {num_bases:,} bases may take {needed / 2**20:,.1f} MiB as bigWig, {free / 2**20:,.1f} are free; free "
            "space, or name smaller regions"
        )


class _BigWig:
    """A bigWig file, written as values come; pyBigWig says nothing of a full disk, so the end is looked at.

    Raises:
        InputError: It could not be written in full.
    """

    def __init__(self, path: Path, genome: GenomeStore):
        import pyBigWig

        self.path, self.open = path, pyBigWig.open
        try:
            self.file = self.open(str(path), "w")
            self.file.addHeader([(contig.name, contig.length) for contig in genome.manifest.contigs])
        except (RuntimeError, SystemError) as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> InputError:
        return InputError(f"cannot write {self.path.name.lstrip('.')}: {error}; is the disk full?")

    def add(self, region: Interval, offset: int, values: np.ndarray) -> None:
        """Write the stretches of known values."""
        known = np.concatenate([[False], ~np.isnan(values), [False]])
        edges = np.flatnonzero(known[1:] != known[:-1])
        first = region.start + offset
        try:
            for start, end in edges.reshape(-1, 2).tolist():
                self.file.addEntries(region.contig, first + start, values=values[start:end].tolist(), span=1, step=1)
        except (RuntimeError, SystemError) as error:
            raise self._fault(error) from error

    def close(self, num_known: int) -> None:
        """End the file and see that it holds what was written."""
        try:
            self.file.close()
            written = self.open(str(self.path))
            complete = written.isBigWig() and written.header()["nBasesCovered"] == num_known
            written.close()
        except (RuntimeError, SystemError) as error:
            raise self._fault(error) from error
        with open(self.path, "rb") as file:
            magic = file.read(4)
            file.seek(-4, 2)
            complete = complete and magic == file.read(4)  # the magic number begins and ends the file
        if not complete and num_known:
            raise InputError("the bigWig was cut off while it was written; free space on the disk and try again")


def _draw(path: Path, pictures: Sequence[_Picture]) -> None:
    from matplotlib.ticker import FuncFormatter

    left_out = len(pictures) - MOST_PANELS
    pictures = pictures[:MOST_PANELS]
    figure = figure_of(9, 0.6 + 2.0 * len(pictures))
    panels = figure.subplots(len(pictures), squeeze=False)[:, 0]
    if left_out > 0:
        figure.suptitle(f"the first {MOST_PANELS} regions; {left_out:,} more are not drawn", fontsize=9)
    for axes, picture in zip(panels, pictures, strict=True):
        region, size, means = picture.region, picture.size, picture.means()
        axes.plot(region.start + (np.arange(len(means)) + 0.5) * size, means, linewidth=0.7)
        axes.axhline(2.0, color="grey", linestyle=":", linewidth=0.8)
        axes.set_ylabel("bits per base")
        axes.set_title(f"{region.contig}:{region.start + 1:,}-{region.end:,}, means of {size:,} bases", fontsize=9)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
