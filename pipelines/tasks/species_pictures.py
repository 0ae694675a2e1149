"""Accuracy of species classification against window length, beside the curves of the Mamba paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dna_mamba.pipelines.class_metrics import Share
from dna_mamba.pipelines.finetune import FinetuneResult
from dna_mamba.pipelines.pictures import figure_of, save

if TYPE_CHECKING:  # matplotlib is heavy, and not every run draws
    from matplotlib.axes import Axes

# Mamba (arXiv 2312.00752), table 4: great apes, five classes, one run a cell
PAPER = {
    "Mamba 1.4M (paper, great apes)": (31.47, 27.50, 27.66, 40.72, 42.41, 71.67),
    "Mamba 7M (paper, great apes)": (30.00, 29.01, 31.48, 43.73, 56.60, 81.31),
    "HyenaDNA 1.4M (paper, great apes)": (28.04, 28.43, 41.17, 42.22, 31.10, 54.87),
}
PAPER_LENGTHS = tuple(2**k for k in range(10, 21, 2))
GREAT_APES = {"human", "chimpanzee", "bonobo", "gorilla", "orangutan"}


def draw_series(result: FinetuneResult, picture: Path) -> Path:
    """Draw accuracy against window length with intervals, beside the paper's curve where the classes are the great apes."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = figure_of(8, 4.8)
    axes = figure.subplots()
    names = list(dict.fromkeys(row.name for one in result.lengths for row in one.rows if row.value is not None))
    for number, name in enumerate(names):
        points = [
            _Point(one.seq_len, row.value, row.accuracy)
            for one in result.lengths
            for row in one.rows
            if row.name == name and row.value is not None
        ]
        # side by side, so that no point hides another
        _draw_one(axes, name, points, f"C{number}", aside=1.0 + 0.035 * (number - len(names) / 2))
    if result.simulated:
        axes.set_title("SIMULATED", color="firebrick")
    elif set(result.labels) == GREAT_APES:
        for (name, values), style in zip(PAPER.items(), ("-", "--", ":"), strict=True):
            axes.plot(
                PAPER_LENGTHS, [v / 100 for v in values], color="lightgrey", linestyle=style, zorder=0, label=name
            )
    lengths = [one.seq_len for one in result.lengths]
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    if len(lengths) == 1:  # what would lie on one line stands side by side
        axes.set_xlim(lengths[0] / 1.6, lengths[0] * 1.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}"))
    axes.set_ylim(0, 1)
    axes.set_xlabel("window, bases")
    axes.set_ylabel("accuracy (95 % interval)")
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, picture)


class _Point(NamedTuple):
    length: int
    value: float
    accuracy: Share | None


def _draw_one(axes: "Axes", name: str, points: Sequence[_Point], color: str, aside: float) -> None:
    """Draw one row of the tables; its lengths are moved by a factor."""
    x, y = [one.length * aside for one in points], [one.value for one in points]
    if name == "chance":
        axes.axhline(y[0], color="grey", linestyle=":", label="chance")
        return
    shares = [one.accuracy for one in points if one.accuracy is not None]
    if len(shares) == len(points):
        low, high = [one.value - one.low for one in shares], [one.high - one.value for one in shares]
        axes.errorbar(x, y, yerr=[low, high], marker="o", capsize=3, color=color, label=name)
    else:
        axes.plot(x, y, marker="s", linestyle="--", color=color, label=name)
