"""Commands in processes of their own, forked from one that has imported everything: a start takes milliseconds, not seconds.

A fork has no threads, locks or state of the tests; what it needs changed (a function that fails, a limit) is given as code.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dna_mamba.signals import STOPPING_SIGNALS
from tests.conftest import ROOT

REAL_PICTURES = """
from matplotlib.figure import Figure
Figure.savefig = Figure.savefig.original
"""
"""Undoes what `_warm_up` does to the time that pictures take."""
ORDINARY_USER = """
import ctypes, os
if os.geteuid() == 0:  # root without the right to pass over permissions
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for word in (0, 1):
        data[word] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    assert libc.capset(header, data) == 0
"""


@dataclass
class Child:
    """A command under way."""

    zygote: "Zygote"
    pid: int
    err: Path
    out: Path
    code: int | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def wait(self, seconds: float = 1200.0) -> int | None:
        """Wait for its end; give the exit code (negative for a signal), or none while it goes on.

        The limit is there for what never ends: on a busy machine everything takes many times as long as alone.
        """
        if self.code is None:
            self.code = self.zygote.ask({"wait": self.pid, "seconds": seconds})["code"]
        return self.code

    @property
    def stderr(self) -> str:
        """What it said so far."""
        return self.err.read_text()

    @property
    def last_line(self) -> str:
        """What it said last."""
        return (self.stderr.strip().splitlines() or [""])[-1]

    def children(self) -> list[int]:
        """Processes that it has started."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == self.pid:
                found.append(int(path.parent.name))
        return found


class Zygote:
    """The process that is forked."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        environment["DNA_MAMBA_CACHE"] = str(folder / "cache")
        command = [sys.executable, "-m", "tests.zygote"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        assert self.ask({})["ready"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and read the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *words: object, cwd: Path | None = None, code: str = "", **environment: str) -> Child:
        """Start a command; code runs in its process first."""
        self.number += 1
        out, err = (self.folder / f"{self.number}.{kind}" for kind in ("out", "err"))
        request = {
            "words": list(map(str, words)),
            "cwd": str(cwd or self.folder),
            "code": code,
            "out": str(out),
            "err": str(err),
        }
        pid = self.ask(request | {"environment": environment})["pid"]
        return Child(self, pid, err, out)

    def run(self, *words: object, **options: Any) -> Child:
        """Run a command to its end."""
        child = self.start(*words, **options)
        if child.wait() is None:
            child.kill()
            raise TimeoutError(f"{words} take too long")
        return child

    def completed(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and give what `subprocess.run` would."""
        child = self.run(*words, **options)
        return subprocess.CompletedProcess(list(map(str, words)), child.code, child.out.read_text(), child.stderr)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            file = os.open(request[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            os.dup2(file, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in STOPPING_SIGNALS:  # the tests may run in the background, where some are ignored
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        sys.argv = ["dna-mamba", *request["words"]]
        exec(request["code"], {})
        from dna_mamba.cli import main

        main()
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as a process of its own would
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.004)


def _warm_up() -> None:
    """Load compiled kernels and fonts, which every process of its own loads again, and see that no thread is left."""
    import io

    import torch

    from dna_mamba.model.backbone import DnaMamba
    from dna_mamba.model.config import BackboneConfig, parse_size
    from dna_mamba.pipelines.pictures import figure_of

    with torch.random.fork_rng(devices=[]):
        pattern, width = parse_size("1x16")
        model = DnaMamba(BackboneConfig(vocabulary_size=16, pattern=pattern, width=width))
        tokens_BT = torch.full((1, 20), 7)
        vectors_BTD, state = model.backbone(tokens_BT)
        vectors_BTD, _ = model.backbone(tokens_BT, state)
        model.head(vectors_BTD).sum().backward()
        torch.optim.AdamW(model.parameters())  # which imports half of torch's compiler
    figure = figure_of()
    axes = figure.subplots()
    axes.plot([1.0, 2.0], [1.0, 2.0], label="a")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png")
    drawn = io.BytesIO()
    figure_of(0.1, 0.1).savefig(drawn, format="png")

    def quick(self: object, path: str | Path, **options: object) -> None:
        """Write a dot: a picture takes half a second to draw, and tests of pictures draw theirs in their own process."""
        Path(path).write_bytes(drawn.getvalue())

    quick.original = type(figure).savefig  # type: ignore[attr-defined]
    type(figure).savefig = quick  # type: ignore[method-assign,assignment]
    assert threading.active_count() == 1, threading.enumerate()


def serve() -> None:
    """Import everything, then fork on request."""
    import dna_mamba.kernels.causal_conv1d.cpu
    import dna_mamba.kernels.selective_scan.cpu
    import dna_mamba.pipelines.embed
    import dna_mamba.pipelines.evaluate
    import dna_mamba.pipelines.generate
    import dna_mamba.pipelines.mutate
    import dna_mamba.pipelines.pictures
    import dna_mamba.pipelines.reports
    import dna_mamba.pipelines.score_variants
    import dna_mamba.pipelines.settings
    import dna_mamba.pipelines.tasks.species
    import dna_mamba.pipelines.track
    import dna_mamba.training.run  # noqa: F401

    _warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer: dict[str, Any] = {"code": _wait(request["wait"], request["seconds"])}
        elif "words" in request:
            answer = {"pid": _fork(request)}
        else:
            answer = {"ready": True}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
