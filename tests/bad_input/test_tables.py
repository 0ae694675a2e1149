"""Rows 53 to 72: variants and intervals."""

import gzip
import os
import random

import pytest

from dna_mamba.data.intervals import Interval, read_bed
from dna_mamba.data.variants import read_vcf
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import save_pretrained
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.embed import EmbedRunConfig
from dna_mamba.pipelines.embed import run as embed
from dna_mamba.pipelines.score_variants import ScoreConfig
from dna_mamba.pipelines.score_variants import run as score
from tests.bad_input.contract import (
    Case,
    make,
    named,
    refused_by_command,
    refused_by_function,
    run_command,
    within_limits,
)
from tests.bad_input.test_fasta import bgzip

BASES = "".join(random.Random(5).choices("ACGT", k=600))
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a genome of one contig and a model."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "g.fa").write_text(f">chr1\n{BASES}\n")
    save_pretrained(DnaMamba(BackboneConfig(pattern="M", width=16)), folder / "model", {"train": "toy"})
    return folder


def other(base):
    return {"A": "C", "C": "G", "G": "T", "T": "A"}[base]


def line(position=10, ref=None, alt=None, contig="chr1"):
    ref = ref or BASES[position - 1]
    return f"{contig}\t{position}\t.\t{ref}\t{alt or other(ref[0])}\t.\t.\t.\n"


def vcf(*lines):
    return (HEADER + "".join(lines)).encode()


VCF = [
    Case(53, "no header", line().encode(), "line 1: a record before the line #CHROM"),
    Case(53, "no fileformat", b"#CHROM\tPOS\n", "line 1: '#CHROM\\tPOS' where a VCF has ##fileformat"),
    Case(53, "only meta lines", b"##fileformat=VCFv4.2\n", "has no line #CHROM"),
    Case(53, "blanks in the header", HEADER.replace("\t", " ").encode(), "tab-separated"),
    Case(55, "contig not in the genome", vcf(line(contig="chrX")), "line 3 (chrX:10): contig 'chrX' is not in"),
    Case(55, "contig of a megabyte", vcf(line(contig="x" * 10**6)), "is not in"),
    Case(55, "contig that a terminal obeys", vcf(line(contig="\x1b[31mred")), "contig '\\x1b[31mred' is not in"),
    Case(56, "1 for chr1", vcf(line(contig="1")), "did you mean 'chr1'?"),
    Case(57, "four columns", vcf("chr1\t5\t.\tA\n"), "line 3: 4 tab-separated columns, expected at least 5"),
    Case(58, "blanks for tabs", vcf("chr1 5 . A C . . .\n"), "line 3: 1 tab-separated columns"),
    Case(59, "blank line", vcf("\n"), "line 3: blank, expected at least 5"),
    Case(60, "POS 0", vcf(line().replace("\t10\t", "\t0\t")), "POS 0 lies before the first base"),
    Case(60, "negative POS", vcf(line().replace("\t10\t", "\t-5\t")), "line 3: POS '-5' is no position"),
    Case(60, "POS as text", vcf(line().replace("\t10\t", "\tx\t")), "line 3: POS 'x' is no position"),
    Case(60, "POS 2^31", vcf(line().replace("\t10\t", f"\t{2**31}\t")), "is no position from 1 to 2^31 - 1"),
    Case(60, "POS 10^14", vcf(line().replace("\t10\t", "\t99999999999999\t")), "is no position"),
    Case(60, "POS in other digits", vcf(line().replace("\t10\t", "\t١٠\t")), "POS '١٠' is no position"),
    Case(60, "no CHROM", vcf(line(contig="")), "line 3: CHROM is empty"),
    Case(61, "past the contig", vcf(line().replace("\t10\t", "\t601\t")), "REF ends past chr1, which has 600 bases"),
    Case(62, "another REF", vcf(line(ref=other(BASES[9]))), "1 of 1 records (100.0%) do not fit"),
    Case(63, "REF '.'", vcf(line(ref=".", alt="A")), "line 3: REF '.' is not letters of DNA"),
    Case(63, "REF with rubbish", vcf(line(ref="A1?", alt="A")), "line 3: REF 'A1?' is not letters of DNA"),
    Case(64, "ALT with rubbish", vcf(line(alt="A1")), "line 3: ALT 'A1' is none of the alleles of VCF"),
    Case(64, "brackets without end", vcf(line(alt="[" * 100_000 + "<")), "is none of the alleles of VCF"),
    Case(64, "breakend with two sides", vcf(line(alt="GG[chr2:7[A")), "is none of the alleles of VCF"),
    Case(64, "empty ALT", vcf(line(alt="C,")), "line 3: ALT 'C,' has an empty allele"),
    Case(70, "bgzip without its end", bgzip(vcf(line()), end=False), "lacks the empty block that ends a bgzip file"),
    Case(70, "gzip cut", gzip.compress(vcf(line()) * 50)[:60], "cannot read"),
    Case(
        70, "gzip bomb", gzip.compress(vcf(line()) + b"#" * (1 << 27), 9), "unfolds into more than 500 times its size"
    ),
    Case(
        71, "old Mac line ends", HEADER.encode() + line().encode() + line().replace("\n", "\r").encode() * 2, "CR alone"
    ),
    Case(71, "not text", b"\x00\xff\xfe", "is not text"),
]


