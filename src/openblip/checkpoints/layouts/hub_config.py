"""A hub folder's `config.json` and our configuration, both ways. Free of torch.

The values that the configuration of `transformers` cannot express are under one key, `openblip`: the kind of the model,
the default prompt, the calibration of its captions, the temperature, the width that the answer decoder reads, drop
path, the stem of a hybrid ViT, NLVR2's merge, box bins and how they are read, the first tokens, and a format version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from openblip.checkpoints.published import Published
from openblip.confidence import Confidence, parse_confidence
from openblip.errors import CheckpointError
from openblip.model.config import (
    CAPTION_PROMPT,
    MODEL_KINDS,
    Activation,
    BoxReading,
    ModelConfig,
    ModelKind,
    StemConfig,
    TextConfig,
    VisionConfig,
)
from openblip.tasks import NETWORKS, TASKS

FORMAT_VERSION = 1
STEM_KIND = "efficientnet_lite"

Fields = Mapping[str, tuple[str, int | float | str]]
"""Our fields to the hub's keys and their defaults in `transformers` (BlipTextConfig, BlipVisionConfig, BlipConfig)."""

_VISION_FIELDS: Fields = {
    "image_size": ("image_size", 384),
    "patch_size": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
    "activation": ("hidden_act", "gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
    "attention_dropout": ("attention_dropout", 0.0),
}
_STEM_FIELDS: Fields = {
    "width": ("width", 1.0),
    "depth": ("depth", 1.0),
    "first_width": ("first_width", 32),
    "head_width": ("head_width", 1280),
}
_TEXT_FIELDS: Fields = {
    "vocab_size": ("vocab_size", 30524),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 8),
    "mlp_width": ("intermediate_size", 3072),
    "max_positions": ("max_position_embeddings", 512),
    "memory_width": ("encoder_hidden_size", 768),
    "activation": ("hidden_act", "gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "dropout": ("hidden_dropout_prob", 0.0),
    "attention_dropout": ("attention_probs_dropout_prob", 0.0),
    "pad_id": ("pad_token_id", 0),
    "sep_id": ("sep_token_id", 102),
    "dec_id": ("bos_token_id", 30522),
}
_MODEL_FIELDS: Fields = {
    "image_text_width": ("image_text_hidden_size", 256),
    "projection_width": ("projection_dim", 512),
    "logit_scale": ("logit_scale_init_value", 2.6592),
}
# Fields under the key "openblip", with the values of a folder without it.
_OUR_FIELDS: Fields = {
    "drop_path": ("drop_path", 0.0),
    "merge_from": ("merge_from", 6),
    "cls_id": ("cls_token_id", 101),
    "classes": ("classes", 2),
    "box_bins": ("box_bins", 640),
    "box_start_id": ("box_start_id", 344),
    "temperature": ("temperature", 0.0),
}

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_HUB_ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}

# The automatic classes of transformers refuse this model type. Its other classes only warn, load the tensors that fit
# and draw the rest at random; but they check their fields, and null is not a width.
_FOREIGN = {"model_type": "openblip", "projection_dim": None}

ARCHITECTURES: Mapping[ModelKind, str] = {
    **{name: TASKS[name].architecture for name in NETWORKS},
    "two_tower": "BlipModel",
    "text": "BlipTextModel",
    "vision": "BlipVisionModel",
}
_KINDS_BY_ARCHITECTURE: Mapping[str, ModelKind] = {name: kind for kind, name in ARCHITECTURES.items()}
_OUR_KINDS = [kind for kind, name in ARCHITECTURES.items() if not name.startswith("Blip")]


@dataclass(frozen=True)
class ParsedConfig:
    """The content of a `config.json`.

    Attributes:
        config: The model.
        prompt: The default prompt; "" for none, `None` for a model without one.
        temperature: The temperature of a matcher.
        confidence: The calibration of a captioner; `None` without one.
        notes: Values that were derived or corrected, for the user.
    """

    config: ModelConfig
    prompt: str | None = None
    temperature: float | None = None
    confidence: Confidence | None = None
    notes: tuple[str, ...] = ()


def stated_kind(raw: Mapping[str, Any]) -> ModelKind | None:
    """Return the kind of model that a `config.json` names: by our key, its architecture or its model type.

    Args:
        raw: The content of the file.

    Returns:
        The kind; `None` if the file names none.

    Raises:
        CheckpointError: If the file is of another kind of model, or of a newer format than this version supports.
    """
    ours, model_type = raw.get("openblip"), raw.get("model_type")
    if ours is None:
        if model_type == "openblip":
            raise CheckpointError("config.json of an OpenBLIP model must have the key 'openblip', which names its kind")
        if model_type not in (None, "blip", "blip_text_model", "blip_vision_model"):
            raise CheckpointError(f"config.json must be of a BLIP model, got model_type {model_type!r}")
        for architecture in raw.get("architectures") or ():
            if architecture in _KINDS_BY_ARCHITECTURE:
                return _KINDS_BY_ARCHITECTURE[architecture]
        kinds: Mapping[Any, ModelKind] = {"blip_text_model": "text", "blip_vision_model": "vision"}
        return kinds.get(model_type)
    if not isinstance(ours, Mapping):
        raise CheckpointError(f"the key 'openblip' of config.json must hold an object, got {ours!r}")
    version = ours.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"config.json must name a format version of OpenBLIP, got {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"the format version of config.json must be at most {FORMAT_VERSION}, got {version}: upgrade OpenBLIP"
        )
    if ours.get("task") not in MODEL_KINDS:
        raise CheckpointError(
            f"the task of config.json must be one of {', '.join(MODEL_KINDS)}, got {ours.get('task')!r}"
        )
    return cast(ModelKind, ours["task"])


