# Shapes: N windows, T positions, K classes
"""The likelihood-ratio classifier: one language model a class; a window belongs to the class whose model finds it likeliest."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import A
from dna_mamba.data.labelled import LabelledWindows, Place
from dna_mamba.data.objectives import NextBase, TokenPolicy, sum_of_weights
from dna_mamba.data.steps import StepBatch
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.configs.species import LikelihoodRatioConfig
from dna_mamba.reading.losses import losses_in_pieces
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.step import Stepper


@torch.no_grad()
def log_likelihoods(model: DnaMamba, tokens_BT: Tensor, piece_bases: int) -> Tensor:
    """Give the log-likelihood of each sequence in nats, all bases but the first, over A, C, G and T."""
    total_B = torch.zeros(len(tokens_BT), dtype=torch.float64, device=tokens_BT.device)
    for losses_BT in losses_in_pieces(model, tokens_BT, piece_bases):
        total_B -= losses_BT.double().sum(1)
    return total_B


def likelihood_ratio(
    config: LikelihoodRatioConfig,
    model: DnaMamba,
    train: LabelledWindows,
    test: LabelledWindows,
    places: Sequence[Place],
    labels: Sequence[str],
    piece_bases: int,
    device: str,
    seed: int,
    say: Callable[[str], None],
    autocast: Callable[[], torch.autocast],
) -> tuple[np.ndarray, str]:
    """Train a model a class; give class probabilities (N, K), scored in float32, and how it was done."""
    policy = TokenPolicy()
    scores_NK = np.zeros((len(places), len(labels)))
    length = test.length
    for number, label in enumerate(labels):
        own = copy.deepcopy(model).to(device).train()
        own.requires_grad_(True)
        stepper = Stepper(
            own, NextBase(policy), OptimizerConfig(peak_rate=config.peak_rate), num_steps=config.steps, stage_lengths=[length],
            contig_names=[label], piece_bases=max(piece_bases, 1),
        )  # fmt: skip
        optimizer = stepper.make_optimizer()
        for step in range(config.steps):
            stored = np.stack([train.stored(train.place_of(label, step, seed + i)) for i in range(config.batch)])
            nowhere_B3 = torch.zeros(len(stored), 3, dtype=torch.long)
            batch = StepBatch(torch.from_numpy(stored).to(device), nowhere_B3, sum_of_weights(stored, policy))
            with autocast():
                stepper.step(batch, optimizer)
            stepper.read_steps()
        own.eval()
        at_once = max(1, piece_bases // length)
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            tokens_BT = torch.from_numpy(np.stack([test.stored(place) for place in some]) + A).to(device)
            scores_NK[first : first + len(some), number] = log_likelihoods(own, tokens_BT, piece_bases).cpu().numpy()
        say(f"  {label}: {scores_NK[:, number].mean() / max(1, length - 1):.4f} nats a base on the test windows")
    scores_NK -= scores_NK.max(1, keepdims=True)
    probabilities_NK = np.exp(scores_NK)
    probabilities_NK /= probabilities_NK.sum(1, keepdims=True)
    return probabilities_NK, f"{config.steps} steps of {config.batch} windows a class"
