"""Windows of labelled genomes: splits by human homologue, and draws that repeat themselves."""

from collections import Counter

import numpy as np
import pytest

from dna_mamba.data.labelled import LabelledContig, LabelledWindows, Place, split_by_homologue, write_places
from dna_mamba.data.store.build import build
from dna_mamba.errors import InputError


def contig(label, name, homologue, length=1000):
    return LabelledContig(label=label, genome=f"{label}-1", contig=name, length=length, homologue=homologue)


# numbers of chromosomes as in the telomere-to-telomere assemblies: ape 3 is human 4; gorilla 4 holds human 17 and 5
CONTIGS = [
    *(contig("human", f"chr{n}", n) for n in ("2", "3", "4", "5", "17", "X")),
    *(
        contig("chimpanzee", f"chr{n}", h)
        for n, h in (("2", "3"), ("3", "4"), ("4", "5"), ("12", "2a"), ("13", "2b"), ("X", "X"))
    ),
    *(
        contig("gorilla", f"chr{n}", h)
        for n, h in (("3", "4"), ("4", "17x5"), ("19", "5x17"), ("2", "3"), ("11", "2b"), ("X", "X"))
    ),
    contig("human", "chrUn", None),
]


def test_a_locus_is_in_one_part_whatever_its_number_in_a_species():
    split = split_by_homologue(CONTIGS, valid=["4"], test=["chrX"])
    assert {(c.label, c.contig) for c in split.valid} == {
        ("human", "chr4"),
        ("chimpanzee", "chr3"),
        ("gorilla", "chr3"),
    }
    assert {(c.label, c.contig) for c in split.test} == {(s, "chrX") for s in ("human", "chimpanzee", "gorilla")}
    assert [c.contig for c in split.left_out] == ["chrUn"]
    assert len(split.train) + len(split.valid) + len(split.test) + len(split.left_out) == len(CONTIGS)


def test_fused_chromosomes_are_left_out_where_their_halves_part():
    with pytest.raises(InputError, match="class gorilla has no contig for valid"):
        split_by_homologue(CONTIGS, valid=["5"], test=["X"])
    whole = contig("gorilla", "chr20", "5")
    split = split_by_homologue([*CONTIGS, whole], valid=["5"], test=["X"])
    assert [c for c in split.valid if c.label == "gorilla"] == [whole]
    assert {c.contig for c in split.left_out} == {"chrUn", "chr4", "chr19"}
    split = split_by_homologue(CONTIGS, valid=["5", "17"], test=["2"])
    assert {c.contig for c in split.valid if c.label == "gorilla"} == {"chr4", "chr19"}
    assert {c.contig for c in split.test} == {"chr2", "chr12", "chr13", "chr11"}  # 2a and 2b are human 2
    assert {c.contig for c in split.test if c.label == "gorilla"} == {"chr11"}


def test_loci_of_other_kinds_are_names_and_nothing_is_read_into_them():
    for name in ("tigx1.18001", "ENm001", "chr20.8000001", "gene5b"):
        assert contig("a", "c", name).human_chromosomes == {name.removeprefix("chr")}
    assert contig("a", "c", "hsa17x5".removeprefix("hsa")).human_chromosomes == {"17", "5"}
    assert contig("a", "c", "2a").human_chromosomes == contig("a", "c", "chr2B").human_chromosomes == {"2"}


@pytest.mark.parametrize(
    "valid, test, words",
    [
        (["4"], ["4"], "chromosome 4 is given for validation and for test"),
        (["9"], ["X"], "no contig descends from human chromosome '9'"),
    ],
)
def test_a_split_that_cannot_be_is_told(valid, test, words):
    with pytest.raises(InputError, match=words):
        split_by_homologue(CONTIGS, valid, test)


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(0)

    def letters(number, gc):
        return "".join(generator.choice(list("ACGT"), number, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]))

    stores = {}
    for name, gc in (("a-1", 0.40), ("b-1", 0.55)):
        path = folder / f"{name}.fa"
        one = letters(30_000, gc)
        path.write_text(
            f">c1\n{one[:10_000]}{'N' * 5000}{one[10_000:].lower()}\n>c2\n{letters(5000, gc)}\n>c3\n{letters(150, gc)}\n"
        )
        stores[name] = build([path], folder / f"{name}.dna")
    return stores


