"""How many sequences an object holds: one for each letter of nothing, whatever it is that holds them."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyfaidx
import pytest
from Bio.Seq import MutableSeq, Seq
from Bio.SeqRecord import SeqRecord

import dna_mamba as dm
from dna_mamba.data.texts import texts_of
from dna_mamba.errors import InputError

ONE, TWO = "ACGTTGCA", "GGGTTTAC"


@pytest.mark.parametrize("given", [ONE, Seq(ONE), MutableSeq(ONE), SeqRecord(Seq(ONE), id="x"), np.str_(ONE)], ids=repr)
def test_one_sequence_is_one(given):
    assert texts_of(given) == ([ONE], True)


@pytest.mark.parametrize("given", [
    [ONE, TWO], (ONE, TWO), np.array([ONE, TWO]), np.array([[ONE], [TWO]]), pd.Series([ONE, TWO]),
    pd.DataFrame({"DNA": [ONE, TWO]}), [Seq(ONE), SeqRecord(Seq(TWO))], [[ONE], [TWO]], map(str, [ONE, TWO]),
    (text for text in (ONE, TWO)), np.array([ONE, TWO], object), pd.Series([ONE, TWO], dtype="category"),
    pa.array([ONE, TWO]), pa.chunked_array([[ONE], [TWO]]), pa.table({"DNA": [ONE, TWO]}),
], ids=lambda given: type(given).__name__)  # fmt: skip
def test_several_sequences_are_several(given):
    assert texts_of(given) == ([ONE, TWO], False)


@pytest.mark.parametrize("given, words", [
    (list(ONE), "single letters"), (np.array(list(ONE)), "single letters"), (tuple(ONE), "single letters"),
    ({"a": ONE}, "give its values"), ({"a": ONE}.items(), "give its values"), (pa.array([ONE, None]), r"\[1\] is NoneType"),
    (pa.table({"a": [ONE], "b": [TWO]}), "the columns a, b"), ({ONE, TWO}, "no order"), (np.array(ONE), "without a dimension"), (7, "int"), (None, "NoneType"),
    (ONE.encode(), "decode it"), ([ONE, ONE.encode()], r"\[1\] is bytes"), ([ONE, None], r"\[1\] is NoneType"),
    ([ONE, float("nan")], r"\[1\] is float"), (np.array([[ONE, TWO]]), r"\[0\] is ndarray"), ([3], r"\[0\] is int"),
    (pd.DataFrame({"a": [ONE], "b": [TWO]}), "the columns a, b"), ([[ONE, TWO]], r"\[0\] is list"),
], ids=lambda given: type(given).__name__ if not isinstance(given, str) else None)  # fmt: skip
def test_what_may_be_one_or_many_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        texts_of(given)


def test_pyfaidx_sequences_are_read(tmp_path):
    pyfaidx = pytest.importorskip("pyfaidx")
    (tmp_path / "x.fa").write_text(f">a\n{ONE}\n")
    with pyfaidx.Fasta(str(tmp_path / "x.fa")) as fasta:
        assert texts_of(fasta["a"][0:8]) == ([ONE], True)
        assert texts_of([fasta["a"][0:8]]) == ([ONE], False)


def test_the_interface_takes_them_all_alike():
    model = dm.load("human-4x64", device="cpu")
    expected, score = model.embed(ONE), model.score(ONE)
    for one in (Seq(ONE), SeqRecord(Seq(ONE))):
        assert np.array_equal(model.embed(one), expected) and model.score(one) == score
    assert model.embed([]).shape == (0, 64) and model.score([]).shape == (0,)
    embedder = dm.Embedder(model)
    assert np.allclose(embedder.fit_transform(text for text in (ONE, TWO)), model.embed([ONE, TWO]), atol=1e-6)
    used = map(str, [ONE, TWO])
    list(used)
    for call in (
        lambda: embedder.fit(iter([ONE])),
        lambda: embedder.transform(used),
        lambda: embedder.fit_transform({"a": ONE}),
    ):
        with pytest.raises(InputError):
            call()


def test_letters_that_say_no_base_are_no_evidence():
    model = dm.load("human-4x64", device="cpu")
    per_base = model.score("ACNNT", per_base=True)
    assert np.isnan(per_base).tolist() == [False, True, True, False]
    assert model.score("ACNNT") == pytest.approx(np.nansum(per_base))
    assert np.isnan(model.score("NNNN"))  # it was 0, above the score of any sequence
    with pytest.raises(InputError, match="holds no A, C, G or T"):
        model.generate("NNN")
    for call in (lambda: model.embed(["ACGT", "NN"]), lambda: dm.Embedder("human-4x64").fit_transform(["ACGT", "RY"])):
        with pytest.warns(UserWarning, match="1 of 2 sequences hold no A, C, G or T"):
            call()


def test_numbers_of_numpy_are_numbers():
    model = dm.load("human-4x64", device="cpu")
    new = model.generate(
        "ACGT", np.int64(5), num=np.int32(2), temperature=np.float32(1.0), top_k=np.int8(3), seed=np.uint16(1)
    )
    assert new == model.generate("ACGT", 5, num=2, top_k=3, seed=1)
    assert np.array_equal(model.embed(ONE, layer=np.int64(1)), model.embed(ONE, layer=1))
    for bad in (True, 1.0, np.bool_(True)):
        with pytest.raises(InputError):
            model.embed(ONE, layer=bad)


def test_a_record_of_pyfaidx_is_one_sequence_and_not_the_lines_of_its_file(tmp_path):
    (tmp_path / "x.fa").write_text(">one\nACGTT\nGCA\n")
    with pyfaidx.Fasta(str(tmp_path / "x.fa")) as fasta:
        assert texts_of(fasta["one"]) == (["ACGTTGCA"], True)
        assert texts_of([fasta["one"], fasta["one"][2:4]]) == (["ACGTTGCA", "GT"], False)
