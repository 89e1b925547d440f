"""Exported models return the tokens of `generate`, served by plain TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="the Keras classes have an environment of their own: make test-keras")

from openblip.errors import InputError  # noqa: E402
from openblip.keras import export_saved_model  # noqa: E402
from tests.keras.cases import DEC, IDS, MASK, PIXELS, SEP  # noqa: E402
from tests.keras.toys import recorded  # noqa: E402

Load = Callable[[str], Any]

needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports need TensorFlow")

SERVE = """
import sys
import numpy as np
import tensorflow as tf
inputs = {name: tf.constant(array) for name, array in np.load("inputs.npz").items()}
signature = tf.saved_model.load("model").signatures[sys.argv[1]]
names = signature.structured_input_signature[1]
outputs = signature(**{name: inputs[name] for name in names})
np.savez("outputs.npz", **{name: value.numpy() for name, value in outputs.items()})
assert not {"openblip", "torch", "transformers"} & set(sys.modules), "plain TensorFlow"
"""


def serve(folder: Path, signature: str, **inputs: Any) -> dict[str, Any]:
    """The outputs of a signature of `folder/model`, in a process of plain TensorFlow."""
    np.savez(folder / "inputs.npz", **inputs)
    program = [sys.executable, "-c", SERVE, signature]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "outputs.npz"))


IDS_32, MASK_32 = IDS.astype(np.int32), MASK.astype(np.int32)


def assert_same_texts(served: Any, expected: Any) -> None:
    """Equal, but for padding on the right."""
    width = expected.shape[1]
    assert np.array_equal(served[:, :width], expected)
    assert not served[:, width:].any()


@needs_tensorflow
def test_captions_are_served(load: Load, tmp_path: Path) -> None:
    export_saved_model(load("BlipForConditionalGeneration"), tmp_path / "model", max_new_tokens=10)
    expected = recorded("BlipForConditionalGeneration")["greedy"]
    for rows in (slice(0, 3), slice(1, 2)):
        served = serve(tmp_path, "caption", pixel_values=PIXELS[rows])["sequences"]
        assert np.array_equal(served, expected[rows])


@needs_tensorflow
def test_answers_are_served(load: Load, tmp_path: Path) -> None:
    export_saved_model(load("BlipForQuestionAnswering"), tmp_path / "model", max_new_tokens=12)
    served = serve(tmp_path, "answer", pixel_values=PIXELS, input_ids=IDS_32, attention_mask=MASK_32)["sequences"]
    expected = np.asarray(load("BlipForQuestionAnswering").generate(IDS, PIXELS, MASK, max_new_tokens=12))
    assert_same_texts(served, expected)


@needs_tensorflow
def test_matches_are_served(load: Load, tmp_path: Path) -> None:
    model = load("BlipForImageTextRetrieval")
    export_saved_model(model, tmp_path / "model")
    inputs = {"pixel_values": PIXELS, "input_ids": IDS_32, "attention_mask": MASK_32}
    served = serve(tmp_path, "match", **inputs)
    score = np.asarray(model(**inputs).itm_score)
    assert np.allclose(served["itm_score"], score, atol=1e-4)
    assert np.allclose(served["probability"], 1 / (1 + np.exp(score[:, 0] - score[:, 1])), atol=1e-4)
    served = serve(tmp_path, "compare", **inputs)
    assert np.allclose(served["similarity"], model(**inputs, use_itm_head=False).itm_score, atol=1e-4)


@needs_tensorflow
def test_a_prompt_and_a_minimum_length_are_part_of_the_graph(load: Load, tmp_path: Path) -> None:
    model = load("BlipForConditionalGeneration")
    prompt = [DEC, 45, 24]
    export_saved_model(model, tmp_path / "model", max_new_tokens=8, min_new_tokens=4, prompt_ids=prompt)
    served = serve(tmp_path, "caption", pixel_values=PIXELS)["sequences"]
    prompts = np.array([[*prompt, SEP]] * 3)
    expected = model.generate(PIXELS, prompts, max_new_tokens=8, min_new_tokens=4)
    assert_same_texts(served, np.asarray(expected))


def test_what_cannot_be_exported_is_an_error(load: Load, tmp_path: Path) -> None:
    if keras.backend.backend() == "jax":
        with pytest.raises(InputError, match="exports need KERAS_BACKEND=tensorflow, got jax"):
            export_saved_model(load("BlipForConditionalGeneration"), tmp_path / "model")
        return
    with pytest.raises(InputError, match="got TFBlipVisionModel"):
        export_saved_model(load("BlipVisionModel"), tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(InputError, match="must be new or empty"):
        export_saved_model(load("BlipForConditionalGeneration"), tmp_path / "full")
    with pytest.raises(InputError, match="together at most 48, got 1 and 60"):
        export_saved_model(load("BlipForConditionalGeneration"), tmp_path / "model", max_new_tokens=60)
