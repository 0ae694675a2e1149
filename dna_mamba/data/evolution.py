"""Sequence that evolves along a branch: substitutions in context, short insertions and deletions, planted insertions.

Every base carries where it came from, so that what happened can be found again in each descendant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dna_mamba.data.vocabulary import STORE_A, STORE_C, STORE_G, STORE_N, STORE_T, reverse_complement_store

TRANSITION = np.array([STORE_G, STORE_T, STORE_A, STORE_C, STORE_N], np.uint8)
"""The base that a transition makes of A, C, G, T and N."""
STEP = 0.002
"""Longest stretch of a branch, in substitutions a site, whose substitutions are drawn at once: contexts then change little."""
NONE = -1
TAG_STRIDE = 1 << 16
"""A base of a planted insertion is tagged with the number of the insertion times this, plus its offset there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MutationModel:
    """Rates of substitutions and of short insertions and deletions.

    Sources of the defaults: CpG transitions ten times as frequent as others (Nachman and Crowell 2000), and 1.75 outside CpG,
    which together give the 2.1 that is usual for human genomes (1000 Genomes Project 2015); 5 million insertions and
    deletions beside 35 million substitutions between human and chimpanzee (Chimpanzee Sequencing and Analysis Consortium
    2005). That deletions are twice as frequent, and lengths geometric with a mean of 3, are round numbers of our own.
    """

    transitions_over_transversions: float = 1.75
    """Outside CpG."""
    cpg_factor: float = 10.0
    """Rate of transitions at C and G of CpG over that of other transitions."""
    indels_per_substitution: float = 0.14
    deletions_per_insertion: float = 2.0
    mean_indel_bases: float = 3.0
    spectrum: Mapping[str, float] = field(default_factory=dict)
    """Factors of single mutations on a lineage, as in TCC>TTC (Harris and Pritchard 2017); the other strand goes with it."""

    def __post_init__(self) -> None:
        rates = (self.transitions_over_transversions, self.cpg_factor, self.deletions_per_insertion)
        if min(rates) <= 0 or self.indels_per_substitution < 0 or self.mean_indel_bases < 1:
            raise ValueError(
                "rates must be positive, indels_per_substitution not negative and mean_indel_bases at least 1"
            )
        for mutation in self.spectrum:
            before, _, after = mutation.partition(">")
            fits = len(before) == len(after) == 3 and before[0] == after[0] and before[2] == after[2]
            if not fits or before[1] == after[1] or set(before + after) - set("ACGT") or self.spectrum[mutation] <= 0:
                raise ValueError(
                    f"{mutation!r}: {self.spectrum[mutation]} is no factor of a mutation such as TCC>TTC: 1.3"
                )


