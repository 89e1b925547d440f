"""Exported models return the tokens of `generate`, run by plain TensorFlow and by the plain interpreter of LiteRT."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

keras = pytest.importorskip("keras", reason="the Keras classes have an environment of their own: make test-keras")

from openblip.errors import InputError  # noqa: E402
from openblip.keras import export_litert, export_saved_model  # noqa: E402
from tests.keras.cases import DEC, IDS, MASK, PIXELS, SEP  # noqa: E402
from tests.keras.toys import recorded  # noqa: E402

Load = Callable[[str], Any]
Arrays = dict[str, NDArray[Any]]

needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports need TensorFlow")

CAPTIONER, ANSWERER, MATCHER = "BlipForConditionalGeneration", "BlipForQuestionAnswering", "BlipForImageTextRetrieval"
INPUTS = {"pixel_values": PIXELS, "input_ids": IDS.astype(np.int32), "attention_mask": MASK.astype(np.int32)}
PROMPT = [DEC, 45, 24]
ROOM = 16  # tokens of a text in LiteRT files

SERVE = """
import sys
import numpy as np
import tensorflow as tf
inputs = {name: tf.constant(array) for name, array in np.load("inputs.npz").items()}
results = {}
for folder, signature in (pair.split(":") for pair in sys.argv[1:]):
    function = tf.saved_model.load(folder).signatures[signature]
    names = function.structured_input_signature[1]
    for rows in (slice(0, 3), slice(1, 2)):
        outputs = function(**{name: inputs[name][rows] for name in names})
        results |= {f"{folder}:{name}:{rows.stop - rows.start}": value.numpy() for name, value in outputs.items()}
np.savez("outputs.npz", **results)
assert not {"openblip", "torch", "transformers"} & set(sys.modules), "plain TensorFlow"
"""

DECODE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
inputs = dict(np.load("inputs.npz"))
results = {}
for file in ("captioner", "answerer", "captioner8"):
    interpreter = Interpreter(f"{file}.tflite")
    encode, step = (interpreter.get_signature_runner(name) for name in ("encode", "step"))
    for row in range(3):
        state = encode(**{name: inputs[name][row : row + 1] for name in encode.get_input_details()})
        tokens, logits = [int(inputs["first"])], []
        for position in range(int(inputs["new"])):
            numbers = {"input_ids": np.int32([[tokens[-1]]]), "position": np.int32([position])}
            state |= step(**numbers, **state)
            logits.append(state.pop("logits")[0])
            tokens.append(int(logits[-1].argmax()))
            if tokens[-1] == inputs["last"]:
                break
        results |= {f"{file}:{row}": tokens, f"{file}:{row}:logits": logits}
interpreter = Interpreter("matcher.tflite")
for signature in ("match", "compare"):
    run = interpreter.get_signature_runner(signature)
    for row in range(3):
        outputs = run(**{name: inputs[name][row : row + 1] for name in run.get_input_details()})
        results |= {f"matcher:{name}:{row}": value for name, value in outputs.items()}
np.savez("outputs.npz", **results)
assert not {"openblip", "torch", "tensorflow"} & set(sys.modules), "plain LiteRT"
"""


def run_program(folder: Path, program: str, *arguments: str, **inputs: Any) -> Arrays:
    """The results of a program in a process and a folder of its own."""
    np.savez(folder / "inputs.npz", **inputs)
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "outputs.npz"))


