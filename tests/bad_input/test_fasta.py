"""Rows 1 to 52: FASTA files, their compression, their indexes, and where they lie."""

import gzip
import io
import os
import random
from contextlib import nullcontext, suppress
from pathlib import Path

import pyfaidx
import pytest
from Bio import bgzf

from dna_mamba.data import unpack
from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.build import build
from dna_mamba.data.store.cache import open_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.store.indexed import fetch_indexed
from dna_mamba.errors import InputError
from tests.bad_input.contract import (
    Case,
    _peak_kib,
    make,
    named,
    refused_by_command,
    refused_by_function,
    run_command,
    unprivileged,
    within_limits,
)


def bgzip(content: bytes, *, end: bool = True) -> bytes:
    """Pack as bgzip does, with or without the block that ends the file."""
    handle = io.BytesIO()
    writer = bgzf.BgzfWriter(fileobj=handle)
    writer.write(content)
    writer.flush()
    return handle.getvalue() + (bgzf._bgzf_eof if end else b"")


def flipped(content: bytes, at: int) -> bytes:
    """Change one bit."""
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


LONG = b">a\n" + "".join(random.Random(0).choices("ACGT", k=300_000)).encode() + b"\n"
PACKED = bgzip(LONG)
FIRST_BLOCK = int.from_bytes(PACKED[16:18], "little") + 1


def bomb(folder: Path) -> None:
    with gzip.open(folder / "bad.fa", "wb", compresslevel=9) as file:
        file.write(b">a\n")
        for _ in range(unpack.NEVER_A_BOMB // (1 << 24) + 2):
            file.write(b"A" * (1 << 24))


def a_directory(folder: Path) -> Path:
    (folder / "d.fa").mkdir()
    return folder / "d.fa"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "p.fa")
    return folder / "p.fa"


def a_dangling_link(folder: Path) -> Path:
    (folder / "l.fa").symlink_to(folder / "nowhere")
    return folder / "l.fa"


REFUSED = [
    Case(1, "empty file", b"", "is empty; expected a FASTA file"),
    Case(2, "only line ends", b"\n\n\n", "is empty; expected a FASTA file"),
    Case(3, "no header", b"ACGT\n", "line 1: no header, found b'ACGT'"),
    Case(5, "comment first", b";old\n>a\nACGT\n", "';' comment; remove it"),
    Case(6, "duplicate names", b">a\nAC\n>b\nAC\n>a\nGT\n", "line 5: a second record is named 'a'"),
    Case(7, "empty record in the middle", b">a\n>b\nAC\n", "record 'a' has no bases"),
    Case(8, "empty last record", b">a\nAC\n>b", "record 'b' has no bases"),
    Case(9, "no name", b">a\nAC\n>\nAC\n", "line 3: the header has no name"),
    Case(10, "blank before the name", b"> a\nAC\n", "line 1: the header has no name"),
    Case(13, "CR alone", b">a\rACGT\r", "CR alone; use LF or CR LF"),
    Case(13, "CR alone in sequence", b">a\nACGT\rACGT\r", "line 2: a line ends with CR alone"),
    Case(13, "CR inside a header", b">a\rACGTACGT\nACGT\n>b\nAC\n", "line 1: a line ends with CR alone"),
    Case(14, "CR CR LF", b">a\r\r\nACGT\n", "line 1: a line ends with CR alone"),
    Case(18, "blank inside a line", b">a\nAC T\n", "line 2, record 'a': found ' '"),
    Case(18, "tab inside a line", b">a\nAC\tT\n", "line 2, record 'a': found byte 0x09"),
    Case(19, "NUL", b">a\nAC\0T\n", "line 2, record 'a': found byte 0x00"),
    Case(20, "Latin-1", b">a\nAC\xe4T\n", "line 2, record 'a': found byte 0xe4"),
    Case(21, "name beyond ASCII", ">ä\nAC\n".encode(), "characters other than printable ASCII"),
    Case(22, "byte-order mark", b"\xef\xbb\xbf>a\nACGT\n", "starts with a byte-order mark"),
    Case(23, "UTF-16", ">a\nACGT\n".encode("utf-16"), "is UTF-16 text"),
    Case(24, "digit", b">a\nAC1T\n", "line 2, record 'a': found '1'"),
    Case(24, "star", b">a\nAC*\n", "found '*'"),
    Case(24, "gap", b">a\nAC-T\n", "found '-'"),
    Case(24, "dot", b">a\nAC.T\n", "found '.'"),
    Case(25, "protein", b">a\nACGT\nMEFLI\n", "line 3, record 'a': found 'E', which is no nucleotide"),
    Case(29, "20 MB header", b">a " + b"x" * 20_000_000 + b"\nACGT\n", "has a header over 16 MiB"),
    Case(31, "FASTQ", b"@r\nACGT\n+\nIIII\n", "starts with '@' as FASTQ does"),
    Case(32, "binary", bytes(range(256)), "no header"),
    Case(32, "an ELF header", b"\x7fELF\x02\x01\x01" + bytes(64), "no header"),
    Case(35, "bgzip without its end", bgzip(LONG, end=False), "lacks the empty block that ends a bgzip file"),
    Case(36, "bgzip cut in a block", PACKED[: FIRST_BLOCK + 100] + bgzf._bgzf_eof, "is damaged"),
    Case(36, "bgzip cut at its tail", PACKED[:-60], "was cut off"),
    Case(36, "gzip cut", gzip.compress(LONG)[:-20], "is cut"),
    Case(37, "bgzip cut between blocks", PACKED[:FIRST_BLOCK], "lacks the empty block that ends a bgzip file"),
    Case(38, "bgzip with a flipped bit", flipped(PACKED, 300), "is damaged: gzip says"),
    Case(38, "gzip with a flipped bit", flipped(gzip.compress(LONG), 60_000), "is damaged: gzip says"),
    Case(38, "gzip with rubbish", b"\x1f\x8b" + b"x" * 50, "is damaged"),
    Case(39, "gzip bomb", bomb, "unfolds into more than 500 times its size"),
    Case(51, "directory", a_directory, "is a directory; expected a FASTA"),
    Case(51, "pipe", a_pipe, "is not a regular file"),
    Case(51, "dangling link", a_dangling_link, "does not exist"),
]


