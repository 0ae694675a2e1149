"""Variant scores through files: what is written can be read by others, order and fields stay, faults are named."""

import csv
import errno
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from dna_mamba.data.build import build
from dna_mamba.data.unpack import BGZF_END
from dna_mamba.data.variants import read_vcf
from dna_mamba.data.vocabulary import tokens_of
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import save_pretrained
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.score_variants import ScoreConfig, run

HEADER = '##fileformat=VCFv4.2\n##INFO=<ID=AF,Number=A,Type=Float,Description="x">\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS\n'


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
        r"line 5 \(c1:100\): REF is ., the genome has .; 1 of 8 records \(12.5%\) do not fit .*\(is it another assembly"
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
        '##INFO=<ID=DMDIST,Number=A,Type=Float,Description="x">',
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
