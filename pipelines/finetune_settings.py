"""Preset, file, flags and assignments, put over each other into one configuration of a fine-tuning run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dna_mamba.errors import InputError
from dna_mamba.model.config import parse_size
from dna_mamba.pipelines.config_files import load_yaml, override, parse_assignments, read_config, refuse_derived
from dna_mamba.pipelines.configs.species import FinetuneSpeciesConfig, config_of_run, preset
from dna_mamba.pipelines.pretrain_settings import given_values


def settings(
    flags: Mapping[str, Any],
    *,
    model: str | None = None,
    preset_name: str | None = None,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    run: Path | None = None,
) -> FinetuneSpeciesConfig:
    """Resolve a configuration: the preset (or the run that is resumed), then the file, flags, and section.key=value.

    Raises:
        InputError: A name is unknown, a value is refused, or no manifest is named.
    """
    given = given_values(flags)
    if model is not None:
        letters, width = parse_size(model)
        given = override(given, {"model": {"pattern": letters, "width": width}})
    layers = [
        (str(file), load_yaml(file) if file is not None else {}),
        ("the options", given),
        ("--set", parse_assignments(assignments)),
    ]
    if run is not None:
        config = config_of_run(run)
    else:
        together = override(override(layers[0][1], layers[1][1]), layers[2][1])
        data = together.get("data")
        manifest = data.get("manifest") if isinstance(data, Mapping) else None
        if not isinstance(manifest, str) or not manifest:
            raise InputError(
                "finetune species needs --manifest: a YAML file, or great-apes or hyenadna-5 from the package"
            )
        config = preset(preset_name or str(together.get("preset", "paper")), manifest)
        if model is not None and together.get("checkpoint") is not None:
            raise InputError(
                "--model is for training from scratch and --checkpoint brings its own sizes; give one of them"
            )
        if model is not None:
            layers[1] = ("the options", override({"checkpoint": None}, layers[1][1]))
    values = asdict(config)
    for origin, changes in layers:
        if changes:
            refuse_derived(FinetuneSpeciesConfig, changes, origin)
            values = override(values, changes)
            config = read_config(FinetuneSpeciesConfig, values, origin)
    return config
