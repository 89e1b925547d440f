"""Sizes of a BLIP model: frozen dataclasses, free of torch so that they load at once.

The presets are those of the paper (section 4.1): ViT-B/16 and ViT-L/16 beside a BERT-base text transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
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

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image encoder: a pre-norm ViT over square patches."""

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

    def __post_init__(self) -> None:
        _divides("vision", self.width, self.heads)
        if self.image_size < self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along one side; as in a strided convolution, a remainder of the image is cut off."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Length of the image sequence: the patches and one class token."""
        return self.grid**2 + 1


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The MED text transformer: a post-norm BERT whose layers can also attend to an image.

    ``memory_width`` is the width of what cross-attention reads; ``None`` leaves cross-attention out.
    ``memories`` is 2 in the NLVR2 model, whose layers read two images, merged by a projection from layer
    ``merge_from`` on and by the mean below it. ``shared_decoder`` gives every layer a second, causal self-attention,
    which makes one stack both encoder and decoder: the parameter sharing of the paper (section 3.2, table 3).
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
        _divides("text", self.width, self.heads)
        if self.memories not in (1, 2):
            raise ConfigError(f"memories is the number of images a layer reads, 1 or 2, not {self.memories}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: which task it serves, its two towers and the sizes of its heads.

    ``decoder_memory_width`` is the width that the answer decoder's cross-attention reads (VQA only). The decoder reads
    question states, so anything but ``text.width`` (the default) builds a model whose forward must fail.

    ``box_reading`` says which number a coordinate's distribution stands for: the likeliest bin, as published, or the
    median, for models that were trained towards bells over the bins (:func:`openblip.decoding.decode_boxes`).
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
            raise ConfigError(f"unknown task {self.task!r}; one of {', '.join(MODEL_KINDS)}")
        if self.box_reading not in get_args(BoxReading):
            raise ConfigError(f"box_reading is {' or '.join(get_args(BoxReading))}, not {self.box_reading!r}")
        if self.task == "grounding" and self.vision.width != self.text.width:
            raise ConfigError(
                "the grounding decoder reads image and text states side by side, so both must have one width, not "
                f"{self.vision.width} and {self.text.width}"
            )

    @property
    def grounded_text(self) -> TextConfig:
        """The text transformer that reads image tokens, as this task needs it."""
        return replace(
            self.text,
            memory_width=self.vision.width,
            memories=2 if self.task == "nlvr" else 1,
            shared_decoder=self.task == "pretrain",
        )

    @property
    def answer_decoder(self) -> TextConfig:
        """The answer decoder of VQA, which reads question states."""
        return replace(self.text, memory_width=self.decoder_memory_width or self.text.width)


def _divides(part: str, width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(f"{part} width {width} does not divide into {heads} heads")


VISION_PRESETS: Mapping[str, VisionConfig] = {
    "base": VisionConfig(),
    "large": VisionConfig(width=1024, depth=24, heads=16, mlp_width=4096, drop_path=0.1),
}


def preset(task: ModelKind, size: Literal["base", "large"] = "base", image_size: int | None = None) -> ModelConfig:
    """The published model of a task: ViT-B or ViT-L at the image size the checkpoint of that task was trained at.

    >>> preset("vqa").vision.image_size
    480
    """
    published = {"vqa": 480, "pretrain": 224}
    vision = replace(VISION_PRESETS[size], image_size=image_size or published.get(task, 384))
    return ModelConfig(task=task, vision=vision, text=TextConfig(memory_width=vision.width))
