"""What a pretraining run reached, beside its baselines; what is known is written before the next begins."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dna_mamba.data.intervals import Interval
from dna_mamba.data.markov import STRENGTHS, MarkovModels
from dna_mamba.data.samples import Stretch
from dna_mamba.data.splits import Split
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.vocabulary import BASE_BITS
from dna_mamba.files import write_json
from dna_mamba.model.checkpoints.native import from_pretrained
from dna_mamba.pipelines.configs.pretrain import PretrainConfig
from dna_mamba.pipelines.pretrain_plan import Plan, sample_of
from dna_mamba.reading.losses import RegionScores, Score, score_regions
from dna_mamba.training.counters import Counters

MARKOV_CHOICE_BASES = 2**22
"""Of validation, that the order and strength of Markov models are chosen on at most."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the final table."""

    name: str
    bits_per_base: float
    detail: str = ""

    @property
    def perplexity(self) -> float:
        """Two to the power of the bits per base."""
        return 2.0**self.bits_per_base

    @property
    def is_baseline(self) -> bool:
        """Whether it is what the model is held against."""
        return self.name == "uniform" or self.name.startswith("Markov ")


@dataclass(frozen=True, kw_only=True)
class MarkovRow:
    """Bits per base of the Markov models of one order, on validation and test."""

    order: int
    valid_plain: float
    test_plain: float
    valid_interpolated: float
    test_interpolated: float
    strength: float
    """Of the interpolation, the best on validation."""


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """Where the run is and what came out."""

    out: Path
    num_steps: int
    num_skipped: int
    seconds: float
    train_bases_per_second: float
    model: RegionScores
    rows: tuple[Row, ...]
    """Model, Markov models and uniform on the same held-out bases, best first."""
    markov: tuple[MarkovRow, ...]
    """Every order: plain and interpolated bits per base."""
    loss_picture: Path
    best_plain_order: int | None
    best_interpolated_order: int | None


def finish(
    config: PretrainConfig,
    out: Path,
    counters: Counters,
    identity: dict[str, str],
    genome: GenomeStore,
    split: Split,
    the_plan: Plan,
    trained: Sequence[Interval],
    seconds: float,
    bases_before: int,
    on_phase: Callable[[str], None] | None,
    warn: Callable[[str], None] | None,
) -> PretrainResult:
    """Score the model, then fit what it is compared with, then draw: what is known is written before the next begins."""
    say = on_phase or (lambda words: None)
    known = _read_results(out / "results.json", identity)
    if known is not None:
        say("the run had ended; its results are read from results.json")
        scores, rows, markov, best = known
    else:
        part = "test" if split.test else "valid"
        test = sample_of(config, genome, split, part, config.evaluation.test_bases)
        say("scoring held-out bases")
        model, _ = from_pretrained(out / "model")
        model.use_implementation(config.implementation).to(config.device)
        scores = score_regions(model, genome, test, config.data.policy)
        rows = [
            Row(name=config.model.title, bits_per_base=scores.total.bits_per_base,
                detail=f"{the_plan.num_parameters:,} parameters"),
            Row(name="uniform", bits_per_base=2.0, detail="a guess among A, C, G, T"),
        ]  # fmt: skip
        markov, best = (), (None, None)
        complete = config.evaluation.markov_max_order < 0
        _write_results(out / "results.json", part, scores, rows, markov, best, identity if complete else {})
        if not complete:
            say("fitting Markov models on the same training bases")
            markov, plain, interpolated = markov_table(config, genome, split, trained, test, scores.total.num_bases)
            best = plain, interpolated
            rows += [
                Row(name=f"Markov order {plain}, plain", bits_per_base=markov[plain].test_plain,
                    detail="order chosen on validation"),
                Row(name=f"Markov order {interpolated}, interpolated", bits_per_base=markov[interpolated].test_interpolated,
                    detail=f"order and a = {markov[interpolated].strength:g} chosen on validation"),
            ]  # fmt: skip
            rows.sort(key=lambda row: row.bits_per_base)
            _write_results(out / "results.json", part, scores, rows, markov, best, identity)
    trained_bases = sum(map(sum, counters.bases_seen)) - bases_before
    result = PretrainResult(
        out=out,
        num_steps=counters.step,
        num_skipped=counters.skipped,
        seconds=seconds,
        train_bases_per_second=trained_bases / max(seconds, 1e-9),
        model=scores,
        rows=tuple(rows),
        markov=tuple(markov),
        loss_picture=out / "loss.png",
        best_plain_order=best[0],
        best_interpolated_order=best[1],
    )
    if known is None or not (out / "loss.png").exists() or not (out / "report.png").exists():
        _draw(config, out, the_plan, result, warn)
    return result


