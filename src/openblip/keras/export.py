"""Models for other programs: SavedModel, for servers of TensorFlow. It needs TensorFlow's back end.

Shapes: B images, S side of an image, T tokens, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from openblip.compat.transformers_api.files import StrPath
from openblip.errors import InputError
from openblip.io import atomic
from openblip.keras.answering import TFBlipForQuestionAnswering
from openblip.keras.backend import BACKEND, Tensor, keras, ops
from openblip.keras.base import TFBlipPreTrainedModel
from openblip.keras.captioning import TFBlipForConditionalGeneration
from openblip.keras.generation import GeneratingModel
from openblip.keras.matching import TFBlipForImageTextRetrieval
from openblip.keras.text import Memory


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
    tf, target = import_tensorflow(), Path(folder)
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
        archive.add_endpoint("match", matcher(model), [pixels, ids, mask])
        archive.add_endpoint("compare", comparer(model), [pixels, ids, mask])
    else:
        raise InputError(
            f"a SavedModel needs a captioner, a VQA model or a retrieval model, got {type(model).__name__}"
        )
    with atomic.replace_folder(target) as temporary:
        archive.write_out(str(temporary), verbose=False)
    return target


def import_tensorflow() -> ModuleType:
    """Return the module `tensorflow`, which exports need.

    Returns:
        The module.

    Raises:
        InputError: The back end is not TensorFlow.
    """
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
            pairs = tuple(zip(cache[::2], cache[1::2], strict=True))
            logits, updated = model.advance(chosen[:, None], positions, visible, slot, sources, memory, pairs)
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


def matcher(model: TFBlipForImageTextRetrieval) -> Callable[..., dict[str, Tensor]]:
    """Return the function of the signature `match`.

    Args:
        model: The model.

    Returns:
        A function of pixels, token ids and their mask.
    """

    def match(pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        score = model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask).itm_score
        return {"itm_score": score, "probability": ops.softmax(score, axis=-1)[:, 1]}

    return match


def comparer(model: TFBlipForImageTextRetrieval) -> Callable[..., dict[str, Tensor]]:
    """Return the function of the signature `compare`.

    Args:
        model: The model.

    Returns:
        A function of pixels, token ids and their mask.
    """

    def compare(pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        output = model(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, use_itm_head=False
        )
        return {"similarity": output.itm_score}

    return compare
