"""The fixtures are what the classes of PyTorch return now. This file runs where PyTorch is."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the environment of the Keras classes has no PyTorch")

from safetensors.numpy import load_file

from tests.keras.cases import CONFIGS, FIXTURES
from tests.keras.record_fixtures import record


@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_results_are_those_of_today(name: str) -> None:
    expected, found = load_file(FIXTURES / name / "results.safetensors"), record(name)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].shape == array.shape
        assert np.allclose(found[key], array, atol=2e-5), key
