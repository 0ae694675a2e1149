"""What is fuzzed, and what must hold: our documented error or a right result, and limits on time and memory.

A target takes bytes. Any exception other than InputError is a finding, and so is a result that differs from what a second,
plain reading of the same bytes gives.
"""

import gzip
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors.torch import save

from dna_mamba.data.intervals import Interval, parse_region, read_bed
from dna_mamba.data.store.build import build
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.store.indexed import fetch_indexed
from dna_mamba.data.variants import read_vcf, with_info
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.mamba_ssm import import_checkpoint
from dna_mamba.model.checkpoints.native import from_pretrained, save_pretrained
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.config_files import load_yaml, parse_assignments
from dna_mamba.pipelines.embed import read_csv
from dna_mamba.pipelines.evaluate import find_model
from dna_mamba.pipelines.manifests import homologues_of_report, read_genome_manifest
from dna_mamba.pipelines.pretrain import PretrainConfig
from dna_mamba.training import checkpoint
from dna_mamba.values import read_config
from tests.bad_input.test_fasta import bgzip

MOST_SECONDS = 2.0
CORPUS = Path(__file__).with_name("corpus")
WRAPS = (lambda text: text, gzip.compress, bgzip)
"""The first byte of an input says how the rest is packed, so that mutations reach what is inside a compressed file."""


@contextmanager
def a_folder() -> Iterator[Path]:
    """Give a folder in memory where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def packed(data: bytes) -> tuple[bytes, bytes]:
    """Give the text of an input and the text as it is packed."""
    if not data:
        return b"", b""
    return data[1:], WRAPS[data[0] % len(WRAPS)](data[1:])


def plain_fasta(text: bytes) -> dict[str, str]:
    """Read a FASTA the obvious way."""
    found: dict[str, list[bytes]] = {}
    name = ""
    for line in text.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b">"):
            name = line[1:].decode("utf-8", "replace").split(maxsplit=1)[0]
            found[name] = []
        elif line:
            found[name].append(line.upper())
    return {name: "".join(c if c in "ACGT" else "N" for c in b"".join(some).decode()) for name, some in found.items()}


def fasta(data: bytes) -> None:
    """Pack a FASTA and read it back."""
    text, content = packed(data)
    with a_folder() as folder:
        (folder / "x.fa").write_bytes(content)
        try:
            store = build([folder / "x.fa"], folder / "x.dna")
        except InputError:
            assert sorted(path.name for path in folder.iterdir()) in (["x.fa"], [".x.dna.lock", "x.fa"])
            return
        if text.startswith((b"LOCUS", b"\x1f\x8b")):
            return  # read as GenBank, or packed twice over
        expected = plain_fasta(text)
        assert {c.name: c.length for c in store.manifest.contigs} == {
            name: len(some) for name, some in expected.items()
        }
        for name, letters in expected.items():
            assert store.fetch(Interval(name, 0, len(letters))) == letters


LETTERS = "ACGTTGCAACCGGTTNACGTACGTACGTTTTTGCGCGCGCATATATATATCCCC"
INDEXED = f">one first\n{LETTERS[:20]}\n{LETTERS[20:40]}\n{LETTERS[40:]}\n>two\nACGTA\nCG\n"


def fai(data: bytes) -> None:
    """Read a FASTA by an index of anybody's: right bases or none."""
    with a_folder() as folder:
        (folder / "x.fa").write_text(INDEXED)
        (folder / "x.fa.fai").write_bytes(data)
        for name, letters in (("one", LETTERS), ("two", "ACGTACG")):
            for start, end in ((0, len(letters)), (3, 5), (len(letters) - 1, len(letters))):
                try:
                    found = fetch_indexed(folder / "x.fa", Interval(name, start, end))
                except InputError:
                    continue
                assert found == letters[start:end]


BOM = b"\xef\xbb\xbf"


