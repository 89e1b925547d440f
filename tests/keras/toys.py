"""The recorded toy models, and comparisons with what PyTorch returned."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

import openblip.keras
from openblip.compat.transformers_api.outputs import ModelOutput
from tests.keras.cases import FIXTURES, TEXT, VISION, Case

Arrays = dict[str, NDArray[Any]]
TOLERANCE = 1e-4
GOLDEN = Path(__file__).parent.parent / "golden"


def load_toy(name: str) -> Any:
    """The Keras twin of a class of PyTorch, with the recorded weights."""
    return getattr(openblip.keras, f"TF{name}").from_pretrained(FIXTURES / name)


def small_toy(name: str, **text: Any) -> Any:
    """A random model with one layer per encoder and other settings of its text encoder. It compiles fast."""
    kind = getattr(openblip.keras, f"TF{name}")
    keras.utils.set_random_seed(0)
    small = {"num_hidden_layers": 1}
    return kind(kind.config_class(text_config={**TEXT, **text, **small}, vision_config={**VISION, **small}))


@cache
def recorded(name: str) -> Arrays:
    """What PyTorch returned for all cases of a class."""
    return load_file(FIXTURES / name / "results.safetensors")


def flatten(prefix: str, value: Any) -> Arrays:
    """The arrays of an output by name, as `record_fixtures` names them."""
    if value is None:
        return {}
    if isinstance(value, ModelOutput):
        entries = [(key, entry) for key, entry in value.items() if key != "past_key_values"]
        return {key: array for name, entry in entries for key, array in flatten(f"{prefix}.{name}", entry).items()}
    if isinstance(value, tuple):
        return {f"{prefix}.{i}": array for i, entry in enumerate(value) for array in flatten("", entry).values()}
    return {prefix: np.asarray(value)}


def run(model: Any, case: Case) -> Arrays:
    """The results of a call."""
    return flatten(case.name, (getattr(model, case.method) if case.method else model)(**case.inputs))


def expect(case: Case) -> Arrays:
    """The recorded results of a call."""
    return {
        name: array
        for name, array in recorded(case.model).items()
        if name == case.name or name.startswith(f"{case.name}.")
    }


def assert_equal(found: Arrays, expected: Arrays, tolerance: float = TOLERANCE) -> None:
    """Both have the same arrays; a loss may have one axis."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        values = found[name].reshape(array.shape) if array.size == 1 else found[name]
        assert values.shape == array.shape, name
        assert float(np.abs(values - array).max()) <= tolerance, name


def toy_folder(name: str, folder: Path) -> Path:
    """A hub folder with a random toy model for the 600 tokens of the golden vocabulary, and its processor."""
    from openblip.compat.transformers_api import BlipImageProcessor, BlipProcessor, BlipTokenizer

    small_toy(name, vocab_size=600, bos_token_id=598, label_smoothing=0.0).save_pretrained(folder)
    processor = BlipProcessor(BlipImageProcessor(size=32), BlipTokenizer(str(GOLDEN / "vocab.txt")))
    processor.save_pretrained(folder)
    return folder
