"""Sound files in other dialects: what is in them is read, what nobody reads does not decide, and text is carried to the byte."""

import gzip
import io
import struct

import numpy as np
import pytest

from dna_mamba.data.intervals import Interval, read_bed
from dna_mamba.data.store.build import build
from dna_mamba.data.unpack import BGZF_END, open_unpacked
from dna_mamba.data.variants import Core, allele_status, core_of, read_vcf
from dna_mamba.errors import InputError
from dna_mamba.pipelines.embed import read_csv
from tests.bad_input.test_fasta import bgzip
from tests.conftest import random_letters

FASTA = b">a\nACGTACGT\n"


def fetched(path, tmp_path, **options):
    store = build([path], tmp_path / "x.dna", **options)
    return {name: store.fetch(Interval(name, 0, contig.length)) for name, contig in store.contigs.items()}


def named_gzip(content, name):
    """Pack with a file name in the header, of which some bytes look like bgzip's."""
    packed = io.BytesIO()
    with gzip.GzipFile(name, "wb", fileobj=packed) as file:
        file.write(content)
    return packed.getvalue()


@pytest.mark.parametrize("content", [
    named_gzip(FASTA, "TNBC.fa"),  # 'BC' stands where bgzip has it
    gzip.compress(FASTA) + b"\0" * 512,
    bgzip(FASTA) + b"\0" * 512,  # padded, as tapes are
    bgzip(FASTA) + gzip.compress(b"ACG\n"),  # bgzip, then gzip
    bgzip(FASTA, end=False) + gzip.compress(b"ACG\n"),
    gzip.compress(FASTA) + bgzip(b"ACG\n"),
    BGZF_END + bgzip(FASTA),
], ids=["name in the header", "zeros behind gzip", "zeros behind bgzip", "bgzip then gzip", "blocks then gzip", "gzip then bgzip",
        "an empty block first"])  # fmt: skip
def test_what_gzip_unpacks_is_read(content, tmp_path):
    (tmp_path / "x.fa.gz").write_bytes(content)
    with open_unpacked(tmp_path / "x.fa.gz") as file:
        text = file.read()
    assert text.startswith(FASTA)
    assert fetched(tmp_path / "x.fa.gz", tmp_path)["a"] == "ACGTACGT" + ("ACG" if len(text) > len(FASTA) else "")


def test_the_extra_field_of_bgzip_may_stand_behind_another(tmp_path):
    block = bgzip(FASTA, end=False)
    other = b"XX" + struct.pack("<H", 2) + b"yy"  # six bytes more in the header, and in the block's length
    size = struct.unpack("<H", block[16:18])[0] + 6
    extra = struct.pack("<H", 12) + other + b"BC" + struct.pack("<HH", 2, size)
    (tmp_path / "x.fa.gz").write_bytes(block[:10] + extra + block[18:])
    with pytest.raises(InputError, match="lacks the empty block"):
        build([tmp_path / "x.fa.gz"], tmp_path / "x.dna")


def test_bytes_behind_the_last_member_are_told_truly(tmp_path):
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(FASTA) + b"RAZF and more")
    with pytest.raises(InputError, match="what follows its gzip members is no gzip.*gzip -dc passes over"):
        build([tmp_path / "x.fa.gz"], tmp_path / "x.dna")
    assert not (tmp_path / "x.dna").exists()


LETTERS = random_letters(180, 4).lower()


def genbank(
    locus=None, *, before="", name="TST_1", features="", after="", accession="TST_1", version="TST_1.1", comment=""
):
    locus = locus or "LOCUS       TST_1                    180 bp    DNA     linear   BCT 25-MAY-2020"
    rows = [f"{1 + i:9d} " + " ".join(LETTERS[i + j : i + j + 10] for j in range(0, 60, 10)) for i in range(0, 180, 60)]
    return "\n".join([
        *([before] if before else []), locus, "DEFINITION  x.", f"ACCESSION   {accession}", f"VERSION     {version}",
        "KEYWORDS    .", *([f"COMMENT     {comment}"] if comment else []),
        "FEATURES             Location/Qualifiers", "     source          1..180", *([features] if features else []),
        "ORIGIN", *rows, *([after] if after else []), "//", "",
    ])  # fmt: skip