def parse_config(
    raw: Mapping[str, Any], kind: ModelKind, published: Published | None = None, *, tuned_from: Published | None = None
) -> ParsedConfig:
    """Return the configuration of a `config.json` that `stated_kind` accepted.

    Values that the file leaves out are the defaults of `transformers`. The configurations of published checkpoints are
    corrected: their ViTs were trained with a LayerNorm eps of 1e-6 and say 1e-5, and their text transformers have heads
    64 wide and said 8 heads until April 2023 (huggingface/transformers#22625).

    Args:
        raw: The content of the file.
        kind: Kind of the model.
        published: The published checkpoint that this file belongs to. Its eps and heads are corrected.
        tuned_from: The published checkpoint that this file was fine-tuned from. Only the eps is corrected, because
            training with 8 heads made the weights fit 8 heads.

    Returns:
        The configuration.

    Raises:
        CheckpointError: If a value has the wrong type.
        ConfigError: If the values contradict each other.
    """
    ours: Mapping[str, Any] = raw.get("openblip") or {}
    sections = {"text": raw if kind == "text" else raw.get("text_config") or {}}
    sections["vision"] = raw if kind == "vision" else raw.get("vision_config") or {}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise CheckpointError(f"{name}_config of config.json must hold an object, got {section!r}")
    notes: list[str] = []
    our_values, values = _read_fields(ours, _OUR_FIELDS), _read_fields(raw, _MODEL_FIELDS)
    vision, text = VisionConfig(), TextConfig()
    if kind != "text":
        if (stem := ours.get("stem")) is not None:  # the CNN of a hybrid ViT, for which transformers has no fields
            if not isinstance(stem, Mapping) or stem.get("kind") != STEM_KIND:
                raise CheckpointError(f"the stem of config.json must be an object of kind {STEM_KIND!r}, got {stem!r}")
            stem = StemConfig(**_read_fields(stem, _STEM_FIELDS), stages=stem.get("stages", StemConfig.stages))
        fields = _read_fields(sections["vision"], _VISION_FIELDS)
        vision = VisionConfig(**fields, drop_path=our_values["drop_path"], stem=stem)
    if kind != "vision":
        fields = _read_fields(sections["text"], _TEXT_FIELDS)
        if "num_attention_heads" not in sections["text"]:
            notes.append("config.json does not state the number of text heads: 8, the default of transformers")
        if kind != "text":
            fields["memory_width"] = vision.width
        elif not raw.get("is_decoder", True):
            fields["memory_width"] = None
        enc = _read_fields(ours, {"enc_id": ("enc_token_id", fields["dec_id"] + 1)})
        text = TextConfig(**fields, **enc, cls_id=our_values["cls_id"], merge_from=our_values["merge_from"])
    if not ours and (published or tuned_from):
        vision, text = _correct_published(vision, text, published, tuned_from, notes)
    prompt = ours.get("prompt", CAPTION_PROMPT if kind == "caption" else None)
    if not isinstance(prompt, str | None):
        raise CheckpointError(f"the prompt of config.json must be a text, got {prompt!r}")
    memory_width = None
    if kind == "vqa":  # transformers builds the answer decoder for states as wide as the image's
        memory_width = _read_fields(ours, {"width": ("decoder_memory_width", vision.width)})["width"]
    config = ModelConfig(
        task=kind,
        vision=vision,
        text=text,
        embed_width=values["projection_width" if kind == "two_tower" else "image_text_width"],
        classes=our_values["classes"],
        box_bins=our_values["box_bins"],
        box_start_id=our_values["box_start_id"],
        box_reading=cast(BoxReading, ours.get("box_reading", "likeliest")),
        decoder_memory_width=None if memory_width == text.width else memory_width,
        logit_scale=values["logit_scale"],
    )
    temperature = our_values["temperature"] if ours.get("temperature") is not None else None
    confidence = None
    if "confidence" in ours:
        if kind != "caption":
            raise CheckpointError(f"config.json must have a confidence for 'caption' only, got one for {kind!r}")
        confidence = parse_confidence(ours["confidence"])
    return ParsedConfig(config, prompt, temperature, confidence, tuple(notes))


