# Shapes: B alleles, T positions, V vocabulary
"""Log-likelihood ratios of alleles: one pass along a sequence with a carried state, forked where an allele differs.

The score of an allele is log P(alt and the right flank | left context) - log P(ref and the right flank | left context), in
nats over A, C, G and T. Bases that are none of these add nothing. The left context is all that was read before, or the last
`left` bases. The reference side is summed from what the pass says anyway, so an allele costs its own bases and its flank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dna_mamba.data.vocabulary import N
from dna_mamba.model.backbone import DnaMamba, ModelState
from dna_mamba.model.mixers.mamba import MambaState
from dna_mamba.training.metrics import acgt_losses, losses_in_pieces

Read = Callable[[int, int], np.ndarray]
"""Gives the token ids of positions from (included) to (excluded)."""
BATCH_BASES = {"cpu": 2**14, "cuda": 2**19}
MOST_FORKS = 1024
PIECES = {"cpu": 2**14, "cuda": 2**18}
N_PIECE = 4096
"""Pieces of this length are looked at for a run of one token that no longer changes the state."""


@dataclass(frozen=True, slots=True)
class Allele:
    """What stands instead of some reference bases."""

    start: int
    """First reference base that it replaces."""
    ref_bases: int
    tokens: np.ndarray
    """Token ids of the alternate, uint8, at least one."""


def _join(states: Sequence[ModelState]) -> ModelState:
    return [
        MambaState(*(torch.cat(parts) for parts in zip(*layer, strict=True))) for layer in zip(*states, strict=True)
    ]


class _Forks:
    """Alleles that wait to be read together, with the state and the scores before each."""

    def __init__(self, model: DnaMamba, read: Read, length: int, right: int, found: np.ndarray):
        self.model, self.read, self.length, self.right, self.found = model, read, length, right, found
        self.device = model.lm_head.weight.device
        self.waiting: list[tuple[int, np.ndarray, ModelState, Tensor | None]] = []
        self.longest = 0

    def add(self, number: int, allele: Allele, state: ModelState | None, logits_1V: Tensor | None) -> None:
        end = allele.start + allele.ref_bases
        flank = self.read(end, min(end + self.right, self.length))
        tokens = np.concatenate([allele.tokens, flank])
        if state is None:
            state = self.model.new_state(1)
        longest = max(self.longest, len(tokens))
        if self.waiting and (
            (len(self.waiting) + 1) * longest > BATCH_BASES[self.device.type] or len(self.waiting) >= MOST_FORKS
        ):
            self.flush()
            longest = len(tokens)
        self.waiting.append((number, tokens, state, logits_1V))
        self.longest = longest

    def flush(self) -> None:
        if not self.waiting:
            return
        padded = np.full((len(self.waiting), self.longest), N, np.uint8)  # what stands behind the end changes nothing
        for row, (_, tokens, _, _) in enumerate(self.waiting):
            padded[row, : len(tokens)] = tokens
        tokens_BT = torch.from_numpy(padded).to(self.device)
        sums_B = torch.zeros(len(self.waiting), dtype=torch.float64, device=self.device)
        state: ModelState = _join([state for _, _, state, _ in self.waiting])
        for row, (_, _, _, logits_1V) in enumerate(self.waiting):
            if logits_1V is not None:
                sums_B[row] -= acgt_losses(logits_1V[None], tokens_BT[row : row + 1, :1])[0, 0].double()
        piece = max(1, BATCH_BASES[self.device.type] // len(self.waiting))
        for losses_BT in losses_in_pieces(self.model, tokens_BT, piece, state):
            sums_B -= losses_BT.double().sum(1)
        for (number, *_), value in zip(self.waiting, sums_B.tolist(), strict=True):
            self.found[number] += value
        self.waiting, self.longest = [], 0


@torch.no_grad()
def score_alleles(
    model: DnaMamba,
    read: Read,
    length: int,
    alleles: Sequence[Allele],
    *,
    left: int | None,
    right: int,
    on_bases: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Score alleles of one sequence, in any order.

    Args:
        model: On its device, in evaluation mode.
        read: Reads the sequence.
        length: Its bases.
        alleles: What to score.
        left: Bases of left context; none reads from the first base of the sequence, once for all alleles.
        right: Bases of right flank, fewer at the end of the sequence; the same in both alleles.
        on_bases: Called with bases of the sequence that were passed.

    Returns:
        Nats, float64, in the order of the alleles.
    """
    found = np.zeros(len(alleles))
    order = sorted(range(len(alleles)), key=lambda n: alleles[n].start)
    forks = _Forks(model, read, length, right, found)
    if left is not None:
        for number in order:
            allele = alleles[number]
            context = read(max(0, allele.start - left), allele.start)
            state, logits_1V = _context(model, context)
            reference = Allele(allele.start, allele.ref_bases, read(allele.start, allele.start + allele.ref_bases))
            minus = _Forks(model, read, length, right, np.zeros(1))
            minus.add(0, reference, state, logits_1V)
            minus.flush()
            found[number] -= minus.found[0]
            forks.add(number, allele, state, logits_1V)
            if on_bases:
                on_bases(len(context))
        forks.flush()
        return found
    last = max((min(a.start + a.ref_bases + right, length) for a in alleles), default=0)
    walk = _Walk(model, read, on_bases)
    sums = walk.sums
    for number in order:
        walk.to(alleles[number].start)
        forks.add(number, alleles[number], walk.state, walk.logits_1V)
    walk.to(last)
    forks.flush()
    cumulative = np.concatenate([[0.0], np.cumsum(np.concatenate(sums) if sums else np.zeros(0))])
    for number, allele in enumerate(alleles):
        end = min(allele.start + allele.ref_bases + right, length)
        found[number] -= cumulative[end] - cumulative[allele.start]
    return found


