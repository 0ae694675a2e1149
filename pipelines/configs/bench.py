"""What the benchmarks are asked to measure."""

from dataclasses import dataclass

from dna_mamba.device import check_device, check_precision
from dna_mamba.errors import InputError, nearest

EXTRAS = ("transformers", "million")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanBenchConfig:
    """Shape of the scan and what to run beside it."""

    batch: int = 1
    length: int = 16384
    channels: int = 256
    states: int = 16
    repeats: int = 5
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for extra in self.extras:
            if extra not in EXTRAS:
                raise InputError(f"--with {extra!r} is unknown{nearest(extra, EXTRAS)}; choose {', '.join(EXTRAS)}")
        if min(self.batch, self.length, self.channels, self.states, self.repeats) < 1:
            raise InputError("--batch, --length, --channels, --states and --repeats must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenomeBenchConfig:
    """Size of the made-up genome."""

    megabases: int = 32

    def __post_init__(self) -> None:
        if self.megabases < 4:
            raise InputError("--megabases must be at least 4")


WHAT = ("scan", "conv", "norm", "loss", "step", "block")


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelBenchConfig:
    """What to time and where."""

    what: str
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "auto"
    """fp32 or bf16 inputs; auto is bf16 on a GPU."""
    shapes: tuple[tuple[int, int, int], ...] = ()
    """(batch, channels, length); of a block the channels are its model width. None is a list of typical ones."""
    states: int = 16
    repeats: int = 7
    competitors: bool = True
    """Time others too where there is a GPU."""

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.what not in WHAT:
            raise InputError(f"bench {self.what!r} is unknown; choose {', '.join(WHAT)}")
        check_precision(self.precision)
        if self.repeats < 1 or self.states < 1 or any(min(shape) < 1 for shape in self.shapes):
            raise InputError("repeats, states, batch, channels and length must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBenchConfig:
    """What to time."""

    models: tuple[str, ...] = ("6x128",)
    lengths: tuple[int, ...] = (1024,)
    bases_per_step: int = 2**20
    piece_bases: int | None = None
    recomputed_layers: int = 0
    """With piece_bases: so many layers are computed again."""
    device: str = "auto"
    precision: str = "auto"
    repeats: int = 5
    profile: bool = False

    def __post_init__(self) -> None:
        check_device(self.device)
        check_precision(self.precision)
        if not self.models or not self.lengths:
            raise InputError("--model and --seq-len need at least one value each")
        if not all(2 <= length <= 2**32 for length in self.lengths):
            raise InputError(f"lengths {list(self.lengths)} must lie between 2 and 2^32")
        if not (1 <= self.repeats <= 10**6 and 1 <= self.bases_per_step <= 2**32 and self.recomputed_layers >= 0):
            raise InputError(
                "repeats must lie between 1 and 10^6, bases per step between 1 and 2^32, recomputed layers not below 0"
            )
        if self.recomputed_layers and self.piece_bases is None:
            raise InputError("recomputed layers are chosen with the piece unless a piece length is given")
        if self.piece_bases is not None and not 16 <= self.piece_bases <= 2**40:
            raise InputError(f"piece length {self.piece_bases} must lie between 16 and 2^40")


@dataclass(frozen=True, kw_only=True, slots=True)
class VcfBenchConfig:
    """Sizes of the files."""

    records: tuple[int, ...] = (100_000, 1_000_000)
    samples: int = 1

    def __post_init__(self) -> None:
        if not self.records or min(self.records) < 1 or not 1 <= self.samples <= 10_000:
            raise InputError("--records must be at least 1 each, --samples 1 to 10,000")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreBenchConfig:
    """What to time."""

    model: str = "human-4x64"
    variants: str | None = None
    """VCF; without it the 2,968 records in the package, on the genome in the package."""
    genome: str = "demo"
    records: int = 32
    """So many, drawn at random, are scored from scratch, and their time is scaled."""
    left: int = 16_384
    """Context from scratch."""
    right: int = 512
    batch: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)
        if min(self.records, self.left, self.right, self.batch) < 1:
            raise InputError("--records, --left, --right and --batch must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeciesBenchConfig:
    """What to measure."""

    genome: str = "demo"
    seq_len: int = 4096
    quick: bool = False
    """Leave the likelihood-ratio baseline out."""
    seed: int = 0
    likelihood_ratio_steps: int = 40
