"""Simulated apes: what was written down happened, the tree is as published, and without diagnostics nothing tells."""

import csv
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pyfaidx import Fasta

from dna_mamba.data.evolution import MutationModel
from dna_mamba.data.labelled import Place
from dna_mamba.data.selection import demo_genome
from dna_mamba.data.store.build import build
from dna_mamba.errors import InputError
from dna_mamba.pipelines import simulate
from dna_mamba.pipelines.class_metrics import Share, baselines
from dna_mamba.pipelines.configs.species import small
from dna_mamba.pipelines.labelled_genomes import LabelledDataConfig, audit, open_labelled
from dna_mamba.pipelines.likelihood_ratio import LikelihoodRatioConfig
from dna_mamba.pipelines.oracle import attainable, counted, read_truth
from dna_mamba.pipelines.simulate import GREAT_APES, SPECIES, SimulateConfig, path_of
from dna_mamba.pipelines.tasks.species import run as run_finetune
from tests.conftest import dna_mamba


@pytest.fixture(scope="module")
def human(tmp_path_factory):
    """400 kb of human chromosome 20, with Alu, L1 and SVA elements somewhere."""
    folder = tmp_path_factory.mktemp("human")
    packed = shutil.copy(demo_genome(), folder)  # pyfaidx writes its index beside the file
    letters = str(Fasta(str(packed), sequence_always_upper=True)["chr20"][8_000_000:8_400_000])
    path = folder / "human.fa"
    path.write_text(f">c\n{letters}\n")
    return path


def simulated(human, out, **changes):
    values = {"genome": str(human), "contig_bases": 10_000, **simulate.preset("benchmark"), **changes}
    config = SimulateConfig(**values)
    return simulate.run(config, out)


@pytest.fixture(scope="module")
def on(human, tmp_path_factory):
    return simulated(human, tmp_path_factory.mktemp("on") / "apes")


@pytest.fixture(scope="module")
def off(human, tmp_path_factory):
    return simulated(human, tmp_path_factory.mktemp("off") / "apes", diagnostics=False)


def test_all_species_are_equally_far_from_the_root():
    length = {branch.name: branch.length for branch in GREAT_APES}
    assert {round(sum(length[name] for name in path_of(species)), 10) for species in SPECIES} == {0.017}
    # human and chimpanzee 1.37 %, human and gorilla 1.75 %, chimpanzee and bonobo 0.4 %
    assert 2 * length["human"] == pytest.approx(0.0137)
    assert 2 * length["gorilla"] == pytest.approx(0.0175)
    assert 2 * length["bonobo"] == pytest.approx(0.004)


def test_species_differ_as_much_as_the_tree_says(human, tmp_path):
    """Without insertions and deletions positions stay comparable; sites that changed twice make it a little less."""
    model = MutationModel(indels_per_substitution=0.0)
    out = simulated(human, tmp_path / "apes", diagnostics=False, mutations=model).out
    bases = {s: np.frombuffer("".join(map(str, Fasta(str(out / f"{s}.fa")))).encode(), "u1") for s in SPECIES}
    expected = {("human", "chimpanzee"): 0.0137, ("human", "gorilla"): 0.0175, ("human", "orangutan"): 0.034,
                ("chimpanzee", "bonobo"): 0.004, ("gorilla", "orangutan"): 0.034}  # fmt: skip
    for (one, two), share in expected.items():
        found = (bases[one] != bases[two]).mean()
        noise = 4 * math.sqrt(share / len(bases[one]))
        assert 0.93 * share - noise < found < share + noise, (one, two, found)


