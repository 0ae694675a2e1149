"""Drawing new sequence: the distribution that is asked for, log-likelihoods that hold, and prompts of any length."""

import json
import math

import pytest
import torch

from dna_mamba.alphabet import A
from dna_mamba.errors import InputError
from dna_mamba.kernels.next_token import Sampling, probabilities
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.generate import read_prompt
from dna_mamba.reading.generation import generate
from dna_mamba.reading.settings import SamplingConfig
from tests.conftest import dna_mamba


def model_on(device="cpu"):
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="MM", width=16)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform
    return model.to(device).use_implementation("cpu" if device == "cpu" else "triton")


def test_log_likelihoods_are_those_of_the_model_reading_what_was_drawn(device):
    model = model_on(device)
    prompt_T = torch.randint(A, A + 4, (37,), dtype=torch.uint8)
    found = generate(model, prompt_T, 50, num_sequences=3, seed=5)
    assert found.tokens_BT.shape == (3, 50) and ((found.tokens_BT >= A) & (found.tokens_BT < A + 4)).all()
    whole_BT = torch.cat([prompt_T.expand(3, -1), found.tokens_BT], 1).to(device)
    with torch.no_grad():
        logits_BTV, _ = model(whole_BT[:, :-1])
    log_p = logits_BTV[:, 36:, A : A + 4].double().log_softmax(-1)
    expected_B = log_p.gather(-1, (found.tokens_BT.long() - A)[..., None].to(device)).sum((1, 2)).cpu()
    assert torch.allclose(found.log_likelihoods_B, expected_B, atol=2e-3)


def test_bases_are_as_frequent_as_the_model_says(device):
    model = model_on(device)
    prompt_T = torch.tensor([A, A + 1, A + 3], dtype=torch.uint8)
    with torch.no_grad():
        logits_4 = model(prompt_T[None].to(device))[0][0, -1, A : A + 4].double().cpu()
    for config in (SamplingConfig(), SamplingConfig(temperature=0.5), SamplingConfig(temperature=3.0)):
        drawn = generate(model, prompt_T, 1, num_sequences=20_000, config=config, seed=1).tokens_BT[:, 0].long() - A
        expected = (logits_4 / config.temperature).softmax(0)
        counts = torch.bincount(drawn, minlength=4) / 20_000
        assert (counts - expected).abs().max() < 5 * math.sqrt(0.25 / 20_000)


def chances(logits, **options):
    sampling = Sampling(**options)
    return probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.greedy)


def test_filters_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert chances(logits, top_k=2)[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert chances(logits, top_p=0.6)[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert chances(logits, top_p=0.5)[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert chances(logits, top_p=0.9, top_k=1)[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert chances(logits, temperature=0)[0].tolist() == [1, 0, 0, 0]
    squared = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    assert chances(logits, temperature=0.5)[0].tolist() == pytest.approx((squared / squared.sum()).tolist())


def test_the_same_seed_gives_the_same_sequence(device):
    model = model_on(device)
    prompt_T = torch.tensor([A], dtype=torch.uint8)
    one, two, other = (generate(model, prompt_T, 60, num_sequences=2, seed=seed).tokens_BT for seed in (7, 7, 8))
    assert torch.equal(one, two) and not torch.equal(one, other) and not torch.equal(one[0], one[1])
    more = generate(model, prompt_T, 60, num_sequences=80, seed=7).tokens_BT  # 80 take another road through the kernels
    assert torch.equal(more[:2], one) and len({tuple(row.tolist()) for row in more}) > 10


def test_a_prompt_is_read_the_same_in_pieces(device):
    model = model_on(device)
    prompt_T = torch.randint(A, A + 4, (301,), dtype=torch.uint8)
    whole, pieces = (generate(model, prompt_T, 40, seed=3, piece_bases=piece) for piece in (1000, 7))
    assert torch.equal(whole.tokens_BT, pieces.tokens_BT)
    assert torch.allclose(whole.log_likelihoods_B, pieces.log_likelihoods_B, atol=1e-3)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SamplingConfig(temperature=-1), "from 0 up"),
        (lambda: SamplingConfig(top_k=5), "1 to 4"),
        (lambda: SamplingConfig(top_p=0), "above 0"),
        (lambda: generate(model_on(), torch.zeros(0, dtype=torch.uint8), 3), "prompt is empty"),
        (lambda: generate(model_on(), torch.tensor([A]), 0), "both must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_the_command_writes_fasta(write, tmp_path):
    prompt = write("p.fa", ">p\nACGTACGTNNACGT\n")
    options = ("generate", "human-4x64", "--length", "130", "--num", "2", "--seed", "4")
    one = dna_mamba(*options, "--prompt", prompt, "-o", tmp_path / "o.fa", "--json")
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout)["prompt_bases"] == 14
    lines = (tmp_path / "o.fa").read_text().splitlines()
    assert [len(line) for line in lines[1:4]] == [60, 60, 10] and lines[0].startswith(">generated_1 log_likelihood=-")
    two = dna_mamba(*options, "--prompt", "acgtacgtNNACGT")
    assert two.returncode == 0 and two.stdout == (tmp_path / "o.fa").read_text()  # upper or lower case, file or letters
    for more, words in (
        (("--prompt", "ACGX"), "no letter of DNA"),
        (("--prompt", "nowhere.fa"), "nowhere.fa does not exist"),
        (("--top-k", "9"), "1 to 4"),
        (("--temperature", "-1"), "from 0 up"),
        (("-o", str(prompt / "x.fa")), "cannot write"),
    ):
        bad = dna_mamba(*options, *more)
        assert bad.returncode == 2 and words in bad.stderr and len(bad.stderr.strip().splitlines()) == 1, bad.stderr
    assert read_prompt("ACGN").tolist() == [7, 8, 9, 11] and len(read_prompt("ACGT" * 100)) == 400
    assert chances(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), temperature=1e-40).tolist() == [[0, 1, 0, 0]]
