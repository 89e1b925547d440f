"""Configuration of a BLIP model: frozen dataclasses, without torch, so that they load fast.

The presets are the models of the paper (section 4.1): ViT-B/16 or ViT-L/16, and a BERT-base text transformer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, get_args

from openblip.errors import ConfigError
from openblip.tasks import NETWORKS, TaskName

ModelKind: TypeAlias = TaskName | Literal["two_tower", "text", "vision"]
MODEL_KINDS: tuple[ModelKind, ...] = (*NETWORKS, "two_tower", "text", "vision")
"""The networks of tasks, and the hub's architectures that serve no task."""

CAPTION_PROMPT = "a picture of "
"""The prompt that the published captioners were trained with."""

BoxReading = Literal["likeliest", "median"]

STEM_STRIDE = 32
"""Pixels per cell of every EfficientNet-Lite."""

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


@dataclass(frozen=True, kw_only=True)
class StemConfig:
    """The CNN of a hybrid ViT: an EfficientNet-Lite, scaled from Lite0.

    Lite0 has the width and depth (1.0, 1.0), Lite1 (1.0, 1.1), Lite2 (1.1, 1.2), Lite3 (1.2, 1.4), Lite4 (1.4, 1.8).

    Attributes:
        width: Factor of the widths of all stages.
        depth: Factor of the lengths of all stages but the first and the last.
        first_width: Channels after the first convolution.
        head_width: Channels of the feature map.
        stages: The stages of Lite0: blocks, kernel, stride, expansion, width.
    """

    width: float = 1.0
    depth: float = 1.0
    first_width: int = 32
    head_width: int = 1280
    stages: tuple[tuple[int, int, int, int, int], ...] = (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )  # fmt: skip

    def __post_init__(self) -> None:
        stages = self.stages
        if not isinstance(stages, Sequence) or not all(
            isinstance(stage, Sequence) and len(stage) == 5 and all(type(number) is int for number in stage)
            for stage in stages
        ):
            raise ConfigError(f"each stage of a stem must be five whole numbers, got {stages!r}")
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in stages))  # JSON has lists

    @property
    def blocks(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Width in, width out, kernel, stride and expansion of each block."""
        blocks, width_in = [], self.first_width
        for index, (length, kernel, stride, expansion, width) in enumerate(self.stages):
            scales = 0 < index < len(self.stages) - 1
            width_out = self._scale(width)
            for number in range(math.ceil(length * self.depth) if scales else length):
                blocks.append((width_in, width_out, kernel, stride if number == 0 else 1, expansion))
                width_in = width_out
        return tuple(blocks)

    @property
    def trunk_width(self) -> int:
        """Channels after the last block."""
        return self._scale(self.stages[-1][-1])

    def _scale(self, width: int) -> int:
        """Return a scaled width, rounded to a multiple of 8 but by no more than a tenth downward, as published."""
        scaled = width * self.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * scaled else rounded


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Configuration of the image encoder: a pre-norm ViT over square patches or over a CNN's feature map.

    Attributes:
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        width: Width of the states.
        depth: Number of blocks.
        heads: Number of attention heads.
        mlp_width: Width between the two linear layers of the MLP.
        activation: Activation of the MLP.
        layer_norm_eps: Epsilon of the layer norms.
        attention_dropout: Dropout of attention probabilities in training.
        drop_path: Stochastic depth of the last block in training; it increases linearly from 0 in the first block.
        stem: CNN whose feature map takes the place of the patches (a hybrid ViT); `None` for a plain ViT.
    """

    image_size: int = 384
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Activation = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    stem: StemConfig | None = None

    def __post_init__(self) -> None:
        _check_heads("vision", self.width, self.heads)
        if self.stem is not None and (self.patch_size != STEM_STRIDE or self.image_size % STEM_STRIDE):
            raise ConfigError(
                f"with a stem, patch_size must be {STEM_STRIDE} and image_size a multiple of it, "
                f"got {self.patch_size} and {self.image_size}"
            )
        if self.image_size < self.patch_size:
            raise ConfigError(f"image_size must be at least patch_size={self.patch_size}, got {self.image_size}")

    @property
    def grid(self) -> int:
        """Number of patches along one side. As in a strided convolution, a remainder of the image is cut off."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Number of image tokens: the patches and the class token."""
        return self.grid**2 + 1


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Configuration of the text transformer, MED: a post-norm BERT whose layers can also attend to an image.

    Attributes:
        vocab_size: Number of word pieces, [DEC] and [ENC] included.
        width: Width of the states.
        depth: Number of layers.
        heads: Number of attention heads.
        mlp_width: Width between the two linear layers of the MLP.
        max_positions: Maximum number of tokens in a text.
        memory_width: Width of the states that cross-attention attends to; `None` for no cross-attention.
        memories: Number of images that a layer attends to; 2 in the NLVR2 model.
        merge_from: First layer that merges two images by a projection; lower layers use the mean.
        shared_decoder: Whether each layer has a second, causal self-attention, so that encoder and decoder share all
            other weights (paper section 3.2, table 3).
        activation: Activation of the MLP.
        layer_norm_eps: Epsilon of the layer norms.
        dropout: Dropout of states in training.
        attention_dropout: Dropout of attention probabilities in training.
        pad_id: Token id of [PAD].
        cls_id: Token id of [CLS].
        sep_id: Token id of [SEP].
        dec_id: Token id of [DEC].
        enc_id: Token id of [ENC].
    """

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    memory_width: int | None = 768
    memories: int = 1
    merge_from: int = 6
    shared_decoder: bool = False
    activation: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    dec_id: int = 30522
    enc_id: int = 30523

    def __post_init__(self) -> None:
        _check_heads("text", self.width, self.heads)
        if self.memories not in (1, 2):
            raise ConfigError(f"memories must be 1 or 2, the number of images of a layer, got {self.memories}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Configuration of a model.

    Attributes:
        task: Kind of the model.
        vision: Configuration of the image encoder.
        text: Configuration of the text transformer.
        embed_width: Width of the ITC embedding space.
        classes: Number of classes of the NLVR2 classifier.
        box_bins: Number of bins of a coordinate, minus 1.
        box_start_id: Token id that starts a box; the ids of the bins follow it.
        box_reading: How a coordinate follows from the probabilities of its bins: the likeliest bin, as published, or
            the median, for models that were trained with a bell curve over the bins. See
            [`decode_boxes`][openblip.decoding.decode_boxes].
        decoder_memory_width: Memory width of the answer decoder; the default is the text width. The decoder attends to
            question states, so a model with another width can be loaded but not run.
        logit_scale: Logarithm of the scale of similarities in the two-tower model.
    """

    task: ModelKind
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_width: int = 256
    classes: int = 2
    box_bins: int = 640
    box_start_id: int = 344
    box_reading: BoxReading = "likeliest"
    decoder_memory_width: int | None = None
    logit_scale: float = 2.6592

    def __post_init__(self) -> None:
        if self.task not in MODEL_KINDS:
            raise ConfigError(f"task must be one of {', '.join(MODEL_KINDS)}, got {self.task!r}")
        if self.box_reading not in get_args(BoxReading):
            raise ConfigError(f"box_reading must be {' or '.join(get_args(BoxReading))}, got {self.box_reading!r}")
        if self.task == "grounding" and self.vision.width != self.text.width:
            raise ConfigError(
                "image and text must have the same width, to be concatenated for the grounding decoder, "
                f"got {self.vision.width} and {self.text.width}"
            )

    @property
    def grounded_text(self) -> TextConfig:
        """Configuration of the text transformer that attends to images, as the task needs it."""
        return replace(
            self.text,
            memory_width=self.vision.width,
            memories=2 if self.task == "nlvr" else 1,
            shared_decoder=self.task == "pretrain",
        )

    @property
    def answer_decoder(self) -> TextConfig:
        """Configuration of the answer decoder of VQA, which attends to question states."""
        return replace(self.text, memory_width=self.decoder_memory_width or self.text.width)


def _check_heads(name: str, width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(f"the {name} width must be a multiple of the number of heads, got {width} and {heads}")


VISION_PRESETS: Mapping[str, VisionConfig] = {
    "base": VisionConfig(),
    "large": VisionConfig(width=1024, depth=24, heads=16, mlp_width=4096, drop_path=0.1),
}


def preset(task: ModelKind, size: Literal["base", "large"] = "base", image_size: int | None = None) -> ModelConfig:
    """Return the configuration of the published model of a task.

    >>> preset("vqa").vision.image_size
    480

    Args:
        task: Kind of the model.
        size: Size of the image encoder: ViT-B/16 or ViT-L/16.
        image_size: Side of the image in pixels; the default is the size of the published checkpoint.

    Returns:
        The configuration.
    """
    published_sizes = {"vqa": 480, "pretrain": 224}
    vision = replace(VISION_PRESETS[size], image_size=image_size or published_sizes.get(task, 384))
    return ModelConfig(task=task, vision=vision, text=TextConfig(memory_width=vision.width))
