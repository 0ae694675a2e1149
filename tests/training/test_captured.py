"""A step as one CUDA graph against the same step launched kernel by kernel."""

import pytest
import torch

from dna_mamba.data.objectives import NextBase, TokenPolicy, sum_of_weights
from dna_mamba.data.steps import StepBatch
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.step import Stepper

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("bf16", [False, True])
def test_captured_steps_learn_as_launched_ones(bf16):
    def run(capture):
        torch.manual_seed(0)
        model = DnaMamba(BackboneConfig(pattern="MM", width=64)).cuda().use_implementation("triton")
        module = Stepper(model, NextBase(TokenPolicy()), OptimizerConfig(), num_steps=8, stage_lengths=[256, 512],
                               contig_names=["c"], piece_bases=65_536)  # fmt: skip
        module.capture = capture
        optimizer = module.make_optimizer()
        generator = torch.Generator().manual_seed(1)
        for number in range(8):
            length = 256 if number < 4 else 512  # another shape is another graph
            stored = torch.randint(0, 5, (2048 // length, length), generator=generator, dtype=torch.uint8)
            weights = sum_of_weights(stored.numpy(), TokenPolicy())
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
                module.step(StepBatch(stored.cuda(), torch.zeros(len(stored), 3, dtype=torch.long), weights), optimizer)
        assert (module._captured is not None) == capture
        return [m.loss for m in module.read_steps()], list(model.parameters())

    (given, parameters), (expected, others) = run(True), run(False)
    assert expected[0] - expected[-1] > 0.1
    assert given == pytest.approx(expected, rel=2e-3 if bf16 else 1e-5)
    for one, two in zip(parameters, others, strict=True):
        assert (one - two).norm() < (2e-2 if bf16 else 1e-3) * two.norm() + 1e-4


def test_a_poisoned_captured_step_is_left_out():
    torch.manual_seed(0)
    model = DnaMamba(BackboneConfig(pattern="M", width=32)).cuda().use_implementation("triton")
    module = Stepper(model, NextBase(TokenPolicy()), OptimizerConfig(), num_steps=8, stage_lengths=[64], contig_names=["c"],
                           piece_bases=65_536)  # fmt: skip
    optimizer = module.make_optimizer()
    stored = torch.randint(0, 4, (4, 64), dtype=torch.uint8)
    good = StepBatch(stored.cuda(), torch.zeros(4, 3, dtype=torch.long), 252.0)
    module.step(good, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    module.step(good._replace(sum_of_weights=float("nan")), optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    module.step(good, optimizer)
    assert [m.skipped for m in module.read_steps()] == [False, True, False]
    assert not torch.equal(before[0], next(model.parameters()))
