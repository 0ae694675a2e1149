# Shapes: B rows, T positions, D model width, V vocabulary, S segments
"""Log-likelihood ratios of alleles: one pass along a sequence with a carried state, forked where an allele differs.

The score of an allele is log P(alt and the right flank | left context) - log P(ref and the right flank | left context), in
nats over A, C, G and T. Bases that are none of these add nothing. The left context is all that was read before, or the last
`left` bases. The reference side is summed from what the pass says anyway, so an allele costs its own bases and its flank.
On a GPU the pass goes on in large pieces: the scan gives the states inside them, and a fork begins at most 16 bases early.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dna_mamba.alphabet import N
from dna_mamba.kernels.selective_scan import SEGMENT
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.state import ModelState, alike, join, num_bytes, rows_of
from dna_mamba.reading.losses import acgt_losses
from dna_mamba.reading.pieces import PIECES, bounds_of, check_causal, in_pieces, last_of
from dna_mamba.reading.pieces import Read as PieceReader
from dna_mamba.reading.walk import Read, Walk

BATCH_BASES = {"cpu": 2**14, "cuda": 2**19}
MOST_FORKS = 4096
MOST_STATE_BYTES = 1 << 32
"""States that wait for their forks on a GPU; a piece of the pass ends before they are more."""


@dataclass(frozen=True, slots=True)
class Allele:
    """What stands instead of some reference bases."""

    start: int
    """First reference base that it replaces; of an insertion the base that it stands before."""
    ref_bases: int
    """None of an insertion."""
    tokens: np.ndarray
    """Token ids of the alternate, uint8; none of a deletion."""


@dataclass(frozen=True, kw_only=True)
class AlleleScores:
    """One number an allele, float64."""

    ratios: np.ndarray
    """Log-likelihood ratio in nats."""
    distances: np.ndarray | None
    """Euclidean distance between the mean vectors (after the final norm) of allele and flank, ALT against REF."""


@dataclass(slots=True)
class _Row:
    """A sequence to read from a state on."""

    tokens: np.ndarray
    context: int
    """First positions that are read and not counted."""
    state: int
    """Row of the states."""


def _read_rows(
    model: DnaMamba, rows: Sequence[_Row], state: ModelState, logits_SV: Tensor | None, means: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum log P over what stands behind each row's context.

    Args:
        model: On its device.
        rows: Of any lengths; padded on the right, which changes nothing before it.
        state: Before each row, through `_Row.state`.
        logits_SV: Scores of the base after each state, for rows without context; none counts from the second base on.
        means: Give the mean vector of what is counted, too.

    Returns:
        Nats (B,) and the means (B, D), float64.
    """
    device = model.lm_head.weight.device
    longest = max(1, *(len(row.tokens) for row in rows))  # a deletion without a flank leaves nothing to read
    padded = np.full((len(rows), longest), N, np.uint8)
    for number, row in enumerate(rows):
        padded[number, : len(row.tokens)] = row.tokens
    tokens_BT = torch.from_numpy(padded).to(device)
    context_B1 = torch.tensor([row.context for row in rows], device=device)[:, None]
    length_B1 = torch.tensor([len(row.tokens) for row in rows], device=device)[:, None]
    which_B = torch.tensor([row.state for row in rows], device=device)
    state = rows_of(state, which_B)
    sums_B = torch.zeros(len(rows), dtype=torch.float64, device=device)
    if logits_SV is not None:
        first_B = acgt_losses(logits_SV[which_B][:, None], tokens_BT[:, :1])[:, 0].double()
        sums_B -= torch.where(context_B1[:, 0] == 0, first_B, 0.0)
    totals_BD = torch.zeros(len(rows), model.config.width, dtype=torch.float64, device=device) if means else None

    bounds = bounds_of(model.backbone, longest, max(1, BATCH_BASES[device.type] // len(rows)))
    for start, end, vectors_BTD, _ in in_pieces(_reader(model, tokens_BT), bounds, state):
        places_T = torch.arange(start, end, device=device)
        if totals_BD is not None:
            counted_BT = (places_T >= context_B1) & (places_T < length_B1)
            totals_BD += torch.einsum("btd,bt->bd", vectors_BTD.float(), counted_BT.float()).double()
        last = min(end, longest - 1)
        if last > start:
            losses_BT = acgt_losses(model.head(vectors_BTD[:, : last - start]), tokens_BT[:, start + 1 : last + 1])
            counted_BT = places_T[: last - start] + 1 >= context_B1
            sums_B -= torch.where(counted_BT, losses_BT, 0.0).double().sum(1)
    # NaN, and so no distance, where nothing is counted
    return sums_B, None if totals_BD is None else totals_BD / (length_B1 - context_B1)


def _reader(model: DnaMamba, tokens_BT: Tensor) -> PieceReader:
    return lambda start, end, state: model.backbone(tokens_BT[:, start:end], state)


def _in_batches(rows: Sequence[tuple[int, _Row]], device: str) -> Iterator[list[tuple[int, _Row]]]:
    """Give rows with their numbers, so many that padded they fit a batch."""
    some: list[tuple[int, _Row]] = []
    longest = 0
    for number, row in rows:
        longest = max(longest, len(row.tokens))
        if some and ((len(some) + 1) * longest > BATCH_BASES[device] or len(some) >= MOST_FORKS):
            yield some
            some, longest = [], len(row.tokens)
        some.append((number, row))
    if some:
        yield some


class _Scores:
    """What is known of each allele so far."""

    def __init__(self, model: DnaMamba, read: Read, length: int, alleles: Sequence[Allele], right: int, distance: bool):
        self.model, self.read, self.length, self.alleles, self.right = model, read, length, alleles, right
        self.ratios = np.zeros(len(alleles))
        self.distances = np.zeros(len(alleles)) if distance else None
        self.device = model.lm_head.weight.device

    def ends_at(self, number: int) -> int:
        """Give where the flank of an allele ends."""
        allele = self.alleles[number]
        return min(allele.start + allele.ref_bases + self.right, self.length)

    def _near(self, start: int, end: int) -> Read:
        """Read a stretch once, if it is not far longer than a piece, and give what reads from it."""
        if end - start > 4 * PIECES["cuda"]:
            return lambda a, b: self.read(a, b) if b > a else np.zeros(0, np.uint8)
        tokens = self.read(start, end)
        return lambda a, b: tokens[a - start : b - start]

    def read_forks(
        self, forks: Sequence[tuple[int, int]], state: ModelState, logits_SV: Tensor | None, begin: Sequence[int],
        *, reference: bool,
    ) -> None:  # fmt: skip
        """Read alleles from the states before them; with `reference`, take off what REF says from the same states.

        Args:
            forks: Number of the allele and row of its state.
            state: States.
            logits_SV: Scores of the base after each state.
            begin: Position that each state stands before; the allele's own or earlier.
            reference: Otherwise REF is summed elsewhere.
        """
        rows, of_reference = self._rows(forks, begin, reference=reference or self.distances is not None)
        found = [
            (some, *_read_rows(self.model, [row for _, row in some], state, logits_SV, self.distances is not None))
            for some in _in_batches(rows, self.device.type)
        ]
        sums: dict[int, float] = {}
        means: dict[int, Tensor] = {}
        for some, sums_B, vectors_BD in found:  # all are under way on the GPU before the first is waited for
            sums.update(zip((number for number, _ in some), sums_B.tolist(), strict=True))
            if vectors_BD is not None:
                means.update(zip((number for number, _ in some), vectors_BD, strict=True))
        for number, _ in forks:
            allele = self.alleles[number]
            opposite = of_reference.get((allele.start, allele.ref_bases))
            self.ratios[number] += sums[number]
            if reference and opposite is not None:
                self.ratios[number] -= sums[opposite]
            if self.distances is not None and opposite is not None:
                self.distances[number] = float((means[number] - means[opposite]).norm())

    def _rows(
        self, forks: Sequence[tuple[int, int]], begin: Sequence[int], *, reference: bool
    ) -> tuple[list[tuple[int, _Row]], dict[tuple[int, int], int]]:
        """Give the rows of alleles by their numbers, and with `reference` one of each REF by numbers below zero, and these."""
        rows: list[tuple[int, _Row]] = []
        of_reference: dict[tuple[int, int], int] = {}
        read = self._near(min(begin), max(self.ends_at(number) for number, _ in forks))
        for number, row in forks:
            allele, end = self.alleles[number], self.ends_at(number)
            after = allele.start + allele.ref_bases
            context, flank = read(begin[row], allele.start), read(after, end)
            rows.append((number, _Row(np.concatenate([context, allele.tokens, flank]), len(context), row)))
            place = (allele.start, allele.ref_bases)
            if reference and place not in of_reference:
                of_reference[place] = -1 - len(of_reference)
                rows.append((of_reference[place], _Row(read(begin[row], end), len(context), row)))
        return rows, of_reference


@torch.no_grad()
def score_alleles(
    model: DnaMamba,
    read: Read,
    length: int,
    alleles: Sequence[Allele],
    *,
    left: int | None,
    right: int,
    distance: bool = False,
    on_bases: Callable[[int], None] | None = None,
) -> AlleleScores:
    """Score alleles of one sequence, in any order.

    Args:
        model: On its device, in evaluation mode.
        read: Reads the sequence.
        length: Its bases.
        alleles: What to score.
        left: Bases of left context; none reads from the first base of the sequence, once for all alleles.
        right: Bases of right flank, fewer at the end of the sequence; the same in both alleles.
        distance: Give distances of embeddings too, for which REF is read again with each allele.
        on_bases: Called with the position that the pass has reached.

    Raises:
        InputError: The model is not causal.
    """
    check_causal(model, "scoring variants")
    scores = _Scores(model, read, length, alleles, right, distance)
    order = sorted(range(len(alleles)), key=lambda n: alleles[n].start)
    if left is not None:
        _with_short_context(scores, order, left, on_bases)
    elif order:
        walk = Walk(model, read, on_bases)
        through = _through_states if _gives_states(model) else _through_stops
        pending: deque[int] = deque()

        def settle() -> None:
            # flanks end in another order than alleles begin; the first to begin holds what is kept
            while pending and scores.ends_at(pending[0]) <= walk.log_p.at:
                number = pending.popleft()
                scores.ratios[number] -= walk.log_p.between(alleles[number].start, scores.ends_at(number))
            walk.log_p.forget(alleles[pending[0]].start if pending else walk.log_p.at)

        through(scores, walk, order, pending, settle)
        walk.to(max(scores.ends_at(number) for number in order))
        settle()
    return AlleleScores(ratios=scores.ratios, distances=scores.distances)


def _gives_states(model: DnaMamba) -> bool:
    """Say whether the kernels give the states inside a piece."""
    return all(mixer.gives_states for mixer in model.backbone.mixers())


def _with_short_context(
    scores: _Scores, order: Sequence[int], left: int, on_bases: Callable[[int], None] | None
) -> None:
    """Read the context of each place by itself, several at once, then fork both alleles after it."""
    model, device = scores.model, scores.device
    places: dict[int, list[int]] = {}
    for number in order:
        places.setdefault(scores.alleles[number].start, []).append(number)
    starts = list(places)
    at = 0
    while at < len(starts):
        size = min(left, starts[at])
        many = min(256, max(1, BATCH_BASES[device.type] // max(1, size)))
        some = [start for start in starts[at : at + many] if min(left, start) == size]
        at += len(some)
        state, logits_SV = model.new_state(len(some)), None
        if size:
            tokens_BT = torch.from_numpy(np.stack([scores.read(start - size, start) for start in some])).to(device)
            bounds = bounds_of(model.backbone, size, max(1, BATCH_BASES[device.type] // len(some)))
            _, _, vectors_BTD, state = last_of(_reader(model, tokens_BT), bounds, state)
            logits_SV = model.head(vectors_BTD[:, -1])
        forks = [(number, row) for row, start in enumerate(some) for number in places[start]]
        scores.read_forks(forks, state, logits_SV, some, reference=True)
        if on_bases:
            on_bases(some[-1])


def _through_stops(
    scores: _Scores, walk: Walk, order: Sequence[int], pending: deque[int], settle: Callable[[], None]
) -> None:
    """Stop the pass before each allele, and read those that wait together."""
    waiting: list[_Stop] = []
    longest = 0

    def flush() -> None:
        if waiting:
            _read_stops(scores, waiting)
        waiting.clear()
        settle()

    for number in order:
        allele = scores.alleles[number]
        walk.to(allele.start)
        size = scores.ends_at(number) - allele.start - allele.ref_bases + len(allele.tokens)
        longest = max(longest, size)
        state = walk.state or scores.model.new_state(1)
        full = (len(waiting) + 1) * longest > BATCH_BASES[scores.device.type] or len(waiting) >= MOST_FORKS
        now = _Stop(number, state, walk.logits_1V)
        if waiting and (full or not waiting[0].goes_with(now)):
            flush()
            longest = size
        pending.append(number)
        waiting.append(now)
    flush()


class _Stop(NamedTuple):
    """Where the pass stopped before an allele."""

    number: int
    state: ModelState
    logits_1V: Tensor | None

    def goes_with(self, other: "_Stop") -> bool:
        """Say whether two can be read together: only the first base of all has no scores, and it waits alone."""
        return (self.logits_1V is None) == (other.logits_1V is None) and alike(self.state, other.state)


def _read_stops(scores: _Scores, stops: Sequence[_Stop]) -> None:
    logits = [one.logits_1V for one in stops if one.logits_1V is not None]
    scores.read_forks(
        [(one.number, row) for row, one in enumerate(stops)],
        join([one.state for one in stops]),
        torch.cat(logits) if logits else None,
        [scores.alleles[one.number].start for one in stops],
        reference=False,
    )


def _through_states(
    scores: _Scores, walk: Walk, order: Sequence[int], pending: deque[int], settle: Callable[[], None]
) -> None:
    """Let the pass go on in large pieces that give the states before segments, and fork inside them."""
    model, alleles, device = scores.model, scores.alleles, scores.device
    most = max(1, MOST_STATE_BYTES // max(1, num_bytes(model.new_state(1))))
    at = 0
    while at < len(order) and alleles[order[at]].start == 0:
        at += 1
    if at:
        pending.extend(order[:at])
        scores.read_forks([(number, 0) for number in order[:at]], model.new_state(1), None, [0], reference=False)
    while at < len(order):
        first = walk.at
        end = first + PIECES[device.type]
        stop = at
        segments: list[int] = []
        rows: list[int] = []
        while stop < len(order) and alleles[order[stop]].start <= end:
            segment = (alleles[order[stop]].start - first - 1) // SEGMENT  # at least one base is read before the allele
            if not segments or segments[-1] != segment:
                if len(segments) == most:
                    end = alleles[order[stop]].start - 1
                    break
                segments.append(segment)
            rows.append(len(segments) - 1)
            stop += 1
        states = walk.piece(min(end, scores.length), segments)
        pending.extend(order[at:stop])
        if states is not None:
            forks = list(zip(order[at:stop], rows, strict=True))
            scores.read_forks(forks, states, None, [first + s * SEGMENT for s in segments], reference=False)
        at = stop
        settle()
