"""The graphs of an export: the computations of a model, without decoding.

Each graph is a module that uses modules of the model, with example inputs and the names of all axes. The example sizes
are distinct and neither 0 nor 1, because the exporter merges axes of equal size, and fixes sizes of 0 and 1.

Shapes: I images (or questions, or expressions), W rows of each, T tokens, P past tokens, M memory tokens, D width, L
layers, H heads, K = D // H, V vocabulary, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.engine.parts import to_memory
from openblip.errors import UnsupportedTaskError
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.comparer import Comparer
from openblip.model.config import TextConfig
from openblip.model.grounder import Grounder
from openblip.model.layers import hiding_bias, padding_bias
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.model.stem import EfficientNetLite
from openblip.model.text import KeysValues, LanguageHead, Memory, TextTransformer
from openblip.model.vision import VisionTransformer
from openblip.tasks import TaskName

IMAGES, WIDTH, TEXTS, TOKENS, PAST = 3, 2, 2, 5, 7  # example sizes
NEW_TOKENS = 3
Axis = str | int
"""Name of an axis of any size, or the size of a fixed axis."""


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        axes: Names of the axes, or sizes of the axes that the model fixes.
        integer: Whether the type is int64 instead of float32.
    """

    name: str
    axes: tuple[Axis, ...]
    integer: bool = False


@dataclass(frozen=True)
class Graph:
    """A graph to export.

    Attributes:
        role: Its role in the task, as in the manifest.
        module: The computation.
        inputs: Its inputs, in the order of the arguments of `module`.
        outputs: Its outputs.
        example: Example inputs.
    """

    role: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    example: tuple[Tensor, ...]


class Stem(nn.Module):
    """Pixels (I, 3, S, S) to the feature map (I, C, G, G) of a hybrid ViT."""

    def __init__(self, stem: EfficientNetLite) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the feature map."""
        return self.stem(pixels)


class ImageEncoder(nn.Module):
    """Pixels (I, 3, S, S), or the feature map (I, C, G, G) of a hybrid ViT, to image states (I, M, D)."""

    def __init__(self, vision: VisionTransformer) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = vision.cls_token, vision.pos_embed
        self.patch_embed, self.blocks, self.norm = vision.patch_embed, vision.blocks, vision.norm

    def forward(self, image: Tensor) -> Tensor:
        """Return image states."""
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)  # (I, M - 1, D)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ImageMemory(nn.Module):
    """Image states (I, M, D) to the cross-attention keys and values of all layers, each (I, H, M, K)."""

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values, layer after layer."""
        return _flatten(self.text.project(states))


class PairMemory(nn.Module):
    """States of two images, each (I, M, D), to the keys and values of both in all layers."""

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        """Return the keys and values of the left image and of the right image, layer after layer."""
        return _flatten(self.text.project((left, right)))


class Match(nn.Module):
    """Texts (I, W, T) about images to the logits (I, W, 2) of image-text matching."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.text, self.head = model.text, model.itm_head

    def forward(self, ids: Tensor, mask: Tensor, *memory: Tensor) -> Tensor:
        """Return logits; column 1 is "match"."""
        states = _encode(self.text, ids, mask, to_memory(memory))
        return _split_rows(self.head(states[:, 0]), ids)


class Compare(nn.Module):
    """Statements (I, W, T) about pairs of images to logits (I, W, classes)."""

    def __init__(self, model: Comparer) -> None:
        super().__init__()
        self.text, self.head = model.text, model.head

    def forward(self, ids: Tensor, mask: Tensor, *memory: Tensor) -> Tensor:
        """Return logits; class 1 is "true"."""
        pairs = [((a, b), (c, d)) for a, b, c, d in zip(*(memory[i::4] for i in range(4)), strict=True)]
        states = _encode(self.text, ids, mask, Memory(tuple(pairs), None))
        return _split_rows(self.head(states[:, 0]), ids)


class TextEmbedding(nn.Module):
    """Texts (W, T) to L2-normalized embeddings (W, E)."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.text, self.proj = model.text, model.text_proj

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings."""
        states = self.text.run(_embed(self.text, ids, 0), padding_bias(mask, torch.float32), None, None)
        return nn.functional.normalize(self.proj(states[:, 0]), dim=-1)


class ImageEmbedding(nn.Module):
    """Image states (I, M, D) to L2-normalized embeddings (I, E)."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.proj = model.vision_proj

    def forward(self, states: Tensor) -> Tensor:
        """Return embeddings."""
        return nn.functional.normalize(self.proj(states[:, 0]), dim=-1)


