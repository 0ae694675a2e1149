"""SIMULATED genomes of the great apes: real human sequence that evolves along their tree, and what happened, written down."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dna_mamba.data.evolution import NONE, Lineage, MutationModel, evolve, plant
from dna_mamba.data.mobile_elements import Copy, Source, make_copy, make_sources
from dna_mamba.data.selection import load_genome
from dna_mamba.data.vocabulary import BASE_BITS, STORE_N, letters_of_store
from dna_mamba.errors import InputError, nearest
from dna_mamba.files import whole_directory, write_json, write_text
from dna_mamba.progress import Progress
from dna_mamba.values import Json

MAX_BASES = 1 << 28
"""Longest input: every base of every lineage is held in memory with where it came from."""
SEGMENTS = 4
"""Parts of a branch; a quarter of its insertions come before each, so that copies are of different ages."""
LINE = 60
EVENTS = "events.tsv"
TRUTH = "truth.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A lineage between two splits."""

    name: str
    above: str | None
    """The branch it comes from; none begins at the common ancestor of all."""
    length: float
    """Substitutions a site."""
    species: bool
    """Whether it ends today."""


# Half of the mean divergences human-chimpanzee 1.37 %, human-gorilla 1.75 % and human-orangutan 3.40 % (Scally et al. 2012)
# and chimpanzee-bonobo 0.4 % (Prufer et al. 2012) are the ages of the splits, so that all species are equally far from the
# root: else the number of changes would tell them apart.
GREAT_APES = (
    Branch(name="african", above=None, length=0.01700 - 0.00875, species=False),
    Branch(name="human+pan", above="african", length=0.00875 - 0.00685, species=False),
    Branch(name="pan", above="human+pan", length=0.00685 - 0.00200, species=False),
    Branch(name="human", above="human+pan", length=0.00685, species=True),
    Branch(name="chimpanzee", above="pan", length=0.00200, species=True),
    Branch(name="bonobo", above="pan", length=0.00200, species=True),
    Branch(name="gorilla", above="african", length=0.00875, species=True),
    Branch(name="orangutan", above=None, length=0.01700, species=True),
)
SPECIES = tuple(branch.name for branch in GREAT_APES if branch.species)
# That spectra of mutation differ between great apes, and in triplets such as these, is known (Harris and Pritchard 2017); the
# factors are ours.
SPECTRA: dict[str, dict[str, float]] = {
    "human": {"TCC>TTC": 1.5},
    "chimpanzee": {"ACA>ATA": 1.5},
    "bonobo": {"GCC>GTC": 1.5},
    "gorilla": {"TAA>TTA": 1.5},
    "orangutan": {"CAC>CGC": 1.5},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateConfig:
    """What to simulate."""

    genome: str = "demo"
    preset: str = "benchmark"
    contig_bases: int = 50_000
    """The sequence is cut into contigs of this length, each a locus of its own for splits."""
    insertions_per_mb: float = 180.0
    """Of elements with diagnostic positions, on each branch that ends today."""
    inner_insertions_per_mb: float = 0.0
    """The same on each inner branch; all species below it share them."""
    diagnostic_share: float = 0.05
    """Of the positions of an element, those that are a lineage's own."""
    diagnostics: bool = True
    """False plants nothing, and all lineages mutate alike: nothing tells the species apart."""
    mutations: MutationModel = field(default_factory=MutationModel)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} must lie between 0 and 2^63 - 1")
        if not 1000 <= self.contig_bases <= MAX_BASES:
            raise InputError(f"contig_bases {self.contig_bases} must lie between 1,000 and {MAX_BASES:,}")
        for name in ("insertions_per_mb", "inner_insertions_per_mb"):
            if not 0 <= getattr(self, name) <= 2000:
                raise InputError(f"{name} {getattr(self, name)} must lie between 0 and 2000")
        if not 0 < self.diagnostic_share <= 1 / len(GREAT_APES):
            raise InputError(
                f"diagnostic_share {self.diagnostic_share} must be above 0 and at most {1 / len(GREAT_APES):g}: each of "
                f"{len(GREAT_APES)} branches needs positions of its own"
            )

    def insertions_on(self, branch: Branch) -> float:
        """Give the expected insertions a megabase of the sequence as it was at the root."""
        if not self.diagnostics:
            return 0.0
        return self.insertions_per_mb if branch.species else self.inner_insertions_per_mb


