"""The six classes return what the classes of PyTorch return, whatever the form of their inputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="the Keras classes have an environment of their own: make test-keras")

import openblip  # noqa: E402
from openblip.errors import InputError  # noqa: E402
from tests.keras.cases import CALLS, IDS, MASK, PIXELS, Case  # noqa: E402
from tests.keras.toys import assert_equal, expect, flatten, run  # noqa: E402

Load = Callable[[str], Any]


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.id)
def test_outputs_equal_those_of_pytorch(case: Case, load: Load) -> None:
    expected = expect(case)
    assert expected, "the case is recorded"
    assert_equal(run(load(case.model), case), expected)


@pytest.mark.parametrize("name", ["BlipModel", "BlipForConditionalGeneration", "BlipForImageTextRetrieval"])
def test_results_do_not_depend_on_the_batch(name: str, load: Load) -> None:
    model = load(name)
    together = model(input_ids=IDS, pixel_values=PIXELS, attention_mask=MASK)
    for row, length in enumerate(MASK.sum(1)):
        alone = model(
            input_ids=IDS[row : row + 1, :length],
            pixel_values=PIXELS[row : row + 1],
            attention_mask=MASK[row : row + 1, :length],
        )
        if name == "BlipModel":
            assert np.allclose(together.text_embeds[row], alone.text_embeds[0], atol=1e-5)
            assert np.allclose(together.image_embeds[row], alone.image_embeds[0], atol=1e-5)
        elif name == "BlipForConditionalGeneration":
            assert np.allclose(together.logits[row, :length], alone.logits[0], atol=1e-4)
        else:
            assert np.allclose(together.itm_score[row], alone.itm_score[0], atol=1e-5)


def test_inputs_are_keywords_a_dictionary_or_a_tuple(load: Load) -> None:
    model = load("BlipForConditionalGeneration")
    by_name = model(pixel_values=PIXELS, input_ids=IDS, attention_mask=MASK).logits
    inputs = {"pixel_values": PIXELS, "input_ids": IDS, "attention_mask": MASK}
    tensors = {name: keras.ops.convert_to_tensor(value) for name, value in inputs.items()}
    for output in (
        model(inputs),
        model(tensors),
        model({"pixel_values": PIXELS}, input_ids=IDS.tolist(), attention_mask=MASK.tolist()),
        model((PIXELS, IDS, MASK)),
        model([PIXELS, IDS, MASK]),
        model(PIXELS, IDS, MASK),
        model(PIXELS, IDS.tolist(), attention_mask=MASK),
    ):
        assert np.allclose(output.logits, by_name, atol=1e-6)


def test_wrong_inputs_are_errors(load: Load) -> None:
    model = load("BlipForConditionalGeneration")
    with pytest.raises(TypeError, match="no input pixels; it has pixel_values, input_ids"):
        model(pixels=PIXELS)
    with pytest.raises(TypeError, match="got pixel_values twice"):
        model({"pixel_values": PIXELS}, pixel_values=PIXELS)
    with pytest.raises(InputError, match=r"\(images, 3, 32, 32\), channels first, got \(3, 32, 32, 3\)"):
        model(pixel_values=PIXELS.transpose(0, 2, 3, 1), input_ids=IDS)
    with pytest.raises(InputError, match="row 1 is only padding"):
        model(pixel_values=PIXELS, input_ids=IDS, attention_mask=MASK * [[1], [0], [1]])
    with pytest.raises(InputError, match="2 texts must match 3 images"):
        model(pixel_values=PIXELS, input_ids=IDS[:2])
    with pytest.raises(InputError, match="labels or decoder_input_ids must be given"):
        load("BlipForQuestionAnswering")(input_ids=IDS, pixel_values=PIXELS)
    with pytest.raises(InputError, match="pixel_values must be given"):
        load("BlipModel")(input_ids=IDS)
    with pytest.raises(InputError, match="either input_ids or inputs_embeds"):
        load("BlipTextModel")(attention_mask=MASK)


def test_outputs_have_names_and_indices(load: Load) -> None:
    model = load("BlipForImageTextRetrieval")
    output = model(input_ids=IDS, pixel_values=PIXELS)
    assert output.keys() == ("itm_score", "last_hidden_state", "question_embeds")
    plain = model(input_ids=IDS, pixel_values=PIXELS, return_dict=False)
    assert isinstance(plain, tuple)
    assert np.allclose(plain[0], output["itm_score"])
    assert np.allclose(plain[2], output.question_embeds)
    model = load("BlipForConditionalGeneration")
    plain = model(PIXELS, IDS, labels=IDS, return_dict=False)
    assert [tuple(value.shape) for value in plain] == [(1,), (3, 6, 120), (3, 5, 48), (3, 5, 48)]


def test_a_decoder_continues_from_its_cache(load: Load) -> None:
    model = load("BlipTextModel")
    states = np.ones((3, 4, 32), np.float32)
    options: dict[str, Any] = {"is_decoder": True, "encoder_hidden_states": states}
    whole = model(input_ids=IDS, attention_mask=MASK, **options)
    first = model(input_ids=IDS[:, :3], attention_mask=MASK[:, :3], use_cache=True, **options)
    rest = model(input_ids=IDS[:, 3:], attention_mask=MASK, past_key_values=first.past_key_values, **options)
    assert np.allclose(rest.last_hidden_state, whole.last_hidden_state[:, 3:], atol=1e-5)
    assert len(rest.past_key_values) == 2
    assert rest.past_key_values[0][0].shape[2] == 6


def test_word_embeddings_replace_ids(load: Load) -> None:
    model = load("BlipTextModel")
    words = model.model.embeddings.word(IDS)
    by_ids, by_words = model(input_ids=IDS), model(inputs_embeds=words)
    assert np.allclose(by_ids.last_hidden_state, by_words.last_hidden_state, atol=1e-6)
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert np.allclose(model(encoder_embeds=states[0]).last_hidden_state, by_ids.last_hidden_state, atol=1e-6)


def test_models_can_be_traced(load: Load) -> None:
    """The whole model in one compiled function, with its output object."""
    model = load("BlipForConditionalGeneration")
    inputs = {"pixel_values": PIXELS, "input_ids": IDS.astype(np.int32), "attention_mask": MASK.astype(np.int32)}
    expected = flatten("", model(inputs))
    if keras.backend.backend() == "jax":
        import jax

        output = jax.jit(lambda values: model(values))(inputs)
    else:
        import tensorflow as tf

        output = tf.function(lambda values: model(values))(inputs)
    assert_equal(flatten("", output), expected)


def test_the_names_of_the_package_are_lazy() -> None:
    program = (
        "import sys, openblip; names = {'keras', 'tensorflow', 'jax', 'torch'}; assert not names & set(sys.modules);"
        "from openblip import TFBlipModel, TFBlipPreTrainedModel as Base; assert issubclass(TFBlipModel, Base);"
        "import openblip.keras; assert TFBlipModel is openblip.keras.TFBlipModel; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_every_class_is_a_name_of_the_package() -> None:
    for name in openblip.keras.__all__:
        assert getattr(openblip, name, None) is getattr(openblip.keras, name) or not name.startswith("TF")
