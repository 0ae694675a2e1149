"""What scoring of variants is asked to do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dna_mamba.device import check_device
from dna_mamba.errors import InputError
from dna_mamba.pipelines.tables import FORMATS as TABLE_FORMATS

FORMATS = (".vcf", ".vcf.gz", ".tsv", ".parquet")


DESCRIBED = {
    "LLR": "log P(ALT", "LEN": "Bases of ALT minus bases of REF", "STATUS": "scored, or why not",
    "DIST": "Euclidean distance between the mean vectors",
}  # fmt: skip
"""Words of our fields' descriptions that every version wrote."""


DEFAULT_PREFIX = "DM"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """What to score."""

    model: Path
    variants: Path
    genome: str
    out: Path
    left: int | None = None
    """Bases of left context; none reads from the first base of the contig, once for all records on it."""
    right: int = 512
    """Bases of right flank that are scored with each allele."""
    strands: str = "forward"
    """both averages with the score on the reverse complement, whose left context is what lies to the right."""
    distance: bool = False
    """Give the distance of embeddings too; REF is then read with every allele."""
    skip_mismatches: bool = False
    """Give records whose REF is not in the genome the status ref_mismatch, and those on a contig that it has not no_contig,
    instead of stopping."""
    prefix: str = DEFAULT_PREFIX
    """Of the names of INFO fields and columns; scoring again under another keeps the first scores."""
    rna: bool = False
    """Read U of the genome as T."""
    device: str = "auto"
    command: str = ""
    """What was typed; written into the header."""

    def __post_init__(self) -> None:
        check_device(self.device)
        if format_of(self.out) is None:
            raise InputError(f"-o {self.out} must end in {', '.join(FORMATS)}: the ending says the format")
        if not re.fullmatch(r"[A-Za-z_][0-9A-Za-z_.]{0,40}", self.prefix):
            raise InputError(
                f"--prefix {self.prefix[:60]!r} must be letters, digits, _ or ., and begin with a letter, as in DM"
            )
        check_context(self.left, self.right, self.strands)

    @property
    def kinds(self) -> dict[str, type]:
        """Names and types of the fields that are written, in their order."""
        distance = {"DIST": float} if self.distance else {}
        kinds = {"LLR": float, "LEN": int, **distance, "STATUS": str}
        return {self.prefix + name: kind for name, kind in kinds.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields that are written, in their order."""
        return tuple(self.kinds)

    @property
    def replaced(self) -> frozenset[str]:
        """Names of the fields that are ours under this prefix; what an earlier run put there goes."""
        return frozenset(self.prefix + kind for kind in ("LLR", "LEN", "DIST", "STATUS"))

    def foreign(self, header: Sequence[str]) -> frozenset[str]:
        """Give those of our names under which nothing of ours stands.

        Raises:
            InputError: One of them is defined by others.
        """
        ours = set()
        for line in header:
            name = line.removeprefix("##INFO=<ID=").split(",")[0] if line.startswith("##INFO=<ID=") else ""
            if name not in self.replaced:
                continue
            if DESCRIBED[name.removeprefix(self.prefix)] not in line:
                raise InputError(
                    f"{self.variants} has a field {name} of its own, which --prefix {self.prefix} would write over; choose "
                    f"another prefix"
                )
            ours.add(name)
        return self.replaced - ours

    def check_info(self, info: str, foreign: frozenset[str], line: int) -> None:
        """Refuse to write over fields that no run of ours wrote.

        Raises:
            InputError: There is one.
        """
        for name in foreign:
            if name in info and any(field.split("=")[0] == name for field in info.split(";")):
                raise InputError(
                    f"{self.variants}, line {line}: INFO has a field {name} that score did not write, and would write over "
                    f"under --prefix {self.prefix}; choose another prefix"
                )


def check_context(left: int | None, right: int, strands: str) -> None:
    """Refuse contexts that make no sense.

    Raises:
        InputError: One is negative or absurdly long, or the strands are unknown.
    """
    if left is not None and not 0 <= left <= 2**40:
        raise InputError(f"--left {left} must be 0 or more bases, or full")
    if not 0 <= right <= 2**30:
        raise InputError(f"--right {right} must lie between 0 and 2^30 bases")
    if strands not in ("forward", "both"):
        raise InputError(f"strands {strands!r} is unknown; choose forward or both")


def format_of(out: Path) -> str | None:
    """Name the format that a file's ending asks for."""
    return next((ending for ending in sorted(FORMATS, key=len, reverse=True) if out.name.endswith(ending)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class MutateConfig:
    """What to mutate."""

    model: Path
    genome: str
    region: str
    """1-based, both ends included: chr20:9,000,001-9,000,200."""
    out: Path | None = None
    """.tsv or .parquet."""
    picture: Path | None = None
    left: int | None = 16_384
    """Bases before the region where its one pass begins; none begins at the contig's first."""
    right: int = 512
    strands: str = "forward"
    rna: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.out is None and self.picture is None:
            raise InputError("mutate writes a file: say where with -o table.tsv, --picture heat-map.png or both")
        if self.out is not None and self.out.suffix not in TABLE_FORMATS:
            raise InputError(f"-o {self.out} must end in {' or '.join(TABLE_FORMATS)}: the ending says the format")
        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise InputError(f"--picture {self.picture} must end in .png")
        check_context(self.left, self.right, self.strands)
