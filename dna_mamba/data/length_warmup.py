"""Sequence-length warm-up as data: which window length belongs to which optimizer step."""

from collections.abc import Sequence
from dataclasses import dataclass

from dna_mamba.errors import InputError, nearest

SHORTEST = 1024
"""Length of the first stage; that of the Mamba paper (appendix E.3.2)."""
LONGEST = 2**40
SCHEDULES = ("mamba", "hyenadna", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """So many optimizer steps on windows of one length."""

    window_bases: int
    num_steps: int


def lengths(schedule: str, seq_len: int) -> list[int]:
    """Give the window lengths of a schedule's stages.

    'mamba' doubles from 1,024 (Mamba, appendix E.3.2); 'hyenadna' from 64 (HyenaDNA, section 3.2); both end at
    `seq_len` whatever it is; 'none' has one stage.
    """
    if schedule not in SCHEDULES:
        raise InputError(
            f"length warm-up {schedule!r} is unknown{nearest(schedule, SCHEDULES)}; choose {', '.join(SCHEDULES)}"
        )
    if seq_len < 2:
        raise InputError(f"seq-len {seq_len} is too short; a window needs at least 2 bases to have a target")
    if seq_len > LONGEST:
        raise InputError(f"seq-len {seq_len:,} is longer than any chromosome; take at most {LONGEST:,}")
    result, length = [], {"mamba": SHORTEST, "hyenadna": 64, "none": seq_len}[schedule]
    while length < seq_len:
        result.append(length)
        length *= 2
    return [*result, seq_len]


def plan_stages(schedule: str, seq_len: int, num_steps: int) -> tuple[Stage, ...]:
    """Share the steps among the stages.

    The stages before the last get equal parts, together at most half of the steps, and at least one step each.
    """
    stage_lengths = lengths(schedule, seq_len)
    warmup = stage_lengths[:-1]
    if num_steps < len(stage_lengths):
        raise InputError(
            f"{num_steps} steps are too few for the {len(stage_lengths)} stages of length warm-up {schedule!r} up to "
            f"{seq_len:,} bases; take at least {len(stage_lengths)} steps or --length-warmup none"
        )
    # at most half in all, yet one each; what cannot be shared evenly goes to the last stage
    each = max(1, num_steps // 2 // len(warmup)) if warmup else 0
    stages = [Stage(window_bases=length, num_steps=each) for length in warmup]
    return (*stages, Stage(window_bases=seq_len, num_steps=num_steps - each * len(warmup)))


def stage_of_step(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """Give the stage of an optimizer step (counted from 0) and the step's place within it."""
    for number, stage in enumerate(stages):
        if step < stage.num_steps:
            return number, step
        step -= stage.num_steps
    raise IndexError("step beyond the last stage")
