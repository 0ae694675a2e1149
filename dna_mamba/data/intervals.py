"""Places on a genome: 0-based, end excluded, forward-strand coordinates."""

import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dna_mamba.data.unpack import check_bgzf_end, is_gzip, open_text
from dna_mamba.errors import InputError, check_regular, nearest


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


_REGION = re.compile(r"(?P<contig>.+):(?P<start>\d[\d,]{0,18})?(?P<to>-)?(?P<end>\d[\d,]{0,18})?")


def parse_region(text: str, lengths: Mapping[str, int]) -> Interval:
    """Read a region as samtools does, 1-based with both ends included.

    Args:
        text: CONTIG, CONTIG:START, CONTIG:START-, CONTIG:-END or CONTIG:START-END; commas may stand in numbers. A contig's name
            may hold colons.
        lengths: Bases of each contig of the genome.

    Raises:
        InputError: It is none of these, the contig is not there, or it ends past it.
    """
    text = text.strip()
    braces = re.fullmatch(r"\{(?P<contig>.+)\}(?P<rest>:[\d,-]*)?", text)
    if (
        braces is not None and braces["contig"] in lengths
    ):  # {seq:1}:5-10, as in samtools: a name that could be a region
        inner = parse_region(f"x{braces['rest'] or ''}", {"x": lengths[braces["contig"]]})
        return Interval(braces["contig"], inner.start, inner.end)
    contig, first, last = _split_region(text, lengths)
    if contig not in lengths:
        raise InputError(_no_contig(text, contig, lengths))
    length = lengths[contig]
    if first < 1 or (last is not None and first > last):
        raise InputError(f"region {text!r}: START must be at least 1 and at most END")
    if last is None:
        last = length
    if last > length or first > length:
        raise InputError(f"region {text!r} ends past {contig}, which has {length:,} bases")
    return Interval(contig, first - 1, last)


def _split_region(text: str, lengths: Mapping[str, int]) -> tuple[str, int, int | None]:
    """Give contig, START and END, which is none for the contig's own; what is of no form is taken as a contig's name."""
    whole = (text, 1, None)
    match = _REGION.fullmatch(text)
    if match is not None and text in lengths:
        if match["contig"] in lengths:
            raise InputError(
                f"region {text!r} is a contig and a part of contig {match['contig']!r}: write {{{text}}} for the contig, or "
                f"{{{match['contig']}}}{text[len(match['contig']) :]} for the part"
            )
        return whole
    if match is None or (match["start"] is None and match["end"] is None):
        return whole
    if match["to"] is None and match["end"] is not None:
        return whole
    last = None if match["end"] is None else int(match["end"].replace(",", ""))
    return match["contig"], int((match["start"] or "1").replace(",", "")), last


def _no_contig(text: str, contig: str, lengths: Mapping[str, int]) -> str:
    some = ", ".join(list(lengths)[:5]) + (", ..." if len(lengths) > 5 else "")
    other = contig.removeprefix("chr") if contig.startswith("chr") else f"chr{contig}"
    words = f"; did you mean {other!r}?" if other in lengths else nearest(contig, lengths)
    return (
        f"region {text!r}: contig {contig!r} is not in the genome (it has {some}){words}; a region is CONTIG:START-END "
        f"(1-based, both ends included), CONTIG:START- or CONTIG"
    )


def read_bed(path: Path, warn: Callable[[str], None] | None = None) -> list[tuple[int, Interval, list[str]]]:
    """Read a BED file, plain or gzipped, into line numbers, intervals and their columns from the fourth on.

    BED3 to BED12, narrowPeak, broadPeak and the like: what follows the third column is carried along, to the byte. Columns are
    separated by tabs, or by blanks where a line has no tab. Lines that are blank or start with '#', 'track' or 'browser' are
    passed over; features of no length, which BED allows, are passed over and counted. Column 6 is the strand where it is '+'
    or '-'.

    Raises:
        InputError: A line is no BED line; the message names file and line.
    """
    rows: list[tuple[int, Interval, list[str]]] = []
    empty: list[int] = []
    for number, line in _bed_lines(path):
        found = _parse_bed_line(line, f"{path}, line {number}")
        if found is None:
            empty.append(number)
        else:
            rows.append((number, *found))
    if warn:
        for words in _remarks_on_bed(rows, empty):
            warn(f"{path}: {words}")
    if not rows and empty:
        raise InputError(f"{path} holds features of no length alone (START equals END): there is no base in them")
    if not rows:
        raise InputError(f"{path} holds no interval; expected lines of CONTIG, START, END separated by tabs")
    return rows