def bed(data: bytes) -> None:
    """Read a BED and a region."""
    _, content = packed(data)
    with a_folder() as folder:
        (folder / "x.bed").write_bytes(content)
        try:
            rows = read_bed(folder / "x.bed")
        except InputError:
            rows = []
        assert all(0 <= interval.start < interval.end and number >= 1 for number, interval, _ in rows)
    try:
        region = parse_region(data.decode("utf-8", "replace"), {"chr1": 10**7, "HLA:A": 50})
    except InputError:
        return
    assert 0 <= region.start < region.end


def vcf(data: bytes) -> None:
    """Read a VCF; what was read is what is written back."""
    text, content = packed(data)
    with a_folder() as folder:
        (folder / "x.vcf").write_bytes(content)
        try:
            file = read_vcf(folder / "x.vcf")
        except InputError:
            return
        if text.startswith(b"\x1f\x8b"):
            return
        lines = [line.rstrip("\r") for line in text.removeprefix(BOM).decode("utf-8", "surrogateescape").split("\n")]
        lines = lines[:-1] if not lines[-1] else lines
        assert list(file.header[:-1]) == lines[: len(file.header) - 1]
        for variant, line in zip(file.variants, lines[len(file.header) :], strict=True):
            assert list(variant.columns) == [*line.split("\t", 8), *"..."][: max(8, min(9, line.count("\t") + 1))]
            with_info(variant, [("DMLLR", "1")], frozenset({"DMLLR"}))


def manifest(data: bytes) -> None:
    """Read a manifest of labelled genomes, and an assembly report."""
    with a_folder() as folder:
        (folder / "x.yaml").write_bytes(data)
        (folder / "a.fa").write_text(">a\nACGT\n")
        try:
            read = read_genome_manifest(folder / "x.yaml")
        except InputError:
            pass
        else:
            names = [assembly.name for one in read.classes for assembly in one.assemblies]
            assert all("/" not in name and not name.startswith(".") for name in names)
    with suppress(InputError):
        homologues_of_report(data.decode("utf-8", "replace"), "report")


def config(data: bytes) -> None:
    """Read a configuration, and an assignment of the command line."""
    with a_folder() as folder:
        (folder / "x.yaml").write_bytes(data)
        try:
            values = load_yaml(folder / "x.yaml")
            read_config(PretrainConfig, values, "x.yaml")
        except InputError:
            pass
    with suppress(InputError):
        read_config(PretrainConfig, parse_assignments([data.decode("utf-8", "replace")]), "the options")


def table(data: bytes) -> None:
    """Read a table of sequences."""
    _, content = packed(data)
    with a_folder() as folder:
        (folder / "x.csv").write_bytes(content)
        with suppress(InputError):
            read_csv(folder / "x.csv")


_model: Path | None = None


def whole_model() -> Path:
    """Give the directory of a small model, made once."""
    global _model
    if _model is None:
        _model = Path(tempfile.mkdtemp())
        torch.manual_seed(0)
        save_pretrained(DnaMamba(BackboneConfig(pattern="M", width=16)), _model, {"train": "toy"})
    return _model


def model(data: bytes) -> None:
    """Load a model directory, one of whose files is anybody's; and the same as a checkpoint of others."""
    with a_folder() as folder:
        shutil.copytree(whole_model(), folder / "m")
        name = ("config.json", "model.safetensors", "pytorch_model.bin")[data[0] % 3 if data else 0]
        if name == "pytorch_model.bin":
            (folder / "m" / "model.safetensors").unlink()
            (folder / "m" / "config.json").write_text(json.dumps({"d_model": 16, "n_layer": 1, "vocab_size": 16}))
        (folder / "m" / name).write_bytes(data[1:])
        for read in (from_pretrained, import_checkpoint):
            with suppress(InputError):
                read(folder / "m")