def events(out):
    with open(out / "events.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_every_insertion_lies_where_the_table_says_in_the_species_below_its_branch(on):
    rows = events(on.out)
    assert {row["event"] for row in rows} == {str(i) for i in range(sum(on.num_events_of.values()))}
    expected = 180 * 0.4
    for species in SPECIES:
        assert on.num_events_of[species] == pytest.approx(expected, abs=5 * math.sqrt(expected))
    by_branch: dict[str, list[str]] = {}
    for species in SPECIES:
        fasta = Fasta(str(on.out / f"{species}.fa"))
        for row in rows:
            if row["species"] != species:
                continue
            assert row["branch"] in path_of(species)
            letters = str(fasta[row["contig"]][int(row["start"]) : int(row["end"])])
            where = [int(text) for text in row["diagnostic"].split(",") if text]
            assert all(int(row["start"]) <= place < int(row["end"]) for place in where)
            if int(row["end"]) - int(row["start"]) < int(row["bases"]) + 30 and row["family"] == "Alu":
                tail = letters[-8:] if row["strand"] == "+" else letters[:8]
                by_branch.setdefault(row["branch"], []).append(tail.replace("A" if row["strand"] == "+" else "T", ""))
    # copies end in poly(A); few of these bases have changed since
    assert all(np.mean([len(rest) for rest in some]) < 2 for some in by_branch.values())


def test_diagnostic_bases_are_a_lineages_own(on):
    """The 21-mer around a diagnostic base is frequent in its lineage's insertions and nowhere else."""
    sequences = {s: "".join(str(record) for record in Fasta(str(on.out / f"{s}.fa"))) for s in SPECIES}
    fasta = {s: Fasta(str(on.out / f"{s}.fa")) for s in SPECIES}
    inside = outside = 0
    for row in events(on.out)[::7]:
        places = [int(text) for text in row["diagnostic"].split(",") if text]
        for place in places[1:2]:
            word = str(fasta[row["species"]][row["contig"]][max(0, place - 10) : place + 11])
            inside += sequences[row["species"]].count(word) > 1
            outside += sum(word in sequences[other] for other in SPECIES if other != row["species"])
    assert inside > 5 and outside <= inside // 5


def test_off_plants_nothing_and_the_same_seed_gives_the_same_bytes(human, off, tmp_path):
    assert not events(off.out) and set(off.num_events_of.values()) == {0}
    again = simulated(human, tmp_path / "again", diagnostics=False)
    other = simulated(human, tmp_path / "other", diagnostics=False, seed=1)
    for name in ("human.fa", "manifest.yaml"):
        assert (again.out / name).read_bytes() == (off.out / name).read_bytes()
    assert (other.out / "human.fa").read_bytes() != (off.out / "human.fa").read_bytes()
    truth = json.loads((off.out / "truth.json").read_text())
    assert truth["simulated"] is True and truth["diagnostics"] is False


def test_the_oracle_of_the_benchmark_reaches_60_percent_and_counting_agrees(on):
    genomes = open_labelled(LabelledDataConfig(manifest=str(on.out / "manifest.yaml")))
    truth = read_truth(on.out, on.bases_of)
    best = attainable(truth, 4096)
    assert 0.60 <= best < 0.68
    windows = genomes.windows("train", 4096, 0, LabelledDataConfig(manifest="m"))
    places = [windows.place(0, i) for i in range(1500)]
    found = counted(truth, places, 4096)
    assert found.value == pytest.approx(best, abs=0.06)  # a few hundred insertions are what there is


def test_the_closed_form_by_hand(tmp_path):
    """Two species, one branch each: a window shows an insertion with probability p, and is then known; else a guess."""
    rows = [
        {"branch": name, "above": None, "species": True, "insertions": number, "substitutions": 0}
        for name, number in (("human", 10), ("chimpanzee", 10))
    ]
    (tmp_path / "truth.json").write_text(json.dumps({"tree": rows}))
    (tmp_path / "events.tsv").write_text(
        "event\tbranch\tfamily\tstrand\tbases\tspecies\tcontig\tstart\tend\tdiagnostic\n"
        "0\thuman\tAlu\t+\t300\thuman\tc\t100\t400\t150,250\n"
        "1\tchimpanzee\tAlu\t+\t300\tchimpanzee\tc\t500\t800\t550\n"
        "2\tchimpanzee\tAlu\t+\t300\tchimpanzee\tc\t900\t950\t\n"  # no diagnostic base is left: nobody can see it
    )
    truth = read_truth(tmp_path, {"human": 10_000, "chimpanzee": 10_000})  # 1e-4 a base each
    p_human, p_chimpanzee = 1 - math.exp(-1e-4 * (1000 + 100)), 1 - math.exp(-1e-4 * (1000 + 0))
    # shown human: human; shown chimpanzee: chimpanzee; nothing: the species that shows less often
    by_hand = (p_human + p_chimpanzee + (1 - min(p_human, p_chimpanzee))) / 2
    assert attainable(truth, 1000) == pytest.approx(by_hand)
    place = {"genome": "g", "contig": "c"}
    shown = [Place(label="human", start=0, **place), Place(label="chimpanzee", start=540, **place)]
    assert counted(truth, shown, 200).correct == 2
    hidden = [Place(label="human", start=251, **place)] * 10 + [Place(label="chimpanzee", start=0, **place)] * 10
    assert counted(truth, hidden, 100).correct == 10  # all are called by the same name


@pytest.mark.parametrize("seed", [0])
def test_without_diagnostics_every_classifier_falls_to_chance(human, tmp_path, seed):
    """The leak test: whatever could tell species apart but what is planted would show here. 99 % intervals hold 1/5."""
    out = simulated(human, tmp_path / "off", diagnostics=False, seed=seed).out
    data = LabelledDataConfig(manifest=str(out / "manifest.yaml"))
    genomes = open_labelled(data)

    def read(part, number):
        windows = genomes.windows(part, 1024, seed, data)
        places = windows.places(number)
        classes = np.array([genomes.labels.index(place.label) for place in places])
        return np.stack([windows.stored(place) for place in places]), classes

    train, valid, test = read("train", 1000), read("valid", 300), read("test", 1000)
    for found in baselines(train, valid, test, genomes.labels, ks=(2, 4), strengths=(1e-3, 1e-1)):
        share = Share.of(found.report.accuracy.correct, found.report.accuracy.number, 0.99)
        assert share.low < 0.2 < share.high, found.name
    base = small(str(out / "manifest.yaml"))
    config = replace(
        base, seq_lens=(512,), seed=seed, recipe=replace(base.recipe, epochs=1, steps_per_epoch=40),
        evaluation=replace(base.evaluation, test_windows=1000, valid_windows=50, baseline_windows=0,
                           likelihood_ratio=LikelihoodRatioConfig(steps=3)),
    )  # fmt: skip
    rows = run_finetune(config, tmp_path / "run").lengths[0].rows
    assert sum(row.report is not None for row in rows) == 2  # the classifier and the likelihood ratio
    for row in rows:
        if row.accuracy is not None:
            share = Share.of(row.accuracy.correct, row.accuracy.number, 0.99)
            assert share.low < 0.2 < share.high, row.name
    # the test can fail: with what is planted the same k-mers are far from chance
    out = simulated(human, tmp_path / "on", insertions_per_mb=1000.0, seed=seed).out
    data = LabelledDataConfig(manifest=str(out / "manifest.yaml"))
    genomes = open_labelled(data)
    train, valid, test = read("train", 1000), read("valid", 300), read("test", 1000)
    told = baselines(train, valid, test, genomes.labels, ks=(4,), strengths=(1e-3, 1e-1))[0].report
    assert Share.of(told.accuracy.correct, told.accuracy.number, 0.99).low > 0.25


def test_the_split_shares_no_locus_and_the_audit_says_so(on):
    found = audit(open_labelled(LabelledDataConfig(manifest=str(on.out / "manifest.yaml"))), "homologue")
    assert found.loci_in_two_parts == () and all(set(of) == set(SPECIES) for of in found.bases.values())
    # what test shares with training is what was planted in both, not loci: far less than the 70 % of a common locus
    assert max(found.shared_kmers["test"].values()) < 0.1


def test_the_command_writes_all_and_refuses_what_it_must(human, tmp_path):
    done = dna_mamba("simulate", "apes", "--genome", human, "--contig-bases", "20000", "--out", tmp_path / "apes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SIMULATED human: 20 contigs")
    assert {p.name for p in (tmp_path / "apes").iterdir()} == {
        *(f"{s}.fa" for s in SPECIES),
        "manifest.yaml",
        "events.tsv",
        "truth.json",
    }
    assert (tmp_path / "apes" / "manifest.yaml").read_text().startswith("# SIMULATED")
    again = dna_mamba("simulate", "apes", "--genome", human, "--out", tmp_path / "apes")
    assert again.returncode == 2 and "exists; choose another" in again.stderr
    for options, words in (
        (("--preset", "bench"), "did you mean 'benchmark'"),
        (("--contig-bases", "100000"), "at least 5 are needed"),
        (("--diagnostic-share", "0.5"), "each of 8 branches needs positions of its own"),
    ):
        refused = dna_mamba("simulate", "apes", "--genome", human, "--out", tmp_path / "new", *options)
        assert refused.returncode == 2 and words in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "new").exists()


def test_sequence_without_elements_is_told(tmp_path):
    path = tmp_path / "random.fa"
    path.write_text(">c\n" + "".join(np.random.default_rng(0).choice(list("ACGT"), 60_000)) + "\n")
    build([path], tmp_path / "random.dna")
    with pytest.raises(InputError, match="holds no Alu, L1, SVA element"):
        simulated(tmp_path / "random.dna", tmp_path / "apes")
    assert simulated(tmp_path / "random.dna", tmp_path / "apes", diagnostics=False).num_events_of["human"] == 0
