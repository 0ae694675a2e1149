"""Drawing: the known random numbers, the distribution asked for, and the same draws from every implementation."""

import pytest
import torch

from dna_mamba.kernels.next_token import Sampling, next_token, probabilities, uniforms
from dna_mamba.kernels.next_token.naive import _philox

FIRST = 7


def test_philox_gives_the_published_numbers():
    # Random123, kat_vectors: philox4x32 10 rounds, counter, key -> first word
    def word(counter, seed):
        return int(_philox(tuple(torch.tensor([c]) for c in counter), seed)[0])

    assert word((0, 0, 0, 0), 0) == 0x6627E8D5
    assert word((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF) == 0x408F276D
    assert word((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822) == 0xD16CFE09


def test_uniforms_fill_the_unit_interval_and_differ_between_steps_sequences_and_seeds():
    step = torch.tensor([3])
    some = uniforms(1, step, 50_000)[0]
    assert float(some.min()) > 0 and float(some.max()) < 1
    assert abs(float(some.mean()) - 0.5) < 5 * (1 / 12 / some.numel()) ** 0.5
    assert torch.equal(uniforms(1, step, 10)[0], some[:10])  # companions change nothing
    assert torch.equal(uniforms(1, torch.tensor([2, 3]), 10)[1], some[:10])
    for other in (uniforms(2, step, 50_000), uniforms(1, step + 1, 50_000), uniforms(1, step + 2**32, 50_000)):
        assert abs(float(torch.corrcoef(torch.stack([some.flatten(), other.flatten()]))[0, 1])) < 0.02


def test_the_largest_random_number_stays_below_one_and_no_filtered_token_is_drawn(monkeypatch):
    from dna_mamba.kernels.next_token import naive

    monkeypatch.setattr(naive, "_philox", lambda counters, seed: torch.full_like(counters[0], 0xFFFFFFFF))
    largest = uniforms(1, torch.tensor([0]), 3)
    assert float(largest.max()) < 1 and float(-largest.log().min()) > 0
    naive._block.cache_clear()
    drawn, _ = run(3, 16, Sampling(top_k=1, seed=77), "naive", "cpu")
    naive._block.cache_clear()
    monkeypatch.undo()
    assert torch.equal(drawn, run(3, 16, Sampling(temperature=0), "naive", "cpu")[0])


def make(B, D, V=16):
    generator = torch.Generator().manual_seed(0)
    residual_BD = torch.randn(B, D, generator=generator)
    return residual_BD, 1 + 0.1 * torch.randn(D, generator=generator), torch.randn(V, D, generator=generator) * D**-0.5


def run(B, D, sampling, implementation, device, steps=5, held=4):
    residual_BD, norm_D, head_VD = (x.to(device) for x in make(B, D))
    kept_SB = torch.zeros(held, B, dtype=torch.uint8, device=device)
    sums_B, step_1 = torch.zeros(B, dtype=torch.float64, device=device), torch.zeros(1, dtype=torch.long, device=device)
    drawn = []
    for step in range(steps):
        next_token(
            residual_BD, norm_D, head_VD, kept_SB, sums_B, step_1, sampling, first=FIRST, implementation=implementation
        )
        tokens_B = kept_SB[step % held].long()
        assert torch.equal(residual_BD, head_VD[tokens_B])  # the vector of what was drawn
        drawn.append(tokens_B.cpu())
    assert int(step_1) == steps
    return torch.stack(drawn), sums_B.cpu()


@pytest.mark.parametrize("sampling", [
    Sampling(seed=5), Sampling(seed=2**62 + 1, temperature=0.3), Sampling(temperature=0), Sampling(top_k=2, seed=1),
    Sampling(top_p=0.6, temperature=2.0, seed=9), Sampling(top_k=1), Sampling(top_p=1e-3),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("B, D", [(1, 16), (3, 20), (19, 130)])
def test_kernel_and_plain_torch_draw_the_same(B, D, sampling, triton_device):
    given, expected = (
        run(B, D, sampling, name, where) for name, where in (("triton", triton_device), ("naive", "cpu"))
    )
    assert torch.equal(given[0], expected[0])
    assert torch.allclose(given[1], expected[1], atol=1e-5)
    if sampling.greedy or sampling.top_k == 1 or sampling.top_p < 0.01:
        assert torch.equal(expected[0], run(B, D, Sampling(temperature=0), "naive", "cpu")[0])


def test_log_likelihoods_are_those_of_what_was_drawn():
    residual_BD, norm_D, head_VD = (x.double() for x in make(4, 24))
    tokens_SB, sums_B = run(4, 24, Sampling(seed=3, temperature=0.5, top_k=3), "naive", "cpu", steps=2)
    expected = torch.zeros(4, dtype=torch.float64)
    for tokens_B in tokens_SB:
        norm = residual_BD / (residual_BD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm_D
        log_p = (norm @ head_VD[FIRST : FIRST + 4].T).log_softmax(-1)
        expected += log_p.gather(-1, tokens_B[:, None] - FIRST)[:, 0]
        residual_BD = head_VD[tokens_B]
    assert torch.allclose(sums_B, expected, atol=1e-5)


def test_tokens_are_as_frequent_as_their_probabilities(triton_device):
    B = 4000
    residual_BD, norm_D, head_VD = make(1, 16)
    sampling = Sampling(seed=11, temperature=1.5, top_k=3)
    kept_SB = torch.zeros(1, B, dtype=torch.uint8, device=triton_device)
    inputs = [x.to(triton_device) for x in (residual_BD.repeat(B, 1), norm_D, head_VD)]
    more = [torch.zeros(n, dtype=d, device=triton_device) for n, d in ((B, torch.float64), (1, torch.long))]
    next_token(*inputs, kept_SB, *more, sampling, first=FIRST, implementation="triton")
    norm = residual_BD / (residual_BD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm_D
    p = probabilities(norm @ head_VD[FIRST : FIRST + 4].T, 1.5, 3, 1.0, False)[0]
    counts = torch.bincount(kept_SB[0].cpu().long() - FIRST, minlength=4) / B
    assert int((p == 0).sum()) == 1 and counts[p == 0] == 0
    assert (counts - p).abs().max() < 5 * (0.25 / B) ** 0.5


@pytest.mark.parametrize("change, words", [
    ({0: torch.zeros(0, 16)}, "not empty"),
    ({3: torch.zeros(4, 2)}, "kept is torch.float32"),
    ({4: torch.zeros(3, dtype=torch.float64)}, "sums is (3,)"),
    ({2: torch.zeros(9, 16)}, "in the head"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, words):
    arguments = [*make(2, 16), torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.float64),
                 torch.zeros(1, dtype=torch.long)]  # fmt: skip
    for number, value in change.items():
        arguments[number] = value
    with pytest.raises(ValueError) as error:
        next_token(*arguments, Sampling(), first=FIRST)
    assert words in str(error.value)
