"""Hashes of what the commands compute on this machine: nothing may differ before and after a change that moves code.

python -m tests.same_bits before.json; then, changed: python -m tests.same_bits after.json --against before.json
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WINDOWS = "chr20:9000001-9002000"
TRAINING = (
    "pretrain", "--device", "cpu", "--steps", "40", "--set", "evaluation.markov_max_order=3", "evaluation.valid_bases=20000",
    "evaluation.test_bases=20000", "training.validate_every_steps=20",
)  # fmt: skip
SPECIES = (
    "finetune", "species", "--manifest", "m.yaml", "--seq-len", "128", "256", "--split-by", "contig", "--valid", "c1", "--test",
    "c2", "--device", "cpu", "--set", "recipe.steps_per_epoch=10", "recipe.epochs=2", "recipe.batch=4", "model.pattern=M",
    "model.width=16", "evaluation.valid_windows=20", "evaluation.test_windows=20", "evaluation.likelihood_ratio.steps=5",
)  # fmt: skip


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _of_tensors(path: Path) -> str:
    from safetensors.numpy import load_file

    return _sha256(*(name.encode() + array.tobytes() for name, array in sorted(load_file(path).items())))


def _of_columns(path: Path, *names: str) -> str:
    with open(path, encoding="utf-8") as file:
        return _sha256(*(",".join(row[name] for name in names).encode() for row in csv.DictReader(file)))


def _of_arrays(path: Path) -> str:
    with np.load(path) as found:
        return _sha256(*(name.encode() + found[name].tobytes() for name in sorted(found.files)))


def _of_lines(path: Path) -> str:
    lines = path.read_bytes().splitlines()
    return _sha256(*(line for line in lines if not line.startswith(b"##")))


def _of_json(text: str, *keys: str) -> str:
    values = json.loads(text)
    return _sha256(*(json.dumps(values[key], sort_keys=True).encode() for key in keys))


def _run(*words: object) -> str:
    """Run a command in this process; give what it printed."""
    from dna_mamba.cli import app

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        app(list(map(str, words)), result_action="return_value")
    return said.getvalue()


def _training() -> Iterator[tuple[str, str]]:
    for name, more in (
        ("whole", ()),
        ("pieces", ("--piece-len", "256")),
        ("start token", ("--set", "data.policy.start_token=true")),
    ):
        _run(*TRAINING, "--out", name, *more)
        yield (
            f"losses, {name}",
            _of_columns(Path(name, "metrics.csv"), "step", "train_loss", "gradient_norm", "valid_bits_per_base"),
        )
        yield f"weights, {name}", _of_tensors(Path(name, "model-last", "model.safetensors"))
        yield f"results, {name}", _of_json(Path(name, "results.json").read_text(), "scores", "table", "markov")
    _run(*TRAINING, "--out", "resumed", "--set", "training.checkpoint_every_steps=10", "training.keep_checkpoints=10")
    for late in ("step-00000030", "step-00000040"):
        Path("resumed", "checkpoints", late).rename(late)
    Path("resumed", "results.json").unlink()
    _run("pretrain", "--out", "resumed", "--resume")
    yield "weights, resumed", _of_tensors(Path("resumed", "model-last", "model.safetensors"))


def _readings() -> Iterator[tuple[str, str]]:
    from dna_mamba.data.examples import giab_variants
    from dna_mamba.data.variants import read_vcf

    file = read_vcf(giab_variants())
    mixed = [v for v in file.variants if len(v.ref) > 1 or any(len(alt) > 1 for alt in v.alts)][:50]
    some = sorted([*mixed, *file.variants[:50]], key=lambda v: v.start)
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT", *("\t".join(v.columns[:5]) for v in some)]
    Path("v.vcf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole = Path("x.fa").read_text(encoding="utf-8").split("\n")[-2]
    own = [
        f"r2500\t{place + 1}\t.\t{whole[place]}\t{'C' if whole[place] == 'A' else 'AG'}" for place in range(0, 2500, 99)
    ]
    Path("own.vcf").write_text("\n".join([*lines[:2], *own]) + "\n", encoding="utf-8")
    for name, words in {
        "forward": ("v.vcf", "--genome", "demo", "--left", "300"),
        "both": ("v.vcf", "--genome", "demo", "--left", "300", "--strands", "both", "--distance"),
        "full context": ("own.vcf", "--genome", "x.fa"),
    }.items():
        _run("score", "human-4x64", *words, "-o", "o.vcf", "--device", "cpu")
        yield f"score, {name}", _of_lines(Path("o.vcf"))
    for pool in ("mean", "last", "max", "window:100", "none"):
        for strands in ("forward", "both"):
            out = f"{pool.replace(':', '')}-{strands}.npz"
            _run("embed", "human-4x64", "x.fa", "--pool", pool, "--strands", strands, "-o", out, "--device", "cpu")
            yield f"embed, {pool}, {strands}", _of_arrays(Path(out))
    _run("embed", "human-4x64", "x.fa", "--layer", "2", "-o", "layer.npz", "--device", "cpu")
    yield "embed, layer 2", _of_arrays(Path("layer.npz"))
    for name, more in (("sampled", ()), ("top-k", ("--top-k", "2")), ("greedy", ("--top-k", "1"))):
        _run(
            "generate",
            "human-4x64",
            "--prompt",
            "ACGTNACC",
            "--length",
            "300",
            "--num",
            "2",
            *more,
            "-o",
            "g.fa",
            "--device",
            "cpu",
        )
        yield f"generate, {name}", _sha256(Path("g.fa").read_bytes())
    _run("mutate", "human-4x64", "--genome", "demo", "--region", "chr20:9000001-9000040", "--left", "500", "--strands", "both",
         "-o", "m.tsv", "--device", "cpu")  # fmt: skip
    yield "mutate", _sha256(Path("m.tsv").read_bytes())
    _run(
        "track", "human-4x64", "--genome", "demo", "--region", WINDOWS, "--left", "700", "-o", "t.bw", "--device", "cpu"
    )
    import pyBigWig

    with pyBigWig.open("t.bw") as bigwig:
        yield "track", _sha256(str(bigwig.intervals("chr20")).encode())
    said = _run(
        "evaluate",
        "human-4x64",
        "--genome",
        "demo",
        "--region",
        WINDOWS,
        "--window",
        "512",
        "--json",
        "--device",
        "cpu",
    )
    yield "evaluate", _of_json(said, *(key for key in sorted(json.loads(said)) if key not in ("seconds", "model")))


def _species() -> Iterator[tuple[str, str]]:
    generator = np.random.default_rng(0)
    for label in ("one", "two"):
        records = [f">c{i}\n{''.join(generator.choice(list('ACGT'), 9000))}\n" for i in range(3)]
        Path(f"{label}.fa").write_text("".join(records), encoding="utf-8")
    classes = [{"label": label, "assemblies": [{"name": label, "fasta": f"{label}.fa"}]} for label in ("one", "two")]
    Path("m.yaml").write_text(json.dumps({"format_version": 1, "name": "toy", "classes": classes}), encoding="utf-8")
    _run(*SPECIES, "--out", "species")
    for length in ("128", "256"):
        folder = Path("species", "lengths", length)
        yield f"species, weights at {length}", _of_tensors(folder / "model" / "model.safetensors")
        yield f"species, losses at {length}", _of_columns(folder / "metrics.csv", "step", "loss")
        yield f"species, answers at {length}", _sha256((folder / "test.tsv").read_bytes())
    _run("classify", "species/lengths/256/model", "x.fa", "-o", "c.tsv", "--device", "cpu")
    yield "classify", _sha256(Path("c.tsv").read_bytes())


def hashes() -> dict[str, str]:
    """Run everything in a folder of its own and give the hashes by name."""
    import torch

    torch.set_num_threads(1)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DNA_MAMBA_CACHE"] = str(Path(folder, "cache"))
        os.chdir(folder)
        try:
            generator = np.random.default_rng(7)
            records = [
                (f"r{n}", "".join(generator.choice(list("ACGTN"), n, p=[0.24] * 4 + [0.04]))) for n in (900, 300, 2500)
            ]
            Path("x.fa").write_text("".join(f">{name}\n{text}\n" for name, text in records), encoding="utf-8")
            found = {}
            for part in (_training, _readings, _species):
                for name, digest in part():
                    found[name] = digest
                    print(f"{digest[:16]}  {name}", flush=True)
            return found
        finally:
            os.chdir(before)


def main() -> None:
    """Write the hashes; with --against, end with 1 if one differs."""
    out, *more = sys.argv[1:]
    found = hashes()
    Path(out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if more:
        expected = json.loads(Path(more[1]).read_text(encoding="utf-8"))
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        print(f"{len(expected)} hashes, {len(different)} differ: {', '.join(different) or 'none'}")
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
