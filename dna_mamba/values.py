"""Values as people hand them over: numbers of any kind, and settings, checked against the dataclasses that define them."""

import numbers
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from dna_mamba.errors import InputError, nearest

T = TypeVar("T")
Json = dict[str, Any]
"""Plain values by name, as JSON and YAML hold them: before `read_config` makes a dataclass of them, or to be written."""
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def whole(value: object) -> int | None:
    """Give a whole number of any kind as Python's; none if it is no whole number (True and 3.0 are none)."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def real(value: object) -> float | None:
    """Give a number of any kind as Python's float; none if it is no single number."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return None
    if isinstance(value, numbers.Real) or getattr(value, "shape", None) == ():
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return None
    return None


def read_config(kind: type[T], values: object, where: str, name: str = "") -> T:
    """Build a dataclass of dataclasses from plain values.

    Args:
        kind: The dataclass. `FORMERLY` in it names what keys of earlier versions are called now.
        values: Nested mappings, lists, texts and numbers, which anyone may have written.
        where: They come from, for messages.
        name: Of the section, for messages.

    Raises:
        InputError: A key is unknown (the nearest is named), or a value has the wrong type or is refused.
    """
    return typing.cast(T, _read(kind, values, name, where))


def _read(kind: object, value: object, name: str, where: str) -> object:
    if is_dataclass(kind):
        return _section(typing.cast(type, kind), value, name, where)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        return _read(next(a for a in parts if a is not type(None)), value, name, where)
    if origin is tuple:
        return _several(parts, value, name, where)
    return _single(kind, value, name, where)


def _section(kind: type, value: object, name: str, where: str) -> object:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {name} is {_shown(value)}, expected a section of keys and values")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for key in value:
        if key not in known:
            _refuse_key(kind, key, known, name, where)
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in value:
            raise InputError(f"{where}: {name or 'the top'} lacks the key {field.name!r}")
    below = {key: _read(hints[key], item, f"{name}.{key}" if name else key, where) for key, item in value.items()}
    try:
        return kind(**below)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _refuse_key(kind: type, key: object, known: Sequence[str], name: str, where: str) -> typing.NoReturn:
    full = f"{name}.{key}" if name else str(key)
    if key in (now := getattr(kind, "FORMERLY", {})):
        raise InputError(f"{where}: {full} is {now[key]} now; set that instead")
    raise InputError(
        f"{where}: unknown key {full!r}{nearest(str(key), known)}; {name or 'the top'} has {', '.join(known)}"
    )


def _several(parts: Sequence[object], value: object, name: str, where: str) -> object:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}: {name} is {_shown(value)}, expected a list in brackets")
    if parts[-1] is not Ellipsis and len(value) != len(parts):
        raise InputError(f"{where}: {name} has {len(value)} values, expected {len(parts)}")
    kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
    return tuple(_read(k, item, name, where) for k, item in zip(kinds, value, strict=True))


def _single(kind: object, value: object, name: str, where: str) -> object:
    if kind in (int, float) and type(value).__module__ == "numpy":  # a configuration made in Python
        value = whole(value) if kind is int else real(value)
    if kind is float:
        number = _number(value)
        if number is not None:
            return number
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if type(value) is kind and not (isinstance(value, int) and abs(value) > 10**1000):
        return value
    raise InputError(f"{where}: {name} is {_shown(value)}, expected {EXPECTED[typing.cast(type, kind)]}")


def _number(value: object) -> float | None:
    if isinstance(value, float):  # infinite, or none: the section says what it thinks of that
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300:
        return float(value)
    if isinstance(value, str):  # YAML reads 1e-3, without a point, as text
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _shown(value: object) -> str:
    try:
        return repr(value)[:100]
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
