"""What is held out, what is read, what is counted: by the command's own numbers against counts by hand."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dna_mamba.data import selection
from dna_mamba.data.intervals import Interval, each_base_once
from dna_mamba.data.labelled import LabelledContig, LabelledWindows
from dna_mamba.data.markov import MarkovModels
from dna_mamba.data.splits import split_from_regions
from dna_mamba.data.store.build import build
from dna_mamba.data.store.cache import open_genome
from dna_mamba.data.windows import plan_windows, read_by
from dna_mamba.errors import InputError
from dna_mamba.model.checkpoints.native import from_pretrained, save_pretrained
from dna_mamba.pipelines import audit, evaluate, presets, pretrain, pretrain_plan
from dna_mamba.pipelines.simulate import SimulateConfig
from dna_mamba.pipelines.simulate import preset as simulation_preset
from dna_mamba.pipelines.simulate import run as simulate
from dna_mamba.reading.losses import Score
from dna_mamba.training import checkpoint
from dna_mamba.training.optimizer import OptimizerConfig
from tests.bad_input.contract import run_command
from tests.bad_input.test_models import resealed
from tests.conftest import random_letters


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held")
    t, v = random_letters(40_000, 1), random_letters(3000, 2)
    (folder / "g.fa").write_text(
        f">t\n{t}\n>v\n{'N' * 3000}{v}\n>w\n{random_letters(3000, 3)}\n>short\n{random_letters(50, 4)}\n"
    )
    return folder, build([folder / "g.fa"], folder / "g.dna")


def config_of(folder, **training):
    base = presets.demo()
    return replace(
        base, device="cpu", model=replace(base.model, pattern="M", width=16),
        data=replace(base.data, genome=str(folder / "g.dna"), valid=("v",), test=("w",)),
        training=replace(base.training, **{"seq_len": 256, "steps": 4, "bases_per_step": 1024, "validate_every_steps": 2, **training}),
        evaluation=replace(base.evaluation, valid_bases=1000, test_bases=1000, markov_max_order=1),
    )  # fmt: skip


@pytest.mark.parametrize("length", [64, 700, 1000, 1024, 70_000, 131_072, 200_000])
def test_every_training_base_lies_in_a_window_at_any_length(length, tmp_path):
    (tmp_path / "x.fa").write_text(f">c\n{random_letters(600_123, 1)}\n")
    genome = build([tmp_path / "x.fa"], tmp_path / "x.dna")
    split = split_from_regions(genome, ["c:300001-310000"], ["c:310001-320000"])
    windows = plan_windows(genome, split, length)
    covered = np.zeros(600_123, bool)
    for start in windows.starts:
        covered[start : start + length] = True
    assert not covered[300_000:320_000].any() and covered.sum() == 580_123
    found = read_by(genome, [windows])
    assert [(i.start, i.end) for i in found] == [(0, 300_000), (320_000, 600_123)]


def test_baselines_are_fitted_on_what_windows_reach_and_the_plan_counts_it(place):
    folder, genome = place
    config = config_of(folder, seq_len=256, length_warmup="none")
    config = replace(
        config, data=replace(config.data, window_rule="hyenadna")
    )  # the first bases of each interval alone
    plan = pretrain_plan.plan(config)
    assert (plan.train_bases, plan.valid_bases, plan.test_bases) == (40_050, 3000, 3000)
    assert plan.never_read_bases == 40_050 - 256  # one window, and none on a contig that is shorter than it
    result = pretrain.run(config, folder / "rule")
    by_hand = MarkovModels.fit(genome, [Interval("t", 0, 256)], both_strands=True, max_order=1)
    bases = genome.stored("w", 0, 3000) & 7
    stretch = next(
        iter(pretrain_plan.sample_of(config, genome, selection.load_split(genome, config.data), "test", 1000))
    )
    expected = by_hand.score(
        [(bases[stretch.read_from : stretch.end], stretch.first_target(False) - stretch.read_from)]
    ).plain
    assert [row.test_plain for row in result.markov] == pytest.approx(expected.tolist())


def test_a_held_out_contig_that_begins_with_n_does_not_lose_the_run(place):
    folder, _ = place
    out = folder / "run"
    seen = []
    result = pretrain.run(
        config_of(folder), out, on_phase=lambda words: seen.append((words, (out / "results.json").exists()))
    )
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert (
        all(math.isfinite(float(row["valid_bits_per_base"])) for row in rows[1::2])
        and result.model.total.num_bases == 1000
    )
    assert (
        "fitting Markov models on the same training bases",
        True,
    ) in seen  # what is known is there before the next begins
    assert {"model", "model-last", "loss.png", "report.png"} <= {path.name for path in out.iterdir()}
    values = json.loads((out / "results.json").read_text())
    again = pretrain.run(config_of(folder), out, resume=True, on_phase=lambda words: seen.append(words))
    assert "the run had ended; its results are read from results.json" in seen
    assert again.rows == result.rows and again.markov == result.markov and again.model == result.model
    assert values["complete"] and json.loads((out / "results.json").read_text()) == values


def test_a_picture_that_fails_is_a_remark(place, monkeypatch):
    folder, _ = place

    def broken(*arguments):
        raise MemoryError("3.3 GiB")

    monkeypatch.setattr("dna_mamba.pipelines.pictures.save", broken)
    said = []
    pretrain.run(config_of(folder), folder / "nopicture", warn=said.append)
    assert sum("was not drawn: 3.3 GiB; nothing else is missing" in words for words in said) == 2
    assert json.loads((folder / "nopicture" / "results.json").read_text())["complete"]


def test_a_validation_that_is_not_finite_is_told_and_a_model_is_there(place, monkeypatch):
    folder, _ = place
    real = pretrain.score_regions

    def broken(*arguments, **options):
        found = real(*arguments, **options)
        calls.append(1)  # the first is the validation, the second the score at the end
        return replace(found, total=Score(num_bases=0, nats=0.0)) if len(calls) == 1 else found

    calls = []
    monkeypatch.setattr(pretrain, "score_regions", broken)
    said = []
    pretrain.run(config_of(folder, steps=2), folder / "nan", warn=said.append)
    assert any("validation gave nan bits per base, which is compared with nothing" in words for words in said)
    assert (folder / "nan" / "model" / "config.json").exists() and (
        folder / "nan" / "model-last" / "config.json"
    ).exists()


@pytest.mark.parametrize("stopped", [2, 4])  # 4: the run had ended, but for its results
@pytest.mark.parametrize("left", ["nothing", "half of it", "all"])
def test_a_best_model_that_is_gone_is_told_and_a_resumed_run_ends_with_one(left, stopped, place, tmp_path):
    folder, _ = place
    config, out = (
        config_of(folder, checkpoint_every_steps=1, keep_checkpoints=9, validate_every_steps=1),
        tmp_path / "run",
    )
    pretrain.run(config, out)
    (out / "results.json").unlink()
    paths = checkpoint.list_checkpoints(out / "checkpoints")
    for path in paths:  # as after the files of another machine were copied in part
        if checkpoint.step_of(path) > stopped or checkpoint.step_of(path) == 1:
            shutil.rmtree(path)
    newest = paths[stopped - 1]
    found = json.loads((newest / "counters.json").read_text()) | {
        "best_step": 1,
        "best": [-0.5],
    }  # never beaten
    resealed(newest, "counters.json", json.dumps(found).encode())
    if left == "nothing":
        shutil.rmtree(out / "model")
    elif left == "half of it":
        (out / "model" / "model.safetensors").write_bytes(b"")
    said = []
    pretrain.run(config, out, resume=True, warn=said.append)
    assert any("the best model, of step 1, is neither in" in words for words in said) == (left != "all")
    assert from_pretrained(out / "model") and json.loads((out / "results.json").read_text())["complete"]


def test_a_part_without_a_base_to_score_is_refused_before_anything_is_written(place, tmp_path):
    (tmp_path / "n.fa").write_text(f">t\n{random_letters(9000, 1)}\n>v\n{'N' * 400}\n>w\n{random_letters(400, 2)}\n")
    config = config_of(place[0])
    config = replace(config, data=replace(config.data, genome=str(tmp_path / "n.fa")))
    with pytest.raises(InputError, match="valid part"):
        pretrain.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_says_when_it_is_scored_on_what_trained_it(place):
    folder, _ = place
    pretrain.run(config_of(folder), folder / "trained")
    (folder / "alone").mkdir()
    (folder / "trained" / "model").rename(folder / "alone" / "model")  # away from the record of its run
    said = []
    base = evaluate.EvaluateConfig(
        model=folder / "alone" / "model", genome=str(folder / "g.dna"), regions=("t:1-5000", "w:1-10"), device="cpu"
    )
    found = evaluate.run(base, warn=said.append)
    assert found.trained == 5000 and any("was trained on 5,000 of the 5,010 known bases" in words for words in said)
    assert evaluate.run(replace(base, regions=("w",))).trained == 0
    sampled = evaluate.run(replace(base, regions=("v", "w"), max_bases=100))
    assert sampled.sampled and 80 <= sampled.scores.total.num_bases <= 100
    with pytest.raises(InputError, match="no base to score"):
        evaluate.run(replace(base, regions=("v:1-2000",)))


def test_training_sequence_is_known_again_by_its_bases_and_not_by_its_name(place, tmp_path):
    folder, genome = place
    pretrain.run(config_of(folder), tmp_path / "run")
    (tmp_path / "alone").mkdir()
    (tmp_path / "run" / "model").rename(tmp_path / "alone" / "model")
    t = genome.fetch(Interval("t", 0, 40_000))
    snps = "".join("ACGT"["ACGT".index(base) - 1] if place % 1000 == 7 else base for place, base in enumerate(t))
    unlike, names, bases = (
        random_letters(40_000, 77),
        "by the names and places of contigs alone",
        "known again by their sequence",
    )
    cases = {  # contigs of another genome, how many of the first 5,000 bases of the first trained the model, and what is said
        "renamed": ({"NC_1.1": t.lower()}, 5000, bases),
        "renamed, among many": ({"NC_1.1": t, **{f"s{i}": random_letters(100, i) for i in range(400)}}, 5000, bases),
        "renamed and cut": ({"NC_1.1": t[:6000]}, 5000, bases),
        "another person": ({"t": snps}, 5000, bases),
        "another person, renamed": ({"NC_1.1": snps}, 5000, bases),
        "stranger": ({"NC_1.1": unlike}, 0, ""),
        "swapped": ({"t": unlike, "chrt": t}, 0, ""),
        "another species": ({"t": unlike}, None, "trained on contigs named t, which hold other bases here"),
        "moved": ({"t": "A" + t}, None, "trained on contigs named t, which hold other bases here"),
        "nothing to compare": ({"t": "N" * 100 + "AC" * 3000}, 4900, names),
    }
    for number, (contigs, expected, words) in enumerate(cases.values()):
        fasta = tmp_path / f"{number}.fa"
        fasta.write_text("".join(f">{name}\n{letters}\n" for name, letters in contigs.items()))
        said = []
        config = evaluate.EvaluateConfig(
            model=tmp_path / "alone" / "model",
            genome=str(fasta),
            regions=(f"{next(iter(contigs))}:1-5000",),
            device="cpu",
        )
        assert evaluate.run(config, warn=said.append).trained == expected, words
        assert any(words in one for one in said) if words else not any("train" in one for one in said)
        if "chrt" in contigs:
            assert evaluate.run(replace(config, regions=("chrt:1-5000",))).trained == 5000
    model, policy = from_pretrained(tmp_path / "alone" / "model")
    save_pretrained(model, tmp_path / "old", policy, 256, model.trained_on)  # of before there were fingerprints
    for name, expected in (("t", 5000), ("NC_1.1", None)):
        (tmp_path / "old.fa").write_text(f">{name}\n{t}\n")
        config = evaluate.EvaluateConfig(
            model=tmp_path / "old", genome=str(tmp_path / "old.fa"), regions=(f"{name}:1-5000",), device="cpu"
        )
        assert evaluate.run(config).trained == expected


def test_bases_in_several_regions_or_rows_are_scored_once(place, tmp_path):
    folder, _ = place
    base = evaluate.EvaluateConfig(model=Path("human-4x64"), genome=str(folder / "g.dna"), regions=("w",), device="cpu")
    once = evaluate.run(base)
    for regions in (("w", "w:1-50"), ("w:100-3000", "w:1-200"), ("w", "w")):
        found = evaluate.run(replace(base, regions=regions))
        assert found.scores.total == once.scores.total and once.scores.total.num_bases == 2999
    (tmp_path / "s.bed").write_text("t\t0\t9000\ttrain\nv\t3000\t6000\tvalid\nw\t0\t3000\ttest\nw\t100\t200\ttest\n")
    said = []
    config = replace(base, regions=(), split_file=tmp_path / "s.bed")
    assert evaluate.run(config, warn=said.append).scores.total == once.scores.total
    assert any("rows of test overlap; 100 bases" in words for words in said)
    touching = [Interval("w", 50, 60), Interval("w", 0, 50), Interval("a", 7, 9)]
    assert each_base_once(touching) == touching
    more = [*touching, Interval("w", 55, 58), Interval("w", 40, 41), Interval("w", 58, 70)]
    assert each_base_once(more) == [Interval("w", 50, 70), Interval("w", 0, 50), Interval("a", 7, 9)]


def test_equal_sequence_at_another_place_is_found_by_audit(tmp_path):
    same, other = random_letters(20_000, 1), random_letters(20_000, 2)
    turned = same[::-1].translate(str.maketrans("ACGT", "TGCA"))
    (tmp_path / "g.fa").write_text(f">a\n{same}{other}\n>b\n{turned}\n>c\n{random_letters(20_000, 3)}\n")
    found = audit.run(audit.AuditConfig(genome=str(tmp_path / "g.fa"), valid=("b",), test=("c",)))
    assert found.num_shared == 0 and found.tiles_of_part == {"valid": 40, "test": 40}
    assert (
        found.tiles_in_training == {"valid": 40, "test": 0}
        and "valid that are training sequence at another place (31-mers): 40 of 40" in found.as_text()
    )
    assert found.known_of_part == {"train": 40_000, "valid": 20_000, "test": 20_000}


@pytest.mark.parametrize(
    "name, expected", [("Xp", "X"), ("Yq", "Y"), ("17p", "17"), ("X", "X"), ("chr2A", "2"), ("hap", "hap")]
)
def test_an_arm_of_a_chromosome_is_that_chromosome(name, expected):
    contig = LabelledContig(label="a", genome="g", contig="c", length=5, homologue=name)
    assert contig.human_chromosomes == {expected}


def test_draws_that_standardize_are_none_that_trains(place):
    _, genome = place
    contigs = [LabelledContig(label="a", genome="g", contig="t", length=40_000)]
    windows = LabelledWindows({"g": genome}, contigs, 64, seed=3)
    trained = {windows.place(epoch, i) for epoch in range(3) for i in range(200)}
    assert not trained & {windows.place(0, i, 1) for i in range(8)}
    assert not trained & {windows.place(1, i, 1) for i in range(8)}


def test_contigs_that_are_too_short_are_counted(place):
    _, genome = place
    contigs = [LabelledContig(label="a", genome="g", contig=c.name, length=c.length) for c in genome.manifest.contigs]
    assert [c.contig for c in LabelledWindows({"g": genome}, contigs, 5000, seed=0).too_short] == ["w", "short"]


def test_short_runs_warm_up_for_as_long_as_the_second_moment_takes():
    optimizer = OptimizerConfig(peak_rate=1.0)
    assert [optimizer.warmup_steps(n) for n in (1, 10, 60, 200, 400, 3200)] == [1, 5, 30, 40, 40, 320]
    assert optimizer.rate(14, 60) == pytest.approx(0.5) and optimizer.rate(29, 60) == 1.0 > optimizer.rate(30 + 5, 60)
    assert replace(optimizer, fewest_warmup_steps=0).warmup_steps(60) == 6


def test_the_divergence_of_simulated_genomes_is_what_the_manual_says(tmp_path):
    config = SimulateConfig(genome="demo", **simulation_preset("benchmark"))
    found = simulate(config, tmp_path / "sim").divergence_of
    assert json.loads((tmp_path / "sim" / "truth.json").read_text())["divergence_from_human"] == found
    manual = {"chimpanzee": 0.0134, "gorilla": 0.0168, "orangutan": 0.0324}  # docs/species.md
    assert {name: round(found[name], 4) for name in manual} == pytest.approx(manual, abs=2e-4)


def test_options_that_cannot_act_are_refused(tmp_path, capfd):
    (tmp_path / "x.fa").write_text(f">a\n{random_letters(3000)}\n")
    source, manifest = tmp_path / "x.fa", tmp_path / "m.yaml"
    audit = ("genome", "audit")
    for words, option in [
        ((*audit, source, "--tile", "64"), "--tile"),
        ((*audit, source, "--split-by", "contig"), "--split-by"),
        ((*audit, source, "--genomes", tmp_path), "--genomes"),
        ((*audit, source, "--against", source, "--max-n", "0.1"), "--max-n"),
        ((*audit, manifest, "--seq-len", "64"), "--seq-len"),
        (("evaluate", "human-4x64", "--genome", source, "--region", "a", "--split", "valid"), "--split"),
        (("evaluate", "human-4x64", "--rna"), "--rna"),
    ]:
        assert run_command(*words) == 2
        assert option in capfd.readouterr().err


def test_rna_beside_a_packed_genome_is_a_remark(tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGUACGU\n")
    build([tmp_path / "x.fa"], tmp_path / "x.dna")
    said = []
    open_genome(tmp_path / "x.dna", rna=True, warn=said.append)
    assert len(said) == 1 and "--rna does nothing" in said[0]
