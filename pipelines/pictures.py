"""Pictures of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dna_mamba.training.callbacks import read_metrics

COLOURS = ("#7f7f7f", "#d55e00", "#e69f00", "#009e73")


def _figure() -> Any:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    return Figure(figsize=(8, 4.5), dpi=150, layout="constrained")


def draw_losses(metrics: Path, picture: Path, references: Mapping[str, float], size: str, held_out: float) -> Path:
    """Draw bits per base over the bases read: training, validation, the test score, and other models as lines."""
    rows = [row for row in read_metrics(metrics) if row["train_bits_per_base"] and row["skipped"] == "0"]
    megabases, read = [], 0
    for row in rows:
        read += int(row["bases"])
        megabases.append(read / 1e6)
    train = [float(row["train_bits_per_base"]) for row in rows]
    window = max(1, len(train) // 100)
    smooth = [sum(train[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(train))]
    valid = [
        (m, float(row["valid_bits_per_base"]))
        for m, row in zip(megabases, rows, strict=True)
        if row["valid_bits_per_base"]
    ]
    figure = _figure()
    axes = figure.subplots()
    axes.plot(megabases, train, color="#0072b2", alpha=0.25, linewidth=0.8)
    axes.plot(megabases, smooth, color="#0072b2", label="training (mean of neighbouring steps)")
    if valid:
        axes.plot(*zip(*valid, strict=True), "o-", color="black", markersize=4, label="validation")
    axes.plot(
        megabases[-1:], [held_out], "*", color="#cc79a7", markersize=13, label=f"Mamba {size}: {held_out:.3f} (test)"
    )
    for (name, bits), colour in zip(references.items(), COLOURS, strict=False):
        axes.axhline(bits, linestyle="--", linewidth=1, color=colour, label=f"{name}: {bits:.3f} (test)")
    lowest = min([held_out, *smooth, *references.values(), *(bits for _, bits in valid)])
    axes.set_ylim(lowest - 0.03, 2.05)
    axes.set_xlabel("bases read (millions)")
    axes.set_ylabel("bits per base")
    axes.set_title(f"Mamba {size}")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)
    return picture


def draw_context(rows: Sequence[Mapping[str, Any]], picture: Path) -> Path:
    """Draw bits per base over the length of the left context, on a doubling scale."""
    figure = _figure()
    axes = figure.subplots()
    middles = [(row["first"] * row["last"]) ** 0.5 for row in rows]
    axes.plot(middles, [row["bits"] for row in rows], "o-", color="#0072b2")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bases of left context")
    axes.set_ylabel("bits per base")
    axes.set_title("Does context help?")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)
    return picture
