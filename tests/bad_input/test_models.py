"""Rows 73 to 78: configurations, patterns, models, checkpoints, archives, lengths and vocabularies."""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import dna_mamba as dm
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import from_pretrained, save_pretrained, save_sequence_model, with_checksum
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.checkpoints import ImportConfig, import_model
from dna_mamba.pipelines.config_files import load_yaml
from dna_mamba.pipelines.manifests import fetch, read_genome_manifest
from dna_mamba.pipelines.pretrain import PretrainConfig
from dna_mamba.training import checkpoint
from dna_mamba.values import read_config
from tests.bad_input import test_fasta, test_tables
from tests.bad_input.contract import Case, make, named, refused_by_command, refused_by_function, run_command
from tests.conftest import classifier_from, random_letters

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

CONFIG = [
    Case(73, "tag that calls", b'seed: !!python/object/apply:os.mkdir ["executed"]\n', "is no valid YAML"),
    Case(73, "tag of a class", b"seed: !!python/name:os.system\n", "is no valid YAML"),
    Case(73, "alias bomb", BOMB.encode(), "aliases (*name) are not allowed"),
    Case(73, "unknown key", b"training:\n  stepss: 5\n", "unknown key 'training.stepss'; did you mean 'steps'?"),
    Case(73, "wrong type", b"training:\n  steps: many\n", "training.steps is 'many', expected a whole number"),
    Case(73, "text for a section", b"training: fast\n", "training is 'fast', expected a section"),
    Case(73, "rate that is no number", b"optimizer:\n  peak_rate: .nan\n", "peak_rate nan"),
    Case(73, "endless rate", b"optimizer:\n  peak_rate: .inf\n", "peak_rate inf"),
    Case(73, "rate of four hundred digits", b"optimizer:\n  peak_rate: " + b"9" * 400 + b"\n", "expected a number"),
    Case(73, "number of thousands of digits", b"seed: 0x" + b"f" * 4000 + b"\n", "seed is a number of thousands of digits"),
    Case(73, "key twice", b"seed: 1\nseed: 2\n", "the key 'seed' stands there twice"),
    Case(73, "many keys", "".join(f"k{i}: 1\n" for i in range(60_000)).encode(), "unknown key 'k0'"),
    Case(73, "deep", b"seed: " + b"[" * 3000, "is no valid YAML"),
    Case(73, "two megabytes", b"seed: 1 #" + b"x" * 2_000_000, "is larger than 1 MiB; that is no configuration"),
    Case(73, "no sections", b"- a\n- b\n", "holds no sections"),
    Case(73, "not text", b"\xff\xfe\x00", "it is not text"),
    Case(74, "unknown letter", b"model:\n  pattern: MMXM\n", "has the unknown letter 'X'; a layer is one of: M (Mamba)"),
    Case(74, "heads", b'model:\n  pattern: "M*M"\n  attention: {num_kv_heads: 3}\n', "must divide the"),
    Case(74, "groups", b'model:\n  pattern: SS\n  mamba2: {num_groups: 3}\n', "num_groups 3 must divide"),
    Case(74, "rotary", b'model:\n  pattern: "M*"\n  attention: {rotary: 2}\n', "must lie in 0 to 1"),
    Case(74, "empty", b'model:\n  pattern: ""\n', "is empty; a layer is one of: M"),
    Case(74, "letter that looks alike", "model:\n  pattern: М\n".encode(), "has the unknown letter 'М'"),
    Case(74, "too many layers", b"model:\n  pattern: " + b"M" * 5000 + b"\n", "has 5,000 layers; take at most 4,096"),
    Case(74, "larger than the machine", b"model:\n  pattern: " + b"M" * 4096 + b"\n  width: 65536\n", "parameters: "),
]  # fmt: skip


@pytest.mark.parametrize("case", named(CONFIG))
def test_a_configuration_is_refused_in_one_line_and_nothing_runs(case, tmp_path, capfd, monkeypatch):
    source = make(case, tmp_path / "in", "c.yaml")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    if case.name != "larger than the machine":  # which is seen when it is resolved
        call = lambda: read_config(PretrainConfig, load_yaml(source), str(source))  # noqa: E731
        assert str(source) in refused_by_function(tmp_path / "in", out, case.words, call)
    command = ("pretrain", "--config", source, "--device", "cpu", "--out", out / "run")
    refused_by_command(capfd, tmp_path / "in", out, case.words, *command)


