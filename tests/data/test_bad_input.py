"""Malformed files: one line that names file, place, value and remedy; nothing half-written stays, inputs are untouched."""

import gzip
import hashlib
import os
import re
import subprocess
import threading

import pytest
from Bio import bgzf

from dna_mamba.data.build import CHUNK, build
from dna_mamba.data.intervals import Interval, parse_region, read_bed
from dna_mamba.errors import InputError


def bgzip(content: bytes) -> bytes:
    import io

    handle = io.BytesIO()
    writer = bgzf.BgzfWriter(fileobj=handle)
    writer.write(content)
    writer.flush()
    writer._handle.write(bgzf._bgzf_eof)
    return handle.getvalue()


GOOD = b">a\n" + b"ACGT" * 50_000 + b"\n"


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


FASTA = {
    "empty": (b"", "is empty; expected a FASTA file"),
    "only line ends": (b"\n\n\n", "is empty; expected a FASTA file"),
    "no header": (b"ACGT\n", "line 1: no header, found b'ACGT'"),
    "comment first": (b";old\n>a\nACGT\n", "';' comment; remove it"),
    "duplicate names": (b">a\nAC\n>b\nAC\n>a\nGT\n", "line 5: a second record is named 'a'"),
    "empty record in the middle": (b">a\n>b\nAC\n", "record 'a' has no bases"),
    "empty last record": (b">a\nAC\n>b", "record 'b' has no bases"),
    "no name": (b">a\nAC\n>\nAC\n", "line 3: the header has no name"),
    "blank before the name": (b"> a\nAC\n", "line 1: the header has no name"),
    "name beyond ASCII": (">ä\nAC\n".encode(), "characters other than printable ASCII"),
    "protein": (b">a\nACGT\nMEFLI\n", "line 3, record 'a': found 'E', which is no nucleotide; is this a protein file?"),
    "digit": (b">a\nAC1T\n", "line 2, record 'a': found '1'"),
    "gap": (b">a\nAC-T\n", "found '-'"),
    "blank inside a line": (b">a\nAC T\n", "found ' '"),
    "header inside a line": (b">a\nAC>b\n", "found '>' inside a line"),
    "NUL": (b">a\nAC\0T\n", "found byte 0x00"),
    "Latin-1": (b">a\nAC\xe4T\n", "found byte 0xe4"),
    "UTF-16": (">a\nACGT\n".encode("utf-16"), "is UTF-16 text"),
    "byte-order mark": (b"\xef\xbb\xbf>a\nACGT\n", "starts with a byte-order mark"),
    "CR only": (b">a\rACGT\r", "CR alone"),
    "CR only in sequence": (b">a\nACGT\rACGT\r", "CR alone"),
    "CR inside a header": (b">a\rACGTACGT\nACGT\n>b\nAC\n", "line 1: a line ends with CR alone"),
    "CR CR LF": (b">a\r\r\nACGT\n", "line 1: a line ends with CR alone"),
    "FASTQ": (b"@r\nACGT\n+\nIIII\n", "starts with '@' as FASTQ does"),
    "binary": (bytes(range(256)), "no header"),
    "late in a large file": (GOOD * 1 + b"AC!\n", "line 3, record 'a': found '!'"),
    "gzip cut": (gzip.compress(GOOD)[:-20], "is cut"),
    "bgzip cut at a block": (bgzip(GOOD)[:-28], "the block that ends every bgzip file is missing"),
    "bgzip cut in a block": (bgzip(GOOD)[:-60], "is cut"),
    "bgzip with a flipped bit": (flip(bgzip(GOOD), 300), "is damaged: gzip says"),
    "gzip with a flipped bit": (
        flip(gzip.compress(os.urandom(40).hex().encode() * 9), 60),
        "is damaged: gzip says|no header",
    ),
    "gzip with rubbish": (b"\x1f\x8b" + b"x" * 50, "is damaged"),
}


@pytest.mark.parametrize("content, words", FASTA.values(), ids=FASTA.keys())
def test_a_malformed_fasta_is_refused_and_nothing_is_left(write, tmp_path, content, words):
    source = write("bad.fa", content)
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as error:
        build([source], tmp_path / "bad.dna")
    assert str(source) in str(error.value) and "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) in (["bad.fa"], [".bad.dna.lock", "bad.fa"])
    assert hashlib.sha256(source.read_bytes()).digest() == hashlib.sha256(content).digest()


