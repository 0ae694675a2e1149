"""The verdicts of the species benchmark, on rows worked out by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dna_mamba.pipelines import benchmark_species
from dna_mamba.pipelines.benchmark_species import SpeciesBenchConfig, SpeciesBenchResult
from dna_mamba.pipelines.class_metrics import Share
from dna_mamba.pipelines.finetune import LengthResult
from dna_mamba.pipelines.tasks.task import ResultRow


def length(*rights, number=600):
    names = ("Mamba 4x64, mean", "k-mers + logistic regression")
    rows = [
        ResultRow(name=n, detail="", value=r / number, accuracy=Share.of(r, number))
        for n, r in zip(names, rights, strict=True)
    ]
    rows.append(ResultRow(name="chance", detail="", value=0.2))
    return LengthResult(seq_len=4096, began_with="human-4x64", rows=tuple(rows), seconds=1.0, bases=1)


def result(on, off):
    return SpeciesBenchResult(out=Path("x"), on=length(*on), off=length(*off), seconds=60.0)


# two rows share 1 %: z is 2.807, and Wilson's interval leaves 0.2 behind where right / 600 > 0.2 + 2.807 sqrt(0.2 0.8 / 600), 147.5
@pytest.mark.parametrize("right, leaks", [(120, 0), (147, 0), (148, 1), (300, 1)])
def test_what_is_above_chance_without_insertions_is_a_leak(right, leaks):
    found = result((270, 330), (120, right))
    assert len(found.leaks()) == leaks and all("k-mers" in words for words in found.leaks())
    assert ("nothing is above chance" in found.as_text()) == (not leaks)
    assert found.as_dict()["leaks"] == found.leaks() and found.as_dict()["simulated"] is True


def test_a_model_at_chance_with_insertions_is_said_to_be():
    assert "the model is above chance" in result((270, 330), (120, 120)).as_text()
    assert "the model is not above chance" in result((121, 330), (120, 120)).as_text()


def test_a_benchmark_that_is_stopped_has_said_and_kept_its_first_half(tmp_path, monkeypatch):
    halves = iter([SimpleNamespace(lengths=(length(270, 330),))])
    monkeypatch.setattr(benchmark_species.simulate, "run", lambda config, out, warn: None)
    monkeypatch.setattr(benchmark_species.species, "run", lambda config, out, say, warn: next(halves))
    said = []
    with pytest.raises(StopIteration):
        benchmark_species.run(SpeciesBenchConfig(), tmp_path / "out", say=said.append)
    assert "  diagnostics on, Mamba 4x64, mean: 0.450" in said
    kept = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert not kept["complete"] and kept["on"]["rows"][1]["value"] == 0.55 and "off" not in kept
