"""Configurations from presets, files and flags; every mistake is named with the nearest right word."""

import pytest
import yaml

from dna_mamba.errors import InputError
from dna_mamba.pipelines.config_files import dump_yaml, load_yaml, parse_assignments
from dna_mamba.pipelines.presets import PRESETS, preset
from dna_mamba.pipelines.pretrain import PretrainConfig
from dna_mamba.pipelines.settings import Asked, pretrain
from dna_mamba.values import read_config


def settings(flags, **more):
    return pretrain(Asked(flags=flags, **more))


@pytest.mark.parametrize("name", PRESETS)
def test_a_printed_configuration_reads_back_as_it_was(name, write):
    config = preset(name)
    assert read_config(PretrainConfig, load_yaml(write("c.yaml", dump_yaml(config))), "c.yaml") == config


def test_flags_win_over_the_file_and_the_file_over_the_preset(write):
    path = write("c.yaml", "training: {seq_len: 2048, steps: 50}\noptimizer: {peak_rate: 1e-3}\n")
    config = settings(
        {"training": {"seq_len": 512, "steps": None}}, file=path, assignments=["training.piece_bases=4096"]
    )
    assert (config.training.seq_len, config.training.steps, config.training.piece_bases) == (512, 50, 4096)
    assert config.optimizer.peak_rate == 1e-3
    assert config.model.size == "4x64"


def test_the_default_model_grows_with_a_genome_or_a_long_window():
    assert settings({}).preset == "demo"
    assert settings({"training": {"seq_len": 4096}}).model.size == "4x64"
    assert settings({"training": {"seq_len": 1048576}}).model.size == "12x128"
    assert settings({"data": {"genome": "x.fa"}}).model.size == "12x128"
    assert settings({"data": {"genome": "x.fa"}}, model="16x256").model.size == "16x256"


@pytest.mark.parametrize(
    "content, words",
    [
        ("trainning: {steps: 5}", "unknown key 'trainning'; did you mean 'training'"),
        ("training: {seqlen: 5}", "unknown key 'training.seqlen'; did you mean 'seq_len'"),
        ("training: {seq_len: many}", "training.seq_len is 'many', expected a whole number"),
        ("training: {seq_len: 1.5}", "training.seq_len is 1.5, expected a whole number"),
        ("training: {seq_len: true}", "training.seq_len is True, expected a whole number"),
        ("training: 5", "training is 5, expected a section"),
        ("optimizer: {peak_rate: .nan}", "peak_rate nan must be a positive number"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas has 1 values, expected 2"),
        ("model: {pattern: MXM}", "unknown letter 'X'"),
        ("device: gpu", "device 'gpu' is unknown; choose auto, cpu, cuda"),
        ("- 5", "holds no sections"),
        ("a: [", "is no valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is no valid YAML"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("training:\n  steps: 010", "the number 010 in line 2 may be read in two ways"),  # 8 to YAML 1.1
        ("training:\n  steps: 1:30", "the number 1:30 in line 2 may be read in two ways"),  # 90
    ],
)
def test_a_mistake_in_a_file_is_named(write, content, words):
    with pytest.raises(InputError) as error:
        settings({}, file=write("c.yaml", content))
    assert words in str(error.value) and "c.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["training.seq_len", "=5", "a.b=[", "training=5"])
def test_a_malformed_assignment_is_named(text):
    with pytest.raises(InputError):
        settings({}, assignments=[text])


def test_assignments_nest():
    assert parse_assignments(["a.b.c=1", "a.b.d=x", "e=[1, 2]"]) == {"a": {"b": {"c": 1, "d": "x"}}, "e": [1, 2]}


def test_a_large_file_is_no_configuration(write):
    with pytest.raises(InputError, match="larger than 1 MiB"):
        load_yaml(write("c.yaml", "a: " + "x" * 2**20))


def test_every_field_of_the_configuration_survives_yaml():
    values = yaml.safe_load(dump_yaml(preset("mamba-long")))
    assert values["training"]["seq_len"] == 2**20 and values["data"]["policy"]["reverse_complement"] == 0.5
