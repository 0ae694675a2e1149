"""Contigs known again by pieces of their bases: names differ between copies of one assembly, and are shared by species."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.genome import GenomeStore

PIECE_BASES = 64
PLACES = (0, *(round(PIECE_BASES * 1.5**k) for k in range(24)), *(megabase * 2**20 for megabase in range(1, 1 << 12)))
"""First bases of the pieces, the same for every contig: a contig of 7 Mb has 31, one of 200 bases has 3."""
FEWEST_TRIPLETS = 16
"""Different words of three letters in a piece; repeats of few letters stand in many contigs."""
DIGITS = 12
"""Of the SHA-256 of a piece, in hexadecimal."""
SAME_SHARE = 0.5
"""Of the pieces that two contigs can be compared by. One base in a thousand differs between two people, so 94 % of the pieces
of one are found in the other."""


class Matches(NamedTuple):
    """Which contigs of a genome are those of which fingerprints were taken."""

    same: dict[str, list[str]]
    """By the names that these had: contigs with their bases, whatever they are called."""
    other: frozenset[str]
    """Names of contigs that are there, with other bases at all places that can be compared."""


def _pieces(genome: GenomeStore, contig: str) -> dict[str, str]:
    """Hash the pieces of a contig, by number of their place; those with N or of few letters are left out."""
    found = {}
    length = genome.contig(contig).length
    for number, start in enumerate(PLACES):
        if start + PIECE_BASES > length:
            break
        letters = genome.fetch(Interval(contig, start, start + PIECE_BASES)).upper()
        if "N" not in letters and len({letters[i : i + 3] for i in range(PIECE_BASES - 2)}) >= FEWEST_TRIPLETS:
            found[str(number)] = hashlib.sha256(letters.encode()).hexdigest()[:DIGITS]
    return found


def fingerprints(genome: GenomeStore, contigs: Iterable[str]) -> dict[str, dict[str, str]]:
    """Give the fingerprints of contigs: the hash of each piece by number of its place."""
    return {contig: _pieces(genome, contig) for contig in dict.fromkeys(contigs)}


def same_contigs(genome: GenomeStore, known: Mapping[str, Mapping[str, str]]) -> Matches:
    """Find contigs by their fingerprints, in time that grows with their number."""
    holders = defaultdict(list)
    for name, pieces in known.items():
        for piece in pieces.items():
            holders[piece].append(name)
    same: dict[str, list[str]] = defaultdict(list)
    other = set()
    for contig in genome.contigs:
        pieces = _pieces(genome, contig)
        matches = Counter(name for piece in pieces.items() for name in holders.get(piece, ()))
        for name, number in matches.items():
            if number >= SAME_SHARE * len(pieces.keys() & known[name].keys()):
                same[name].append(contig)
        if contig in known and not matches[contig] and pieces.keys() & known[contig].keys():
            other.add(contig)
    return Matches(dict(same), frozenset(other - same.keys()))