PRESETS: dict[str, dict[str, object]] = {
    # 180 a megabase put one into half of all windows of 4,096 bases: who sees them is right in 63 %
    "benchmark": {"insertions_per_mb": 180.0, "inner_insertions_per_mb": 0.0, "diagnostic_share": 0.05},
    # human-specific insertions of Alu, L1 and SVA, 7,568 in 3,100 Mb (Mills et al. 2006); 5 of 282 positions as in AluYa5
    "realistic": {"insertions_per_mb": 2.4, "inner_insertions_per_mb": 2.4, "diagnostic_share": 0.018},
}


def preset(name: str) -> Json:
    """Find a preset by name."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown{nearest(name, PRESETS)}; choose {', '.join(PRESETS)}")
    return {"preset": name, **PRESETS[name]}


def path_of(species: str) -> tuple[str, ...]:
    """Name the branches from the root to a species."""
    above = {branch.name: branch.above for branch in GREAT_APES}
    names: list[str] = []
    name: str | None = species
    while name is not None:
        names.append(name)
        name = above[name]
    return tuple(reversed(names))


@dataclass(frozen=True, kw_only=True)
class Event:
    """A planted insertion."""

    number: int
    branch: str
    locus: str
    copy: Copy


@dataclass(frozen=True, kw_only=True)
class SimulateResult:
    """What was written."""

    out: Path
    contigs: tuple[str, ...]
    bases_of: dict[str, int]
    num_events_of: dict[str, int]
    """Insertions by branch."""
    substitutions_of: dict[str, int]
    """Substitutions by branch."""
    divergence_of: dict[str, float]
    """Share of the ancestor's bases that human and another species have both kept and that differ, by that species."""


def _loci(
    config: SimulateConfig, on_progress: Progress | None, warn: Callable[[str], None] | None
) -> dict[str, np.ndarray]:
    genome = load_genome(config.genome, on_progress, warn)
    loci: dict[str, np.ndarray] = {}
    known = 0
    for contig in genome.manifest.contigs:
        starts, ends = genome.n_runs(contig.name)
        edges = np.concatenate([[0], np.stack([starts, ends], 1).ravel(), [contig.length]])
        for first, last in edges.reshape(-1, 2):  # stretches without N: assemblies do not share their gaps
            for start in range(int(first), int(last), config.contig_bases):
                end = min(start + config.contig_bases, int(last))
                if end - start < config.contig_bases // 2:
                    continue
                known += end - start
                if known > MAX_BASES:
                    raise InputError(
                        f"{config.genome} has more than {MAX_BASES:,} bases without N; give one chromosome, or a part of one"
                    )
                loci[f"{contig.name}.{start + 1}"] = genome.stored(contig.name, start, end) & BASE_BITS
    if len(loci) < 5:
        raise InputError(
            f"{config.genome} gives {len(loci)} contigs of {config.contig_bases:,} bases without N; at least 5 are needed to "
            f"train, validate and test: give more sequence or a smaller --contig-bases"
        )
    return loci


