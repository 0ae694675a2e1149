"""Sequence that evolves: rates as asked for, and every base traced to where it came from."""

import numpy as np
import pytest

from dna_mamba.data.evolution import NONE, Lineage, MutationModel, evolve, plant, substitution_rates

LETTERS = "ACGTN"


def bases_of(text):
    return np.array([LETTERS.index(letter) for letter in text], np.uint8)


def random_bases(number, seed=0):
    return np.random.default_rng(seed).integers(0, 4, number).astype(np.uint8)


SUBSTITUTIONS = MutationModel(indels_per_substitution=0.0, transitions_over_transversions=2.1)


def test_hand_worked_rates():
    # ratio 2: a transition is 4 times as frequent as one of the two transversions, in CpG 40 times
    model = MutationModel(transitions_over_transversions=2.0, spectrum={"TCA>TTA": 3.0})
    rates = substitution_rates(bases_of("ACGTCANC"), model)
    assert rates[0].tolist() == [0, 1, 4, 1]
    assert rates[1].tolist() == [1, 0, 1, 40]  # C of CpG becomes T
    assert rates[2].tolist() == [40, 1, 0, 1]  # G of CpG becomes A
    assert rates[3].tolist() == [1, 4, 1, 0]
    assert rates[4].tolist() == [1, 0, 1, 12]  # TCA becomes TTA
    assert rates[6].tolist() == [0, 0, 0, 0]  # N
    assert substitution_rates(bases_of("TGA"), model)[1].tolist() == [12, 1, 0, 1]  # the same on the other strand


def test_a_branch_has_its_length_and_its_transitions():
    ancestor = Lineage.of(random_bases(2_000_000))
    now = evolve(ancestor, 0.012, SUBSTITUTIONS, np.random.default_rng(1))
    changed = now.bases != ancestor.bases
    assert changed.mean() == pytest.approx(0.012, rel=0.03)  # 24,000 events: one percent is 1.5 deviations
    assert now.num_substitutions == pytest.approx(24_000, rel=0.03)
    assert np.array_equal(now.origins, np.arange(2_000_000))
    text = ancestor.bases
    cpg = np.zeros(len(text), bool)
    pairs = (text[:-1] == 1) & (text[1:] == 2)
    cpg[:-1] |= pairs
    cpg[1:] |= pairs
    is_transition = (text[changed & ~cpg] ^ now.bases[changed & ~cpg]) == 2  # A 0 and G 2, C 1 and T 3
    assert is_transition.sum() / (~is_transition).sum() == pytest.approx(2.1, rel=0.06)
    # sites of CpG change (10 x 4.2 + 2) / (4.2 + 2) = 7.1 times as often
    assert changed[cpg].mean() / changed[~cpg].mean() == pytest.approx(7.1, rel=0.08)


def test_n_stays_and_nothing_happens_on_a_branch_of_no_length():
    ancestor = Lineage.of(bases_of("ACGTN" * 1000))
    same = evolve(ancestor, 0.0, MutationModel(), np.random.default_rng(0))
    assert np.array_equal(same.bases, ancestor.bases) and same.num_substitutions == same.num_deletions == 0
    now = evolve(ancestor, 0.3, SUBSTITUTIONS, np.random.default_rng(0))
    assert np.array_equal(now.bases == 4, ancestor.bases == 4) and now.num_substitutions > 500
    empty = evolve(Lineage.of(bases_of("NNNN")), 0.1, MutationModel(), np.random.default_rng(0))
    assert empty.bases.tolist() == [4, 4, 4, 4]


def test_insertions_and_deletions_are_as_many_and_as_long_as_asked_and_every_base_is_traced():
    ancestor = Lineage.of(random_bases(1_000_000))
    model = MutationModel(cpg_factor=1.0)
    now = evolve(ancestor, 0.02, model, np.random.default_rng(2))
    assert now.num_insertions + now.num_deletions == pytest.approx(0.02 * 0.14 * 1e6, rel=0.08)
    assert now.num_deletions / now.num_insertions == pytest.approx(2.0, rel=0.15)
    inserted = now.origins == NONE
    assert inserted.sum() / now.num_insertions == pytest.approx(3.0, rel=0.12)
    old = now.origins[~inserted]
    assert (np.diff(old) > 0).all()
    assert (len(ancestor.bases) - len(old)) / now.num_deletions == pytest.approx(3.0, rel=0.12)
    assert (now.bases[~inserted] != ancestor.bases[old]).mean() == pytest.approx(0.02, rel=0.05)


def test_what_is_planted_is_found_in_every_descendant():
    ancestor = Lineage.of(random_bases(50_000))
    elements = [random_bases(300, seed) for seed in range(5)]
    planted = plant(ancestor, elements, range(10, 15), np.random.default_rng(3))
    assert len(planted.bases) == 51_500
    for number, (places, offsets) in planted.planted().items():
        assert np.array_equal(planted.bases[places], elements[number - 10]) and np.array_equal(offsets, np.arange(300))
    assert np.array_equal(planted.bases[planted.tags == NONE], ancestor.bases)
    descendant = evolve(planted, 0.01, MutationModel(), np.random.default_rng(4))
    found = descendant.planted()
    assert set(found) == set(range(10, 15))
    for number, (places, offsets) in found.items():
        assert len(places) > 270 and (np.diff(places) > 0).all() and (np.diff(offsets) > 0).all()
        # of the bases that are left, one in a hundred has changed
        assert (descendant.bases[places] == elements[number - 10][offsets]).mean() > 0.95
    # they stand between the same neighbours
    start, before = found[12][0][0], planted.planted()[12][0][0]
    assert abs(int(descendant.origins[start - 1]) - int(planted.origins[before - 1])) < 20


def test_the_same_seed_gives_the_same_sequence():
    ancestor = Lineage.of(random_bases(10_000))
    one, two, other = (evolve(ancestor, 0.02, MutationModel(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.bases, two.bases) and not np.array_equal(one.bases[:9000], other.bases[:9000])
    assert np.array_equal(ancestor.bases, random_bases(10_000))  # the ancestor is not changed


@pytest.mark.parametrize(
    "make",
    [
        lambda: MutationModel(cpg_factor=0.0),
        lambda: MutationModel(spectrum={"TCC>TAG": 2.0}),
        lambda: MutationModel(spectrum={"TCC>TTC": 0.0}),
        lambda: evolve(Lineage.of(bases_of("ACGT")), -0.1, MutationModel(), np.random.default_rng(0)),
        lambda: plant(Lineage.of(bases_of("NN")), [bases_of("A")], [1], np.random.default_rng(0)),
        lambda: plant(Lineage.of(bases_of("AA")), [bases_of("A")], [1, 2], np.random.default_rng(0)),
        lambda: plant(Lineage.of(bases_of("AA")), [bases_of("A").repeat(70_000)], [1], np.random.default_rng(0)),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(ValueError, match="must|is no factor|known base|needs one|can be planted"):
        make()