def a_checkpoint(data: bytes) -> None:
    """Load a checkpoint, one of whose files is anybody's and whose list of hashes says so."""
    with a_folder() as folder:
        tensor = {"a": torch.ones(2)}
        state = checkpoint.Checkpoint(model=tensor, optimizer=tensor, rng=tensor, counters={"step": 3})
        path = checkpoint.save(folder, 3, state)
        names = ("counters.json", "model.safetensors", "rng.safetensors", "checksums.json")
        name = names[data[0] % 4 if data else 0]
        (path / name).write_bytes(data[1:])
        if name != "checksums.json" and data[:1] < b"\x80":
            sums = json.loads((path / "checksums.json").read_text())
            sums[name] = {"size": len(data) - 1, "sha256": hashlib.sha256(data[1:]).hexdigest()}
            (path / "checksums.json").write_text(json.dumps(sums))
        try:
            found = checkpoint.load(path)
        except InputError:
            return
        assert found.counters["step"] == 3


def store(data: bytes) -> None:
    """Open a store whose manifest is anybody's, with a checksum that says it is theirs."""
    with a_folder() as folder:
        (folder / "x.fa").write_text(">a\nACGTACGT\n")
        path = build([folder / "x.fa"], folder / "x.dna").path
        try:
            values = json.loads(data)
            values.pop("manifest_sha256", None)
            sums = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
            data = json.dumps(values | {"manifest_sha256": sums}).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass  # no JSON, or no table: as it is
        (path / "manifest.json").write_bytes(data)
        try:
            opened = GenomeStore.open(path)
        except InputError:
            return
        for contig in opened.manifest.contigs:
            assert len(opened.stored(contig.name, 0, contig.length)) == contig.length


def record(data: bytes) -> None:
    """Find a model beside a record of its run that is anybody's."""
    with a_folder() as folder:
        shutil.copytree(whole_model(), folder / "run" / "model")
        (folder / "run" / "run.json").write_bytes(data)
        with suppress(InputError):
            find_model(folder / "run")


def genbank(data: bytes) -> None:
    """Pack a GenBank file."""
    _, content = packed(data)
    with a_folder() as folder:
        (folder / "x.gb").write_bytes(content)
        with suppress(InputError):
            build([folder / "x.gb"], folder / "x.dna").verify()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "fasta": fasta,
    "fai": fai,
    "bed": bed,
    "vcf": vcf,
    "manifest": manifest,
    "config": config,
    "table": table,
    "model": model,
    "checkpoint": a_checkpoint,
    "store": store,
    "record": record,
    "genbank": genbank,
}


def check(target: Callable[[bytes], None], data: bytes) -> None:
    """Run a target within its limit of processor time."""
    began = time.process_time()
    target(data)
    assert time.process_time() - began < MOST_SECONDS * max(1.0, len(data) / 1e6), "it takes too long"