@pytest.mark.parametrize("text", [
    genbank(),
    genbank("LOCUS       FAM19160-i1-1_scf1 180 bp DNA linear BCT 25-MAY-2020"),  # PGAP
    genbank("LOCUS       Exported                 180 bp DNA     circular SYN 25-MAY-2020"),  # SnapGene
    genbank("LOCUS       TST_1                    180 bp    DNA     linear   UNA 25-MAY-2020"),  # Geneious
    genbank("LOCUS       TST_1                    180 bp    dna     linear   BCT 25-MAY-2020"),
    genbank("LOCUS       TST_1                    180 bp    DNA     linear   BCT 8-May-2020"),
    genbank("LOCUS       TST_1                    180 bp    DNA     linear   BCT 07-juin-2020"),
    genbank(features="     CDS             complement(join(170..180,1..20))"),
    genbank(features="     CDS             170..>20\n                     /note=\"quote left open"),
    genbank(before="GBBCT1.SEQ          Genetic Sequence Data Bank\n                          October 15 2020\n"),
    genbank(before="\n"),
    genbank(after="\n"),
    genbank(comment="Universität Zürich, 5 µm"),
    "\ufeff" + genbank(),
    genbank().replace("\n", "\r\n"),
], ids=["plain", "PGAP", "SnapGene", "Geneious", "lower case", "short date", "French date", "over the origin", "odd place",
        "flat file", "blank first", "blank after", "beyond ASCII", "byte-order mark", "CR LF"])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_genbank_is_read_for_its_sequence_whatever_its_annotation(text, encoding, tmp_path):
    mark = b"\xef\xbb\xbf" if text.startswith("\ufeff") else b""
    (tmp_path / "x.gb").write_bytes(mark + text.removeprefix("\ufeff").encode(encoding))
    found = fetched(tmp_path / "x.gb", tmp_path)
    assert list(found) == ["TST_1.1"] and found["TST_1.1"] == LETTERS.upper()


def test_records_without_an_accession_have_the_name_of_their_locus(tmp_path):
    one = genbank("LOCUS       first 180 bp DNA linear SYN 25-MAY-2020", accession=".", version=".")
    (tmp_path / "x.gb").write_text(one + one.replace("first", "second"))
    assert list(fetched(tmp_path / "x.gb", tmp_path)) == ["first", "second"]


@pytest.mark.parametrize("name", ["cDNA", "dna", "gDNA", "mRNA", "x_dna"])
def test_a_locus_named_like_a_molecule_keeps_its_name(name, tmp_path):
    locus = f"LOCUS       {name}                 180 bp ds-dna     linear   SYN 25-MAY-2020"
    (tmp_path / "x.gb").write_text(genbank(locus, accession=".", version="."))
    assert fetched(tmp_path / "x.gb", tmp_path) == {name: LETTERS.upper()}


def test_a_genbank_record_of_another_length_than_it_says_is_refused(tmp_path):
    (tmp_path / "x.gb").write_text(genbank().replace("180 bp", "181 bp"))
    with pytest.raises(InputError, match="Expected sequence length 181, found 180"):
        build([tmp_path / "x.gb"], tmp_path / "x.dna")


# VCF specification 4.1 to 4.5, sections 1.6.1 and 5.4; the last lines of each are from its files of passed tests
@pytest.mark.parametrize("alt, status", [
    ("A", None), ("acgt", None), ("N", "ambiguous"), ("NNNN", "ambiguous"), ("ACN", "ambiguous"), ("R", "ambiguous"),
    (".", "no_alt"), ("*", "star"), ("<DEL>", "symbolic"), ("<*>", "symbolic"), ("<INS:ME:SOME2>", "symbolic"),
    ("<CNV:TR>", "symbolic"), ("T<ctg1>", "symbolic"), ("<a[b]c>", "symbolic"), ("]1:100]AGT", "breakend"),
    ("AGT[1:100[", "breakend"), ("[<ctg1>:7[G", "breakend"), (".[13:123457[", "breakend"), ("]13:123456].", "breakend"),
    ("G.", "breakend"), (".G", "breakend"), ("G]HLA:A*01:7]", "breakend"),
])  # fmt: skip
def test_every_form_of_alt_is_known(alt, status, tmp_path):
    (tmp_path / "v.vcf").write_text(f"##fileformat=VCFv4.5\n#CHROM\tPOS\tID\tREF\tALT\n1\t10\tx\tG\t{alt}\n")
    (record,) = read_vcf(tmp_path / "v.vcf").variants
    assert record.alts == (() if alt == "." else (alt,)) and allele_status(alt) == status


def test_five_columns_a_byte_order_mark_and_no_last_line_end_are_read(tmp_path):
    content = b"\xef\xbb\xbf##fileformat=VCFv4.2\r\n#CHROM\tPOS\tID\tREF\tALT\r\n1\t0\tx\tN\t.[1:5["
    (tmp_path / "v.vcf").write_bytes(content)
    said = []
    file = read_vcf(tmp_path / "v.vcf", said.append)
    assert file.header == ("##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO")
    assert file.variants[0].columns[5:] == (".", ".", ".") and file.variants[0].start == -1
    assert len(said) == 1 and "the last line has no line end" in said[0]


def haplotype(letters, core):
    return letters[: core.start] + core.alt + letters[core.start + core.ref_bases :]


