"""What a machine can do to a command: kills, signals, full disks, damaged files. Numbers are those of docs/reliability.md.

KILLS=50 in the environment (make test-faults) tries more random moments than the few of every run.
"""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from dna_mamba.data.examples import giab_variants
from dna_mamba.data.intervals import Interval
from dna_mamba.data.store.build import build
from dna_mamba.data.store.cache import open_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.errors import InputError
from dna_mamba.files import WholeFile
from dna_mamba.pipelines.labelled_genomes import LabelledDataConfig, open_labelled
from dna_mamba.training import checkpoint
from dna_mamba.training.checkpoint import set_aside
from dna_mamba.training.metrics_csv import read_metrics
from dna_mamba.training.spikes import SpikeDetector
from tests.bad_input.test_models import counters, resealed
from tests.conftest import random_letters
from tests.zygote import ORDINARY_USER, Zygote

KILLS = int(os.environ.get("KILLS", "3"))
STEPS = 60


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zygote")
    (folder / "g.fa").write_text(f">a\n{random_letters(40_000)}\n")
    process = Zygote(folder)
    yield process
    process.close()


def arguments(zygote, out, *more, steps=STEPS):
    """A run that saves after every step."""
    settings = ("training.bases_per_step=64", "training.checkpoint_every_steps=1", "training.validate_every_steps=10")
    return [
        *("pretrain", "--genome", zygote.folder / "g.fa", "--model", "2x16", "--seq-len", "64", "--steps", steps),
        *("--device", "cpu", "--out", out, "--set", *settings, "evaluation.markov_max_order=-1", *more),
    ]


def ends_in(out, steps=STEPS):
    """Hash weights, moments, best model and losses that a run ends in; every checkpoint is verified."""
    paths = checkpoint.list_checkpoints(out / "checkpoints")
    for path in paths:
        checkpoint.verify(path)
    assert checkpoint.step_of(paths[-1]) == steps
    rows = [(row["step"], row["train_loss"], row["valid_bits_per_base"]) for row in read_metrics(out / "metrics.csv")]
    assert [int(step) for step, _, _ in rows] == list(range(1, steps + 1))
    files = [paths[-1] / "model.safetensors", paths[-1] / "optimizer.safetensors", out / "model" / "model.safetensors"]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files], rows


@pytest.fixture(scope="module")
def unbroken(zygote):
    out = zygote.folder / "unbroken"
    assert zygote.run(*arguments(zygote, out)).code == 0
    return ends_in(out)


def resumed(zygote, out, *more, **options):
    child = zygote.run(*arguments(zygote, out, *more, "--resume"), **options)
    assert child.code == 0, child.stderr
    return ends_in(out)


@contextmanager
def small_disk(folder: Path, size: str):
    """Mount a small file system; without the right to, the test is skipped."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a file system to its last byte."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    return path


# ---- killed at random moments: packing, saving, embedding, scoring


def killed_again_and_again(zygote, folder, expected, out, *words):
    """Kill a command at random moments of its run time, until so many kills found it at work."""
    began = time.monotonic()
    assert zygote.run(*words, "-o", expected, cwd=folder).code == 0
    seconds, whole = time.monotonic() - began, expected.read_bytes()
    generator = np.random.default_rng(0)
    for _ in kills_at_work(lambda: zygote.start(*words, "-o", out, cwd=folder), seconds, generator):
        if out.exists():
            assert out.read_bytes() == whole
            out.unlink()
    child = zygote.run(*words, "-o", out, cwd=folder)
    assert child.code == 0, child.stderr
    assert out.read_bytes() == whole


def kills_at_work(start, seconds, generator):
    """Start a command and kill it at a random moment, again and again; yield after each, until KILLS found it at work."""
    killed = tried = 0
    while killed < KILLS:
        began = time.monotonic()
        child = start()
        if child.wait(generator.uniform(0.02, 1.0) * seconds) is None:
            child.kill()
            killed += child.wait() == -signal.SIGKILL
        else:
            seconds = min(seconds, time.monotonic() - began)  # it was quicker than thought
        tried += 1
        assert tried < 20 * KILLS, "it ends before it can be killed"
        yield tried
    print(f"{killed} kills found it at work, {tried - killed} came too late")


def test_embedding_that_is_killed_ends_in_the_same_bytes(zygote, tmp_path):
    (tmp_path / "g.fa").write_text("".join(f">r{i}\n{random_letters(90_000, i)}\n" for i in range(4)))
    killed_again_and_again(
        zygote, tmp_path, tmp_path / "whole.npz", tmp_path / "o.npz",
        "embed", "human-4x64", "g.fa", "--pool", "window:50", "--strands", "both", "--device", "cpu",
    )  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".o.npz")]


def test_scoring_that_is_killed_ends_in_the_same_bytes(zygote, tmp_path):
    killed_again_and_again(
        zygote, tmp_path, tmp_path / "whole.vcf.gz", tmp_path / "o.vcf.gz",
        "score", "human-4x64", giab_variants(), "--genome", "demo", "--left", "8", "--right", "2", "--device", "cpu",
    )  # fmt: skip


def test_fault03_packing_that_is_killed_ends_in_the_same_bytes(zygote, tmp_path):
    letters = random_letters(1_000_000)
    (tmp_path / "g.fa").write_text("".join(f">c{i}\n{letters}\n" for i in range(60)))
    began = time.monotonic()
    assert zygote.run("genome", "build", "g.fa", "--out", "whole.dna", cwd=tmp_path).code == 0
    seconds = time.monotonic() - began
    whole = [(tmp_path / "whole.dna" / name).read_bytes() for name in ("bases.u8", "manifest.json")]
    generator = np.random.default_rng(0)
    more: list[str] = []

    def start():
        return zygote.start("genome", "build", "g.fa", "--out", "o.dna", *more, cwd=tmp_path)

    for number in kills_at_work(start, seconds, generator):
        if (tmp_path / "o.dna").exists():
            GenomeStore.open(tmp_path / "o.dna").verify()
            if number % 2:  # the next replaces it, and is killed
                more[:] = ["--overwrite"]
            else:
                shutil.rmtree(tmp_path / "o.dna")
    if not (tmp_path / "o.dna").exists():
        assert zygote.run("genome", "build", "g.fa", "--out", "o.dna", cwd=tmp_path).code == 0
    assert [(tmp_path / "o.dna" / name).read_bytes() for name in ("bases.u8", "manifest.json")] == whole
    assert not list(tmp_path.glob(".o.dna.building*"))


def test_faults01_and_28_a_run_that_saves_every_step_and_is_killed_ends_in_the_same_bytes(zygote, tmp_path):
    steps = max(STEPS, 12 * KILLS)
    slow = """
