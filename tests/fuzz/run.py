"""Coverage-guided fuzzing with atheris: every target in a process of its own, for its share of the time.

Inputs that were found go to --out; a finding is kept there, printed, and makes the exit code 1.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_MIB = 512
"""Above what the process takes before the first input; inputs are below a megabyte."""
LONGEST = 1 << 14


def fuzz_one(name: str, folder: Path, seconds: int) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["dna_mamba"]):
        from tests.fuzz import targets
    target = targets.TARGETS[name]
    targets.whole_model()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    options = [
        f"-max_total_time={seconds}", f"-rss_limit_mb={resident + MOST_MIB}", f"-max_len={LONGEST}", "-timeout=20",
        f"-artifact_prefix={folder}/finding-{name}-", "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    (folder / name).mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [sys.argv[0], *options, str(folder / name), str(targets.CORPUS / name)],
        lambda data: targets.check(target, data),
    )
    atheris.Fuzz()


def main() -> None:
    """Fuzz all targets, two at once, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", default=None)
    parser.add_argument("--target", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    if options.target:
        fuzz_one(options.target, folder, options.seconds)
        return
    names = [path.name for path in sorted((Path(__file__).parent / "corpus").iterdir())]
    names = [name for name in names if options.only in (None, name)]
    seconds = max(5, int(options.minutes * 60 * min(options.at_once, len(names)) / len(names)))
    waiting, running, failed = list(names), {}, []
    print(f"{len(names)} targets, {seconds} s each, {options.at_once} at once -> {folder}", flush=True)
    while waiting or running:
        while waiting and len(running) < options.at_once:
            name = waiting.pop(0)
            command = [
                sys.executable,
                "-m",
                "tests.fuzz.run",
                "--target",
                name,
                "--seconds",
                str(seconds),
                "--out",
                str(folder),
            ]
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "DNA_MAMBA_CACHE": str(folder / "cache"),
            }
            log = folder / f"{name}.log"
            with open(log, "wb") as file:
                running[name] = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=environment)
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            text = (folder / f"{name}.log").read_text(errors="replace")
            runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
            covered = re.findall(r"cov: (\d+) ft: (\d+)", text)
            words = f"{name}: {int(runs[1]):,} inputs" if runs else f"{name}: no count"
            words += f", {covered[-1][0]} edges, {covered[-1][1]} features" if covered else ""
            if process.returncode:
                failed.append(name)
                words += f"; FINDING (exit {process.returncode}), see {folder}/{name}.log and {folder}/finding-{name}-*"
            print(words, flush=True)
        time.sleep(0.2)
    if failed:
        raise SystemExit(f"findings in {', '.join(failed)}")
    print("no finding")


if __name__ == "__main__":
    main()
