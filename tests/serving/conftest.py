"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import openblip
from openblip import Blip
from tests.serving.serving_toys import RunningServer, running_app


@pytest.fixture(scope="session")
def toy(folder: Path) -> Blip:
    """The toy bundle, with the engine that computes gradients."""
    return openblip.load(folder, engine="torch")


@pytest.fixture(scope="module")
def server(toy: Blip) -> Iterator[RunningServer]:
    """A server without keys."""
    with running_app(toy) as running:
        yield running
