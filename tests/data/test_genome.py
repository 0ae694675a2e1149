"""Stores against pyfaidx, and by hand."""

import gzip
import hashlib
import json
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyfaidx
import pytest
from Bio import bgzf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dna_mamba.data import vocabulary
from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.build import build
from dna_mamba.data.store.cache import open_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.store.indexed import fetch_indexed
from dna_mamba.errors import InputError

TOKEN_OF = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
TO_N = str.maketrans("RYSWKMBDHVU", "N" * 11)


@pytest.fixture
def genome(write, tmp_path):
    return build([write("small.fa", ">chr1 first\nACGTACG\nTaa\nN\n>chr2\r\nRYacgu\r\n")], tmp_path / "small.dna")


@pytest.mark.parametrize(
    "interval, bases",
    [
        (Interval("chr1", 0, 4), "ACGT"),  # start counted, end not
        (Interval("chr1", 7, 10, "-"), "TTA"),  # lower case comes back upper
        (Interval("chr1", 8, 11, "-"), "NTT"),  # the N turns with the strand
        (Interval("chr2", 0, 6), "NNACGN"),  # IUPAC codes and U become N
    ],
    ids=str,
)
def test_fetch_returns_the_bases_of_the_interval(genome, interval, bases):  # chr1 = ACGTACGTaaN
    assert genome.fetch(interval) == bases
    assert genome.tokens(interval).tolist() == [TOKEN_OF[b] for b in bases]


def test_the_manifest_counts_every_base(genome):
    chr1, chr2 = genome.manifest.contigs
    assert (chr1.num_a, chr1.num_c, chr1.num_g, chr1.num_t, chr1.num_n) == (4, 2, 2, 2, 1)
    assert (chr1.num_other, chr1.num_masked, chr1.offset, chr1.length) == (0, 2, 0, 11)
    assert (chr2.num_a, chr2.num_n, chr2.num_other, chr2.num_masked, chr2.offset) == (1, 3, 3, 4, 11)


def test_u_is_read_as_t_on_request_and_otherwise_said(write, tmp_path):
    source = write("rna.fa", ">r\nACGUu\n")
    warnings = []
    assert build([source], tmp_path / "a.dna", warn=warnings.append).fetch(Interval("r", 0, 5)) == "ACGNN"
    assert warnings == ["2 letters U became N; --rna, here or of genome build, reads them as T"]
    assert build([source], tmp_path / "b.dna", rna=True).fetch(Interval("r", 0, 5)) == "ACGTT"


def test_outside_a_contig_is_an_error_unless_padding_was_asked_for(genome):
    with pytest.raises(InputError, match="chr2, which has 6 bases"):
        genome.fetch(Interval("chr2", 4, 8))
    assert genome.fetch(Interval("chr2", 3, 8), pad=True) == "CGNNN"
    assert genome.fetch(Interval("chr2", 3, 8, "-"), pad=True) == "NNNCG"


@pytest.mark.parametrize(
    "asked, hint", [("1", "'chr1'"), ("chr3", "it has chr1, chr2"), ("chr_1", "did you mean 'chr1'")]
)
def test_an_unknown_contig_is_named_with_its_likely_spelling(genome, asked, hint):
    with pytest.raises(InputError, match=hint):
        genome.fetch(Interval(asked, 0, 1))


