"""Saturation mutagenesis: every substitution scored as each is from scratch; table and picture."""

import csv

import numpy as np
import pytest
import torch

from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.build import build
from dna_mamba.data.vocabulary import tokens_of
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import save_pretrained
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.mutate import MutateConfig, run, saturate

LETTERS = "".join(np.random.default_rng(3).choice(list("ACGT"), 300))
LETTERS = LETTERS[:125] + "NN" + LETTERS[127:]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutate")
    (folder / "g.fa").write_text(f">c1\n{LETTERS}\n>n\nNNNNN\n")
    build([folder / "g.fa"], folder / "g.dna")
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="MM", width=16)).eval().use_implementation("cpu")
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    save_pretrained(model, folder / "model", {"train": "toy"})
    return folder, model


@torch.no_grad()
def by_hand(model, letters, first, place, alt, right):
    """Log P of the base and its flank, with each base, from whole sequences in plain torch."""
    values = []
    for base in (alt, letters[place]):
        tokens_BT = torch.from_numpy(
            tokens_of(letters[first:place] + base + letters[place + 1 : place + 1 + right]).copy()
        )[None]
        log_p = model(tokens_BT[:, :-1])[0][0, :, 7:11].double().log_softmax(-1)
        at = range(max(1, place - first), tokens_BT.shape[1])
        values.append(sum(float(log_p[t - 1, int(tokens_BT[0, t]) - 7]) for t in at if tokens_BT[0, t] < 11))
    return values[0] - values[1]


@pytest.mark.parametrize("left", [None, 40, 0])
@pytest.mark.parametrize("strands", ["forward", "both"])
def test_every_substitution_is_scored_as_from_scratch(place, left, strands):
    _, model = place
    from dna_mamba.data.store.genome import GenomeStore

    region = Interval("c1", 120, 135)
    found_T4 = saturate(model, GenomeStore.open(place[0] / "g.dna"), region, left=left, right=30, strands=strands)
    other = LETTERS[::-1].translate(str.maketrans("ACGT", "TGCA"))
    for row, at in enumerate(range(120, 135)):
        for column, alt in enumerate("ACGT"):
            value = found_T4[row, column]
            if LETTERS[at] == "N":
                assert np.isnan(value)
            elif alt == LETTERS[at]:
                assert value == 0
            else:
                expected = by_hand(model, LETTERS, 0 if left is None else 120 - left, at, alt, 30)
                if strands == "both":
                    first = 0 if left is None else 300 - 135 - left
                    turned = by_hand(model, other, first, 299 - at, alt.translate(str.maketrans("ACGT", "TGCA")), 30)
                    expected = (expected + turned) / 2
                assert value == pytest.approx(expected, abs=1e-3)
    assert np.nanmax(np.abs(found_T4)) > 0.5


def test_table_and_picture_are_written(place, tmp_path):
    folder, _ = place
    common = {"model": folder / "model", "genome": str(folder / "g.dna"), "region": "c1:101-250", "right": 10}
    result = run(MutateConfig(out=tmp_path / "o.tsv", picture=tmp_path / "o.png", **common))
    run(MutateConfig(out=tmp_path / "o.parquet", **common))
    with open(tmp_path / "o.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 3 * 148 and not [row for row in rows if row["ref"] == "N"]
    import pandas as pd
    from matplotlib.image import imread

    table = pd.read_parquet(tmp_path / "o.parquet")
    for number in (0, 100, 443):
        row = rows[number]
        assert LETTERS[int(row["pos"]) - 1] == row["ref"] == table["ref"][number] != row["alt"]
        value = result.scores_T4[int(row["pos"]) - 101, "ACGT".index(row["alt"])]
        assert float(row["DMLLR"]) == pytest.approx(value, rel=1e-6) and table["DMLLR"][number] == value
    picture = imread(tmp_path / "o.png")
    assert picture.std() > 0.05  # not blank


@pytest.mark.parametrize("change, words", [
    ({}, "say where with -o"),
    ({"out": "o.csv"}, "must end in .tsv or .parquet"),
    ({"picture": "o.jpg"}, "must end in .png"),
    ({"out": "o.tsv", "region": "c1:290-301"}, "ends past c1, which has 300 bases"),
    ({"out": "o.tsv", "region": "c1:x"}, "a region is CONTIG:START-END"),
    ({"out": "o.tsv", "region": "c9:1-5"}, "c9"),
    ({"out": "o.tsv", "region": "c1"}, "at most 200 are mutated"),
    ({"picture": "o.png", "region": "c1:1-150"}, "up to 100 bases"),
    ({"out": "o.tsv", "region": "n:1-5"}, "nothing to mutate"),
])  # fmt: skip
def test_a_mistake_is_told_in_one_line(place, change, words, tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dna_mamba.pipelines.mutate.MOST_BASES", 200)
    monkeypatch.setattr("dna_mamba.pipelines.mutate.MOST_DRAWN", 100)
    given = {"model": place[0] / "model", "genome": str(place[0] / "g.dna"), "region": "c1:1-9"} | change
    for name in ("out", "picture"):
        if name in given:
            given[name] = Path(given[name])
    with pytest.raises(InputError) as error:
        run(MutateConfig(**given))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]