@pytest.fixture(scope="module")
def served(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """The outputs of SavedModels by folder, name and number of images; one process loads TensorFlow once for all."""
    folder = tmp_path_factory.mktemp("served")
    export_saved_model(load(CAPTIONER), folder / "captioner", max_new_tokens=10)
    export_saved_model(load(CAPTIONER), folder / "prompted", max_new_tokens=8, min_new_tokens=4, prompt_ids=PROMPT)
    export_saved_model(load(ANSWERER), folder / "answerer", max_new_tokens=12)
    load(MATCHER).export(folder / "matcher")
    pairs = ("captioner:caption", "prompted:caption", "answerer:answer", "matcher:match", "matcher:compare")
    return run_program(folder, SERVE, *pairs, **INPUTS)


def assert_same_texts(served: Any, expected: Any) -> None:
    """Equal, but for padding on the right."""
    width = expected.shape[1]
    assert np.array_equal(served[:, :width], expected)
    assert not served[:, width:].any()


@needs_tensorflow
def test_captions_are_served(served: Arrays) -> None:
    expected = recorded(CAPTIONER)["greedy"]
    assert np.array_equal(served["captioner:sequences:3"], expected)
    assert np.array_equal(served["captioner:sequences:1"], expected[1:2])


@needs_tensorflow
def test_answers_are_served(served: Arrays, load: Load) -> None:
    expected = np.asarray(load(ANSWERER).generate(IDS, PIXELS, MASK, max_new_tokens=12))
    assert_same_texts(served["answerer:sequences:3"], expected)


@needs_tensorflow
def test_matches_are_served(served: Arrays, load: Load) -> None:
    score = np.asarray(load(MATCHER)(**INPUTS).itm_score)
    assert np.allclose(served["matcher:itm_score:3"], score, atol=1e-4)
    assert np.allclose(served["matcher:itm_score:1"], score[1:2], atol=1e-4)
    assert np.allclose(served["matcher:probability:3"], 1 / (1 + np.exp(score[:, 0] - score[:, 1])), atol=1e-4)
    similarity = load(MATCHER)(**INPUTS, use_itm_head=False).itm_score
    assert np.allclose(served["matcher:similarity:3"], similarity, atol=1e-4)


@needs_tensorflow
def test_a_prompt_and_a_minimum_length_are_part_of_the_graph(served: Arrays, load: Load) -> None:
    prompts = np.array([[*PROMPT, SEP]] * 3)
    expected = load(CAPTIONER).generate(PIXELS, prompts, max_new_tokens=8, min_new_tokens=4)
    assert_same_texts(served["prompted:sequences:3"], np.asarray(expected))


@needs_tensorflow
def test_a_phone_returns_the_same_tokens(load: Load, tmp_path: Path) -> None:
    """A greedy loop over the signatures, question and text padded to the room of the file."""
    export_litert(load(CAPTIONER), tmp_path / "captioner.tflite", max_tokens=ROOM)
    export_litert(load(CAPTIONER), tmp_path / "captioner8.tflite", max_tokens=ROOM, int8_weights=True)
    load(ANSWERER).export(tmp_path / "answerer.tflite", format="litert", max_tokens=ROOM)
    export_litert(load(MATCHER), tmp_path / "matcher.tflite", max_tokens=ROOM)
    padding = ((0, 0), (0, ROOM - IDS.shape[1]))
    texts = {name: np.pad(INPUTS[name], padding) for name in ("input_ids", "attention_mask")}
    found = run_program(tmp_path, DECODE, **INPUTS | texts, first=DEC, last=SEP, new=10)

    for file, name in (("captioner", CAPTIONER), ("answerer", ANSWERER)):
        for row, expected in enumerate(recorded(name)["greedy"]):
            tokens = found[f"{file}:{row}"]
            assert tokens.tolist() == expected[: len(tokens)].tolist()
            assert not expected[len(tokens) :].any()
    score = np.asarray(load(MATCHER)(**INPUTS).itm_score)
    similarity = np.asarray(load(MATCHER)(**INPUTS, use_itm_head=False).itm_score)
    for row in range(3):
        assert np.allclose(found[f"matcher:itm_score:{row}"], score[row], atol=1e-4)
        assert np.allclose(found[f"matcher:similarity:{row}"], similarity[row, row], atol=1e-4)
        exact, rough = found[f"captioner:{row}:logits"][0], found[f"captioner8:{row}:logits"][0]
        assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max(), "weights of 8 bits change logits a little"
    assert (tmp_path / "captioner8.tflite").stat().st_size < 0.6 * (tmp_path / "captioner.tflite").stat().st_size


def test_what_cannot_be_exported_is_an_error(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="format must be 'tf_saved_model' or 'litert', got 'onnx'"):
        load(CAPTIONER).export(tmp_path / "model", format="onnx")
    if keras.backend.backend() == "jax":
        for export in (export_saved_model, export_litert):
            with pytest.raises(InputError, match="exports need KERAS_BACKEND=tensorflow, got jax"):
                export(load(CAPTIONER), tmp_path / "model")
        return
    for export in (export_saved_model, export_litert):
        with pytest.raises(InputError, match="got TFBlipVisionModel"):
            export(load("BlipVisionModel"), tmp_path / "model")
    with pytest.raises(InputError, match="max_tokens must be between 1 and 48, got 49"):
        export_litert(load(CAPTIONER), tmp_path / "model", max_tokens=49)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(InputError, match="must be new or empty"):
        export_saved_model(load(CAPTIONER), tmp_path / "full")
    with pytest.raises(InputError, match="together at most 48, got 1 and 60"):
        export_saved_model(load(CAPTIONER), tmp_path / "model", max_new_tokens=60)
