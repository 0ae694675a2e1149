"""Preset, file, flags and assignments, put over each other into one configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dna_mamba.errors import InputError
from dna_mamba.model.config import BackboneConfig, parse_size
from dna_mamba.model.patterns import parse_pattern
from dna_mamba.pipelines.config_files import load_yaml, override, parse_assignments, refuse_derived
from dna_mamba.pipelines.configs.finetune import config_of_run
from dna_mamba.pipelines.configs.pretrain import PretrainConfig
from dna_mamba.pipelines.configs.species import FinetuneSpeciesConfig
from dna_mamba.pipelines.configs.species import preset as species_preset
from dna_mamba.pipelines.presets import architecture_of, preset
from dna_mamba.values import Json, read_config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LONGEST_DEMO = 4096
"""Above this window length the default preset is no longer the demo's."""
Config = TypeVar("Config", bound="DataclassInstance")
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a user asks for, over a preset or over the run that is resumed; each wins over those before it.

    Raises:
        InputError: A file cannot be read, or `model` and `pattern` are both given.
    """

    file: Path | None = None
    """YAML."""
    flags: Values
    """Nested values; None means not given."""
    model: str | None = None
    """Blocks x width."""
    pattern: str | None = None
    """Letters of the layers, as `parse_pattern` reads them."""
    pattern_style: str | None = None
    """Whose letters they are."""
    preset: str = "mamba"
    """What `model` is a size of."""
    assignments: Sequence[str] = ()
    """Texts 'section.key=value'."""

    def layers(self) -> list[tuple[str, Json]]:
        """Give what file, options and --set say, each with its name for messages."""
        given = given_values(self.flags)
        if self.model is not None:
            if self.pattern is not None:
                raise InputError("--model and --pattern both say which layers there are; give one of them")
            letters, width = parse_size(self.model)
            pattern = architecture_of(self.preset).pattern(len(letters))
            given = override(given, {"model": {"pattern": pattern, "width": width}})
        if self.pattern is not None:
            pattern = parse_pattern(self.pattern, self.pattern_style or "ours")
            given = override(given, {"model": {"pattern": pattern}})
        elif self.pattern_style is not None:
            raise InputError("--pattern-style says how --pattern is read; give that too, or leave it out")
        return [
            (str(self.file), load_yaml(self.file) if self.file is not None else {}),
            ("the options", given),
            ("--set", parse_assignments(self.assignments)),
        ]

    def together(self) -> dict[str, object]:
        """Give all of it as one."""
        found: dict[str, object] = {}
        for _, changes in self.layers():
            found = override(found, changes)
        return found

    def over(self, config: Config) -> Config:
        """Put all of it over a configuration.

        Raises:
            InputError: A name is unknown, or a value is refused.
        """
        values = asdict(config)
        for origin, changes in self.layers():
            if changes:
                refuse_derived(type(config), changes, origin)
                values = override(values, changes)
                config = read_config(type(config), values, origin)
                _refuse_idle(config, changes, origin)
        return config


def _refuse_idle(config: object, changes: Values, origin: str) -> None:
    """Refuse sizes of layers that the pattern has none of: they would do nothing."""
    model, given = getattr(config, "model", None), changes.get("model")
    if isinstance(model, BackboneConfig) and isinstance(given, Mapping):
        for name in model.idle_sections():
            if name in given:
                raise InputError(
                    f"{origin}: model.{name} does nothing here: the pattern {model.pattern!r} has no such layer; leave it out"
                )


def pretrain(asked: Asked, *, preset_name: str | None = None, run: Path | None = None) -> PretrainConfig:
    """Resolve a configuration of pretraining.

    Args:
        asked: What is put over the preset.
        preset_name: Preset; without it the demo's for the demo genome and short windows, otherwise 'small'.
        run: Directory of a run whose configuration is the base instead.

    Raises:
        InputError: A name is unknown, a value is refused, or options contradict each other.
    """
    if run is not None:
        path = run / "config.yaml"
        if not path.exists():
            raise InputError(f"--resume: {run} holds no run to go on with (no config.yaml in it)")
        return asked.over(read_config(PretrainConfig, load_yaml(path), str(path)))
    name = _default_preset(asked.together()) if preset_name is None else preset_name
    base = preset(name)
    return replace(asked, preset=name).over(base)


def species(asked: Asked, *, preset_name: str | None = None, run: Path | None = None) -> FinetuneSpeciesConfig:
    """Resolve a configuration of fine-tuning for species.

    Args:
        asked: What is put over the preset.
        preset_name: Preset; without it 'paper'.
        run: Directory of a run whose configuration is the base instead.

    Raises:
        InputError: A name is unknown, a value is refused, or no manifest is named.
    """
    if run is not None:
        return asked.over(config_of_run(FinetuneSpeciesConfig, run))
    together = asked.together()
    data = together.get("data")
    manifest = data.get("manifest") if isinstance(data, Mapping) else None
    if not isinstance(manifest, str) or not manifest:
        raise InputError("finetune species needs --manifest: a YAML file, or great-apes or hyenadna-5 from the package")
    config = species_preset(preset_name or str(together.get("preset", "paper")), manifest)
    if asked.model is not None:
        if together.get("checkpoint") is not None:
            raise InputError(
                "--model is for training from scratch and --checkpoint brings its own sizes; give one of them"
            )
        config = replace(config, checkpoint=None)
    return asked.over(config)


def given_values(flags: Values) -> Json:
    """Leave out what is None, at all depths."""
    result = {}
    for key, value in flags.items():
        if isinstance(value, Mapping):
            if below := given_values(value):
                result[key] = below
        elif value is not None:
            result[key] = value
    return result


def _default_preset(changes: Values) -> str:
    if "preset" in changes:
        return str(changes["preset"])
    data, training = changes.get("data"), changes.get("training")
    genome = data.get("genome", "demo") if isinstance(data, Mapping) else "demo"
    seq_len = training.get("seq_len", 0) if isinstance(training, Mapping) else 0
    long = isinstance(seq_len, int) and seq_len > LONGEST_DEMO
    return "demo" if genome == "demo" and not long else "small"