@pytest.mark.parametrize("case", named(REFUSED))
def test_refused_in_one_line_and_nothing_is_left(case, tmp_path, capfd):
    source = make(case, tmp_path / "in", "bad.fa")
    out = tmp_path / "out"
    out.mkdir()
    said = refused_by_function(tmp_path / "in", out, case.words, lambda: build([source], out / "x.dna"))
    line = refused_by_command(
        capfd, tmp_path / "in", out, case.words, "genome", "build", source, "--out", out / "x.dna"
    )
    assert str(source) in said and line == f"dna-mamba: {said}"


READ = [
    Case(4, "leading blank lines", b"\n\n>a\nACGTN\n", None),
    Case(11, "tab after the name", b">a\tx\nACGTN\n", None),
    Case(12, "CR LF", b">a\r\nACG\r\nTN\r\n", None),
    Case(14, "mixed line ends", b">a\r\nAC\nGTN\r\n", None),
    Case(15, "ragged lines", b">a\nA\nCGT\nN\n", None),
    Case(16, "blank line inside", b">a\nAC\n\nGTN\n", None),
    Case(17, "no final newline", b">a\nACGTN", None),
    Case(21, "description beyond ASCII", ">a Ähre\nACGTN\n".encode(), None),
    Case(26, "IUPAC and lower case", b">a\nacgtR\n", None),
    Case(29, "8 MB header", b">a " + b"x" * 8_000_000 + b"\nACGTN\n", None),
    Case(33, "gzip named .fa", gzip.compress(b">a\nACGTN\n"), None),
    Case(34, "plain gzip", gzip.compress(b">a\nACGTN\n"), None),
    Case(40, "gzip members", gzip.compress(b">a\nACG\n") + gzip.compress(b"TN\n"), None),
]  # fmt: skip