def _context(model: DnaMamba, tokens: np.ndarray) -> tuple[ModelState | None, Tensor | None]:
    """Give the state after a context and the scores of the base after it."""
    device = model.lm_head.weight.device
    state: ModelState | None = None
    logits_1V: Tensor | None = None
    for start in range(0, len(tokens), PIECES[device.type]):
        tokens_BT = torch.from_numpy(tokens[start : start + PIECES[device.type]]).to(device)[None]
        logits_BTV, state = model(tokens_BT, state)
        logits_1V = logits_BTV[0, -1:].clone()  # a view would keep all of it
    return state, logits_1V


class _Walk:
    """The pass along the sequence: state and scores at a place, and log P of every base before it."""

    def __init__(self, model: DnaMamba, read: Read, on_bases: Callable[[int], None] | None):
        self.model, self.read, self.on_bases = model, read, on_bases
        self.device = model.lm_head.weight.device
        self.at = 0
        self.state: ModelState | None = None
        self.logits_1V: Tensor | None = None
        self.sums: list[np.ndarray] = []

    def to(self, place: int) -> None:
        """Read up to a place, not the base there."""
        while self.at < place:
            end = min(self.at + PIECES[self.device.type], place)
            tokens = self.read(self.at, end)
            if len(tokens) > N_PIECE and (tokens[:N_PIECE] == tokens[0]).all():
                tokens = tokens[:N_PIECE]  # a run of N, which may have no effect any more
            elif len(tokens) > N_PIECE:
                runs = np.flatnonzero((tokens[:-1] == N) & (tokens[1:] == N))
                if len(runs) > N_PIECE and runs[0] > 0:
                    tokens = tokens[: runs[0] + 1]
            before = self.state
            self._read(tokens)
            if (
                len(tokens) == N_PIECE
                and before is not None
                and (tokens == tokens[0]).all()
                and _same(before, self.state)
            ):
                self._skip(int(tokens[0]), place)
            if self.on_bases:
                self.on_bases(self.at)

    def _read(self, tokens: np.ndarray) -> None:
        tokens_BT = torch.from_numpy(tokens).to(self.device)[None]
        logits_BTV, self.state = self.model(tokens_BT, self.state)
        losses_T = torch.zeros(len(tokens), dtype=torch.float64, device=self.device)
        if self.logits_1V is not None:  # the first base of all has no predecessor
            losses_T[0] = acgt_losses(self.logits_1V[None], tokens_BT[:, :1])[0, 0].double()
        if len(tokens) > 1:
            losses_T[1:] = acgt_losses(logits_BTV[:, :-1], tokens_BT[:, 1:])[0].double()
        self.sums.append(-losses_T.cpu().numpy())
        self.logits_1V = logits_BTV[0, -1:].clone()  # a view would keep all of it
        self.at += len(tokens)

    def _skip(self, token: int, place: int) -> None:
        """Pass over more of a run of one token whose state has come to rest to the bit: each piece leaves it as it is."""
        if token != N:
            return  # bases of a homopolymer have likelihoods of their own to add
        while self.at + N_PIECE <= place and (self.read(self.at, self.at + N_PIECE) == token).all():
            self.sums.append(np.zeros(N_PIECE))
            self.at += N_PIECE


def _same(one: ModelState, other: ModelState | None) -> bool:
    assert other is not None
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
