"""What is wrong by its own look is told before torch is loaded, in under a second of processor time."""

import subprocess
import sys

import pytest

WRONG = [
    ("pretrain --seq-len many", "many"), ("pretrain --seq-len 0", "too short"), ("pretrain --model 12y128", "blocks x width"),
    ("pretrain --pattern MQ", "'Q' stands for no layer"), ("plan --pattern (MM", "not closed"),
    ("pretrain --preset transformer++ --model 3x64", "an odd number"), ("plan --pattern M --pattern-style x", "megatron"), ("pretrain --set training.steps=abc", "expected a whole number"),
    ("pretrain --set modle.width=3", "did you mean 'model'"), ("pretrain --set optimizer.peak_rate=-1", "positive number"),
    ("pretrain --set model.mamba.num_states=0", "num_states"), ("pretrain --length-warmup slow", "unknown"),
    ("pretrain --window-rule tiles", "did you mean 'tile'"), ("pretrain --precision fp8", "choose auto, fp32, bf16"),
    ("pretrain --device tpu", "choose auto, cpu, cuda"), ("pretrain --piece-len x", "number of bases or auto"),
    ("pretrain --resume", "--resume needs --out"), ("pretrain --config nowhere.yaml", "nowhere.yaml"),
    ("plan --preset mambo", "did you mean 'mamba'"), ("plan --steps x", "x"), ("plan --gpus 0", "positive"),
    ("plan --gpu A100", "not in the table"),
    ("evaluate human-4x64 --split tset", "tset"), ("evaluate human-4x64 --window 1", "at least 2"),
    ("evaluate human-4x64 --device gpu", "choose auto, cpu, cuda"),
    ("finetune species", "needs --manifest"), ("finetune species --manifest m.yaml --pooling men", "did you mean 'mean'"),
    ("finetune species --manifest m.yaml --preset papre", "did you mean 'paper'"),
    ("finetune species --manifest m.yaml --device tpu", "tpu"),
    ("classify m x.fa --window 0", "at least 1"), ("classify m x.fa --json", "--out"),
    ("embed human-4x64 x.fa -o v.csv", "must end in .npz"), ("embed human-4x64 x.fa -o v.npz --pool men", "did you mean 'mean'"),
    ("embed human-4x64 x.fa -o v.npz --strands all", "all"), ("embed human-4x64 x.fa -o v.npz --shard 2", "i/n"),
    ("embed human-4x64 x.fa -o v.npz --device gpu", "gpu"), ("embed human-4x64 x.fa", "--out"),
    ("score human-4x64 v.vcf --genome x.fa -o o.bcf", "must end in .vcf"),
    ("score human-4x64 v.vcf --genome x.fa -o o.vcf --left few", "number of bases, or full"),
    ("score human-4x64 v.vcf --genome x.fa -o o.vcf --prefix 9", "begin with a letter"),
    ("mutate human-4x64 --genome x.fa --region a:1-9", "-o table.tsv"),
    ("mutate human-4x64 --genome x.fa --region a:1-9 -o t.csv", "must end in .tsv"),
    ("track human-4x64 --genome x.fa -o t.wig", "must end in .bw"), ("track human-4x64 --genome x.fa -o t.bw --left=-1", "--left"),
    ("generate human-4x64 --temperature=-1", "temperature"), ("generate human-4x64 --top-k 5", "1 to 4"),
    ("generate human-4x64 --length 0", "at least 1"), ("export human-4x64 -o x --format onnx", "onnx"),
    ("simulate apes --out x --preset real", "real"), ("simulate apes --out x --contig-bases 5", "contig_bases"),
    ("bench scan --shape 1,2", "BATCH,CHANNELS,LENGTH"), ("bench conv --repeats 0", "at least 1"),
    ("bench train --precision fp8", "fp8"), ("bench vcf --records 0", "at least 1"), ("bench genome --megabases 1", "at least 4"),
    ("genome show x.fa", "REGION"), ("pretrian", "pretrian"),
]  # fmt: skip
CODE = """
import os, sys, time
import dna_mamba.cli
try:
    dna_mamba.cli.main()
finally:
    heavy = {'torch', 'numba', 'scipy', 'pandas'} & set(sys.modules)
    print(f'took {sum(os.times()[:2])} loaded {sorted(heavy)}')
"""


@pytest.mark.parametrize("command, words", WRONG, ids=[command for command, _ in WRONG])
def test_a_wrong_value_is_told_without_torch(command, words, tmp_path):
    done = subprocess.run([sys.executable, "-c", CODE, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
    last = done.stdout.splitlines()[-1].split(maxsplit=3)
    assert last[3] == "[]" and float(last[1]) < 1.0, last
    assert not list(tmp_path.iterdir())


def processor_seconds(code: str) -> float:
    """Give the least of three processor times of a program."""
    found = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code + "\nimport os; print(sum(os.times()[:2]))"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.append(float(done.stdout.splitlines()[-1]))
    return min(found)


def test_a_model_is_loaded_in_little_more_time_than_torch():
    torch_alone = processor_seconds("import torch")
    loaded = processor_seconds("import dna_mamba as dm; dm.load('human-4x64')")
    assert loaded < 1.6 * torch_alone, (loaded, torch_alone)
