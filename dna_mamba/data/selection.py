"""What a command reads of a genome: which one, which parts of it are held out, and in which windows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from dna_mamba.data.intervals import Interval
from dna_mamba.data.policy import TokenPolicy
from dna_mamba.data.splits import Split, default_split, split_from_bed, split_from_regions
from dna_mamba.data.store.cache import open_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.windows import RULES
from dna_mamba.errors import InputError, nearest
from dna_mamba.progress import Progress

TEST_BASES = 2**24
"""Known bases of the test part that pretrain and evaluate score at most."""
MAX_ORDER = 12
"""Of Markov models."""
DEMO = "demo"
"""Name of the genome that ships in the package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which bases, in which windows."""

    genome: str = DEMO
    """FASTA, GenBank file or genome store; 'demo' is a piece of human chromosome 20 that ships in the package."""
    rna: bool = False
    """Read U of a file as T; otherwise it becomes N."""
    split: str | None = None
    """BED with CONTIG START END SPLIT."""
    valid: tuple[str, ...] = ()
    """Regions (1-based, as in samtools) or contigs held out for validation."""
    test: tuple[str, ...] = ()
    window_rule: str = "mamba"
    max_n: float = 0.5
    num_workers: int | None = None
    """Processes that read windows; None is 2 on a GPU, where the next step is read while one is computed, and 0 on a CPU."""
    policy: TokenPolicy = field(default_factory=TokenPolicy)

    def __post_init__(self) -> None:
        if not 0 <= self.max_n <= 1:
            raise InputError(f"data: max_n {self.max_n} must lie between 0 and 1")
        if not 0 <= (self.num_workers or 0) <= 1024:
            raise InputError(f"data: num_workers {self.num_workers} must lie between 0 and 1024")
        if self.window_rule not in RULES:
            near = nearest(self.window_rule, RULES)
            raise InputError(f"data: window rule {self.window_rule!r} is unknown{near}; choose {', '.join(RULES)}")


def demo_genome() -> Path:
    """Give the path of the genome that ships in the package."""
    return Path(str(resources.files("dna_mamba") / "assets" / "chr20.hg38.fa.gz"))


def load_genome(
    name: str, on_progress: Progress | None = None, warn: Callable[[str], None] | None = None, *, rna: bool = False
) -> GenomeStore:
    """Open the demo genome, a store, or a file that is packed into the cache; `rna` reads U of a file as T."""
    return open_genome(demo_genome() if name == DEMO else Path(name), rna=rna, on_progress=on_progress, warn=warn)


def load_split(genome: GenomeStore, data: DataConfig, warn: Callable[[str], None] | None = None) -> Split:
    """Make the split that the configuration asks for.

    Raises:
        InputError: It cannot be made, asks for a BED and regions at once, or has a part without a base to score.
    """
    split = _make_split(genome, data, warn)
    for name in ("valid", "test"):
        part = split.part(name)
        if part and not any(_has_target(genome, interval) for interval in part):
            raise InputError(f"the {name} part has no base to score: A, C, G or T with a base before it; hold out more")
    return split


def _has_target(genome: GenomeStore, interval: Interval) -> bool:
    num_targets = len(interval) - 1
    starts, ends = np.array([interval.start + 1]), np.array([interval.end])
    return num_targets > 0 and int(genome.count_n(interval.contig, starts, ends)[0]) < num_targets


def _make_split(genome: GenomeStore, data: DataConfig, warn: Callable[[str], None] | None) -> Split:
    if data.split is not None:
        if data.valid or data.test:
            raise InputError("--split and --valid or --test exclude each other; put all parts into the BED")
        return split_from_bed(genome, Path(data.split), warn)
    if data.valid or data.test:
        return split_from_regions(genome, data.valid, data.test)
    return default_split(genome)
