"""Splits, windows and their order, by hand and by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dna_mamba.data.datamodule import TrainingData
from dna_mamba.data.intervals import Interval, merge, shared_bases, subtract
from dna_mamba.data.length_warmup import Stage, lengths, plan_stages, stage_of_step
from dna_mamba.data.objectives import TokenPolicy, tokens_and_weights
from dna_mamba.data.splits import Split, default_split, split_from_bed, split_from_regions
from dna_mamba.data.steps import TrainingSteps
from dna_mamba.data.store.build import build
from dna_mamba.data.vocabulary import reverse_complement_tokens
from dna_mamba.data.windows import flips_of_epoch, known_bases, order_of_epoch, plan_windows, read_by
from dna_mamba.errors import InputError
from tests.conftest import random_letters


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    letters = list(random_letters(30_000, 5))
    letters[:10_000] = "N" * 10_000
    letters[17_000:17_500] = "n" * 500
    fasta = f">c1\n{''.join(letters)}\n>c2\n{random_letters(12_000, 6)}\n>tiny\nACGTACGT\n"
    (folder / "x.fa").write_text(fasta)
    return build([folder / "x.fa"], folder / "x.dna")


def test_the_default_split_counts_known_bases(genome):
    split = default_split(genome)
    # c1 has 19,500 known bases: 15,600 after the first 10,000 N, with 500 N on the way
    assert split.valid == (Interval("c1", 26_100, 28_050), Interval("c2", 9_600, 10_800))
    assert split.test == (Interval("c1", 28_050, 30_000), Interval("c2", 10_800, 12_000))
    assert merge(split.train) == [Interval("c1", 0, 26_100), Interval("c2", 0, 9_600), Interval("tiny", 0, 8)]
    assert set(split.shared().values()) == {0}


def test_the_demo_is_split_as_documented(tmp_path):
    from dna_mamba.data.selection import demo_genome

    store = build([demo_genome()], tmp_path / "demo.dna")
    split = default_split(store)
    assert split.valid == (Interval("chr20", 9_600_000, 9_800_000),)
    assert split.test == (Interval("chr20", 9_800_000, 10_000_000),)
    assert store.manifest.sources[0].sha256 in (demo_genome().parent / "PROVENANCE.md").read_text()
    assert store.contigs["chr20"].num_acgt == 2_000_000


def test_a_bed_says_what_is_what(genome, write):
    bed = write("s.bed", "c1\t10000\t20000\ttrain\nc1\t20000\t25000\tvalid\nc2\t0\t12000\tTest\n")
    split = split_from_bed(genome, bed)
    assert split.train == (Interval("c1", 10_000, 20_000),) and split.test == (Interval("c2", 0, 12_000),)


@pytest.mark.parametrize(
    "rows, words",
    [
        ("c1\t0\t10\ttrain\n", "has no 'valid' row"),
        ("c1\t0\t10\tvalid\n", "has no 'train' row"),
        ("c1\t0\t10\ttrian\n", "column 4 is 'trian'; expected train, valid or test"),
        ("c1\t0\t10\n", "column 4 is missing"),
        ("chrc1\t0\t10\ttrain\n", "contig 'chrc1' is not in .*did you mean 'c1'"),
        ("c1\t0\t40000\ttrain\n", "ends past c1, which has 30,000 bases"),
        ("c1\t0\t100\ttrain\nc1\t90\t200\tvalid\n", "train and valid share 10 bases"),
    ],
)
def test_a_bad_split_file_is_refused(genome, write, rows, words):
    path = write("s.bed", rows)
    with pytest.raises(InputError, match=words) as error:
        split_from_bed(genome, path)
    assert "s.bed" in str(error.value)


def test_held_out_regions_and_contigs(genome):
    split = split_from_regions(genome, ["c1:20001-22000"], ["c2"])
    assert split.valid == (Interval("c1", 20_000, 22_000),) and split.test == (Interval("c2", 0, 12_000),)
    assert merge(split.train) == [Interval("c1", 0, 20_000), Interval("c1", 22_000, 30_000), Interval("tiny", 0, 8)]
    with pytest.raises(InputError, match="share 1,000 bases"):
        split_from_regions(genome, ["c1:20001-22000"], ["c1:21001-23000"])
    with pytest.raises(InputError, match="leave nothing to train on"):
        split_from_regions(genome, ["c1", "c2", "tiny"], [])
    with pytest.raises(InputError, match="needs --valid too"):
        split_from_regions(genome, [], ["c2"])


def test_mamba_rule_tiles_short_windows_and_ends_long_ones_with_the_interval(genome):
    split = Split(train=(Interval("c2", 0, 4000),), valid=(Interval("c2", 9000, 10_000),), test=())
    tiles = plan_windows(genome, split, 1000)
    assert tiles.starts.tolist() == [0, 1000, 2000, 3000]
    both = plan_windows(
        genome, split, 6000
    )  # one starts with the interval, one would end with it and is shifted to fit
    assert both.starts.tolist() == [0]
    split = Split(train=(Interval("c2", 4000, 8000),), valid=(Interval("c2", 9000, 10_000),), test=())
    assert plan_windows(genome, split, 6000).starts.tolist() == [
        2000,
        3000,
    ]  # ends at 8000; start 4000 shifted to end at 9000


def test_hyenadna_rule_takes_the_first_bases_or_extends_both_ways(genome):
    split = Split(train=(Interval("c2", 4000, 6000),), valid=(Interval("c2", 9000, 10_000),), test=())
    assert plan_windows(genome, split, 1000, rule="hyenadna").starts.tolist() == [4000]
    assert plan_windows(genome, split, 4000, rule="hyenadna").starts.tolist() == [3000]


def test_windows_of_n_are_dropped_and_counted(genome):
    split = default_split(genome)
    windows = plan_windows(genome, split, 1000)
    assert windows.num_too_many_n == 10  # the ten leading windows of c1; the 500 N are half a window, not more
    assert windows.num_no_room == 0 or "tiny" in genome.contigs
    assert plan_windows(genome, split, 1000, max_n=0.4).num_too_many_n == 11


def test_a_window_without_a_target_is_never_drawn(tmp_path):
    fasta = tmp_path / "n.fa"
    fasta.write_text(">c\n" + "A" + "N" * 99 + "ACGT" * 4000 + "\n")
    windows = plan_windows(build([fasta], tmp_path / "n.dna"), Split(
        train=(Interval("c", 0, 200),), valid=(Interval("c", 8000, 9000),), test=()), 100, max_n=1.0)  # fmt: skip
    assert windows.starts.tolist() == [100]  # the first has an A, but nothing before it


stretches = st.lists(
    st.tuples(st.sampled_from(["c1", "c2"]), st.integers(0, 11_000), st.integers(1, 3000)), min_size=1, max_size=6
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    train=stretches,
    held_out=stretches,
    length=st.integers(2, 9000),
    rule=st.sampled_from(["mamba", "hyenadna", "tile"]),
)
def test_no_window_ever_reaches_into_held_out_bases_or_past_its_contig(genome, train, held_out, length, rule):
    valid = [Interval(c, s, min(s + n, 12_000)) for c, s, n in held_out]
    rest = subtract([Interval(c, s, min(s + n, 12_000)) for c, s, n in train], valid)
    if not rest:
        return
    split = Split(train=tuple(rest), valid=tuple(merge(valid)), test=())
    try:
        windows = plan_windows(genome, split, length, rule=rule, max_n=1.0)
    except InputError as error:
        assert "no window" in str(error)
        return
    names = [c.name for c in genome.manifest.contigs]
    places = [Interval(names[c], int(s), int(s) + length) for c, s in zip(windows.contigs, windows.starts, strict=True)]
    assert all(place.end <= genome.contigs[place.contig].length for place in places)
    assert shared_bases(places, valid) == 0
    assert len({(p.contig, p.start) for p in places}) == len(places)


def test_a_window_longer_than_what_there_is_says_what_would_fit(genome):
    with pytest.raises(
        InputError, match=r"no window of 27,000 bases fits: .* c1:1-26100 with 26,100 bases; take --seq-len 26100"
    ):
        plan_windows(genome, default_split(genome), 27_000)


def test_lengths_double_up_to_the_longest():
    assert lengths("mamba", 8192) == [1024, 2048, 4096, 8192]
    assert lengths("mamba", 3000) == [1024, 2048, 3000]
    assert lengths("mamba", 500) == [500]
    assert lengths("hyenadna", 256) == [64, 128, 256]
    assert lengths("none", 8192) == [8192]
    with pytest.raises(InputError, match="'mambo' is unknown; did you mean 'mamba'"):
        lengths("mambo", 8192)


@pytest.mark.parametrize(
    "num_steps, expected", [(24, [4, 4, 4, 12]), (25, [4, 4, 4, 13]), (4, [1, 1, 1, 1]), (1000, [166, 166, 166, 502])]
)
def test_warmup_takes_at_most_half_of_the_steps_and_at_least_one_a_stage(num_steps, expected):
    stages = plan_stages("mamba", 8192, num_steps)
    assert [stage.num_steps for stage in stages] == expected
    assert [stage_of_step(stages, n)[0] for n in range(num_steps)] == [
        i for i, n in enumerate(expected) for _ in range(n)
    ]


def test_too_few_steps_for_the_stages_is_an_error():
    with pytest.raises(InputError, match="3 steps are too few for the 4 stages"):
        plan_stages("mamba", 8192, 3)


@pytest.fixture
def steps(genome):
    split = default_split(genome)
    stages = (Stage(window_bases=128, num_steps=30), Stage(window_bases=512, num_steps=20))
    windows = [plan_windows(genome, split, stage.window_bases) for stage in stages]
    return TrainingSteps(genome, stages, windows, bases_per_step=2048, seed=3, policy=TokenPolicy())


def test_bases_a_step_are_the_same_in_every_stage(steps):
    assert {steps[n][0].numel() for n in range(len(steps))} == {2048}


def test_an_epoch_draws_every_window_once_and_both_strands(steps):
    per_epoch = len(steps.windows[0])
    drawn = np.concatenate([steps.places(n)[1] for n in range(30)])
    first = drawn[:per_epoch]
    assert len({tuple(row) for row in first[:, :2].tolist()}) == min(per_epoch, len(first))
    assert 0.35 < drawn[:, 2].mean() < 0.65
    if len(drawn) >= 2 * per_epoch:
        assert not np.array_equal(first, drawn[per_epoch : 2 * per_epoch])


def test_every_epoch_has_an_order_and_strands_of_its_own(steps):
    for function in (lambda *a: order_of_epoch(*a, 500), lambda *a: flips_of_epoch(*a, 500, 0.5)):
        drawn = [tuple(function(*a)) for a in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (2**60, 0, 0), (2**60 + 1, 0, 0))]
        assert len(set(drawn)) == 5
        assert tuple(function(0, 0, 1)) == drawn[1]


def test_a_flipped_window_is_the_reverse_complement_of_its_place(steps, genome):
    stored, places, *_ = steps[4]
    tokens, _ = tokens_and_weights(stored, TokenPolicy())
    names = [c.name for c in genome.manifest.contigs]
    assert set(places[:, 2].tolist()) == {0, 1}
    for row, (contig, start, flipped) in zip(tokens.numpy(), places.tolist(), strict=True):
        forward = genome.tokens(Interval(names[contig], start, start + 128))
        assert np.array_equal(row, reverse_complement_tokens(forward) if flipped else forward)


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_the_loader_gives_the_same_steps_from_any_start_with_any_number_of_workers(steps, num_workers):
    data = TrainingData(steps, first_step=27, num_workers=num_workers)
    batches = list(data.train_dataloader())
    assert len(batches) == 23
    for number, (stored, places, sum_of_weights, _) in enumerate(batches, 27):
        assert torch.equal(stored, steps[number][0]) and torch.equal(places, steps[number][1])
        assert sum_of_weights == float(tokens_and_weights(stored, TokenPolicy())[1][:, 1:].double().sum())


def test_weights_and_tokens_of_the_policy():
    stored = torch.tensor([[0, 9, 4, 12, 3]], dtype=torch.uint8)  # A, masked C, N, masked N, T
    tokens, weights = tokens_and_weights(stored, TokenPolicy(soft_mask_weight=0.25))
    assert tokens.tolist() == [[7, 8, 11, 11, 10]] and weights.tolist() == [[1.0, 0.25, 0.0, 0.0, 1.0]]
    tokens, weights = tokens_and_weights(stored, TokenPolicy(start_token=True, end_token=True, n_weight=0.5))
    assert tokens.tolist() == [[2, 7, 8, 11, 11, 10, 1]]
    assert weights.tolist() == [[0.0, 1.0, 1.0, 0.5, 0.5, 1.0, 1.0]]
    with pytest.raises(InputError, match="n_weight 2 must lie between 0 and 1"):
        TokenPolicy(n_weight=2)


def test_known_bases_and_those_in_windows_as_sets_of_places(genome):
    windows = [plan_windows(genome, default_split(genome), length) for length in (700, 3000)]
    names = [contig.name for contig in genome.manifest.contigs]
    places = {
        (names[contig], place)
        for some in windows
        for contig, start in zip(some.contigs.tolist(), some.starts.tolist(), strict=True)
        for place in range(start, start + some.length)
    }
    found = read_by(genome, windows)
    assert {(one.contig, place) for one in found for place in range(one.start, one.end)} == places
    assert sum(map(len, found)) == len(places)
    assert known_bases(genome, [*found, found[0]]) == sum(
        genome.fetch(Interval(contig, place, place + 1)) != "N" for contig, place in places
    )


def test_a_process_that_leaves_its_readers_alone_ends(tmp_path):
    """They leave SIGTERM to the run, and multiprocessing sends it at the end of a process and waits."""
    import subprocess
    import sys

    code = """
import numpy as np
from dna_mamba.data.datamodule import TrainingData
from dna_mamba.data.steps import Drawn, DrawnSteps
def draw(length, epoch, index):
    return Drawn(np.zeros(length, np.uint8), 0, 0, index)
loader = iter(TrainingData(DrawnSteps(draw, [8], steps_per_epoch=5000, batch=2), num_workers=2).train_dataloader())
next(loader)
import os, signal
os.kill(loader._workers[0].pid, signal.SIGTERM)  # as to a process group: it reads on
for _ in range(20):
    next(loader)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
    )  # generous: or never
    assert done.returncode == 0, done.stderr
