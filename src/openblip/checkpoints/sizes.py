"""The sizes of a model whose file comes without a configuration, read off the shapes of its tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

from openblip.errors import CheckpointError, ConfigError
from openblip.model.config import ModelConfig, ModelKind, TextConfig, VisionConfig

Shapes = Mapping[str, tuple[int, ...]]

_HEAD_WIDTH = 64  # of every published model, in both towers


class Untold(Exception):  # noqa: N818 (it never leaves this package)
    """A tensor that sizes are read from is not there, or not shaped like one: our name for it, and its shape."""

    def __init__(self, name: str, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(name)
        self.name = name
        self.shape = shape


def from_shapes(task: ModelKind, shapes: Shapes, given: Mapping[str, Any], **stored: Any) -> ModelConfig:
    """The configuration of a model for ``task`` whose tensors (our names) have these shapes.

    ``given`` are the caller's own values (see :func:`apply`), needed for what shapes cannot tell: the number of heads
    where they are not 64 wide. ``stored`` are values that the file itself tells in another way.
    """
    vision = VisionConfig() if task == "text" else _vision("" if task == "vision" else "vision.", shapes, given)
    text = TextConfig() if task == "vision" else _text(task, shapes, given)
    if task != "text":
        text = dataclasses.replace(text, memory_width=None if task == "vision" else vision.width)
    more: dict[str, Any] = {"drop_path": stored.pop("drop_path", 0.0)}
    vision = dataclasses.replace(vision, **more)
    sizes: dict[str, Any] = dict(stored)
    if task in ("retrieval", "pretrain"):
        sizes["embed_width"] = _shape(shapes, "vision_proj.weight")[0]
    if task == "two_tower":
        sizes["embed_width"] = _shape(shapes, "visual_projection.weight")[0]
    if task == "nlvr":
        sizes["classes"] = _shape(shapes, "head.out.weight")[0]
    if task == "vqa":
        width = _shape(shapes, "decoder.layers.0.cross_attn.key.weight")[1]
        sizes["decoder_memory_width"] = None if width == text.width else width
    return ModelConfig(task=task, vision=vision, text=text, **sizes)


def apply(config: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
    """``config`` with the caller's values: fields of :class:`ModelConfig`, ``vision`` and ``text`` as tables of
    theirs, and ``image_size`` for ``vision.image_size``. Raises :class:`ConfigError` for an unknown field."""
    sections = {part: dict(given.get(part, {})) for part in ("vision", "text")}
    if "image_size" in given:
        sections["vision"]["image_size"] = given["image_size"]
    whole = {key: value for key, value in given.items() if key not in ("vision", "text", "image_size")}
    _known(whole, ModelConfig, "a model")
    _known(sections["vision"], VisionConfig, "vision")
    _known(sections["text"], TextConfig, "text")
    if whole.pop("task", config.task) != config.task:
        raise ConfigError(f"the configuration is for {given['task']!r}, the checkpoint for {config.task!r}")
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, **sections["vision"]),
        text=dataclasses.replace(config.text, **sections["text"]),
        **whole,
    )


def _known(values: Mapping[str, Any], kind: type, title: str) -> None:
    fields = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(values.keys() - set(fields)):
        raise ConfigError(f"{title} has no {', '.join(unknown)}; it has {', '.join(fields)}")


def _vision(prefix: str, shapes: Shapes, given: Mapping[str, Any]) -> VisionConfig:
    _, tokens, width = _shape(shapes, f"{prefix}pos_embed", 3)
    patch = _shape(shapes, f"{prefix}patch_embed.weight", 4)[-1]
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1:
        raise Untold(f"{prefix}pos_embed", shapes[f"{prefix}pos_embed"])
    return VisionConfig(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        depth=_depth(shapes, f"{prefix}blocks."),
        heads=_heads("vision", width, given),
        mlp_width=_shape(shapes, f"{prefix}blocks.0.mlp.fc1.weight")[0],
    )


def _text(task: ModelKind, shapes: Shapes, given: Mapping[str, Any]) -> TextConfig:
    prefix = {"caption": "decoder.", "vqa": "encoder.", "text": ""}.get(task, "text.")
    rows, width = _shape(shapes, f"{prefix}embeddings.word.weight")
    merges = [_layer(name, f"{prefix}layers.") for name in shapes if ".cross_attn.merge." in name]
    cross = shapes.get(f"{prefix}layers.0.cross_attn.key.weight")
    return TextConfig(
        vocab_size=rows,
        width=width,
        depth=_depth(shapes, f"{prefix}layers."),
        heads=_heads("text", width, given),
        mlp_width=_shape(shapes, f"{prefix}layers.0.mlp.fc1.weight")[0],
        max_positions=_shape(shapes, f"{prefix}embeddings.position.weight")[0],
        memory_width=cross[1] if cross else None,
        merge_from=min(merges, default=6),
    )


def _heads(part: str, width: int, given: Mapping[str, Any]) -> int:
    """Shapes cannot tell the number of heads: as given, else 64 numbers each."""
    stated = dict(given.get(part, {})).get("heads")
    if stated is not None:
        return cast(int, stated)
    if width % _HEAD_WIDTH:
        raise CheckpointError(
            f"the {part} is {width} wide, which does not divide into heads of {_HEAD_WIDTH}; say how many heads "
            f'it has: config={{"{part}": {{"heads": ...}}}}'
        )
    return width // _HEAD_WIDTH


def _depth(shapes: Shapes, prefix: str) -> int:
    layers = [_layer(name, prefix) for name in shapes if name.startswith(prefix)]
    return max(layers, default=0) + 1


def _layer(name: str, prefix: str) -> int:
    return int(name.removeprefix(prefix).split(".", 1)[0])


def _shape(shapes: Shapes, name: str, rank: int = 2) -> tuple[int, ...]:
    if name not in shapes:
        raise Untold(name)
    if len(shapes[name]) != rank:
        raise Untold(name, shapes[name])
    return shapes[name]