ACCEPTED = {
    "leading blank lines": b"\n\n>a\nACGT\n",
    "CRLF": b">a\r\nAC\r\nGT\r\n",
    "mixed line ends": b">a\r\nAC\nGT\r\n",
    "ragged": b">a\nA\nCGT\n",
    "blank line inside": b">a\nAC\n\nGT\n",
    "no final newline": b">a\nACGT",
    "tab in header": b">a\tx\nACGT\n",
    "long header": b">a " + b"x" * 3_000_000 + b"\nACGT\n",
    "gzip members": gzip.compress(b">a\nAC\n") + gzip.compress(b"GT\n"),
    "gzip without .gz": gzip.compress(b">a\nACGT\n"),
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_harmless_variants_are_read_alike(write, tmp_path, content):
    store = build([write("x.fa", content)], tmp_path / "x.dna")
    assert store.fetch(Interval("a", 0, 4)) == "ACGT" and store.num_bases == 4


@pytest.mark.parametrize("shift", range(-3, 3))
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_nothing_is_lost_where_two_reads_meet(write, tmp_path, end, shift):
    # the line end before '>b' falls on the border of the first chunk
    first = b"ACGT" * (CHUNK // 4)
    first = first[: CHUNK - len(b">a" + end) - len(end) + shift]
    store = build([write("x.fa", b">a" + end + first + end + b">b" + end + b"GG" + end)], tmp_path / "x.dna")
    assert {c.name: c.length for c in store.manifest.contigs} == {"a": len(first), "b": 2}
    assert store.fetch(Interval("a", 0, len(first))).encode() == first


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    for name, words in {
        "missing": "does not exist",
        "dangling": "does not exist",
        "folder": "is a directory",
        "fifo": "not a regular file",
    }.items():
        with pytest.raises(InputError, match=words):
            build([tmp_path / name], tmp_path / "x.dna")
    assert not (tmp_path / "x.dna").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(write, tmp_path):
    source = write("x.fa", GOOD)
    source.chmod(0)
    with pytest.raises(InputError, match="may not be read; check its permissions"):
        build([source], tmp_path / "x.dna")


def test_a_store_is_replaced_only_on_request_and_nothing_else_ever(write, tmp_path):
    source = write("x.fa", b">a\nACGT\n")
    build([source], tmp_path / "x.dna")
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        build([source], tmp_path / "x.dna")
    source.write_bytes(b">b\nGG\n")
    assert list(build([source], tmp_path / "x.dna", overwrite=True).contigs) == ["b"]
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="is no genome store, so it is not overwritten"):
        build([source], tmp_path / "thesis", overwrite=True)


def test_a_folder_with_a_manifest_of_something_else_is_never_replaced(write, tmp_path):
    source = write("x.fa", b">a\nACGT\n")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is no genome store"):
        build([source], tmp_path / "app", overwrite=True)
    store = build([source], tmp_path / "x.dna")
    (store.path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is no genome store, so it is not overwritten"):
        build([source], tmp_path / "x.dna", overwrite=True)
    assert (store.path / "notes.txt").exists()


def test_a_link_to_a_store_is_followed(write, tmp_path):
    source = write("x.fa", b">a\nACGT\n")
    build([source], tmp_path / "x.dna")
    (tmp_path / "link.dna").symlink_to(tmp_path / "x.dna")
    source.write_bytes(b">b\nGG\n")
    build([source], tmp_path / "link.dna", overwrite=True)
    assert (tmp_path / "link.dna").is_symlink() and list(build_names(tmp_path / "x.dna")) == ["b"]


def build_names(path):
    from dna_mamba.data.genome import GenomeStore

    return GenomeStore.open(path).contigs


@pytest.mark.parametrize("words", ["is cut", "no readable GenBank"])
def test_a_cut_genbank_file_is_refused(tmp_path, words):
    from Bio import SeqIO
    from Bio.Seq import Seq
    from Bio.SeqRecord import SeqRecord

    path = tmp_path / "x.gbk"
    record = SeqRecord(Seq("ACGTTGCANN" * 6), id="NC_1.1", name="NC_1", annotations={"molecule_type": "DNA"})
    SeqIO.write([record], path, "genbank")
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_text(text[:-4] if words == "is cut" else "".join(lines[:-2]) + "//\n")
    with pytest.raises(InputError, match=words):
        build([path], tmp_path / "x.dna")


def test_a_failed_replacement_leaves_the_old_store(write, tmp_path):
    source = write("x.fa", b">a\nACGT\n")
    build([source], tmp_path / "x.dna")
    bad = write("bad.fa", b">a\nAC!T\n")
    with pytest.raises(InputError):
        build([bad], tmp_path / "x.dna", overwrite=True)
    from dna_mamba.data.genome import GenomeStore

    assert GenomeStore.open(tmp_path / "x.dna").fetch(Interval("a", 0, 4)) == "ACGT"


def test_two_builds_at_once(write, tmp_path):
    source = write("x.fa", GOOD)
    started, go_on = threading.Event(), threading.Event()

    def slowly(done, total):
        started.set()
        assert go_on.wait(30)

    thread = threading.Thread(target=lambda: build([source], tmp_path / "x.dna", on_progress=slowly))
    thread.start()
    assert started.wait(30)
    with pytest.raises(InputError, match="another dna-mamba is building"):
        build([source], tmp_path / "x.dna")
    go_on.set()
    thread.join()
    assert (tmp_path / "x.dna" / "manifest.json").exists()


def test_what_a_killed_build_left_is_cleared_by_the_next(write, tmp_path):
    leftover = tmp_path / ".x.dna.building-99999"
    leftover.mkdir()
    (leftover / "bases.u8").write_bytes(b"\0")
    build([write("x.fa", GOOD)], tmp_path / "x.dna")
    assert not leftover.exists()


def test_a_full_disk_is_said_and_leaves_nothing(write, tmp_path):
    # a file size limit in a child process stands in where no small file system can be mounted
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        with pytest.raises(InputError, match="the disk is full while writing .*; free space or choose another --out"):
            build([write("x.fa", GOOD)], folder / "x.dna")
        assert [p.name for p in folder.iterdir()] in ([], [".x.dna.lock"])
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_source_that_grows_while_it_is_read_is_refused(write, tmp_path):
    source = write("x.fa", GOOD)

    def append(done, total):
        with source.open("ab") as file:
            file.write(b"ACGT\n")

    with pytest.raises(InputError, match="grows while it is read"):
        build([source], tmp_path / "x.dna", on_progress=append)


def test_a_source_that_is_rewritten_while_it_is_read_is_refused(write, tmp_path):
    source = write("x.fa", GOOD)
    os.utime(source, (1, 1))
    with pytest.raises(InputError, match="changed while it was read"):
        build([source], tmp_path / "x.dna", on_progress=lambda done, total: os.utime(source))


BED = {
    "text for a number": (b"chr1\tx\t10\n", "line 1: START 'x' and END '10' must be whole numbers"),
    "negative": (b"chr1\t-1\t10\n", "START '-1'"),
    "start = end": (b"# c\nchr1\t10\t10\n", "line 2: START 10 is not below END 10"),
    "start > end": (b"chr1\t11\t10\n", "START 11 is not below END 10"),
    "blanks": (b"chr1 1 10\n", "has 1 column"),
    "no line": (b"#nothing\n", "holds no interval"),
    "empty": (b"", "holds no interval"),
    "binary": (b"\xff\xfe\x00", "is not text"),
    "cut gzip": (gzip.compress(b"chr1\t1\t10\n" * 99)[:-9], "cannot read"),
}


@pytest.mark.parametrize("content, words", BED.values(), ids=BED.keys())
def test_a_malformed_bed_is_refused(write, content, words):
    path = write("x.bed", content)
    with pytest.raises(InputError, match=re.escape(words)) as error:
        read_bed(path)
    assert str(path) in str(error.value)


def test_bed_columns_and_strand(write):
    path = write("x.bed", b"track x\r\nchr1\t0\t10\tname\t0\t-\r\nchr2\t5\t6\ttrain\n")
    (_, first, columns), (line, second, more) = read_bed(path)
    assert line == 3
    assert first == Interval("chr1", 0, 10, "-") and columns == ["name", "0", "-"]
    assert second == Interval("chr2", 5, 6) and more == ["train"]


@pytest.mark.parametrize("text", ["chr1", "chr1:5", "chr1:0-10", "chr1:10-9", "chr1:a-b", ""])
def test_a_malformed_region_is_refused(text):
    with pytest.raises(InputError, match=re.escape(repr(text))):
        parse_region(text)


def test_regions_are_one_based_with_both_ends():
    assert parse_region("chr20:1,000,001-2,000,000") == Interval("chr20", 1_000_000, 2_000_000)
    assert parse_region("HLA:A*01:1-5") == Interval("HLA:A*01", 0, 5)
    assert str(Interval("chr1", 0, 4)) == "chr1:1-4"