@pytest.mark.parametrize("case", named(VCF))
def test_a_vcf_is_refused_in_one_line_and_nothing_is_left(case, place, tmp_path, capfd):
    source = make(case, tmp_path / "in", "v.vcf")
    out = tmp_path / "out"
    out.mkdir()
    config = {"model": place / "model", "variants": source, "genome": str(place / "g.fa"), "right": 8, "device": "cpu"}
    said = refused_by_function(
        tmp_path / "in", out, case.words, lambda: score(ScoreConfig(out=out / "o.vcf", **config))
    )
    command = ("score", place / "model", source, "--genome", place / "g.fa", "--right", "8", "-o", out / "o.vcf")
    words = refused_by_command(capfd, tmp_path / "in", out, case.words, *command)
    assert str(source) in said and len(words) < 2100
    if case.row in (55, 56):
        assert str(place / "g.fa") in said, "the file that was given is named, not a copy of it"


def scored(place, source, out):
    """Score through the command line; give the columns of every record."""
    code = run_command("score", place / "model", source, "--genome", place / "g.fa", "--right", "8", "-o", out)
    assert code == 0
    return [variant.columns for variant in read_vcf(out).variants]


def fields(columns):
    return dict(part.partition("=")[::2] for part in columns[7].split(";"))


def test_row54_a_header_alone_succeeds_with_a_note(place, tmp_path, capfd):
    source = tmp_path / "v[/x].vcf"  # and a name that is not markup
    source.parent.mkdir()
    source.write_text(HEADER)
    assert scored(place, source, tmp_path / "o.vcf") == []
    assert f"{source} has no record; the output has none either" in capfd.readouterr().err
    said = []
    config = ScoreConfig(model=place / "model", variants=source, genome=str(place / "g.fa"), out=tmp_path / "p.vcf")
    assert score(config, say=said.append).num_records == 0 and "has no record" in said[0]


def test_rows64_65_66_every_allele_is_scored_or_listed_with_its_reason(place, tmp_path):
    ref = BASES[9]
    ends = ["G]chr2:7]", "G[chr2:7[", "]chr2:7]G", "[<ctg1>:7[G", "G.", ".G"]
    alts = [other(ref), f"{ref}ACG", "*", "<DEL>", "<*>", "<NON_REF>", "G<ctg1>", *ends, "R", ref]
    (tmp_path / "v.vcf").write_bytes(vcf(line(alt=",".join(alts)), line(20, alt=".")))
    several, none = scored(place, tmp_path / "v.vcf", tmp_path / "o.vcf")
    statuses = ["scored", "scored", "star", *["symbolic"] * 4, *["breakend"] * 6, "ambiguous", "scored"]
    assert fields(several)["DMSTATUS"].split(",") == statuses
    ratios = fields(several)["DMLLR"].split(",")
    assert [ratio == "." for ratio in ratios] == [status != "scored" for status in statuses]
    assert float(ratios[-1]) == 0.0, "REF = ALT changes nothing"
    assert "DMLLR" not in fields(none)


@pytest.mark.parametrize("strands", ["forward", "both"])
@pytest.mark.parametrize("left", ["full", "64"])
def test_row67_the_order_of_rows_and_doubles_change_nothing(place, tmp_path, left, strands):
    ordered = [line(position) for position in range(5, 590, 9)]
    shuffled = [*ordered, *ordered[3:5]]
    random.Random(1).shuffle(shuffled)
    found = {}
    for name, lines in (("ordered", ordered), ("shuffled", shuffled)):
        (tmp_path / f"{name}.vcf").write_bytes(vcf(*lines))
        out = tmp_path / f"{name}.out.vcf"
        words = ("--genome", place / "g.fa", "--right", "8", "--left", left, "--strands", strands)
        assert run_command("score", place / "model", tmp_path / f"{name}.vcf", *words, "-o", out) == 0
        found[name] = [(v.start, v.columns[7]) for v in read_vcf(out).variants]
    assert [start for start, _ in found["shuffled"]] == [int(one.split("\t")[1]) - 1 for one in shuffled]
    assert set(found["shuffled"]) == set(found["ordered"]) and len(set(found["ordered"])) == len(ordered)


def test_row68_an_alt_of_five_megabases_is_listed_as_too_long(place, tmp_path):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "v.vcf"
    source.write_bytes(vcf(line(alt=BASES[9] + "ACGTT" * 10**6), line(20)))
    with within_limits(tmp_path / "in"):
        long, short = scored(place, source, tmp_path / "o.vcf")
    assert fields(long)["DMSTATUS"] == "too_long" and fields(short)["DMSTATUS"] == "scored"


