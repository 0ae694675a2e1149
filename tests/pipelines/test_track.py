"""Likelihood tracks: bigWig read by pyBigWig against the model's own words, gaps where nothing is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dna_mamba.data.store.build import build
from dna_mamba.data.vocabulary import tokens_of
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import save_pretrained
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.track import TrackConfig, run

bigwig = pytest.importorskip("pyBigWig")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("track")
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="MM", width=16)).eval()
    save_pretrained(model, folder / "model", {"train": "toy"})
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 500))
    letters = letters[:200] + "N" * 20 + letters[220:]
    (folder / "g.fa").write_text(f">b\n{letters}\n>a\n{letters[:100]}\n")
    build([folder / "g.fa"], folder / "g.dna")
    return folder, model, letters


@torch.no_grad()
def by_hand(model, letters, start, end, left):
    first = max(0, start - left)
    text = letters[first:end]
    tokens_BT = torch.from_numpy(tokens_of(text).copy())[None]
    log_p = model(tokens_BT[:, :-1])[0][0, :, 7:11].double().log_softmax(-1)
    found = []
    for t in range(start - first, len(text)):
        known = t > 0 and text[t] != "N"
        found.append(-float(log_p[t - 1, int(tokens_BT[0, t]) - 7]) / math.log(2) if known else math.nan)
    return found


@pytest.mark.parametrize("left", [0, 50, 10_000])
def test_bigwig_holds_the_bits_of_every_known_base(place, tmp_path, left):
    folder, model, letters = place
    out = tmp_path / "t.bw"
    config = TrackConfig(
        model=folder / "model",
        genome=str(folder / "g.dna"),
        regions=("a:11-60", "b:151-400"),
        out=out,
        picture=tmp_path / "t.png",
        left=left,
    )
    result = run(config)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    file = bigwig.open(str(out))
    assert file.chroms() == {"b": 500, "a": 100}
    values = []
    for contig, start, end in (("b", 150, 400), ("a", 10, 60)):
        found = np.array(file.values(contig, start, end))
        expected = by_hand(model, letters if contig == "b" else letters[:100], start, end, left)
        assert np.allclose(found, expected, atol=1e-4, equal_nan=True)
        values.append(found[~np.isnan(found)])
    assert file.intervals("b", 0, 150) is None and np.isnan(file.values("b", 200, 220)).all()
    together = np.concatenate(values)
    assert result.num_bases == len(together) and result.bits_per_base == pytest.approx(together.mean(), abs=1e-4)


def test_a_disk_too_small_is_told_before_the_work(place, tmp_path, monkeypatch):
    folder, _, _ = place
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(InputError, match=r"600 bases may take 1\.0 MiB as bigWig, 1\.0 are free"):
        run(TrackConfig(model=folder / "model", genome=str(folder / "g.dna"), out=tmp_path / "t.bw"))
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"out": None}, "say where with -o track.bw"),
        ({"out": "t.txt"}, r"must end in .bw or .bigwig"),
        ({"regions": ("b:1-501",)}, "ends past b, which has 500 bases"),
        ({"regions": ("c:1-5",)}, "contig 'c' is not in"),
        ({"left": -1}, "0 or more bases"),
        ({"regions": ("a:1-1",)}, "with a base read before it"),
        ({"regions": ("b:100-100",), "left": 0}, "with a base read before it"),
        ({"out": "l\udce9t.bw"}, "names in UTF-8 alone"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(change, words, place, tmp_path):
    folder, _, _ = place
    values = {"model": folder / "model", "genome": str(folder / "g.dna"), "out": "t.bw", **change}
    if values["out"] is not None:
        values["out"] = tmp_path / values["out"]
    with pytest.raises(InputError, match=words):
        run(TrackConfig(**values))
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]
