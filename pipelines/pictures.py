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


def draw_report(metrics: Path, speed: Path, picture: Path, title: str) -> Path:
    """Draw a run over its steps: loss by stage, learning rate, gradient norm, bases a second and memory."""
    rows = [row for row in read_metrics(metrics) if row["skipped"] == "0" and row["train_bits_per_base"]]
    fast = read_metrics(speed) if speed.exists() else []
    figure = _figure()
    figure.set_size_inches(11, 6.5)
    (loss, rate, norm), (bases, memory, words) = figure.subplots(2, 3)
    lengths = sorted({int(row["window_bases"]) for row in rows})
    for number, length in enumerate(lengths):
        some = [row for row in rows if int(row["window_bases"]) == length]
        shade = f"C{number % 10}"
        steps = [int(row["step"]) for row in some]
        loss.plot(
            steps, [float(row["train_bits_per_base"]) for row in some], color=shade, linewidth=0.8, label=f"{length:,}"
        )
    valid = [(int(row["step"]), float(row["valid_bits_per_base"])) for row in rows if row["valid_bits_per_base"]]
    if valid:
        loss.plot(*zip(*valid, strict=True), "o-", color="black", markersize=3, label="validation")
    loss.set_title("bits per base, by window length")
    loss.legend(frameon=False, fontsize=7)
    steps = [int(row["step"]) for row in rows]
    for axes, column, name in ((rate, "learning_rate", "learning rate"), (norm, "gradient_norm", "gradient norm")):
        axes.plot(steps, [float(row[column]) for row in rows], color="#0072b2", linewidth=0.8)
        axes.set_title(name)
    norm.set_yscale("log")
    steps = [int(row["step"]) for row in fast]
    bases.plot(steps, [float(row["bases_per_second"]) for row in fast], color="#009e73", linewidth=0.8)
    bases.set_title("bases a second")
    bases.set_ylim(bottom=0)
    memory.plot(steps, [float(row["peak_memory_gib"]) for row in fast], color="#d55e00", linewidth=0.8)
    memory.set_title("peak memory, GiB")
    memory.set_ylim(0, 1.1 * max([float(row["peak_memory_gib"]) for row in fast], default=1.0))
    words.axis("off")
    words.text(0, 1, title, va="top", fontsize=9)
    for axes in (loss, rate, norm, bases, memory):
        axes.set_xlabel("step")
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
