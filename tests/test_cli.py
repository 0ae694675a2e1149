"""The command line: documented completely, quick to start, and plain about mistakes."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest

from dna_mamba.cli import app, main
from tests.conftest import ROOT, dna_mamba, random_letters

COMMANDS = [
    ("pretrain",),
    ("plan",),
    ("evaluate",),
    ("finetune", "species"),
    ("classify",),
    ("embed",),
    ("score",),
    ("mutate",),
    ("track",),
    ("generate",),
    ("import",),
    ("export",),
    ("simulate", "apes"),
    ("doctor",),
    ("genome", "build"),
    ("genome", "verify"),
    ("genome", "show"),
    ("genome", "audit"),
    ("genome", "fetch"),
    ("bench", "scan"),
    *(("bench", what) for what in ("conv", "norm", "loss", "step", "block", "train")),
    ("bench", "species"),
    ("bench", "score"),
    ("bench", "genome"),
    ("bench", "vcf"),
]


GROUPS = ("genome", "bench", "finetune", "simulate")


def help_of(command):
    return dna_mamba(*command, "--help", COLUMNS="100").stdout


def test_the_list_of_commands_is_complete():
    found = [(name,) for name in app if not name.startswith("-") and name not in GROUPS]
    found += [(group, name) for group in GROUPS for name in app[group] if not name.startswith("-")]
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_is_documented_in_help_and_docs(command):
    text = help_of(command)
    manual = (ROOT / "docs" / "commands.md").read_text()
    section = manual.split(f"## dna-mamba {' '.join(command)}\n", 1)[1].split("\n## ", 1)[0]
    options = set(re.findall(r"--[a-z][a-z-]*", text)) - {"--help", "--version"}
    assert options or command == ("genome", "verify")
    for option in options:
        assert f"`{option}" in section, f"{option} is not in docs/commands.md under dna-mamba {' '.join(command)}"
    assert set(re.findall(r"`(--[a-z][a-z-]*)", section)) <= options


def test_the_page_of_commands_is_what_the_command_line_says():
    """Defaults and what is required with it; python docs/make_commands.py writes it anew."""
    import runpy

    made = runpy.run_path(str(ROOT / "docs" / "make_commands.py"))["text"]()
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert page == made
    assert page.count("**[required]**") > 20 and page.count("*[default: ") > 47


def test_help_takes_under_half_a_second():
    # of processor time, which other work on the machine does not lengthen
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "dna_mamba.cli", "--help"], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_version_says_what_it_computes_with():
    import torch

    said = dna_mamba("--version").stdout
    assert f"torch  {torch.__version__}\n" in said and "CUDA   " in said
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    assert f"GPU    {', '.join(gpus) or 'none'}" in said


def test_bash_completes_commands_and_options(tmp_path):
    words = [sys.executable, "-m", "dna_mamba.cli", "--install-completion"]
    bash = ["bash", "-c", '"$@"; true', "bash", *words]  # the shell that it is started from says which one to write for
    (tmp_path / ".bashrc").write_text("alias mine=ls")  # without a line end
    for _ in range(2):
        subprocess.run(bash, cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)}, check=True, capture_output=True)
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert lines[0] == "alias mine=ls" and sum("completions/dna-mamba" in line for line in lines) == 1, lines
    script = next(path for path in tmp_path.rglob("dna-mamba") if path.is_file())
    assert str(script) in (tmp_path / ".bashrc").read_text()
    ask = f"""
source {script}
handler=$(complete -p dna-mamba | sed -n 's/.*-F \\([^ ]*\\).*/\\1/p')
for line in "pretr" "finetune spec" "embed --poo"; do
  COMP_WORDS=(dna-mamba $line); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
  $handler dna-mamba "${{COMP_WORDS[$COMP_CWORD]}}" "${{COMP_WORDS[$((COMP_CWORD - 1))]}}"
  echo "${{COMPREPLY[@]}}"
