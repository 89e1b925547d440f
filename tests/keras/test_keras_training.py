"""Training equals PyTorch's: loss and gradients of a step, losses of five steps of AdamW; and `fit` as users know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="the Keras classes have an environment of their own: make test-keras")

from openblip.errors import InputError  # noqa: E402
from tests.keras.cases import IDS, LEARNING_RATE, MASK, PIXELS, STEPS, TRAINING, WEIGHT_DECAY  # noqa: E402
from tests.keras.toys import load_toy, recorded, small_toy  # noqa: E402

Load = Callable[[str], Any]

BACKEND = keras.backend.backend()


def compute_gradients(model: Any, inputs: dict[str, Any]) -> tuple[float, list[Any]]:
    """The loss and its gradients, by the back end's own means."""
    if BACKEND == "jax":
        import jax

        def loss(values: list[Any]) -> Any:
            output, _ = model.stateless_call(values, [v.value for v in model.non_trainable_variables], inputs)
            return output.loss.mean()

        value, gradients = jax.jit(jax.value_and_grad(loss))([v.value for v in model.trainable_variables])
        return float(value), gradients
    import tensorflow as tf

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(inputs).loss)
        return loss, tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    value, gradients = step()
    return float(value), [tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("name", TRAINING)
def test_loss_and_gradients_equal_those_of_pytorch(name: str, load: Load) -> None:
    model, expected = load(name), recorded(name)
    loss, gradients = compute_gradients(model, TRAINING[name])
    assert abs(loss - float(expected["losses"][0])) < 1e-4
    by_variable = {id(v): np.asarray(g) for v, g in zip(model.trainable_variables, gradients, strict=True)}
    names = {key.removeprefix("gradient.") for key in expected if key.startswith("gradient.")}
    weights = model.hub_weights()
    assert names == weights.keys(), "every weight has a gradient"
    for key, weight in weights.items():
        gradient = by_variable[id(weight.variable)]
        gradient = (gradient.T if weight.transposed else gradient).reshape(weight.shape)
        assert np.abs(gradient - expected[f"gradient.{key}"]).max() < 1e-4, key


@pytest.mark.parametrize("name", TRAINING)
def test_five_steps_of_fit_equal_those_of_pytorch(name: str) -> None:
    """`fit` on one batch; the loss that an epoch reports is that before its step.

    PyTorch's epsilon of 1e-8 is added after the correction of the second moment, and Keras' before: it is the same as
    1e-8 * sqrt(1 - 0.999 ** step), which is 3e-10 to 7e-10 in the first five steps.
    """
    model = load_toy(name)
    model.compile(
        optimizer=keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=5e-10),
        jit_compile=BACKEND == "jax",
    )
    history = model.fit(TRAINING[name], epochs=STEPS + 1, batch_size=3, shuffle=False, verbose=0)
    assert np.abs(np.array(history.history["loss"]) - recorded(name)["losses"]).max() < 1e-3


def test_fit_takes_datasets_and_evaluate_reports_the_loss() -> None:
    model = small_toy("BlipForConditionalGeneration")
    inputs = TRAINING["BlipForConditionalGeneration"]
    first = float(np.mean(np.asarray(model(inputs).loss)))
    model.compile(optimizer="sgd", jit_compile=BACKEND == "jax")
    assert abs(model.evaluate(inputs, batch_size=3, verbose=0) - first) < 1e-4

    base: Any = keras.utils.PyDataset

    class Batches(base):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[dict[str, Any]]:
            return (inputs,)

    model.fit(Batches(), epochs=2, verbose=0)
    assert model.evaluate(inputs, batch_size=3, verbose=0) < first
    logits = model.predict({name: inputs[name] for name in ("pixel_values", "input_ids")}, batch_size=3, verbose=0)
    assert logits["logits"].shape == (3, 6, 120)


def test_labels_belong_to_the_inputs() -> None:
    inputs = dict(TRAINING["BlipForConditionalGeneration"])
    labels = inputs.pop("labels")
    for y, message in ((labels, "labels must be among the inputs"), (None, "must be given labels")):
        model = small_toy("BlipForConditionalGeneration")  # with JAX, Keras loses the weights if a step fails
        model.compile(optimizer="sgd", run_eagerly=BACKEND == "tensorflow")
        with pytest.raises(InputError, match=message):
            model.fit(inputs, y, verbose=0)


def test_the_two_towers_are_trained_by_their_loss() -> None:
    model = small_toy("BlipModel")
    inputs = {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": MASK}
    before = float(np.asarray(model(inputs, return_loss=True).loss)[0])

    base: Any = type(model)

    class Trained(base):
        """As `return_loss` cannot be an array, a subclass sets it."""

        def call(self, input_ids: Any, pixel_values: Any, attention_mask: Any, training: Any = None) -> Any:
            return base.call(self, input_ids, pixel_values, attention_mask, return_loss=True, training=training)

    trained = Trained(model.config)
    for weight, other in zip(trained.variables, model.variables, strict=True):
        weight.assign(other)
    trained.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=BACKEND == "jax")
    trained.fit(inputs, epochs=4, batch_size=3, verbose=0)
    assert float(np.asarray(trained(inputs).loss)[0]) < before


def test_dropout_acts_in_training_only() -> None:
    from openblip.keras import TFBlipTextModel

    model = load_toy("BlipTextModel")
    config = model.config.from_dict({**model.config.to_dict(), "hidden_dropout_prob": 0.5})
    noisy = TFBlipTextModel(config)
    for name, weight in noisy.hub_weights().items():
        weight.assign(model.hub_weights()[name].to_file())
    calm = np.asarray(noisy(input_ids=IDS).last_hidden_state)
    assert np.allclose(calm, np.asarray(model(input_ids=IDS).last_hidden_state), atol=1e-5)
    loud = [np.asarray(noisy(input_ids=IDS, training=True).last_hidden_state) for _ in range(2)]
    assert not np.allclose(loud[0], loud[1], atol=1e-3)
