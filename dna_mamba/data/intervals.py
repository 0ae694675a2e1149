"""Places on a genome: 0-based, end excluded, forward-strand coordinates."""

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dna_mamba.data.unpack import open_text
from dna_mamba.errors import InputError, check_regular


@dataclass(frozen=True, slots=True)
class Interval:
    """Bases start to end - 1 of a contig; strand '-' is read as the reverse complement."""

    contig: str
    start: int
    end: int
    strand: str = "+"

    def __post_init__(self) -> None:
        if self.start < 0 or self.start >= self.end:
            raise InputError(f"interval {self.contig}:{self.start}-{self.end} (0-based, end excluded) holds no base")
        if self.strand not in ("+", "-"):
            raise InputError(f"strand {self.strand!r} is neither '+' nor '-'")

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        """Write the place as samtools would: 1-based, both ends included."""
        strand = "" if self.strand == "+" else "(-)"
        return f"{self.contig}:{self.start + 1}-{self.end}{strand}"


_REGION = re.compile(r"(?P<contig>.+?):(?P<start>\d[\d,]{0,18})-(?P<end>\d[\d,]{0,18})")


def parse_region(text: str) -> Interval:
    """Read 'chr20:1,000,001-2,000,000', 1-based with both ends included as in samtools."""
    match = _REGION.fullmatch(text.strip())
    if match is None:
        raise InputError(
            f"region {text!r} is not CONTIG:START-END (1-based, both ends included), as in chr20:8000001-9000000"
        )
    start, end = (int(match[k].replace(",", "")) for k in ("start", "end"))
    if start < 1 or start > end:
        raise InputError(f"region {text!r}: START must be at least 1 and at most END")
    return Interval(match["contig"], start - 1, end)


def read_bed(path: Path) -> list[tuple[int, Interval, list[str]]]:
    """Read a BED file, plain or gzipped, into line numbers, intervals and their columns from the fourth on.

    Lines that are blank or start with '#', 'track' or 'browser' are passed over. Column 6 is the strand where it is
    '+' or '-'.

    Raises:
        InputError: A line is no BED line; the message names file and line.
    """
    rows = []
    try:
        check_regular(path, "a BED file")
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                line = line.rstrip("\n")
                if not line.strip() or line.startswith("#") or line.split(maxsplit=1)[0] in ("track", "browser"):
                    continue
                rows.append((number, *_parse_bed_line(line, f"{path}, line {number}")))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text; a BED file has lines of CONTIG, START, END separated by tabs") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise InputError(f"{path} holds no interval; expected lines of CONTIG, START, END separated by tabs")
    return rows


def _parse_bed_line(line: str, where: str) -> tuple[Interval, list[str]]:
    columns = line.split("\t")
    if len(columns) < 3:
        raise InputError(
            f"{where}: {line[:60]!r} has {len(columns)} column(s); expected CONTIG, START, END separated by tabs"
        )
    contig, start, end = columns[:3]
    if not all(number.isascii() and number.isdecimal() and len(number) <= 18 for number in (start, end)):
        start, end = start[:40], end[:40]
        raise InputError(f"{where}: START {start!r} and END {end!r} must be whole numbers, 0-based, end excluded")
    if int(start) >= int(end):
        raise InputError(f"{where}: START {start} is not below END {end}; BED is 0-based with the end excluded")
    strand = columns[5] if len(columns) > 5 and columns[5] in ("+", "-") else "+"
    return Interval(contig, int(start), int(end), strand), columns[3:]


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Join what overlaps or touches, forget strands, and sort by contig and start."""
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda i: (i.contig, i.start)):
        if merged and merged[-1].contig == interval.contig and interval.start <= merged[-1].end:
            merged[-1] = Interval(interval.contig, merged[-1].start, max(merged[-1].end, interval.end))
        else:
            merged.append(Interval(interval.contig, interval.start, interval.end))
    return merged


def subtract(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """Give what is in the intervals and in none of the holes, merged and sorted."""
    by_contig: dict[str, list[Interval]] = {}
    for hole in merge(holes):
        by_contig.setdefault(hole.contig, []).append(hole)
    rest = []
    for interval in merge(intervals):
        start = interval.start
        for hole in by_contig.get(interval.contig, []):
            if hole.end <= start or hole.start >= interval.end:
                continue
            if hole.start > start:
                rest.append(Interval(interval.contig, start, hole.start))
            start = hole.end
        if start < interval.end:
            rest.append(Interval(interval.contig, start, interval.end))
    return rest


def shared_bases(first: Sequence[Interval], second: Sequence[Interval]) -> int:
    """Count the bases that lie in both."""
    first = merge(first)
    return sum(map(len, first)) - sum(map(len, subtract(first, second)))