@pytest.mark.parametrize("case", named(READ))
def test_harmless_oddities_are_read_as_what_they_mean(case, tmp_path, capfd):
    source = make(case, tmp_path / "in", "odd.fa.gz" if case.row == 34 else "odd.fa")
    with within_limits(tmp_path / "in"):
        store = build([source], tmp_path / "x.dna")
        assert run_command("genome", "build", source, "--out", tmp_path / "y.dna") == 0
    assert store.fetch(Interval("a", 0, 5)) == "ACGTN" and store.num_bases == 5
    assert (tmp_path / "y.dna" / "bases.u8").read_bytes() == (tmp_path / "x.dna" / "bases.u8").read_bytes()
    counts = {
        "acgt": store.contig("a").num_acgt,
        "masked": store.contig("a").num_masked,
        "other": store.contig("a").num_other,
    }
    assert counts == {"acgt": 4, "masked": 4 if case.row == 26 else 0, "other": 1 if case.row == 26 else 0}
    assert ("1 letters other than A, C, G, T and N became N" in capfd.readouterr().out) == (case.row == 26)


def test_row27_uracil_becomes_n_with_a_warning_or_t_on_request(tmp_path, capfd):
    source = tmp_path / "rna.fa"
    source.write_text(">a\nACGUu\n")
    said = []
    assert build([source], tmp_path / "x.dna", warn=said.append).fetch(Interval("a", 0, 5)) == "ACGNN"
    assert said == ["2 letters U became N; --rna, here or of genome build, reads them as T"]
    assert run_command("genome", "build", source, "--rna", "--out", tmp_path / "y.dna") == 0
    assert GenomeStore.open(tmp_path / "y.dna").fetch(Interval("a", 0, 5)) == "ACGTT"
    assert not capfd.readouterr().err


