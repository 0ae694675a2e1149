"""Pictures of runs."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dna_mamba.files import WholeFile
from dna_mamba.training.metrics_csv import read_metrics

if TYPE_CHECKING:  # matplotlib is heavy, and not every run draws
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_mamba.pipelines.evaluate import ContextRow

T = TypeVar("T")
COLOURS = ("#7f7f7f", "#d55e00", "#e69f00", "#009e73")
MOST_POINTS = 4000
"""Of a line; a run of a million steps is drawn by so many of them."""


def draw_or_say(draw: Callable[[], object], picture: Path, say: Callable[[str], None] | None) -> None:
    """Draw; if that fails, say so and go on: no result waits for a picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draw()
    except (Exception, MemoryError) as error:
        if say:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            say(f"{picture} was not drawn: {why}; nothing else is missing")


def save(figure: "Figure", picture: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with WholeFile(picture) as path:
        figure.savefig(path, format="png")
    return picture


def figure_of(width: float = 8, height: float = 4.5) -> "Figure":
    """Make an empty figure of so many inches, at 150 points an inch."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def label_ends(axes: "Axes", lines: Sequence[tuple[float, str, str]]) -> None:
    """Write names of horizontal lines beside their right ends, moved apart where they would lie over each other."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.05
    free = None
    for value, words, colour in sorted(lines, reverse=True):
        at = min(value, high) if free is None else min(value, free - gap)
        free = at
        axes.annotate(
            words, (1.0, at), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points", color=colour,
            fontsize=7.5, va="center", annotation_clip=False,
        )  # fmt: skip


def _thin(values: Sequence[T]) -> list[T]:
    """Keep the first of every few where there are too many to be seen."""
    return list(values[:: max(1, len(values) // MOST_POINTS)])


def draw_losses(
    metrics: Path, picture: Path, references: Mapping[str, float], name_of_model: str, held_out: float
) -> Path:
    """Draw bits per base over the bases read: training, validation, the test score, and other models as lines."""
    rows = [row for row in read_metrics(metrics) if row["train_bits_per_base"] and row["skipped"] == "0"]
    megabases, read = [], 0
    for row in rows:
        read += int(row["bases"])
        megabases.append(read / 1e6)
    train = [float(row["train_bits_per_base"]) for row in rows]
    window = max(1, len(train) // 100)
    sums = [0.0]
    for value in train:
        sums.append(sums[-1] + value)
    smooth = [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(window, i + 1) for i in range(len(train))]
    valid = [
        (m, float(row["valid_bits_per_base"]))
        for m, row in zip(megabases, rows, strict=True)
        if row["valid_bits_per_base"]
    ]
    figure = figure_of(9)
    axes = figure.subplots()
    axes.plot(_thin(megabases), _thin(train), color="#0072b2", alpha=0.25, linewidth=0.8)
    axes.plot(_thin(megabases), _thin(smooth), color="#0072b2", label="training (mean of neighbouring steps)")
    if valid:
        axes.plot(*zip(*valid, strict=True), "o-", color="black", markersize=4, label="validation")
    axes.plot(megabases[-1:], [held_out], "*", color="#cc79a7", markersize=13, label="test, at the end")
    lowest = min([held_out, *smooth, *references.values(), *(bits for _, bits in valid)])
    top = 2.05 if min(smooth) < 2.05 else max(smooth) + 0.05  # a run that has learned nothing is seen too
    axes.set_ylim(lowest - 0.03, top)
    lines = [(held_out, f"{name_of_model}: {held_out:.3f}", "#cc79a7")]
    for (name, bits), colour in zip(references.items(), COLOURS, strict=False):
        axes.axhline(bits, linestyle="--", linewidth=1, color=colour)
        lines.append((bits, f"{name}: {bits:.3f}", colour))
    label_ends(axes, lines)
    axes.set_xlabel("bases read (millions)")
    axes.set_ylabel("bits per base")
    axes.set_title(f"{name_of_model}; at the right: held-out bits per base", fontsize=10)
    # on white, so that no line strikes through it
    axes.legend(fontsize=8, loc="upper right", facecolor="white", edgecolor="none", framealpha=1.0)
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, picture)


def draw_report(metrics: Path, speed: Path, picture: Path, title: str) -> Path:
    """Draw a run over its steps: loss by stage, learning rate, gradient norm, bases a second and memory."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rows = [row for row in read_metrics(metrics) if row["skipped"] == "0" and row["train_bits_per_base"]]
    fast = read_metrics(speed) if speed.exists() else []
    figure = figure_of(11, 6.5)
    (loss, rate, norm), (bases, memory, words) = figure.subplots(2, 3)
    _draw_losses(loss, rows)
    steps = [int(row["step"]) for row in _thin(rows)]
    for axes, column, name in ((rate, "learning_rate", "learning rate"), (norm, "gradient_norm", "gradient norm")):
        axes.plot(steps, [float(row[column]) for row in _thin(rows)], color="#0072b2", linewidth=0.8)
        axes.set_title(name)
    norm.set_yscale("log")
    steps = [int(row["step"]) for row in _thin(fast)]
    bases.plot(steps, [float(row["bases_per_second"]) for row in _thin(fast)], color="#009e73", linewidth=0.8)
    bases.set_title("bases a second")
    bases.set_ylim(bottom=0)
    bases.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    memory.plot(steps, [float(row["peak_memory_gib"]) for row in _thin(fast)], color="#d55e00", linewidth=0.8)
    memory.set_title("peak memory, GiB")
    memory.set_ylim(0, 1.1 * max([float(row["peak_memory_gib"]) for row in fast], default=1.0))
    words.axis("off")
    words.text(0, 1, title, va="top", fontsize=8)
    for axes in (loss, rate, norm, bases, memory):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.spines[["top", "right"]].set_visible(False)
    return save(figure, picture)


def _draw_losses(loss: "Axes", rows: Sequence[Mapping[str, str]]) -> None:
    """Draw bits per base over the steps into axes, a line a window length, with the validations."""
    from matplotlib import colormaps

    lengths = sorted({int(row["window_bases"]) for row in rows})
    losses = []
    for number, length in enumerate(lengths):
        some = _thin([row for row in rows if int(row["window_bases"]) == length])
        # one colour a length, from dark to light, however many there are
        shade = colormaps["viridis"](0.9 * number / max(1, len(lengths) - 1))
        values = [float(row["train_bits_per_base"]) for row in some]
        losses += values
        steps = [int(row["step"]) for row in some]
        loss.plot(steps, values, color=shade, linewidth=0.8, marker="." if len(some) < 3 else None, label=f"{length:,}")
    valid = [(int(row["step"]), float(row["valid_bits_per_base"])) for row in rows if row["valid_bits_per_base"]]
    if valid:
        loss.plot(*zip(*valid, strict=True), "o-", color="black", markersize=3, label="validation")
    if losses:
        # the first fall is one number at the top; the panel is for what follows it
        ordered = sorted(losses)
        low = min([ordered[0], *(bits for _, bits in valid)])
        high = max([ordered[int(0.98 * (len(ordered) - 1))], *(bits for _, bits in valid)])
        loss.set_ylim(low - 0.03 * (high - low) - 1e-3, high + 0.08 * (high - low) + 1e-3)
    loss.set_title("bits per base, by window length")
    loss.legend(frameon=False, fontsize=6, ncols=2 if len(lengths) > 6 else 1, loc="upper right")


def draw_context(rows: "Sequence[ContextRow]", picture: Path) -> Path:
    """Draw bits per base over the length of the left context, on a doubling scale, with intervals of 95 %."""
    import math

    from matplotlib.ticker import FuncFormatter

    figure = figure_of()
    axes = figure.subplots()
    middles = [(row.first * row.last) ** 0.5 for row in rows]
    bits = [row.score.bits_per_base for row in rows]
    errors = [
        [0.0 if math.isnan(row.low) else row.score.bits_per_base - row.low for row in rows],
        [0.0 if math.isnan(row.high) else row.high - row.score.bits_per_base for row in rows],
    ]
    axes.errorbar(middles, bits, yerr=errors, fmt="o-", color="#0072b2", capsize=3, markersize=4)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("bases of left context")
    axes.set_ylabel("bits per base (95 % interval over windows)")
    axes.set_title("Does context help?")
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, picture)
