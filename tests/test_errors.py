"""The family of errors: one base, and the item that an error is about."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import openblip
from openblip import errors

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


def test_every_error_has_one_base() -> None:
    assert all(issubclass(error, openblip.OpenBlipError) for error in FAMILY)
    assert all(error.__name__.endswith("Error") for error in FAMILY)
    assert all(error.__name__ in str(errors.__doc__) for error in FAMILY), "the tree lists every error"


@pytest.mark.parametrize("error", [openblip.InputError, openblip.ImageError, openblip.ConfigError])
def test_errors_of_arguments_are_value_errors(error: type[Exception]) -> None:
    assert issubclass(error, ValueError)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("photos/a.jpg", "item 3 (photos/a.jpg): it is empty"),
        (Path("photos/a.jpg"), "item 3 (photos/a.jpg): it is empty"),
        (b"data", "item 3: it is empty"),
        (None, "item 3: it is empty"),
    ],
)
def test_the_message_names_the_item(item: object, message: str) -> None:
    error = openblip.ImageError("it is empty")
    assert str(error) == "it is empty"
    error.item = item
    assert str(error) == "it is empty", "an error that is returned stands in its place already"
    error.index = 3
    assert str(error) == message


def test_a_path_is_named_once() -> None:
    error = openblip.ImageError("cannot read a.jpg: it is empty")
    error.index, error.item = 0, "a.jpg"
    assert str(error) == "item 0: cannot read a.jpg: it is empty"


def test_errors_are_pickled_with_their_item() -> None:
    error = openblip.ImageError("it is empty")
    error.index, error.item, error.partial = 1, "a.jpg", [7]
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.index, copy.item, copy.partial) == (str(error), 1, "a.jpg", [7])
