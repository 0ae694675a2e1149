"""The commands of the README run as they stand, on a toy genome and with few steps where they name files or hours."""

import re
import shlex

import pytest

from tests.conftest import ROOT, dna_mamba, random_letters

README = (ROOT / "README.md").read_text()


def commands():
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition("  #")[0].strip()
            if command.startswith("dna-mamba"):
                yield command


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^    make ([a-z-]+)|`make ([a-z-]+)", README, re.MULTILINE))
    names = {a or b for a, b in targets}
    assert {"demo", "test"} <= names
    for name in names:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@pytest.mark.slow
def test_every_command_runs(tmp_path):
    (tmp_path / "genome.fa").write_text(f">chr1\n{random_letters(60_000)}\n>chr2\n{random_letters(30_000, 1)}\n")
    found = list(commands())
    assert len(found) >= 6
    small = [
        "--set",
        "model.width=16",
        "model.pattern=M",
        "training.bases_per_step=512",
        "evaluation.markov_max_order=2",
    ]
    for command in found:
        words = shlex.split(command)[1:]
        if words[0] == "pretrain" and not {"--resume", "--dry-run", "--print-config"} & set(words):
            words += small
            for option, value in (("--seq-len", "256"), ("--steps", "4"), ("--device", "cpu")):
                words = (
                    words if option not in words else words[: words.index(option)] + words[words.index(option) + 2 :]
                )
                words = [*words[:1], option, value, *words[1:]]
            words = [w for w in words if w != "--overwrite"]
        done = dna_mamba(*words, cwd=tmp_path, forked=False)  # as a user starts it
        assert done.returncode == 0, (command, done.stderr)
