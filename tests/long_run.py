"""A long training run, killed again and again, beside one that is left alone: same weights, flat memory, flat open files.

make test-long runs it: two runs at once, one thread each, for 20 minutes; the killed one takes as much longer as it was
killed. The picture and the numbers go to --out.
"""

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from dna_mamba.files import write_json
from dna_mamba.training import checkpoint
from dna_mamba.training.metrics_csv import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 0.5
TRIAL_STEPS = 200


@dataclass
class Life:
    """One process of a run, sampled while it lives."""

    seconds: list[float] = field(default_factory=list)
    """Since the run began."""
    memory_mib: list[float] = field(default_factory=list)
    """Resident, children included."""
    open_files: list[int] = field(default_factory=list)
    killed_at_step: int | None = None


def start(folder: Path, out: Path, steps: int, *more: str) -> subprocess.Popen[bytes]:
    """Begin, or go on with, the run."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DNA_MAMBA_CACHE": str(folder / "cache")}
    environment |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    settings = (
        "training.bases_per_step=8192",
        "training.checkpoint_every_steps=20",
        "training.validate_every_steps=100",
    )
    command = [
        *(
            sys.executable,
            "-m",
            "dna_mamba.cli",
            "pretrain",
            "--model",
            "2x32",
            "--seq-len",
            "4096",
            "--steps",
            str(steps),
        ),
        *("--device", "cpu", "--seed", "1", "--num-workers", "1", "--out", str(out)),
        *("--set", *settings, "evaluation.valid_bases=65536", "evaluation.markov_max_order=-1", *more),
    ]
    with open(folder / f"{out.name}.log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def watch(process: subprocess.Popen[bytes], began: float, until: float | None) -> Life:
    """Sample a process until it ends, or until it is killed at a moment (seconds of its own life)."""
    life, born = Life(), time.monotonic()
    handle = psutil.Process(process.pid)
    while process.poll() is None:
        if until is not None and time.monotonic() - born >= until:
            process.send_signal(signal.SIGKILL)
            process.wait()
            break
        try:
            family = [handle, *handle.children(recursive=True)]
            memory = sum(one.memory_info().rss for one in family) / 2**20
            files = sum(one.num_fds() for one in family)
        except psutil.Error:  # it ended meanwhile
            continue
        life.seconds.append(time.monotonic() - began)
        life.memory_mib.append(memory)
        life.open_files.append(files)
        time.sleep(
            SAMPLE_SECONDS if until is None else min(SAMPLE_SECONDS, max(0.0, until - (time.monotonic() - born)))
        )
    return life


def newest_step(out: Path) -> int:
    """Give the step of the newest checkpoint, after verifying every checkpoint there is."""
    paths = checkpoint.list_checkpoints(out / "checkpoints")
    for path in paths:
        checkpoint.verify(path)
    return checkpoint.step_of(paths[-1]) if paths else 0


def run_killed(folder: Path, out: Path, steps: int, kills: int, mean_seconds: float) -> list[Life]:
    """Kill a run at random moments so many times, then let it end."""
    generator = np.random.default_rng(0)
    lives: list[Life] = []
    began = time.monotonic()
    while True:
        until = float(generator.uniform(0.05, 1.95) * mean_seconds) if len(lives) < kills else None
        begun = (out / "config.yaml").exists()
        process = start(folder, out, steps, *(["--resume"] if begun else []))
        life = watch(process, began, until)
        lives.append(life)
        if process.returncode == 0:
            return lives
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the run ended with {process.returncode}; see {folder / out.name}.log")
        life.killed_at_step = newest_step(out)
        print(f"kill {len(lives)} after {until:.1f} s: newest checkpoint {life.killed_at_step}", flush=True)


def sha256_of(out: Path, steps: int) -> dict[str, str]:
    """Hash what a run ends in."""
    final = checkpoint.path_of_step(out / "checkpoints", steps)
    losses = [(row["step"], row["train_loss"], row["valid_bits_per_base"]) for row in read_metrics(out / "metrics.csv")]
    return {
        "weights": hashlib.sha256((final / "model.safetensors").read_bytes()).hexdigest(),
        "optimizer": hashlib.sha256((final / "optimizer.safetensors").read_bytes()).hexdigest(),
        "best model": hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "losses": hashlib.sha256(json.dumps(losses).encode()).hexdigest(),
    }


def slope(life: Life, values: list[float] | list[int]) -> tuple[float, float]:
    """Give the mean of the second half and how much a straight line through it rises from end to end.

    The last twentieth is left out: there the training is over and held-out bases are scored.
    """
    part = slice(len(values) // 2, len(values) * 19 // 20)
    x, y = np.array(life.seconds[part]), np.array(values[part], float)
    rise = float(np.polyfit(x, y, 1)[0] * (x[-1] - x[0]))
    return float(y.mean()), rise


def draw(unbroken: Life, lives: list[Life], picture: Path) -> None:
    """Draw memory and open files of both runs against time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, name in ((above, "memory_mib"), (below, "open_files")):
        for number, life in enumerate(lives):
            label = f"killed {len(lives) - 1} times" if number == 0 else None
            axes.plot(np.array(life.seconds) / 60, getattr(life, name), color="C1", linewidth=0.8, label=label)
        axes.plot(np.array(unbroken.seconds) / 60, getattr(unbroken, name), color="C0", label="left alone")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    above.set_ylabel("resident memory, MiB\n(with its worker)")
    below.set_ylabel("open files")
    below.set_xlabel("minutes")
    above.legend(loc="lower right")
    figure.savefig(picture)