import os, time
from dna_mamba.training import checkpoint
def slowly(path, content):  # so that most of the time goes into saves
    with open(path, "wb") as file:
        for part in (content[: len(content) // 2], content[len(content) // 2 :]):
            file.write(part)
            file.flush()
            os.fsync(file.fileno())
            time.sleep(0.01)
checkpoint.write_synced = slowly
"""
    whole = tmp_path / "whole"
    assert zygote.run(*arguments(zygote, whole, steps=steps)).code == 0
    out, generator, torn, before = tmp_path / "run", np.random.default_rng(0), 0, 0
    for number in range(KILLS):
        begun = (out / "config.yaml").exists()
        workers = f"data.num_workers={2 * (number % 2)}"  # the number of workers changes from part to part
        child = zygote.start(*arguments(zygote, out, workers, *(["--resume"] if begun else []), steps=steps), code=slow)
        folder = out / "checkpoints"
        while not [p for p in checkpoint.list_checkpoints(folder) if checkpoint.step_of(p) > before]:
            if child.wait(0.01) is not None:
                break
        child.wait(generator.uniform(0, 0.3))
        child.kill()
        assert child.wait() in (-signal.SIGKILL, 0), child.stderr
        found = checkpoint.list_checkpoints(folder)
        for path in found:
            checkpoint.load(path)
        torn += bool(list(folder.glob(".step-*")))
        assert checkpoint.step_of(found[-1]) >= before, "a checkpoint was lost"
        before = checkpoint.step_of(found[-1])
    child = zygote.run(*arguments(zygote, out, "--resume", steps=steps))
    assert child.code == 0, child.stderr
    assert ends_in(out, steps) == ends_in(whole, steps)
    assert not list((out / "checkpoints").glob(".step-*"))
    print(
        f"saving: {torn} of {KILLS} kills fell into a save or a deletion; the last left checkpoint {before} of {steps}"
    )
    if KILLS >= 50:
        assert torn > KILLS // 2, "too few kills fell into a save"


# ---- kills and signals at chosen moments

AT = """
import os, signal
from dna_mamba.training import checkpoint
original = checkpoint.write_synced
def acting(path, content):
    original(path, content)
    if "step-{step:08d}" in str(path) and path.name == "{name}":
        {action}
checkpoint.write_synced = acting
"""


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "counters.json", "checksums.json"])
def test_fault02_a_run_killed_in_its_first_save_begins_again(zygote, unbroken, tmp_path, name):
    code = AT.format(step=1, name=name, action="os.kill(os.getpid(), signal.SIGKILL)")
    out = tmp_path / "run"
    assert zygote.run(*arguments(zygote, out), code=code).code == -signal.SIGKILL
    assert checkpoint.list_checkpoints(out / "checkpoints") == []
    again = zygote.run(*arguments(zygote, out))
    assert again.code == 2 and "pass --resume to go on with it" in again.last_line
    assert resumed(zygote, out) == unbroken


@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
    ids=["fault07 SIGINT", "fault04 SIGTERM", "fault04 SIGHUP", "fault08 SIGUSR1"],
)
def test_a_signal_saves_at_the_next_step(zygote, unbroken, tmp_path, number, code):
    out = tmp_path / "run"
    at = AT.format(step=7, name="rng.safetensors", action=f"os.kill(os.getpid(), {int(number)})")
    child = zygote.run(*arguments(zygote, out), code=at)  # fault05: the signal comes during a save
    assert child.code == code and child.last_line.endswith(f"go on with --out {out} --resume"), child.stderr
    newest = checkpoint.list_checkpoints(out / "checkpoints")[-1]
    assert checkpoint.step_of(newest) == len(read_metrics(out / "metrics.csv")) in (7, 8)
    assert resumed(zygote, out) == unbroken


def points_of(out, tag):
    """Read the points of a curve as TensorBoard shows them: a session that begins at a step takes back what stood from there on."""
    from tensorboardX.proto import event_pb2

    found = {}
    for file in sorted((out / "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        content, at = file.read_bytes(), 0
        while at + 12 <= len(content):
            (size,) = struct.unpack("<Q", content[at : at + 8])
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                found = {step: value for step, value in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == tag:
                    assert event.step not in found, f"{tag} has step {event.step} twice"
                    found[event.step] = value.simple_value
    return found


def test_curves_of_a_killed_run_are_those_of_the_unbroken_one(zygote, unbroken, tmp_path):
    out = tmp_path / "run"
    code = AT.format(step=33, name="rng.safetensors", action="os.kill(os.getpid(), signal.SIGKILL)")
    assert zygote.run(*arguments(zygote, out), code=code).code == -signal.SIGKILL
    assert resumed(zygote, out) == unbroken
    tags = ("train/train_loss", "valid/bits_per_base")
    expected = {tag: points_of(zygote.folder / "unbroken", tag) for tag in tags}
    assert list(expected[tags[0]]) == list(expected[tags[1]]) == [10, 20, 30, 40, 50, 60]
    assert {tag: points_of(out, tag) for tag in tags} == expected
    first = checkpoint.list_checkpoints(out / "checkpoints")[0]
    again = zygote.run("pretrain", "--out", out, "--resume-from", first)
    assert checkpoint.step_of(first) < 60 and again.code == 0, again.stderr
    assert {tag: points_of(out, tag) for tag in tags} == expected
    # killed in its first save, after points were written, a run begins again
    rare = ("training.checkpoint_every_steps=60", "training.validate_every_steps=60")
    code = AT.format(step=60, name="rng.safetensors", action="os.kill(os.getpid(), signal.SIGKILL)")
    out = tmp_path / "first"
    assert zygote.run(*arguments(zygote, out, *rare), code=code).code == -signal.SIGKILL
    assert zygote.run(*arguments(zygote, out, *rare, "--resume")).code == 0
    assert points_of(out, tags[0]) == expected[tags[0]]


def test_a_signal_that_is_ignored_stays_so(zygote, tmp_path):
    # as under nohup
    action = "os.kill(os.getpid(), signal.SIGHUP)"
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + AT.format(
        step=7, name="rng.safetensors", action=action
    )
    assert zygote.run(*arguments(zygote, tmp_path / "run"), code=code).code == 0


def test_fault06_a_second_signal_stops_at_once_and_leaves_nothing_half_written(zygote, unbroken, tmp_path):
    out = tmp_path / "run"
    twice = "[os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]"
    child = zygote.run(*arguments(zygote, out), code=AT.format(step=7, name="rng.safetensors", action=twice))
    assert child.code == 143 and "--resume" in child.last_line, child.stderr
    assert checkpoint.step_of(checkpoint.list_checkpoints(out / "checkpoints")[-1]) == 6
    assert not list((out / "checkpoints").glob(".step-*"))
    assert resumed(zygote, out) == unbroken


def test_a_checkpoint_that_is_deleted_loses_its_name_first(zygote, unbroken, tmp_path):
    out = tmp_path / "run"
    code = """
import os, shutil, signal
from dna_mamba.training import checkpoint
original = shutil.rmtree
def killing(path, *arguments, **options):
    if "step-00000002" in str(path) and os.path.exists(path):
        os.unlink(os.path.join(path, "model.safetensors"))
        os.kill(os.getpid(), signal.SIGKILL)
    original(path, *arguments, **options)
shutil.rmtree = killing
"""
    assert zygote.run(*arguments(zygote, out), code=code).code == -signal.SIGKILL
    for path in checkpoint.list_checkpoints(out / "checkpoints"):
        checkpoint.verify(path)
    assert resumed(zygote, out) == unbroken


# ---- disks


def test_fault09_a_disk_that_fills_up_while_saving(zygote, unbroken, tmp_path):
    with small_disk(tmp_path / "small", "700k") as disk:
        out = disk / "run"
        child = zygote.run(*arguments(zygote, out, "training.keep_checkpoints=50"))
        assert child.code == 2 and "the disk is full while saving" in child.last_line, child.stderr
        assert "free space and run again with --resume" in child.last_line
        found = checkpoint.list_checkpoints(out / "checkpoints")
        for path in found:
            checkpoint.verify(path)
        assert 0 < len(found) < STEPS and not list((out / "checkpoints").glob(".step-*"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert resumed(zygote, out, "training.keep_checkpoints=50") == unbroken


FILL = """
from dna_mamba.training import callbacks
original = callbacks.RunRecorder.{method}
def filling(self, *arguments, **options):
    from pathlib import Path
    from tests.test_faults import fill
    if {when}:
        fill(Path({disk!r}))
    return original(self, *arguments, **options)
callbacks.RunRecorder.{method} = filling
"""


def test_fault10_a_disk_that_fills_up_while_metrics_are_written(zygote, unbroken, tmp_path):
    with small_disk(tmp_path / "small", "2m") as disk:
        out = disk / "run"
        code = FILL.format(method="_write", when="arguments[1].step == 9", disk=str(disk))
        child = zygote.run(*arguments(zygote, out, "training.checkpoint_every_steps=5"), code=code)
        assert child.code == 2 and "the disk is full" in child.last_line and "--resume" in child.last_line, child.stderr
        (disk / "filler").unlink()
        assert resumed(zygote, out, "training.checkpoint_every_steps=5") == unbroken


@pytest.mark.parametrize("name", ["o.vcf", "o.vcf.gz", "o.tsv", "o.npz", "o.bw", "new.dna", "o.fa"])
def test_fault10_a_disk_that_is_full_where_results_go(zygote, tmp_path, name):
    with small_disk(tmp_path / "small", "12k") as disk:
        out = disk / name
        words = {
            "dna": ("genome", "build", zygote.folder / "g.fa", "--out", out),
            "npz": ("embed", "human-4x64", zygote.folder / "g.fa", "--pool", "window:10", "-o", out),
            "bw": ("track", "human-4x64", "--genome", zygote.folder / "g.fa", "-o", out),
            "fa": ("generate", "human-4x64", "--length", "2500", "--num", "8", "-o", out),
        }.get(name.rsplit(".", 1)[-1])
        if words is None:
            flanks = ("--left", "4", "--right", "2", "--device", "cpu")
            words = ("score", "human-4x64", giab_variants(), "--genome", "demo", *flanks, "-o", out)
        child = zygote.run(*words)
        lines = [line for line in child.stderr.strip().splitlines() if line.startswith("dna-mamba: ")]
        assert child.code == 2 and len(lines) == 1 and lines[0] == child.last_line, child.stderr
        assert "disk is full" in child.last_line or "GiB" in child.last_line or "free" in child.last_line, child.stderr
        assert [path.name for path in disk.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("kind", ["fault11 on another file system", "fault12 full", "fault12 missing"])
def test_where_temporary_files_go_does_not_matter(zygote, unbroken, tmp_path, kind):
    with small_disk(tmp_path / "small", "16k") as disk:
        if "full" in kind:
            fill(disk)
        place = str(disk / "nowhere" if "missing" in kind else disk)
        code = f"import tempfile; tempfile.tempdir = None; import os; os.environ['TMPDIR'] = {place!r}"
        out = tmp_path / "run"
        child = zygote.run(*arguments(zygote, out), code=code)
        assert child.code == 0, child.stderr
        assert ends_in(out) == unbroken
        assert zygote.run("embed", "human-4x64", "g.fa", "-o", tmp_path / "o.npz", code=code).code == 0


def test_fault13_checkpoints_that_may_not_be_written(zygote, unbroken, tmp_path):
    out = tmp_path / "run"
    code = ORDINARY_USER + AT.format(
        step=5, name="checksums.json", action=f"os.chmod({str(out / 'checkpoints')!r}, 0o555)"
    )
    child = zygote.run(*arguments(zygote, out), code=code)
    assert child.code == 2 and "Permission denied" in child.last_line and "--resume" in child.last_line, child.stderr
    (out / "checkpoints").chmod(0o755)
    for path in checkpoint.list_checkpoints(out / "checkpoints"):
        checkpoint.verify(path)
    assert resumed(zygote, out) == unbroken


def test_fault14_a_run_directory_that_may_not_be_written_any_more(zygote, unbroken, tmp_path):
    out = tmp_path / "run"
    code = ORDINARY_USER + AT.format(step=5, name="checksums.json", action=f"os.chmod({str(out)!r}, 0o555)")
    child = zygote.run(*arguments(zygote, out), code=code)
    assert child.code == 2 and "Permission denied" in child.last_line and str(out) in child.last_line, child.stderr
    assert "--resume" in child.last_line and "Traceback" not in child.stderr
    out.chmod(0o755)
    assert resumed(zygote, out) == unbroken


def test_fault14_a_run_directory_that_is_removed(zygote, tmp_path):
    out = tmp_path / "run"
    code = AT.format(step=5, name="checksums.json", action=f"__import__('shutil').rmtree({str(out)!r})")
    child = zygote.run(*arguments(zygote, out), code=code)
    assert child.code == 2 and "No such file" in child.last_line and "Traceback" not in child.stderr, child.stderr


# ---- caches


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "fault17 bases cut": lambda store: os.truncate(store / "bases.u8", 100),
    "fault17 bases empty": lambda store: (store / "bases.u8").write_bytes(b""),
    "fault17 one bit": lambda store: _flip(store / "bases.u8"),
    "fault17 bases missing": lambda store: (store / "bases.u8").unlink(),
    "fault16 manifest missing": lambda store: (store / "manifest.json").unlink(),
    "fault16 manifest empty": lambda store: (store / "manifest.json").write_bytes(b""),
    "fault16 manifest cut": lambda store: os.truncate(store / "manifest.json", 40),
    "fault16 manifest edited": lambda store: (store / "manifest.json").write_text(
        (store / "manifest.json").read_text().replace('"length": 40000', '"length": 39999')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_copy_in_the_cache_is_packed_anew_and_a_damaged_store_refused(damage, tmp_path):
    letters = random_letters(40_000)
    source = tmp_path / "g.fa"
    source.write_text(f">a\n{letters}\n")
    copy = open_genome(source).path
    whole = (copy / "bases.u8").read_bytes()
    damage(copy)
    assert open_genome(source).fetch(Interval("a", 0, 40_000)) == letters
    assert (copy / "bases.u8").read_bytes() == whole
    store = build([source], tmp_path / "g.dna").path
    damage(store)
    with pytest.raises(InputError, match="build the store again|dna-mamba genome build"):
        open_genome(store)


def test_fault17_a_damaged_store_of_a_fetched_assembly_is_refused(tmp_path):
    urls = {name: f"https://example.org/{name}.fa.gz" for name in ("one", "two")}
    for seed, name in enumerate(urls):
        (tmp_path / f"{name}.fa").write_text(
            "".join(f">c{i}\n{random_letters(20_000, 3 * seed + i)}\n" for i in range(3))
        )
        build([tmp_path / f"{name}.fa"], tmp_path / f"{name}.dna")
    # as genome fetch leaves it
    record = {name: {"url": url, "sha256": "0" * 64, "stored": "0" * 64} for name, url in urls.items()}
    (tmp_path / "fetched.json").write_text(json.dumps(record))
    classes = [{"label": name, "assemblies": [{"name": name, "url": url}]} for name, url in urls.items()]
    (tmp_path / "m.yaml").write_text(json.dumps({"format_version": 1, "name": "toy", "classes": classes}))
    data = LabelledDataConfig(
        manifest=str(tmp_path / "m.yaml"), genomes=str(tmp_path), split_by="contig", valid=("c1",), test=("c2",)
    )
    assert set(open_labelled(data).labels) == {"one", "two"}
    _flip(tmp_path / "two.dna" / "bases.u8")
    with pytest.raises(InputError, match=r"two\.dna/bases\.u8 does not match the SHA-256 in its manifest"):
        open_labelled(data)


def test_a_folder_of_somebody_in_the_cache_is_never_replaced(zygote, tmp_path):
    # the cache may be scratch space with other things in it
    (tmp_path / "scratch" / "thesis").mkdir(parents=True)
    (tmp_path / "scratch" / "thesis" / "notes.txt").write_text("mine")
    words = ("genome", "build", zygote.folder / "g.fa", "--out", tmp_path / "scratch" / "thesis", "--overwrite")
    child = zygote.run(*words, DNA_MAMBA_CACHE=str(tmp_path / "scratch"))
    assert child.code == 2 and "is no genome store, so it is not overwritten" in child.last_line
    assert (tmp_path / "scratch" / "thesis" / "notes.txt").exists()


def test_what_is_written_is_synced_before_it_has_its_name(tmp_path, monkeypatch):
    events = []

    def seen(descriptor):
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        original(descriptor)

    def renamed(self, target):
        events.append(("rename", str(self)))
        return rename(self, target)

    original, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(
        Path, "replace", lambda self, target: events.append(("rename", str(self))) or replace(self, target)
    )
    (tmp_path / "g.fa").write_text(">a\nACGT\n")
    store = build([tmp_path / "g.fa"], tmp_path / "g.dna").path
    state = checkpoint.Checkpoint(model={}, optimizer={}, rng={}, counters={"step": 1})
    saved = checkpoint.save(tmp_path / "checkpoints", 1, state)
    with WholeFile(tmp_path / "o.tsv") as path:
        path.write_text("x")
    synced = [name for what, name in events if what == "sync"]
    files = [path.name for folder in (store, saved) for path in folder.iterdir()]
    assert len(files) == 7 and all(any(name.endswith("/" + file) for name in synced) for file in files)
    renames = [number for number, (what, _) in enumerate(events) if what == "rename"]
    assert len(renames) == 3
    for number in renames:
        before, after = events[number - 1], events[number + 1]
        assert before == ("sync", events[number][1]), "the file, or its directory, right before"
        assert after[0] == "sync" and after[1] in (str(tmp_path), str(tmp_path / "checkpoints"))


def test_an_old_checkpoint_goes_only_after_the_new_one_was_verified(tmp_path):
    for step in (1, 2, 3):
        state = checkpoint.Checkpoint(model={}, optimizer={}, rng={}, counters={"step": step})
        newest = checkpoint.save(tmp_path, step, state)
    _flip(newest / "counters.json")
    with pytest.raises(InputError, match="does not match its SHA-256"):
        checkpoint.prune(tmp_path, 2, None)
    assert len(checkpoint.list_checkpoints(tmp_path)) == 3


def test_debug_prints_the_traceback_before_the_line(zygote):
    words = ("genome", "build", "nowhere.fa", "--out", "x.dna")
    assert "Traceback" not in zygote.run(*words).stderr
    child = zygote.run(*words, DNA_MAMBA_DEBUG="1")
    assert child.stderr.startswith("Traceback") and child.last_line.startswith("dna-mamba: nowhere.fa does not exist")


def test_fault18_a_copy_of_a_file_that_was_edited_is_not_used(tmp_path):
    source = tmp_path / "g.fa"
    source.write_text(">a\nACGTACGT\n")
    state = source.stat()
    assert open_genome(source).fetch(Interval("a", 0, 4)) == "ACGT"
    source.write_text(">a\nTTTTACGT\n")
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))  # same size, same time
    assert open_genome(source).fetch(Interval("a", 0, 4)) == "TTTT"


def test_fault18_a_file_that_is_replaced_between_two_readings_is_refused(tmp_path, monkeypatch):
    source = tmp_path / "g.fa"
    source.write_text(">a\nACGTACGT\n")
    state = source.stat()
    from dna_mamba.data.store import cache as module

    original = module._packed

    def replaced(*arguments):
        source.write_text(">a\nTTTTACGT\n")
        os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
        return original(*arguments)

    monkeypatch.setattr(module, "_packed", replaced)
    with pytest.raises(InputError, match="changed while it was read"):
        open_genome(source)
    monkeypatch.setattr(module, "_packed", original)
    source.write_text(">a\nACGTACGT\n")
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert open_genome(source).fetch(Interval("a", 0, 4)) == "ACGT"


def test_fault19_two_runs_that_pack_one_genome_at_once(zygote, tmp_path):
    letters = random_letters(1_000_000)
    (tmp_path / "g.fa").write_text("".join(f">c{i}\n{letters}\n" for i in range(10)))
    settings = ("training.bases_per_step=64", "evaluation.markov_max_order=-1", "evaluation.test_bases=1000")
    words = ("pretrain", "--genome", "g.fa", "--model", "1x16", "--seq-len", "64", "--steps", "2", "--device", "cpu")
    environment = {"DNA_MAMBA_CACHE": str(tmp_path / "cache")}
    both = [zygote.start(*words, "--out", f"run{i}", "--set", *settings, cwd=tmp_path, **environment) for i in range(2)]
    assert [child.wait() for child in both] == [0, 0], both[1].stderr
    (store,) = (tmp_path / "cache").glob("*.dna")
    GenomeStore.open(store).verify()


# ---- numbers, workers, memory, clocks

POISON = """
from dna_mamba.training.step import Stepper
original = Stepper._accumulate
def poisoned(self, batch):
    loss = original(self, batch)
    if self.counters.step + 1 in {nan!r}:
        next(self.model.parameters()).grad.fill_(float("nan"))
    return loss._replace(loss=loss.loss * (100 if self.counters.step + 1 in {spikes!r} else 1))
Stepper._accumulate = poisoned
"""


def unusual(out):
    return [(row["step"], row["kind"], row["windows"]) for row in read_metrics(out / "unusual.csv")]


def test_faults20_and_22_steps_that_are_not_finite_or_leap_are_named_with_all_their_windows(zygote, tmp_path):
    out = tmp_path / "run"
    code = POISON.format(nan={5, 6, 40}, spikes={50})
    child = zygote.run(*arguments(zygote, out, "training.bases_per_step=640"), code=code)
    assert child.code == 0, child.stderr
    found = unusual(out)
    assert [(step, kind) for step, kind, _ in found] == [
        *((s, "not finite") for s in ["5", "6", "40"]),
        ("50", "spike"),
    ]
    for _, _, windows in found:
        places = windows.split(" ")
        assert len(places) == 10 and all(place.startswith("a:") for place in places)
    assert "step 50: the loss leapt to" in child.stderr and "step 40: its numbers were not finite" in child.stderr
    stopped = zygote.run(*arguments(zygote, tmp_path / "b"), code=POISON.format(nan={20, 21, 22}, spikes=set()))
    assert stopped.code == 3 and "was not finite for 3 steps in a row" in stopped.last_line
    assert f"the last good checkpoint is {tmp_path / 'b' / 'checkpoints'}" in stopped.last_line
    assert [step for step, _, _ in unusual(tmp_path / "b")] == ["20", "21", "22"]


def test_fault20_weights_that_are_not_finite_are_never_saved(zygote, tmp_path):
    out = tmp_path / "run"
    code = """
from dna_mamba.training.step import Stepper
original = Stepper.step
def step(self, batch, optimizer):
    original(self, batch, optimizer)
    if self.counters.step == 5:
        next(self.model.parameters()).data.fill_(float("nan"))
Stepper.step = step
"""
    child = zygote.run(*arguments(zygote, out), code=code)
    assert child.code == 3 and "was not finite for 3 steps in a row" in child.last_line, child.stderr
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(out / "checkpoints")][-1] == 4


def test_fault22_spikes_are_told_from_what_came_before_a_resume(zygote, tmp_path):
    out = tmp_path / "run"
    stop = AT.format(step=45, name="rng.safetensors", action="os.kill(os.getpid(), signal.SIGTERM)")
    assert zygote.run(*arguments(zygote, out, "training.bases_per_step=640"), code=stop).code == 143
    code = POISON.format(nan=set(), spikes={48})
    child = zygote.run(*arguments(zygote, out, "training.bases_per_step=640", "--resume"), code=code)
    assert child.code == 0 and [(step, kind) for step, kind, _ in unusual(out)] == [("48", "spike")], child.stderr


def test_fault22_a_spike_is_six_deviations_above_the_mean_of_its_own_window_length():
    detector = SpikeDetector()
    generator = np.random.default_rng(0)
    losses = generator.normal(1.3, 0.01, 400)
    assert [detector.leap(1024, loss) for loss in losses] == [None] * 400
    mean, deviation = detector.leap(1024, 1.5)
    assert mean == pytest.approx(losses[-100:].mean()) and deviation == pytest.approx(losses[-100:].std())
    assert detector.leap(1024, 1.35) is None  # five deviations
    assert detector.leap(2048, 1.5) is None  # another length begins anew
    for loss in losses[:30]:
        detector.leap(2048, loss)
    assert [detector.leap(2048, 1.6) is None for _ in range(12)] == [False] * 10 + [True] * 2  # a level, not a spike


def test_fault23_a_worker_that_is_killed_is_told_in_one_line(zygote, tmp_path):
    out = tmp_path / "run"
    child = zygote.start(*arguments(zygote, out, "data.num_workers=2", steps=5000))
    while not checkpoint.list_checkpoints(out / "checkpoints"):
        assert child.wait(0.05) is None, child.stderr
    os.kill(child.children()[0], signal.SIGKILL)
    assert child.wait(300) == 3, child.stderr  # generous: it ends at once, or never
    assert "a process that reads windows was stopped from outside" in child.last_line
    assert f"--out {out} --resume" in child.last_line and "Traceback" not in child.stderr


def test_fault25_memory_that_runs_out_is_told_in_one_line_and_the_run_goes_on_later(zygote, unbroken, tmp_path):
    out = tmp_path / "run"
    less = """
        import resource
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), size + (8 << 20)))
        hold = bytearray(64 << 20)"""
    child = zygote.run(*arguments(zygote, out), code=AT.format(step=5, name="checksums.json", action=less.strip()))
    assert child.code == 3 and "the memory ran out" in child.last_line and "--resume" in child.last_line, child.stderr
    assert "Traceback" not in child.stderr
    assert resumed(zygote, out) == unbroken


def test_fault25_a_model_that_asks_for_too_much_is_told_in_one_line(zygote, tmp_path):
    code = """