def test_row28_nothing_but_n_packs_and_is_refused_where_bases_are_needed(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "n.fa"
    source.write_text(">a\n" + "N" * 50_000 + "\n")
    assert build([source], tmp_path / "x.dna").contig("a").num_n == 50_000
    (tmp_path / "out").mkdir()
    command = ("pretrain", "--genome", source, "--device", "cpu", "--out", tmp_path / "out" / "run")
    refused_by_command(
        capfd,
        tmp_path / "in",
        tmp_path / "out",
        f"{source} has no contig of 10,000 known bases to take a validation part from",
        *command,
    )


def test_row30_one_line_of_any_length_is_read_in_constant_memory(tmp_path):
    bases = (1 << 30 if os.environ.get("KILLS") else 1 << 26) // 4  # a gigabyte with make test-faults
    source = tmp_path / "in" / "line.fa"
    source.parent.mkdir()
    with open(source, "wb") as file:
        file.write(b">a\n")
        for _ in range(4):
            file.write(b"ACGT" * (bases // 4))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kib()
    store = build([source], tmp_path / "x.dna")
    assert (_peak_kib() - before) / 1024 < 32
    assert store.num_bases == 4 * bases and store.fetch(Interval("a", 4 * bases - 4, 4 * bases)) == "ACGT"


FASTA = b">one first\nACGTACGTAC\nGTACGTNNNN\n>two\nTTTTGGGGCC\n"
INDEX = b"one\t20\t11\t10\t11\ntwo\t10\t38\t10\t11\n"
TWO = Interval("two", 2, 8)


def with_index(index: bytes, age: int = 10) -> "object":
    """Make a FASTA with this .fai, newer (or older) by so many seconds."""

    def _make(folder: Path) -> Path:
        (folder / "x.fa").write_bytes(FASTA)
        (folder / "x.fa.fai").write_bytes(index)
        os.utime(folder / "x.fa", (1000, 1000))
        os.utime(folder / "x.fa.fai", (1000 + age, 1000 + age))
        return folder / "x.fa"

    return _make


STALE = "make it again with samtools faidx, or remove it"
INDEXES = [
    Case(42, "older index", with_index(INDEX, -10), STALE),
    Case(43, "stale index with a newer time", with_index(INDEX.replace(b"38", b"29")), STALE),
    Case(44, "empty index", with_index(b""), "x.fa.fai"),
    Case(45, "index without the contig", with_index(INDEX.splitlines(keepends=True)[0]), "contig 'two' is not in"),
    Case(46, "wrong length", with_index(INDEX.replace(b"two\t10", b"two\t99")), STALE),
    Case(46, "wrong offset", with_index(INDEX.replace(b"38", b"36")), STALE),
    Case(47, "negative offset", with_index(INDEX.replace(b"38", b"-5")), STALE),
    Case(47, "overflow", with_index(INDEX.replace(b"38", b"9" * 30)), STALE),
    Case(47, "line of no length", with_index(INDEX.replace(b"38\t10\t11", b"38\t0\t0")), STALE),
    # found by fuzzing: the first row of the name is looked at, the last one gone by
    Case(
        48,
        "two rows of a name",
        with_index(b"two\t5\t38\t5\t651\n+\x0b\x0btwo\t5\t38\t5\t65\ntwo\t10\t11\t10\t11\n"),
        STALE,
    ),
    Case(48, "garbage", with_index(b"two\tx\ty\n\xff\xfe\0\n"), STALE),
]


@pytest.mark.parametrize("case", named(INDEXES))
def test_an_index_that_does_not_describe_its_file_is_never_believed(case, tmp_path, capfd):
    source = make(case, tmp_path / "in", "x.fa")
    (tmp_path / "out").mkdir()
    refused_by_function(tmp_path / "in", tmp_path / "out", case.words, lambda: fetch_indexed(source, TWO))
    refused_by_command(capfd, tmp_path / "in", tmp_path / "out", case.words, "genome", "show", source, "two:3-8")
    # a store is made from the FASTA alone
    assert open_genome(source).fetch(TWO) == "TTGGGG"


@pytest.mark.parametrize("said, wrapped", [(60, 70), (70, 60), (50, 60), (60, 61)])
def test_row43_a_file_that_was_wrapped_anew_is_never_read_by_its_old_index(said, wrapped, tmp_path):
    # header, length and often what follows the last base stay where they were: only line ends tell
    letters = "".join(random.Random(said).choices("ACGT", k=480))
    (tmp_path / "x.fa").write_text(
        ">a\n" + "\n".join(letters[i : i + wrapped] for i in range(0, 480, wrapped)) + "\n>b\nACGT\n"
    )
    (tmp_path / "x.fa.fai").write_text(f"a\t480\t3\t{said}\t{said + 1}\n")
    os.utime(tmp_path / "x.fa", (1000, 1000))
    right = refused = 0
    for start in range(0, 476, 5):
        try:
            found = fetch_indexed(tmp_path / "x.fa", Interval("a", start, start + 5))
        except InputError:
            refused += 1
        else:
            assert found == letters[start : start + 5]
            right += 1
    assert refused > 80 and right + refused == 96


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CR LF"])
def test_an_index_that_describes_its_file_gives_what_pyfaidx_gives(end, tmp_path):
    letters = "".join(random.Random(9).choices("ACGTacgtN", k=500))
    path = tmp_path / "x.fa"
    lines = [letters[i : i + 60] for i in range(0, 500, 60)]
    path.write_bytes((end.join([">a more", *lines, ">b", "ACGTT"]) + end).encode())
    reader = pyfaidx.Fasta(str(path))
    places = [(a, min(a + length, 500)) for a in range(0, 500, 17) for length in (1, 59, 60, 61, 300)]
    for start, stop in places:
        assert fetch_indexed(path, Interval("a", start, stop)) == str(reader["a"][start:stop]).upper()
    assert fetch_indexed(path, Interval("b", 0, 5)) == "ACGTT"


@pytest.mark.parametrize(
    "content, index",
    [
        (b">a\nACGTACGTAC", b"a\t10\t3\t10\t10\n"),  # as pyfaidx writes it where the file has no last line end
        (b">a\nACGTACGTAC", b"a\t10\t3\t10\t11\n"),  # and pysam
        (b">a c.5A>G variant\nACGTACGTAC\n", b"a\t10\t18\t10\t11\n"),
    ],
)
def test_row41_valid_indexes_of_unusual_files_are_believed(content, index, tmp_path):
    (tmp_path / "x.fa").write_bytes(content)
    (tmp_path / "x.fa.fai").write_bytes(index)
    assert fetch_indexed(tmp_path / "x.fa", Interval("a", 2, 10)) == "GTACGTAC"


def test_row41_without_an_index_nothing_is_written_beside_the_file(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "x.fa"
    source.write_bytes(FASTA)
    with within_limits(tmp_path / "in"):
        assert run_command("genome", "show", source, "two:3-8") == 0
    assert capfd.readouterr().out == ">two:3-8\nTTGGGG\n"
    assert str(pyfaidx.Fasta(str(source))["two"][2:8]) == "TTGGGG"


def test_row49_an_index_of_blocks_is_not_read(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "x.fa.gz"
    source.write_bytes(bgzip(FASTA))
    Path(f"{source}.gzi").write_bytes((2**61).to_bytes(8, "little") + bytes(16))
    Path(f"{source}.fai").write_bytes(INDEX)
    with within_limits(tmp_path / "in"):
        assert open_genome(source).fetch(TWO) == "TTGGGG"
        assert run_command("genome", "show", source, "two:3-8") == 0
    assert capfd.readouterr().out == ">two:3-8\nTTGGGG\n"


def test_row50_a_folder_that_may_not_be_written_is_no_hindrance(capfd, monkeypatch):
    with unprivileged() as folder:
        monkeypatch.setenv("DNA_MAMBA_CACHE", str(folder / "cache"))
        (folder / "in").mkdir()
        source = folder / "in" / "x.fa"
        source.write_bytes(FASTA)
        (folder / "in").chmod(0o555)
        with pytest.raises(PermissionError):
            (folder / "in" / "x.fa.fai").write_text("")
        assert open_genome(source).fetch(TWO) == "TTGGGG"
        assert run_command("genome", "show", source, "two:3-8") == 0
        assert capfd.readouterr().out == ">two:3-8\nTTGGGG\n"
        out = folder / "in" / "x.dna"
        words = f"cannot read or write {folder / 'in'}"
        refused_by_function(folder / "in", folder / "in", words, lambda: build([source], out))
        refused_by_command(capfd, folder / "in", folder / "in", words, "genome", "build", source, "--out", out)


def test_row51_a_file_that_may_not_be_read(capfd):
    with unprivileged() as folder:
        source = folder / "x.fa"
        source.write_bytes(FASTA)
        source.chmod(0)
        with pytest.raises(InputError, match="may not be read; check its permissions"):
            build([source], folder / "x.dna")
        assert run_command("genome", "build", source, "--out", folder / "x.dna") == 2
        assert "may not be read; check its permissions" in capfd.readouterr().err
        assert [path.name for path in folder.iterdir()] == ["x.fa"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda path: os.utime(path), "changed while it was read; build again when it is complete"),
        (lambda path: path.open("ab").write(b"ACGT\n"), "grows while it is read"),
    ],
    ids=["row52 rewritten", "row52 grows"],
)
def test_a_source_that_changes_while_it_is_read_is_refused(change, words, tmp_path, capfd, monkeypatch):
    source = tmp_path / "x.fa"
    source.write_bytes(FASTA)
    os.utime(source, (1, 1))
    with pytest.raises(InputError, match=words):
        build([source], tmp_path / "x.dna", on_progress=lambda done, total: change(source))
    source.write_bytes(FASTA)
    os.utime(source, (1, 1))

    def progress():
        return (lambda done, total: change(source)), nullcontext()

    monkeypatch.setattr("dna_mamba.cli.console.packing", progress)
    assert run_command("genome", "build", source, "--out", tmp_path / "x.dna") == 2
    assert words in capfd.readouterr().err and not (tmp_path / "x.dna").exists()


def test_row52_a_source_that_was_replaced_after_packing_is_named(tmp_path, capfd):
    source = tmp_path / "x.fa"
    source.write_bytes(FASTA)
    build([source], tmp_path / "x.dna")
    source.write_bytes(FASTA.replace(b"TTTT", b"AAAA"))
    with pytest.raises(InputError, match="has changed since .* was built from it"):
        open_genome(tmp_path / "x.dna")
    assert run_command("genome", "show", tmp_path / "x.dna", "two:3-8") == 2
    assert "has changed since" in capfd.readouterr().err
    assert open_genome(source).fetch(TWO) == "AAGGGG"  # the file itself is packed anew
