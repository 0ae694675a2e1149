"""Results as text, tables and plain values."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from dna_mamba.model.patterns import counts_of

if TYPE_CHECKING:
    from dna_mamba.pipelines.benchmark import BenchResult
    from dna_mamba.pipelines.configs.pretrain import PretrainConfig  # a report of one command loads nothing of another
    from dna_mamba.pipelines.evaluate import EvaluateResult
    from dna_mamba.pipelines.finetune import FinetuneResult
    from dna_mamba.pipelines.pretrain_plan import Plan
    from dna_mamba.pipelines.pretrain_results import PretrainResult
    from dna_mamba.reading.losses import Score


def _of_pattern(config: "PretrainConfig") -> list[str]:
    """Count the layers of a model of several kinds; a hybrid that has no attention is told."""
    pattern = config.model.pattern
    lacks = config.preset.endswith("hybrid") and "*" not in pattern
    if len(set(pattern)) == 1 and not lacks:
        return []
    remark = "; no attention among them, since its share of so few layers rounds to none" if lacks else ""
    return [f"pattern {pattern}: {counts_of(pattern)}{remark}"]


def plan_as_text(plan: "Plan") -> str:
    """Say what a pretraining run will do."""
    config = plan.config
    stages: list[str] = []
    for stage, windows, count, dropped in zip(
        plan.stages, plan.windows_per_step, plan.num_windows, plan.num_dropped, strict=True
    ):
        left_out = f" ({dropped:,} left out: too many N, or no room)" if dropped else ""
        number = len(stages)
        if plan.unread_bases[number] > plan.never_read_bases:
            left_out += f", without {plan.unread_bases[number]:,} known bases (contigs too short, or no room)"
        at_once = max(1, min(windows, plan.cut.piece_bases // stage.window_bases))
        cut = f"{-(-windows // at_once)} x {at_once} at once" if windows > 1 else "one at a time"
        if stage.window_bases > plan.cut.piece_bases:
            num_pieces = -(-(stage.window_bases - 1) // plan.cut.piece_bases)
            kept = min(plan.cut.kept_pieces, num_pieces)
            cut = f"in {num_pieces} pieces of {plan.cut.piece_bases:,}, {kept} of them computed only once"
        words = f"  {stage.num_steps:,} steps of {windows:,} x {stage.window_bases:,} bases, {count:,} windows{left_out}: {cut}"
        if plan.cut.recomputed_layers:
            words += f", {min(plan.cut.recomputed_layers, len(config.model.pattern))} layers recomputed"
        if plan.memory:
            words += f"; {plan.memory[number].total / 2**30:.1f} GiB"
        if plan.bases_per_second[number] == plan.bases_per_second[number]:
            words += f"; {_rounded(plan.bases_per_second[number])} bases/s, {_duration(plan.hours[number])}"
        stages.append(words)
    steps = sum(stage.num_steps for stage in plan.stages)
    hours = sum(plan.hours)
    total = f"in all {steps:,} steps, {plan.num_bases:,} bases"
    if hours == hours:
        total += f", about {_duration(hours)} of training"
    lines = []
    if plan.memory:
        most = max(plan.memory, key=lambda memory: memory.total)
        parts = ", ".join(
            f"{name} {getattr(most, name) / 2**30:.2f}"
            for name in ("parameters", "activations", "working", "states", "window")
        )
        lines.append(f"memory at most {most.total / 2**30:.1f} GiB ({parts}) of {plan.machine.budget / 2**30:.1f} free")  # type: ignore[union-attr]
    return "\n".join(
        [
            f"{config.model.title}, {plan.num_parameters:,} parameters, on {plan.where} in {config.precision}, "
            f"kernels: {config.implementation}",
            f"genome {config.data.genome}: {plan.train_bases:,} known bases train, {plan.valid_bases:,} validate, "
            f"{plan.test_bases:,} test",
            *_of_pattern(config),
            *(
                [f"{plan.never_read_bases:,} of the training bases lie in no window, and no baseline sees them"]
                if plan.never_read_bases
                else []
            ),
            *stages,
            *lines,
            total,
        ]
    )


def plan_as_dict(plan: "Plan") -> dict[str, object]:
    """Give the plan as plain values; memory in bytes."""

    def known(value: float) -> float | None:
        return value if value == value else None

    stages = [
        {
            "window_bases": stage.window_bases,
            "steps": stage.num_steps,
            "windows_per_step": windows,
            "windows": count,
            "known_bases_in_no_window": plan.unread_bases[i],
            "memory": None if not plan.memory else {**asdict(plan.memory[i]), "total": plan.memory[i].total},
            "bases_per_second": known(plan.bases_per_second[i]),
            "hours": known(plan.hours[i]),
        }
        for i, (stage, windows, count) in enumerate(
            zip(plan.stages, plan.windows_per_step, plan.num_windows, strict=True)
        )
    ]
    return {
        "model": plan.config.model.size,
        "parameters": plan.num_parameters,
        "on": plan.where,
        "precision": plan.config.precision,
        "implementation": plan.config.implementation,
        **asdict(plan.cut),
        "stages": stages,
        "bases": plan.num_bases,
        "known_bases": {
            "train": plan.train_bases,
            "valid": plan.valid_bases,
            "test": plan.test_bases,
            "train_in_no_window": plan.never_read_bases,
        },
        "hours": known(sum(plan.hours)),
    }


def _rounded(rate: float) -> str:
    return f"{rate / 1e6:.2f} million" if rate >= 1e6 else f"{rate:,.0f}"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours >= 1 / 30 else f"{hours * 3600:.0f} s"


def pretrain_as_table(result: "PretrainResult") -> Table:
    """Show the model beside Markov models and a uniform guess, best first."""
    table = Table(title=f"{result.model.total.num_bases:,} held-out bases", title_justify="left")
    table.add_column("model")
    table.add_column("bits per base", justify="right")
    table.add_column("perplexity", justify="right")
    table.add_column("")
    for row in result.rows:
        mine = not row.is_baseline
        table.add_row(
            row.name, f"{row.bits_per_base:.4f}", f"{row.perplexity:.4f}", row.detail, style="bold" if mine else None
        )
    return table


def pretrain_as_text(result: "PretrainResult") -> str:
    """Name the winner, list all Markov orders, and say where everything is."""
    lines = []
    if result.markov:
        lines.append("Markov orders 0, 1, 2, ...")
        for kind in ("plain", "interpolated"):
            lines.append(f"  {kind:13s}" + " ".join(f"{getattr(row, f'test_{kind}'):.4f}" for row in result.markov))
    best = result.rows[0]
    lines.append(f"lowest: {best.name} with {best.bits_per_base:.4f} bits per base")
    if result.num_skipped:
        lines.append(f"{result.num_skipped} steps were skipped because loss or gradient was not finite")
    lines.append(f"{result.num_steps:,} steps in {result.seconds:.0f} s, {result.train_bases_per_second:,.0f} bases/s")
    lines.append(f"run: {result.out}")
    lines.append(f"picture: {result.loss_picture}")
    lines.append(f"next: dna-mamba evaluate {result.out}")
    return "\n".join(lines)


def pretrain_as_dict(result: "PretrainResult") -> dict[str, object]:
    """Give the result as plain values."""
    return {
        "out": str(result.out),
        "steps": result.num_steps,
        "skipped_steps": result.num_skipped,
        "seconds": result.seconds,
        "bases_scored": result.model.total.num_bases,
        "table": [{**asdict(row), "perplexity": row.perplexity} for row in result.rows],
        "markov": [asdict(row) for row in result.markov],
    }


def evaluation_as_dict(result: "EvaluateResult") -> dict[str, object]:
    """Give the result as plain values; intervals are 0-based, end excluded."""

    def score(value: "Score") -> dict[str, object]:
        return {"bases": value.num_bases, "bits_per_base": value.bits_per_base, "perplexity": value.perplexity}

    return {
        "model": str(result.model),
        "scored": result.what,
        "regions": [[i.contig, i.start, i.end] for i in result.regions],
        "total": score(result.scores.total),
        "upper_case": score(result.scores.upper_case),
        "soft_masked": score(result.scores.soft_masked),
        "after_n": score(result.scores.after_n),
        "num_n": result.scores.num_n,
        "sampled": result.sampled,
        "bases_that_trained_the_model": result.trained,
        "context": [
            {"first": r.first, "last": r.last, **score(r.score), "low": r.low, "high": r.high} for r in result.context
        ],
    }


def evaluation_as_tables(result: "EvaluateResult") -> list[Table]:
    """Show the scores by kind of base, and by left context."""
    how = (
        "a sample, spread evenly, each base with its context"
        if result.sampled
        else "every base from all before it in its region"
    )
    strata = Table(title=f"{result.what}: {how}", title_justify="left")
    for name in ("bases", "number", "bits per base", "perplexity"):
        strata.add_column(name, justify="left" if name == "bases" else "right")
    scores = result.scores
    for name, score in (
        ("all of A, C, G, T", scores.total),
        ("upper case", scores.upper_case),
        ("soft-masked", scores.soft_masked),
        ("right after N", scores.after_n),
    ):
        numbers = (f"{score.bits_per_base:.4f}", f"{score.perplexity:.4f}") if score.num_bases else ("", "")
        strata.add_row(name, f"{score.num_bases:,}", *numbers)
    strata.add_row("N (not scored)", f"{scores.num_n:,}", "", "")
    context = Table(title=f"by left context, up to {result.window_bases:,} bases", title_justify="left")
    for name in ("left context", "bases scored", "bits a base", "95 % interval", "perplexity"):
        context.add_column(name, justify="right")
    for row in result.context:
        context.add_row(
            f"{row.first:,}" if row.first == row.last else f"{row.first:,}-{row.last:,}",
            f"{row.score.num_bases:,}",
            f"{row.score.bits_per_base:.4f}",
            "" if row.low != row.low else f"{row.low:.4f}-{row.high:.4f}",
            f"{row.score.perplexity:.4f}",
        )
    return [strata, context]


def bench_as_dict(result: "BenchResult") -> dict[str, object]:
    """Give the measurements as plain values."""
    return {"title": result.title, "hardware": result.hardware, "versions": result.versions,
            "rows": [{"what": row.what, **{c: row.cells.get(c) for c in result.columns}} for row in result.rows]}  # fmt: skip


def bench_as_table(result: "BenchResult") -> Table:
    """Show the measurements."""
    table = Table(title=result.title, title_justify="left", caption=result.hardware, caption_justify="left")
    table.add_column("what")
    for column in result.columns:
        table.add_column(column, justify="right")
    for row in result.rows:
        cells = (row.cells.get(column) for column in result.columns)
        table.add_row(row.what, *("" if v is None else f"{v:,.4g}" if isinstance(v, float) else str(v) for v in cells))
    return table


def finetune_as_dict(result: "FinetuneResult") -> dict[str, object]:
    """Give plain values."""
    return {"out": str(result.out), "labels": list(result.labels), "lengths": [asdict(one) for one in result.lengths]}


def finetune_as_tables(result: "FinetuneResult") -> list[Table]:
    """Give a table a length."""
    tables = []
    for one in result.lengths:
        title = f"{'SIMULATED, ' if result.simulated else ''}test windows of {one.seq_len:,} bases"
        table = Table(title=title)
        for column in ("", "accuracy", "95 % interval", "calibration error", "log loss", ""):
            table.add_column(column)
        for row in one.rows:
            value = "" if row.value is None else f"{row.value:.3f}"
            interval = "" if row.accuracy is None else f"{row.accuracy.low:.3f} to {row.accuracy.high:.3f}"
            of = row.report
            more = ("", "") if of is None else (f"{of['calibration_error']:.3f}", f"{of['log_loss']:.3f}")
            table.add_row(row.name, value, interval, *more, row.detail)
        tables.append(table)
        first = one.rows[0].report
        assert first is not None
        classes = Table(title=f"classes, windows of {one.seq_len:,} bases: rows are true, columns answers")
        for column in ("", "recognised", *result.labels):
            classes.add_column(column)
        for label, counts in zip(result.labels, first["confusion"], strict=True):
            share = first["by_class"][label]
            interval = f"{share['value']:.3f} ({share['low']:.3f}-{share['high']:.3f})" if share["number"] else ""
            classes.add_row(label, interval, *map(str, counts))
        tables.append(classes)
    return tables
