"""Variant scores through files: what is written can be read by others, order and fields stay, faults are named."""

import csv
import errno
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from dna_mamba.data.store.build import build
from dna_mamba.data.unpack import BGZF_END
from dna_mamba.data.variants import read_vcf
from dna_mamba.data.vocabulary import tokens_of
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import save_pretrained
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.configs.score import DESCRIBED, ScoreConfig
from dna_mamba.pipelines.score_variants import run

HEADER = (
    "##fileformat=VCFv4.2\n"
    + "".join(f'##INFO=<ID=DM{name},Number=A,Type=String,Description="{words}">\n' for name, words in DESCRIBED.items())
    + '##INFO=<ID=AF,Number=A,Type=Float,Description="x">\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS\n'
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="MM", width=16)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    save_pretrained(model, folder / "model", {"train": "toy"})
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 600))
    (folder / "g.fa").write_text(f">c1\n{letters}\n>c2\n{letters[::-1]}\n")
    build([folder / "g.fa"], folder / "g.dna")
    return folder, model, letters


def other(base):
    return {"A": "C", "C": "G", "G": "T", "T": "A"}[base]


def records(letters):
    def ref(position, number=1):
        return letters[position - 1 : position - 1 + number]

    return [
        ("c1", 400, "late", ref(400), other(ref(400)), "AF=0.5"),
        ("c1", 100, "snv", ref(100), other(ref(100)), "AF=0.1;DB"),
        ("c1", 200, "several", ref(200), f"{other(ref(200))},{ref(200)}ACG,*,<DEL>,G]c2:7]", "."),
        ("c1", 300, "deletion", ref(300, 4), ref(300), "DMLLR=9"),
        ("c2", 1, "first", letters[-1], other(letters[-1]), "."),
        ("c1", 600, "last", ref(600), ref(600) + "T", "."),
        ("c1", 50, "none", ref(50), ".", "AF=0"),
        ("c1", 60, "iupac", ref(60), "R", "."),
    ]


def write_vcf(path, rows):
    lines = [f"{c}\t{p}\t{i}\t{r}\t{a}\t50\tPASS\t{info}\tGT\t0/1\n" for c, p, i, r, a, info in rows]
    path.write_text(HEADER + "".join(lines))
    return path


@torch.no_grad()
def by_hand(model, letters, position, ref, alt, right):
    start, end = position - 1, position - 1 + len(ref)
    values = []
    for middle in (alt, ref):
        text = letters[:start] + middle + letters[end : end + right]
        tokens_BT = torch.from_numpy(tokens_of(text).copy())[None]
        log_p = model(tokens_BT[:, :-1])[0][0, :, 7:11].double().log_softmax(-1)
        values.append(sum(float(log_p[t - 1, int(tokens_BT[0, t]) - 7]) for t in range(max(1, start), len(text))))
    return values[0] - values[1]


def rc(text):
    return text[::-1].translate(str.maketrans("ACGT", "TGCA"))


def test_every_kind_of_record_is_scored_or_passed_through(place, tmp_path):
    folder, model, letters = place
    vcf = write_vcf(tmp_path / "v.vcf", records(letters))
    out = tmp_path / "o.vcf.gz"
    result = run(ScoreConfig(model=folder / "model", variants=vcf, genome=str(folder / "g.dna"), out=out, right=40))
    assert result.status_counts == {"scored": 7, "star": 1, "symbolic": 1, "breakend": 1, "no_alt": 1, "ambiguous": 1}
    assert out.read_bytes().endswith(BGZF_END)
    lines = gzip.decompress(out.read_bytes()).decode().splitlines()
    assert sum(line.startswith("##INFO=<ID=DM") for line in lines) == 3 and "nats" in next(
        x for x in lines if "DMLLR" in x
    )
    read = read_vcf(out).variants
    assert [v.columns[2] for v in read] == [r[2] for r in records(letters)]  # order kept
    for variant, (contig, position, name, ref, alt, info) in zip(read, records(letters), strict=True):
        assert variant.columns[:7] == (contig, str(position), name, ref, alt, "50", "PASS")
        assert variant.columns[8:] == ("GT\t0/1",)
        fields = dict(f.partition("=")[::2] for f in variant.columns[7].split(";"))
        if name == "none":
            assert fields == {"AF": "0"}
            continue
        assert all(part in variant.columns[7].split(";") for part in info.split(";") if part not in (".", "DMLLR=9"))
        text = letters if contig == "c1" else letters[::-1]
        ratios, lengths, statuses = (fields[k].split(",") for k in ("DMLLR", "DMLEN", "DMSTATUS"))
        for one, ratio, length, status in zip(alt.split(","), ratios, lengths, statuses, strict=True):
            if status == "scored":
                assert float(ratio) == pytest.approx(by_hand(model, text, position, ref, one, 40), abs=1e-3)
                assert int(length) == len(one) - len(ref)
            else:
                assert ratio == length == "."


