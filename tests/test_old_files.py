"""What earlier versions wrote is read, and goes on to the same numbers."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dna_mamba.model.checkpoints.native import from_pretrained, load_sequence_model
from tests.conftest import ROOT, dna_mamba

OLD = ROOT / "tests" / "data" / "old_files"
TOKENS_BT = torch.arange(60)[None] % 4 + 7
# of the version that wrote them
LAST_LOGITS = [0.1196684017777443, 0.23675218224525452, 0.20168080925941467, 0.3197311460971832]
PROBABILITIES = [0.7923332452774048, 0.16591876745224, 0.041748009622097015]


@torch.no_grad()
def test_models_of_both_kinds_give_the_numbers_they_gave():
    model, policy = from_pretrained(OLD / "expected-model")
    assert policy["reverse_complement"] == 0.5 and model.trained_bases == 64 and set(model.trained_on) == {"chr20"}
    assert model(TOKENS_BT)[0][0, -1, 7:11].tolist() == pytest.approx(LAST_LOGITS, abs=1e-5)
    classifier, training = load_sequence_model(OLD / "classifier")
    assert classifier.head.labels == ("ape", "bear", "cat") and training == {"seq_len": 64, "manifest": "toy"}
    assert classifier(TOKENS_BT).softmax(1)[0].tolist() == pytest.approx(PROBABILITIES, abs=1e-5)


def test_a_run_goes_on_to_where_it_would_have_come(tmp_path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    done = dna_mamba("pretrain", "--out", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    given = load_file(tmp_path / "run" / "model-last" / "model.safetensors")
    expected = load_file(OLD / "expected-model" / "model.safetensors")
    assert set(given) == set(expected)
    assert all(torch.allclose(given[name], expected[name], atol=1e-6) for name in expected)
    texts = [(path / "metrics.csv").read_text() for path in (OLD / "run", tmp_path / "run")]
    rows = [list(csv.DictReader(text.splitlines())) for text in texts]
    assert [row["step"] for row in rows[1]] == ["1", "2", "3", "4"]
    for old, new in zip(*rows, strict=True):
        assert float(new["train_loss"]) == pytest.approx(float(old["train_loss"]), rel=1e-6)


def test_a_fine_tuning_run_goes_on_to_where_it_would_have_come(tmp_path):
    """Its counters lack what is counted today, its metrics.csv the last columns, its config.yaml the newest settings."""
    shutil.copytree(OLD / "finetuning", tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("manifest: m.yaml", f"manifest: {tmp_path / 'm.yaml'}"))
    done = dna_mamba("finetune", "species", "--out", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0 and "going on after step 6" in done.stderr, done.stderr
    folder = tmp_path / "run" / "lengths" / "64"
    given, expected = (load_file(path / "model.safetensors") for path in (folder / "model", tmp_path / "expected"))
    assert set(given) == set(expected)
    assert all(torch.allclose(given[name], expected[name], atol=1e-6) for name in expected)
    texts = [(path / "metrics.csv").read_text() for path in (tmp_path / "expected", folder)]
    rows = [list(csv.DictReader(text.splitlines())) for text in texts]
    assert [row["step"] for row in rows[1]] == [str(step) for step in range(1, 9)]
    for old, new in zip(*rows, strict=True):
        assert float(new["loss"]) == pytest.approx(float(old["loss"]), rel=1e-5)
        assert {name: new[name] for name in ("epoch", "accuracy")} == {
            name: old[name] for name in ("epoch", "accuracy")
        }
    assert [row["skipped"] for row in rows[1]] == [""] * 6 + ["0"] * 2 and rows[1][-1]["valid_accuracy"] == "0.5"
    results = [json.loads((path / "results.json").read_text()) for path in (tmp_path / "expected", tmp_path / "run")]
    tables = [[(row["name"], row["value"]) for row in one["lengths"][0]["rows"]] for one in results]
    assert tables[0] == tables[1]
