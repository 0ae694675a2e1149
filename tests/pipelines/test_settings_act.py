"""Every setting of --print-config acts, is refused, or stands in a list of those that change no result."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from dna_mamba.data.store.build import build
from dna_mamba.errors import InputError
from dna_mamba.pipelines import pretrain
from dna_mamba.pipelines import settings as settings_of
from dna_mamba.pipelines.config_files import dump_yaml
from dna_mamba.pipelines.configs.finetune import config_of_run
from dna_mamba.pipelines.configs.species import FinetuneSpeciesConfig
from dna_mamba.pipelines.settings import Asked
from dna_mamba.pipelines.tasks import species
from tests.conftest import random_letters

NEUTRAL_PRETRAIN = {
    "preset": "for the record", "data.num_workers": "speed; the same windows (tests/data/test_windows.py)",
    "training.checkpoint_every_steps": "when state is saved", "training.keep_checkpoints": "how many are kept",
    "training.piece_bases": "memory; the same numbers up to rounding", "training.kept_pieces": "memory",
    "training.recomputed_layers": "memory", "training.base_budget": "decides where steps are not given, as here",
    "device": "the same numbers up to rounding", "implementation": "the same numbers up to rounding",
}  # fmt: skip
CHANGES_PRETRAIN = {
    "model.vocabulary_size": 24, "model.width": 24, "model.pattern": "M", "model.mamba.num_states": 8, "model.mamba.expansion": 1,
    "model.mamba.num_taps": 3, "model.mamba.delta_min": 0.01, "model.mamba.delta_max": 0.5, "model.norm_eps": 0.1,
    "data.genome": "other.fa", "data.rna": True, "data.split": "split.bed", "data.valid": ["c:1-3000"], "data.test": ["c:5001-6000"],
    "data.window_rule": "hyenadna", "data.max_n": 0.0, "data.policy.n_weight": 1.0, "data.policy.soft_mask_weight": 0.1,
    "data.policy.reverse_complement": 0.0, "data.policy.start_token": True, "data.policy.end_token": True, "training.seq_len": 96,
    "training.steps": 6, "training.bases_per_step": 512, "training.length_warmup": "hyenadna", "training.validate_every_steps": 1,
    "optimizer.peak_rate": 1e-2, "optimizer.final_rate": 1e-3, "optimizer.warmup_share": 0.9, "optimizer.fewest_warmup_steps": 0,
    "optimizer.betas": [0.5, 0.9], "optimizer.weight_decay": 0.9, "optimizer.gradient_clip": 1e-3, "evaluation.valid_bases": 100,
    "evaluation.test_bases": 100, "evaluation.markov_max_order": 2, "precision": "bf16", "seed": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch):
    """Some seventy runs draw two pictures each, and nobody looks at them here."""
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **options: Path(path).write_bytes(b"-")
    )


def leaves(values, name=""):
    for key, value in values.items():
        full = f"{name}.{key}" if name else key
        if isinstance(value, dict):
            yield from leaves(value, full)
        else:
            yield full


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    letters = random_letters(24_000, 5)
    letters = letters[:4000] + "NNU" * 30 + letters[4090:8000].lower() + letters[8000:]
    (folder / "g.fa").write_text(f">c\n{letters}\n")
    (folder / "other.fa").write_text(f">c\n{random_letters(24_000, 6)}\n")
    (folder / "split.bed").write_text("c\t0\t9000\ttrain\nc\t10000\t12000\tvalid\nc\t13000\t15000\ttest\n")
    return folder


def pretrained(folder, out, key=None, value=None):
    """Run and give all numbers that come out of it."""
    assignments = (
        [] if key is None else [f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...').strip()}"]
    )
    base = ["training.steps=5", "training.bases_per_step=256", "training.length_warmup=none", "training.validate_every_steps=2",
            "evaluation.markov_max_order=1", "evaluation.valid_bases=500", "evaluation.test_bases=500", "data.max_n=0.9"]  # fmt: skip
    flags = {"data": {"genome": "g.fa"}, "training": {"seq_len": 128}, "device": "cpu"}
    model = None if key == "model.pattern" else "2x16"
    extra = ["model.width=16"] if model is None else []
    config = settings_of.pretrain(Asked(flags=flags, model=model, assignments=[*base, *extra, *assignments]))
    if key == "data.valid":
        config = replace(config, data=replace(config.data, test=("c:20001-21000",)))
    if key == "data.test":
        config = replace(config, data=replace(config.data, valid=("c:20001-21000",)))
    pretrain.run(config, folder / out)
    rows = list(csv.DictReader((folder / out / "metrics.csv").read_text().splitlines()))
    results = json.loads((folder / out / "results.json").read_text())
    weights = (folder / out / "model-last" / "model.safetensors").read_bytes()
    return rows, {k: results[k] for k in ("bases_scored", "table", "markov")}, weights


def test_every_setting_of_pretraining_acts_or_is_known_to_change_no_result(folder, monkeypatch):
    monkeypatch.chdir(folder)
    keys = set(leaves(yaml.safe_load(dump_yaml(settings_of.pretrain(Asked(flags={}))))))
    assert keys == set(NEUTRAL_PRETRAIN) | set(CHANGES_PRETRAIN), keys ^ (set(NEUTRAL_PRETRAIN) | set(CHANGES_PRETRAIN))
    usual = pretrained(folder, "usual")
    assert pretrained(folder, "again")[:2] == usual[:2]  # else the rest would say nothing
    idle = []
    for number, (key, value) in enumerate(CHANGES_PRETRAIN.items()):
        if pretrained(folder, f"run{number}", key, value) == usual:
            idle.append(key)
    assert not idle


NEUTRAL_FINETUNE = {
    "preset": "for the record", "piece_bases": "memory; the same numbers up to rounding", "checkpoint_every_steps": "when state is saved",
    "num_workers": "speed; the same windows (tests/pipelines/test_new_task.py)",
    "device": "the same numbers up to rounding", "data.genomes": "where genome fetch put files; these come from elsewhere",
}  # fmt: skip
CHANGES_FINETUNE = {
    "data.manifest": "other.yaml", "data.split_by": "homologue", "data.valid": ["c3"], "data.test": ["c2"], "data.split": "split.tsv",
    "data.held_out_assemblies": ["b2"], "data.by_length": False, "data.drop_n": False, "data.match_gc": True, "seq_lens": [48],
    "checkpoint": None, "model": {"pattern": "M", "width": 24}, "pooling": "max", "frozen": True, "recipe.epochs": 2,
    "recipe.steps_per_epoch": 6, "recipe.batch": 3, "recipe.optimizer.peak_rate": 1e-2, "recipe.optimizer.final_rate": 1e-3,
    "recipe.optimizer.warmup_share": 0.9, "recipe.optimizer.fewest_warmup_steps": 2, "recipe.optimizer.betas": [0.5, 0.9],
    "recipe.optimizer.weight_decay": 0.9, "recipe.optimizer.gradient_clip": 1e-4, "recipe.standardize_windows": 8,
    "evaluation.valid_windows": 8, "evaluation.test_windows": 8, "evaluation.seed": 3, "evaluation.baseline_windows": 40,
    "evaluation.likelihood_ratio.steps": 1, "evaluation.likelihood_ratio.batch": 3, "evaluation.likelihood_ratio.peak_rate": 1e-2,
    "evaluation.repeats_stripped": False, "precision": "bf16", "seed": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    for number, name in enumerate(("a", "b", "b2")):
        contigs = []
        for k in (1, 2, 3):
            letters = random_letters(600 * k + 900 * (name == "b2"), 10 * number + k)
            letters = letters[:200].lower() + "N" * 20 + letters[220:]
            contigs.append(f">c{k}\n{letters.replace('A', 'G') if name == 'a' and k == 1 else letters}\n")
        (folder / f"{name}.fa").write_text("".join(contigs))
    rows = ", ".join(f"{{name: c{k}, homologue: '{h}', verified: true}}" for k, h in ((1, 2), (2, 1), (3, 3)))

    def manifest(valid, test, extra=""):
        return (
            f"format_version: 1\nname: m\nvalid: [{valid}]\ntest: [{test}]\nclasses:\n"
            f"  - {{label: a, assemblies: [{{name: a, fasta: a.fa, contigs: [{rows}]}}]}}\n"
            f"  - {{label: b, assemblies: [{{name: b, fasta: b.fa, contigs: [{rows}]}}{extra}]}}\n"
        )

    second = f", {{name: b2, fasta: b2.fa, contigs: [{rows}]}}"
    (folder / "m.yaml").write_text(manifest("c2", "c3", second))
    (folder / "other.yaml").write_text(manifest("c2", "c3"))
    (folder / "homologue.yaml").write_text(manifest("'2'", "'3'", second))
    (folder / "split.tsv").write_text("c1\tvalid\nc2\ttrain\nc3\ttest\n")
    return folder


def finetuned(folder, out, key=None, value=None):
    base = ["recipe.epochs=1", "recipe.steps_per_epoch=5", "recipe.batch=4", "evaluation.valid_windows=6", "evaluation.test_windows=6",
            "evaluation.baseline_windows=24", "recipe.standardize_windows=4"]  # fmt: skip
    if key and key.startswith("evaluation.likelihood_ratio.") and not key.endswith("steps"):
        base.append("evaluation.likelihood_ratio.steps=1")
    if key == "model":
        base.append("checkpoint=null")
    if key == "data.split_by":
        base.append("data.manifest=homologue.yaml")
    if key == "data.valid":
        base.append("data.test=[c2]")
    if key == "data.test":
        base.append("data.valid=[c1]")
    assignments = [] if key is None else [f"{key}={json.dumps(value)}"]
    manifest = "homologue.yaml" if key == "data.split_by" else "m.yaml"
    by = "homologue" if key == "data.split_by" else "contig"
    flags = {"data": {"manifest": manifest, "split_by": by}, "seq_lens": (64,), "device": "cpu"}
    config = settings_of.species(Asked(flags=flags, assignments=[*base, *assignments]), preset_name="small")
    result = species.run(config, folder / out)
    (one,) = result.lengths
    name = str(one.seq_len)
    weights = (folder / out / "lengths" / name / "model" / "model.safetensors").read_bytes()
    files = [(folder / out / "lengths" / name / file).read_text() for file in ("metrics.csv", "valid.tsv", "test.tsv")]
    return files, json.dumps([asdict(one)["rows"]]), weights


def test_every_setting_of_fine_tuning_acts_or_is_known_to_change_no_result(genomes, monkeypatch):
    monkeypatch.chdir(genomes)
    config = settings_of.species(Asked(flags={"data": {"manifest": "m.yaml"}}), preset_name="small")
    keys = set(leaves(yaml.safe_load(dump_yaml(config))))
    assert keys == set(NEUTRAL_FINETUNE) | set(CHANGES_FINETUNE), keys ^ (set(NEUTRAL_FINETUNE) | set(CHANGES_FINETUNE))
    usual = finetuned(genomes, "usual")
    assert finetuned(genomes, "again") == usual
    idle = []
    for number, (key, value) in enumerate(CHANGES_FINETUNE.items()):
        if finetuned(genomes, f"run{number}", key, value) == usual:
            idle.append(key)
    assert not idle


@pytest.mark.parametrize("assignment, words", [
    ("recipe.seq_len=99", "seq_lens decides it"), ("recipe.piece_bases=99", "--set: recipe.piece_bases is piece_bases now"),
    ("model.width=32", "brings its own sizes"),
])  # fmt: skip
def test_a_setting_that_cannot_act_is_refused(assignment, words, genomes, monkeypatch):
    monkeypatch.chdir(genomes)
    with pytest.raises(InputError, match=words):
        settings_of.species(
            Asked(flags={"data": {"manifest": "m.yaml"}}, assignments=[assignment]), preset_name="small"
        )


def test_what_is_recorded_is_what_was_used(genomes, monkeypatch):
    monkeypatch.chdir(genomes)
    with_checkpoint = settings_of.species(Asked(flags={"data": {"manifest": "m.yaml"}}), preset_name="small")
    values = yaml.safe_load(dump_yaml(with_checkpoint))
    assert values["model"] is None and "seq_len" not in values["recipe"] and "piece_bases" not in values["recipe"]
    scratch = settings_of.species(Asked(flags={"data": {"manifest": "m.yaml"}}, assignments=["device=cpu"]))
    assert species.resolve(scratch).model.size == "12x128"
    # what a run of before wrote is read: the model beside its checkpoint was never used
    old = values | {
        "model": {"pattern": "M", "width": 8},
        "recipe": values["recipe"] | {"seq_len": 1024, "piece_bases": 16384},
    }
    Path("old").mkdir()
    Path("old/config.yaml").write_text(yaml.safe_dump(old))
    assert config_of_run(FinetuneSpeciesConfig, Path("old")) == with_checkpoint
    build([genomes / "a.fa"], genomes / "a.dna", overwrite=True)
