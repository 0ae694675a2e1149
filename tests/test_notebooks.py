"""Notebooks run from top to bottom, and lie in git without outputs."""

import json
import os

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = {
    "01_pretrain_your_first_model": ("Mamba 2x32", "Markov"),
    "02_embeddings": ("(1673, 64) float32", "linear probe on 4-mers"),
    "03_species": ("SIMULATED gorilla", "k-mers + logistic regression"),
    "04_variants": ("2968 records", "always the transition"),
    "05_long_context": ("pieces of 777: largest difference", "numbers"),
}
"""What a notebook prints, by name."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped(path):
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    for words in EXPECTED[path.stem]:
        assert words in printed


def test_there_is_a_notebook():
    assert NOTEBOOKS
