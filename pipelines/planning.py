"""What fits in a GPU's memory and how long it takes, before anything runs."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from dna_mamba.alphabet import A
from dna_mamba.data.objectives import NextBase, TokenPolicy, sum_of_weights
from dna_mamba.data.steps import StepBatch
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.machines import KNOWN_GPUS, Machine
from dna_mamba.training.optimizer import OptimizerConfig
from dna_mamba.training.piecewise import SHORTEST_PIECE
from dna_mamba.training.step import Stepper

PIECE_ON_CPU = 2**14
BASES_ON_CPU = 2**11
"""That are timed on a CPU, in the place of more."""
LIBRARIES = 2**26
"""Bytes that cuBLAS and others keep for themselves."""


HOST_SECONDS = {"forward": 2e-3, "backward": 3.2e-3}
"""That a processor takes to launch the kernels of a layer: pieces that a GPU does in less wait for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Largest bytes of tensors in a training step, by part."""

    parameters: float
    """With gradients, the optimizer's moments and copies in the dtype of matrix products."""
    states: float
    """Between pieces."""
    window: float
    """Tokens and weights of a window or micro-batch."""
    activations: float
    """Kept from forward to backward."""
    working: float
    """Of the head, or of the backward of one layer."""

    @property
    def total(self) -> float:
        """All parts."""
        return self.parameters + self.states + self.window + self.activations + self.working


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How a step is cut up."""

    piece_bases: int
    """Positions computed at once."""
    kept_pieces: int
    """Pieces of a window, the last ones, that are computed only once."""
    recomputed_layers: int = 0
    """Layers, the first ones, whose activations are not kept."""


@lru_cache(maxsize=256)
def num_parameters(model: BackboneConfig) -> int:
    """Count the parameters of a model without making it."""
    return model.num_parameters


def check_main_memory(model: BackboneConfig) -> None:
    """Refuse a model whose weights, gradients and two moments do not fit in the memory of this machine.

    Raises:
        InputError: They do not.
    """
    import psutil

    needed, total = 16 * model.num_parameters, psutil.virtual_memory().total
    if needed > total:
        raise InputError(
            f"a model of {model.size} has {model.num_parameters:,} parameters: {needed / 2**30:,.0f} GiB with gradients and "
            f"moments, and this machine has {total / 2**30:,.0f} GiB; take a smaller --model"
        )


def memory_of_step(model: BackboneConfig, precision: str, cut: Cut, window_bases: int, windows_per_step: int) -> Memory:
    """Count the bytes of a training step on Triton kernels.

    Args:
        model: Sizes.
        precision: fp32 or bf16.
        cut: Pieces and how many of them are kept.
        window_bases: Length of the windows.
        windows_per_step: In an optimizer step.
    """
    W, item = model.width, 2 if precision == "bf16" else 4
    mixers = [mixer.memory(item) for mixer in model.mixers()]
    layers = len(mixers)
    of_layers = [4 * W + item * W + mixer.kept for mixer in mixers]  # stream, norm, and what the layer itself keeps
    head = 4 * W + 4 * W + 4 * model.vocabulary_size  # last stream, its norm, scores
    of_scores = 4 * model.vocabulary_size + 4 * W  # gradients of scores and norm
    working: float = max(mixer.working for mixer in mixers) + 4 * W + 2 * item * W  # and streams
    parameters = num_parameters(model)
    windows_at_once = min(windows_per_step, max(1, cut.piece_bases // window_bases))
    if window_bases <= cut.piece_bases:
        at_once = kept = windows_at_once * window_bases
        num_between = 0
    else:
        num_pieces = -(-(window_bases - 1) // cut.piece_bases)
        num_kept = min(num_pieces, cut.kept_pieces)
        at_once, kept, num_between = (
            cut.piece_bases,
            min(num_kept * cut.piece_bases, window_bases),
            num_pieces - num_kept,
        )
    state = sum(mixer.state for mixer in mixers)
    growing = sum(mixer.state_a_base for mixer in mixers) * window_bases
    again = min(cut.recomputed_layers, layers)
    # what a layer computed again keeps is its inputs; while it is computed, the layers after it are done with
    activations = kept * (sum(of_layers[again:]) + again * (4 * W + item * W)) + (kept - at_once) * head
    if again == layers:
        activations += at_once * max(of_layers)
    working = at_once * max(head + of_scores, working)  # one after the other, in the piece whose backward runs
    step_windows = windows_per_step * window_bases
    return Memory(
        parameters=parameters * (16 + (2 if precision == "bf16" else 0)),
        # each piece has a state of its own before it; one that grows is on average half of the longest
        states=((num_between + 2) * state + (num_between / 2 + 2) * growing) * windows_at_once,
        window=step_windows + windows_at_once * window_bases * 5.0,
        activations=activations,
        working=working + LIBRARIES,
    )


def windows_of_step(bases_per_step: int, window_bases: int, seq_len: int) -> int:
    """Count the windows of an optimizer step in a stage of a run up to `seq_len`."""
    return max(1, max(bases_per_step, seq_len) // window_bases)


def choose_cut(
    model: BackboneConfig,
    precision: str,
    machine: Machine | None,
    lengths: Sequence[int],
    bases_per_step: int,
    *,
    kept_pieces: int | None = None,
    recomputed_layers: int | None = None,
) -> Cut:
    """Choose pieces from the memory of a GPU, so that as little as possible is computed twice.

    Args:
        model: Sizes.
        precision: fp32 or bf16.
        machine: The GPU; none is a CPU.
        lengths: Window lengths of all stages, the longest last.
        bases_per_step: Of an optimizer step, as asked for.
        kept_pieces: Wanted, if not to be chosen.
        recomputed_layers: Wanted, if not to be chosen.

    Raises:
        InputError: A stage fits in no cut; the first is named, and what would fit.
    """
    if machine is None:
        return Cut(piece_bases=PIECE_ON_CPU, kept_pieces=kept_pieces or 1, recomputed_layers=recomputed_layers or 0)
    wanted = {"kept_pieces": kept_pieces, "recomputed_layers": recomputed_layers}
    cut = _best_cut(model, precision, machine, lengths, bases_per_step, **wanted)
    if cut is not None:
        return cut
    failing = next(
        (
            L
            for L in lengths
            if _best_cut(model, precision, machine, [L], max(bases_per_step, lengths[-1]), **wanted) is None
        ),
        lengths[-1],
    )
    layers = len(model.pattern)
    windows = windows_of_step(bases_per_step, failing, lengths[-1])
    least = min(
        (
            memory_of_step(
                model, precision, Cut(piece_bases=piece, kept_pieces=1, recomputed_layers=layers), failing, windows
            )
            for piece in _pieces(max(bases_per_step, lengths[-1]))
        ),
        key=lambda memory: memory.total,
    )

    def fits(depth: int) -> bool:
        smaller = replace(model, pattern=model.pattern[:depth])
        return _best_cut(smaller, precision, machine, lengths, bases_per_step) is not None

    depth = _most(fits, 1, layers - 1)
    smaller = f"{depth}x{model.width} would fit" if depth else "no depth of this width fits"
    raise InputError(
        f"a {model.size} model does not fit: the stage of {failing:,} bases takes at least {least.total / 2**30:.1f} GiB "
        f"(parameters, gradients and moments {least.parameters / 2**30:.1f}, states of pieces {least.states / 2**30:.1f}), "
        f"and {machine.budget / 2**30:.1f} GiB are free for it on {machine.name}; {smaller}"
    )


def _pieces(longest: int) -> list[int]:
    """Give the pieces that are tried, longest first: powers of two, so that windows of all lengths fill them."""
    pieces = [1 << max(longest - 1, 1).bit_length()]
    while pieces[-1] > SHORTEST_PIECE:
        pieces.append(pieces[-1] // 2)
    return pieces


def _best_cut(
    model: BackboneConfig,
    precision: str,
    machine: Machine,
    lengths: Sequence[int],
    bases_per_step: int,
    *,
    kept_pieces: int | None = None,
    recomputed_layers: int | None = None,
) -> Cut | None:
    """Give the fastest cut with which every stage fits, or none."""
    layers, longest = len(model.pattern), lengths[-1]

    def fits(cut: Cut) -> bool:
        return all(
            memory_of_step(model, precision, cut, L, windows_of_step(bases_per_step, L, longest)).total
            <= machine.budget
            for L in lengths
        )

    best: tuple[float, Cut] | None = None
    for piece in _pieces(max(bases_per_step, longest)):
        if piece < longest and not model.causal:
            break  # it is read whole
        plain = Cut(piece_bases=piece, kept_pieces=kept_pieces or 1, recomputed_layers=recomputed_layers or 0)
        cut = plain
        if kept_pieces is None:
            kept = _most(lambda k, c=plain: fits(replace(c, kept_pieces=k)), 1, -(-longest // piece))  # type: ignore[misc]
            cut = replace(plain, kept_pieces=max(1, kept))
        if recomputed_layers is None and not fits(cut):
            normal = _most(lambda n, c=cut: fits(replace(c, recomputed_layers=layers - n)), 0, layers)  # type: ignore[misc]
            cut = replace(cut, recomputed_layers=layers - max(0, normal))
        if fits(cut):
            seconds = _seconds_to_compare(model, machine, longest, bases_per_step, cut)
            if best is None or seconds < best[0]:
                best = seconds, cut
    return None if best is None else best[1]


def longest_piece_that_fits(
    model: BackboneConfig, precision: str, machine: Machine, lengths: Sequence[int], bases_per_step: int, cut: Cut
) -> int | None:
    """Give the longest piece below that of the cut with which every stage fits, pieces kept being 1; none if none does."""
    for piece in _pieces(max(bases_per_step, lengths[-1])):
        smaller = replace(cut, piece_bases=piece, kept_pieces=1)
        if piece < cut.piece_bases and all(
            memory_of_step(model, precision, smaller, L, windows_of_step(bases_per_step, L, lengths[-1])).total
            <= machine.budget
            for L in lengths
        ):
            return piece
    return None


def _most(test: Callable[[int], bool], low: int, high: int) -> int:
    """Give the largest number that passes, low - 1 if none does; none passes above one that fails."""
    while low <= high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if test(middle) else (low, middle - 1)
    return high


def _seconds_to_compare(model: BackboneConfig, machine: Machine, seq_len: int, bases_per_step: int, cut: Cut) -> float:
    """Estimate the time of a step of the longest windows, to choose between cuts: of the GPU, or of the host if longer."""
    layers = len(model.pattern)
    # other layers take other times, but which cut is faster hangs on what is computed twice
    speed = _speed_of_mamba(model, machine.name if machine.name in KNOWN_GPUS else "H100")
    num_windows = max(1, bases_per_step // seq_len)
    num_pieces = -(-seq_len // cut.piece_bases)
    bases = min(seq_len, cut.piece_bases) * max(1, min(num_windows, cut.piece_bases // seq_len))
    forward = max(speed.forward * bases, HOST_SECONDS["forward"] * layers)
    backward = max((speed.both - speed.forward) * bases, HOST_SECONDS["backward"] * layers)
    again = max(0, num_pieces - cut.kept_pieces) + num_pieces * cut.recomputed_layers / layers
    micro_batches = -(-num_windows * seq_len // (bases * num_pieces))
    return micro_batches * (num_pieces * (forward + backward) + again * forward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Seconds of what a step is made of."""

    forward: float
    """A base read once more to be computed again."""
    both: float
    """A base forward and backward."""
    update: float
    """Of the parameters, once a step."""