def write_corpus(folder: Path = CORPUS) -> None:
    """Write the seeds: small valid inputs of every kind, and some that were findings."""
    header = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    texts = {
        "fasta": [b">a first\nACGTN\nacgtR\n>b\r\nAC\r\n", b"\n\n>a\nACGT", b">a\tx\nAC\n\nGT\n", b">x\nACGU-\n", b";c\n>a\nA\n"],
        "fai": [b"one\t54\t11\t20\t21\ntwo\t7\t73\t5\t6\n", b"one\t54\t11\t19\t20\n", b"two\t7\t-1\t0\t0\n", b""],
        "bed": [b"# c\ntrack x\nchr1\t0\t10\tname\t0\t-\r\nchr2\t5\t6\n", b"chr1 1 2\n", b"chr1:1-1,000", b"a\t9\t8\n"],
        "vcf": [
            header + b"chr1\t10\t.\tA\tC,*,<DEL>,G]c:7]\t50\tPASS\tAF=0.1;DB\tGT\t0/1\n",
            header.replace(b"\n", b"\r\n"),
            header + b"c\t1\t.\tR\t.\t.\t.\t.\n",
            header + b"c\t1\t.\tA\t" + b"[" * 800 + b"<,T<c>,G.,.G,]c:1]G\t.\t.\t.\n",
        ],
        "manifest": [
            b"format_version: 1\nname: x\nvalid: ['1']\nclasses:\n- label: one\n  assemblies:\n  - {name: a, fasta: a.fa}\n"
            b"- label: two\n  assemblies:\n  - name: b\n    url: https://example.org/b.fa.gz\n    contigs:\n"
            b"    - {name: c, homologue: '4', verified: true}\n",
            b"# Organism name: Homo sapiens\n# Sequence-Name\tSequence-Role\tAssigned-Molecule\tGenBank-Accn\tRefSeq-Accn\n"
            b"1\tassembled-molecule\t1\tCM1\tNC_1\nchr2_hsa4\tx\tna\tCM2\tna\n",
        ],
        "config": [
            b"seed: 1\nmodel:\n  pattern: MM\n  width: 16\ntraining:\n  steps: 5\n  seq_len: 64\noptimizer:\n  peak_rate: 1e-3\n",
            b"data:\n  valid: [chr20:1-5]\n  policy: {n_weight: 0}\n", b"training.steps=5", b"optimizer.betas=[0.9, 0.95]",
            b"a: &a [x]\nb: *a\n", b"optimizer.peak_rate=" + b"9" * 400,
        ],
        "table": [b"name,sequence\na,ACGT\nb,\"ac\ngt\"\n", b"seq\nACGT\n", b"id,seq\n1,AC-\n"],
    }  # fmt: skip
    directory = whole_model()
    files = [(directory / name).read_bytes() for name in ("config.json", "model.safetensors")]
    small = save({"a": torch.ones(2)})
    torch.save({"a": torch.ones(2)}, directory / "t.bin")
    texts["model"] = [b"\0" + files[0], b"\1" + files[1], b"\2" + (directory / "t.bin").read_bytes(), b"\0{}"]
    (directory / "t.bin").unlink()
    contig = {
        "name": "a",
        "offset": 0,
        "length": 8,
        "num_a": 2,
        "num_c": 2,
        "num_g": 2,
        "num_t": 2,
        "num_n": 0,
        "num_other": 0,
    }
    source = {"path": "x.fa", "size": 12, "modified_ns": 1, "sha256": "0" * 64}
    whole = {
        "format_version": 1,
        "contigs": [contig | {"num_masked": 0}],
        "sources": [source],
        "bases_sha256": "0" * 64,
    }
    texts["store"] = [json.dumps(whole).encode(), b"{}"]
    parts = {"train": [["a", 0, 5]], "valid": [["a", 5, 6]], "test": []}
    genome = {"store": "x.dna", "sources": [source], "bases_sha256": "0" * 64}
    texts["record"] = [json.dumps({"command": "pretrain", "genome": genome, "split": parts}).encode(), b"[]"]
    texts["genbank"] = [
        b"LOCUS       AB000001                  12 bp    DNA     linear   UNK 01-JAN-1980\nDEFINITION  x\nACCESSION   AB000001\n"
        b"VERSION     AB000001.1\nFEATURES             Location/Qualifiers\nORIGIN\n        1 acgtnacgta cg\n//\n",
        b"LOCUS       A 4 bp\nORIGIN\n        1 acgt\n//\n",
    ]
    texts["checkpoint"] = [
        b'\0{"step": 3, "format_version": 1}',
        b"\1" + small,
        b"\2" + small,
        b"\3{}",
        b'\0{"step": "3"}',
    ]
    for name, seeds in texts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            variants = (
                [bytes([kind]) + seed for kind in range(3)]
                if name in ("fasta", "bed", "vcf", "table", "genbank")
                else [seed]
            )
            for kind, content in enumerate(variants):
                (folder / name / f"seed-{number}{'abc'[kind]}").write_bytes(content)


if __name__ == "__main__":
    write_corpus()