def test_row69_a_header_of_fifty_megabytes_is_read(place, tmp_path):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "v.vcf"
    meta = "##fileformat=VCFv4.2\n" + ("##x=" + "y" * 995 + "\n") * 50_000
    source.write_text(meta + HEADER.split("\n", 1)[1] + line())
    with within_limits(tmp_path / "in"):
        assert fields(scored(place, source, tmp_path / "o.vcf")[0])["DMSTATUS"] == "scored"
    assert (tmp_path / "o.vcf").stat().st_size > source.stat().st_size


BED = [
    Case(72, "text for a number", b"chr1\tx\t10\n", "line 1: START 'x' and END '10' must be whole numbers"),
    Case(72, "negative", b"chr1\t-1\t10\n", "START '-1'"),
    Case(72, "other digits", "chr1\t1\t٩\n".encode(), "must be whole numbers"),
    Case(72, "start = end", b"# c\nchr1\t10\t10\n", "holds features of no length alone (START equals END)"),
    Case(72, "start > end", b"chr1\t11\t10\n", "START 11 lies behind END 10"),
    Case(72, "two columns", b"chr1 1\n", "line 1: 'chr1 1' has 2 column(s)"),
    Case(72, "past the contig", b"chr1\t590\t610\n", "line 1: chr1:591-610 ends past chr1, which has 600 bases"),
    Case(72, "another contig", b"chrX\t5\t9\n", "line 1: contig 'chrX' is not in"),
    Case(72, "nothing", b"#nothing\n", "holds no interval"),
    Case(72, "empty", b"", "holds no interval"),
    Case(72, "not text", b"\x00\xff\xfe", "is not text"),
    Case(72, "gzip cut", gzip.compress(b"chr1\t1\t10\n" * 99)[:-9], "cannot read"),
    Case(72, "gzip bomb", gzip.compress(b"#" * (1 << 27), 9), "unfolds into more than 500 times its size"),
]


@pytest.mark.parametrize("case", named(BED))
def test_a_bed_is_refused_in_one_line_and_nothing_is_left(case, place, tmp_path, capfd):
    source = make(case, tmp_path / "in", "x.bed")
    out = tmp_path / "out"
    out.mkdir()
    config = {"model": place / "model", "sequences": str(source), "genome": str(place / "g.fa"), "device": "cpu"}
    said = refused_by_function(
        tmp_path / "in", out, case.words, lambda: embed(EmbedRunConfig(out=out / "o.npz", **config))
    )
    command = ("embed", place / "model", source, "--genome", place / "g.fa", "-o", out / "o.npz")
    refused_by_command(capfd, tmp_path / "in", out, case.words, *command)
    assert str(source) in said


@pytest.mark.parametrize("link", [False, True])
def test_an_output_is_never_one_of_the_inputs(place, tmp_path, capfd, link):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "v.vcf").write_bytes(vcf(line()))
    (tmp_path / "in" / "p.fa").write_text(">p\nACGT\n")
    for name, words in {
        "v.vcf": ("score", place / "model", tmp_path / "in" / "v.vcf", "--genome", place / "g.fa"),
        "p.fa": ("generate", place / "model", "--prompt", tmp_path / "in" / "p.fa", "--length", "5"),
    }.items():
        out = tmp_path / "in" / name
        if link:
            out = tmp_path / "out" / name
            out.symlink_to(tmp_path / "in" / name)
        refused_by_command(
            capfd, tmp_path / "in", tmp_path / "out", "is what is read; name another file", *words, "-o", out
        )


@pytest.mark.parametrize("name, command", [("v.vcf", "score"), ("x.bed", "embed"), ("x.csv", "embed")])
def test_row51_a_pipe_is_never_waited_for(name, command, place, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "in" / name)
    genome = () if name == "x.csv" else ("--genome", place / "g.fa")
    out = tmp_path / "out" / ("o.vcf" if command == "score" else "o.npz")
    words = (command, place / "model", tmp_path / "in" / name, *genome, "-o", out)
    refused_by_command(capfd, tmp_path / "in", tmp_path / "out", "is not a regular file", *words)


def test_row72_more_columns_and_windows_line_ends_are_read(place, tmp_path):
    source = tmp_path / "x.bed"
    source.write_bytes(b"track x\r\nchr1\t0\t10\tname\t0\t-\tmore\r\nchr1\t5\t6\ttrain\n")
    (_, first, columns), (number, second, more) = read_bed(source)
    assert (first, second, number) == (Interval("chr1", 0, 10, "-"), Interval("chr1", 5, 6), 3)
    assert columns == ["name", "0", "-", "more"] and more == ["train"]
    out = tmp_path / "o.npz"
    assert run_command("embed", place / "model", source, "--genome", place / "g.fa", "-o", out) == 0
