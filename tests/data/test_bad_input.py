"""Building a store: nothing is lost where reads meet, nothing half-written stays, nothing is replaced unasked.

Malformed files are in tests/bad_input.
"""

import os
import re
import subprocess
import threading

import pytest

from dna_mamba.data.intervals import Interval, parse_region
from dna_mamba.data.store.build import build
from dna_mamba.data.store.packer import CHUNK
from dna_mamba.errors import InputError

GOOD = b">a\n" + b"ACGT" * 50_000 + b"\n"


@pytest.mark.parametrize("shift", range(-3, 3))
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_nothing_is_lost_where_two_reads_meet(write, tmp_path, end, shift):
    # the line end before '>b' falls on the border of the first chunk
    first = b"ACGT" * (CHUNK // 4)
    first = first[: CHUNK - len(b">a" + end) - len(end) + shift]
    store = build([write("x.fa", b">a" + end + first + end + b">b" + end + b"GG" + end)], tmp_path / "x.dna")
    assert {c.name: c.length for c in store.manifest.contigs} == {"a": len(first), "b": 2}
    assert store.fetch(Interval("a", 0, len(first))).encode() == first


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
    from dna_mamba.data.store.genome import GenomeStore

    return GenomeStore.open(path).contigs


@pytest.mark.parametrize("words", ["is cut", "a record has no sequence", "no readable GenBank"])
def test_a_cut_genbank_file_is_refused(tmp_path, words):
    from Bio import SeqIO
    from Bio.Seq import Seq
    from Bio.SeqRecord import SeqRecord

    path = tmp_path / "x.gbk"
    record = SeqRecord(Seq("ACGTTGCANN" * 6), id="NC_1.1", name="NC_1", annotations={"molecule_type": "DNA"})
    SeqIO.write([record], path, "genbank")
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    texts = {
        "is cut": text[:-4],
        "a record has no sequence": "".join(lines[:-2]) + "//\n",
        "no readable GenBank": "".join([*lines[:-2], lines[-2][:40], "\n//\n"]),
    }
    path.write_text(texts[words])
    with pytest.raises(InputError, match=words):
        build([path], tmp_path / "x.dna")


def test_a_failed_replacement_leaves_the_old_store(write, tmp_path):
    source = write("x.fa", b">a\nACGT\n")
    build([source], tmp_path / "x.dna")
    bad = write("bad.fa", b">a\nAC!T\n")
    with pytest.raises(InputError):
        build([bad], tmp_path / "x.dna", overwrite=True)
    from dna_mamba.data.store.genome import GenomeStore

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


LENGTHS = {"chr1": 100, "chr20": 3_000_000, "HLA:A*01": 9, "s": 50, "s:1-9": 30}


@pytest.mark.parametrize(
    "text", ["chr2", "chr1:0-10", "chr1:10-9", "chr1:a-b", "", "chr1:", "chr1:-", "chr1:1-101", "chr1:101-", "s:1-9"]
)
def test_a_malformed_region_is_refused(text):
    with pytest.raises(InputError, match=re.escape(repr(text))):
        parse_region(text, LENGTHS)


def test_regions_are_one_based_with_both_ends():
    assert parse_region("chr20:1,000,001-2,000,000", LENGTHS) == Interval("chr20", 1_000_000, 2_000_000)
    assert parse_region("HLA:A*01:1-5", LENGTHS) == Interval("HLA:A*01", 0, 5)


@pytest.mark.parametrize("text, start, end", [
    ("chr1", 0, 100), ("chr1:5", 4, 100), ("chr1:5-", 4, 100), ("chr1:-5", 0, 5), ("HLA:A*01", 0, 9), ("HLA:A*01:3-", 2, 9),
    ("{s}:1-9", 0, 9), ("{s:1-9}", 0, 30), ("{s:1-9}:2-3", 1, 3),
])  # fmt: skip
def test_open_ends_and_whole_contigs_are_read_as_samtools_reads_them(text, start, end):
    found = parse_region(text, LENGTHS)
    assert (found.start, found.end) == (start, end) and text.lstrip("{").startswith(found.contig)


def test_more_regions_are_one_based_with_both_ends():
    assert str(Interval("chr1", 0, 4)) == "chr1:1-4"
