"""Fixtures of the tests of the Keras classes: recorded toy models, loaded once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # toy models compile for much longer than they run


@pytest.fixture(scope="session")
def load() -> Callable[[str], Any]:
    """Load the recorded toy model of a class of PyTorch, by its name, as the class of Keras; once for all tests."""
    from tests.keras.toys import load_toy

    return cache(load_toy)