done
"""
    said = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    assert said == ["pretrain", "species", "--pool"]


@pytest.fixture
def fasta(write):
    return write("g.fa", f">chr1\n{random_letters(20_000)}\n")


MISTAKES = {
    "unknown command": (["pretrian"], "pretrian"),
    "unknown option": (["pretrain", "--stepz", "5"], "--steps"),
    "no number": (["pretrain", "--steps", "many"], "many"),
    "missing genome": (["pretrain", "--genome", "nowhere.fa"], "nowhere.fa does not exist"),
    "seq-len 0": (["pretrain", "--seq-len", "0"], "seq-len 0 is too short"),
    "seq-len negative": (["pretrain", "--seq-len=-5"], "seq-len -5 is too short"),
    "seq-len 1": (["pretrain", "--seq-len", "1"], "seq-len 1 is too short"),
    "seq-len too long": (
        ["pretrain", "--genome", "{fasta}", "--seq-len", "30000", "--length-warmup", "none"],
        "take --seq-len 16000 or less",
    ),
    "too few steps": (["pretrain", "--seq-len", "8192", "--steps", "2"], "2 steps are too few for the 4 stages"),
    "unknown preset": (["pretrain", "--preset", "mambo"], "did you mean 'mamba'"),
    "unknown pattern": (["pretrain", "--pattern", "MQ"], "'Q' stands for no layer"),
    "bad model": (["pretrain", "--model", "big"], "'big' is not blocks x width"),
    "unknown key": (["pretrain", "--set", "training.stepss=5"], "did you mean 'steps'"),
    "unknown warm-up": (["pretrain", "--length-warmup", "slow"], "length warm-up 'slow' is unknown"),
    "unknown rule": (["pretrain", "--window-rule", "tiles"], "did you mean 'tile'"),
    "split and regions": (["pretrain", "--split", "x.bed", "--valid", "chr20"], "exclude each other"),
    "region outside": (["pretrain", "--valid", "chr20:9000001-90000000"], "ends past chr20, which has 10,000,000"),
    "other naming": (["pretrain", "--valid", "20:9000001-9100000"], "did you mean 'chr20'"),
    "file as out": (["pretrain", "--out", "{fasta}"], "is a file; choose a directory"),
    "resume without out": (["pretrain", "--resume"], "--resume needs --out"),
    "resume nothing": (["pretrain", "--resume", "--out", "nothing"], "holds no run to go on with"),
    "no GPU": (["pretrain", "--device", "cuda"], "torch sees no GPU"),
    "region without digits": (["pretrain", "--valid", "chr20:1-,"], "a region is CONTIG:START-END"),
    "contig by another name": (["pretrain", "--valid", "20"], "did you mean 'chr20'"),
    "nothing to validate on": (["pretrain", "--valid", "chr20:9000001-9000001"], "the valid part has no base to score"),
    "validation of N": (["pretrain", "--valid", "chr20:1-5000"], "the valid part has no base to score"),
    "workers": (["pretrain", "--num-workers=-1"], "num_workers -1 must lie between"),
    "betas": (["pretrain", "--set", "optimizer.betas=[1.5,2]"], "betas [1.5, 2.0] must lie in [0, 1)"),
    "Markov order": (["pretrain", "--set", "evaluation.markov_max_order=99"], "must lie between -1 and 12"),
    "weight decay": (["pretrain", "--set", "optimizer.weight_decay=.inf"], "weight_decay inf"),
    "max-n": (["pretrain", "--max-n", "5"], "max_n 5.0 must lie between 0 and 1"),
    "huge model": (["pretrain", "--model", "9999999x9"], "is not blocks x width"),
    "huge width": (["pretrain", "--set", "model.width=1000000000"], "width 1000000000 must lie between"),
    "huge length": (["pretrain", "--seq-len", "99999999999999999999999"], "longer than any chromosome"),
    "deep YAML": (["pretrain", "--set", "seed=" + "[" * 3000], "is no valid YAML"),
    "key twice": (["pretrain", "--config", "{twice}"], "stands there twice"),
    "device of evaluate": (["evaluate", "x", "--device", "tpu"], "device 'tpu' is unknown"),
    "resume and overwrite": (["pretrain", "--resume", "--overwrite", "--out", "x"], "give one of them"),
    "empty out": (["pretrain", "--out", ""], "--out needs the name"),
    "no model": (["evaluate", "nothing"], "neither a run with a model nor a model directory"),
    "no store": (["genome", "verify", "nothing"], "is no genome store"),
    "protein": (["genome", "build", "{protein}", "--out", "p.dna"], "is this a protein file?"),
    "bench shape": (["bench", "conv", "--shape", "1,2"], "is not BATCH,CHANNELS,LENGTH"),
    "bench device": (["bench", "block", "--device", "tpu"], "device 'tpu'"),
    "bench scan device": (["bench", "scan", "--device", "tpu"], "device 'tpu'"),
    "bench precision on a CPU": (["bench", "scan", "--device", "cpu", "--precision", "bf16"], "timed in fp32"),
    "bench two shapes on a CPU": (
        ["bench", "scan", "--device", "cpu", "--shape", "1,8,8", "1,8,9"],
        "one shape at a time",
    ),
    "bench alone on a CPU": (["bench", "scan", "--device", "cpu", "--alone"], "on a CPU the two implementations"),
    "bench states": (["bench", "block", "--device", "cpu", "--states", "65"], "take 1 to 64"),
    "plan for what": (["plan", "--gpu", "A1"], "choose H100 or H200"),
    "plan for no GPU": (["plan", "--gpus", "2"], "add --gpu H100"),
    "plan for none": (["plan", "--gpu", "H200", "--gpus", "0"], "must be positive"),
    "piece": (["pretrain", "--piece-len", "1k"], "--piece-len '1k' must be a number of bases or auto"),
    "short piece": (["pretrain", "--piece-len", "3"], "piece_bases 3 must lie between 16"),
    "no piece": (["pretrain", "--piece-len", "0"], "piece_bases 0 must lie between 16"),
    "endless piece": (["pretrain", "--piece-len", "9" * 23], "is longer than any sequence"),
    "bench no piece": (["bench", "train", "--device", "cpu", "--piece-len", "0"], "must lie between 16"),
    "bench layers": (
        ["bench", "train", "--piece-len", "64", "--recomputed-layers=-3"],
        "recomputed layers not below 0",
    ),
    "bench step": (["bench", "train", "--bases-per-step", "9" * 20], "bases per step between 1 and"),
    "plan for a CPU": (["plan", "--gpu", "H200", "--set", "device=cpu"], "leave device 'cpu' out"),
    "implementation": (
        ["pretrain", "--device", "cpu", "--set", "implementation=tritn"],
        "implementation 'tritn' is unknown",
    ),
    "cpu kernels elsewhere": (
        ["pretrain", "--device", "cpu", "--set", "implementation=triton"],
        "runs on --device cuda alone",
    ),
    "no manifest": (["genome", "fetch", "great-ape"], "did you mean"),
    "show outside": (["genome", "show", "{fasta}", "chr1:1-30000"], "ends past chr1, which has 20,000 bases"),
}


@pytest.mark.parametrize("arguments, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line_with_exit_code_2(
    fasta, write, tmp_path, tmp_path_factory, monkeypatch, capfd, arguments, words
):
    protein, twice = write("p.fa", ">p\nMEFLIK\n"), write("twice.yaml", "seed: 1\nseed: 2\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    filled = [a.format(fasta=fasta, protein=protein, twice=twice) for a in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNA_MAMBA_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # which tests of kernels set
    monkeypatch.setattr(sys, "argv", ["dna-mamba", *filled])
    with pytest.raises(SystemExit) as stopped:
        main()
    stderr = capfd.readouterr().err
    assert stopped.value.code == 2, stderr
    assert len(stderr.strip().splitlines()) == 1 and words in stderr, stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "something was left behind"


def test_a_run_directory_is_never_overwritten_unasked(fasta, tmp_path):
    tiny = [
        "--genome",
        fasta,
        "--model",
        "1x16",
        "--seq-len",
        "64",
        "--steps",
        "2",
        "--set",
        "training.bases_per_step=64",
    ]
    tiny += ["evaluation.markov_max_order=0"]
    first = dna_mamba("pretrain", *tiny, "--out", "run", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    losses = (tmp_path / "run" / "metrics.csv").read_bytes()
    refused = dna_mamba("pretrain", *tiny, "--out", "run", "--seed", "1", cwd=tmp_path)
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == losses
    replaced = dna_mamba("pretrain", *tiny, "--out", "run", "--seed", "1", "--overwrite", cwd=tmp_path)
    assert replaced.returncode == 0 and (tmp_path / "run" / "metrics.csv").read_bytes() != losses
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("x")
    refused = dna_mamba("pretrain", *tiny, "--out", "thesis", "--overwrite", cwd=tmp_path)
    assert refused.returncode == 2 and (tmp_path / "thesis" / "chapter").exists()


def test_every_documented_command_runs(fasta, tmp_path):
    def run(*arguments):
        done = dna_mamba(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "1 contigs, 20,000 bases" in run("genome", "build", fasta, "--out", "g.dna")
    assert "SHA-256 matches" in run("genome", "verify", "g.dna")
    letters = fasta.read_text().split("\n")[1]
    assert run("genome", "show", "g.dna", "chr1:11-20") == f">chr1:11-20\n{letters[10:20]}\n"
    assert "shared by training windows and test: 0" in run("genome", "audit", "g.dna", "--seq-len", "512")
    assert "ok    torch" in run("doctor")
    tiny = ["--genome", "g.dna", "--model", "1x16", "--seq-len", "64", "--steps", "4", "--out", "run"]
    tiny += ["--set", "training.bases_per_step=256", "evaluation.markov_max_order=2"]
    assert "4 steps of 4 x 64 bases" in run("pretrain", *tiny, "--dry-run")
    assert "seq_len: 64" in run("pretrain", *tiny, "--print-config")
    assert "lowest:" in run("pretrain", *tiny)
    report = run("evaluate", "run", "--window", "128", "--out", "report")
    assert "all of A, C, G, T" in report and "1,999" in report  # the test part has 2,000 bases
    assert (tmp_path / "report" / "context.png").exists()
    assert '"bits_per_base"' in run("evaluate", "run/model", "--region", "chr1:1-500", "--json")
    assert "times naive" in run("bench", "scan", "--shape", "1,16,64", "--repeats", "1", "--json")
    for what in ("conv", "norm", "loss", "step", "block"):
        rows = json.loads(run("bench", what, "--repeats", "1", "--json"))["rows"]
        times = [row["ms a step" if what == "step" else "forward+backward ms"] for row in rows]
        assert times and all(time == "too slow" or time > 0 for time in times)  # which a busy machine may be
    assert "pyfaidx" in run("bench", "genome", "--megabases", "4", "--json")
