"""The SIMULATED benchmark of species classification: with diagnostic insertions and without, beside baselines and oracle."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dna_mamba.data.selection import load_genome
from dna_mamba.errors import InputError
from dna_mamba.files import write_json, write_text
from dna_mamba.pipelines import simulate
from dna_mamba.pipelines.class_metrics import Share
from dna_mamba.pipelines.configs.bench import SpeciesBenchConfig
from dna_mamba.pipelines.configs.species import FinetuneSpeciesConfig, LikelihoodRatioConfig, small
from dna_mamba.pipelines.finetune import LengthResult
from dna_mamba.pipelines.tasks import species
from dna_mamba.pipelines.tasks.task import ResultRow

LEAK_CONFIDENCE = 0.99
MARK = "benchmark.json"
WRITTEN = {MARK, "on", "off", "finetune-on", "finetune-off", "confusion-on.png", "confusion-off.png", "table.md"}


@dataclass(frozen=True, kw_only=True)
class SpeciesBenchResult:
    """Both halves."""

    out: Path
    on: LengthResult
    off: LengthResult
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """Give plain values."""
        return {
            "simulated": True,
            "seconds": self.seconds,
            "leaks": self.leaks(),
            "model_above_chance": self.learned(),
            "on": asdict(self.on),
            "off": asdict(self.off),
        }

    def leaks(self) -> list[str]:
        """Name what is above chance where nothing was planted, at 99 % for all rows together (Bonferroni)."""
        chance = self._chance(self.off)
        shares = [(row.name, row.accuracy) for row in self.off.rows if row.accuracy is not None]
        confidence = 1 - (1 - LEAK_CONFIDENCE) / max(1, len(shares))
        found = []
        for name, share in shares:
            wide = Share.of(share.correct, share.number, confidence, share.effective)
            if wide.low > chance:
                found.append(f"{name}: {wide.low:.3f} to {wide.high:.3f}")
        return found

    def learned(self) -> bool:
        """Say whether the model's interval lies above chance where insertions were planted."""
        share = self.on.rows[0].accuracy
        return share is not None and share.low > self._chance(self.on)

    @staticmethod
    def _chance(half: LengthResult) -> float:
        value = half.rows[-1].value
        assert value is not None
        return value

    def as_text(self) -> str:
        """Give a table in Markdown."""

        def cell(row: ResultRow | None) -> str:
            if row is None or row.value is None:
                return ""
            share = row.accuracy
            return f"{row.value:.3f}" + (f" ({share.low:.3f}-{share.high:.3f})" if share else "")

        lines = [
            f"SIMULATED great apes, test windows of {self.on.seq_len:,} bases, {self.seconds / 60:.1f} minutes",
            "",
            "| accuracy (95 % interval) | with diagnostic insertions | without (leak test) |",
            "|---|---|---|",
        ]
        of_off = {row.name: row for row in self.off.rows}
        for row in self.on.rows:
            lines.append(f"| {row.name} | {cell(row)} | {cell(of_off.get(row.name))} |")
        leaks = self.leaks()
        words = "; ".join(leaks) if leaks else "nothing is above chance at 99 %"
        model = "above chance" if self.learned() else "not above chance"
        return "\n".join([*lines, "", f"with insertions the model is {model}", f"leak test: {words}"])


def _config(config: SpeciesBenchConfig, manifest: Path) -> FinetuneSpeciesConfig:
    base = small(str(manifest))
    steps = 0 if config.quick else config.likelihood_ratio_steps
    evaluation = replace(
        base.evaluation, likelihood_ratio=LikelihoodRatioConfig(steps=steps), repeats_stripped=False, seed=config.seed
    )
    return replace(base, seq_lens=(config.seq_len,), evaluation=evaluation, seed=config.seed)


def _make_room(out: Path, overwrite: bool) -> None:
    """Make the directory, or empty it of an earlier benchmark."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        others = {entry.name for entry in out.iterdir()} - WRITTEN if out.is_dir() else {out.name}
        if not overwrite or others or not (out / MARK).exists():
            raise InputError(
                f"--out {out} exists{' and holds other files' if others else ''}; pass --overwrite to replace an earlier "
                f"benchmark that stands alone, or choose another"
            )
        for entry in out.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    out.mkdir(parents=True, exist_ok=True)


def run(
    config: SpeciesBenchConfig,
    out: Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> SpeciesBenchResult:
    """Simulate twice, fine-tune twice, and write table.md and benchmark.json; what a half found is said and kept at its end.

    Raises:
        InputError: The directory holds something, or the genome is too short or holds no mobile element.
    """
    say = say or (lambda words: None)
    started = time.monotonic()
    simulated = {
        name: simulate.SimulateConfig(
            genome=config.genome, diagnostics=name == "on", seed=config.seed, **simulate.preset("benchmark")
        )
        for name in ("on", "off")
    }
    if not 16 <= config.seq_len <= simulated["on"].contig_bases:
        raise InputError(
            f"--seq-len {config.seq_len} must lie between 16 and {simulated['on'].contig_bases:,}, the length of the contigs"
        )
    load_genome(config.genome, None, warn)
    _make_room(out, overwrite)
    write_json(out / MARK, {"config": asdict(config), "complete": False})
    found = {}
    for name in ("on", "off"):
        say(f"diagnostics {name}")
        simulate.run(simulated[name], out / name, warn=warn)
        run_config = _config(config, out / name / "manifest.yaml")
        found[name] = species.run(run_config, out / f"finetune-{name}", say=say, warn=warn).lengths[0]
        picture = out / f"finetune-{name}" / "lengths" / str(config.seq_len) / "confusion.png"
        if picture.exists():  # one that could not be drawn was a remark
            shutil.copyfile(picture, out / f"confusion-{name}.png")
        halves = {name: asdict(half) for name, half in found.items()}
        write_json(out / MARK, {"config": asdict(config), "complete": False, **halves})
        for row in found[name].rows:
            if row.value is not None:
                say(f"  diagnostics {name}, {row.name}: {row.value:.3f}")
    result = SpeciesBenchResult(out=out, on=found["on"], off=found["off"], seconds=time.monotonic() - started)
    write_text(out / "table.md", result.as_text() + "\n")
    write_json(out / MARK, {"config": asdict(config), "complete": True, **result.as_dict()})
    return result
