"""The API reference is complete: every public name has an entry that documents its arguments and results."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import openblip

PAGES = sorted((Path(__file__).parent.parent / "docs" / "api").glob("*.md"))
if importlib.util.find_spec("keras") is None:  # tests/keras/test_keras_documents.py reads the page where it is
    PAGES = [page for page in PAGES if page.name != "keras.md"]
ENTRIES = [name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)]


def resolve(name: str) -> Any:
    """Return the object of a dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return found
    raise LookupError(name)


def callables(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every documented function of an entry: itself, the functions of a module, the methods of a class."""
    if isinstance(value, ModuleType):
        for key, member in vars(value).items():
            if not key.startswith("_") and getattr(member, "__module__", None) == value.__name__:
                yield from callables(f"{name}.{key}", member)
    elif inspect.isclass(value):
        for key, member in vars(value).items():
            function = getattr(member, "__func__", member)
            if (
                key.startswith("_")
                or not inspect.isfunction(function)
                or not function.__module__.startswith("openblip")
            ):
                continue
            if not any(key in vars(base) for base in value.__mro__[1:]):  # an override follows its base's documentation
                yield f"{name}.{key}", function
    elif inspect.isfunction(inspect.unwrap(value)):
        yield name, inspect.unwrap(value)


FUNCTIONS = dict(pair for entry in ENTRIES for pair in callables(entry, resolve(entry)))


def test_every_public_name_has_an_entry() -> None:
    entries = {resolve(entry) for entry in ENTRIES}
    errors = {name for name in openblip.__all__ if name.endswith("Error")}
    assert "openblip.errors" in ENTRIES, "which lists every error"
    missing = [
        name
        for name in openblip.__all__
        if name not in errors | {"__version__"} and getattr(openblip, name) not in entries
    ]
    assert missing == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_has_a_docstring(entry: str) -> None:
    assert inspect.getdoc(resolve(entry))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_documents_arguments_and_results(name: str) -> None:
    function = FUNCTIONS[name]
    doc = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    parameters = [key for key in signature.parameters if key not in ("self", "cls")]
    assert doc, "it has a docstring"
    if parameters:
        arguments = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
        assert arguments, "it has an Args section"
        listed = re.findall(r"^ {4}\*{0,2}(\w+)", arguments.group(1), re.MULTILINE)
        assert [key for key in parameters if key not in listed] == []
    if signature.return_annotation not in ("None", None):
        assert re.search(r"^(Returns|Yields):$", doc, re.MULTILINE), "it has a Returns section"