def _bed_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines that describe a feature, with their numbers from 1."""
    try:
        check_regular(path, "a BED file")
        if is_gzip(path):
            check_bgzf_end(path)
        with open_text(path, errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if "\0" in line:
                    raise InputError(
                        f"{path} is not text; a BED file has lines of CONTIG, START, END separated by tabs"
                    )
                line = line.rstrip("\n")
                if line.strip() and not line.startswith("#") and not _is_setting(line):
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _remarks_on_bed(rows: Sequence[tuple[int, Interval, list[str]]], empty: Sequence[int]) -> Iterator[str]:
    if empty:
        yield (
            f"{len(empty):,} features of no length (START equals END, the first in line {empty[0]}) hold no base and "
            f"were passed over"
        )
    num_strands = sum(len(more) > 2 and more[2] not in ("+", "-", ".") for _, _, more in rows)
    if num_strands:
        yield f"{num_strands:,} rows have neither '+', '-' nor '.' as strand in column 6, and are read forward"
    num_blocks = sum(len(more) == 9 and more[6].isdecimal() and int(more[6]) > 1 for _, _, more in rows)
    if num_blocks:
        yield f"{num_blocks:,} rows have several blocks (BED12); each is read whole, from START to END"


def _is_setting(line: str) -> bool:
    """Say whether a line is one for a browser: 'track' or 'browser' by itself, or followed by settings."""
    words = line.split(maxsplit=2)
    return words[0] in ("track", "browser") and not (len(words) > 1 and words[1].isdecimal())


def _parse_bed_line(line: str, where: str) -> tuple[Interval, list[str]] | None:
    columns = line.split("\t") if "\t" in line else line.split()
    if len(columns) < 3:
        raise InputError(
            f"{where}: {line[:60]!r} has {len(columns)} column(s); expected CONTIG, START, END separated by tabs"
        )
    contig, start, end = columns[:3]
    if not all(number.isascii() and number.isdecimal() and len(number) <= 18 for number in (start, end)):
        start, end = start[:40], end[:40]
        raise InputError(f"{where}: START {start!r} and END {end!r} must be whole numbers, 0-based, end excluded")
    if int(start) == int(end):
        return None
    if int(start) > int(end):
        raise InputError(f"{where}: START {start} lies behind END {end}; are the columns in order?")
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


def each_base_once(intervals: Sequence[Interval]) -> list[Interval]:
    """Merge intervals that overlap; those that touch or stand alone stay as they are, in their order."""
    place = {}
    group: list[int] = []
    end = 0
    for number in sorted(range(len(intervals)), key=lambda n: (intervals[n].contig, intervals[n].start)):
        one = intervals[number]
        if not group or one.contig != intervals[group[0]].contig or one.start >= end:
            group, end = [], one.end
        group.append(number)
        end = max(end, one.end)
        first = intervals[group[0]]
        place[group[0]] = one if len(group) == 1 else Interval(first.contig, first.start, end)
    return [place[number] for number in sorted(place)]


def subtract(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """Give what is in the intervals and in none of the holes, merged and sorted."""
    by_contig: dict[str, list[Interval]] = {}
    for hole in merge(holes):
        by_contig.setdefault(hole.contig, []).append(hole)
    rest = []
    for interval in merge(intervals):
        start = interval.start
        those = by_contig.get(interval.contig, [])
        for hole in islice(those, bisect_right(those, start, key=lambda hole: hole.end), None):
            if hole.start >= interval.end:
                break
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
