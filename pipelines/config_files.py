"""Configurations as YAML and as section.key=value, checked against the dataclasses that define them."""

import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dna_mamba.errors import InputError, check_regular
from dna_mamba.model.config import BackboneConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_BYTES = 1 << 20


MAX_DEPTH = 50
# the parser of libyaml, where the package has it, is ten times as fast
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """Safe loading that refuses a key that stands there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> object:
        counts = Counter(str(getattr(key, "value", None)) for key, _ in node.value)
        for key, count in counts.most_common(1):
            if count > 1:
                raise yaml.YAMLError(f"the key {key!r} stands there twice")
        return super().construct_mapping(node, deep)


def _number_as_written(loader: _Loader, node: yaml.ScalarNode) -> object:
    """Refuse what YAML 1.1 takes for another number than a reader does: 010 is 8 to it, and 1:30 is 90."""
    text = str(node.value).lstrip("+-")
    if ":" in text or (len(text) > 1 and text[0] == "0" and text[1:].replace("_", "").isdigit()):
        line = node.start_mark.line + 1
        raise yaml.YAMLError(
            f"the number {node.value} in line {line} may be read in two ways; write it in decimal digits, or in quotes"
        )
    kind = node.tag.rpartition(":")[2]
    return loader.construct_yaml_int(node) if kind == "int" else loader.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number_as_written)


def _check_events(text: str) -> None:
    """Refuse aliases, of which a few hundred bytes can unfold into gigabytes, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=_Safe):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _parse(text: str, where: str) -> object:
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, IndexError, RecursionError) as error:
        raise InputError(f"{where} is no valid YAML: {' '.join(str(error).split())[:200]}") from error


def load_yaml(path: Path) -> dict[str, object]:
    """Read a configuration file.

    Raises:
        InputError: It is missing, too large, no YAML, or no mapping of sections.
    """
    try:
        check_regular(path, "a YAML file")
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    if len(text) > MAX_BYTES:
        raise InputError(f"{path} is larger than 1 MiB; that is no configuration")
    values = _parse(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds no sections, as a YAML file of settings or a manifest has; expected lines 'name: value', or 'name:' "
            f"with indented lines below"
        )
    return values


def dump_yaml(config: "DataclassInstance") -> str:
    """Write a configuration so that `load_yaml` and `read_config` give it back."""
    return yaml.safe_dump(_plain(_without_derived(config)), sort_keys=False)


def _without_derived(config: "DataclassInstance") -> dict[str, object]:
    """Leave out fields that another setting decides, and sections of layers that are not there: a file may not set them."""
    values = {}
    idle = config.idle_sections() if isinstance(config, BackboneConfig) else []
    for one in fields(config):
        if one.name in idle:
            continue
        value = getattr(config, one.name)
        if "instead" not in one.metadata:
            nested = is_dataclass(value) and not isinstance(value, type)
            values[one.name] = _without_derived(value) if nested else value
    return values


def refuse_derived(
    kind: "type[DataclassInstance] | DataclassInstance", values: Mapping[str, object], where: str, name: str = ""
) -> None:
    """Refuse settings that cannot act, since another decides them.

    Raises:
        InputError: One is among the values; the message names the setting to change instead.
    """
    hints = typing.get_type_hints(kind)
    for one in fields(kind):
        if one.name not in values:
            continue
        full = f"{name}.{one.name}" if name else one.name
        if "instead" in one.metadata:
            decides = one.metadata["instead"]
            raise InputError(f"{where}: {full} does nothing here: {decides} decides it; set that, and leave {full} out")
        below = next(
            (part for part in (hints[one.name], *typing.get_args(hints[one.name])) if is_dataclass(part)), None
        )
        if below is not None and isinstance(given := values[one.name], Mapping):
            refuse_derived(below, given, where, full)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()  # type: ignore[attr-defined]
    return str(value) if isinstance(value, Path) else value


def parse_assignments(texts: Sequence[str]) -> dict[str, object]:
    """Turn 'section.key=value' into nested mappings; values are read as YAML."""
    result: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InputError(f"--set {text!r} is not section.key=value, as in training.seq_len=4096")
        *sections, key = name.split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise InputError(f"--set {text!r}: {section!r} was set to a value before")
        target[key] = _parse(value, f"--set {text[:60]!r}: the value")
    return result


def override(base: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Put nested values over others; what is not named stays."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = override(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
