"""LiteRT files (formerly TensorFlow Lite), for phones. Writing one needs TensorFlow's back end.

Shapes: S side of an image, T tokens, V vocabulary, H heads, M memory tokens, K width of a head.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from openblip.compat.transformers_api.files import StrPath
from openblip.errors import InputError
from openblip.io import atomic
from openblip.keras.answering import TFBlipForQuestionAnswering
from openblip.keras.backend import Tensor, keras, ops
from openblip.keras.base import TFBlipPreTrainedModel
from openblip.keras.captioning import TFBlipForConditionalGeneration
from openblip.keras.export import comparer, import_tensorflow, matcher
from openblip.keras.generation import GeneratingModel
from openblip.keras.matching import TFBlipForImageTextRetrieval
from openblip.keras.text import Cache, Memory

_CROSS, _SELF, _BIAS = "cross", "self", "cross_bias"
Function = Callable[..., dict[str, Tensor]]


def export_litert(
    model: TFBlipPreTrainedModel, path: StrPath, *, max_tokens: int = 24, int8_weights: bool = False
) -> Path:
    """Write a LiteRT file for one image at a time. The interpreter on a phone needs its built-in operations only.

    | Model | Signature | Inputs | Outputs |
    |---|---|---|---|
    | captioner | `encode` | `pixel_values` (1, 3, S, S) | the state of a text |
    | VQA | `encode` | `pixel_values`, `input_ids` (1, T), `attention_mask` (1, T) | the state of a text |
    | both | `step` | `input_ids` (1, 1), `position` (1,), the state | `logits` (1, V), the changed state |
    | retrieval | `match` | as `encode` of VQA | `itm_score` (1, 2), `probability` (1,) |
    | retrieval | `compare` | as `encode` of VQA | `similarity` (1, 1) |

    The state of a text is a set of tensors with the same names in all signatures: keys and values of the image or
    question (`cross_keys_0`, ...), and those of the tokens so far (`self_keys_0`, ...). To decode, call `step` for each
    token of the prompt, and then for each new token, with the number of the token as its position. The prompt is [DEC]
    unless the text has to start with certain words.

    Args:
        model: A captioner, a VQA model or a retrieval model.
        path: The file to write.
        max_tokens: Maximum number of tokens T of a text, prompt included, and of a question, which is padded to it.
        int8_weights: Store the weights of matrices in 8 bits, a quarter of the size.

    Returns:
        The file.

    Raises:
        InputError: The back end is not TensorFlow, the model has no such signature, or `max_tokens` is too large.
    """
    tf = import_tensorflow()
    limit = model.config.text_config.max_position_embeddings if hasattr(model.config, "text_config") else 0
    if isinstance(model, GeneratingModel):
        functions = {"encode": _encoder(model, max_tokens), "step": _stepper(model, max_tokens)}
    elif isinstance(model, TFBlipForImageTextRetrieval):
        functions = {"match": matcher(model), "compare": comparer(model)}
    else:
        raise InputError(f"LiteRT needs a captioner, a VQA model or a retrieval model, got {type(model).__name__}")
    if not 1 <= max_tokens <= limit:
        raise InputError(f"max_tokens must be between 1 and {limit}, got {max_tokens}")

    size = model.config.vision_config.image_size
    inputs = {"pixel_values": tf.TensorSpec((1, 3, size, size), tf.float32, name="pixel_values")}
    if not isinstance(model, TFBlipForConditionalGeneration):
        for name in ("input_ids", "attention_mask"):
            inputs[name] = tf.TensorSpec((1, max_tokens), tf.int32, name=name)
    weights = {id(variable): ops.convert_to_numpy(variable) for variable in model.variables}
    signatures: dict[str, Any] = {}
    for name, function in functions.items():
        specs = inputs
        if name == "step":
            state = signatures["encode"].structured_outputs
            specs = {key: tf.TensorSpec(tensor.shape, tensor.dtype, name=key) for key, tensor in state.items()}
            specs["input_ids"] = tf.TensorSpec((1, 1), tf.int32, name="input_ids")
            specs["position"] = tf.TensorSpec((1,), tf.int32, name="position")
        signatures[name] = tf.function(_freeze(function, weights)).get_concrete_function(**specs)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        if int8_weights:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        content: bytes = converter.convert()
    with atomic.replace_path(Path(path)) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _encoder(model: GeneratingModel, max_tokens: int) -> Function:
    """Return the function of the signature `encode`: the memory of an image or a question, and an empty cache."""
    text = model.config.text_config
    shape = (1, text.num_attention_heads, max_tokens, text.hidden_size // text.num_attention_heads)
    empty = tuple((ops.zeros(shape), ops.zeros(shape)) for _ in range(text.num_hidden_layers))

    def encode(**inputs: Tensor) -> dict[str, Tensor]:
        if isinstance(model, TFBlipForQuestionAnswering):
            memory = model.encode(**inputs, hide_padding=True)  # questions are padded to one length
            return {**_name(_CROSS, memory.layers), **_name(_SELF, empty), _BIAS: memory.bias}
        return {**_name(_CROSS, model.encode(**inputs).layers), **_name(_SELF, empty)}

    return encode


def _stepper(model: GeneratingModel, max_tokens: int) -> Function:
    """Return the function of the signature `step`: logits after a token, and the cache with it."""

    def step(input_ids: Tensor, position: Tensor, **state: Tensor) -> dict[str, Tensor]:
        slot = ops.reshape(position, ())
        visible = ops.cast(ops.arange(max_tokens, dtype="int32")[None] <= slot, "int32")
        memory = Memory(_collect(_CROSS, state), state.get(_BIAS))
        decoder = model.text_decoder.bert.model
        states, cache = decoder.step(
            input_ids, ops.reshape(position, (1, 1)), visible, slot, memory, _collect(_SELF, state)
        )
        return {"logits": model.text_decoder.logits(states)[:, 0], **_name(_SELF, cache)}

    return step


def _freeze(function: Function, weights: Mapping[int, Any]) -> Function:
    """Return the function with constants instead of variables, which LiteRT would lose."""

    def frozen(**inputs: Tensor) -> dict[str, Tensor]:
        with _Constants(weights):
            return function(**inputs)

    return frozen


class _Constants(keras.StatelessScope):  # type: ignore[misc]  # Keras has no types
    """A scope in which variables are constants of the graph, added when they are first used.

    Args:
        weights: Values by the identity of a variable.
    """

    def __init__(self, weights: Mapping[int, Any]) -> None:
        super().__init__()
        self._weights = weights

    def get_current_value(self, variable: Any) -> Tensor:
        if id(variable) not in self.state_mapping:
            self.state_mapping[id(variable)] = ops.convert_to_tensor(self._weights[id(variable)])
        return self.state_mapping[id(variable)]


def _name(prefix: str, layers: Cache) -> dict[str, Tensor]:
    """Return the keys and values of all layers by name."""
    named: dict[str, Any] = {}
    for number, (keys, values) in enumerate(layers):
        named |= {f"{prefix}_keys_{number}": keys, f"{prefix}_values_{number}": values}
    return named


def _collect(prefix: str, named: dict[str, Tensor]) -> Cache:
    """Return the layers that `_name` named."""
    count = sum(name.startswith(f"{prefix}_keys_") for name in named)
    return tuple((named[f"{prefix}_keys_{number}"], named[f"{prefix}_values_{number}"]) for number in range(count))
