from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def examples() -> Path:
    """The photos of the demo."""
    return Path(__file__).parents[2] / "examples" / "photos"
