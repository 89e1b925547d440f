"""Frozen dataclasses from YAML and from ``key=value``: strict about names and types (no torch here)."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from openblip.errors import ConfigError, InputError
from openblip.extras import install_hint

T = TypeVar("T")


def read_yaml(text: str, source: str) -> Any:
    """The value that a piece of YAML stands for."""
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"recipes need PyYAML: {install_hint('train')}") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error


def write_yaml(values: Mapping[str, Any]) -> str:
    """A table as YAML, in its own order."""
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"recipes need PyYAML: {install_hint('train')}") from error
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def read_table(path: Path) -> dict[str, Any]:
    """A YAML file that holds a table."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} does not hold a table of settings")
    return values


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """``values`` with ``a.b=value`` assignments applied, each value read as YAML. ``a.b=`` (nothing) means null."""
    changed = dict(values)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not all(key.split(".")):
            raise ConfigError(f"{assignment!r} is no setting: write key=value, as in schedule.lr=1e-5")
        _put(changed, key.split("."), read_yaml(text, assignment), key)
    return changed


def _put(table: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    name, *rest = path
    if not rest:
        table[name] = value
        return
    inner = table.get(name)
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(f"{key}: {name} is a single value, {inner!r}")
    table[name] = dict(inner or {})
    _put(table[name], rest, value, key)


def build(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A dataclass from a table; :class:`ConfigError` for an unknown name, a wrong type, or what the class refuses."""
    hints = _hints(cast(type, kind))
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"there is no setting {where}{name}{_suggest(str(name), hints)}")
        given[name] = convert(value, hints[name], f"{where}{name}")
    missing = [
        field.name
        for field in dataclasses.fields(cast(Any, kind))
        if field.name not in given and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"the setting {where}{missing[0]} is missing")
    try:
        return kind(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}" if where else str(error)) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def convert(value: Any, hint: Any, where: str) -> Any:
    """``value``, as YAML gives it, as the type that ``hint`` asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return convert(value, inner, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} is one of {', '.join(map(str, arguments))}, not {value!r}")
    if dataclasses.is_dataclass(hint):
        return build(cast(type, hint), _table(value, where), f"{where}.")
    if origin is tuple:
        items = [value] if isinstance(value, str | int | float) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{where} is a list, not {value!r}")
        return tuple(convert(item, arguments[0], where) for item in items)
    if origin is not None and issubclass(origin, Mapping):
        return dict(_table(value, where))
    return _plain(value, hint, where)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is a table of settings, not {value!r}")
    return value


def _plain(value: Any, hint: Any, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint is int and type(value) is int:
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:  # YAML takes 1e-5 for a word
            number = float(value) if isinstance(value, str | int | float) else None
        except ValueError:
            number = None
        if number is not None and (hint is float or number.is_integer()):
            return hint(number)
    named = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    raise ConfigError(f"{where} is {named.get(hint, hint)}, not {value!r}")


def as_table(settings: Any) -> dict[str, Any]:
    """A dataclass as the table it could be read from; tuples become lists."""
    return {field.name: _plain_value(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_table(value)
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    return value


def differences(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> list[str]:
    """The dotted names under which two tables differ."""
    found = []
    for name in [*one, *(name for name in other if name not in one)]:
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{where}{name}.")
        elif a != b:
            found.append(f"{where}{name}")
    return found