def contigs_of(genomes):
    return [
        LabelledContig(label=name[0], genome=name, contig=c.name, length=c.length)
        for name, store in genomes.items()
        for c in store.manifest.contigs
    ]


def test_draws_are_uniform_over_classes_and_by_length_over_contigs(genomes):
    windows = LabelledWindows(genomes, contigs_of(genomes), 200, seed=3)
    drawn = [windows.place(0, i) for i in range(2000)]
    labels = Counter(place.label for place in drawn)
    assert abs(labels["a"] - 1000) < 5 * 22.4  # five standard deviations
    c2 = sum(place.contig == "c2" for place in drawn) / 2000
    # c1 has 34,801 starts, of which 5,199 hold an N; c2 has 4,801
    assert abs(c2 - 4801 / (34_801 - 5199 + 4801)) < 0.04
    assert not any("N" in genomes[p.genome].fetch(_interval(p, 200)) for p in drawn[:300])
    alike = LabelledWindows(genomes, contigs_of(genomes), 200, seed=3, by_length=False, drop_n=False)
    assert abs(sum(alike.place(0, i).contig == "c2" for i in range(2000)) / 2000 - 0.5) < 0.06


def _interval(place, length):
    from dna_mamba.data.intervals import Interval

    return Interval(place.contig, place.start, place.start + length)


def test_a_window_follows_from_seed_epoch_and_index_alone(genomes):
    one, two = (LabelledWindows(genomes, contigs_of(genomes), 200, seed=3) for _ in range(2))
    forward = [one.place(1, i) for i in range(50)]
    assert [two.place(1, i) for i in reversed(range(50))] == forward[::-1]
    other = LabelledWindows(genomes, contigs_of(genomes), 200, seed=4)
    assert forward != [one.place(2, i) for i in range(50)] and forward != [other.place(1, i) for i in range(50)]


def test_evaluation_sets_are_balanced_fixed_and_listed(genomes, tmp_path):
    windows = LabelledWindows(genomes, contigs_of(genomes), 200, seed=3)
    places = windows.places(301)
    assert places == LabelledWindows(genomes, contigs_of(genomes), 200, seed=3).places(301)
    assert Counter(p.label for p in places) == {"a": 151, "b": 150} and len(set(places)) == 301
    write_places(tmp_path / "test.tsv", places, 200)
    lines = (tmp_path / "test.tsv").read_text().splitlines()
    first = places[0]
    assert lines[0] == "contig\tstart\tend\tlabel\tassembly" and len(lines) == 302
    assert lines[1] == f"{first.contig}\t{first.start}\t{first.start + 200}\ta\ta-1"


def test_windows_are_read_in_upper_case(genomes):
    windows = LabelledWindows(genomes, contigs_of(genomes), 200, seed=3)
    place = Place(label="a", genome="a-1", contig="c1", start=20_000)  # lower case in the file
    stored = windows.stored(place)
    assert "".join("ACGTN"[b] for b in stored) == genomes["a-1"].fetch(_interval(place, 200)).upper()


def test_matching_takes_the_difference_in_g_and_c_away(genomes):
    def difference(match):
        windows = LabelledWindows(genomes, contigs_of(genomes), 200, seed=3, match_gc=match)
        shares = {"a": [], "b": []}
        for place in windows.places(600):
            stored = windows.stored(place)
            shares[place.label].append(((stored == 1) | (stored == 2)).mean())
        return abs(np.mean(shares["a"]) - np.mean(shares["b"]))

    assert difference(False) > 0.13 and difference(True) < 0.03


def test_what_cannot_be_drawn_is_told(genomes):
    with pytest.raises(InputError, match=r"class a has no contig of 50,000 bases; its longest here has 35,000"):
        LabelledWindows(genomes, contigs_of(genomes), 50_000, seed=0)
    windows = LabelledWindows(genomes, contigs_of(genomes), 28_000, seed=0)
    with pytest.raises(InputError, match="draws found no window of 28,000 bases without N"):
        windows.place(0, 0)
    tiny = [c for c in contigs_of(genomes) if c.contig == "c3"]
    with pytest.raises(InputError, match="class a has places for about"):
        LabelledWindows(genomes, tiny, 149, seed=0).places(10)
