"""Contigs known again by a piece of their bases: names differ between copies of one assembly, and are shared by species."""

import hashlib
from collections.abc import Mapping, Sequence

from dna_mamba.data.genome import GenomeStore
from dna_mamba.data.intervals import Interval, subtract

FINGERPRINT_BASES = 1024
FEWEST_BASES = 32
MOST_COMPARED = 100_000
"""Pairs of contigs; beyond it a contig is looked for under its own name alone."""
Fingerprint = tuple[int, int, str]
"""Start and end of a piece of a contig without N (0-based, end excluded), and the SHA-256 of its upper-case letters."""


def _letters(genome: GenomeStore, contig: str, start: int, end: int) -> str | None:
    """Give a piece; none if the contig is too short or holds N there, so that nothing can be compared."""
    if genome.contig(contig).length < end:
        return None
    letters = genome.fetch(Interval(contig, start, end)).upper()
    return None if "N" in letters else letters


def _sha256(letters: str) -> str:
    return hashlib.sha256(letters.encode()).hexdigest()


def fingerprints(genome: GenomeStore, intervals: Sequence[Interval]) -> dict[str, Fingerprint]:
    """Give a fingerprint of each contig: the middle of the longest known stretch of the first interval that has one."""
    found: dict[str, Fingerprint] = {}
    for interval in intervals:
        if interval.contig in found:
            continue
        starts, ends = genome.n_runs(interval.contig)
        runs = [Interval(interval.contig, *run) for run in zip(starts.tolist(), ends.tolist(), strict=True)]
        known = subtract([interval], runs)
        if not known:
            continue
        longest = max(known, key=len)
        start = longest.start + max(0, len(longest) - FINGERPRINT_BASES) // 2  # ends of contigs are repeats
        end = min(longest.end, start + FINGERPRINT_BASES)
        letters = _letters(genome, interval.contig, start, end)
        if end - start >= FEWEST_BASES and letters is not None:
            found[interval.contig] = start, end, _sha256(letters)
    return found


def same_contigs(genome: GenomeStore, known: Mapping[str, Fingerprint]) -> dict[str, list[str]]:
    """Name the contigs of a genome that have the fingerprints, by the names that these had.

    A fingerprint is left out where nothing can be said: no contig has it, and the one of its own name lacks these bases.
    """
    everywhere = len(known) * len(genome.contigs) <= MOST_COMPARED
    found: dict[str, list[str]] = {}
    for name, (start, end, sha256) in known.items():
        candidates = genome.contigs if everywhere else [one for one in (name,) if one in genome.contigs]
        pieces = {one: _letters(genome, one, start, end) for one in candidates}
        same = [one for one, letters in pieces.items() if letters is not None and _sha256(letters) == sha256]
        if same or name not in pieces or pieces[name] is not None:
            found[name] = same
    return found
