"""Bits per base along a genome, as bigWig and as a picture."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dna_mamba.data.build import Progress
from dna_mamba.data.genome import GenomeStore
from dna_mamba.data.intervals import Interval, merge, parse_region
from dna_mamba.data.objectives import TokenPolicy
from dna_mamba.data.vocabulary import BASE_BITS, STORE_T
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.pretrain import load_genome
from dna_mamba.pipelines.sequences import WholeFile, find_device, load_language_model
from dna_mamba.training.metrics import stream_losses

POINTS = 2000
"""Of the picture; each is the mean of so many bases that they span the region."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    """What to draw."""

    model: Path
    genome: str
    regions: tuple[str, ...] = ()
    """1-based; none takes every contig."""
    out: Path | None = None
    """bigWig file, .bw or .bigwig."""
    picture: Path | None = None
    left: int = 16_384
    """Bases read before each region, as context."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.out is None and self.picture is None:
            raise InputError("track writes a file: say where with -o track.bw, --picture track.png or both")
        if self.out is not None and self.out.suffix.lower() not in (".bw", ".bigwig"):
            raise InputError(f"-o {self.out} must end in .bw or .bigwig")
        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise InputError(f"--picture {self.picture} must end in .png")
        if not 0 <= self.left <= 2**40:
            raise InputError(f"--left {self.left} must be 0 or more bases")


@dataclass(frozen=True, kw_only=True)
class TrackResult:
    """What was written."""

    num_bases: int
    """That have a value."""
    bits_per_base: float
    seconds: float


def bits_along(model: DnaMamba, genome: GenomeStore, region: Interval, left: int) -> np.ndarray:
    """Give the bits of each base of a region (float32), from all bases up to `left` before it on; NaN where none is known.

    A base that is none of A, C, G, T has no value, nor has the first base that is read at all.
    """
    first = max(0, region.start - left)
    found = np.full(len(region), np.nan, np.float32)
    at = first + 1
    for stored, losses in stream_losses(model, genome, Interval(region.contig, first, region.end), TokenPolicy()):
        values = np.where((stored & BASE_BITS) <= STORE_T, losses / math.log(2), np.nan)
        skip = max(0, region.start - at)
        if skip < len(values):
            start = at + skip - region.start
            found[start : start + len(values) - skip] = values[skip:]
        at += len(values)
    return found


def run(
    config: TrackConfig,
    *,
    say: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> TrackResult:
    """Score every base of the regions and write them.

    Raises:
        InputError: The model, the genome, a region or an output is at fault, or a library for bigWig is missing.
    """
    started = time.monotonic()
    if config.out is not None and find_spec("pyBigWig") is None:
        raise InputError(f"-o {config.out} needs pyBigWig; pip install 'dna-mamba[formats]', or take --picture alone")
    device = find_device(config.device)
    model = load_language_model(config.model, device)
    genome = load_genome(config.genome, on_progress, warn)
    regions = [parse_region(text) for text in config.regions]
    for region in regions:
        length = genome.contig(region.contig).length
        if region.end > length:
            raise InputError(f"--region {region} ends past {region.contig}, which has {length:,} bases")
    if not regions:
        regions = [Interval(c.name, 0, c.length) for c in genome.manifest.contigs if c.length]
    order = {contig.name: number for number, contig in enumerate(genome.manifest.contigs)}
    regions = sorted(merge(regions), key=lambda r: (order[r.contig], r.start))
    found = []
    for region in regions:
        if say:
            say(f"reading {region}")
        found.append(bits_along(model, genome, region, config.left))
    if config.out is not None:
        with WholeFile(config.out) as path:
            _write_bigwig(path, genome, regions, found)
    if config.picture is not None:
        with WholeFile(config.picture) as path:
            _draw(path, regions, found)
    known = np.concatenate([values[~np.isnan(values)] for values in found])
    return TrackResult(
        num_bases=len(known),
        bits_per_base=float(known.mean()) if len(known) else math.nan,
        seconds=time.monotonic() - started,
    )


def _write_bigwig(path: Path, genome: GenomeStore, regions: list[Interval], found: list[np.ndarray]) -> None:
    import pyBigWig

    num_known = sum(int((~np.isnan(values)).sum()) for values in found)
    try:
        _write_entries(pyBigWig.open(str(path), "w"), genome, regions, found)
        written = pyBigWig.open(str(path))
        complete = written.isBigWig() and written.header()["nBasesCovered"] == num_known
        written.close()
        content = path.read_bytes()
        complete = complete and content[:4] == content[-4:]  # the magic number begins and ends the file
    except (RuntimeError, SystemError) as error:
        raise InputError(f"cannot write {path.name.lstrip('.')}: {error}; is the disk full?") from error
    if not complete and num_known:
        raise InputError("the bigWig was cut off while it was written; free space on the disk and try again")


def _write_entries(file: Any, genome: GenomeStore, regions: list[Interval], found: list[np.ndarray]) -> None:
    file.addHeader([(contig.name, contig.length) for contig in genome.manifest.contigs])
    for region, values in zip(regions, found, strict=True):
        known = np.concatenate([[False], ~np.isnan(values), [False]])
        edges = np.flatnonzero(known[1:] != known[:-1])
        for start, end in edges.reshape(-1, 2).tolist():
            file.addEntries(region.contig, region.start + start, values=values[start:end].tolist(), span=1, step=1)
    file.close()


def _draw(path: Path, regions: list[Interval], found: list[np.ndarray]) -> None:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(9, 0.6 + 2.0 * len(regions)), dpi=150, layout="constrained")
    panels: Any = figure.subplots(len(regions), squeeze=False)[:, 0]
    for axes, region, values in zip(panels, regions, found, strict=True):
        size = max(1, len(values) // POINTS)
        starts = np.arange(0, len(values), size)
        known = ~np.isnan(values)
        counts = np.add.reduceat(known.astype(int), starts)
        sums = np.add.reduceat(np.where(known, values, 0.0), starts)
        means = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
        axes.plot(region.start + starts + size / 2, means, linewidth=0.7)
        axes.axhline(2.0, color="grey", linestyle=":", linewidth=0.8)
        axes.set_ylabel("bits per base")
        axes.set_title(f"{region.contig}:{region.start + 1:,}-{region.end:,}, means of {size:,} bases", fontsize=9)
        axes.ticklabel_format(style="plain", axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
