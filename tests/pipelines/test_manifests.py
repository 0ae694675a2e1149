"""Manifests of labelled genomes: what they may say, what is fetched, and what is recorded."""

import gzip
import json

import pytest

from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.errors import InputError
from dna_mamba.pipelines import manifests
from dna_mamba.pipelines.manifests import SHIPPED, homologues_of_report, read_genome_manifest
from tests.conftest import dna_mamba
from tests.data.test_download import server  # noqa: F401 - a fixture

REPORT = """# Assembly name:  NHGRI_mGorGor1-v2.0_pri
# Organism name:  Gorilla gorilla gorilla (western lowland gorilla)
# Sequence-Name\tSequence-Role\tAssigned-Molecule\tMolecule-Type\tGenBank-Accn\tRelationship\tRefSeq-Accn\tUnit\tLength\tUCSC
chr3_pat_hsa4\tassembled-molecule\t3\tChromosome\tCM1.1\t=\tNC_3.1\tPrimary\t200\tna
chr11_mat_hsa2b\tassembled-molecule\t11\tChromosome\tCM2.1\t=\tNC_11.1\tPrimary\t200\tna
chr4_pat_hsa17x5\tassembled-molecule\t4\tChromosome\tCM3.1\t=\tNC_4.1\tPrimary\t200\tna
chrX_mat_hsaX\tassembled-molecule\tX\tChromosome\tCM4.1\t=\tNC_X.1\tPrimary\t200\tna
chrM\tassembled-molecule\tMT\tMitochondrion\tCM5.1\t=\tNC_M.1\tnon-nuclear\t16\tna
"""
HUMAN = """# Organism name:  Homo sapiens (human)
# Sequence-Name\tSequence-Role\tAssigned-Molecule\tMolecule-Type\tGenBank-Accn\tRelationship\tRefSeq-Accn\tUnit\tLength\tUCSC
1\tassembled-molecule\t1\tChromosome\tCP1.1\t=\tNC_060925.1\tPrimary\t200\tchr1
X\tassembled-molecule\tX\tChromosome\tCP2.1\t=\tNC_060947.1\tPrimary\t200\tchrX
MT\tassembled-molecule\tMT\tMitochondrion\tCP3.1\t=\tNC_012920.1\tnon-nuclear\t16\tchrM
scaffold_9\tunplaced-scaffold\tna\tna\tCP4.1\t=\tna\tPrimary\t16\tna
"""


def two_classes(url, **of_second):
    import yaml

    second = {"name": "b-1", "url": url, **of_second}
    classes = [
        {"label": "a", "assemblies": [{"name": "a-1", "fasta": "a.fa"}]},
        {"label": "b", "assemblies": [second]},
    ]
    return yaml.safe_dump({"format_version": 1, "name": "two", "classes": classes})


def test_homologues_come_from_the_hsa_labels_of_the_report():
    found = homologues_of_report(REPORT, "report")
    assert found["NC_3.1"] == found["CM1.1"] == "4"  # ape chromosome 3 is human 4
    assert found["NC_11.1"] == "2b" and found["NC_4.1"] == "17x5" and found["NC_X.1"] == "X"
    assert "NC_M.1" not in found
    assert homologues_of_report(HUMAN, "report") == {
        "NC_060925.1": "1", "CP1.1": "1", "NC_060947.1": "X", "CP2.1": "X"
    }  # fmt: skip
    with pytest.raises(InputError, match="no NCBI assembly report"):
        homologues_of_report("<html>", "report")
    with pytest.raises(InputError, match="names no human homologue"):
        homologues_of_report(REPORT.replace("hsa", "xyz"), "report")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_manifests_in_the_package_are_complete(name):
    manifest = read_genome_manifest(manifests.Path(name))
    assert len(manifest.classes) == 5
    for one in manifest.classes:
        for assembly in one.assemblies:
            number = assembly.accession[4:13]
            folder = f"/{assembly.accession[:3]}/{number[:3]}/{number[3:6]}/{number[6:]}/{assembly.accession}_{assembly.name}/"
            assert folder in assembly.url
            assert (assembly.report_url is not None) == (name == "great-apes")  # others have no hsa labels
            assert assembly.report_url is None or folder in assembly.report_url
            assert not assembly.tried and assembly.sha256 is None


