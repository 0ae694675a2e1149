"""Saturation mutagenesis: the score of every possible substitution in a region, as a table and a heat-map."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_mamba.alphabet import A
from dna_mamba.data.intervals import Interval
from dna_mamba.data.selection import load_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.device import find_device
from dna_mamba.errors import InputError
from dna_mamba.files import WholeFile, check_writable
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.configs.score import MutateConfig
from dna_mamba.pipelines.pictures import draw_or_say, figure_of, save
from dna_mamba.pipelines.sequences import Reached, load_language_model, read_piece
from dna_mamba.pipelines.tables import write_rows
from dna_mamba.progress import Progress
from dna_mamba.reading.forks import Allele, score_alleles
from dna_mamba.reading.walk import Read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {"contig": str, "pos": int, "ref": str, "alt": str, "DMLLR": float}
MOST_BASES = 1 << 20
MOST_DRAWN = 3000
"""Bases of a heat-map; a wider one shows nothing."""


@dataclass(frozen=True, kw_only=True)
class MutateResult:
    """What was scored."""

    region: Interval
    letters: str
    """Of the genome."""
    scores_T4: np.ndarray
    """Log-likelihood ratio of each base to A, C, G and T in nats; 0 for itself, NaN where the genome has none of the four."""
    seconds: float


def saturate(
    model: DnaMamba, genome: GenomeStore, region: Interval, *, left: int | None = 16_384, right: int = 512,
    strands: str = "forward", on_bases: Callable[[int], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """Score every substitution in a region; one pass, begun `left` bases before it, serves all.

    Args:
        model: On its device.
        genome: Holds the region.
        region: On the forward strand.
        left: Bases before the region where the pass begins; none begins at the contig's first.
        right: Bases of right flank that are scored with each.
        strands: both averages with the other strand, where the pass begins behind the region.
        on_bases: Called with the place that the pass has reached, counted from where it began.

    Returns:
        (T, 4) nats for A, C, G and T: 0 for the base that stands there, NaN where it is none of the four.
    """
    letters = genome.fetch(Interval(region.contig, region.start, region.end))
    places = [place for place, base in enumerate(letters) if base in "ACGT"]
    pairs = [(place, number) for place in places for number in range(4) if "ACGT"[number] != letters[place]]
    length = genome.contig(region.contig).length
    found_T4 = np.full((len(letters), 4), np.nan)
    found_T4[places] = 0.0
    both = "+-" if strands == "both" else "+"
    for strand in both:
        if on_bases is not None:
            on_bases(0)  # the other strand's pass begins at its own first base
        at = [
            (region.start + place, number) if strand == "+" else (length - 1 - region.start - place, 3 - number)
            for place, number in pairs
        ]
        first = 0 if left is None else max(0, min((start for start, _ in at), default=0) - left)
        alleles = [Allele(start - first, 1, np.array([A + base], np.uint8)) for start, base in at]
        read = _from(genome, Interval(region.contig, 0, length, strand), first)
        found = score_alleles(model, read, length - first, alleles, left=None, right=right, on_bases=on_bases).ratios
        for (place, number), ratio in zip(pairs, found.tolist(), strict=True):
            found_T4[place, number] += ratio / len(both)
    return found_T4


def _from(genome: GenomeStore, whole: Interval, first: int) -> Read:
    """Read a contig, along its strand, in positions that count from `first`."""

    def read(start: int, end: int) -> np.ndarray:
        return read_piece(genome, whole, first + start, first + end) if end > start else np.zeros(0, np.uint8)

    return read


def run(
    config: MutateConfig,
    *,
    say: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_bases: Callable[[int, int], None] | None = None,
) -> MutateResult:
    """Score all substitutions of a region and write them.

    Raises:
        InputError: The model, the genome, the region or an output is at fault.
    """
    started = time.monotonic()
    device = find_device(config.device)
    model = load_language_model(config.model, device, "scoring variants")
    check_writable(config.out, config.picture)
    genome = load_genome(config.genome, on_progress, warn, rna=config.rna)
    region, letters = _region(config, genome)
    if warn and (unknown := len(letters) - sum(map(letters.count, "ACGT"))):
        warn(f"{unknown:,} of the {len(letters):,} bases of {config.region} are N, and are not mutated")
    before = genome.contig(region.contig).length if config.left is None else config.left + len(region)
    total = (2 if config.strands == "both" else 1) * (before + len(region) * (3 * (config.right + 1)))
    if say:
        say(f"{3 * len(region):,} substitutions: about {total:,} bases to read")
    first = 0 if config.left is None else max(0, region.start - config.left)
    bases = region.end - first
    advance = None if on_bases is None else Reached(on_bases, bases, (2 if config.strands == "both" else 1) * bases)
    scores_T4 = saturate(
        model, genome, region, left=config.left, right=config.right, strands=config.strands, on_bases=advance
    )
    if config.out is not None:
        _write(config.out, region, letters, scores_T4)
    if config.picture is not None:
        picture = config.picture
        if config.out is not None:  # the table is there; a picture that fails is a remark
            draw_or_say(lambda: save(draw(scores_T4, letters, region), picture), picture, warn)
        else:
            save(draw(scores_T4, letters, region), picture)
    return MutateResult(region=region, letters=letters, scores_T4=scores_T4, seconds=time.monotonic() - started)


def _region(config: MutateConfig, genome: GenomeStore) -> tuple[Interval, str]:
    """Give the region and its letters; an InputError where it is too long, or there is nothing to mutate."""
    region = genome.region(config.region)
    if len(region) > MOST_BASES:
        raise InputError(
            f"--region {config.region} has {len(region):,} bases; at most {MOST_BASES:,} are mutated at once"
        )
    if config.picture is not None and len(region) > MOST_DRAWN:
        raise InputError(f"--picture shows up to {MOST_DRAWN:,} bases, the region has {len(region):,}; take -o alone")
    letters = genome.fetch(Interval(region.contig, region.start, region.end))
    if not any(map(letters.count, "ACGT")):
        raise InputError(f"--region {config.region} holds no A, C, G or T, so there is nothing to mutate; name another")
    return region, letters


def _write(out: Path, region: Interval, letters: str, scores_T4: np.ndarray) -> None:
    rows = [
        (region.contig, region.start + place + 1, base, alt, float(scores_T4[place, number]))
        for place, base in enumerate(letters)
        if base in "ACGT"
        for number, alt in enumerate("ACGT")
        if alt != base
    ]
    with WholeFile(out) as path:
        write_rows(path, COLUMNS, rows)


WIDE = 60
"""Bases of a row of the heat-map, so that their letters can be read."""
MOST_LETTERS = 600
"""Bases of a region whose letters are written; of a longer one dots mark the genome."""


def draw(scores_T4: np.ndarray, letters: str, region: Interval) -> "Figure":
    """Draw a heat-map, in rows of 60 bases: blue is less likely to the model than the genome's base, red more.

    Returns:
        A matplotlib figure.
    """
    wide = WIDE if len(letters) <= MOST_LETTERS else 4 * WIDE
    starts = range(0, len(letters), wide)
    figure = figure_of(9, 1.3 + 1.15 * len(starts))
    panels = figure.subplots(len(starts), squeeze=False)[:, 0]
    known = np.abs(scores_T4[~np.isnan(scores_T4)])
    limit = max(1e-6, float(np.quantile(known, 0.99))) if len(known) else 1.0
    for axes, start in zip(panels, starts, strict=True):
        some_T4 = scores_T4[start : start + wide]
        row = letters[start : start + wide]
        image = axes.imshow(
            some_T4.T, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest",
            extent=(start - 0.5, start + len(some_T4) - 0.5, 3.5, -0.5),
        )  # fmt: skip
        for place, base in enumerate(row):
            if wide == WIDE:
                axes.text(start + place, -0.95, base, ha="center", va="center", fontsize=6.5, family="monospace")
            if base in "ACGT":
                axes.plot(start + place, "ACGT".index(base), ".", color="black", markersize=2)
        axes.set_yticks(range(4), list("ACGT"), fontsize=7)
        axes.set_xlim(start - 0.5, start + min(wide, max(len(some_T4), 1 if len(starts) == 1 else wide)) - 0.5)
        ticks = range(start, start + len(some_T4), wide // 6)
        axes.set_xticks(list(ticks), [f"{region.start + tick + 1:,}" for tick in ticks], fontsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    shown = min(1.0, 3 / len(starts) + 0.2)
    figure.colorbar(image, ax=list(panels), label="log-likelihood ratio to the genome's base, nats", shrink=shown)
    figure.suptitle(
        f"{region.contig}:{region.start + 1:,}-{region.end:,}. Blue: the model finds this base less likely than the genome's, "
        f"{'whose letters stand above each row' if wide == WIDE else 'which is marked by dots'}; red: likelier.",
        fontsize=8,
        wrap=True,
    )
    return figure
