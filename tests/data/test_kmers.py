"""31-mers against Python sets of letters."""

import numpy as np

from dna_mamba.data.kmers import K, Kmers, contained
from dna_mamba.data.vocabulary import STORE_N, reverse_complement_store


def letters(bases):
    return "".join("ACGTN"[b & 7] for b in bases)


def by_hand(bases):
    text = letters(bases)
    found = set()
    for i in range(len(text) - K + 1):
        word = text[i : i + K]
        other = word[::-1].translate(str.maketrans("ACGT", "TGCA"))
        if "N" not in word:
            found.add(min(word, other))
    return found


def spelled(codes):
    return {"".join("ACGT"[int(code) >> (2 * (K - 1 - i)) & 3] for i in range(K)) for code in codes}


def test_they_are_those_of_letters_on_either_strand_without_n():
    generator = np.random.default_rng(0)
    bases = generator.integers(0, 4, 3000).astype(np.uint8)
    bases[[500, 900, 901]] = STORE_N
    bases[1000:1100] |= 8  # soft mask
    kmers = Kmers()
    kmers.add(bases)
    assert spelled(kmers.distinct()) == by_hand(bases)
    other = Kmers()
    other.add(np.array(reverse_complement_store(bases)))
    assert np.array_equal(other.distinct(), kmers.distinct())
    none = Kmers()
    none.add(bases[: K - 1])
    assert none.distinct().size == 0 and not contained(kmers.distinct(), none.distinct()).any()


def test_a_sample_holds_the_same_kmers_wherever_they_stand():
    generator = np.random.default_rng(1)
    shared = generator.integers(0, 4, 20_000).astype(np.uint8)
    one, two = Kmers(4), Kmers(4)
    one.add(np.concatenate([generator.integers(0, 4, 7777).astype(np.uint8), shared]))
    two.add(shared)
    assert abs(len(two.distinct()) / 20_000 - 0.25) < 0.02
    assert contained(two.distinct(), one.distinct()).all()
    assert contained(one.distinct(), two.distinct()).mean() < 0.8
