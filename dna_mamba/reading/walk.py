# Shapes: B rows, T positions, D model width, V vocabulary, S segments
"""The pass along a sequence that variant scores fork from: state and log P at every place it has come by."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import N
from dna_mamba.data.objectives import next_base
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.state import ModelState, tensors_of
from dna_mamba.reading.losses import acgt_losses
from dna_mamba.reading.pieces import PIECES

Read = Callable[[int, int], np.ndarray]
"""Gives the token ids of positions from (included) to (excluded)."""
N_PIECE = 4096
"""Pieces of this length are looked at for a run of one token that no longer changes the state."""


class LogP:
    """Log P of every base that was read, as far back as it is still asked for."""

    def __init__(self) -> None:
        self.parts: deque[tuple[int, np.ndarray]] = deque()
        self.at = 0

    def add(self, values: np.ndarray) -> None:
        """Append those of the next bases."""
        self.parts.append((self.at, np.concatenate([[0.0], np.cumsum(values)])))
        self.at += len(values)

    def between(self, start: int, end: int) -> float:
        """Sum over positions start to end - 1."""
        total = 0.0
        for first, sums in self.parts:
            low, high = max(start, first) - first, min(end, first + len(sums) - 1) - first
            if low < high:
                total += float(sums[high] - sums[low])
        return total

    def forget(self, before: int) -> None:
        """Let go of what lies wholly before a position."""
        while self.parts and self.parts[0][0] + len(self.parts[0][1]) - 1 <= before:
            self.parts.popleft()


class Walk:
    """The pass along the sequence: state and scores at a place, and log P of the bases before it."""

    def __init__(self, model: DnaMamba, read: Read, on_bases: Callable[[int], None] | None):
        self.model, self.read, self.on_bases = model, read, on_bases
        self.device = model.lm_head.weight.device
        self.at = 0
        self.state: ModelState | None = None
        self.logits_1V: Tensor | None = None
        self.log_p = LogP()

    def piece(self, end: int, segments: Sequence[int]) -> ModelState | None:
        """Read up to a place at once, and give the states before segments of it, if any are asked for."""
        tokens = self.read(self.at, end)
        if not segments:
            self._read(tokens)
            return None
        segments_S = torch.tensor(segments, device=self.device)
        tokens_BT = torch.from_numpy(tokens).to(self.device)[None]
        vectors_BTD, self.state, states = self.model.backbone.forward_with_states(tokens_BT, self.state, segments_S)
        self._note(tokens_BT, vectors_BTD)
        return states

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

    def _read(self, tokens: np.ndarray) -> None:
        tokens_BT = torch.from_numpy(tokens).to(self.device)[None]
        vectors_BTD, self.state = self.model.backbone(tokens_BT, self.state)
        self._note(tokens_BT, vectors_BTD)

    def _note(self, tokens_BT: Tensor, vectors_BTD: Tensor) -> None:
        """Keep what the vectors of a piece say about its bases and about the one after it."""
        logits_BTV = self.model.head(vectors_BTD)
        losses_T = torch.zeros(tokens_BT.shape[1], dtype=torch.float64, device=self.device)
        if self.logits_1V is not None:  # the first base of all has no predecessor
            losses_T[0] = acgt_losses(self.logits_1V[None], tokens_BT[:, :1])[0, 0].double()
        if len(losses_T) > 1:
            targets_BT = next_base(tokens_BT).targets
            losses_T[1:] = acgt_losses(logits_BTV[:, : targets_BT.shape[1]], targets_BT)[0].double()
        self.log_p.add(-losses_T.cpu().numpy())
        self.logits_1V = logits_BTV[0, -1:].clone()  # a view would keep all of it
        self.at += len(losses_T)
        if self.on_bases:
            self.on_bases(self.at)

    def _skip(self, token: int, place: int) -> None:
        """Pass over more of a run of one token whose state has come to rest to the bit: each piece leaves it as it is."""
        if token != N:
            return  # bases of a homopolymer have likelihoods of their own to add
        while self.at + N_PIECE <= place and (self.read(self.at, self.at + N_PIECE) == token).all():
            self.log_p.add(np.zeros(N_PIECE))
            self.at += N_PIECE


def _same(one: ModelState, other: ModelState | None) -> bool:
    assert other is not None
    return all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))
