"""Mobile elements: found on both strands, changed at a lineage's own positions, copied with their 3' end."""

import numpy as np
import pytest

from dna_mamba.data.mobile_elements import FAMILIES, find_elements, make_copy, make_sources
from dna_mamba.data.vocabulary import letters_of_store, reverse_complement_store
from dna_mamba.errors import InputError

# AluY as in Batzer and Deininger 2002, figure 1, from the first base to the tail
ALU_Y = (
    "GGCCGGGCGCGGTGGCTCACGCCTGTAATCCCAGCACTTTGGGAGGCCGAGGCGGGCGGATCACGAGGTCAGGAGATCGAGACCATCCCGGCTAAAACGGTGAAACCCCGTCTCTACTAAA"
    "AATACAAAAAATTAGCCGGGCGTGGTGGCGGGCGCCTGTAGTCCCAGCTACTCGGGAGGCTGAGGCAGGAGAATGGCGTGAACCCGGGAGGCGGAGCTTGCAGTGAGCCGAGATCGCGCC"
    "ACTGCACTCCAGCCTGGGCGACAGAGCGAGACTCCGTCTC"
)


def stored(letters):
    return np.frombuffer(letters.encode().translate(bytes.maketrans(b"ACGTN", bytes(range(5)))), np.uint8)


@pytest.fixture(scope="module")
def sequence():
    generator = np.random.default_rng(0)
    pieces = [generator.integers(0, 4, 2000).astype(np.uint8) for _ in range(3)]
    element = stored(ALU_Y + "A" * 20)
    return np.concatenate([pieces[0], element, pieces[1], reverse_complement_store(element), pieces[2]])


def test_an_alu_is_found_on_both_strands(sequence):
    found = find_elements(sequence, FAMILIES[0])
    assert len(found) == 2
    for element in found:  # without its tail
        assert letters_of_store(element).startswith(ALU_Y) and len(element) <= len(ALU_Y) + 2
    assert find_elements(sequence, FAMILIES[2]) == []


def test_sources_differ_where_they_say_and_nowhere_else(sequence):
    warned = []
    sources = make_sources([sequence], 8, 0.05, np.random.default_rng(1), warned.append)
    assert len(warned) == 2 and "no L1 element" in warned[0]  # and no SVA
    places = [source.diagnostic.tolist() for (source,) in sources]
    assert len({p for some in places for p in some}) == 8 * 14 == sum(map(len, places))  # 5 % of 282, all different
    original = find_elements(sequence, FAMILIES[0])[0]
    for (source,) in sources:
        assert np.flatnonzero(source.bases != original).tolist() == source.diagnostic.tolist()


def test_copies_end_in_a_tail_and_know_their_diagnostic_bases(sequence):
    (source,) = make_sources([sequence], 2, 0.05, np.random.default_rng(1))[0]
    generator = np.random.default_rng(2)
    copies = [make_copy([source], generator) for _ in range(400)]
    full = 0
    for copy in copies:
        bases = copy.bases if copy.strand == "+" else reverse_complement_store(copy.bases)
        offsets = copy.diagnostic if copy.strand == "+" else len(bases) - 1 - copy.diagnostic[::-1]
        body = len(bases) - next(i for i, b in enumerate(bases[::-1]) if b != 0)
        begins = len(source.bases) - body  # bases lost at the 5' end
        assert np.array_equal(bases[:body], source.bases[begins:]) and (bases[body:] == 0).all()
        assert offsets.tolist() == [d - begins for d in source.diagnostic if d >= begins]
        full += begins == 0
    assert full / 400 == pytest.approx(0.85, abs=0.06)
    assert np.mean([copy.strand == "+" for copy in copies]) == pytest.approx(0.5, abs=0.1)


def test_without_elements_there_is_nothing_to_copy():
    with pytest.raises(InputError, match="holds no Alu, L1, SVA element"):
        make_sources([np.zeros(1000, np.uint8)], 8, 0.05, np.random.default_rng(0))
    with pytest.raises(InputError, match="at most 1 together"):
        make_sources([np.zeros(1000, np.uint8)], 8, 0.2, np.random.default_rng(0))