class Evil:
    """What a pickle could bring."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


def model_of(width=16, pattern="MM"):
    torch.manual_seed(0)
    return DnaMamba(BackboneConfig(pattern=pattern, width=width))


def a_model(folder: Path) -> Path:
    save_pretrained(model_of(), folder / "m", {"train": "toy"}, trained_bases=512)
    return folder / "m"


def config(folder, **values):
    path = a_model(folder)
    before = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(before | values))
    return path


def backbone(folder, **values):
    """Change the section of sizes, and the hash of it: what somebody who knows the format could hand over."""
    path = a_model(folder)
    before = json.loads((path / "config.json").read_text())
    after = before | {"backbone": before["backbone"] | values}
    (path / "config.json").write_text(json.dumps(after))
    found = load((path / "model.safetensors").read_bytes())
    (path / "model.safetensors").write_bytes(with_checksum(found, after))
    return path


def weights(folder, change):
    path = a_model(folder)
    (path / "model.safetensors").write_bytes(change((path / "model.safetensors").read_bytes()))
    return path


def tensors(folder, edit, checksum=True):
    path = a_model(folder)
    found = load((path / "model.safetensors").read_bytes())
    edit(found)
    about = json.loads((path / "config.json").read_text())
    if not checksum:  # as versions wrote it that knew none
        del about["checksum"]
        (path / "config.json").write_text(json.dumps(about))
    (path / "model.safetensors").write_bytes(with_checksum(found, about) if checksum else save(found))
    return path


def flip(content, at=-100):
    return content[:at] + bytes([content[at] ^ 1]) + content[at:][1:]


def without(folder, name):
    path = a_model(folder)
    (path / name).unlink()
    return path


def only_a_pickle(folder):
    path = without(folder, "model.safetensors")
    torch.save({"a": Evil()}, path / "pytorch_model.bin")
    return path


def a_pipe(folder, name):
    path = without(folder, name)
    os.mkfifo(path / name)
    return path


def a_distributed_checkpoint(folder):
    path = folder / "m"
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    (path / "__0_0.distcp").write_bytes(b"\0" * 64)
    return path


def header_of(size):
    return struct.pack("<Q", size) + b"{}"


NORM = "backbone.norm_f.weight"
MODELS = [
    Case(75, "no bytes", lambda f: weights(f, lambda c: b""), "is damaged or no safetensors file"),
    Case(75, "cut", lambda f: weights(f, lambda c: c[:-9]), "does not match the SHA-256 in it"),
    Case(75, "one bit of a weight", lambda f: weights(f, flip), "does not match the SHA-256 in it"),
    Case(75, "one bit of the header", lambda f: weights(f, lambda c: flip(c, 40)), "model.safetensors"),
    Case(75, "header of 2^62 bytes", lambda f: weights(f, lambda c: header_of(2**62)), "has lost the SHA-256 in it"),
    Case(75, "zeros", lambda f: weights(f, lambda c: bytes(len(c))), "is damaged or no safetensors file"),
    Case(75, "more at the end", lambda f: weights(f, lambda c: c + b"x"), "does not match the SHA-256 in it"),
    Case(75, "shapes of another model", lambda f: backbone(f, width=32), "it belongs to a model of another configuration"),
    Case(75, "more layers", lambda f: backbone(f, pattern="MMM"), "lacks the tensor 'backbone.layers.2"),
    Case(75, "a huge configuration", lambda f: backbone(f, pattern="M" * 4000, width=65536), "parameters, but the weights have"),
    Case(75, "another policy", lambda f: config(f, policy={}), "config.json does not match the SHA-256 in model.safetensors"),
    Case(75, "newer format", lambda f: config(f, format_version=2), "has format version 2, this dna-mamba reads 1"),
    Case(75, "format as a truth value", lambda f: config(f, format_version=True), "has format version True"),
    Case(75, "another kind", lambda f: config(f, model_type="llama"), "is no dna-mamba model"),
    Case(75, "text for a width", lambda f: backbone(f, width="16"), "backbone.width is '16', expected a whole number"),
    Case(75, "text for the layers' sizes", lambda f: backbone(f, mamba="x"), "backbone.mamba is 'x', expected a section"),
    Case(75, "key of a stranger", lambda f: backbone(f, auto_map="x.py"), "unknown key 'backbone.auto_map'"),
    Case(75, "tensor missing", lambda f: tensors(f, lambda t: t.pop(NORM)), f"lacks the tensor '{NORM}'"),
    Case(75, "tensor too many", lambda f: tensors(f, lambda t: t.update(more=torch.zeros(2))), "unexpected tensor 'more'"),
    Case(75, "NaN", lambda f: tensors(f, lambda t: t[NORM].fill_(float("nan"))), f"'{NORM}' holds numbers that are not"),
    Case(75, "whole numbers", lambda f: tensors(f, lambda t: t.update({NORM: torch.zeros(16, dtype=torch.long)})), "int64"),
    Case(75, "NaN without a checksum", lambda f: tensors(f, lambda t: t[NORM].fill_(float("inf")), checksum=False), "not finite"),
    Case(75, "no weights", lambda f: without(f, "model.safetensors"), "cannot read"),
    Case(75, "no configuration", lambda f: without(f, "config.json"), "no config.json found"),
    Case(75, "a pickle alone", only_a_pickle, "cannot read"),
    Case(75, "distributed checkpoint", a_distributed_checkpoint, "no config.json found"),
    Case(75, "pipe for a configuration", lambda f: a_pipe(f, "config.json"), "config.json is not a regular file"),
    Case(75, "pipe for weights", lambda f: a_pipe(f, "model.safetensors"), "model.safetensors is not a regular file"),
    Case(78, "fewer tokens than ours", lambda f: backbone(f, vocabulary_size=8), "vocabulary_size 8 between 12 and"),
    Case(78, "more tokens than the weights", lambda f: backbone(f, vocabulary_size=64), "expected (64, 16)"),
]  # fmt: skip


@pytest.mark.parametrize("case", named(MODELS))
def test_a_model_is_refused_in_one_line_and_nothing_executes(case, tmp_path, capfd, monkeypatch):
    source = make(case, tmp_path / "in", "m")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    (tmp_path / "s.fa").write_text(">a\nACGT\n")
    said = refused_by_function(tmp_path / "in", out, case.words, lambda: dm.load(source, device="cpu"))
    assert str(source) in said
    command = ("embed", source, tmp_path / "s.fa", "--device", "cpu", "-o", out / "o.npz")
    refused_by_command(capfd, tmp_path / "in", out, case.words, *command)


def of_others(folder, write):
    """A checkpoint as state-spaces/mamba writes it, but for its weights."""
    path = folder / "m"
    path.mkdir()
    values = {"d_model": 16, "n_layer": 1, "vocab_size": 16, "ssm_cfg": {}, "rms_norm": True}
    (path / "config.json").write_text(json.dumps(values))
    write(path)
    return path


def packed(path):
    torch.save({"a": torch.zeros(1_000_000)}, path / "stored.bin")
    with zipfile.ZipFile(path / "stored.bin") as old, zipfile.ZipFile(path / "pytorch_model.bin", "w", 8) as new:
        for one in old.infolist():
            new.writestr(one.filename, old.read(one))
    (path / "stored.bin").unlink()


def config_of_others(path, **values):
    before = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(before | values))


REFUSED_PICKLE = "is damaged, or holds more than tensors, which is not loaded"
IMPORTS = [
    Case(75, "pickle", lambda f: of_others(f, lambda p: (p / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))), REFUSED_PICKLE),
    Case(75, "pickle of torch", lambda f: of_others(f, lambda p: torch.save({"a": Evil()}, p / "pytorch_model.bin")), REFUSED_PICKLE),
    Case(75, "pickle of protocol 4", lambda f: of_others(f, lambda p: (p / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), 4))), REFUSED_PICKLE),
    Case(75, "random bytes", lambda f: of_others(f, lambda p: (p / "pytorch_model.bin").write_bytes(np.random.default_rng(3).bytes(3000))), REFUSED_PICKLE),
    Case(75, "packed members", lambda f: of_others(f, packed), "holds packed members, as no checkpoint of torch does"),
    Case(75, "pipe", lambda f: of_others(f, lambda p: os.mkfifo(p / "pytorch_model.bin")), "is not a regular file"),
    Case(75, "10^12 layers", lambda f: of_others(f, lambda p: config_of_others(p, n_layer=10**12)), "n_layer is 1000000000000"),
    Case(75, "10^9 layers", lambda f: of_others(f, lambda p: config_of_others(p, n_layer=10**9)), "layers; take at most 4,096"),
    Case(78, "fifty tokens", lambda f: of_others(f, lambda p: (config_of_others(p, vocab_size=48), torch.save({"backbone.embedding.weight": torch.zeros(48, 16)}, p / "pytorch_model.bin"))), "has 48 tokens, ours are 16; say which of them are A, C, G, T and N"),
]  # fmt: skip


@pytest.mark.parametrize("case", named(IMPORTS))
def test_a_checkpoint_of_others_is_refused_in_one_line_and_nothing_executes(case, tmp_path, capfd, monkeypatch):
    source = make(case, tmp_path / "in", "m")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    call = lambda: import_model(ImportConfig(checkpoint=source, out=out / "o"))  # noqa: E731
    assert str(source) in refused_by_function(tmp_path / "in", out, case.words, call)
    refused_by_command(capfd, tmp_path / "in", out, case.words, "import", source, "-o", out / "o")


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A run of two steps whose newest checkpoint can be spoilt; gives its folder and the cache of its genome."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "g.fa").write_text(f">chrA\n{random_letters(40_000)}\n")
    settings = ("training.bases_per_step=64", "training.checkpoint_every_steps=1", "training.keep_checkpoints=9")
    settings += ("evaluation.markov_max_order=-1",)
    words = ("--model", "1x16", "--seq-len", "64", "--steps", "4", "--device", "cpu", "--set", *settings)
    assert run_command("pretrain", "--genome", folder / "g.fa", *words, "--out", folder / "run") == 0
    checkpoints = checkpoint.list_checkpoints(folder / "run" / "checkpoints")
    for path in checkpoints[-2:]:  # steps 3 and 4: the run has two more steps to do
        shutil.rmtree(path)
    return folder


def resealed(path, name, content):
    """Put a file into a checkpoint, and its hash into the list: what somebody who knows the format could hand over."""
    (path / name).write_bytes(content)
    sums = json.loads((path / "checksums.json").read_text())
    sums[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "checksums.json").write_text(json.dumps(sums))


def counters(path, **values):
    resealed(path, "counters.json", json.dumps(json.loads((path / "counters.json").read_text()) | values).encode())


def spoilt(path, name, key, edit):
    found = load((path / name).read_bytes())
    found[key] = edit(found[key])
    resealed(path, name, save(found))


D = "backbone.layers.0.mixer.D"
CHECKPOINTS = [
    Case(75, "no bytes", lambda c: (c / "model.safetensors").write_bytes(b""), "model.safetensors has 0 bytes, expected"),
    Case(75, "cut", lambda c: os.truncate(c / "optimizer.safetensors", 100), "has 100 bytes, expected"),
    Case(75, "one bit", lambda c: (c / "model.safetensors").write_bytes(flip((c / "model.safetensors").read_bytes())), "does not match its SHA-256"),
    Case(75, "pipe", lambda c: ((c / "rng.safetensors").unlink(), os.mkfifo(c / "rng.safetensors")), "rng.safetensors is not a regular file"),
    Case(75, "list of hashes edited", lambda c: (c / "checksums.json").write_text("{}"), "checksums.json lists []"),
    Case(75, "deep list of hashes", lambda c: (c / "checksums.json").write_text("[" * 100_000), "no readable checksums.json"),
    Case(75, "newer format", lambda c: counters(c, format_version=2), "has format version 2, this dna-mamba reads 1"),
    Case(75, "pickle", lambda c: (shutil.rmtree(c), torch.save({"a": Evil()}, c)), "pickled checkpoints are not read"),
    Case(75, "distributed", lambda c: ((c / "checksums.json").unlink(), (c / ".metadata").write_bytes(pickle.dumps(Evil()))), "no readable checksums.json"),
    Case(75, "shapes of another model", lambda c: spoilt(c, "model.safetensors", D, lambda t: torch.zeros(7)), "is (7,), expected (32,)"),
    Case(75, "NaN weights", lambda c: spoilt(c, "model.safetensors", D, lambda t: t * float("nan")), "holds numbers that are not finite"),
    Case(75, "NaN moments", lambda c: spoilt(c, "optimizer.safetensors", f"exp_avg.{D}", lambda t: t * float("nan")), "missing, misshapen or not finite"),
    Case(75, "counter of three elements", lambda c: spoilt(c, "optimizer.safetensors", f"step.{D}", lambda t: torch.zeros(3)), "missing, misshapen or not finite"),
    Case(75, "random state of floats", lambda c: resealed(c, "rng.safetensors", save({"cpu": torch.zeros(8)})), "does not hold the state of torch's random numbers"),
    Case(75, "no random state", lambda c: resealed(c, "rng.safetensors", save({"x": torch.zeros(8)})), "does not hold the state of torch's random numbers"),
    Case(75, "counters that are a list", lambda c: resealed(c, "counters.json", b"[]"), "counters.json does not say the step"),
    Case(75, "deep counters", lambda c: resealed(c, "counters.json", b"[" * 100_000), "cannot be read"),
    Case(75, "step of another", lambda c: counters(c, step=1_000_000), "does not say the step of its name"),
    Case(75, "text for a step", lambda c: counters(c, step="x"), "does not say the step of its name"),
    Case(75, "bases of other contigs", lambda c: counters(c, bases_seen=[[1, 2, 3]]), "counters.json holds something else"),
    Case(75, "key of a stranger", lambda c: counters(c, more=1), "counters.json holds something else"),
]  # fmt: skip


@pytest.mark.parametrize("case", named(CHECKPOINTS))
def test_a_checkpoint_is_refused_in_one_line_and_the_run_stays_as_it_was(case, a_run, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "in"
    shutil.copytree(a_run / "run", out)
    newest = checkpoint.list_checkpoints(out / "checkpoints")[-1]
    assert callable(case.content)
    case.content(newest)
    (tmp_path / "out").mkdir()
    kept = (".safetensors", ".csv", ".yaml", ".png")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix in kept}
    capfd.readouterr()
    assert run_command("pretrain", "--out", out, "--resume") == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("dna-mamba: ") and case.words in lines[-1] and str(out) in lines[-1], lines[-1]
    assert not [line for line in lines if "Traceback" in line]
    assert all(path.read_bytes() == content for path, content in before.items()), "something was changed"
    assert not (tmp_path / "executed").exists()
    assert len(checkpoint.list_checkpoints(out / "checkpoints")) == 2


def test_row75_a_checkpoint_from_before_formats_had_a_number_is_read(a_run, tmp_path):
    shutil.copytree(a_run / "run", tmp_path / "run")
    newest = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    found = json.loads((newest / "counters.json").read_text())
    assert found.pop("format_version") == 1
    resealed(newest, "counters.json", json.dumps(found).encode())
    assert checkpoint.load(newest).counters["step"] == 2


def test_row75_one_flipped_bit_anywhere_in_a_configuration_is_refused(tmp_path):
    path = a_model(tmp_path)
    content = (path / "config.json").read_bytes()
    read = 0
    for at in range(0, len(content), 3):
        (path / "config.json").write_bytes(flip(content, at))
        try:
            from_pretrained(path)
        except InputError:
            continue
        read += 1
        # blanks around values mean nothing
        assert json.loads((path / "config.json").read_text()) == json.loads(content)
    assert read < len(content) / 10


def tar_of(folder, name, kind=tarfile.REGTYPE, link=""):
    with tarfile.open(folder / "m.tar", "w") as file:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
        file.addfile(member, io.BytesIO(b"evil"))
    return folder / "m.tar"


def zip_of(folder, name, content=b"evil"):
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return folder / "m.zip"


ARCHIVES = [
    Case(76, "tar that climbs", lambda f: tar_of(f, "../escaped"), "no config.json found"),
    Case(76, "tar with an absolute path", lambda f: tar_of(f, "/tmp/escaped-by-tar"), "no config.json found"),
    Case(76, "tar with a link", lambda f: tar_of(f, "link", tarfile.SYMTYPE, "/etc/passwd"), "no config.json found"),
    Case(76, "zip that climbs", lambda f: zip_of(f, "../escaped"), "no config.json found"),
    Case(76, "zip bomb", lambda f: zip_of(f, "config.json", bytes(1 << 26)), "no config.json found"),
]


@pytest.mark.parametrize("case", named(ARCHIVES))
def test_an_archive_is_never_unpacked(case, tmp_path, capfd, monkeypatch):
    source = make(case, tmp_path / "in", "m")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    (tmp_path / "s.fa").write_text(">a\nACGT\n")
    refused_by_function(tmp_path / "in", out, case.words, lambda: dm.load(source, device="cpu"))
    refused_by_command(capfd, tmp_path / "in", out, case.words, "embed", source, tmp_path / "s.fa", "-o", out / "o.npz")
    words = "FASTA"  # as a genome it is a file that is no FASTA
    with pytest.raises(InputError, match=words):
        dm_build(source, out)
    assert not list(out.glob("*escaped*")) and not Path("/tmp/escaped-by-tar").exists()


def dm_build(source, out):
    from dna_mamba.data.store.build import build

    return build([source], out / "x.dna")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", ".hidden", "", "x" * 200])
def test_row76_a_manifest_cannot_name_a_place_outside_its_folder(name, tmp_path, capfd):
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    text = {
        "format_version": 1,
        "name": "x",
        "classes": [
            {"label": "one", "assemblies": [{"name": name, "fasta": "a.fa"}]},
            {"label": "two", "assemblies": [{"name": "b", "fasta": "a.fa"}]},
        ],
    }
    (tmp_path / "m.yaml").write_text(json.dumps(text))
    with pytest.raises(InputError, match="must be letters, digits and"):
        fetch(read_genome_manifest(tmp_path / "m.yaml"), tmp_path / "out")
    assert run_command("genome", "fetch", tmp_path / "m.yaml", "--out", tmp_path / "out") == 2
    assert "must be letters, digits and" in capfd.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["score", "track", "generate", "classify"])
def test_row77_every_command_that_reads_further_than_the_training_says_so(command, tmp_path, capfd):
    model = a_model(tmp_path)
    letters = random_letters(600)
    (tmp_path / "s.fa").write_text(f">a\n{letters}\n")
    record = f"a\t550\t.\t{letters[549]}\t{'C' if letters[549] == 'A' else 'A'}\t.\t.\t.\n"
    (tmp_path / "v.vcf").write_text(test_tables.HEADER + record)
    if command == "classify":
        classifier = classifier_from(model_of(), ("x", "y"), "mean")
        save_sequence_model(classifier, tmp_path / "c", {"seq_len": 512})
    words = {
        "score": ("score", model, tmp_path / "v.vcf", "--genome", tmp_path / "s.fa", "-o", tmp_path / "o.vcf"),
        "track": ("track", model, "--genome", tmp_path / "s.fa", "-o", tmp_path / "o.bw"),
        "generate": ("generate", model, "--length", "600", "-o", tmp_path / "o.fa"),
        "classify": ("classify", tmp_path / "c", tmp_path / "s.fa"),
    }[command]
    assert run_command(*words, "--device", "cpu") == 0
    says = {"score": "alleles are scored with more context than the 512 bases that the model was trained on"}
    assert says.get(command, "the model was trained on windows of 512 bases and reads up to") in capfd.readouterr().err


def test_row77_longer_than_the_training_is_read_with_a_warning(tmp_path, capfd):
    model = a_model(tmp_path)
    for bases, warned in ((512, False), (513, True)):
        (tmp_path / "s.fa").write_text(f">a\n{random_letters(bases)}\n")
        assert run_command("embed", model, tmp_path / "s.fa", "--device", "cpu", "-o", tmp_path / f"{bases}.npz") == 0
        words = "the model was trained on windows of 512 bases and reads up to 513 in one go here"
        assert (words in capfd.readouterr().err) == warned
    assert from_pretrained(model)[0].trained_bases == 512


@pytest.mark.parametrize("bases", [1, 2, 3, 4, 5])
def test_row77_shorter_than_the_convolution_is_read_as_the_equations_say(bases, tmp_path):
    model = a_model(tmp_path)
    letters = random_letters(bases)
    (tmp_path / "s.fa").write_text(f">a\n{letters}\n")
    assert (
        run_command("embed", model, tmp_path / "s.fa", "--device", "cpu", "--pool", "none", "-o", tmp_path / "o.npz")
        == 0
    )
    plain, _ = from_pretrained(model)
    tokens_BT = torch.tensor([["ACGT".index(letter) + 7 for letter in letters]])
    with torch.no_grad():
        expected = plain.double().use_implementation("naive").backbone(tokens_BT)[0][0]
    found = np.load(tmp_path / "o.npz")["embeddings"]
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_every_row_of_the_list_has_a_test():
    rows = set()
    for table in (test_fasta.REFUSED, test_fasta.READ, test_fasta.INDEXES, test_tables.VCF, test_tables.BED):
        rows |= {case.row for case in table}
    for table in (CONFIG, MODELS, IMPORTS, CHECKPOINTS, ARCHIVES):
        rows |= {case.row for case in table}
    for module in (test_fasta, test_tables):
        for name in dir(module):
            if name.startswith("test_row"):
                first = name.removeprefix("test_rows").removeprefix("test_row")
                rows |= {int(part) for part in first.split("_") if part.isdigit()}
    rows |= {52, 77}  # parameters of a test, and the tests above
    assert rows == set(range(1, 79))
