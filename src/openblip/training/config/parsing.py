"""Frozen dataclasses from YAML and from `key=value`, strict about names and types (no torch)."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, Union, cast

from openblip.errors import ConfigError, InputError
from openblip.extras import install_hint
from openblip.tasks import did_you_mean

T = TypeVar("T")

YamlValue: TypeAlias = "str | int | float | bool | date | Sequence[YamlValue] | Mapping[str, YamlValue] | None"
"""A value of a recipe, as YAML expresses it."""


def read_yaml(text: str, source: str) -> YamlValue:
    """Parse YAML.

    Args:
        text: The YAML.
        source: Name of the file or assignment, for errors.

    Returns:
        The parsed value.

    Raises:
        InputError: If PyYAML is missing.
        ConfigError: If the text is not YAML.
    """
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"recipes need PyYAML: {install_hint('train')}") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error


def write_yaml(values: Mapping[str, YamlValue]) -> str:
    """Return a table as YAML, in the order of its keys; raises `InputError` if PyYAML is missing."""
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"recipes need PyYAML: {install_hint('train')}") from error
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def read_table(path: Path) -> dict[str, YamlValue]:
    """Read a table from a YAML file; raises `ConfigError` if the file cannot be read or holds no table."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        names = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near and not path.exists() else ""
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}{hint}") from error
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a table of settings")
    return values


def override(values: Mapping[str, YamlValue], assignments: Iterable[str]) -> dict[str, YamlValue]:
    """Apply assignments to a table.

    Args:
        values: The table; it is not modified.
        assignments: `a.b=value` each, with the value in YAML; `a.b=` means null.

    Returns:
        The changed table.

    Raises:
        ConfigError: If an assignment is malformed, or goes through a value that is not a table.
    """
    changed = dict(values)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not all(key.split(".")):
            raise ConfigError(f"a setting must have the form key=value, such as schedule.lr=1e-5, got {assignment!r}")
        _assign(changed, key.split("."), read_yaml(text, assignment), key)
    return changed


def _assign(table: dict[str, YamlValue], path: list[str], value: YamlValue, key: str) -> None:
    name, *rest = path
    if not rest:
        table[name] = value
        return
    inner = table.get(name)
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(f"{key}: {name} must be a table, got {inner!r}")
    changed: dict[str, YamlValue] = dict(inner or {})
    table[name] = changed
    _assign(changed, rest, value, key)


def build(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from a table.

    Args:
        kind: The dataclass.
        values: Values by field name.
        where: Prefix of the names in errors.

    Returns:
        An instance of `kind`.

    Raises:
        ConfigError: If a name is unknown, a value has the wrong type, a field is missing, or the class refuses a value.
    """
    hints = _hints(cast(type, kind))
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            hint = did_you_mean(str(name), hints) or f"; settings are {', '.join(hints)}"
            raise ConfigError(f"there is no setting {where}{name}{hint}")
        arguments[name] = convert(value, hints[name], f"{where}{name}")
    missing = [
        field.name
        for field in dataclasses.fields(cast(Any, kind))
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"the setting {where}{missing[0]} is missing")
    try:
        return kind(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}" if where else str(error)) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def convert(value: Any, hint: Any, where: str) -> Any:
    """Convert a value from YAML to the type `hint`; raises `ConfigError`, with the name `where`, if it cannot."""
    if dataclasses.is_dataclass(value):
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return convert(value, inner, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
    if dataclasses.is_dataclass(hint):
        return build(cast(type, hint), _as_mapping(value, where), f"{where}.")
    if origin is tuple:
        items = [value] if isinstance(value, str | int | float) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        return tuple(convert(item, arguments[0], where) for item in items)
    if origin is not None and issubclass(origin, Mapping):
        return dict(_as_mapping(value, where))
    return _convert_scalar(value, hint, where)


def _as_mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table of settings, got {value!r}")
    return value


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint is int and type(value) is int:
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:  # YAML parses 1e-5 as a text
            number = float(value) if isinstance(value, str | int | float) else None
        except ValueError:
            number = None
        if number is not None and (hint is float or number.is_integer()):
            return hint(number)
    types_in_words = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}
    raise ConfigError(f"{where} must be {types_in_words.get(hint, hint)}, got {value!r}")


def as_table(settings: Any) -> dict[str, YamlValue]:
    """Return a dataclass as a table for YAML; tuples become lists."""
    return {field.name: _to_yaml(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _to_yaml(value: Any) -> YamlValue:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_table(value)
    if isinstance(value, tuple | list):
        return [_to_yaml(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _to_yaml(item) for key, item in value.items()}
    return value


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names at which two tables differ, each after `prefix`."""
    names: list[str] = []
    for name in [*a, *(name for name in b if name not in a)]:
        value_a, value_b = a.get(name), b.get(name)
        if isinstance(value_a, Mapping) and isinstance(value_b, Mapping):
            names += differences(value_a, value_b, f"{prefix}{name}.")
        elif value_a != value_b:
            names.append(f"{prefix}{name}")
    return names
