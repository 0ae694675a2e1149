# Shapes: S species, E sets of branches
"""What the best reader of simulated apes could reach: it sees every planted insertion and knows the tree and the rates."""

import csv
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dna_mamba.data.labelled import Place
from dna_mamba.errors import InputError
from dna_mamba.pipelines.class_metrics import Share
from dna_mamba.pipelines.simulate import EVENTS, TRUTH, path_of


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a simulation wrote down."""

    species: tuple[str, ...]
    branches: tuple[str, ...]
    """Those with insertions."""
    per_base: Mapping[tuple[str, str], float]
    """Species and branch: insertions with a diagnostic base left, a base of the species' genome."""
    mean_span: Mapping[str, float]
    """Branch: mean bases from the first diagnostic position of an insertion to the last."""
    diagnostic: Mapping[tuple[str, str], dict[str, np.ndarray]]
    """Species and contig: branch to diagnostic positions there, ascending."""


def read_truth(folder: Path, bases_of: Mapping[str, int]) -> Truth:
    """Read truth.json and events.tsv of a simulation.

    Args:
        folder: Where they stand.
        bases_of: Length of each species' genome.

    Raises:
        InputError: A file is missing or at fault.
    """
    try:
        values = json.loads((folder / TRUTH).read_text(encoding="utf-8"))
        tree = {row["branch"]: row for row in values["tree"]}
        species = tuple(name for name, row in tree.items() if row["species"])
        branches = tuple(name for name, row in tree.items() if row["insertions"])
        insertions = _read_insertions(folder / EVENTS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no truth of a simulation that can be read: {error}") from error
    positions: dict[tuple[str, str], dict[str, list[int]]] = {}
    spans: dict[str, list[int]] = {}
    for one in insertions:
        positions.setdefault((one.species, one.contig), {}).setdefault(one.branch, []).extend(one.diagnostic)
        if one.diagnostic:
            spans.setdefault(one.branch, []).append(one.diagnostic[-1] - one.diagnostic[0])
    shown = Counter((one.species, one.branch) for one in insertions if one.diagnostic)
    known = [s for s in species if bases_of.get(s)]
    return Truth(
        species=species,
        branches=branches,
        per_base={(s, b): shown[s, b] / bases_of[s] for s in known for b in branches if b in path_of(s)},
        mean_span={branch: float(np.mean(spans.get(branch, [0]))) for branch in branches},
        diagnostic={
            key: {branch: np.sort(np.array(some)) for branch, some in of_branch.items()}
            for key, of_branch in positions.items()
        },
    )


class _Insertion(NamedTuple):
    species: str
    contig: str
    branch: str
    diagnostic: list[int]
    """Positions, ascending."""


def _read_insertions(path: Path) -> list[_Insertion]:
    with open(path, newline="", encoding="utf-8") as file:
        return [
            _Insertion(
                row["species"],
                row["contig"],
                row["branch"],
                [int(text) for text in row["diagnostic"].split(",") if text],
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]


def chances(truth: Truth, window_bases: int) -> tuple[np.ndarray, list[frozenset[str]]]:
    """Give the probability of each set of branches that a window shows, by species (S, E), and the sets.

    Insertions are a Poisson process: a window of L bases shows one of a branch with probability 1 - exp(-rate (L + span)), with
    the rate a base and the mean span of diagnostic positions; independently by branch.
    """
    sets = [
        frozenset(some)
        for size in range(len(truth.branches) + 1)
        for some in itertools.combinations(truth.branches, size)
    ]
    found = np.zeros((len(truth.species), len(sets)))
    for row, species in enumerate(truth.species):
        shown = {
            branch: 1 - np.exp(-truth.per_base[species, branch] * (window_bases + truth.mean_span[branch]))
            for branch in truth.branches
            if (species, branch) in truth.per_base
        }
        for column, some in enumerate(sets):
            if some <= shown.keys():
                found[row, column] = np.prod([p if branch in some else 1 - p for branch, p in shown.items()])
    return found, sets


def attainable(truth: Truth, window_bases: int) -> float:
    """Give the accuracy of the best answer to what a window shows, all species being equally frequent: closed form."""
    by_species, _ = chances(truth, window_bases)
    return float(by_species.max(0).sum() / len(truth.species))


def counted(
    truth: Truth, places: Sequence[Place], window_bases: int, seed: int = 0, effective: float | None = None
) -> Share:
    """Answer fixed windows from the insertions that they really show; equals are told apart by a seeded draw.

    Args:
        truth: What was planted.
        places: The windows.
        window_bases: Their length.
        seed: Of the draws.
        effective: Windows that the interval counts with, where they overlap.
    """
    by_species, sets = chances(truth, window_bases)
    column_of = {some: column for column, some in enumerate(sets)}
    generator = np.random.default_rng(seed)
    right = 0
    for place in places:
        of_branch = truth.diagnostic.get((place.label, place.contig), {})
        ends = (place.start, place.start + window_bases)
        shown = frozenset(b for b, where in of_branch.items() if np.diff(np.searchsorted(where, ends))[0] > 0)
        likelihoods = by_species[:, column_of[shown]]
        best = np.flatnonzero(likelihoods >= likelihoods.max() * (1 - 1e-9))
        right += truth.species[int(generator.choice(best))] == place.label
    return Share.of(right, len(places), effective=effective)