import resource
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20), size + (300 << 20)))
"""
    words = ("pretrain", "--genome", zygote.folder / "g.fa", "--model", "2x128", "--seq-len", "16384", "--steps", "2")
    settings = ("training.piece_bases=16384", "training.length_warmup=none")
    child = zygote.run(*words, "--device", "cpu", "--out", tmp_path / "run", "--set", *settings, code=code)
    assert child.code == 3 and "the memory ran out" in child.last_line, child.stderr
    assert "Traceback" not in child.stderr


def test_fault27_a_clock_that_jumps_changes_no_name_and_no_order(zygote, unbroken, tmp_path):
    out = tmp_path / "run"
    code = "import time; original = time.time; time.time = lambda: 1e9 + (int(original() * 50) % 3) * -86400.0"
    assert zygote.run(*arguments(zygote, out), code=code).code == 0
    assert ends_in(out) == unbroken
    for name in ("step-00000001", "step-00000002"):
        (tmp_path / name).mkdir()
        set_aside([tmp_path / name])
        (tmp_path / name).mkdir()
        set_aside([tmp_path / name])
    assert len(list(tmp_path.glob("step-*.set-aside-*"))) == 4
    assert checkpoint.list_checkpoints(tmp_path) == []


def test_fault28_resumed_thrice_at_the_edges_of_an_epoch(zygote, tmp_path):
    # ten windows of 3,000 bases: epochs end with steps 10, 20 and 30; newest are steps 9, 10, 11 and 20
    more = ("training.bases_per_step=3000", "training.seq_len=3000", "training.length_warmup=none")
    assert zygote.run(*arguments(zygote, tmp_path / "whole", *more, steps=30)).code == 0
    out = tmp_path / "run"
    for number, step in enumerate((10, 11, 12, 21)):
        kill = AT.format(step=step, name="checksums.json", action="os.kill(os.getpid(), signal.SIGKILL)")
        child = zygote.run(*arguments(zygote, out, *more, *(["--resume"] if number else []), steps=30), code=kill)
        assert child.code == -signal.SIGKILL, child.stderr
        assert checkpoint.step_of(checkpoint.list_checkpoints(out / "checkpoints")[-1]) == step - 1
    assert zygote.run(*arguments(zygote, out, *more, "--resume", steps=30)).code == 0
    assert ends_in(out, 30) == ends_in(tmp_path / "whole", 30)


def test_fault28_another_global_batch_is_refused_on_resume(zygote, tmp_path):
    out = tmp_path / "run"
    assert zygote.run(*arguments(zygote, out, steps=4)).code == 0
    child = zygote.run("pretrain", "--out", out, "--resume", "--set", "training.bases_per_step=128")
    assert child.code == 2 and "training.bases_per_step was 64 and is now 128" in child.last_line


# ---- fine-tuning


@pytest.fixture(scope="module")
def labelled(zygote):
    folder = zygote.folder / "labelled"
    folder.mkdir()
    for label, seed in (("one", 1), ("two", 2)):
        (folder / f"{label}.fa").write_text("".join(f">c{i}\n{random_letters(20_000, seed + i)}\n" for i in range(3)))
    classes = [{"label": label, "assemblies": [{"name": label, "fasta": f"{label}.fa"}]} for label in ("one", "two")]
    (folder / "m.yaml").write_text(json.dumps({"format_version": 1, "name": "toy", "classes": classes}))
    return folder / "m.yaml"


def finetuning(labelled, out, *more):
    settings = ("recipe.steps_per_epoch=20", "recipe.epochs=2", "recipe.batch=4", "checkpoint_every_steps=3")
    few = (
        "evaluation.valid_windows=20",
        "evaluation.test_windows=20",
        "evaluation.baseline_windows=0",
        "model.pattern=M",
    )
    return [
        *("finetune", "species", "--manifest", labelled, "--seq-len", "128", "--split-by", "contig", "--valid", "c1"),
        *("--test", "c2", "--device", "cpu", "--out", out, "--set", *settings, *few, "model.width=16"),
        *("evaluation.likelihood_ratio.steps=0", *more),
    ]


IN_A_STEP = """
import os, signal
from dna_mamba.training import step as training
original, calls = training.backward_in_pieces, []
def acting(*arguments, **options):
    calls.append(1)
    found = original(*arguments, **options)
    if len(calls) in {steps!r}:
        {action}
    return found
