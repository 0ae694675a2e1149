"""What a trained model says about held-out bases, and how much left context helps it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dna_mamba.data.fingerprints import same_contigs
from dna_mamba.data.intervals import Interval, each_base_once, subtract
from dna_mamba.data.objectives import TokenPolicy
from dna_mamba.data.samples import Stretch, sample
from dna_mamba.data.selection import DEMO, DataConfig, load_genome, load_split
from dna_mamba.data.store.build import is_directory
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.windows import known_bases
from dna_mamba.device import find_device
from dna_mamba.errors import InputError, check_regular
from dna_mamba.files import whole_directory, write_json, write_text
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import SHIPPED, from_pretrained, shipped
from dna_mamba.model.implementation import implementation_for
from dna_mamba.pipelines.configs.read import EvaluateConfig
from dna_mamba.pipelines.hub import HUB_ID, from_hub
from dna_mamba.progress import Progress
from dna_mamba.reading.losses import RegionScores, Score, loss_by_position, score_regions
from dna_mamba.reading.pieces import check_causal
from dna_mamba.values import Json, read_config

CONTEXT_BASES = 2**18
"""Bases read for each row of the table of loss against context, at most, but always 16 windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextRow:
    """Surprise of bases with left contexts of similar length."""

    first: int
    """Shortest left context in bases."""
    last: int
    """Longest, included."""
    score: Score
    low: float
    """Of the interval of 95 %, bits per base; windows, not bases, count as independent. NaN of one window."""
    high: float


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Scores of whole regions with carried state, and by position in windows that start without context."""

    model: Path
    what: str
    regions: tuple[Interval, ...]
    sampled: bool
    """Not all bases of the part were scored; the regions are what was."""
    trained: int | None
    """Bases of the part that the model was trained on; none where that is not known."""
    scores: RegionScores
    context: tuple[ContextRow, ...]
    """Empty where no region holds a window."""
    window_bases: int
    out: Path | None


def find_model(path: Path) -> tuple[Path, dict[str, object] | None]:
    """Find the model directory and the record of its run, if there is one, from either path."""
    if str(path) in SHIPPED and not path.exists():
        path = shipped(str(path))
    elif HUB_ID.fullmatch(str(path)) and not path.exists() and not path.parent.exists():
        path = from_hub(str(path))
    is_directory(path)
    if (path / "model" / "config.json").exists():
        model, record = path / "model", path / "run.json"
    else:
        model, record = path, path.parent / "run.json"
    if not (model / "config.json").exists():
        raise InputError(f"{path} is neither a run with a model nor a model directory: no config.json found")
    return model, _read_record(record) if record.exists() else None


def _read_record(record: Path) -> Json:
    """Read the record of a run; anyone may have written it."""
    try:
        check_regular(record, "the record of a run")
        values = json.loads(record.read_text(encoding="utf-8"))
        genome = values["genome"]
        texts = [genome["store"], genome["bases_sha256"], *(source["path"] for source in genome["sources"])]
        rows = [row for part in ("train", "valid", "test") for row in values["split"][part]]
        if not all(isinstance(one, str) for one in texts) or not all(
            isinstance(contig, str) and type(start) is int and type(end) is int for contig, start, end in rows
        ):
            raise ValueError("a value of a wrong type")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{record} is no record of a run ({error}); move it away and name --genome") from error
    return values


def _genome(
    config: EvaluateConfig, record: Json | None, on_progress: Progress | None, warn: Callable[[str], None] | None
) -> GenomeStore:
    if config.genome is not None:
        return load_genome(config.genome, on_progress, warn, rna=config.rna)
    if config.rna:
        raise InputError("--rna goes with --genome: the run's own genome is read as it was in training")
    if record is None:
        raise InputError(f"{config.model} has no run.json beside it; say which genome to score with --genome")
    source = Path(record["genome"]["store"])
    packed = [Path(s["path"]) for s in record["genome"]["sources"]]
    if (source / "manifest.json").exists():
        genome = load_genome(str(source), on_progress, warn)
    elif len(packed) == 1 and packed[0].name == "chr20.hg38.fa.gz" and not packed[0].exists():
        genome = load_genome(DEMO, on_progress, warn)
    elif len(packed) == 1 and packed[0].exists():
        genome = load_genome(str(packed[0]), on_progress, warn, rna=bool(record["genome"].get("rna")))
    else:
        raise InputError(f"the genome of this run is no longer at {source}; say where it is with --genome")
    if genome.manifest.bases_sha256 != record["genome"]["bases_sha256"]:
        raise InputError(
            f"{genome.called} holds other bases than the run was trained on; say what to score with --genome"
        )
    return genome


def _regions(
    config: EvaluateConfig, genome: GenomeStore, record: Json | None, warn: Callable[[str], None] | None
) -> tuple[str, list[Interval]]:
    if config.regions:
        return "regions", each_base_once([genome.region(text) for text in config.regions])
    if config.split_file is not None or config.valid or config.test:
        split_file = None if config.split_file is None else str(config.split_file)
        split = load_split(genome, DataConfig(split=split_file, valid=config.valid, test=config.test), warn)
        return config.split, list(split.part(config.split))
    if record is None or record["genome"]["bases_sha256"] != genome.manifest.bases_sha256:
        return f"{config.split} of the default split", list(load_split(genome, DataConfig()).part(config.split))
    return config.split, [Interval(*interval) for interval in record["split"][config.split]]


def _trained_bases(
    model: DnaMamba, record: Json | None, genome: GenomeStore, regions: Sequence[Interval], what: str
) -> tuple[int | None, str]:
    """Count the bases of regions that trained a model, and say what is to be said of it; none where that is not known."""
    known = [(contig, start, end) for contig, rows in (model.trained_on or {}).items() for start, end in rows]
    if not known and record is not None:
        known = [tuple(row) for row in record["split"]["train"]]
    if not known or not (model.fingerprints or any(contig in genome.contigs for contig, _, _ in known)):
        return None, ""
    matches = same_contigs(genome, model.fingerprints or {})
    trained_on = _Known(known, genome, regions)
    others = trained_on.within({contig: [contig] for contig in matches.other})
    if others:
        names = ", ".join(dict.fromkeys(one.contig for one in others))
        return None, (
            f"whether {what} trained the model is not known: it was trained on contigs named {names[:200]}, which hold other "
            f"bases here; genome audit --against compares sequence"
        )
    undecided = [name for name in genome.contigs if name not in matches.same and name not in matches.other]
    by_bases, by_name = trained_on.within(matches.same), trained_on.within({name: [name] for name in undecided})
    trained = known_bases(genome, [*by_bases, *by_name])
    if not trained:
        return 0, ""
    same_run = record is not None and record["genome"]["bases_sha256"] == genome.manifest.bases_sha256
    how = "by the names and places of contigs alone" if by_name and not same_run else "known again by their sequence"
    return trained, (
        f"the model was trained on {trained:,} of the {known_bases(genome, regions):,} known bases of {what} ({how}): "
        f"there, what follows is no score of held-out sequence"
    )


class _Known(NamedTuple):
    """Where a model was trained, in names of its own genome, and the regions of ours that are asked about."""

    intervals: Sequence[tuple[str, int, int]]
    """Contig, start and end."""
    genome: GenomeStore
    regions: Sequence[Interval]

    def within(self, names_of: Mapping[str, Sequence[str]]) -> list[Interval]:
        """Give the parts of the regions that lie in these intervals, read under the names that our genome has for a contig."""
        found = []
        for contig, start, end in self.intervals:
            for name in names_of.get(contig, []):
                end_here = min(end, self.genome.contig(name).length)
                if start < end_here:
                    found.append(Interval(name, start, end_here))
        return subtract(self.regions, subtract(self.regions, found))


def score_by_context(
    model: DnaMamba,
    genome: GenomeStore,
    regions: Sequence[Interval],
    policy: TokenPolicy,
    *,
    window_bases: int,
    bases_per_row: int,
) -> tuple[ContextRow, ...]:
    """Score bases with 1, 2-3, 4-7, 8-15, ... bases of left context.

    Each row reads windows of its own, twice as long as its shortest context, all over the regions: so every row rests on
    as many bases as the others, half of those it reads, and not on the few starts of the longest windows.
    """
    rows = []
    first = 1
    while first < window_bases:
        end = min(2 * first, window_bases)
        found = loss_by_position(
            model,
            genome,
            regions,
            policy,
            window_bases=end,
            max_bases=max(bases_per_row, 16 * end),
            first_counted=first,
        )
        score = Score(num_bases=int(found.counts[first:end].sum()), nats=float(found.nats[first:end].sum()))
        if score.num_bases:
            low, high = _interval(found.of_windows)
            rows.append(ContextRow(first=first, last=end - 1, score=score, low=low, high=high))
        first *= 2
    return tuple(rows)


def _interval(of_windows_W2: np.ndarray) -> tuple[float, float]:
    """Give 95 % limits of bits per base, a ratio of sums over windows. Source: Cochran 1977, equation 6.13."""
    nats_W, bases_W = of_windows_W2[of_windows_W2[:, 1] > 0].T / np.array([[math.log(2)], [1.0]])
    number = len(bases_W)
    if number < 2:
        return math.nan, math.nan
    ratio = nats_W.sum() / bases_W.sum()
    error = float(np.sqrt(((nats_W - ratio * bases_W) ** 2).sum() * number / (number - 1))) / float(bases_W.sum())
    return float(ratio - 1.96 * error), float(ratio + 1.96 * error)


def run(
    config: EvaluateConfig,
    *,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    on_bases: Callable[[int, int], None] | None = None,
) -> EvaluateResult:
    """Score a model in float32.

    Raises:
        InputError: Model, genome, split or regions are at fault, or `out` exists.
    """
    if config.out is not None:
        _check_out(config.out)
    path, record = find_model(config.model)
    model, policy_values = from_pretrained(path)
    check_causal(model, "scoring bases")
    policy = read_config(TokenPolicy, policy_values, str(path / "config.json"))
    genome = _genome(config, record, on_progress, warn)
    what, regions = _regions(config, genome, record, warn)
    if not regions:
        raise InputError(f"the split has no {config.split!r} part; choose another --split")
    device = find_device(config.device)
    model.use_implementation(implementation_for(model.config, device)).to(device)
    window = min(config.window_bases, max(map(len, regions)))
    some = sample(
        genome, regions, config.max_bases, context=max(model.trained_bases or 0, config.window_bases),
        start_token=policy.start_token, what=f"the {what}",
    )  # fmt: skip
    trained, remark = _trained_bases(model, record, genome, regions, what)
    if remark and warn:
        warn(remark)
    all_bases = sum(one.end - one.read_from for one in some)
    scores = score_regions(
        model, genome, some, policy, on_bases=None if on_bases is None else lambda bases: on_bases(bases, all_bases)
    )
    context = score_by_context(
        model,
        genome,
        regions,
        policy,
        window_bases=window,
        bases_per_row=min(config.max_bases, CONTEXT_BASES),
    )
    result = EvaluateResult(
        model=path,
        what=what,
        regions=tuple(one.interval for one in some),
        sampled=some != [Stretch.of(region) for region in regions],
        trained=trained,
        scores=scores,
        context=context,
        window_bases=window,
        out=config.out,
    )
    if config.out is not None:
        _write(result, config.out, warn)
    return result


def _check_out(out: Path) -> None:
    """Raise an InputError unless a directory can be made here: before the work, not after it."""
    try:
        if out.exists():
            raise InputError(f"--out {out} exists; choose another")
        out.mkdir(parents=True)
        out.rmdir()
    except OSError as error:
        raise InputError(f"--out {str(out)[:80]!r} cannot be made: {error.strerror}; choose another") from error


def _write(result: EvaluateResult, out: Path, warn: Callable[[str], None] | None) -> None:
    from dna_mamba.pipelines.reports import evaluation_as_dict

    lines = ["first,last,bases,bits_per_base,low,high"]
    for row in result.context:
        numbers = (row.score.bits_per_base, row.low, row.high)
        words = ("" if math.isnan(number) else f"{number:.6f}" for number in numbers)
        lines.append(f"{row.first},{row.last},{row.score.num_bases},{','.join(words)}")

    def write(path: Path) -> None:
        path.mkdir()
        write_json(path / "results.json", evaluation_as_dict(result))
        write_text(path / "context.csv", "\n".join(lines) + "\n")

    whole_directory(out, write, "--out")
    from dna_mamba.pipelines.pictures import draw_context, draw_or_say

    draw_or_say(lambda: draw_context(result.context, out / "context.png"), out / "context.png", warn)