@pytest.mark.parametrize("kind", ["plain", "gzip", "bgzip"])
def test_compressed_files_give_the_same_store(write, tmp_path, kind):
    text = (">a\n" + "ACGTN" * 3000 + "\n>b\n" + "acgt" * 9 + "\n").encode()
    if kind == "bgzip":
        path = tmp_path / "x.fa.gz"
        with bgzf.BgzfWriter(str(path), "wb") as file:
            file.write(text)
    else:
        path = write("x.fa", text if kind == "plain" else gzip.compress(text))
    store = build([path], tmp_path / "x.dna")
    assert store.fetch(Interval("a", 0, 15000)) == "ACGTN" * 3000
    assert store.manifest.sources[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert store.manifest.bases_sha256 == hashlib.sha256((tmp_path / "x.dna/bases.u8").read_bytes()).hexdigest()


def test_several_files_make_one_store_in_their_order(write, tmp_path):
    store = build([write("b.fa", ">b\nCC"), write("a.fa", ">a\nGG")], tmp_path / "x.dna")
    assert list(store.contigs) == ["b", "a"]
    assert store.fetch(Interval("a", 0, 2)) == "GG"


def test_genbank_is_read(tmp_path, write):
    from Bio import SeqIO
    from Bio.Seq import Seq
    from Bio.SeqRecord import SeqRecord

    path = tmp_path / "x.gbk"
    record = SeqRecord(Seq("ACGTTGCANN"), id="NC_1.1", name="NC_1", annotations={"molecule_type": "DNA"})
    SeqIO.write([record], path, "genbank")
    assert build([path], tmp_path / "x.dna").fetch(Interval("NC_1.1", 0, 10)) == "ACGTTGCANN"


contigs = st.lists(
    st.tuples(st.text("ACGTNacgtnRYSWKMBDHV", min_size=1, max_size=300), st.integers(1, 80)), min_size=1, max_size=5
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contigs=contigs, crlf=st.booleans(), final_newline=st.booleans(), data=st.data())
def test_store_and_pyfaidx_give_the_same_bases(tmp_path, contigs, crlf, final_newline, data):
    end = "\r\n" if crlf else "\n"
    text = ""
    for i, (letters, width) in enumerate(contigs):
        lines = [letters[k : k + width] for k in range(0, len(letters), width)]
        text += f">c{i} words{end}" + end.join(lines) + end
    if not final_newline:
        text = text[: -len(end)]
    folder = tmp_path / "hypothesis"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "x.fa").write_bytes(text.encode())
    store = build([folder / "x.fa"], folder / "x.dna")
    oracle = pyfaidx.Fasta(str(folder / "x.fa"), as_raw=True)
    assert list(store.contigs) == list(oracle.keys())
    for _ in range(5):
        i = data.draw(st.integers(0, len(contigs) - 1))
        length = len(contigs[i][0])
        start = data.draw(st.integers(0, length - 1))
        stop = data.draw(st.integers(start + 1, length))
        expected = oracle[f"c{i}"][start:stop].upper().translate(TO_N)
        assert store.fetch(Interval(f"c{i}", start, stop)) == expected
        turned = str(pyfaidx.Sequence(seq=expected).complement)[::-1]
        assert store.fetch(Interval(f"c{i}", start, stop, "-")) == turned
        tokens = store.tokens_batch([f"c{i}"], np.array([start]), stop - start)[0]
        assert tokens.tolist() == [TOKEN_OF[b] for b in expected]
        assert store.count_n(f"c{i}", np.array([start]), np.array([stop]))[0] == expected.count("N")


class _Windows:
    def __init__(self, store, places):
        self.store, self.places = store, places

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i):
        return self.store.tokens(
            Interval("chrA", self.places[i], self.places[i] + 100, "-" if i % 2 else "+")
        ).tobytes()


@pytest.mark.parametrize("num_workers, start", [(0, None), (1, "fork"), (4, "fork"), (4, "spawn")])
def test_any_number_of_workers_reads_the_same_bases(toy_fasta, tmp_path, num_workers, start):
    store = build([toy_fasta], tmp_path / "toy.dna")
    places = np.random.default_rng(0).integers(0, 39_900, 400).tolist()
    context = multiprocessing.get_context(start) if start else None
    loader = DataLoader(
        _Windows(store, places), batch_size=None, num_workers=num_workers, multiprocessing_context=context
    )
    oracle = pyfaidx.Fasta(str(toy_fasta), as_raw=True)["chrA"]
    for i, tokens in enumerate(loader):
        expected = oracle[places[i] : places[i] + 100]
        if i % 2:
            expected = str(pyfaidx.Sequence(seq=expected).complement)[::-1]
        assert tokens == bytes(TOKEN_OF[b] for b in expected)


def test_windows_of_a_batch_equal_single_ones_and_are_checked(genome):
    batch = genome.tokens_batch(["chr1", "chr2", "chr1"], np.array([0, 2, 7]), 4)
    singles = [genome.tokens(Interval(c, s, s + 4)) for c, s in (("chr1", 0), ("chr2", 2), ("chr1", 7))]
    assert batch.tolist() == [s.tolist() for s in singles]
    with pytest.raises(InputError, match="reach outside chr1"):  # would end in chr2's bases
        genome.tokens_batch(["chr1"], np.array([8]), 4)
    with pytest.raises(InputError, match="reach outside chr1"):
        genome.tokens_batch(["chr1"], np.array([-1]), 4)


def test_a_fasta_is_packed_once_into_the_cache_and_nothing_beside_it(toy_fasta, tmp_path, monkeypatch):
    source = tmp_path / "source" / "toy.fa"
    source.parent.mkdir()
    shutil.copy(toy_fasta, source)
    first = open_genome(source)
    assert [p.name for p in source.parent.iterdir()] == ["toy.fa"]
    assert first.path.parent == tmp_path / "cache"
    written = (first.path / "bases.u8").stat().st_mtime_ns
    assert (open_genome(source).path / "bases.u8").stat().st_mtime_ns == written
    source.write_text(">other\nACGT\n")
    assert list(open_genome(source).contigs) == ["other"]


