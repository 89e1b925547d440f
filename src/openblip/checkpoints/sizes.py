"""The sizes of a model whose file has no configuration, derived from the shapes of its tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

from openblip.errors import CheckpointError, ConfigError
from openblip.model.config import ModelConfig, ModelKind, StemConfig, TextConfig, VisionConfig

Shapes = Mapping[str, tuple[int, ...]]

_HEAD_WIDTH = 64  # of every published model, in both towers


class UnknownSizeError(Exception):
    """A tensor that sizes are derived from is missing or misshapen. It never leaves this package.

    Attributes:
        name: Our name for the tensor.
        shape: Its shape; `None` if it is missing.
    """

    def __init__(self, name: str, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(name)
        self.name = name
        self.shape = shape


def derive_config(kind: ModelKind, shapes: Shapes, overrides: Mapping[str, Any], **stored: Any) -> ModelConfig:
    """Return the configuration of a model whose tensors have these shapes.

    Args:
        kind: Kind of the model.
        shapes: Shapes by our names.
        overrides: The caller's values (see `override`). They state the number of heads where heads are not 64 wide.
        **stored: Values that the file states in another way.

    Returns:
        The configuration.

    Raises:
        UnknownSizeError: If a tensor is missing or misshapen.
        CheckpointError: If the number of heads cannot be derived.
    """
    vision, text = VisionConfig(), TextConfig()
    if kind != "text":
        vision = _vision("" if kind == "vision" else "vision.", shapes, overrides)
        vision = dataclasses.replace(vision, drop_path=stored.pop("drop_path", 0.0))
    if kind != "vision":
        text = _text(kind, shapes, overrides)
    if kind != "text":
        text = dataclasses.replace(text, memory_width=None if kind == "vision" else vision.width)
    values: dict[str, Any] = {name: value for name, value in stored.items() if name != "drop_path"}
    if kind in ("retrieval", "pretrain"):
        values["embed_width"] = _shape(shapes, "vision_proj.weight")[0]
    if kind == "two_tower":
        values["embed_width"] = _shape(shapes, "visual_projection.weight")[0]
    if kind == "nlvr":
        values["classes"] = _shape(shapes, "head.out.weight")[0]
    if kind == "vqa":
        width = _shape(shapes, "decoder.layers.0.cross_attn.key.weight")[1]
        values["decoder_memory_width"] = None if width == text.width else width
    return ModelConfig(task=kind, vision=vision, text=text, **values)


def override(config: ModelConfig, overrides: Mapping[str, Any]) -> ModelConfig:
    """Return a configuration with the caller's values.

    Args:
        config: The configuration.
        overrides: Fields of `ModelConfig`, the fields of its `vision` and `text` as mappings, and `image_size` for
            `vision.image_size`.

    Returns:
        The new configuration.

    Raises:
        ConfigError: If a field does not exist, or values contradict each other.
    """
    values = dict(overrides)
    vision, text = dict(values.pop("vision", {})), dict(values.pop("text", {}))
    if "image_size" in values:
        vision["image_size"] = values.pop("image_size")
    stem_fields = vision.get("stem")  # a table, a StemConfig or nothing
    for title, section, kind in (
        ("a model", values, ModelConfig),
        ("vision", vision, VisionConfig),
        ("text", text, TextConfig),
        ("stem", stem_fields if isinstance(stem_fields, Mapping) else {}, StemConfig),
    ):
        fields = [field.name for field in dataclasses.fields(kind)]
        if unknown := sorted(section.keys() - set(fields)):
            raise ConfigError(f"{title} has no {', '.join(unknown)}; it has {', '.join(fields)}")
    if values.pop("task", config.task) != config.task:
        raise ConfigError(
            f"the configuration must be for {config.task!r}, as the checkpoint, got {overrides['task']!r}"
        )
    if isinstance(stem_fields, Mapping):
        vision["stem"] = StemConfig(**stem_fields)
    vision_config = dataclasses.replace(config.vision, **vision)
    return dataclasses.replace(config, vision=vision_config, text=dataclasses.replace(config.text, **text), **values)


def _vision(prefix: str, shapes: Shapes, overrides: Mapping[str, Any]) -> VisionConfig:
    _, tokens, width = _shape(shapes, f"{prefix}pos_embed", 3)
    patch = _shape(shapes, f"{prefix}patch_embed.weight", 4)[-1]
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1:
        raise UnknownSizeError(f"{prefix}pos_embed", shapes[f"{prefix}pos_embed"])
    return VisionConfig(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        depth=_depth(shapes, f"{prefix}blocks."),
        heads=_heads("vision", width, overrides),
        mlp_width=_shape(shapes, f"{prefix}blocks.0.mlp.fc1.weight")[0],
    )


def _text(kind: ModelKind, shapes: Shapes, overrides: Mapping[str, Any]) -> TextConfig:
    prefix = {"caption": "decoder.", "vqa": "encoder.", "text": ""}.get(kind, "text.")
    rows, width = _shape(shapes, f"{prefix}embeddings.word.weight")
    merges = [_layer(name, f"{prefix}layers.") for name in shapes if ".cross_attn.merge." in name]
    cross = shapes.get(f"{prefix}layers.0.cross_attn.key.weight")
    return TextConfig(
        vocab_size=rows,
        width=width,
        depth=_depth(shapes, f"{prefix}layers."),
        heads=_heads("text", width, overrides),
        mlp_width=_shape(shapes, f"{prefix}layers.0.mlp.fc1.weight")[0],
        max_positions=_shape(shapes, f"{prefix}embeddings.position.weight")[0],
        memory_width=cross[1] if cross else None,
        merge_from=min(merges, default=6),
    )


def _heads(tower: str, width: int, overrides: Mapping[str, Any]) -> int:
    """Return the number of heads, which shapes do not show: the caller's, or heads 64 wide."""
    stated = dict(overrides.get(tower, {})).get("heads")
    if stated is not None:
        return cast(int, stated)
    if width % _HEAD_WIDTH:
        raise CheckpointError(
            f"the {tower} is {width} wide, which does not divide into heads of {_HEAD_WIDTH}; state the number of "
            f'heads: config={{"{tower}": {{"heads": ...}}}}'
        )
    return width // _HEAD_WIDTH


def _depth(shapes: Shapes, prefix: str) -> int:
    layers = [_layer(name, prefix) for name in shapes if name.startswith(prefix)]
    return max(layers, default=0) + 1


def _layer(name: str, prefix: str) -> int:
    return int(name.removeprefix(prefix).split(".", 1)[0])


def _shape(shapes: Shapes, name: str, rank: int = 2) -> tuple[int, ...]:
    if name not in shapes:
        raise UnknownSizeError(name)
    if len(shapes[name]) != rank:
        raise UnknownSizeError(name, shapes[name])
    return shapes[name]