def main() -> None:
    """Run both, compare, and write what came out; exit 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/long"))
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True)
    began = time.monotonic()
    trial = start(folder, folder / "trial", TRIAL_STEPS)
    if trial.wait():
        raise SystemExit(f"the trial run failed; see {folder / 'trial.log'}")
    with open(folder / "trial" / "speed.csv", newline="") as file:
        rates = [float(row["bases_per_second"]) for row in csv.DictReader(file)]
    # two runs at once share the memory of the machine
    steps = max(TRIAL_STEPS, int(0.9 * options.minutes * 60 * float(np.median(rates)) / 8192))
    startup = time.monotonic() - began - TRIAL_STEPS * 8192 / float(np.median(rates))
    print(f"{steps} steps; a start takes {startup:.1f} s", flush=True)
    found: dict[str, list[Life]] = {}

    def leave_alone() -> None:
        process = start(folder, folder / "unbroken", steps)
        found["unbroken"] = [watch(process, time.monotonic(), None)]

    thread = threading.Thread(target=leave_alone)
    thread.start()
    lives = run_killed(folder, folder / "killed", steps, options.kills, startup + options.minutes * 60 / options.kills)
    thread.join()
    unbroken = found["unbroken"][0]
    expected, given = sha256_of(folder / "unbroken", steps), sha256_of(folder / "killed", steps)
    memory, memory_rise = slope(unbroken, unbroken.memory_mib)
    files, files_rise = slope(unbroken, unbroken.open_files)
    kills = [life.killed_at_step for life in lives[:-1]]
    result = {
        "steps": steps,
        "kills": len(kills),
        "checkpoint_after_each_kill": kills,
        "minutes_left_alone": unbroken.seconds[-1] / 60,
        "minutes_killed": lives[-1].seconds[-1] / 60,
        "sha256": {name: {"left alone": expected[name], "killed": given[name]} for name in expected},
        "equal": expected == given,
        "memory_mib": memory,
        "memory_rise_mib": memory_rise,
        "open_files": files,
        "open_files_rise": files_rise,
        "highest_memory_mib_killed": max(max(life.memory_mib, default=0.0) for life in lives),
    }
    write_json(folder / "result.json", result)
    draw(unbroken, lives, folder / "long-run.png")
    print(json.dumps(result, indent=1))
    flat = abs(memory_rise) < 0.02 * memory and abs(files_rise) < 1
    enough = len(kills) >= min(options.kills, 40)
    if not (expected == given and flat and enough):
        raise SystemExit(f"equal: {expected == given}, memory and files flat: {flat}, kills: {len(kills)}")


if __name__ == "__main__":
    main()
