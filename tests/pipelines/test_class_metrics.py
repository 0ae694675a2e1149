"""Reports on classes and the simple models beside them, against hand-worked values."""

import numpy as np
import pytest

from dna_mamba.pipelines.class_metrics import Share, baselines, count_kmers, draw_confusion, report, share_of_gc

LABELS = ("human", "chimpanzee", "gorilla")


def stored_of(text):
    return np.array([["ACGTN".index(letter) for letter in row] for row in text.split()], np.uint8)


def test_intervals_are_wilsons():
    # Brown, Cai and DasGupta 2001: (k + z^2/2) / (n + z^2) -+ z sqrt(n) / (n + z^2) sqrt(p q + z^2 / (4 n))
    share, z = Share.of(8, 10), 1.959964
    middle = (8 + z * z / 2) / (10 + z * z)
    half = z * 10**0.5 / (10 + z * z) * (0.8 * 0.2 + z * z / 40) ** 0.5
    assert (share.low, share.high) == pytest.approx((middle - half, middle + half), rel=1e-5)
    assert share.value == 0.8
    assert Share.of(0, 5).low == 0.0 and Share.of(5, 5).high == 1.0
    assert np.isnan(Share.of(0, 0).value) and (Share.of(0, 0).low, Share.of(0, 0).high) == (0.0, 1.0)


def test_a_hand_worked_report():
    probabilities = np.array([[0.75, 0.2, 0.05], [0.6, 0.3, 0.1], [0.1, 0.75, 0.15], [0.35, 0.35, 0.3]])
    found = report(probabilities, np.array([0, 1, 1, 2]), LABELS)
    assert found.accuracy.correct == 2 and found.accuracy.number == 4
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert [s.value for s in found.by_class] == [1.0, 0.5, 0.0]
    # bins 0.7-0.8: both right at 0.75; 0.6-0.7: wrong at 0.6; 0.3-0.4: wrong at 0.35
    assert found.calibration_error == pytest.approx(0.5 * 0.25 + 0.25 * 0.6 + 0.25 * 0.35)
    assert found.log_loss == pytest.approx(-np.log([0.75, 0.3, 0.75, 0.3]).mean())
    assert found.as_dict()["by_class"]["chimpanzee"]["value"] == 0.5


def test_a_class_that_is_not_in_the_set_has_no_share():
    found = report(np.eye(3)[[0, 1]], np.array([0, 1]), LABELS)
    assert found.by_class[2].number == 0 and found.confusion.shape == (3, 3)


def test_kmers_are_counted_as_by_hand():
    counts = count_kmers(stored_of("ACGTA ANGTA"), 2)
    numbers = {a + b: 4 * i + j for i, a in enumerate("ACGT") for j, b in enumerate("ACGT")}
    assert {kmer: int(counts[0, n]) for kmer, n in numbers.items() if counts[0, n]} == {
        "AC": 1,
        "CG": 1,
        "GT": 1,
        "TA": 1,
    }
    assert {kmer: int(counts[1, n]) for kmer, n in numbers.items() if counts[1, n]} == {"GT": 1, "TA": 1}
    assert count_kmers(stored_of("AC"), 3).sum() == 0
    generator = np.random.default_rng(0)
    stored = generator.integers(0, 5, (2, 300), dtype=np.uint8)
    text = ["".join("ACGTN"[b] for b in row) for row in stored]
    found = count_kmers(stored | 8, 3)  # soft-masked bases count alike
    for row in range(2):
        for number in range(64):
            kmer = "".join("ACGT"[number >> shift & 3] for shift in (4, 2, 0))
            assert found[row, number] == sum(text[row][i : i + 3] == kmer for i in range(298))
    with pytest.raises(ValueError, match="k 9 must lie between 1 and 8"):
        count_kmers(stored, 9)


def test_the_share_of_gc_leaves_n_out():
    assert share_of_gc(stored_of("GCGCN ATGNN NNNNN"))[:, 0].tolist() == pytest.approx([1.0, 1 / 3, 0.0])


def draw(number, shift, seed):
    """Sequences of two classes whose composition differs by the shift, and that differ in one 4-mer."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 2, number)
    stored = np.stack([
        generator.choice(4, 200, p=[0.25 - shift * t, 0.25 + shift * t, 0.25 + shift * t, 0.25 - shift * t]) for t in targets
    ]).astype(np.uint8)  # fmt: skip
    return stored, targets


def test_baselines_find_what_there_is_and_nothing_where_there_is_nothing():
    sets = [draw(number, 0.06, seed) for seed, number in enumerate((400, 200, 400))]
    kmers, gc = baselines(*sets, LABELS[:2], ks=(1, 2))
    assert kmers.report.accuracy.low > 0.8 and gc.report.accuracy.low > 0.8
    nothing = [draw(number, 0.0, seed) for seed, number in enumerate((400, 200, 400))]
    for found in baselines(*nothing, LABELS[:2], ks=(1, 2)):
        assert found.report.accuracy.low < 0.5 < found.report.accuracy.high, found.name


def test_the_baseline_is_chosen_on_validation_and_never_on_test():
    train, valid, test = (draw(number, 0.06, seed) for seed, number in enumerate((400, 200, 400)))
    straight = baselines(train, valid, test, LABELS[:2], ks=(1, 2))
    swapped = baselines(train, valid, (test[0], 1 - test[1]), LABELS[:2], ks=(1, 2))
    assert [b.chosen for b in straight] == [b.chosen for b in swapped]
    assert swapped[0].report.accuracy.correct == 400 - straight[0].report.accuracy.correct


def test_the_picture_is_one(tmp_path):
    found = report(np.eye(3)[[0, 1, 2, 1]], np.array([0, 1, 2, 2]), LABELS)
    assert draw_confusion(found, tmp_path / "confusion.png", "test").read_bytes().startswith(b"\x89PNG")
