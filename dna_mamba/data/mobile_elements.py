"""Mobile elements that stand in a human sequence, and the copies that a lineage's own source elements leave.

The three families that are active in the great apes are found by sequence that their copies share. One copy of each becomes
the source; every lineage changes it at positions of its own, as young subfamilies differ from old ones (Batzer and
Deininger 2002), and its copies carry them: those positions tell the lineage.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dna_mamba.data.vocabulary import STORE_A, STORE_N, STORE_T, letters_of_store, reverse_complement_store
from dna_mamba.errors import InputError

MEAN_TAIL_BASES = 25
"""Length of the poly(A) tail of a new copy; of our own choice."""
SHORTEST_COPY = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How copies are found, and how often new ones are made."""

    name: str
    pattern: str
    """Regular expression over upper-case letters of the strand that ends in the poly(A) tail."""
    share: float
    """Of all new insertions. Source: Mills et al. 2006, human-specific insertions (Alu 5,530, L1 1,174, SVA 864)."""
    share_full_length: float
    """Copies that reach from end to end; the others lack a part of the 5' end, of even length."""


FAMILIES = (
    # from the A box of the promoter to the tail; Batzer and Deininger 2002
    Family(
        name="Alu",
        pattern="GGC[CT]GGGC[AG][CT][GA]GTGGCTCA[ACGT]{180,260}?[CT]CAGCCTGGG[ACGT]{10,40}?A{12,}",
        share=0.73,
        share_full_length=0.85,
    ),
    # the last 900 bases and the end of the 3' untranslated region; most copies are shorter than the 6 kb of an active one
    Family(
        name="L1",
        pattern="[ACGT]{900}ATGTACCC[TC][AG][AG]AACTTAAAGTAT[ACGT]{3,30}?A{6,}",
        share=0.16,
        share_full_length=0.3,
    ),
    # the hexamer repeat, then Alu-like, tandem and SINE-R parts; Wang et al. 2005
    Family(name="SVA", pattern="(?:CCCTCT){3,}[ACGT]{700,3000}?A{12,}", share=0.11, share_full_length=0.6),
)


def find_elements(bases: np.ndarray, family: Family) -> list[np.ndarray]:
    """Find copies of a family on both strands; each ends before its poly(A) tail.

    Args:
        bases: Store bytes.
        family: What to look for.
    """
    found = []
    for strand in (bases, reverse_complement_store(bases)):
        letters = letters_of_store(np.ascontiguousarray(strand))
        for match in re.finditer(family.pattern, letters):
            end = match.start() + len(match[0].rstrip("A"))
            found.append(np.array(strand[match.start() : end], np.uint8) & 7)
    return found


@dataclass(frozen=True, kw_only=True)
class Source:
    """The element that a lineage copies."""

    family: Family
    bases: np.ndarray
    diagnostic: np.ndarray
    """Offsets that differ from every other lineage's source, ascending."""


def make_sources(
    contigs: Sequence[np.ndarray],
    num_lineages: int,
    diagnostic_share: float,
    generator: np.random.Generator,
    warn: Callable[[str], None] | None = None,
) -> list[list[Source]]:
    """Give each lineage a source of each family that the sequence holds.

    Args:
        contigs: Store bytes.
        num_lineages: How many.
        diagnostic_share: Of the positions of a source, those that a lineage changes.
        generator: Of all draws.
        warn: Called with a sentence about a family that is not there.

    Raises:
        InputError: The sequence holds no element of any family, or the lineages need more positions than there are.
    """
    if not 0 < diagnostic_share * num_lineages <= 1:
        raise InputError(
            f"diagnostic_share {diagnostic_share:g} for each of {num_lineages} lineages must be above 0 and at most 1 together"
        )
    sources: list[list[Source]] = [[] for _ in range(num_lineages)]
    for family in FAMILIES:
        copies = [copy for bases in contigs for copy in find_elements(bases, family)]
        copies = [copy for copy in copies if not (copy >= STORE_N).any()]
        if not copies:
            if warn:
                warn(f"no {family.name} element was found in the sequence; the other families take its share")
            continue
        ancestor = copies[int(generator.integers(len(copies)))]
        each = max(1, round(diagnostic_share * len(ancestor)))
        places = generator.permutation(len(ancestor))
        for number, of_lineage in enumerate(sources):
            diagnostic = np.sort(places[number * each : (number + 1) * each])
            bases = ancestor.copy()
            bases[diagnostic] = (bases[diagnostic] + generator.integers(1, 4, len(diagnostic))) % (STORE_T + 1)
            of_lineage.append(Source(family=family, bases=bases, diagnostic=diagnostic))
    if not sources[0]:
        raise InputError(
            f"the sequence holds no {', '.join(f.name for f in FAMILIES)} element to copy; give more human sequence, or "
            f"simulate without diagnostics"
        )
    return sources


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A new copy as it is inserted."""

    family: str
    strand: str
    bases: np.ndarray
    diagnostic: np.ndarray
    """Offsets in `bases`, ascending."""


def make_copy(sources: Sequence[Source], generator: np.random.Generator) -> Copy:
    """Copy one of a lineage's sources: of a random family, perhaps without its 5' end, with a tail, on a random strand."""
    shares = np.array([source.family.share for source in sources])
    source = sources[int(generator.choice(len(sources), p=shares / shares.sum()))]
    first = 0
    if generator.random() >= source.family.share_full_length:
        first = int(generator.integers(1, max(2, len(source.bases) - SHORTEST_COPY + 1)))
    tail = np.full(generator.geometric(1 / MEAN_TAIL_BASES), STORE_A, np.uint8)
    bases = np.concatenate([source.bases[first:], tail])
    diagnostic = source.diagnostic[source.diagnostic >= first] - first
    strand = "+-"[int(generator.integers(2))]
    if strand == "-":
        bases = np.array(reverse_complement_store(bases))
        diagnostic = len(bases) - 1 - diagnostic[::-1]
    return Copy(family=source.family.name, strand=strand, bases=bases, diagnostic=diagnostic)
