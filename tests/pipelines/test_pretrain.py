"""A whole run on a toy genome."""

import json
import math
from dataclasses import asdict

import pytest

from dna_mamba.model.checkpoints.native import from_pretrained
from dna_mamba.pipelines import presets, pretrain
from dna_mamba.pipelines.config_files import override
from dna_mamba.pipelines.pretrain import PretrainConfig
from dna_mamba.training.metrics_csv import read_metrics
from dna_mamba.values import read_config


def toy_config(fasta, **changes) -> PretrainConfig:
    base = asdict(presets.demo())
    small = {
        "model": {"pattern": "MM", "width": 32},
        "data": {"genome": str(fasta)},
        "training": {
            "seq_len": 128,
            "steps": 40,
            "bases_per_step": 1024,
            "validate_every_steps": 20,
            "checkpoint_every_steps": 20,
        },
        "evaluation": {"markov_max_order": 4},
    }
    return read_config(PretrainConfig, override(override(base, small), changes), "test")


def test_a_run_learns_and_records_itself(toy_fasta, tmp_path):
    result = pretrain.run(toy_config(toy_fasta), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    # the toy genome repeats its last base in 2 of 5 cases: 2 bits before, 1.766 for a perfect model
    assert float(rows[0]["train_bits_per_base"]) > 2.5
    assert result.model.total.bits_per_base < 1.9
    entropy = -(0.55 * math.log2(0.55) + 3 * 0.15 * math.log2(0.15))
    best_markov = min(row.test_plain for row in result.markov)
    assert best_markov == pytest.approx(entropy, abs=0.02)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert sum(sum(stage["bases_seen"].values()) for stage in record["stages"]) == 40 * 1024
    assert from_pretrained(tmp_path / "run" / "model")[0].num_parameters() == record["num_parameters"]
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_the_model_in_the_package_is_the_one_of_its_card(tmp_path):
    import hashlib

    from dna_mamba.model.checkpoints.native import shipped
    from tests.conftest import dna_mamba

    folder = shipped("human-4x64")
    card = (folder / "README.md").read_text()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in card
    region = ("--region", "chr20:9800002-10000000", "--window", "64", "--json")
    done = dna_mamba("evaluate", "human-4x64", "--genome", "demo", *region, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # below the 1.8282 of the demo's own model on the same bases
    assert json.loads(done.stdout)["total"]["bits_per_base"] == pytest.approx(1.7557, abs=2e-4)
