"""Which bases do the parts of a split share, and do training windows reach into the others?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dna_mamba.data.build import Progress
from dna_mamba.data.intervals import Interval, merge, shared_bases
from dna_mamba.data.windows import plan_windows
from dna_mamba.pipelines.pretrain import DataConfig, load_genome, load_split


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """What to audit."""

    genome: str
    split: str | None = None
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    seq_len: int = 1024
    window_rule: str = "mamba"
    max_n: float = 0.5


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """Counts of bases by coordinates; equal sequence at different places is not looked for."""

    bases_of_part: dict[str, int]
    shared_by_parts: dict[str, int]
    num_windows: int
    window_bases: int
    """Distinct bases that the training windows cover."""
    num_left_out: int
    shared_by_windows: dict[str, int]
    """Bases of training windows that lie in validation or test."""

    @property
    def num_shared(self) -> int:
        """Shared bases of all kinds; 0 is what there should be."""
        return sum(self.shared_by_parts.values()) + sum(self.shared_by_windows.values())

    def as_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {**asdict(self), "num_shared": self.num_shared}

    def as_text(self) -> str:
        """Give lines to print."""
        lines = [f"{name}: {count:,} bases" for name, count in self.bases_of_part.items()]
        lines += [f"shared by {pair.replace('+', ' and ')}: {count:,}" for pair, count in self.shared_by_parts.items()]
        lines.append(
            f"{self.num_windows:,} training windows cover {self.window_bases:,} bases ({self.num_left_out:,} windows left out)"
        )
        lines += [f"shared by training windows and {part}: {count:,}" for part, count in self.shared_by_windows.items()]
        return "\n".join(lines)


def run(
    config: AuditConfig, *, on_progress: Progress | None = None, warn: Callable[[str], None] | None = None
) -> AuditResult:
    """Count the bases that are in two places at once."""
    genome = load_genome(config.genome, on_progress, warn)
    data = DataConfig(genome=config.genome, split=config.split, valid=config.valid, test=config.test)
    split = load_split(genome, data)
    windows = plan_windows(genome, split, config.seq_len, rule=config.window_rule, max_n=config.max_n)
    names = [contig.name for contig in genome.manifest.contigs]
    covered = merge(
        Interval(names[contig], start, start + config.seq_len)
        for contig, start in zip(windows.contigs.tolist(), windows.starts.tolist(), strict=True)
    )
    return AuditResult(
        bases_of_part={name: sum(map(len, merge(split.part(name)))) for name in ("train", "valid", "test")},
        shared_by_parts=split.shared(),
        num_windows=len(windows),
        window_bases=sum(map(len, covered)),
        num_left_out=windows.num_too_many_n + windows.num_no_room,
        shared_by_windows={name: shared_bases(covered, split.part(name)) for name in ("valid", "test")},
    )
