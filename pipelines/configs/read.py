"""What the commands that read a model are asked to do."""

from dataclasses import dataclass, field
from pathlib import Path

from dna_mamba.data.selection import TEST_BASES
from dna_mamba.device import check_device
from dna_mamba.errors import InputError
from dna_mamba.pipelines.vector_files import check_format
from dna_mamba.reading.settings import EmbedConfig, SamplingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Which model on which bases."""

    model: Path
    genome: str | None = None
    split: str = "test"
    split_file: Path | None = None
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    window_bases: int = 8192
    max_bases: int = TEST_BASES
    rna: bool = False
    """Read U of the genome as T."""
    device: str = "auto"
    out: Path | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.window_bases < 2 or self.max_bases < 2:
            raise InputError("--window and --max-bases must be at least 2 bases")
        if self.regions and (self.split != "test" or self.split_file is not None or self.valid or self.test):
            raise InputError("--region scores these regions alone; leave out --split, --split-file, --valid and --test")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig:
    """What to classify."""

    model: Path
    """Model directory of a classifier, a fine-tuning run with one length, or the folder of a length in it."""
    sequences: str
    """FASTA (plain, gzip, bgzip), GenBank or genome store: a row a record; or BED, with a genome: a row an interval."""
    genome: str | None = None
    """Genome that a BED refers to."""
    window_bases: int | None = None
    """A row for each window of so many bases, side by side, the last one shorter; none reads records in full."""
    out: Path | None = None
    rna: bool = False
    """Read U of a file as T."""
    device: str = "auto"
    piece_bases: int | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.window_bases is not None and self.window_bases < 1:
            raise InputError(f"--window {self.window_bases} must be at least 1 base")
        if self.piece_bases is not None and self.piece_bases < 1:
            raise InputError(f"piece_bases {self.piece_bases} must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRunConfig:
    """What to embed, and where to."""

    model: Path
    sequences: str
    """FASTA, GenBank file or genome store; BED with `genome`; .csv or .tsv with a column named sequence."""
    out: Path
    genome: str | None = None
    window_bases: int | None = None
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    shard: tuple[int, int] = (1, 1)
    """This one, from 1, of so many; joined in order they are the one run, to the bit. One may be empty."""
    rna: bool = False
    """Read U of a file as T."""
    device: str = "auto"
    piece_bases: int | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        check_format(self.out)
        if not 1 <= self.shard[0] <= self.shard[1] <= 10**6:
            raise InputError(f"--shard {self.shard[0]}/{self.shard[1]} is not i/n with i from 1 to n")
        if self.window_bases is not None and self.window_bases < 1:
            raise InputError(f"--window {self.window_bases} must be at least 1 base")


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
    rna: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.out is None and self.picture is None:
            raise InputError("track writes a file: say where with -o track.bw, --picture track.png or both")
        if self.out is not None and self.out.suffix.lower() not in (".bw", ".bigwig"):
            raise InputError(f"-o {self.out} must end in .bw or .bigwig")
        if self.out is not None and any("\udc80" <= letter <= "\udcff" for letter in str(self.out.absolute())):
            raise InputError(f"-o {self.out}: libBigWig takes names in UTF-8 alone; name a file in another folder")
        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise InputError(f"--picture {self.picture} must end in .png")
        if not 0 <= self.left <= 2**40:
            raise InputError(f"--left {self.left} must be 0 or more bases")


MOST_BASES = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """What to generate."""

    model: Path
    prompt: str = "ACGT"
    """Letters, or a file: FASTA, GenBank or genome store, whose first record is the prompt."""
    length: int = 1000
    """New bases of each sequence."""
    num: int = 1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    rna: bool = False
    """Read U of the prompt as T."""
    device: str = "auto"
    out: Path | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.length < 1 or self.num < 1 or self.length * self.num > MOST_BASES:
            raise InputError(
                f"--num {self.num} sequences of --length {self.length}: both must be at least 1, together at most 2^32 bases"
            )
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed} must lie between 0 and 2^63 - 1")