training.backward_in_pieces = acting
"""


def finetuned(out):
    paths = checkpoint.list_checkpoints(out / "lengths" / "128" / "checkpoints")
    for path in paths:
        checkpoint.verify(path)
    files = [paths[-1] / "model.safetensors", out / "lengths" / "128" / "model" / "model.safetensors"]
    rows = (out / "lengths" / "128" / "metrics.csv").read_bytes()
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files], rows


@pytest.fixture(scope="module")
def finetuned_unbroken(zygote, labelled):
    child = zygote.run(*finetuning(labelled, zygote.folder / "finetuned"))
    assert child.code == 0, child.stderr
    return finetuned(zygote.folder / "finetuned")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGKILL, -9)])
def test_fine_tuning_that_is_stopped_goes_on_to_the_same_bytes(
    zygote, labelled, finetuned_unbroken, tmp_path, number, code
):
    at = IN_A_STEP.format(steps={11}, action=f"os.kill(os.getpid(), {int(number)})")
    out = tmp_path / "run"
    child = zygote.run(*finetuning(labelled, out), code=at)
    assert child.code == code, child.stderr
    child = zygote.run("finetune", "species", "--out", out, "--resume")
    assert child.code == 0, child.stderr
    assert finetuned(out) == finetuned_unbroken


@pytest.mark.parametrize("gone", [False, True])
def test_fine_tuning_whose_best_model_is_gone_ends_with_one(zygote, labelled, tmp_path, gone):
    at, out = IN_A_STEP.format(steps={31}, action="os.kill(os.getpid(), signal.SIGTERM)"), tmp_path / "run"
    assert zygote.run(*finetuning(labelled, out), code=at).code == 143
    folder = out / "lengths" / "128"
    counters(checkpoint.list_checkpoints(folder / "checkpoints")[-1], best=[2.0, 0.0])  # no epoch is better
    if gone:
        shutil.rmtree(folder / "model")
    child = zygote.run("finetune", "species", "--out", out, "--resume")
    assert child.code == 0, child.stderr
    assert ("the best model is no longer in" in child.stderr) == gone and (folder / "model" / "config.json").exists()


def test_fine_tuning_obeys_a_second_signal_at_once(zygote, labelled, tmp_path):
    twice = "[os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]"
    child = zygote.run(*finetuning(labelled, tmp_path / "run"), code=IN_A_STEP.format(steps={11}, action=twice))
    assert child.code == 143, child.stderr
    folder = tmp_path / "run" / "lengths" / "128" / "checkpoints"
    assert checkpoint.step_of(checkpoint.list_checkpoints(folder)[-1]) == 9


def test_fine_tuning_skips_what_is_not_finite_and_stops_at_the_third(zygote, labelled, tmp_path):
    nan = "next(arguments[0].parameters()).grad.fill_(float('nan'))"
    two = zygote.run(*finetuning(labelled, tmp_path / "a"), code=IN_A_STEP.format(steps={5, 6}, action=nan))
    assert two.code == 0, two.stderr
    three = zygote.run(*finetuning(labelled, tmp_path / "b"), code=IN_A_STEP.format(steps={5, 6, 7}, action=nan))
    assert three.code == 3 and "was not finite for 3 steps in a row; the windows of the last were" in three.last_line
    assert "the last good checkpoint is" in three.last_line


@pytest.mark.parametrize("before, after, code", [({10, 11}, {1}, 3), (set(), {1, 2}, 0)])
def test_steps_in_a_row_are_counted_across_a_resume_of_fine_tuning(zygote, labelled, tmp_path, before, after, code):
    nan = "next(arguments[0].parameters()).grad.fill_(float('nan'))"
    stop = f"{nan if before else None}; len(calls) == 11 and os.kill(os.getpid(), signal.SIGTERM)"
    first = zygote.run(*finetuning(labelled, tmp_path / "run"), code=IN_A_STEP.format(steps={10, 11}, action=stop))
    assert first.code == 143, first.stderr
    again = zygote.run(
        "finetune", "species", "--out", tmp_path / "run", "--resume", code=IN_A_STEP.format(steps=after, action=nan)
    )
    assert again.code == code, again.stderr


def _nan(folder):
    found = load((folder / "model.safetensors").read_bytes())
    resealed(folder, "model.safetensors", save({name: x * float("nan") for name, x in found.items()}))


def _other_shape(folder):
    found = load((folder / "model.safetensors").read_bytes())
    found["head.weight"] = torch.zeros(1, 1)
    resealed(folder, "model.safetensors", save(found))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_nan, "holds numbers that are not finite"),
        (_other_shape, "belongs to a model of another configuration"),
        (lambda folder: counters(folder, best=["x", 1]), "holds something else than where a run of 40 steps stands"),
        (
            lambda folder: counters(folder, skipped_in_a_row=-1),
            "holds something else than where a run of 40 steps stands",
        ),
    ],
    ids=["NaN", "shape", "best", "skipped"],
)
def test_a_checkpoint_of_fine_tuning_by_somebody_is_refused(zygote, labelled, tmp_path, spoil, words):
    at = IN_A_STEP.format(steps={11}, action="os.kill(os.getpid(), signal.SIGTERM)")
    out = tmp_path / "run"
    assert zygote.run(*finetuning(labelled, out), code=at).code == 143
    spoil(checkpoint.list_checkpoints(out / "lengths" / "128" / "checkpoints")[-1])
    child = zygote.run("finetune", "species", "--out", out, "--resume")
    assert child.code == 2 and words in child.last_line and "Traceback" not in child.stderr, child.stderr


def test_a_damaged_checkpoint_of_fine_tuning_is_refused_and_the_one_before_it_offered(
    zygote, labelled, finetuned_unbroken, tmp_path
):
    at = IN_A_STEP.format(steps={11}, action="os.kill(os.getpid(), signal.SIGTERM)")
    out = tmp_path / "run"
    assert zygote.run(*finetuning(labelled, out), code=at).code == 143
    newest = checkpoint.list_checkpoints(out / "lengths" / "128" / "checkpoints")[-1]
    _flip(newest / "model.safetensors")
    child = zygote.run("finetune", "species", "--out", out, "--resume")
    assert (
        child.code == 2
        and "does not match its SHA-256" in child.last_line
        and "move it away to go on from" in child.last_line
    )
    newest.rename(newest.with_name("damaged"))
    assert zygote.run("finetune", "species", "--out", out, "--resume").code == 0
    assert finetuned(out) == finetuned_unbroken