def _draw(
    config: PretrainConfig, out: Path, the_plan: Plan, result: PretrainResult, warn: Callable[[str], None] | None
) -> None:
    """Draw the run; a picture that fails is a remark."""
    from dna_mamba.pipelines.pictures import draw_losses, draw_or_say, draw_report

    mine = result.model.total.bits_per_base
    reference = {row.name: row.bits_per_base for row in result.rows if row.is_baseline}
    draw_or_say(
        lambda: draw_losses(out / "metrics.csv", out / "loss.png", reference, config.model.title, mine),
        out / "loss.png", warn,
    )  # fmt: skip
    stages = zip(the_plan.stages, the_plan.windows_per_step, strict=True)
    stage_words = "\n".join(
        f"  {stage.num_steps:,} steps of {count:,} x {stage.window_bases:,} bases" for stage, count in stages
    )
    words = (
        f"{config.model.title}, {the_plan.num_parameters:,} parameters\non {the_plan.where}, {config.precision}\n"
        f"{stage_words}\nheld-out bits per base: {mine:.4f}\n"
        + "\n".join(f"  {row.name}: {row.bits_per_base:.4f}" for row in result.rows)
    )
    draw_or_say(
        lambda: draw_report(out / "metrics.csv", out / "speed.csv", out / "report.png", words), out / "report.png", warn
    )


def _write_results(
    path: Path,
    part: str,
    scores: RegionScores,
    rows: Sequence[Row],
    markov: Sequence[MarkovRow],
    best: Sequence[int | None],
    identity: dict[str, str],
) -> None:
    """Write results.json; without an identity it is one that more is to come to."""
    write_json(
        path,
        {
            "held_out": part,
            "complete": bool(identity),
            "bases_scored": scores.total.num_bases,
            "table": [{**asdict(row), "perplexity": row.perplexity} for row in rows],
            "markov": [asdict(row) for row in markov],
            "best_markov_orders": list(best),
            "scores": asdict(scores),
            "identity": identity,
        },
    )


Known = tuple[RegionScores, list[Row], tuple[MarkovRow, ...], Sequence[int | None]]


def _read_results(path: Path, identity: dict[str, str]) -> Known | None:
    """Read results that were completed by this very run; anything else is made anew."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not identity or values["identity"] != identity:
            return None
        strata = {name: Score(**values["scores"][name]) for name in ("total", "upper_case", "soft_masked", "after_n")}
        scores = RegionScores(**strata, num_n=values["scores"]["num_n"])
        rows = [Row(**{name: row[name] for name in ("name", "bits_per_base", "detail")}) for row in values["table"]]
        return scores, rows, tuple(MarkovRow(**row) for row in values["markov"]), values["best_markov_orders"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def markov_table(
    config: PretrainConfig,
    genome: GenomeStore,
    split: Split,
    train: Sequence[Interval],
    test: Sequence[Stretch],
    num_targets: int,
) -> tuple[tuple[MarkovRow, ...], int, int]:
    """Fit Markov models on what the model can read in training and score them on the model's targets.

    Args:
        config: Of the run.
        genome: The store.
        split: Its parts.
        train: The bases that lie in training windows.
        test: What the model was scored on.
        num_targets: Bases that the model scored.

    Returns:
        A row an order, the best plain order and the best interpolated order, both chosen on validation.
    """
    both = config.data.policy.reverse_complement > 0
    start_token = config.data.policy.start_token  # then the model scores the first base of a region too
    models = MarkovModels.fit(genome, train, both_strands=both, max_order=config.evaluation.markov_max_order)

    def stretches(chosen: Sequence[Stretch]) -> list[tuple[np.ndarray, int]]:
        return [
            (
                genome.stored(one.contig, one.read_from, one.end) & BASE_BITS,
                one.first_target(start_token) - one.read_from,
            )
            for one in chosen
        ]

    most = min(config.evaluation.test_bases, MARKOV_CHOICE_BASES)
    on_valid = models.score(stretches(sample_of(config, genome, split, "valid", most)))
    strength_of_order = np.argmin(on_valid.interpolated, axis=0)
    used = np.unique(strength_of_order)
    on_test = models.score(stretches(test), strengths=[STRENGTHS[n] for n in used])
    assert on_test.num_targets == num_targets, "the models are scored on the same bases"
    best_plain = int(np.argmin(on_valid.plain))
    best_of_order = on_valid.interpolated.min(axis=0)
    best_interpolated = int(np.argmin(best_of_order))
    place_of = {int(n): place for place, n in enumerate(used)}
    rows = tuple(
        MarkovRow(
            order=k,
            valid_plain=float(on_valid.plain[k]),
            test_plain=float(on_test.plain[k]),
            valid_interpolated=float(best_of_order[k]),
            test_interpolated=float(on_test.interpolated[place_of[int(strength_of_order[k])], k]),
            strength=float(STRENGTHS[int(strength_of_order[k])]),
        )
        for k in range(models.max_order + 1)
    )
    return rows, best_plain, best_interpolated