def default_split(loci: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give every fifth locus to test, and the one before it to validation."""
    return tuple(loci[4::5]), tuple(loci[3::5])


class _Grown(NamedTuple):
    """The tree after evolution, by branch."""

    ends: dict[str, dict[str, Lineage]]
    """At the branch's lower end, by locus."""
    events: list[Event]
    substitutions_of: dict[str, int]
    indels_of: dict[str, list[int]]
    """Insertions and deletions."""


def _grow(
    config: SimulateConfig,
    loci: Mapping[str, np.ndarray],
    say: Callable[[str], None],
    warn: Callable[[str], None] | None,
) -> _Grown:
    """Let sequence evolve along the tree, from the root down."""
    generator = np.random.default_rng([config.seed, 0])
    sources: dict[str, list[Source]] = {}
    if config.diagnostics:
        made = make_sources(list(loci.values()), len(GREAT_APES), config.diagnostic_share, generator, warn)
        sources = {branch.name: some for branch, some in zip(GREAT_APES, made, strict=True)}
    grown = _Grown({}, [], {}, {})
    for number, branch in enumerate(GREAT_APES):
        say(f"evolving {branch.name}")
        begins = {name: Lineage.of(b) for name, b in loci.items()} if branch.above is None else grown.ends[branch.above]
        grown.ends[branch.name] = {}
        grown.substitutions_of[branch.name] = 0
        grown.indels_of[branch.name] = [0, 0]
        for at, (locus, begin) in enumerate(begins.items()):
            now, (count, insertions, deletions) = _along(
                config, branch, locus, begin, len(loci[locus]), sources.get(branch.name, []), grown.events,
                np.random.default_rng([config.seed, 1, number, at]),
            )  # fmt: skip
            grown.ends[branch.name][locus] = now
            grown.substitutions_of[branch.name] += count
            grown.indels_of[branch.name][0] += insertions
            grown.indels_of[branch.name][1] += deletions
    return grown


def run(
    config: SimulateConfig,
    out: Path,
    *,
    on_progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> SimulateResult:
    """Simulate, and write a FASTA a species, manifest.yaml, events.tsv and truth.json into a new directory.

    Args:
        config: What to simulate.
        out: The directory; it must not exist.
        on_progress: Called while a FASTA is packed.
        say: Called with what is being done.
        warn: Called with sentences that deserve attention.

    Raises:
        InputError: The directory exists, or the genome is too short, too long or holds no mobile element.
    """
    if out.exists():
        raise InputError(f"--out {out} exists; choose another")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    say = say or (lambda words: None)
    loci = _loci(config, on_progress, warn)
    grown = _grow(config, loci, say, warn)
    ends, events = grown.ends, grown.events
    say("writing")
    divergence_of = {
        name: _divergence(ends["human"], ends[name], {locus: len(bases) for locus, bases in loci.items()})
        for name in SPECIES
        if name != "human"
    }

    def write(path: Path) -> None:
        path.mkdir()
        _write(config, path, tuple(loci), ends, events, grown.substitutions_of, grown.indels_of, divergence_of)

    whole_directory(out, write, "--out")
    return SimulateResult(
        out=out,
        contigs=tuple(loci),
        bases_of={species: sum(len(now.bases) for now in ends[species].values()) for species in SPECIES},
        num_events_of={b.name: sum(event.branch == b.name for event in events) for b in GREAT_APES},
        substitutions_of=grown.substitutions_of,
        divergence_of=divergence_of,
    )


def _divergence(one: Mapping[str, Lineage], other: Mapping[str, Lineage], bases_of: Mapping[str, int]) -> float:
    """Give the share of the ancestor's bases that both have kept and that now differ."""
    number = differ = 0
    for locus, size in bases_of.items():
        both = []
        for lineage in (one[locus], other[locus]):
            kept = lineage.origins != NONE
            now = np.full(size, STORE_N, np.uint8)
            now[lineage.origins[kept]] = lineage.bases[kept]
            both.append(now)
        known = (both[0] < STORE_N) & (both[1] < STORE_N)
        number += int(known.sum())
        differ += int((both[0] != both[1])[known].sum())
    return differ / max(1, number)


def _along(
    config: SimulateConfig,
    branch: Branch,
    locus: str,
    begin: Lineage,
    root_bases: int,
    sources: Sequence[Source],
    events: list[Event],
    generator: np.random.Generator,
) -> tuple[Lineage, tuple[int, int, int]]:
    """Let one locus evolve along a branch, and count substitutions and indels; new elements are added to `events`."""
    spectrum = SPECTRA.get(branch.name, {}) if config.diagnostics else {}
    model = replace(config.mutations, spectrum={**config.mutations.spectrum, **spectrum})
    now, count, insertions, deletions = begin, 0, 0, 0
    for _ in range(SEGMENTS):
        expected = config.insertions_on(branch) * root_bases / 1e6 / SEGMENTS
        copies = [make_copy(sources, generator) for _ in range(generator.poisson(expected))]
        if copies:
            numbers = range(len(events), len(events) + len(copies))
            now = plant(now, [copy.bases for copy in copies], numbers, generator)
            events += [
                Event(number=n, branch=branch.name, locus=locus, copy=c) for n, c in zip(numbers, copies, strict=True)
            ]
        now = evolve(now, branch.length / SEGMENTS, model, generator)
        count += now.num_substitutions
        insertions += now.num_insertions
        deletions += now.num_deletions
    return now, (count, insertions, deletions)


def _write(
    config: SimulateConfig,
    out: Path,
    loci: Sequence[str],
    ends: Mapping[str, Mapping[str, Lineage]],
    events: Sequence[Event],
    substitutions_of: Mapping[str, int],
    indels_of: Mapping[str, Sequence[int]],
    divergence_of: Mapping[str, float],
) -> None:
    for species in SPECIES:
        with open(out / f"{species}.fa", "w", encoding="utf-8") as file:
            for locus in loci:
                letters = letters_of_store(ends[species][locus].bases)
                file.write(f">{locus} SIMULATED {species}\n")
                file.writelines(letters[i : i + LINE] + "\n" for i in range(0, len(letters), LINE))
    test, valid = default_split(loci)
    rows = [{"name": locus, "homologue": locus, "verified": True} for locus in loci]
    manifest = {
        "format_version": 1,
        "name": f"simulated-apes-{config.preset}" + ("" if config.diagnostics else "-off"),
        "valid": list(valid),
        "test": list(test),
        "classes": [
            {"label": species, "assemblies": [{"name": f"simulated-{species}", "fasta": f"{species}.fa",
                                               "generation": "simulated", "contigs": rows}]}
            for species in SPECIES
        ],
    }  # fmt: skip
    import yaml

    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    words = "# SIMULATED: real human sequence that evolved in a computer along the tree of the great apes; docs/species.md\n"
    write_text(out / "manifest.yaml", words + yaml.dump(manifest, Dumper=NoAliases, sort_keys=False))
    _write_events(out / EVENTS, ends, events)
    write_json(
        out / TRUTH,
        {
            "simulated": True,
            "genome": config.genome,
            "preset": config.preset,
            "seed": config.seed,
            "diagnostics": config.diagnostics,
            "tree": [
                {"branch": b.name, "above": b.above, "substitutions_a_site": b.length, "species": b.species,
                 "insertions_per_mb": config.insertions_on(b), "insertions": sum(e.branch == b.name for e in events),
                 "substitutions": substitutions_of[b.name],
                 "short_insertions": indels_of[b.name][0], "short_deletions": indels_of[b.name][1],
                 "spectrum": SPECTRA.get(b.name, {}) if config.diagnostics else {}}
                for b in GREAT_APES
            ],
            "divergence_from_human": dict(divergence_of),
        },
    )  # fmt: skip


def _write_events(path: Path, ends: Mapping[str, Mapping[str, Lineage]], events: Sequence[Event]) -> None:
    """Write a row for each insertion and species that has it: where it lies (0-based, end excluded), its diagnostic bases."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(
            ("event", "branch", "family", "strand", "bases", "species", "contig", "start", "end", "diagnostic")
        )
        for species in SPECIES:
            for locus, now in ends[species].items():
                for number, (places, offsets) in now.planted().items():
                    event = events[number]
                    wanted = np.isin(offsets, event.copy.diagnostic)
                    kept = places[wanted][now.bases[places[wanted]] == event.copy.bases[offsets[wanted]]]
                    rows.writerow(
                        (number, event.branch, event.copy.family, event.copy.strand, len(event.copy.bases), species, locus,
                         places[0], places[-1] + 1, ",".join(map(str, kept)))
                    )  # fmt: skip
