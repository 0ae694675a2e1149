"""What is written: whole or absent, UTF-8, JSON that any reader takes, permissions that the umask leaves."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dna_mamba.files import WholeFile, json_text, write_json, write_text
from tests import conftest
from tests.conftest import classifier_from, dna_mamba, random_letters
from tests.zygote import REAL_PICTURES

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("dna_mamba", "pipelines", "kernels", "docs") for path in (ROOT / folder).rglob("*.py")]


def test_every_text_is_opened_with_an_encoding():
    """Else the locale decides, and a name that one machine writes another cannot read."""
    missing = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            named = {keyword.arg for keyword in node.keywords}
            modes = [one.value for one in node.args[1:2] if isinstance(one, ast.Constant)] if name == "open" else []
            variable = name == "open" and len(node.args) > 1 and not modes  # download.py: ab or wb
            binary = variable or any(isinstance(mode, str) and "b" in mode for mode in modes)
            built_in = name == "open" and isinstance(node.func, ast.Name) and not binary
            text = name == "read_text" or (name == "write_text" and isinstance(node.func, ast.Attribute))
            if (built_in or text) and "encoding" not in named:
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not missing


def test_json_knows_no_nan():
    values = {
        "a": float("nan"),
        "b": [float("inf"), 1.5, np.float64("nan")],
        "c": {"d": (-float("inf"), "x", None, True)},
    }
    assert json.loads(json_text(values), parse_constant=pytest.fail) == {
        "a": None, "b": [None, 1.5, None], "c": {"d": [None, "x", None, True]}
    }  # fmt: skip


def test_nobody_writes_json_past_the_one_place():
    # hashes are no files; checkpoints hold numbers that are not finite, and read them back
    allowed = {
        "pipelines/benchmark_vcf.py",
        "dna_mamba/files.py",
        "dna_mamba/training/checkpoint.py",
        "dna_mamba/data/store/genome.py",
    }
    for path in SOURCES:
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        if name in allowed or name.startswith("dna_mamba/pipelines"):
            continue
        for match in re.finditer(r"json\.dumps\(", text):
            line = text[text.rfind("\n", 0, match.start()) : text.find("\n", match.start())]
            assert "sort_keys=True" in line or "separators" in line or "_replace" in line or "write_bytes" in line, (
                f"{name}:{line}"
            )


@pytest.mark.parametrize(
    "mask, file_mode, folder_mode", [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_the_umask_decides_on_every_output(mask, file_mode, folder_mode, tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGTACGTAC\n")
    code = f"""
import os, sys
os.umask({mask})
from dna_mamba.cli import app
for words in (["embed", "human-4x64", "x.fa", "-o", "v.npz"], ["export", "human-4x64", "-o", "hf"],
              ["export", "human-4x64", "-o", "ssm", "--format", "mamba_ssm"], ["import", "hf", "-o", "own"],
              ["genome", "build", "x.fa", "--out", "x.dna"], ["generate", "human-4x64", "--length", "9", "-o", "g.fa"],
              ["embed", "human-4x64", "x.fa", "-o", "v.zarr"]):
    app(words, result_action="return_value")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    for path in tmp_path.rglob("*"):
        if path.name == "x.fa" or path.is_relative_to(tmp_path / "cache") or path.name.endswith(".lock"):
            continue
        expected = folder_mode if path.is_dir() else file_mode
        assert oct(path.stat().st_mode & 0o777) == oct(expected), path


def test_text_is_utf_8_and_what_came_as_bytes_leaves_as_bytes(tmp_path):
    write_text(tmp_path / "x", b"na\xefve \xe2\x84\xa2".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "x").read_bytes() == b"na\xefve \xe2\x84\xa2"
    write_json(tmp_path / "y", {"a": float("nan")})
    assert json.loads((tmp_path / "y").read_text()) == {"a": None}


