"""Models for other programs: SavedModel for servers of TensorFlow, LiteRT for phones. Both need TensorFlow's back end.

Shapes: B images, S side of an image, T tokens, P prompt tokens, L tokens of a text, V vocabulary, N layers, H heads,
M memory tokens, K width of a head.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openblip.compat.transformers_api.files import StrPath
from openblip.errors import InputError
from openblip.io import atomic
from openblip.keras.answering import TFBlipForQuestionAnswering
from openblip.keras.backend import BACKEND, Tensor, keras, ops
from openblip.keras.base import TFBlipPreTrainedModel
from openblip.keras.captioning import TFBlipForConditionalGeneration
from openblip.keras.generation import GeneratingModel
from openblip.keras.matching import TFBlipForImageTextRetrieval
from openblip.keras.text import Cache, Memory


def export_saved_model(
    model: TFBlipPreTrainedModel,
    folder: StrPath,
    *,
    max_new_tokens: int = 20,
    min_new_tokens: int = 0,
    prompt_ids: Sequence[int] | None = None,
) -> Path:
    """Write a SavedModel, which TensorFlow serves without OpenBLIP and without Keras.

    | Model | Signature | Inputs | Outputs |
    |---|---|---|---|
    | captioner | `caption` | `pixel_values` (B, 3, S, S) | `sequences` (B, P + `max_new_tokens`) |
    | VQA | `answer` | `pixel_values`, `input_ids` (B, T), `attention_mask` (B, T) | `sequences` |
    | retrieval | `match` | as VQA | `itm_score` (B, 2), `probability` (B,) |
    | retrieval | `compare` | as VQA | `similarity` (images, texts) |

    Texts are decoded greedily in the graph. They start with the prompt, and are padded with [PAD] after [SEP].

    Args:
        model: A captioner, a VQA model or a retrieval model.
        folder: The folder to write.
        max_new_tokens: Maximum number of new tokens, [SEP] included.
        min_new_tokens: Minimum number of new tokens before [SEP].
        prompt_ids: Token ids that every text starts with; [DEC] by default.

    Returns:
        The folder.

    Raises:
        InputError: The back end is not TensorFlow, the model has no such signature, a text would be too long, or the
            folder has files.
    """
    tf, target = _tensorflow(), Path(folder)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"the folder of a SavedModel must be new or empty, got {target}")
    archive = keras.export.ExportArchive()
    archive.track(model)
    size = model.config.vision_config.image_size if hasattr(model.config, "vision_config") else None
    pixels = tf.TensorSpec((None, 3, size, size), tf.float32, name="pixel_values")
    ids = tf.TensorSpec((None, None), tf.int32, name="input_ids")
    mask = tf.TensorSpec((None, None), tf.int32, name="attention_mask")
    if isinstance(model, GeneratingModel):
        decode = _greedy(model, max_new_tokens, min_new_tokens, prompt_ids)
    if isinstance(model, TFBlipForConditionalGeneration):
        captioner = model
        archive.add_endpoint("caption", lambda pixel_values: decode(captioner.encode(pixel_values)), [pixels])
    elif isinstance(model, TFBlipForQuestionAnswering):
        answerer = model

        def answer(pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return decode(answerer.encode(pixel_values, input_ids, attention_mask))

        archive.add_endpoint("answer", answer, [pixels, ids, mask])
    elif isinstance(model, TFBlipForImageTextRetrieval):
        archive.add_endpoint("match", _matcher(model), [pixels, ids, mask])
        archive.add_endpoint("compare", _comparer(model), [pixels, ids, mask])
    else:
        raise InputError(
            f"a SavedModel needs a captioner, a VQA model or a retrieval model, got {type(model).__name__}"
        )
    with atomic.replace_folder(target) as temporary:
        archive.write_out(str(temporary), verbose=False)
    return target


def export_litert(model: GeneratingModel, path: StrPath, *, max_tokens: int = 24, quantize: bool = False) -> Path:
    """Write a LiteRT file (`.tflite`) with two signatures, for one image at a time.

    | Signature | Inputs | Outputs |
    |---|---|---|
    | `encode` | `pixel_values` (1, 3, S, S); VQA also `input_ids` and `attention_mask` (1, `max_tokens`) | `memory` (2 N, 1, H, M, K), `memory_bias` (1, 1, 1, M) |
    | `step` | `ids` (1, 1), `slot` (1,), `memory`, `memory_bias`, `cache` (2 N, 1, H, `max_tokens`, K) | `logits` (1, V), `cache` |

    Start with a cache of zeros; call `step` for each token, [DEC] and the prompt included, with the number of the token
    as `slot`; the best of the last logits is the next token.

    Args:
        model: A captioner or a VQA model.
        path: The file to write.
        max_tokens: Maximum number of tokens of a text, [DEC] and the prompt included, and of a question.
        quantize: Store the weights of matrices in 8 bits.

    Returns:
        The file.

    Raises:
        InputError: The back end is not TensorFlow, or the model does not generate text.
    """  # noqa: E501
    tf = _tensorflow()
    if not isinstance(model, GeneratingModel):
        raise InputError(f"LiteRT needs a captioner or a VQA model, got {type(model).__name__}")
    text, vision = model.config.text_config, model.config.vision_config
    heads, width = text.num_attention_heads, text.hidden_size // text.num_attention_heads
    tokens = tf.TensorSpec((1, max_tokens), tf.int32)
    inputs = [tf.TensorSpec((1, 3, vision.image_size, vision.image_size), tf.float32, name="pixel_values")]
    length = (vision.image_size // vision.patch_size) ** 2 + 1
    if isinstance(model, TFBlipForQuestionAnswering):
        length = max_tokens
        inputs += [tf.TensorSpec(tokens.shape, tf.int32, name=name) for name in ("input_ids", "attention_mask")]
    layers = 2 * text.num_hidden_layers
    steps = [
        tf.TensorSpec((1, 1), tf.int32, name="ids"),
        tf.TensorSpec((1,), tf.int32, name="slot"),
        tf.TensorSpec((layers, 1, heads, length, width), tf.float32, name="memory"),
        tf.TensorSpec((1, 1, 1, length), tf.float32, name="memory_bias"),
        tf.TensorSpec((layers, 1, heads, max_tokens, width), tf.float32, name="cache"),
    ]

    def encode(**values: Tensor) -> dict[str, Tensor]:
        if isinstance(model, TFBlipForQuestionAnswering):
            memory = model.encode(**values, hide_padding=True)  # questions are padded to one length
        else:
            memory = model.encode(**values)
        bias = ops.zeros((1, 1, 1, length)) if memory.bias is None else memory.bias
        return {"memory": _stack(memory.layers), "memory_bias": bias}

    def step(ids: Tensor, slot: Tensor, memory: Tensor, memory_bias: Tensor, cache: Tensor) -> dict[str, Tensor]:
        number = ops.reshape(slot, ())
        visible = ops.cast(ops.arange(max_tokens, dtype="int32")[None] <= number, "int32")
        states = Memory(_unstack(memory, layers), memory_bias)
        positions, sources = ops.reshape(slot, (1, 1)), ops.zeros((1,), dtype="int32")
        logits, new = model.advance(ids, positions, visible, number, sources, states, _unstack(cache, layers))
        return {"logits": logits, "cache": _stack(new)}

    module = tf.Module()
    module.model = model
    signatures = {
        "encode": tf.function(encode).get_concrete_function(**{spec.name: spec for spec in inputs}),
        "step": tf.function(step).get_concrete_function(**{spec.name: spec for spec in steps}),
    }
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        content = converter.convert()
    with atomic.replace_path(Path(path)) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _tensorflow() -> Any:
    if BACKEND != "tensorflow":
        raise InputError(f"exports need KERAS_BACKEND=tensorflow, got {BACKEND}: save the model, and load it there")
    import tensorflow as tf

    return tf


def _greedy(
    model: GeneratingModel, max_new_tokens: int, min_new_tokens: int, prompt_ids: Sequence[int] | None
) -> Callable[[Memory], dict[str, Tensor]]:
    """Return a function that decodes greedily in the graph."""
    text = model.config.text_config
    prompt = [text.bos_token_id] if prompt_ids is None else list(prompt_ids)
    room = len(prompt) + max_new_tokens
    limit = text.max_position_embeddings
    if not prompt or max_new_tokens < 1 or room > limit:
        raise InputError(
            f"the prompt and max_new_tokens must be at least 1 and together at most {limit}, got {len(prompt)} and "
            f"{max_new_tokens}"
        )
    slots = ops.arange(room, dtype="int32")[None]

    def choose(logits: Tensor, new: Tensor, ended: Tensor) -> Tensor:
        is_sep = ops.equal(ops.arange(text.vocab_size, dtype="int32"), text.sep_token_id)[None]
        too_early = ops.logical_and(is_sep, new < min_new_tokens)
        best = ops.cast(ops.argmax(ops.where(too_early, -float("inf"), logits), axis=-1), "int32")
        return ops.where(ended, text.pad_token_id, best)

    def decode(memory: Memory) -> dict[str, Tensor]:
        rows = ops.shape(memory.layers[0][0])[0]
        ids = ops.broadcast_to(ops.convert_to_tensor([prompt], dtype="int32"), (rows, len(prompt)))
        positions = ops.broadcast_to(ops.arange(len(prompt), dtype="int32")[None], (rows, len(prompt)))
        visible = ops.cast(ops.broadcast_to(slots < len(prompt), (rows, room)), "int32")
        logits, cache = model.prefill(ids, positions, visible, memory)
        sequences = ops.pad(ids, ((0, 0), (0, max_new_tokens)), constant_values=text.pad_token_id)
        sources = ops.arange(rows, dtype="int32")

        def condition(new: Tensor, sequences: Tensor, ended: Tensor, logits: Tensor, *cache: Tensor) -> Tensor:
            return ops.logical_and(new < max_new_tokens, ops.logical_not(ops.all(ended)))

        def body(new: Tensor, sequences: Tensor, ended: Tensor, logits: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
            chosen = choose(logits, new, ended)
            slot = len(prompt) + new
            sequences = ops.where(ops.equal(slots, slot), chosen[:, None], sequences)
            ended = ops.logical_or(ended, ops.equal(chosen, text.sep_token_id))
            positions = ops.broadcast_to(ops.reshape(slot, (1, 1)), (rows, 1))
            visible = ops.cast(ops.broadcast_to(slots <= slot, (rows, room)), "int32")
            logits, updated = model.advance(chosen[:, None], positions, visible, slot, sources, memory, _pairs(cache))
            return new + 1, sequences, ended, logits, *(values for pair in updated for values in pair)

        start = (
            ops.zeros((), dtype="int32"),
            sequences,
            ops.zeros((rows,), dtype="bool"),
            logits,
            *(values for pair in cache for values in pair),
        )
        return {"sequences": ops.while_loop(condition, body, start)[1]}

    return decode


def _matcher(model: TFBlipForImageTextRetrieval) -> Callable[..., dict[str, Tensor]]:
    def match(pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        score = model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask).itm_score
        return {"itm_score": score, "probability": ops.softmax(score, axis=-1)[:, 1]}

    return match


def _comparer(model: TFBlipForImageTextRetrieval) -> Callable[..., dict[str, Tensor]]:
    def compare(pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        output = model(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, use_itm_head=False
        )
        return {"similarity": output.itm_score}

    return compare


def _pairs(values: Sequence[Tensor]) -> Cache:
    """Return keys and values of layers as pairs."""
    return tuple((values[index], values[index + 1]) for index in range(0, len(values), 2))


def _stack(layers: Cache) -> Tensor:
    """Return keys and values of all layers as one tensor (2 N, B, H, L, K)."""
    return ops.stack([values for pair in layers for values in pair])


def _unstack(stacked: Tensor, count: int) -> Cache:
    """Return the layers of a tensor that `_stack` made."""
    return _pairs([stacked[index] for index in range(count)])
