"""What a pretraining run will do: its settings resolved, its windows, its memory and time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dna_mamba.data.intervals import subtract
from dna_mamba.data.length_warmup import Stage, lengths, plan_stages
from dna_mamba.data.samples import Stretch, sample
from dna_mamba.data.selection import DEMO, load_genome, load_split
from dna_mamba.data.splits import Split
from dna_mamba.data.steps import TrainingSteps
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.windows import Windows, check_length, known_bases, plan_windows, read_by
from dna_mamba.device import find_device, find_precision
from dna_mamba.errors import InputError
from dna_mamba.model.implementation import implementation_for
from dna_mamba.pipelines.configs.pretrain import PretrainConfig, TrainingConfig
from dna_mamba.pipelines.machines import Machine, this_gpu
from dna_mamba.pipelines.planning import (
    Cut,
    Memory,
    check_main_memory,
    choose_cut,
    longest_piece_that_fits,
    measure_or_none,
    memory_of_step,
    num_parameters,
    seconds_a_base,
    tabled_speed,
)
from dna_mamba.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do."""

    config: PretrainConfig
    num_parameters: int
    stages: tuple[Stage, ...]
    windows_per_step: tuple[int, ...]
    num_windows: tuple[int, ...]
    num_dropped: tuple[int, ...]
    train_bases: int
    """A, C, G and T of the training part; of the other two as well."""
    unread_bases: tuple[int, ...]
    """Of these, by stage, those that lie in no window of it."""
    never_read_bases: int
    """Of these, those that lie in no window of any stage."""
    valid_bases: int
    test_bases: int
    machine: Machine | None
    """The GPU that it is planned for; none is a CPU."""
    memory: tuple[Memory, ...]
    """Of a step of each stage, on a GPU."""
    bases_per_second: tuple[float, ...]
    """Of each stage; NaN where it is not known."""

    @property
    def hours(self) -> tuple[float, ...]:
        """Of the training of each stage."""
        num_gpus = 1 if self.machine is None else self.machine.num_gpus
        return tuple(
            # the busiest GPU decides: a window is not shared among several
            stage.num_steps * -(-windows // num_gpus) * stage.window_bases / rate / 3600
            for stage, windows, rate in zip(self.stages, self.windows_per_step, self.bases_per_second, strict=True)
        )

    @property
    def where(self) -> str:
        """Name the device."""
        if self.machine is None:
            return self.config.device
        return self.machine.name if self.machine.num_gpus == 1 else f"{self.machine.num_gpus} x {self.machine.name}"

    @property
    def cut(self) -> Cut:
        """How every step is cut up."""
        training = self.config.training
        return _cut_of(training)

    @property
    def num_bases(self) -> int:
        """Bases that the run reads, windows seen again counted again."""
        return sum(
            stage.num_steps * windows * stage.window_bases
            for stage, windows in zip(self.stages, self.windows_per_step, strict=True)
        )


def resolve(config: PretrainConfig, machine: Machine | None = None) -> PretrainConfig:
    """Replace every 'auto' by what it means on this machine, so that a resumed run does not choose anew.

    Args:
        config: What was asked for.
        machine: Plan for this GPU, which need not be here.
    """
    if not config.model.causal:
        raise InputError(
            f"pretraining predicts the next base, and the pattern {config.model.pattern!r} has layers that read both ways, "
            f"which have seen it; take layers that read forward"
        )
    if machine is not None and config.device in ("auto", "cuda"):
        device = "cuda"
    else:
        device = find_device(config.device)
    if device == "cpu":
        check_main_memory(config.model)
    precision = find_precision(config.precision, device)
    implementation = implementation_for(config.model, device, config.implementation, here=machine is None)
    training = config.training
    if device == "cuda" and machine is None:
        machine = this_gpu()
    training = replace(training, **asdict(_choose_cut(config, precision, machine)))
    data = config.data
    genome = data.genome if data.genome == DEMO else str(Path(data.genome).absolute())  # a run is resumed from anywhere
    data = replace(data, genome=genome, split=None if data.split is None else str(Path(data.split).absolute()))
    return replace(
        config, data=data, training=training, device=device, precision=precision, implementation=implementation
    )


def _choose_cut(config: PretrainConfig, precision: str, machine: Machine | None) -> Cut:
    """Fill in what the configuration leaves open."""
    training, layers = config.training, len(config.model.pattern)
    again = None if training.recomputed_layers is None else min(training.recomputed_layers, layers)
    if training.piece_bases is not None:
        return Cut(
            piece_bases=training.piece_bases, kept_pieces=training.kept_pieces or 1, recomputed_layers=again or 0
        )
    return choose_cut(
        config.model,
        precision,
        machine,
        lengths(training.length_warmup, training.seq_len),
        training.bases_per_step,
        kept_pieces=training.kept_pieces,
        recomputed_layers=again,
    )


def plan_of(
    config: PretrainConfig, genome: GenomeStore, split: Split, machine: Machine | None = None, *, timed: bool = True
) -> tuple[Plan, TrainingSteps]:
    """Say what a run will do, and give its steps; refuse what cannot be done, before anything is written.

    Args:
        config: Resolved.
        genome: The store.
        split: Its parts.
        machine: Plan for this GPU, which need not be here.
        timed: Say how long it takes, for which steps are timed here.

    Raises:
        InputError: The genome or the split does not fit the windows, or a stage does not fit in memory.
    """
    training = config.training
    check_length(genome, split, training.seq_len)
    stages = plan_stages(training.length_warmup, training.seq_len, training.num_steps)
    windows = tuple(
        plan_windows(genome, split, stage.window_bases, rule=config.data.window_rule, max_n=config.data.max_n)
        for stage in stages
    )
    steps = TrainingSteps(
        genome,
        stages,
        windows,
        bases_per_step=max(training.bases_per_step, training.seq_len),
        seed=config.seed,
        policy=config.data.policy,
    )
    windows_per_step = tuple(steps.windows_per_step(i) for i in range(len(stages)))
    if machine is None and config.device == "cuda":
        machine = this_gpu()
    memory: tuple[Memory, ...] = ()
    cut = _cut_of(training)
    if machine is not None and config.implementation == "triton":  # nothing else keeps so little
        memory = tuple(
            memory_of_step(config.model, config.precision, cut, stage.window_bases, windows_)
            for stage, windows_ in zip(stages, windows_per_step, strict=True)
        )
        _check_memory(config, machine, stages, memory)
    plan = Plan(
        config=config,
        machine=machine,
        memory=memory,
        bases_per_second=_speeds(config, machine, stages, windows_per_step, cut)
        if timed
        else (math.nan,) * len(stages),
        num_parameters=num_parameters(config.model),
        stages=stages,
        windows_per_step=windows_per_step,
        num_windows=tuple(len(w) for w in windows),
        num_dropped=tuple(w.num_too_many_n + w.num_no_room for w in windows),
        train_bases=known_bases(genome, split.train),
        unread_bases=tuple(_unread(genome, split, [some]) for some in windows),
        never_read_bases=_unread(genome, split, windows),
        valid_bases=known_bases(genome, split.valid),
        test_bases=known_bases(genome, split.test),
    )
    for name, most in (("valid", config.evaluation.valid_bases), ("test", config.evaluation.test_bases)):
        if split.part(name):
            sample_of(config, genome, split, name, most)  # what cannot be scored is refused here
    return plan, steps


def _unread(genome: GenomeStore, split: Split, windows: Sequence[Windows]) -> int:
    """Count the known bases of the training part that lie in none of these windows."""
    return known_bases(genome, subtract(split.train, read_by(genome, windows)))


def sample_of(config: PretrainConfig, genome: GenomeStore, split: Split, part: str, most: int) -> list[Stretch]:
    """Choose what is scored of a part of the split."""
    return sample(
        genome, split.part(part), most, context=config.training.seq_len, start_token=config.data.policy.start_token,
        what=f"the {part} part",
    )  # fmt: skip


def _cut_of(training: TrainingConfig) -> Cut:
    assert training.piece_bases is not None and training.kept_pieces is not None
    return Cut(
        piece_bases=training.piece_bases,
        kept_pieces=training.kept_pieces,
        recomputed_layers=training.recomputed_layers or 0,
    )


def _check_memory(config: PretrainConfig, machine: Machine, stages: Sequence[Stage], memory: Sequence[Memory]) -> None:
    for stage, parts in zip(stages, memory, strict=True):
        if parts.total <= machine.budget:
            continue
        cut, training = _cut_of(config.training), config.training
        piece = longest_piece_that_fits(
            config.model, config.precision, machine, [s.window_bases for s in stages], training.bases_per_step, cut
        )
        advice = "" if piece is None else f"--piece-len {piece} would fit, and "
        raise InputError(
            f"the stage of {stage.window_bases:,} bases needs {parts.total / 2**30:.1f} GiB and {machine.budget / 2**30:.1f} "
            f"GiB are free for it on {machine.name}: {advice}--piece-len auto chooses what does"
        )


def _speeds(
    config: PretrainConfig, machine: Machine | None, stages: Sequence[Stage], windows: Sequence[int], cut: Cut
) -> tuple[float, ...]:
    """Give bases a second of each stage: measured here, or from the table of a GPU that is not here."""
    found: list[float] = []
    # three stages are measured, those between go as the one before them
    chosen = {0, (len(stages) - 1) // 2, len(stages) - 1}
    for number, (stage, windows_per_step) in enumerate(zip(stages, windows, strict=True)):
        if number not in chosen:
            found.append(found[-1])
            continue
        if machine is not None and not machine.present:
            usual = config.precision == "bf16" and config.implementation == "triton"
            speed = tabled_speed(config.model, machine) if usual else None
        else:
            speed = measure_or_none(
                config.model,
                config.implementation,
                config.device,
                config.precision,
                stage.window_bases,
                cut,
                windows_per_step,
            )
        seconds = float("nan")
        if speed is not None:
            seconds = seconds_a_base(
                speed, stage.window_bases, cut, len(config.model.pattern), windows_per_step * stage.window_bases
            )
        found.append(1.0 / seconds)
    return tuple(found)


def plan(
    config: PretrainConfig,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Check everything and say what a run would do, without training and without writing a run directory.

    Args:
        config: What is asked for.
        on_progress: Called while a FASTA is packed.
        warn: Called with a sentence when something deserves attention.
        machine: Plan for this GPU, which need not be here.

    Raises:
        InputError: Something in the configuration or the data is at fault, or a stage does not fit in memory.
    """
    config = resolve(config, machine)
    if machine is not None and config.device != "cuda":
        raise InputError(f"a plan for {machine.name} is one for a GPU; leave device {config.device!r} out")
    genome = load_genome(config.data.genome, on_progress, warn, rna=config.data.rna)
    result, steps = plan_of(config, genome, load_split(genome, config.data, warn), machine)
    steps[0]  # one real batch
    return result