def test_fetch_from_file_and_server_to_stores(server, write, tmp_path):  # noqa: F811
    write("a.fa", ">chr1\nACGTACGT\n")
    server.content = gzip.compress(b">NC_3.1\nTTTTACGT\n", mtime=0)
    server.mode = "cuts"
    path = write("m.yaml", two_classes(server.url, contigs=[{"name": "NC_3.1", "homologue": "4", "verified": True}]))
    done = dna_mamba("genome", "fetch", path, "--out", tmp_path / "here", "--json")
    assert done.returncode == 0, done.stderr
    assert "the manifest names no checksum; recorded SHA-256" in done.stderr
    found = json.loads(done.stdout)
    assert [f["label"] for f in found] == ["a", "b"] and found[1]["homologues"] == {"NC_3.1": "4"}
    assert GenomeStore.open(tmp_path / "here" / "b-1.dna").fetch(Interval("NC_3.1", 0, 8)) == "TTTTACGT"
    assert GenomeStore.open(tmp_path / "here" / "a-1.dna").fetch(Interval("chr1", 0, 8)) == "ACGTACGT"
    asked = len(server.asked)
    again = dna_mamba("genome", "fetch", path, "--out", tmp_path / "here", "--json")
    assert again.returncode == 0 and json.loads(again.stdout) == found and len(server.asked) == asked
    # another file under the same URL is not what was recorded
    (tmp_path / "here" / "b-1.fa.gz").unlink()
    server.content = gzip.compress(b">NC_3.1\nTTTTTTTT\n", mtime=0)
    refused = dna_mamba("genome", "fetch", path, "--out", tmp_path / "here")
    assert refused.returncode == 2 and "do not have the SHA-256" in refused.stderr
    assert GenomeStore.open(tmp_path / "here" / "b-1.dna").fetch(Interval("NC_3.1", 0, 8)) == "TTTTACGT"


def test_the_report_is_fetched_and_read(server, write, tmp_path):  # noqa: F811
    write("a.fa", ">chr1\nACGTACGT\n")
    server.content = REPORT.encode()
    manifest = read_genome_manifest(write("m.yaml", two_classes(server.url, report_url=server.url)))
    with pytest.raises(InputError):  # the same bytes are no FASTA
        manifests.fetch(manifest, tmp_path / "here", pause=0.01)
    assert (tmp_path / "here" / "b-1.report.txt").exists() and not (tmp_path / "here" / "b-1.dna").exists()


MISTAKES = {
    "unknown key": ("label: b", "lable: b", "did you mean 'label'"),
    "no label": ("  label: b\n", "", "lacks the key 'label'"),
    "missing file": ("fasta: a.fa", "fasta: z.fa", "z.fa does not exist"),
    "label twice": ("label: b", "label: a", "the label 'a' stands there twice"),
    "name twice": ("name: b-1", "name: a-1", "the assembly name 'a-1' stands there twice"),
    "path in a name": ("name: b-1", "name: ../../b", "must be letters, digits"),
    "other scheme": ("url: http", "url: ftp", "begins with https://"),
    "file url": ("url: http", "url: file", "begins with https://"),
    "both": ("name: b-1", "name: b-1\n    fasta: a.fa", "give either fasta or url"),
    "format": ("format_version: 1", "format_version: 2", "this version reads 1"),
    "checksum": ("name: b-1", "name: b-1\n    sha256: abc", "is not 64 hexadecimal digits"),
}