def test_a_file_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), WholeFile(tmp_path / "new" / "x") as path:
        path.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_name_is_no_utf_8_is_no_reason_to_fail(tmp_path):
    folder = tmp_path / os.fsdecode(b"l\xe9t")
    folder.mkdir()
    (folder / "x.fa").write_text(">a\nACGTACGTAC\n")
    (folder / "v.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\na\t3\t.\tG\tT\n")
    vcf, fasta = folder / "v.vcf", folder / "x.fa"
    words = [
        ["score", "human-4x64", vcf, "--genome", fasta, "-o", folder / "o.parquet"],
        ["score", "human-4x64", vcf, "--genome", fasta, "-o", folder / "o.vcf.gz"],
        ["embed", "human-4x64", fasta, "-o", folder / "e.parquet"],
        ["genome", "show", fasta, "a:1-3"],
    ]
    code = "import os\nfrom dna_mamba.cli import app\n" + "".join(
        f"app([os.fsdecode(word) for word in {[os.fsencode(word) for word in some]}], result_action='return_value')\n"
        for some in words
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0 and b"ACG" in done.stdout, done.stderr
    assert all((folder / name).stat().st_size for name in ("o.parquet", "o.vcf.gz", "e.parquet"))


def test_a_name_beyond_the_locale_is_no_reason_to_fail(tmp_path):
    (tmp_path / "v.vcf").write_bytes(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\na\t3\t™é\tG\tT\t.\t.\tX=™\n".encode()
        + b"a\t4\t\xe9\tT\tC\t.\t.\t.\n"
    )
    (tmp_path / "x.fa").write_text(">a\nACGTACGTAC\n")
    locale = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["score", "human-4x64", "v.vcf", "--genome", "x.fa", "-o"]
    for out in ("o™.vcf", "o.tsv"):
        done = subprocess.run(
            [sys.executable, "-m", "dna_mamba.cli", *words, out],
            cwd=tmp_path,
            capture_output=True,
            env=os.environ | locale,
        )
        assert done.returncode == 0, done.stderr
    content = (tmp_path / "o™.vcf").read_bytes()
    assert "™é\tG\tT\t.\t.\tX=™;DMLLR=".encode() in content and b"a\t4\t\xe9\tT\tC" in content
    assert b"\xe9\tT\tC" in (tmp_path / "o.tsv").read_bytes()


def test_evaluate_prints_json_that_any_reader_takes(tmp_path):
    done = dna_mamba(
        "evaluate",
        "human-4x64",
        "--genome",
        "demo",
        "--region",
        "chr20:9000001-9003000",
        "--json",
        "--out",
        "o",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, (tmp_path / "o" / "results.json").read_text()):
        assert json.loads(text, parse_constant=pytest.fail)["after_n"]["bits_per_base"] is None
    rows = (tmp_path / "o" / "context.csv").read_text().splitlines()
    assert rows[0] == "first,last,bases,bits_per_base,low,high" and "nan" not in "".join(rows)


WRITERS = {
    "embed npz": ("embed human-4x64 x.dna --pool none -o v.npz", "v.npz"),
    "embed parquet": ("embed human-4x64 x.dna --pool none -o v.parquet", "v.parquet"),
    "embed h5ad": ("embed human-4x64 x.dna --pool none -o v.h5ad", "v.h5ad"),
    "embed zarr": ("embed human-4x64 x.dna --pool none -o v.zarr", "v.zarr"),
    "score vcf": ("score human-4x64 v.vcf --genome x.dna -o s.vcf", "s.vcf"),
    "score vcf.gz": ("score human-4x64 v.vcf --genome x.dna -o s.vcf.gz", "s.vcf.gz"),
    "score tsv": ("score human-4x64 v.vcf --genome x.dna -o s.tsv", "s.tsv"),
    "score parquet": ("score human-4x64 v.vcf --genome x.dna -o s.parquet", "s.parquet"),
    "mutate tsv": ("mutate human-4x64 --genome x.dna --region a:1-90 -o m.tsv", "m.tsv"),
    "mutate parquet": ("mutate human-4x64 --genome x.dna --region a:1-90 -o m.parquet", "m.parquet"),
    "mutate png": ("mutate human-4x64 --genome x.dna --region a:1-90 --picture m.png", "m.png"),
    "track bw": ("track human-4x64 --genome x.dna -o t.bw", "t.bw"),
    "track png": ("track human-4x64 --genome x.dna --picture t.png", "t.png"),
    "generate": ("generate human-4x64 --length 3000 -o g.fa", "g.fa"),
    "classify": ("classify c x.dna --window 20 -o c.tsv", "c.tsv"),
    "evaluate": ("evaluate human-4x64 --genome x.dna --region a:1-900 --out e", "e"),
    "export transformers": ("export human-4x64 -o hf", "hf"),
    "export mamba_ssm": ("export human-4x64 --format mamba_ssm -o ssm", "ssm"),
    "import": ("import exported -o own", "own"),
    "genome build": ("genome build x.fa --out g.dna", "g.dna"),
    "simulate": ("simulate apes --genome x.dna --diagnostics off --contig-bases 1000 --out apes", "apes"),
}
"""Commands and the one thing that each writes, of more than LARGEST bytes."""
LARGEST = 1500
LIMITED = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as it does on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, ({LARGEST}, {LARGEST}))
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    from dna_mamba.model.checkpoints.native import from_pretrained, save_sequence_model, shipped

    folder = tmp_path_factory.mktemp("desk")
    (folder / "x.fa").write_text(f">a\n{random_letters(9000)}\n")
    letters = (folder / "x.fa").read_text().split("\n")[1]
    rows = [f"a\t{n + 1}\t.\t{letters[n]}\t{'C' if letters[n] != 'C' else 'G'}" for n in range(10, 8000, 40)]
    (folder / "v.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n" + "\n".join(rows) + "\n")
    model, _ = from_pretrained(shipped("human-4x64"))
    save_sequence_model(classifier_from(model, ("p", "q"), "mean"), folder / "c", {})
    assert dna_mamba("export", "human-4x64", "-o", "exported", cwd=folder).returncode == 0
    assert dna_mamba("genome", "build", "x.fa", "--out", "x.dna", cwd=folder).returncode == 0
    return folder


@pytest.mark.parametrize("command, out", WRITERS.values(), ids=list(WRITERS))
def test_every_writer_on_a_full_disk_leaves_what_was_there(command, out, desk):
    words = f"{command} --device cpu".split() if command.split()[0] in READ else command.split()
    before = sorted(path for path in desk.rglob("*") if "cache" not in path.parts)
    done = conftest._zygote().completed(*words, cwd=desk, code=REAL_PICTURES + LIMITED, **os.environ)
    assert done.returncode == 2, (done.returncode, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("dna-mamba: ") and out in last and "Traceback" not in done.stderr, done.stderr
    left = [path for path in sorted(desk.rglob("*")) if "cache" not in path.parts and path not in before]
    for path in left:  # what embedding has computed is kept beside the output, whole, so that it can go on
        assert path.relative_to(desk).parts[0] == f".{out}.unfinished", path
    for path in left:
        if path.is_file():
            path.unlink()
    whole = conftest._zygote().completed(*words, cwd=desk, code=REAL_PICTURES, **os.environ)
    assert whole.returncode == 0, whole.stderr
    found = [desk / out] if (desk / out).is_file() else [p for p in (desk / out).rglob("*") if p.is_file()]
    assert max(path.stat().st_size for path in found) > LARGEST  # so the limit was met


READ = ("embed", "score", "mutate", "track", "generate", "classify", "evaluate")
