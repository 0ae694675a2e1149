"""The documentation: every Python snippet runs, every link and picture is there, and every public name has its page."""

import re

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_SNIPPETS = [page for page in PAGES if SNIPPET.search(page.read_text())]


def test_there_are_snippets():
    assert {page.name for page in WITH_SNIPPETS} >= {"README.md", "python.md"}


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, code in enumerate(SNIPPET.findall(page.read_text()), 1):
        exec(compile(code, f"{page.name}, snippet {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_every_page_and_notebook_is_in_the_navigation():
    import yaml

    def entries(node):
        if isinstance(node, str):
            return [node]
        return [one for value in (node.values() if isinstance(node, dict) else node) for one in entries(value)]

    listed = set(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    there |= {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert listed == there


def test_every_command_of_the_reference_pages_can_be_imported():
    from importlib import import_module

    named = [
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    ]
    assert len(named) > 25
    for name in named:
        assert import_module(name).__doc__ or name.endswith("__init__"), name


def test_the_tree_of_the_guide_is_that_of_the_disk():
    lines = re.findall(r"^    ( *)(\w+)/ ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    above, found = [], set()
    for spaces, name in lines:
        above = [*above[: len(spaces) // 2], name]
        found.add("/".join(above))
    folders = {p.parent for top in ("dna_mamba", "kernels", "pipelines") for p in (ROOT / top).rglob("*.py")}
    known = {str(folder.relative_to(ROOT)) for folder in folders}
    assert {"dna_mamba/model/mixers", "dna_mamba/reading", "pipelines/configs"} <= found
    assert all((ROOT / name).is_dir() for name in found)
    missing = {
        name for name in known - found if not name.startswith(("kernels/", "dna_mamba/kernels", "dna_mamba/pipelines"))
    }
    assert not missing, missing


def test_the_measure_of_the_code_counts_by_hand():
    import ast
    import runpy

    measure = runpy.run_path(str(ROOT / "docs" / "measure_code.py"))
    function = "def f(x):\n    if x and x > 1 or not x:\n        return [y for y in x if y]\n    for y in x:\n        assert y\n"
    # 1, if, two operators, comprehension and its condition, for, assert
    assert measure["complexity"](ast.parse(function).body[0]) == 8
    assert len(measure["files"]()) > 150