@pytest.mark.parametrize("old, new, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_a_manifest_is_told_in_one_line(old, new, words, write, tmp_path):
    write("a.fa", ">chr1\nACGT\n")
    text = two_classes("http://127.0.0.1:1/b.fa")
    assert old in text
    path = write("m.yaml", text.replace(old, new, 1))
    done = dna_mamba("genome", "fetch", path, "--out", tmp_path / "here")
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "here").exists()


def test_one_class_is_not_enough(write):
    path = write(
        "m.yaml",
        "format_version: 1\nname: one\nclasses: [{label: a, assemblies: [{name: a, url: 'https://x.org/a'}]}]\n",
    )
    with pytest.raises(InputError, match="1 classes; at least two"):
        read_genome_manifest(path)
    with pytest.raises(InputError, match="class a has no assembly"):
        read_genome_manifest(write("n.yaml", "format_version: 1\nname: n\nclasses: [{label: a, assemblies: []}]\n"))


def test_an_error_page_is_not_kept_as_a_genome(server, write, tmp_path):  # noqa: F811
    write("a.fa", ">chr1\nACGTACGT\n")
    manifest = read_genome_manifest(write("m.yaml", two_classes(server.url)))
    server.content = b"<html>try later</html>"
    with pytest.raises(InputError):
        manifests.fetch(manifest, tmp_path / "here", pause=0.01)
    server.content = gzip.compress(b">NC_3.1\nTTTTACGT\n", mtime=0)
    found = manifests.fetch(manifest, tmp_path / "here", pause=0.01)
    assert GenomeStore.open(found[1].store).fetch(Interval("NC_3.1", 0, 8)) == "TTTTACGT"


def test_an_error_page_is_not_kept_as_a_report(server, write, tmp_path):  # noqa: F811
    write("a.fa", ">chr1\nACGTACGT\n")
    write("b.fa", ">NC_3.1\nACGTACGT\n")
    text = two_classes(server.url).replace(f"    url: {server.url}", f"    fasta: b.fa\n    report_url: {server.url}")
    manifest = read_genome_manifest(write("m.yaml", text))
    server.content = b"<html>try later</html>"
    with pytest.raises(InputError, match="no NCBI assembly report"):
        manifests.fetch(manifest, tmp_path / "here", pause=0.01)
    server.content = REPORT.encode()
    said = []
    found = manifests.fetch(manifest, tmp_path / "here", pause=0.01, say=said.append)
    assert found[1].homologue_of["NC_3.1"] == "4" and any("checksum of its report" in words for words in said)


def test_another_url_is_fetched_anew(server, write, tmp_path):  # noqa: F811
    write("a.fa", ">chr1\nACGTACGT\n")
    server.content = gzip.compress(b">NC_3.1\nTTTTACGT\n", mtime=0)
    manifests.fetch(read_genome_manifest(write("m.yaml", two_classes(server.url))), tmp_path / "here", pause=0.01)
    server.content = gzip.compress(b">NC_3.2\nGGGGACGT\n", mtime=0)
    said = []
    manifest = read_genome_manifest(write("m.yaml", two_classes(server.url + "?version=2")))
    found = manifests.fetch(manifest, tmp_path / "here", pause=0.01, say=said.append)
    assert GenomeStore.open(found[1].store).fetch(Interval("NC_3.2", 0, 8)) == "GGGGACGT"
    assert any("came from another URL" in words for words in said)
    assert json.loads((tmp_path / "here" / "fetched.json").read_text())["b-1"]["url"].endswith("version=2")


def test_two_fetches_into_one_folder_do_not_meet(write, tmp_path):
    from filelock import FileLock

    write("a.fa", ">chr1\nACGTACGT\n")
    manifest = read_genome_manifest(write("m.yaml", two_classes("http://127.0.0.1:1/b.fa")))
    (tmp_path / "here").mkdir()
    with FileLock(tmp_path / "here" / "fetch.lock"), pytest.raises(InputError, match="another process is fetching"):
        manifests.fetch(manifest, tmp_path / "here", pause=0.01)