def measure(
    model: BackboneConfig, implementation: str, device: str, precision: str, window_bases: int, cut: Cut, windows: int
) -> Speed:
    """Time a micro-batch or piece as a step computes it, and the update, on this machine: random bases, random weights.

    Args:
        model: Sizes.
        implementation: Kernels.
        device: cpu or cuda.
        precision: fp32 or bf16.
        window_bases: Length of the windows.
        cut: How a step is cut up.
        windows: In a step.
    """
    length = min(window_bases, cut.piece_bases)
    at_once = max(1, min(windows, cut.piece_bases // window_bases))
    if device == "cpu":
        at_once = max(1, min(at_once, BASES_ON_CPU // length))
        length = min(length, BASES_ON_CPU)
    policy = TokenPolicy()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        network = DnaMamba(model).to(device).use_implementation(implementation)
    network.backbone.recomputed_layers = cut.recomputed_layers
    stepper = Stepper(
        network, NextBase(policy), OptimizerConfig(), num_steps=100, stage_lengths=[length], contig_names=["random"],
        piece_bases=max(cut.piece_bases, length),
    )  # fmt: skip
    stepper.capture = at_once == windows and window_bases <= cut.piece_bases  # where the step is one micro-batch
    optimizer = stepper.make_optimizer()
    stored = np.random.default_rng(0).integers(0, 4, (at_once, length), dtype=np.uint8)
    places_B3 = torch.zeros(at_once, 3, dtype=torch.long)
    batch = StepBatch(torch.from_numpy(stored).to(device), places_B3, sum_of_weights(stored, policy))

    def context() -> torch.autocast:
        return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")

    def forward() -> None:
        with torch.no_grad(), context():
            network.backbone(batch.stored_BT + A)

    def both() -> None:
        with context():
            stepper._accumulate(batch)
        network.zero_grad(set_to_none=True)

    def step() -> None:
        with context():
            stepper.step(batch, optimizer)
        stepper.read_steps()

    seconds = [_fastest(function, device) for function in (forward, both, step)]
    again = cut.recomputed_layers / len(model.pattern)
    bases = at_once * length
    return Speed(
        forward=seconds[0] / bases,
        both=(seconds[1] - again * seconds[0]) / bases,
        update=max(0.0, seconds[2] - seconds[1]),
    )


def measure_or_none(
    model: BackboneConfig, implementation: str, device: str, precision: str, window_bases: int, cut: Cut, windows: int
) -> Speed | None:
    """Give what `measure` gives, or None where memory runs out: the run itself will cut its pieces smaller."""
    try:
        return measure(model, implementation, device, precision, window_bases, cut, windows)
    except torch.cuda.OutOfMemoryError:
        pass
    gc.collect()
    torch.cuda.empty_cache()
    return None


def _fastest(function: Callable[[], None], device: str) -> float:
    seconds = []
    for _ in range(3):  # the first compiles
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def tabled_speed(model: BackboneConfig, machine: Machine) -> Speed | None:
    """Give the speed of a GPU in the table; none for another one, or for layers that were not measured."""
    if machine.name not in KNOWN_GPUS or set(model.pattern) != {"M"}:
        return None
    return _speed_of_mamba(model, machine.name)


def _speed_of_mamba(model: BackboneConfig, gpu: str) -> Speed:
    _, both, forward = KNOWN_GPUS[gpu]
    layers, W = len(model.pattern), model.width

    def seconds(c: tuple[float, float, float]) -> float:
        return 1e-9 * layers * (c[0] + c[1] * W + c[2] * W * W)

    return Speed(forward=seconds(forward), both=seconds(both), update=0.0)


def seconds_a_base(speed: Speed, window_bases: int, cut: Cut, num_layers: int, bases_per_step: int) -> float:
    """Give the time of a base of a stage: all are computed once; pieces that are not kept, and some layers, once more."""
    again = cut.recomputed_layers / num_layers
    if window_bases > cut.piece_bases:
        num_pieces = -(-(window_bases - 1) // cut.piece_bases)
        again += max(0, num_pieces - cut.kept_pieces) / num_pieces
    return speed.both + speed.forward * again + speed.update / bases_per_step