@dataclass(slots=True)
class Lineage:
    """A sequence and where each of its bases came from."""

    bases: np.ndarray
    """Store bytes without soft mask, uint8."""
    origins: np.ndarray
    """Position in the ancestor (int64), or NONE where the base was inserted."""
    tags: np.ndarray
    """Which base of which planted insertion it is (number x TAG_STRIDE + offset, int64), or NONE."""
    num_substitutions: int = 0
    num_insertions: int = 0
    num_deletions: int = 0

    @classmethod
    def of(cls, bases: np.ndarray) -> "Lineage":
        """Begin with an ancestor."""
        return cls(bases.astype(np.uint8), np.arange(len(bases)), np.full(len(bases), NONE, np.int64))

    def copy(self) -> "Lineage":
        """Give a descendant that has not changed yet; its counts begin at zero."""
        return Lineage(self.bases.copy(), self.origins.copy(), self.tags.copy())

    def planted(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Give for each planted insertion where its bases lie now (0-based, ascending) and their offsets in it."""
        places = np.flatnonzero(self.tags != NONE)
        numbers, offsets = np.divmod(self.tags[places], TAG_STRIDE)
        order = np.argsort(numbers, kind="stable")
        found, firsts = np.unique(numbers[order], return_index=True)
        parts = zip(np.split(places[order], firsts[1:]), np.split(offsets[order], firsts[1:]), strict=True)
        return dict(zip(found.tolist(), parts, strict=True)) if len(found) else {}


def substitution_rates(bases: np.ndarray, model: MutationModel) -> np.ndarray:
    """Give the rate of each substitution (T, 4), by new base; relative to that of a transversion of one kind.

    A transition has twice the rate of both transversions of its base times their ratio; N does not change.
    """
    T = len(bases)
    rates = np.ones((T, 4))
    known = bases < STORE_N
    transition = 2.0 * model.transitions_over_transversions
    places = np.flatnonzero(known)
    rates[places, TRANSITION[bases[places]]] = transition
    follows = np.zeros(T, bool)
    follows[:-1] = (bases[:-1] == STORE_C) & (bases[1:] == STORE_G)
    cpg = follows.copy()
    cpg[1:] |= follows[:-1]
    places = np.flatnonzero(cpg)
    rates[places, TRANSITION[bases[places]]] = transition * model.cpg_factor
    left, right = np.full(T, STORE_N, np.uint8), np.full(T, STORE_N, np.uint8)
    left[1:], right[:-1] = bases[:-1], bases[1:]
    for mutation, factor in model.spectrum.items():
        before, after = (np.array(["ACGT".index(letter) for letter in part], np.uint8) for part in mutation.split(">"))
        for (a, b, c), (_, new, _) in ((before, after), map(reverse_complement_store, (before, after))):
            rates[(left == a) & (bases == b) & (right == c), new] *= factor
    rates[np.flatnonzero(known), bases[known]] = 0.0
    rates[~known] = 0.0
    return rates


def evolve(lineage: Lineage, branch: float, model: MutationModel, generator: np.random.Generator) -> Lineage:
    """Let a sequence evolve along a branch.

    Args:
        lineage: Where the branch begins; it is not changed.
        branch: Length, expected substitutions a known site.
        model: Rates.
        generator: Of all draws.

    Returns:
        The sequence at the end of the branch, with the counts of what happened on it.

    Raises:
        ValueError: The branch is negative.
    """
    if not branch >= 0:
        raise ValueError(f"branch {branch} must not be negative")
    now = lineage.copy()
    num_steps = max(1, int(np.ceil(branch / STEP)))
    for _ in range(num_steps):
        _substitute(now, branch / num_steps, model, generator)
    _insert_and_delete(now, branch, model, generator)
    return now


def _substitute(now: Lineage, branch: float, model: MutationModel, generator: np.random.Generator) -> None:
    rates = substitution_rates(now.bases, model)
    of_site = rates.sum(1)
    total = of_site.sum()
    if total == 0:
        return
    num_known = int((now.bases < STORE_N).sum())
    changes = 1.0 - np.exp(-of_site * (branch * num_known / total))
    places = np.flatnonzero(generator.random(len(changes)) < changes)
    shares = rates[places].cumsum(1) / of_site[places, None]
    now.bases[places] = (generator.random(len(places))[:, None] >= shares).sum(1)
    now.num_substitutions += len(places)


def _insert_and_delete(now: Lineage, branch: float, model: MutationModel, generator: np.random.Generator) -> None:
    expected = branch * model.indels_per_substitution * int((now.bases < STORE_N).sum())
    share_of_deletions = model.deletions_per_insertion / (1 + model.deletions_per_insertion)
    kept = np.ones(len(now.bases), bool)
    num_deletions = generator.poisson(expected * share_of_deletions)
    for start in generator.integers(0, len(kept), num_deletions):
        kept[start : start + generator.geometric(1 / model.mean_indel_bases)] = False
    num_insertions = generator.poisson(expected * (1 - share_of_deletions))
    starts = np.sort(generator.integers(0, len(kept) + 1, num_insertions))
    pieces = [
        generator.integers(0, 4, generator.geometric(1 / model.mean_indel_bases)).astype(np.uint8) for _ in starts
    ]
    now.num_deletions += int(num_deletions)
    now.num_insertions += int(num_insertions)
    _splice(now, kept, starts, pieces, [np.full(len(piece), NONE) for piece in pieces])


def plant(
    lineage: Lineage, elements: Sequence[np.ndarray], numbers: Sequence[int], generator: np.random.Generator
) -> Lineage:
    """Insert elements at random places that are not N, each under a number by which it is found again.

    Raises:
        ValueError: The numbers are not as many as the elements, an element has 65,536 bases or more, or the sequence has no
            known base.
    """
    if len(elements) != len(numbers):
        raise ValueError(f"{len(elements)} elements and {len(numbers)} numbers; each element needs one")
    if any(len(element) >= TAG_STRIDE for element in elements):
        raise ValueError(f"an element has {max(map(len, elements)):,} bases; at most {TAG_STRIDE - 1:,} can be planted")
    now = lineage.copy()
    known = np.flatnonzero(now.bases < STORE_N)
    if len(known) == 0:
        raise ValueError("the sequence has no known base to insert before")
    starts = generator.choice(known, len(elements))
    order = np.argsort(starts, kind="stable")
    tags = [numbers[i] * TAG_STRIDE + np.arange(len(elements[i])) for i in order]
    _splice(now, np.ones(len(now.bases), bool), starts[order], [elements[i] for i in order], tags)
    return now


def _splice(
    now: Lineage, kept: np.ndarray, starts: np.ndarray, pieces: Sequence[np.ndarray], tags: Sequence[np.ndarray]
) -> None:
    """Drop what is not kept, and insert pieces before the positions given (in order, of the sequence as it was)."""
    before = np.repeat(starts, [len(piece) for piece in pieces])
    bases = np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
    new_tags = np.concatenate(tags) if tags else np.zeros(0, np.int64)
    now.bases = np.insert(now.bases, before, bases)
    now.origins = np.insert(now.origins, before, np.full(len(bases), NONE))
    now.tags = np.insert(now.tags, before, new_tags)
    kept = np.insert(kept, before, np.ones(len(bases), bool))
    now.bases, now.origins, now.tags = now.bases[kept], now.origins[kept], now.tags[kept]