@pytest.mark.parametrize("seed", range(40))
def test_one_haplotype_has_one_core_however_it_is_spelled(seed, tmp_path):
    generator = np.random.default_rng(seed)
    # few letters, so that there are repeats to move through, and an N that stops it
    letters = "".join(generator.choice(list("AC"), 60)) + "N" + "".join(generator.choice(list("ACAG"), 60))
    (tmp_path / "x.fa").write_text(f">c\n{letters}\n")
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    start, end = sorted(int(x) for x in generator.integers(62, 115, 2))
    alt = "".join(generator.choice(list("AC"), int(generator.integers(0, 6))))
    whole = letters[:start] + alt + letters[end:]
    cores = set()
    for left in range(8):
        for right in range(6):
            a, b = start - min(left, start - 61), min(end + right, len(letters))
            ref = letters[a:b]
            core = core_of(genome, "c", a, ref, letters[a:start] + alt + letters[end:b])
            assert haplotype(letters, core) == whole
            cores.add(core[:3])
    assert len(cores) == 1
    first = cores.pop()
    if bool(first[1]) != bool(first[2]) and first[0] > 61:  # as far left as it goes: one step more is another haplotype
        size = first[1]
        moved = Core(first[0] - 1, size, (letters[first[0] - 1] + first[2][:-1]) if first[2] else "", True)
        assert haplotype(letters, moved) != whole


def test_a_deletion_moves_left_through_more_bases_than_are_looked_at_once(tmp_path):
    (tmp_path / "x.fa").write_text(f">c\nG{'CA' * 3000}T\n")
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    assert core_of(genome, "c", 5998, "ACA", "A") == (1, 2, "", True)
    assert core_of(genome, "c", 6000, "A", "ACA") == (1, 0, "CA", True)


def test_bed_dialects_are_read_and_nothing_goes_without_a_count(tmp_path):
    (tmp_path / "x.bed").write_bytes(
        b"\xef\xbb\xbftrack name=x\nchr1 5 9 spaces 0 -\nchr1\t7\t7\tempty\nchr1\t0\t90\tb12\t0\t+\t0\t0\t0\t2\t5,5,\t0,80,\n"
        b"chr1\t1\t2\tna\xefve\t0\tplus\nbrowser position\ntrack\t3\t4\n"
    )
    said = []
    rows = read_bed(tmp_path / "x.bed", said.append)
    assert [(i.contig, i.start, i.end, i.strand) for _, i, _ in rows] == [
        ("chr1", 5, 9, "-"), ("chr1", 0, 90, "+"), ("chr1", 1, 2, "+"), ("track", 3, 4, "+"),
    ]  # fmt: skip
    assert rows[2][2][0].encode("utf-8", "surrogateescape") == b"na\xefve"
    assert [word for words in said for word in ("no length", "strand in column 6", "several blocks") if word in words] == [
        "no length", "strand in column 6", "several blocks",
    ]  # fmt: skip
    assert all("1 features" in words or "1 rows" in words for words in said)


def test_tables_in_latin_1_are_read_and_names_carried(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"id,name,sequence\ni1,d\xe9,ACGT\ni2,,GGTT\n,,TTTT\n")
    found = read_csv(tmp_path / "x.csv")
    assert [name.encode("utf-8", "surrogateescape") for _, name in found.places] == [b"d\xe9", b"i2", b"row3"]


@pytest.mark.parametrize("header", ["sequence,sequence", "Seq,sequence", "seq,Seq"])
def test_a_table_with_two_columns_of_sequences_is_refused(header, tmp_path):
    (tmp_path / "x.csv").write_text(f"{header}\nACGT,GGTT\n")
    with pytest.raises(InputError, match="2 columns named sequence or seq"):
        read_csv(tmp_path / "x.csv")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("read, text", [
    (read_csv, "name,sequence\nx,ACGT\n"), (read_bed, "a\t1\t2\n"), (lambda path: read_vcf(path), "##fileformat=VCFv4.2\n"),
    (lambda path: build([path], path.with_suffix(".dna")), ">a\nACGT\n"),
], ids=["csv", "bed", "vcf", "fasta"])  # fmt: skip
def test_utf_16_is_told_for_what_it_is(read, text, encoding, tmp_path):
    (tmp_path / "x.txt").write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=encoding.upper()):
        read(tmp_path / "x.txt")


def test_a_table_that_is_no_text_or_holds_other_letters_is_told_so(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\x00\x01\xff,sequence\n")
    with pytest.raises(InputError, match="is not text"):
        read_csv(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes("sequence\nACGé\n".encode("latin-1"))
    with pytest.raises(InputError, match="row 2: .*'é' at position 4"):
        read_csv(tmp_path / "x.csv")
