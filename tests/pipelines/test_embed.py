"""Embeddings: the same vectors whatever the pieces, companions, shards and formats; rows keep their names."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import dna_mamba as dm
from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.build import build
from dna_mamba.data.vocabulary import tokens_of
from dna_mamba.embedder import Embedder
from dna_mamba.errors import InputError, TerminatedError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import save_pretrained
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines import embed as pipeline
from dna_mamba.pipelines.embed import columns_of, embed
from dna_mamba.reading.settings import EmbedConfig
from dna_mamba.reading.vectors import Vectors
from tests.conftest import ROOT

LENGTHS = (5, 300, 41, 300, 1, 300, 41, 257)


def letters_of(number, seed):
    return "".join(np.random.default_rng(seed).choice(list("ACGTN"), number, p=[0.24] * 4 + [0.04]))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DnaMamba(BackboneConfig(pattern="MMM", width=16)).eval().use_implementation("cpu")


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_pretrained(model, folder, {"train": "toy"})
    return folder


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("fasta") / "r.fa"
    path.write_text("".join(f">r{i}\n{letters_of(n, i)}\n" for i, n in enumerate(LENGTHS)))
    return path


@pytest.fixture(scope="module")
def genome(fasta):
    return build([fasta], fasta.with_suffix(".dna"))


@torch.no_grad()
def by_hand(model, letters, layer, pool, strands="forward"):
    """One pass over one sequence, in plain torch; layers are read by hooks."""

    def one(text):
        tokens_BT = torch.from_numpy(tokens_of(text).copy())[None]
        if layer == len(model.backbone.layers):
            return model.backbone(tokens_BT)[0][0].double().numpy()
        if layer == 0:
            return model.backbone.embedding(tokens_BT.long())[0].double().numpy()
        caught = {}
        handle = model.backbone.layers[layer].norm.register_forward_hook(lambda m, i, o: caught.update(stream=o[1]))
        model.backbone(tokens_BT)
        handle.remove()
        return caught["stream"][0].double().numpy()

    vectors_TD = one(letters)
    other_TD = one(letters[::-1].translate(str.maketrans("ACGT", "TGCA")))[::-1]
    found = []
    for number, v in enumerate((vectors_TD, other_TD)):
        if pool in ("mean", "max"):
            found.append(getattr(v, pool)(0))
        elif pool == "last":
            found.append(v[0] if number else v[-1])
        else:
            size = 1 if pool == "none" else int(pool[7:])
            found.append(np.stack([v[i : i + size].mean(0) for i in range(0, len(v), size)]))
    return found[0] if strands == "forward" else (found[0] + found[1]) / 2


@pytest.mark.parametrize("pool", ["mean", "last", "max", "none", "window:64", "window:7"])
@pytest.mark.parametrize("layer", [0, 2, -1])
def test_vectors_are_those_of_one_pass(model, genome, pool, layer):
    intervals = [(Interval(c.name, 0, c.length), c.name) for c in genome.manifest.contigs]
    for strands in ("forward", "both"):
        for piece in (37, 100_000):
            found = embed(
                model, genome, intervals, EmbedConfig(layer=layer, pool=pool, strands=strands), piece_bases=piece
            )
            for (interval, _), vector in zip(intervals, found, strict=True):
                expected = by_hand(model, genome.fetch(interval), layer % 4, pool, strands)
                assert vector.shape == expected.shape and np.allclose(vector, expected, atol=2e-5), (
                    interval,
                    strands,
                    piece,
                )


def test_rows_of_the_other_strand_lie_where_they_were_read(model, genome):
    config = EmbedConfig(pool="window:100")
    places = [(Interval("r1", 20, 270, strand), strand) for strand in "+-"]
    rows = columns_of(places, config, np.array([0, 3, 6]), range(2), 0, 6)
    vectors = np.concatenate(embed(model, genome, places, config))
    assert rows["start"].tolist() == [20, 120, 220, 170, 70, 20] and rows["end"].tolist() == [
        120,
        220,
        270,
        270,
        170,
        70,
    ]
    assert rows["name"].tolist() == ["+"] * 3 + ["-"] * 3
    text = genome.fetch(Interval("r1", 20, 270, "-"))
    assert np.allclose(vectors[3:], by_hand(model, text, 3, "window:100"), atol=2e-5)


def read(path):
    if path.suffix == ".npz":
        found = np.load(path)
        return found["name"].tolist(), found["embeddings"], found["start"].tolist()
    if path.suffix == ".parquet":
        import pandas as pd

        table = pd.read_parquet(path)
        return table["name"].tolist(), table[[c for c in table if c[1:].isdigit()]].to_numpy(), table["start"].tolist()
    import anndata

    table = anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    return table.obs["name"].tolist(), np.asarray(table.X), table.obs["start"].tolist()


@pytest.mark.filterwarnings("ignore")
def test_every_format_holds_the_same_and_shards_join_to_the_whole(
    directory, fasta, model, tmp_path, monkeypatch, capsys
):
    from dna_mamba import cli

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["dna-mamba", "embed", str(directory), str(fasta), *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    for ending in ("npz", "parquet", "h5ad", "zarr"):
        said = json.loads(run("-o", tmp_path / f"o.{ending}", "--json"))
        assert said["rows"] == 8 and said["width"] == 16 and said["bases"] == sum(LENGTHS)
        names, vectors, starts = read(tmp_path / f"o.{ending}")
        assert names == [f"r{i}" for i in range(8)] and starts == [0] * 8
        for i, n in enumerate(LENGTHS):
            assert np.allclose(vectors[i], by_hand(model, letters_of(n, i), 3, "mean"), atol=2e-5)
    monkeypatch.setattr(pipeline, "PART_BASES", 600)
    whole = run("-o", tmp_path / "o.npz") and read(tmp_path / "o.npz")
    for of in (1, 2, 3, 9):  # the last leaves shards without a sequence
        shards = []
        for i in range(1, of + 1):
            run("-o", tmp_path / f"s{i}.npz", "--shard", f"{i}/{of}")
            shards.append(read(tmp_path / f"s{i}.npz"))
        assert [name for names, _, _ in shards for name in names] == whole[0]
        assert np.array_equal(np.concatenate([vectors for _, vectors, _ in shards]), whole[1])  # to the bit
    assert of > sum(len(names) > 0 for names, _, _ in shards) > 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_table_of_sequences_is_embedded(directory, model, write, tmp_path):
    lines = [f"{name},{letters_of(n, n)},x" for name, n in (("one", 90), ("two", 30))]
    for path, text in ((write("t.csv", "ID,Sequence,other\n" + "\n".join(lines) + "\n"), None),
                       (write("t.tsv", "seq\n" + letters_of(90, 90) + "\n" + letters_of(30, 30) + "\n"), "row")):  # fmt: skip
        pipeline.run(
            pipeline.EmbedRunConfig(model=directory, sequences=str(path), out=tmp_path / "o.npz", device="cpu")
        )
        names, vectors, _ = read(tmp_path / "o.npz")
        assert names == (["row1", "row2"] if text else ["one", "two"])
        for row, n in zip(vectors, (90, 30), strict=True):
            assert np.allclose(row, by_hand(model, letters_of(n, n), 3, "mean"), atol=2e-5)
    for text, words in (
        ("name,dna\na,ACGT\n", "columns name, dna; expected one named sequence"),
        ("sequence\nACGT\nACXT\n", "row 3"), ("sequence\n\"\"\n", "row 2: the sequence is empty"),
        ('sequence,name\nACGT,"a\nGGGG,b\n', "cannot read"), ('sequence,name\nACGT,"a\nb"\n', "a quote left open"),
        ("sequence,name\nACGT\n", "row 2: 1 columns, the header has 2"), ("", "columns none"), ("sequence\n", "no sequence"),
    ):  # fmt: skip
        config = pipeline.EmbedRunConfig(
            model=directory, sequences=str(write("bad.csv", text)), out=tmp_path / "bad.npz"
        )
        with pytest.raises(InputError, match=words):
            pipeline.run(config)
    assert not (tmp_path / "bad.npz").exists()


@pytest.mark.parametrize("ending", ["npz", "parquet"])
@pytest.mark.parametrize("options", [{"pool": "mean"}, {"pool": "window:50", "strands": "both"}], ids=str)
def test_a_run_that_was_ended_goes_on_to_the_same_bytes(directory, fasta, tmp_path, monkeypatch, ending, options):
    monkeypatch.setattr(pipeline, "PART_BASES", 300)

    def config(name, **more):
        embed_config = EmbedConfig(**options | more)
        return pipeline.EmbedRunConfig(
            model=directory, sequences=str(fasta), out=tmp_path / f"{name}.{ending}", device="cpu", embed=embed_config
        )

    whole = pipeline.run(config("whole"))
    read_parts, original = [], Vectors.read

    def ends_at(number):
        def read(self, numbers):
            if len(read_parts) == number:
                raise TerminatedError(15)
            read_parts.append(numbers)
            original(self, numbers)

        return read

    for number in (1, 3):
        monkeypatch.setattr(Vectors, "read", ends_at(number))
        with pytest.raises(TerminatedError):
            pipeline.run(config("cut"))
        assert not config("cut").out.exists()
    with open(tmp_path / f".cut.{ending}.unfinished" / "done", "ab") as file:
        file.write(b"4")  # torn: no line end
    monkeypatch.setattr(Vectors, "read", lambda self, numbers: (read_parts.append(numbers), original(self, numbers)))
    result = pipeline.run(config("cut"))
    assert [n for part in read_parts for n in part] == list(range(8))  # nothing twice, nothing left out
    assert 0 < result.resumed_bases < result.num_bases == whole.num_bases
    assert config("cut").out.read_bytes() == config("whole").out.read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    monkeypatch.setattr(Vectors, "read", ends_at(len(read_parts) + 1))
    with pytest.raises(TerminatedError):
        pipeline.run(config("cut"))
    monkeypatch.setattr(Vectors, "read", original)
    told = []
    pipeline.run(config("cut", layer=1), warn=told.append)  # other vectors: none of the old are used
    pipeline.run(config("fresh", layer=1))
    assert config("cut").out.read_bytes() == config("fresh").out.read_bytes() and "starts anew" in told[0]


def test_a_zarr_output_that_exists_is_refused_and_a_failed_end_keeps_the_vectors(
    directory, fasta, tmp_path, monkeypatch
):
    (tmp_path / "file.zarr").write_text("mine")
    with pytest.raises(InputError, match="exists; choose another name"):
        pipeline.EmbedRunConfig(model=directory, sequences=str(fasta), out=tmp_path / "file.zarr", device="cpu")
    config = pipeline.EmbedRunConfig(model=directory, sequences=str(fasta), out=tmp_path / "o.npz", device="cpu")

    def fails(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("dna_mamba.pipelines.vector_files._write_npz", fails)
    with pytest.raises(InputError, match="cannot write .*o.npz: Input/output error"):
        pipeline.run(config)
    assert [p.name for p in (tmp_path / ".o.npz.unfinished").glob("*npz*")] == []
    monkeypatch.undo()
    result = pipeline.run(config)
    assert result.resumed_bases == result.num_bases  # nothing was read again
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["file.zarr", "o.npz"]


def test_two_runs_at_one_output_do_not_mix(directory, fasta, tmp_path):
    (tmp_path / ".o.npz.unfinished").mkdir()
    with (
        FileLock(tmp_path / ".o.npz.unfinished" / "lock"),
        pytest.raises(InputError, match="another process is writing"),
    ):
        pipeline.run(
            pipeline.EmbedRunConfig(model=directory, sequences=str(fasta), out=tmp_path / "o.npz", device="cpu")
        )


def test_a_disk_too_small_is_told_before_the_work(directory, fasta, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"8 vectors of 16 take 0\.00 GiB while they are written, 0\.00 are free"):
        pipeline.run(
            pipeline.EmbedRunConfig(model=directory, sequences=str(fasta), out=tmp_path / "o.npz", device="cpu")
        )
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


def test_a_long_sequence_takes_no_more_memory_than_a_short_one(directory, write, tmp_path):
    """16 times the length: the same memory, up to 20 MB (the vectors alone would be 60 MB)."""
    program = (
        "import sys; from pathlib import Path; from dna_mamba.pipelines.embed import *\n"
        "run(EmbedRunConfig(model=Path(sys.argv[1]), sequences=sys.argv[2], out=Path(sys.argv[3]), device='cpu',"
        " embed=EmbedConfig(pool='none'), piece_bases=4096))\n"
        "print([int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"
    )
    peaks = []
    for bases in (65_536, 1_048_576):
        path = write(f"{bases}.fa", ">a\n" + "ACGTTGCA" * (bases // 8) + "\n")
        done = subprocess.run([sys.executable, "-c", program, str(directory), str(path), str(tmp_path / f"{bases}.npz")],
                              capture_output=True, text=True, cwd=ROOT, check=True)  # fmt: skip
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 20_000, peaks
    found = np.load(tmp_path / "1048576.npz")
    assert found["embeddings"].shape == (1_048_576, 16) and found["start"][-1] == 1_048_575


MISTAKES = {
    "format": (["-o", "o.csv"], "must end in .npz, .parquet, .h5ad, .zarr"),
    "layer": (["-o", "o.npz", "--layer", "9"], "layer 9 is not in this model: 0 is the embedding, 3 (or -1) the last"),
    "pool": (["-o", "o.npz", "--pool", "men"], "did you mean 'mean'"),
    "window": (["-o", "o.npz", "--pool", "window:0"], "'window:0' is unknown"),
    "shard": (["-o", "o.npz", "--shard", "4/3"], "--shard 4/3 is not i/n"),
    "genome": (["-o", "o.npz", "--genome", "demo"], "does not end in .bed"),
}


@pytest.mark.parametrize("arguments, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line(arguments, words, directory, fasta, tmp_path, monkeypatch, capsys):
    from dna_mamba import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dna-mamba", "embed", str(directory), str(fasta), *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    found = capsys.readouterr().err
    assert stopped.value.code == 2 and words in found and len(found.strip().splitlines()) == 1, found
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


def test_a_missing_library_is_named(directory, fasta, tmp_path, monkeypatch):
    monkeypatch.setattr("dna_mamba.pipelines.vector_files.find_spec", lambda name: None)
    from dna_mamba.pipelines.embed import EmbedRunConfig, run

    with pytest.raises(InputError, match=r"needs pyarrow; pip install pyarrow"):
        run(EmbedRunConfig(model=directory, sequences=str(fasta), out=tmp_path / "o.parquet"))


def test_three_lines_to_a_result(directory, model):
    loaded = dm.load(directory, device="cpu")
    text = letters_of(200, 3)
    assert np.allclose(loaded.embed(text), by_hand(model, text, 3, "mean"), atol=2e-5)
    both = loaded.embed([text, text[:50]], strands="both", layer=1)
    assert both.shape == (2, 16) and np.allclose(both[1], by_hand(model, text[:50], 1, "mean", "both"), atol=2e-5)
    per_base = loaded.embed([text, "AC"], pool="none")
    assert [v.shape for v in per_base] == [(200, 16), (2, 16)]
    tokens_BT = torch.from_numpy(tokens_of(text).copy())[None]
    with torch.no_grad():
        log_p = loaded(tokens_BT)[0][0, :-1, 7:11].double().log_softmax(-1)
    expected = [float(log_p[t, int(k) - 7]) if k < 11 else np.nan for t, k in enumerate(tokens_BT[0, 1:])]
    assert loaded.score(text, per_base=True).tolist() == pytest.approx(expected, abs=1e-4, nan_ok=True)
    total = np.nansum(expected)
    assert loaded.score([text, "A", text]).tolist() == pytest.approx([total, 0, total], abs=1e-3)
    new = loaded.generate("ACGT", 30, num=2, seed=1)
    assert (
        [len(s) for s in new] == [30, 30]
        and set("".join(new)) <= set("ACGT")
        and new == loaded.generate("ACGT", 30, num=2, seed=1)
    )
    for bad, words in (("", "is empty"), ("ACX", "no letter of DNA"), ([3], "is int")):
        with pytest.raises(InputError, match=words):
            loaded.embed(bad)
    with pytest.warns(UserWarning, match="1 letters U are read as N"):
        assert loaded.score("acgu") == loaded.score("ACGN") != loaded.score("ACGT")
    assert dm.load(directory, device="cpu", rna=True).score("acgu") == loaded.score("ACGT")
    for call in (
        lambda: loaded.embed("ACGT", pool=3), lambda: loaded.embed("ACGT", layer=1.5), lambda: dm.load(None),
        lambda: loaded.generate("ACGT", 5.0), lambda: loaded.generate(seed=-1), lambda: loaded.generate(seed=2**70),
        lambda: loaded.generate(temperature="hot"), lambda: loaded.generate(top_k=2.5),
    ):  # fmt: skip
        with pytest.raises(InputError, match="whole|number|expected"):
            call()
    with pytest.raises(AttributeError):
        _ = dm.nothing


def test_the_embedder_works_inside_scikit_learn(directory):
    generator = np.random.default_rng(0)
    rich = ["".join(generator.choice(list("ACGT"), 60, p=[0.1, 0.4, 0.4, 0.1])) for _ in range(20)]
    poor = ["".join(generator.choice(list("ACGT"), 60, p=[0.4, 0.1, 0.1, 0.4])) for _ in range(20)]
    pipeline = make_pipeline(Embedder(str(directory), device="cpu"), LogisticRegression(C=100))
    assert cross_val_score(pipeline, np.array(rich + poor), [1] * 20 + [0] * 20, cv=4).mean() > 0.9
    fitted = Embedder(str(directory), device="cpu").fit(rich)
    assert fitted.get_feature_names_out().tolist() == [f"e{i}" for i in range(16)] and fitted.transform(rich).shape == (
        20,
        16,
    )
    import pandas as pd

    frame = pd.DataFrame({"DNA": rich[:3]})
    assert np.array_equal(fitted.transform(frame), fitted.transform(rich[:3]))
    with pytest.raises(InputError, match="the columns a, b; give the one"):
        fitted.transform(pd.DataFrame({"a": rich, "b": rich}))
    with pytest.raises(InputError, match="one sequence"):
        Embedder(str(directory)).fit("ACGT")
    for pool, windows in (("none", 60), ("window:25", 3)):
        sided = Embedder(str(directory), pool=pool, device="cpu").fit(rich)
        vectors = sided.transform(poor[:2])
        assert vectors.shape == (2, 16 * windows) == (2, len(sided.get_feature_names_out()))
        expected = dm.load(directory, device="cpu").embed(poor[1], pool=pool)
        assert np.allclose(vectors[1], expected.reshape(-1), atol=1e-6) and sided.get_feature_names_out()[17] == "w1_e1"
        with pytest.raises(InputError, match=r"X\[0\] has 5 bases, those of fit had 60"):
            sided.transform(["ACGTA"])
    with pytest.raises(InputError, match="sequences of one length; these have 4, 60"):
        Embedder(str(directory), pool="none", device="cpu").fit([*rich, "ACGT"])
    with pytest.raises(InputError, match="one sequence"):
        fitted.transform("ACGT")
    with pytest.raises(InputError, match=r"X\[1\] is float, expected a sequence"):
        fitted.transform(["ACGT", float("nan")])
    assert np.array_equal(fitted.transform(iter(rich)), fitted.transform(np.array(rich)[:, None]))


# checks of scikit-learn that feed tables of numbers, which are no DNA
EXPECTED_FAILURES: dict[str, str] = {}


def test_scikit_learns_own_checks(directory):
    results = check_estimator(
        Embedder(str(directory), device="cpu"), expected_failed_checks=EXPECTED_FAILURES, on_fail=None
    )
    failed = {r["check_name"]: str(r["exception"])[:150] for r in results if r["status"] == "failed"}
    assert not failed, failed
    assert Path(str(directory)).exists()


def test_a_model_with_a_start_token_is_not_read_without_it(model, tmp_path):
    save_pretrained(model, tmp_path / "model", {"start_token": True})
    with pytest.raises(InputError, match="trained with a start token"):
        dm.load(tmp_path / "model", device="cpu")
