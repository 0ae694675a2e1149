"""finetune species and classify: from a manifest to a table, resumed runs equal unbroken ones, and mistakes are told."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from dna_mamba.data.labelled import Place
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import tokens_of
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import load_sequence_model, save_pretrained, save_sequence_model
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines import classify
from dna_mamba.pipelines.class_metrics import Share
from dna_mamba.pipelines.classify import ClassifyConfig
from dna_mamba.pipelines.configs.species import small
from dna_mamba.pipelines.labelled_genomes import LabelledDataConfig, open_labelled
from dna_mamba.pipelines.likelihood_ratio import log_likelihoods
from dna_mamba.pipelines.tasks import species
from dna_mamba.reading.outputs import outputs_of_windows, probabilities
from dna_mamba.training import checkpoint
from dna_mamba.training.optimizer import OptimizerConfig
from tests.conftest import ROOT, dna_mamba, new_classifier
from tests.data.test_download import server  # noqa: F401 - a fixture

MOTIF = "ACGTTGCA"


def letters_of(seed, told, number=12_000):
    generator = np.random.default_rng(seed)
    letters = generator.choice(list("ACGT"), number)
    if told:
        for start in range(10, number - 20, 40):
            letters[start : start + 8] = list(MOTIF)
    return "".join(letters)


def write_set(folder, *, told=True, **changes):
    """Three loci of two classes; those of b hold a motif every 40 bases."""
    folder.mkdir(exist_ok=True)
    classes = []
    for number, label in enumerate(("a", "b")):
        records = [(f"{label}{i}", letters_of(10 * number + i, told and label == "b")) for i in range(3)]
        (folder / f"{label}.fa").write_text("".join(f">{name}\n{text}\n" for name, text in records))
        rows = [{"name": f"{label}{i}", "homologue": str(i + 1), "verified": True} for i in range(3)]
        assemblies = [{"name": f"{label}-1", "fasta": f"{label}.fa", "contigs": rows}]
        classes.append({"label": label, "assemblies": assemblies})
    manifest = {"format_version": 1, "name": "toy", "valid": ["2"], "test": ["3"], "classes": classes, **changes}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder / "manifest.yaml"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("toy"))


def rows_of(path, delimiter=","):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


SHORT = (
    *("--pooling", "mean", "--model", "1x32", "--epochs", "2", "--steps-per-epoch", "30", "--batch", "16"),
    *("--set", "recipe.optimizer.peak_rate=0.01", "evaluation.valid_windows=60", "evaluation.test_windows=200"),
    *("evaluation.baseline_windows=200", "evaluation.likelihood_ratio.steps=30", "checkpoint_every_steps=7"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def unbroken(manifest, tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    done = dna_mamba("finetune", "species", "--manifest", manifest, "--seq-len", "64", "160", *SHORT, "--out", out, "--json",
                     DNA_MAMBA_CACHE=cache)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_it_learns_and_stands_beside_baselines_on_the_same_windows(unbroken):
    out, found = unbroken
    assert [one["seq_len"] for one in found["lengths"]] == [64, 160]
    for one in found["lengths"]:
        rows = {row["name"]: row for row in one["rows"]}
        assert one["began_with"] == "scratch" and one["bases"] == 2 * 30 * 16 * one["seq_len"]
        assert rows["Mamba 1x32, mean"]["accuracy"]["low"] > 0.6
        assert rows["k-mers + logistic regression"]["accuracy"]["low"] > 0.6
        assert rows["likelihood ratio, one model a class"]["accuracy"]["low"] > 0.55
        assert rows["chance"]["value"] == 0.5
        assert "not soft-masked" in rows["the same, windows with at most 10% repeats and no N"]["detail"]
        assert sum(map(sum, rows["Mamba 1x32, mean"]["report"]["confusion"])) == 200
        folder = out / "lengths" / str(one["seq_len"])
        places = rows_of(folder / "test.tsv", "\t")
        assert len(places) == 200 and {p["contig"] for p in places} == {"a2", "b2"}
        steps = rows_of(folder / "metrics.csv")
        assert [int(s["step"]) for s in steps] == list(range(1, 61))
        assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "run.json").read_text())
    assert {row[3] for row in record["split"]["train"]} == {"1"} and record["command"] == "finetune species"


def sha(out):
    path = checkpoint.path_of_step(out / "lengths" / "160" / "checkpoints", 60) / "model.safetensors"
    return path.read_bytes(), (out / "lengths" / "160" / "model" / "model.safetensors").read_bytes()


def test_a_killed_run_goes_on_and_equals_the_unbroken_one(unbroken, manifest, tmp_path, cache):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "dna_mamba.cli", "finetune", "species", "--manifest", str(manifest), "--seq-len", "64", "160",
               *SHORT, "--out", str(out)]  # fmt: skip
    environment = {**os.environ, "DNA_MAMBA_CACHE": cache, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = out / "lengths" / "160" / "metrics.csv"
    deadline = time.monotonic() + 900
    while not (metrics.exists() and metrics.read_text().count("\n") > 40):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wrong = dna_mamba("finetune", "species", "--out", out, "--resume", "--pooling", "max", DNA_MAMBA_CACHE=cache)
    assert wrong.returncode == 2 and "these settings differ" in wrong.stderr
    done = dna_mamba("finetune", "species", "--out", out, "--resume", DNA_MAMBA_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    assert sha(out) == sha(unbroken[0])
    rows = [rows_of(path / "lengths" / "160" / "metrics.csv") for path in (out, unbroken[0])]
    assert rows[0] == rows[1]


def test_a_signal_stops_a_run_that_says_how_to_go_on(manifest, tmp_path, cache):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "dna_mamba.cli", "finetune", "species", "--manifest", str(manifest), "--seq-len", "160",
               *SHORT, "--set", "recipe.steps_per_epoch=100000", "--out", str(out)]  # fmt: skip
    environment = {**os.environ, "DNA_MAMBA_CACHE": cache, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = out / "lengths" / "160" / "metrics.csv"
    deadline = time.monotonic() + 900
    while not (metrics.exists() and metrics.read_text().count("\n") > 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=600)
    last = words.strip().splitlines()[-1]
    assert process.returncode == 143 and "--resume" in last
    saved = checkpoint.list_checkpoints(out / "lengths" / "160" / "checkpoints")[-1]
    assert (
        f"after step {checkpoint.step_of(saved)};" in last
        and checkpoint.step_of(saved) == metrics.read_text().count("\n") - 1
    )


def test_chance_stays_chance(tmp_path):
    """Both classes random: the 99 % interval of a trained model holds 1/2."""
    manifest = write_set(tmp_path / "same", told=False)
    config = small(str(manifest))
    config = replace(config, seq_lens=(100,), checkpoint=None, model=BackboneConfig(pattern="M", width=16),
                     recipe=replace(config.recipe, epochs=1, steps_per_epoch=20),
                     evaluation=replace(config.evaluation, test_windows=400, valid_windows=20, baseline_windows=0))  # fmt: skip
    result = species.run(config, tmp_path / "run")
    correct = result.lengths[0].rows[0].accuracy.correct
    assert abs(correct - 200) < 2.58 * 10


def test_from_a_manifest_over_fetch_to_a_table(server, tmp_path, cache):  # noqa: F811
    """The walk: a server that cuts connections, stores, fine-tuning from a pretrained model, answers for a FASTA."""
    folder = tmp_path / "set"
    path = write_set(folder)
    values = yaml.safe_load(path.read_text())
    server.content, server.mode = gzip.compress((folder / "b.fa").read_bytes(), mtime=0), "cuts"
    assembly = values["classes"][1]["assemblies"][0]
    del assembly["fasta"]
    assembly["url"] = server.url
    path.write_text(yaml.safe_dump(values))
    options = ("--manifest", path, "--genomes", tmp_path / "genomes", "--checkpoint", tmp_path / "model-{seq_len}")
    short = (*SHORT[:2], *SHORT[4:], "--set", "evaluation.likelihood_ratio.steps=0", "evaluation.baseline_windows=0")
    options = (*options, "--seq-len", "160", *short, "--out", tmp_path / "run")
    save_pretrained(DnaMamba(BackboneConfig(pattern="M", width=32)), tmp_path / "model-160", {"train": "toy"})
    before = dna_mamba("finetune", "species", *options, DNA_MAMBA_CACHE=cache)
    assert before.returncode == 2 and "run dna-mamba genome fetch" in before.stderr and not (tmp_path / "run").exists()
    fetched = dna_mamba("genome", "fetch", path, "--out", tmp_path / "genomes")
    assert fetched.returncode == 0, fetched.stderr
    planned = dna_mamba("finetune", "species", *options, "--dry-run", DNA_MAMBA_CACHE=cache)
    assert planned.returncode == 0 and f"windows of 160 bases from {tmp_path / 'model-160'}" in planned.stdout
    done = dna_mamba("finetune", "species", *options, DNA_MAMBA_CACHE=cache)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "results.json").read_text())["lengths"][0]
    assert result["began_with"] == str(tmp_path / "model-160")
    (tmp_path / "new.fa").write_text(f">like_a\n{letters_of(99, False)}\n>like_b\n{letters_of(98, True)}\n")
    answered = dna_mamba(
        "classify", tmp_path / "run", tmp_path / "new.fa", "--window", "160", "-o", tmp_path / "new.tsv"
    )
    assert answered.returncode == 0, answered.stderr
    rows = rows_of(tmp_path / "new.tsv", "\t")
    assert len(rows) == 2 * 75 and [int(r["end"]) - int(r["start"]) for r in rows] == [160] * 150
    right = [row["label"] == row["contig"][-1] for row in rows]
    assert np.mean(right) > 0.85
    assert all(float(r["p_a"]) + float(r["p_b"]) == pytest.approx(1, abs=1e-5) for r in rows)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(1)
    model = new_classifier(BackboneConfig(pattern="MM", width=16), ("x", "y", "z"), "mean")
    model.standardize(torch.randn(10, 16))
    folder = tmp_path_factory.mktemp("classifier") / "model"
    save_sequence_model(model, folder, {"seq_len": 100})
    return folder


def test_a_classifier_is_the_same_after_saving(classifier):
    model, training = load_sequence_model(classifier)
    assert model.head.labels == ("x", "y", "z") and model.head.pooling == "mean" and training == {"seq_len": 100}
    torch.manual_seed(1)
    again = new_classifier(BackboneConfig(pattern="MM", width=16), ("x", "y", "z"), "mean")
    again.standardize(torch.randn(10, 16))
    for (name, one), (_, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("piece", [1, 37, 100_000])
def test_answers_do_not_depend_on_pieces_or_companions(classifier, pooling, piece, write, monkeypatch):
    generator = np.random.default_rng(3)
    records = {f"r{i}": "".join(generator.choice(list("ACGTN"), n)) for i, n in enumerate((300, 300, 1, 300, 41))}
    path = write("r.fa", "".join(f">{name}\n{text}\n" for name, text in records.items()))
    model, _ = load_sequence_model(classifier)
    model.head.pooling = pooling
    monkeypatch.setattr(classify, "load_classifier", lambda where: (model, model.head, {}))
    rows = []
    classify.run(
        ClassifyConfig(model=classifier, sequences=str(path), piece_bases=piece, device="cpu"), on_row=rows.append
    )
    assert [row.name for row in rows] == list(records)
    for row in rows:
        tokens = torch.from_numpy(tokens_of(records[row.name]).copy())[None]
        with torch.no_grad():
            expected = model(tokens)[0].double().softmax(0)
        assert np.allclose(row.probabilities, expected.numpy(), atol=1e-5)
        assert row.share_n == pytest.approx(records[row.name].count("N") / len(records[row.name]))
        assert row.label == model.head.labels[int(expected.argmax())]


def test_intervals_are_read_on_their_strand(classifier, write, tmp_path):
    letters = letters_of(5, False, 3000)
    genome = write("g.fa", f">c\n{letters}\n")
    bed = write("i.bed", "c\t100\t400\tone\t0\t+\nc\t100\t400\ttwo\t0\t-\n")
    done = dna_mamba("classify", classifier, bed, "--genome", genome, "-o", tmp_path / "o.tsv", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["rows"] == 2
    rows = rows_of(tmp_path / "o.tsv", "\t")
    model, _ = load_sequence_model(classifier)
    forward = letters[100:400]
    backward = forward[::-1].translate(str.maketrans("ACGT", "TGCA"))
    for row, text in zip(rows, (forward, backward), strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(tokens_of(text).copy())[None])[0].softmax(0)
        assert [float(row[f"p_{label}"]) for label in "xyz"] == pytest.approx(expected.tolist(), abs=1e-5)


CLASSIFY_MISTAKES = {
    "past the end": (["i.bed", "--genome", "g.fa"], "line 1: c:1-5000(+) ends past c, which has 3,000 bases"),
    "no genome": (["i.bed"], "say of which genome with --genome"),
    "no model": (None, "neither a classifier nor a fine-tuning run"),
    "window": (["g.fa", "--window", "0"], "--window 0 must be at least 1 base"),
}


@pytest.mark.parametrize("arguments, words", CLASSIFY_MISTAKES.values(), ids=CLASSIFY_MISTAKES.keys())
def test_a_mistake_in_classify_leaves_nothing(arguments, words, classifier, write, tmp_path):
    write("g.fa", f">c\n{letters_of(5, False, 3000)}\n")
    write("i.bed", "c\t0\t5000\n")
    model = classifier if arguments else tmp_path
    done = dna_mamba("classify", model, *(arguments or ["g.fa"]), "-o", "o.tsv", cwd=tmp_path)
    assert done.returncode == 2 and words.split("(+)")[-1] in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [p for p in tmp_path.iterdir() if "o.tsv" in p.name]


def test_a_language_model_is_no_classifier_and_the_other_way_round(classifier, write):
    with pytest.raises(InputError, match="is a language model"):
        load_sequence_model("dna_mamba/assets/human-4x64")
    done = dna_mamba("evaluate", classifier, "--genome", "demo")
    assert done.returncode == 2 and "is a classifier (from finetune)" in done.stderr


def test_log_likelihoods_do_not_depend_on_pieces():
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="MM", width=16)).eval()
    tokens_BT = torch.randint(7, 12, (3, 101), dtype=torch.uint8)
    with torch.no_grad():
        logits_BTV, _ = model(tokens_BT[:, :-1])
        log_p = logits_BTV[..., 7:11].double().log_softmax(-1)
    expected = [
        sum(float(log_p[b, t, int(tokens_BT[b, t + 1]) - 7]) for t in range(100) if tokens_BT[b, t + 1] < 11)
        for b in range(3)
    ]
    for piece in (1, 33, 1000):
        assert log_likelihoods(model, tokens_BT, piece).tolist() == pytest.approx(expected, rel=1e-5)


def bad(path, change):
    values = yaml.safe_load(path.read_text())
    change(values)
    (path.parent / "bad.yaml").write_text(yaml.safe_dump(values))
    return path.parent / "bad.yaml"


def no_homologues(values):
    for row in values["classes"][0]["assemblies"][0]["contigs"]:
        row["verified"] = False


MISTAKES = {
    "no manifest": (None, [], "needs --manifest"),
    "unknown key": (lambda v: v.update(clases=[]), [], "unknown key 'clases'"),
    "missing file": (lambda v: v["classes"][0]["assemblies"][0].update(fasta="z.fa"), [], "z.fa does not exist"),
    "label twice": (lambda v: v["classes"][0].update(label="b"), [], "the label 'b' stands there twice"),
    "unverified homologues": (no_homologues, [], "class a has no contig for train"),
    "wrong contig": (
        lambda v: v["classes"][0]["assemblies"][0]["contigs"][0].update(name="q"), [], "names contig 'q', which is not in its file"
    ),
    "no part": (lambda v: v.update(valid=[], test=[]), [], "no homologue is given for validation"),
    "unknown chromosome": (None, ["--valid", "2", "--test", "9"], "no contig descends from human chromosome '9'"),
    "same chromosome": (None, ["--valid", "2", "--test", "2"], "given for validation and for test"),
    "window too long": (None, ["--seq-len", "20000"], "class a has no contig of 20,000 bases; its longest here has 12,000"),
    "few places": (None, ["--seq-len", "12000"], "class a has places for about"),
    "pooling": (None, ["--pooling", "men"], "did you mean 'mean'"),
    "frozen scratch": (None, ["--frozen"], "name one with --checkpoint"),
    "few epochs": (None, ["--seq-len", "65536", "--epochs", "1"], "too few for length warm-up"),
    "held out": (None, ["--hold-out", "c-9"], "assembly 'c-9' is held out but not in the manifest"),
    "held out all": (None, ["--hold-out", "a-1"], "class a has no assembly left"),
    "classes no list": (lambda v: v.update(classes=5), [], "classes is '5', expected a list of sections"),
    "assemblies no list": (lambda v: v["classes"][0].update(assemblies=3), [], "assemblies of a is '3'"),
    "no name": (lambda v: v.pop("name"), [], "lacks the key 'name'"),
    "broken url": (
        lambda v: v["classes"][0]["assemblies"][0].update(url="https://[", fasta=None), [], "is no URL"
    ),
    "size beside checkpoint": (None, ["--checkpoint", "human-4x64"], "--checkpoint brings its own sizes"),
    "unknown setting": (None, ["--set", "recipe.batches=2"], "did you mean 'batch'"),
    "lengths twice": (None, ["--seq-len", "64", "64"], "one or more different lengths"),
}  # fmt: skip


@pytest.mark.parametrize("change, options, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(change, options, words, tmp_path, capsys, monkeypatch):
    from dna_mamba import cli

    path = write_set(tmp_path / "set")
    if change:
        path = bad(path, change)
    given = [] if words == "needs --manifest" else ["--manifest", str(path)]
    length = [] if "--seq-len" in options else ["--seq-len", "64"]
    out = tmp_path / "run"
    monkeypatch.setattr(
        sys,
        "argv",
        ["dna-mamba", "finetune", "species", *given, *length, "--model", "1x16", *options, "--out", str(out)],
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    found = capsys.readouterr().err
    assert stopped.value.code == 2 and words in found and len(found.strip().splitlines()) == 1, found
    assert not out.exists()


def test_a_class_of_one_example_is_told(tmp_path):
    """A class whose only contig is in training has nothing to validate on."""
    path = write_set(tmp_path / "set")

    def one(values):
        rows = values["classes"][0]["assemblies"][0]["contigs"]
        values["classes"][0]["assemblies"][0]["contigs"] = rows[:1]

    with pytest.raises(InputError, match="class a has no contig for valid"):
        open_labelled(LabelledDataConfig(manifest=str(bad(path, one))))


def test_contigs_split_by_name_and_by_table(tmp_path):
    folder = tmp_path / "set"
    path = write_set(folder)
    for label in "ab":  # the same names in both classes
        text = (folder / f"{label}.fa").read_text().replace(f">{label}", ">c")
        (folder / f"{label}.fa").write_text(text)
    values = yaml.safe_load(path.read_text())
    for one in values["classes"]:
        del one["assemblies"][0]["contigs"]
    path.write_text(yaml.safe_dump(values))
    data = LabelledDataConfig(manifest=str(path), split_by="contig", valid=("c1",), test=("c2",))
    split = open_labelled(data).split
    assert {c.contig for c in split.train} == {"c0"} and {c.contig for c in split.test} == {"c2"}
    (tmp_path / "parts.tsv").write_text("c0\ttest\nc1\ttrain\nc2\tvalid\n")
    split = open_labelled(
        LabelledDataConfig(manifest=str(path), split_by="contig", split=str(tmp_path / "parts.tsv"))
    ).split
    assert {c.contig for c in split.train} == {"c1"} and {c.contig for c in split.test} == {"c0"}
    (tmp_path / "parts.tsv").write_text("c0\ttests\n")
    with pytest.raises(InputError, match="line 1: 'c0.ttests' is not NAME and train, valid or test"):
        open_labelled(LabelledDataConfig(manifest=str(path), split_by="contig", split=str(tmp_path / "parts.tsv")))


def test_other_individuals_are_tested_and_never_trained_on(tmp_path):
    folder = tmp_path / "set"
    path = write_set(folder)
    values = yaml.safe_load(path.read_text())
    (folder / "a2.fa").write_text((folder / "a.fa").read_text())
    rows = values["classes"][0]["assemblies"][0]["contigs"]
    # of another individual the test chromosome is enough
    values["classes"][0]["assemblies"].append({"name": "a-2", "fasta": "a2.fa", "contigs": [dict(rows[2])]})
    path.write_text(yaml.safe_dump(values))
    data = LabelledDataConfig(manifest=str(path), held_out_assemblies=("a-2",))
    genomes = open_labelled(data)
    assert {c.genome for c in genomes.split.train} == {"a-1", "b-1"}
    places = genomes.windows("held out", 64, 0, data).places(10)
    assert {(p.genome, p.contig) for p in places} == {("a-2", "a2")}
    assert isinstance(places[0], Place) and GenomeStore.open(genomes.stores["a-2"].path).contig("a2").length == 12_000


def test_in_bfloat16_what_is_validated_is_what_is_saved(manifest, tmp_path, device):
    """A cache of cast weights that outlives a step would validate, and choose, a model that is not the one that is saved."""
    base = small(str(manifest))
    config = replace(
        base, seq_lens=(160,), checkpoint=None, model=BackboneConfig(pattern="M", width=32), device=device, precision="bf16",
        recipe=replace(base.recipe, epochs=1, steps_per_epoch=30, batch=16, optimizer=OptimizerConfig(peak_rate=0.02)),
        evaluation=replace(base.evaluation, test_windows=20, valid_windows=200, baseline_windows=0),
    )  # fmt: skip
    said = []
    species.run(config, tmp_path / "run", say=said.append)
    model, _ = load_sequence_model(tmp_path / "run" / "lengths" / "160" / "model")
    model.use_implementation("cpu" if device == "cpu" else "triton").to(device)
    data = LabelledDataConfig(manifest=str(manifest))
    windows = open_labelled(data).windows("valid", 160, config.seed + 1, data)
    places = windows.places(200)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = probabilities(
            outputs_of_windows(model, lambda i: windows.stored(places[i]), 200, length=160, piece_bases=16384)
        )
    accuracy = float((found.argmax(1) == ["ab".index(place.label) for place in places]).mean())
    assert f"on validation {accuracy:.3f} (" in said[0], (accuracy, said)


def test_a_missing_checkpoint_is_told_and_leaves_nothing(manifest, tmp_path):
    config = replace(small(str(manifest)), seq_lens=(64,), checkpoint="nowhere-{seq_len}")
    with pytest.raises(InputError, match="nowhere-64 is neither a run"):
        species.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overlapping_windows_count_as_few(manifest):
    genomes = open_labelled(LabelledDataConfig(manifest=str(manifest)))
    windows = genomes.windows("test", 4000, 0, LabelledDataConfig(manifest="m"))
    place = {"label": "a", "genome": "a-1", "contig": "a2"}
    assert windows.independent([Place(start=0, **place), Place(start=4000, **place)]) == 2
    assert windows.independent([Place(start=0, **place), Place(start=1000, **place), Place(start=0, **place)]) == 1.25
    assert windows.independent(windows.places(400)) < 6.01  # two contigs of 12,000 bases
    wide, narrow = Share.of(30, 60, effective=6.0), Share.of(30, 60)
    assert wide.high - wide.low > 2.4 * (narrow.high - narrow.low) and wide.value == narrow.value


def test_the_seed_of_a_training_moves_no_window_that_it_is_judged_on(manifest):
    one, other = (replace(small(str(manifest)), seed=seed) for seed in (1, 2))
    tasks = [
        species.open_task(config) for config in (one, other, replace(one, evaluation=replace(one.evaluation, seed=7)))
    ]
    assert tasks[0].seed_of("train") != tasks[1].seed_of("train")
    for part in ("valid", "test", "held out"):
        assert tasks[0].seed_of(part) == tasks[1].seed_of(part) != tasks[2].seed_of(part)