def test_many_openers_of_one_fasta_all_get_the_same_store(toy_fasta):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: open_genome(toy_fasta), range(8)))
    assert len({store.path for store in stores}) == 1
    assert {store.num_bases for store in stores} == {60_000}


def test_a_changed_source_is_noticed_and_named(write, tmp_path):
    source = write("x.fa", ">a\nACGT\n")
    build([source], tmp_path / "x.dna")
    open_genome(tmp_path / "x.dna")
    source.touch()
    open_genome(tmp_path / "x.dna")  # a new time alone is no change
    source.write_text(">a\nACGA\n")
    with pytest.raises(InputError, match="x.fa has changed since .*x.dna was built"):
        open_genome(tmp_path / "x.dna")


def _edit_version(store):
    content = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**content, "format_version": 99}))


def _edit_manifest(store):
    text = (store / "manifest.json").read_text()
    (store / "manifest.json").write_text(text.replace('"length": 11', '"length": 10'))


def _cut(store):
    content = (store / "bases.u8").read_bytes()
    (store / "bases.u8").write_bytes(content[:-1])


@pytest.mark.parametrize(
    "damage, words",
    [
        (_edit_version, "format version 99, this dna-mamba reads 1"),
        (_edit_manifest, "was changed after it was written"),
        (_cut, "has 16 bytes, its manifest says 17"),
        (lambda store: (store / "bases.u8").unlink(), "cannot read"),
        (lambda store: (store / "manifest.json").write_text("{"), "cannot be read"),
        (lambda store: (store / "manifest.json").unlink(), "is no genome store"),
    ],
    ids=["version", "manifest", "cut", "no bases", "half a manifest", "no manifest"],
)
def test_a_damaged_store_is_refused_by_name(genome, damage, words):
    damage(genome.path)
    with pytest.raises(InputError, match=words) as error:
        GenomeStore.open(genome.path)
    assert "small.dna" in str(error.value) and "build" in str(error.value)


def test_verify_finds_one_flipped_bit(genome):
    genome.verify()
    content = bytearray((genome.path / "bases.u8").read_bytes())
    content[5] ^= 1
    (genome.path / "bases.u8").write_bytes(content)
    with pytest.raises(InputError, match="does not match the SHA-256"):
        GenomeStore.open(genome.path).verify()


def test_single_fetches_from_an_indexed_fasta_refuse_a_stale_index(toy_fasta, tmp_path):
    source = tmp_path / "x.fa"
    shutil.copy(toy_fasta, source)
    pyfaidx.Faidx(str(source))
    store = build([source], tmp_path / "x.dna")
    interval = Interval("chrA", 100, 400, "-")
    assert fetch_indexed(source, interval) == store.fetch(interval)
    text = source.read_text()
    source.write_text(
        ">chrA with a much longer description than before, so that every offset is wrong\n" + text.split("\n", 1)[1]
    )
    (tmp_path / "x.fa.fai").touch()  # newer, yet wrong
    with pytest.raises(InputError, match="does not describe"):
        fetch_indexed(source, Interval("chrA", 0, 60))
    source.write_text(text)
    index = (tmp_path / "x.fa.fai").read_text()
    offset = index.split("\t")[2]
    (tmp_path / "x.fa.fai").write_text(index.replace(f"\t{offset}\t", f"\t{int(offset) + 1}\t", 1))
    with pytest.raises(InputError, match="does not describe"):  # shifted by one base: plausible letters, wrong place
        fetch_indexed(source, Interval("chrA", 0, 60))


def test_tables_of_tokens_and_complements():
    assert vocabulary.tokens_of("ACGTNacgtnR").tolist() == [7, 8, 9, 10, 11, 7, 8, 9, 10, 11, 11]
    with pytest.raises(ValueError, match="'!' at position 3"):
        vocabulary.tokens_of("AC!")
    table = vocabulary.complement_table()
    assert table.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15]
    tokens = np.array([7, 7, 8, 11, 10], np.uint8)
    assert vocabulary.reverse_complement_tokens(tokens).tolist() == [7, 11, 9, 10, 10]
    stored = np.array([0, 8, 9, 4, 12], np.uint8)  # A a c N n
    assert vocabulary.reverse_complement_store(stored).tolist() == [12, 4, 10, 11, 3]  # n N g t T
