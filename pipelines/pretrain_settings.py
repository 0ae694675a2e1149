"""Preset, file, flags and assignments, put over each other into one configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dna_mamba.errors import InputError
from dna_mamba.model.config import parse_size
from dna_mamba.pipelines.config_files import load_yaml, override, parse_assignments, read_config
from dna_mamba.pipelines.configs.pretrain import PretrainConfig
from dna_mamba.pipelines.presets import preset

LONGEST_DEMO = 4096
"""Above this window length the default preset is no longer the demo's."""


def settings(
    flags: Mapping[str, Any],
    *,
    model: str | None = None,
    pattern: str | None = None,
    preset_name: str | None = None,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    run: Path | None = None,
) -> PretrainConfig:
    """Resolve a configuration: the preset (or the run that is resumed), then the file, flags, and section.key=value.

    Args:
        flags: Nested values; None means not given.
        model: Blocks x width.
        pattern: Letters of the layers.
        preset_name: Preset; without it the demo's for the demo genome and short windows, otherwise 'small'.
        file: YAML file.
        assignments: Texts 'section.key=value'.
        run: Directory of a run whose configuration is the base.

    Raises:
        InputError: A name is unknown, a value is refused, or options contradict each other.
    """
    given = given_values(flags)
    if model is not None:
        if pattern is not None:
            raise InputError("--model and --pattern both say which layers there are; give one of them")
        letters, width = parse_size(model)
        given = override(given, {"model": {"pattern": letters, "width": width}})
    if pattern is not None:
        given = override(given, {"model": {"pattern": pattern}})
    layers = [
        (str(file), load_yaml(file) if file is not None else {}),
        ("the options", given),
        ("--set", parse_assignments(assignments)),
    ]
    if run is not None:
        path = run / "config.yaml"
        if not path.exists():
            raise InputError(f"--resume: {run} holds no run to go on with (no config.yaml in it)")
        values: dict[str, Any] = load_yaml(path)
        config = read_config(PretrainConfig, values, str(path))
    else:
        together = override(override(layers[0][1], layers[1][1]), layers[2][1])
        config = preset(_default_preset(together) if preset_name is None else preset_name)
        values = asdict(config)
    for origin, changes in layers:
        if changes:
            values = override(values, changes)
            config = read_config(PretrainConfig, values, origin)
    return config


def given_values(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None, at all depths."""
    result = {}
    for key, value in flags.items():
        if isinstance(value, Mapping):
            if below := given_values(value):
                result[key] = below
        elif value is not None:
            result[key] = value
    return result


def _default_preset(changes: Mapping[str, Any]) -> str:
    if "preset" in changes:
        return str(changes["preset"])
    data, training = changes.get("data"), changes.get("training")
    genome = data.get("genome", "demo") if isinstance(data, Mapping) else "demo"
    seq_len = training.get("seq_len", 0) if isinstance(training, Mapping) else 0
    long = isinstance(seq_len, int) and seq_len > LONGEST_DEMO
    return "demo" if genome == "demo" and not long else "small"