def test_tables_hold_a_row_an_alt_and_both_strands_are_averaged(place, tmp_path):
    folder, model, letters = place
    rows = [r for r in records(letters) if r[2] in ("snv", "deletion", "last")]
    vcf = write_vcf(tmp_path / "v.vcf", rows)
    common = {
        "model": folder / "model",
        "variants": vcf,
        "genome": str(folder / "g.dna"),
        "right": 30,
        "strands": "both",
    }
    run(ScoreConfig(out=tmp_path / "o.tsv", **common))
    run(ScoreConfig(out=tmp_path / "o.parquet", **common))
    with open(tmp_path / "o.tsv", newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    import pandas as pd

    table = pd.read_parquet(tmp_path / "o.parquet")
    assert table["pos"].tolist() == [r[1] for r in rows] and table["DMSTATUS"].tolist() == ["scored"] * 3
    for row, value, (_, position, _, ref, alt, _) in zip(found, table["DMLLR"], rows, strict=True):
        forward = by_hand(model, letters, position, ref, alt, 30)
        backward = by_hand(model, rc(letters), 600 - (position - 1) - len(ref) + 1, rc(ref), rc(alt), 30)
        assert float(row["DMLLR"]) == pytest.approx((forward + backward) / 2, abs=1e-3) == value


def test_a_ref_that_is_not_in_the_genome_stops_before_anything_is_scored(place, tmp_path):
    folder, _, letters = place
    rows = records(letters)
    rows[1] = (*rows[1][:3], other(rows[1][3]), *rows[1][4:])
    vcf = write_vcf(tmp_path / "v.vcf", rows)
    config = {"model": folder / "model", "variants": vcf, "genome": str(folder / "g.dna"), "out": tmp_path / "o.tsv"}
    words = (
        r"line 9 \(c1:100\): REF is ., the genome has .; 1 of 8 records \(12.5%\) do not fit .*\(is it another assembly"
    )
    with pytest.raises(InputError, match=words):
        run(ScoreConfig(**config))
    assert not (tmp_path / "o.tsv").exists()
    assert run(ScoreConfig(**config, skip_mismatches=True)).status_counts["ref_mismatch"] == 1


def test_a_bgzip_file_without_its_end_is_refused_and_no_record_is_no_fault(place, tmp_path):
    folder, _, _ = place
    vcf = write_vcf(tmp_path / "v.vcf", [])
    said = []
    config = {"model": folder / "model", "genome": str(folder / "g.dna"), "right": 10}
    result = run(ScoreConfig(variants=vcf, out=tmp_path / "o.vcf.gz", **config), say=said.append)
    assert result.num_records == 0 and any("has no record" in words for words in said)
    whole = (tmp_path / "o.vcf.gz").read_bytes()
    (tmp_path / "cut.vcf.gz").write_bytes(whole[: -len(BGZF_END)])
    with pytest.raises(InputError, match="lacks the empty block"):
        run(ScoreConfig(variants=tmp_path / "cut.vcf.gz", out=tmp_path / "p.vcf", **config))
    with pytest.raises(InputError, match=r"must end in \.vcf, \.vcf\.gz, \.tsv, \.parquet"):
        ScoreConfig(variants=vcf, out=tmp_path / "o.csv", **config)


def test_codes_that_say_no_base_fit_and_reasons_come_before_references(place, tmp_path):
    folder, _, letters = place
    rows = [
        ("c1", 10, "n", "N", "<DEL>", "."),
        ("c1", 20, "wrong", other(letters[19]), "<DUP>", "."),  # nothing is scored, so nothing has to fit
        ("c1", 30, "iupac", {"A": "R", "G": "R", "C": "Y", "T": "Y"}[letters[29]], other(letters[29]), "."),
    ]
    vcf = write_vcf(tmp_path / "v.vcf", rows)
    config = ScoreConfig(
        model=folder / "model", variants=vcf, genome=str(folder / "g.dna"), out=tmp_path / "o.vcf", right=5
    )
    assert run(config).status_counts == {"symbolic": 2, "scored": 1}
    assert all(v.columns[8] == "GT\t0/1" for v in read_vcf(tmp_path / "o.vcf").variants)


def test_what_is_written_opens_in_pysam(place, tmp_path):
    pysam = pytest.importorskip("pysam")
    folder, _, letters = place
    rows = sorted(records(letters), key=lambda r: (r[0], r[1]))
    vcf = write_vcf(tmp_path / "v.vcf", rows)
    vcf.write_text(vcf.read_text().replace("#CHROM", "##contig=<ID=c1>\n##contig=<ID=c2>\n##FORMAT=<ID=GT,Number=1,Type=String,Description=\"g\">\n"
                   "##FILTER=<ID=PASS,Description=\"p\">\n##INFO=<ID=DB,Number=0,Type=Flag,Description=\"d\">\n#CHROM"))  # fmt: skip
    run(
        ScoreConfig(
            model=folder / "model", variants=vcf, genome=str(folder / "g.dna"), out=tmp_path / "o.vcf.gz", right=20
        )
    )
    with pysam.VariantFile(str(tmp_path / "o.vcf.gz")) as file:
        found = {record.id: record for record in file}
    assert len(found["several"].info["DMLLR"]) == 5 and found["several"].info["DMSTATUS"][2] == "star"
    assert found["snv"].info["DMLEN"] == (0,) and found["snv"].info["DB"] is True


def test_scores_of_an_earlier_run_go_and_a_gap_in_the_genome_is_ambiguous(place, tmp_path):
    pysam = pytest.importorskip("pysam")
    folder, _, letters = place
    (tmp_path / "g.fa").write_text(f">c1\n{letters[:299]}N{letters[300:]}\n")
    rows = [("c1", 100, "old", letters[99], other(letters[99]), "DMDIST=3;DMLLR=9;DB"), ("c1", 50, "none", letters[49], ".", "DMLLR=1"),
            ("c1", 300, "gap", "N", "A", ".")]  # fmt: skip
    vcf = write_vcf(tmp_path / "v.vcf", sorted(rows, key=lambda r: r[1]))
    added = (
        "##contig=<ID=c1>",
        '##INFO=<ID=DB,Number=0,Type=Flag,Description="d">',
    )
    added = (*added, '##FORMAT=<ID=GT,Number=1,Type=String,Description="g">', '##FILTER=<ID=PASS,Description="p">')
    vcf.write_text(vcf.read_text().replace("#CHROM", "\n".join([*added, "#CHROM"])))
    config = {"model": folder / "model", "genome": str(tmp_path / "g.fa"), "right": 5}
    run(ScoreConfig(variants=vcf, out=tmp_path / "o.vcf.gz", **config))
    with pysam.VariantFile(str(tmp_path / "o.vcf.gz")) as file:
        found = {record.id: record for record in file}
    assert "DMDIST" not in found["old"].info and found["old"].info["DB"] is True and found["old"].info["DMLLR"][0] != 9
    assert "DMLLR" not in found["none"].info and found["gap"].info["DMSTATUS"] == ("ambiguous",)


def test_an_output_that_cannot_be_written_is_told_before_the_work(place, tmp_path):
    folder, _, letters = place
    vcf = write_vcf(tmp_path / "v.vcf", records(letters))
    said = []
    with pytest.raises(InputError, match="cannot write /proc/o.vcf"):
        config = ScoreConfig(
            model=folder / "model", variants=vcf, genome=str(folder / "g.dna"), out=Path("/proc/o.vcf")
        )
        run(config, say=said.append)
    assert not said
    with pytest.raises(InputError, match="no model directory|neither a run"):
        run(
            ScoreConfig(
                model=folder / "nope", variants=vcf, genome=str(folder / "g.dna"), out=tmp_path / "new" / "o.vcf"
            )
        )
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["v.vcf"]


def test_a_full_disk_is_told_with_the_name_and_leaves_nothing(place, tmp_path, monkeypatch):
    folder, _, letters = place
    vcf = write_vcf(tmp_path / "v.vcf", records(letters))
    config = ScoreConfig(
        model=folder / "model", variants=vcf, genome=str(folder / "g.dna"), out=tmp_path / "o.vcf", right=5
    )

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dna_mamba.pipelines.score_variants._texts", full)
    with pytest.raises(InputError, match=r"the disk is full while writing .*o\.vcf; free space"):
        run(config)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["v.vcf"]


def test_the_distance_of_embeddings_is_a_second_column(place, tmp_path):
    pysam = pytest.importorskip("pysam")
    folder, model, letters = place
    rows = sorted((r for r in records(letters) if r[0] == "c1"), key=lambda r: r[1])
    vcf = write_vcf(tmp_path / "v.vcf", rows)
    vcf.write_text(vcf.read_text().replace("#CHROM", "##contig=<ID=c1>\n#CHROM"))
    common = {"model": folder / "model", "variants": vcf, "genome": str(folder / "g.dna"), "right": 20}
    run(ScoreConfig(out=tmp_path / "o.vcf.gz", distance=True, **common))
    run(ScoreConfig(out=tmp_path / "o.tsv", distance=True, **common))
    run(ScoreConfig(out=tmp_path / "plain.tsv", **common))
    with open(tmp_path / "o.tsv", newline="") as file:
        found = {(row["id"], row["alt"]): row for row in csv.DictReader(file, delimiter="\t")}
    with open(tmp_path / "plain.tsv", newline="") as file:
        plain = {(row["id"], row["alt"]): row for row in csv.DictReader(file, delimiter="\t")}
    _, position, _, ref, alt, _ = next(r for r in rows if r[2] == "snv")
    means = []
    for middle in (alt, ref):
        whole = letters[: position - 1] + middle + letters[position - 1 + len(ref) :][:20]
        with torch.no_grad():
            vectors = model.backbone(torch.from_numpy(tokens_of(whole).copy())[None])[0][0].double()
        means.append(vectors[position - 1 :].mean(0))
    assert float(found["snv", alt]["DMDIST"]) == pytest.approx(float((means[0] - means[1]).norm()), abs=1e-4)
    with pysam.VariantFile(str(tmp_path / "o.vcf.gz")) as file:
        record = next(record for record in file if record.id == "snv")
        assert record.info["DMDIST"][0] == pytest.approx(float(found["snv", alt]["DMDIST"]), rel=1e-5)
    assert "DMDIST" not in plain["snv", alt]
    assert float(plain["snv", alt]["DMLLR"]) == pytest.approx(float(found["snv", alt]["DMLLR"]), abs=1e-4)


def written(path):
    return [dict(f.partition("=")[::2] for f in v.columns[7].split(";")) for v in read_vcf(path).variants]


def test_one_haplotype_has_one_score_to_the_bit(place, tmp_path):
    folder, model, _ = place
    letters = "GCTTACGTCCATGGT" + "AG" * 12 + "TCCGATTGCATTGCA"
    (tmp_path / "g.fa").write_text(f">c1\n{letters}\n")
    first = letters.index("AGAGAG")
    spelled = [
        ("c1", first, "left", letters[first - 1], letters[first - 1] + "AGAG", "."),
        ("c1", first + 1, "first", "A", "AGAGA", "."),
        ("c1", first + 20, "right", letters[first + 19], letters[first + 19] + "AGAG", "."),
        ("c1", first, "long", letters[first - 1 : first + 10], letters[first - 1 : first + 10] + "AGAG", "."),
    ]
    vcf = write_vcf(tmp_path / "v.vcf", spelled)
    for right in (0, 3, 40):
        said = []
        config = ScoreConfig(
            model=folder / "model", variants=vcf, genome=str(tmp_path / "g.fa"), out=tmp_path / "o.vcf", right=right,
            strands="both" if right == 3 else "forward",
        )  # fmt: skip
        result = run(config, say=said.append)
        assert len({fields["DMLLR"] for fields in written(tmp_path / "o.vcf")}) == 1
        assert result.num_moved == 3 and any("3 records are not trimmed and left-aligned" in words for words in said)
    expected = by_hand(model, letters, first, letters[first - 1], letters[first - 1] + "AGAG", 40)
    assert float(written(tmp_path / "o.vcf")[0]["DMLLR"]) == pytest.approx(expected, abs=1e-3)


def test_a_letter_that_says_no_base_is_never_evidence(place, tmp_path):
    folder, _, letters = place
    excluded = {"A": "Y", "G": "Y", "C": "R", "T": "R"}[letters[99]]
    rows = [
        ("c1", 20, "n", letters[19], "N", "."), ("c1", 30, "inside", letters[29], letters[29] + "ANNC", "."),
        ("c1", 40, "placeholder", "N", "TATA", "."), ("c1", 50, "deletion", letters[49:60], "N", "."),
        ("c1", 60, "iupac", letters[59], "Y", "."),
    ]  # fmt: skip
    vcf = write_vcf(tmp_path / "v.vcf", rows)
    config = {"model": folder / "model", "genome": str(folder / "g.dna"), "right": 5}
    assert run(ScoreConfig(variants=vcf, out=tmp_path / "o.vcf", **config)).status_counts == {"ambiguous": 5}
    assert {fields["DMLLR"] for fields in written(tmp_path / "o.vcf")} == {"."}
    vcf = write_vcf(tmp_path / "w.vcf", [("c1", 100, "x", excluded, other(letters[99]), ".")])
    with pytest.raises(InputError, match=f"REF is {excluded}, the genome has {letters[99]}"):
        run(ScoreConfig(variants=vcf, out=tmp_path / "p.vcf", **config))


def test_records_on_contigs_that_are_not_there_are_no_mismatches(place, tmp_path):
    folder, _, letters = place
    rows = [("chr1", 5, "x", "A", "C", "."), ("c1", 100, "y", letters[99], other(letters[99]), ".")]
    config = {"model": folder / "model", "genome": str(folder / "g.dna"), "right": 5, "skip_mismatches": True}
    vcf = write_vcf(tmp_path / "v.vcf", rows)
    found = run(ScoreConfig(variants=vcf, out=tmp_path / "o.tsv", **config)).status_counts
    assert found == {"scored": 1, "no_contig": 1}
    vcf = write_vcf(tmp_path / "w.vcf", rows[:1])
    with pytest.raises(InputError, match="none is on a contig of"):
        run(ScoreConfig(variants=vcf, out=tmp_path / "p.tsv", **config))
    assert not (tmp_path / "p.tsv").exists()


def test_a_second_prefix_keeps_the_first_scores_and_the_header_says_how_they_were_made(place, tmp_path):
    pysam = pytest.importorskip("pysam")
    folder, _, letters = place
    vcf = write_vcf(tmp_path / "v.vcf", [("c1", 100, "x", letters[99], other(letters[99]), "AF=0.1")])
    config = {"model": folder / "model", "genome": str(folder / "g.dna")}
    run(ScoreConfig(variants=vcf, out=tmp_path / "a.vcf", right=5, command="dna-mamba score x", **config))
    run(ScoreConfig(variants=tmp_path / "a.vcf", out=tmp_path / "b.vcf", right=40, prefix="LONG", **config))
    run(ScoreConfig(variants=tmp_path / "b.vcf", out=tmp_path / "c.vcf", right=9, **config))
    (a,), (b,), (c,) = (written(tmp_path / f"{name}.vcf") for name in "abc")
    assert b["DMLLR"] == a["DMLLR"] and set(b) == {
        "AF",
        *(p + k for p in ("DM", "LONG") for k in ("LLR", "LEN", "STATUS")),
    }
    assert c["LONGLLR"] == b["LONGLLR"] and c["DMLLR"] != a["DMLLR"]
    header = read_vcf(tmp_path / "c.vcf").header
    made = [line for line in header if line.startswith("##dna-mamba=<ID=")]
    assert [line.split(",")[0] for line in made] == ["##dna-mamba=<ID=LONG", "##dna-mamba=<ID=DM"]
    for word in ("ModelSHA256=", "Version=", "Command=", "Convention="):
        assert all(word in line for line in made)
    assert sum(line.startswith("##INFO=<ID=DMLLR,") for line in header) == 1
    with pysam.VariantFile(str(tmp_path / "c.vcf")) as file:
        assert next(iter(file)).info["LONGLEN"] == (0,)
    with pytest.raises(InputError, match="--prefix 'a;b' must be letters"):
        ScoreConfig(variants=vcf, out=tmp_path / "d.vcf", prefix="a;b", **config)


@pytest.mark.parametrize(
    "alt, info", [("N", "DMLLR=7.5;Z=1"), ("<DEL>", "Z=1;DMSTATUS=x"), ("*", "DMLEN"), (".", "DMDIST=1")]
)
@pytest.mark.parametrize("header", ["", '##INFO=<ID={},Number=1,Type=Float,Description="of another tool">\n'])
def test_a_field_of_others_under_our_names_is_never_lost(alt, info, header, place, tmp_path, monkeypatch):
    folder, _, letters = place
    base = letters[99]
    name = next(field for field in info.split(";") if field.startswith("DM")).split("=")[0]
    text = (
        f"##fileformat=VCFv4.2\n{header.format(name)}#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        f"c1\t50\t.\t{letters[49]}\t{other(letters[49])}\t.\t.\tXDMLLR=1\nc1\t100\t.\t{base}\t{alt}\t.\t.\t{info}\n"
    )
    (tmp_path / "v.vcf").write_text(text)
    config = {"model": folder / "model", "genome": str(folder / "g.dna"), "variants": tmp_path / "v.vcf", "right": 5}
    run(ScoreConfig(out=tmp_path / "t.tsv", **config))  # which carries no INFO
    run(ScoreConfig(out=tmp_path / "p.vcf", prefix="OUR", **config))
    assert info in (tmp_path / "p.vcf").read_text()
    monkeypatch.setattr("dna_mamba.pipelines.score_variants._score", None)  # it is told before anything is scored
    with pytest.raises(InputError, match=f"field {name} .*choose another prefix"):
        run(ScoreConfig(out=tmp_path / "o.vcf", **config))
    assert not (tmp_path / "o.vcf").exists()


def test_a_field_of_others_beside_scores_of_an_earlier_run_is_never_lost(place, tmp_path):
    folder, _, letters = place
    vcf = write_vcf(tmp_path / "v.vcf", [("c1", 100, "x", letters[99], other(letters[99]), "AF=0.1")])
    config = {"model": folder / "model", "genome": str(folder / "g.dna"), "right": 5}
    run(ScoreConfig(variants=vcf, out=tmp_path / "a.vcf", prefix="DQ", **config))
    text = (tmp_path / "a.vcf").read_text().replace("AF=0.1;", "AF=0.1;DQDIST=99;")
    for added in ("", '##INFO=<ID=DQDIST,Number=1,Type=Float,Description="of another tool">\n'):
        (tmp_path / "b.vcf").write_text(text.replace("#CHROM", added + "#CHROM"))
        with pytest.raises(InputError, match="field DQDIST"):
            run(ScoreConfig(variants=tmp_path / "b.vcf", out=tmp_path / "c.vcf", prefix="DQ", **config))
    run(ScoreConfig(variants=tmp_path / "a.vcf", out=tmp_path / "c.vcf", prefix="DQ", **config))


def test_tables_have_one_schema_whatever_the_rows(place, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    folder, _, letters = place
    config = {"model": folder / "model", "genome": str(folder / "g.dna"), "right": 5}
    kinds = {
        "none": [],
        "stars": [("c1", 9, "x", letters[8], "*", ".")],
        "scored": [("c1", 100, "x", letters[99], other(letters[99]), ".")],
    }
    for name, rows in kinds.items():
        run(
            ScoreConfig(
                variants=write_vcf(tmp_path / f"{name}.vcf", rows),
                out=tmp_path / f"{name}.parquet",
                distance=True,
                **config,
            )
        )
    tables = [parquet.read_table(tmp_path / f"{name}.parquet") for name in kinds]
    assert len({str(table.schema) for table in tables}) == 1 and pa.concat_tables(tables).num_rows == 2
    assert [str(t) for t in tables[0].schema.types] == [
        "string",
        "int64",
        "string",
        "string",
        "string",
        "double",
        "int64",
        "double",
        "string",
    ]


GVCF = [
    "c1\t1\t.\tA\t<NON_REF>\t.\t.\tEND=9\tGT\t0/0", "c1\t2\t.\tC\t*\t.\t.\t.\tGT\t0/0", "c1\t3\t.\tG\t.\t.\t.\tEND=9;\tGT\t0/0",
    "c1\t4\t.\tG\t<DEL>\t.\t.\tDMLLR=3;X=1\tGT\t0/0", "c1\t5\t.\tG\t<A,B>\t.\t.\tEND=9", "c1\t6\tna\xefve\tG\t<DEL>\t.\t.\t",
    "c1\t7\t.\tR\t<*>\t.\t.\tEND=9\tGT\t0/0", "c1\t8\t.\tG\t<DUP:TANDEM>", "c1\t999999999\t.\tG\t<INV>\t.\t.\tX\r",
    "c1\t0\t.\tN\t.[c1:5[\t.\t.\tX", "c1\t11\t.\tG\t<DEL>,*\t.\t.\tX=DM\t.",
]  # fmt: skip


def test_blocks_write_what_record_by_record_would(place, tmp_path, monkeypatch):
    """Most of these are passed through in compiled code; the reference is each line taken apart and put together."""
    folder, _, _ = place
    body = "".join(line + "\n" for line in GVCF if "<A,B>" not in line).encode("latin-1")
    (tmp_path / "v.vcf").write_bytes(HEADER.encode() + body * 3)
    config = {"model": folder / "model", "genome": str(folder / "g.dna"), "variants": tmp_path / "v.vcf"}
    expected = []
    for line in body.decode("utf-8", "surrogateescape").splitlines() * 3:
        columns = (line.split("\t", 8) + ["."] * 8)[: max(8, line.count("\t") + 1 if line.count("\t") < 8 else 9)]
        old = [
            f
            for f in columns[7].split(";")
            if f not in ("", ".") and not f.startswith(("DMLLR=", "DMLEN=", "DMSTATUS="))
        ]
        statuses = [
            "star" if alt == "*" else "breakend" if "[" in alt else "symbolic"
            for alt in columns[4].split(",")
            if alt != "."
        ]
        dots = ",".join("." for _ in statuses)
        added = [f"DMLLR={dots};DMLEN={dots};DMSTATUS={','.join(statuses)}"] if statuses else []
        columns[7] = ";".join([*old, *added]) or "."
        expected.append("\t".join(columns))
    for piece in (40, 300, 1 << 21):
        monkeypatch.setattr("dna_mamba.data.variants.PIECE_BYTES", piece)
        run(ScoreConfig(out=tmp_path / "o.vcf", **config))
        given = (tmp_path / "o.vcf").read_bytes().decode("utf-8", "surrogateescape").splitlines()
        given = [line for line in given if not line.startswith("#")]
        # a record without a score whose INFO ends in ';' or is as it was keeps its text
        assert [line.replace("END=9;\t", "END=9\t") for line in given] == [
            line.replace("END=9;\t", "END=9\t") for line in expected
        ]


def test_the_context_is_warned_of_once_and_only_where_it_is_too_long(place, tmp_path):
    folder, model, letters = place
    save_pretrained(model, tmp_path / "m", {}, 150)
    vcf = write_vcf(tmp_path / "v.vcf", [r for r in records(letters) if r[2] in ("snv", "late")])
    config = {
        "model": tmp_path / "m",
        "genome": str(folder / "g.dna"),
        "variants": vcf,
        "out": tmp_path / "o.tsv",
        "right": 20,
    }
    said = []
    run(ScoreConfig(**config), warn=said.append)
    assert len(said) == 1 and "1 of 2 alleles are scored with more context than the 150" in said[0]
    run(ScoreConfig(left=100, **config), warn=said.append)
    assert len(said) == 1


def test_fields_whose_names_hold_ours_and_empty_parts_stay_as_they_are(place, tmp_path):
    folder, _, letters = place
    vcf = write_vcf(tmp_path / "v.vcf", [("c1", 100, "x", letters[99], other(letters[99]), "XDMLLR=3;;DMLLR2=4;A;")])
    run(
        ScoreConfig(variants=vcf, out=tmp_path / "o.vcf", model=folder / "model", genome=str(folder / "g.dna"), right=5)
    )
    info = (tmp_path / "o.vcf").read_text().splitlines()[-1].split("\t")[7]
    assert info.startswith("XDMLLR=3;;DMLLR2=4;A;DMLLR=")