class QuestionEncoder(nn.Module):
    """Questions (I, W, T) about images to the keys and values (I, W, H, T, K) that the answer decoder attends to."""

    def __init__(self, model: Answerer) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(self, ids: Tensor, mask: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values, layer after layer."""
        states = _encode(self.encoder, ids, mask, to_memory(memory))
        return tuple(_split_rows(tensor, ids) for tensor in _flatten(self.decoder.project(states)))


class ExpressionEncoder(nn.Module):
    """Expressions (I, W, T) about images to the keys and values (I, W, H, M + T, K) that the box decoder attends to."""

    def __init__(self, model: Grounder) -> None:
        super().__init__()
        self.text, self.fusion, self.decoder = model.text, model.fusion, model.decoder

    def forward(self, ids: Tensor, mask: Tensor, states: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values, layer after layer, and their mask (I, W, M + T)."""
        bias = padding_bias(mask.flatten(0, 1), torch.float32)
        x = self.text.run(_embed(self.text, ids.flatten(0, 1), 0), bias, None, None)
        fused = self.fusion.run(x, bias, to_memory(memory), None)  # (I * W, T, D)
        images, texts, _ = ids.shape
        joined = []
        for image, text in zip(
            _flatten(self.decoder.project(states)), _flatten(self.decoder.project(fused)), strict=True
        ):
            repeated = image[:, None].expand(-1, texts, -1, -1, -1)  # (I, W, H, M, K)
            joined.append(torch.cat([repeated, _split_rows(text, ids)], 3))
        visible = torch.ones(images, texts, states.shape[1], dtype=torch.int64)
        return *joined, torch.cat([visible, mask], 2)


class DecoderStep(nn.Module):
    """The next tokens (I, W, T) of all rows to the logits (I, W, V) after the last one, and the extended caches.

    Args:
        text: Text transformer to decode with.
        head: Its language head.
        padded: Whether the memory has a mask.
    """

    def __init__(self, text: TextTransformer, head: LanguageHead, *, padded: bool) -> None:
        super().__init__()
        self.text, self.head, self.padded = text, head, padded

    def forward(
        self, ids: Tensor, past_keys: Tensor, past_values: Tensor, *memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode the tokens that follow P past tokens.

        Args:
            ids: Next tokens (I, W, T).
            past_keys: Self-attention keys of the past tokens (L, I, W, H, P, K).
            past_values: Their values.
            memory: The mask (I, M) of the memory if it is padded, then its keys and values, layer after layer.

        Returns:
            Logits; keys and values (L, I, W, H, P + T, K) of all tokens.
        """
        mask, layers = (memory[0], memory[1:]) if self.padded else (None, memory)
        past, new = past_keys.shape[4], ids.shape[2]
        hidden = torch.arange(past + new) > torch.arange(past, past + new)[:, None]
        bias = hiding_bias(hidden[None, None], torch.float32)  # (1, 1, T, P + T)
        cache = _GrowingCache(past_keys.flatten(1, 2), past_values.flatten(1, 2))
        x = _embed(self.text, ids.flatten(0, 1), past)
        attended = to_memory(layers, None if mask is None else padding_bias(mask, torch.float32))
        x = self.text.run(x, bias, attended, None, causal=True, cache=cast(Any, cache))
        logits = self.head(x[:, -1], self.text.embeddings.word)
        keys, values = (
            torch.stack([_split_rows(tensor, ids) for tensor in tensors])
            for tensors in (cache.all_keys, cache.all_values)
        )
        return _split_rows(logits, ids), keys, values


class _GrowingCache:
    """A cache that returns its keys and values with the new ones appended."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.all_keys: list[Tensor] = []
        self.all_values: list[Tensor] = []

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Return the keys and values of a layer after the past ones."""
        self.all_keys.append(torch.cat([self.keys[layer], keys], 2))
        self.all_values.append(torch.cat([self.values[layer], values], 2))
        return self.all_keys[-1], self.all_values[-1]


def _embed(text: TextTransformer, ids: Tensor, start: int) -> Tensor:
    """Embed ids (B, T) at the positions from `start`, without checking their number."""
    table = text.embeddings
    return table.norm(table.word(ids) + table.position(torch.arange(start, start + ids.shape[1])))


def _encode(text: TextTransformer, ids: Tensor, mask: Tensor, memory: Memory) -> Tensor:
    """Return the states (I * W, T, D) of texts (I, W, T) that attend to a memory of I items."""
    bias = padding_bias(mask.flatten(0, 1), torch.float32)
    return text.run(_embed(text, ids.flatten(0, 1), 0), bias, memory, None)


def _split_rows(rows: Tensor, ids: Tensor) -> Tensor:
    """Return rows (I * W, ...) as (I, W, ...), like ids (I, W, T)."""
    return rows.view(*ids.shape[:2], *rows.shape[1:])


def _flatten(memory: Memory) -> tuple[Tensor, ...]:
    """Return all keys and values of a memory, layer after layer."""

    def leaves(value: object) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        return [leaf for element in cast("tuple[object, ...]", value) for leaf in leaves(element)]

    return tuple(leaves(memory.layers))


def build_graphs(model: nn.Module, task: TaskName) -> list[Graph]:
    """Return the graphs of a task.

    Args:
        model: A model that serves the task, in evaluation mode, float32, on the CPU.
        task: The task.

    Returns:
        The graphs, in the order in which they run.

    Raises:
        UnsupportedTaskError: The model does not serve the task, or the task has no export.
    """
    network = cast(Any, model)
    builder = _BUILDERS.get(task)
    if builder is None or not isinstance(model, builder[0]):
        raise UnsupportedTaskError(
            f"task must be one of {', '.join(_BUILDERS)} and served by the model, got {task!r} for "
            f"{type(model).__name__}"
        )
    vision = cast(VisionTransformer, network.vision)
    return [*_vision_graphs(vision), *builder[1](network)]


def _vision_graphs(vision: VisionTransformer) -> list[Graph]:
    config = vision.config
    pixels = Port("pixel_values", ("images", 3, config.image_size, config.image_size))
    states = Port("image_states", ("images", config.tokens, config.width))
    if vision.stem is None:
        return [_graph("image_encoder", ImageEncoder(vision), (pixels,), (states,))]
    channels = vision.stem.config.head_width
    features = Port("feature_map", ("images", channels, config.grid, config.grid))
    return [
        _graph("stem", Stem(vision.stem), (pixels,), (features,)),
        _graph("image_encoder", ImageEncoder(vision), (features,), (states,)),
    ]


def _caption_graphs(model: Captioner | Pretrainer) -> list[Graph]:
    text = model.text if isinstance(model, Pretrainer) else model.decoder
    tokens = model.config.vision.tokens
    return [_memory_graph(text, model), _step_graph(text, model.lm_head, tokens)]


def _vqa_graphs(model: Answerer) -> list[Graph]:
    ids, mask = _texts("images", "texts")
    answer = _memory_ports("answer", model.decoder.config, ("images", "texts"), "tokens")
    memory = _memory_ports("memory", model.encoder.config, ("images",), model.config.vision.tokens)
    return [
        _memory_graph(model.encoder, model),
        _graph("question_encoder", QuestionEncoder(model), (ids, mask, *memory), answer),
        _step_graph(model.decoder, model.lm_head, "memory"),
    ]


def _retrieval_graphs(model: Matcher) -> list[Graph]:
    config = model.config
    memory = _memory_ports("memory", model.text.config, ("images",), config.vision.tokens)
    states = Port("image_states", ("images", config.vision.tokens, config.vision.width))
    logits = Port("logits", ("images", "texts", 2))
    image, text = (
        Port("image_embeds", ("images", config.embed_width)),
        Port("text_embeds", ("texts", config.embed_width)),
    )
    return [
        _memory_graph(model.text, model),
        _graph("match", Match(model), (*_texts("images", "texts"), *memory), (logits,)),
        _graph("image_embedding", ImageEmbedding(model), (states,), (image,)),
        _graph("text_embedding", TextEmbedding(model), _texts("texts"), (text,)),
    ]


def _grounding_graphs(model: Grounder) -> list[Graph]:
    vision = model.config.vision
    memory = _memory_ports("memory", model.fusion.config, ("images",), vision.tokens)
    states = Port("image_states", ("images", vision.tokens, vision.width))
    box = _memory_ports("box", model.decoder.config, ("images", "texts"), f"{vision.tokens} + tokens")
    box_mask = Port("box_mask", ("images", "texts", f"{vision.tokens} + tokens"), integer=True)
    inputs = (*_texts("images", "texts"), states, *memory)
    return [
        _memory_graph(model.fusion, model),
        _graph("expression_encoder", ExpressionEncoder(model), inputs, (*box, box_mask)),
        _step_graph(model.decoder, model.lm_head, "memory"),
    ]


def _nlvr_graphs(model: Comparer) -> list[Graph]:
    config, text = model.config, model.text.config
    axes = ("images", config.vision.tokens, config.vision.width)
    states = (Port("left_states", axes), Port("right_states", axes))
    left, right = (_memory_ports(side, text, ("images",), config.vision.tokens) for side in ("left", "right"))
    memory = []
    for layer in range(text.depth):
        pair = slice(2 * layer, 2 * layer + 2)
        memory += [*left[pair], *right[pair]]
    logits = Port("logits", ("images", "texts", config.classes))
    return [
        _graph("image_memory", PairMemory(model.text), states, tuple(memory)),
        _graph("compare", Compare(model), (*_texts("images", "texts"), *memory), (logits,)),
    ]


_BUILDERS: dict[TaskName, tuple[tuple[type[nn.Module], ...], Any]] = {
    "caption": ((Captioner, Pretrainer), _caption_graphs),
    "vqa": ((Answerer,), _vqa_graphs),
    "retrieval": ((Matcher,), _retrieval_graphs),
    "grounding": ((Grounder,), _grounding_graphs),
    "nlvr": ((Comparer,), _nlvr_graphs),
}
EXPORTED_TASKS: tuple[TaskName, ...] = tuple(_BUILDERS)
"""The tasks that have an export."""


def _memory_graph(text: TextTransformer, model: Any) -> Graph:
    vision = model.config.vision
    states = Port("image_states", ("images", vision.tokens, vision.width))
    memory = _memory_ports("memory", text.config, ("images",), vision.tokens)
    return _graph("image_memory", ImageMemory(text), (states,), memory)


def _step_graph(text: TextTransformer, head: LanguageHead, length: Axis) -> Graph:
    """Return the graph of a decoder step over a memory of fixed length, or of any length with a mask."""
    config = text.config
    padded = isinstance(length, str)
    cached = (config.depth, "images", "width", config.heads)
    key_width = config.width // config.heads
    inputs = [
        Port("input_ids", ("images", "width", "tokens"), integer=True),
        *(Port(name, (*cached, "past", key_width)) for name in ("past_keys", "past_values")),
        *([Port("memory_mask", ("images", length), integer=True)] if padded else []),
        *_memory_ports("memory", config, ("images",), length),
    ]
    outputs = [
        Port("logits", ("images", "width", config.vocab_size)),
        *(Port(name, (*cached, "past + tokens", key_width)) for name in ("keys", "values")),
    ]
    return _graph("decoder_step", DecoderStep(text, head, padded=padded), tuple(inputs), tuple(outputs))


def _texts(*rows: str) -> tuple[Port, Port]:
    return (
        Port("input_ids", (*rows, "tokens"), integer=True),
        Port("attention_mask", (*rows, "tokens"), integer=True),
    )


def _memory_ports(name: str, config: TextConfig, items: tuple[str, ...], length: Axis) -> tuple[Port, ...]:
    axes = (*items, config.heads, length, config.width // config.heads)
    return tuple(Port(f"{name}_{kind}_{layer}", axes) for layer in range(config.depth) for kind in ("key", "value"))


_SIZES = {"images": IMAGES, "width": WIDTH, "texts": TEXTS, "tokens": TOKENS, "past": PAST, "memory": 11}


def _graph(role: str, module: nn.Module, inputs: Sequence[Port], outputs: Sequence[Port]) -> Graph:
    sizes = _SIZES | ({"tokens": NEW_TOKENS} if role == "decoder_step" else {})
    example: list[Tensor] = []
    for port in inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in port.axes]
        example.append(torch.ones(shape, dtype=torch.int64) if port.integer else torch.zeros(shape))
    return Graph(role, module.eval(), tuple(inputs), tuple(outputs), tuple(example))