def write_config(
    config: ModelConfig,
    *,
    prompt: str | None,
    temperature: float | None,
    dtype: str = "float32",
    confidence: Confidence | None = None,
) -> dict[str, Any]:
    """Return the `config.json` of a model. `transformers` 5.23 reads it if it has the model, and refuses it otherwise.

    Args:
        config: The model.
        prompt: The default prompt; `None` for a captioner is "a picture of ".
        temperature: The temperature of a matcher.
        dtype: Type of the stored weights.
        confidence: The calibration of a captioner.

    Returns:
        The content of the file.
    """
    kind, text, vision = config.task, config.text, config.vision
    ours: dict[str, Any] = {"format_version": FORMAT_VERSION, "task": kind}
    if kind == "caption":
        ours["prompt"] = CAPTION_PROMPT if prompt is None else prompt
    elif prompt is not None:
        ours["prompt"] = prompt
    if temperature is not None:
        ours["temperature"] = temperature
    if confidence is not None:
        ours["confidence"] = confidence.to_dict()
    if kind != "text":
        ours["drop_path"] = vision.drop_path
        if vision.stem is not None:
            ours["stem"] = {"kind": STEM_KIND, **asdict(vision.stem)}
    if kind != "vision":
        ours |= {"cls_token_id": text.cls_id, "enc_token_id": text.enc_id}
    if kind == "vqa":
        ours["decoder_memory_width"] = config.decoder_memory_width or text.width
    if kind == "nlvr":
        ours |= {"merge_from": text.merge_from, "classes": config.classes}
    if kind == "grounding":
        ours |= {"box_bins": config.box_bins, "box_start_id": config.box_start_id}
        ours["box_reading"] = config.box_reading
    head = {"architectures": [ARCHITECTURES[kind]], "dtype": dtype}
    vision_section = _write_fields(vision, _VISION_FIELDS) | {"model_type": "blip_vision_model"}
    text_section = _text_section(text, text.memory_width if kind == "text" else vision.width)
    if kind in ("vision", "text"):
        bare = head | (vision_section if kind == "vision" else text_section) | {"openblip": ours}
        return bare | _FOREIGN if kind == "vision" and vision.stem is not None else bare
    body = head | {
        "model_type": "blip",
        "image_text_hidden_size": config.embed_width if kind != "two_tower" else 256,
        "projection_dim": config.embed_width if kind == "two_tower" else 512,
        "logit_scale_init_value": config.logit_scale,
        "tie_word_embeddings": True,
        "text_config": text_section,
        "vision_config": vision_section,
        "openblip": ours,
    }
    # The answer decoder of transformers reads states as wide as the image's; it would load another one only in part.
    narrow_memory = kind == "vqa" and ours["decoder_memory_width"] != vision.width
    foreign = kind in _OUR_KINDS or narrow_memory or vision.stem is not None
    return body | _FOREIGN if foreign else body


def _read_fields(section: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Return our fields from a section of `config.json`. A pair of equal sizes counts as one, as in `transformers`."""
    values: dict[str, Any] = {}
    for name, (key, default) in fields.items():
        value = section.get(key)
        if value is None:
            value = default
        if isinstance(value, list) and value and all(side == value[0] for side in value) and isinstance(default, int):
            value = value[0]
        if isinstance(default, str):
            if value not in _ACTIVATIONS:
                raise CheckpointError(f"{key} of config.json must be one of {', '.join(_ACTIVATIONS)}, got {value!r}")
            values[name] = _ACTIVATIONS[str(value)]
        elif isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else int | float):
            number = "one whole number" if isinstance(default, int) else "a number"
            raise CheckpointError(f"{key} of config.json must be {number}, got {section[key]!r}")
        else:
            values[name] = value if isinstance(default, int) else float(value)
    return values


def _correct_published(
    vision: VisionConfig,
    text: TextConfig,
    published: Published | None,
    tuned_from: Published | None,
    notes: list[str],
) -> tuple[VisionConfig, TextConfig]:
    """Return the sizes that a published checkpoint was trained with, where its `config.json` says otherwise."""
    origin, eps = published or tuned_from, VisionConfig().layer_norm_eps
    if origin is not None and vision.layer_norm_eps != eps:
        notes.append(f"{origin.name} was trained with LayerNorm eps {eps} in the ViT, not {vision.layer_norm_eps}")
        vision = replace(vision, layer_norm_eps=eps)
    heads = text.width // 64
    if published is not None and text.width % 64 == 0 and text.heads != heads:
        notes.append(f"{published.name} was trained with {heads} text heads, not {text.heads}")
        text = replace(text, heads=heads)
    return vision, text


def _write_fields(config: VisionConfig | TextConfig, fields: Fields) -> dict[str, Any]:
    section = {key: getattr(config, name) for name, (key, _) in fields.items()}
    return section | {"hidden_act": _HUB_ACTIVATIONS[config.activation]}


def _text_section(text: TextConfig, memory_width: int | None) -> dict[str, Any]:
    return _write_fields(text, _TEXT_FIELDS) | {
        "model_type": "blip_text_model",
        "encoder_hidden_size": memory_width or text.width,
        "eos_token_id": text.sep_id,
        "is_decoder": memory_width is not None,
        "tie_word_embeddings": True,
    }
