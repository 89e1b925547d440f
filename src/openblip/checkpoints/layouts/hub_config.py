"""A hub folder's ``config.json`` and our configuration, both ways. Free of torch.

What that library's configuration cannot say stands under one key, ``openblip``: the task, the default prompt, the
temperature, the decoder's memory width, drop path, NLVR2's merge, box bins and how they are read, the first tokens, and
a format version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from openblip.checkpoints.published import Published
from openblip.errors import CheckpointError
from openblip.model.config import MODEL_KINDS, Activation, BoxReading, ModelConfig, ModelKind, TextConfig, VisionConfig
from openblip.tasks import NETWORKS, TASKS

FORMAT_VERSION = 1
DEFAULT_PROMPT = "a picture of "  # what the published captioners were trained with

# That library's defaults, for what a configuration leaves out (BlipTextConfig, BlipVisionConfig, BlipConfig).
_TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "bos_token_id": 30522,
    "pad_token_id": 0,
    "sep_token_id": 102,
    "is_decoder": True,
}
_VISION_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
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
_HUB_ACTIVATIONS: Mapping[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}

ARCHITECTURES: Mapping[ModelKind, str] = {
    **{name: TASKS[name].architecture for name in NETWORKS},
    "two_tower": "BlipModel",
    "text": "BlipTextModel",
    "vision": "BlipVisionModel",
}
_KINDS_BY_ARCHITECTURE: Mapping[str, ModelKind] = {name: kind for kind, name in ARCHITECTURES.items()}
_OURS = [kind for kind, name in ARCHITECTURES.items() if not name.startswith("Blip")]


@dataclass(frozen=True)
class Described:
    """What a ``config.json`` says: the model, and what of it is no size."""

    config: ModelConfig
    prompt: str | None
    temperature: float | None
    notes: tuple[str, ...]


def stated_task(raw: Mapping[str, Any]) -> ModelKind | None:
    """The task that a ``config.json`` names, by our key, its architecture or its model type; ``None`` if by none.

    Raises :class:`CheckpointError` for a file of another kind of model, or of a newer format than this one.
    """
    ours = _our_key(raw)
    if ours is not None:
        task = ours.get("task")
        if task not in MODEL_KINDS:
            raise CheckpointError(f"config.json names the task {task!r}; this OpenBLIP knows {', '.join(MODEL_KINDS)}")
        return cast(ModelKind, task)
    kind = raw.get("model_type")
    if kind not in (None, "blip", "blip_text_model", "blip_vision_model"):
        raise CheckpointError(f"config.json is of a {kind!r} model, not of BLIP")
    for architecture in raw.get("architectures") or ():
        if architecture in _KINDS_BY_ARCHITECTURE:
            return _KINDS_BY_ARCHITECTURE[architecture]
    return {"blip_text_model": "text", "blip_vision_model": "vision"}.get(kind)  # type: ignore[arg-type, return-value]


def read_config(
    raw: Mapping[str, Any], task: ModelKind, published: Published | None = None, *, tuned_from: Published | None = None
) -> Described:
    """Our configuration for a ``config.json``. Where that leaves a value out, that library's default counts.

    ``published`` names the published checkpoint that this is. Its ViT then has the LayerNorm eps it was trained with,
    1e-6, and its text transformer heads 64 wide: the published configurations say 1e-5, and said 8 heads until April
    2023 (huggingface/transformers#22625). ``tuned_from`` names the one that it says it was loaded from; this settles
    the eps alone, for whoever trained on with 8 heads did so in earnest.
    """
    notes: list[str] = []
    ours = _our_key(raw)
    text_raw = raw if task == "text" else _section(raw, "text_config")
    vision_raw = raw if task == "vision" else _section(raw, "vision_config")
    vision = VisionConfig() if task == "text" else _vision(vision_raw, ours or {})
    text = TextConfig() if task == "vision" else _text(text_raw, task, vision, ours or {}, notes)
    if (origin := published or tuned_from) is not None and ours is None:
        vision = _trained_eps(vision, origin, notes)
    if published is not None and ours is None:
        text = _trained_heads(text, published, notes)
    ours = ours or {}
    config = ModelConfig(
        task=task,
        vision=vision,
        text=text,
        embed_width=_number(raw, "projection_dim", 512)
        if task == "two_tower"
        else _number(raw, "image_text_hidden_size", 256),
        classes=_number(ours, "classes", 2),
        box_bins=_number(ours, "box_bins", 640),
        box_start_id=_number(ours, "box_start_id", 344),
        box_reading=cast(BoxReading, ours.get("box_reading", "likeliest")),
        decoder_memory_width=_memory_width(task, text, vision, ours),
        logit_scale=_real(raw, "logit_scale_init_value", 2.6592),
    )
    prompt = ours.get("prompt", DEFAULT_PROMPT if task == "caption" else None)
    if not isinstance(prompt, str | None):
        raise CheckpointError(f"the prompt of config.json is {prompt!r}, which is no text")
    temperature = _real(ours, "temperature", 0.0) if ours.get("temperature") is not None else None
    return Described(config, prompt, temperature, tuple(notes))


def write_config(
    config: ModelConfig, *, prompt: str | None, temperature: float | None, dtype: str = "float32"
) -> dict[str, Any]:
    """The ``config.json`` of a model: read by ``transformers`` 5.23 where it has the model, refused by it elsewhere."""
    task, text, vision = config.task, config.text, config.vision
    ours: dict[str, Any] = {"format_version": FORMAT_VERSION, "task": task}
    if task == "caption":
        ours["prompt"] = DEFAULT_PROMPT if prompt is None else prompt
    elif prompt is not None:
        ours["prompt"] = prompt
    if temperature is not None:
        ours["temperature"] = temperature
    if task != "text":
        ours["drop_path"] = vision.drop_path
    if task != "vision":
        ours |= {"cls_token_id": text.cls_id, "enc_token_id": text.enc_id}
    if task == "vqa":
        ours["decoder_memory_width"] = config.decoder_memory_width or text.width
    if task == "nlvr":
        ours |= {"merge_from": text.merge_from, "classes": config.classes}
    if task == "grounding":
        ours |= {"box_bins": config.box_bins, "box_start_id": config.box_start_id}
        ours["box_reading"] = config.box_reading
    head = {"architectures": [ARCHITECTURES[task]], "dtype": dtype}
    if task == "vision":
        return head | _vision_section(vision) | {"openblip": ours}
    if task == "text":
        return head | _text_section(text, text.memory_width) | {"openblip": ours}
    # That library's answer decoder reads states as wide as the image's; another one it could only load in part.
    foreign = task in _OURS or (task == "vqa" and ours["decoder_memory_width"] != vision.width)
    body = head | {
        "model_type": "blip",
        "image_text_hidden_size": config.embed_width if task != "two_tower" else 256,
        "projection_dim": config.embed_width if task == "two_tower" else 512,
        "logit_scale_init_value": config.logit_scale,
        "tie_word_embeddings": True,
        "text_config": _text_section(text, vision.width),
        "vision_config": _vision_section(vision),
        "openblip": ours,
    }
    # Its automatic classes refuse the model type. The others only warn, load what they find and draw the rest at
    # random; but they check their fields, and null is no width.
    return body | {"model_type": "openblip", "projection_dim": None} if foreign else body


def _our_key(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    ours = raw.get("openblip")
    if ours is None:
        if raw.get("model_type") == "openblip":
            raise CheckpointError(
                "config.json is of an OpenBLIP model but lacks the key 'openblip', which says of which"
            )
        return None
    if not isinstance(ours, Mapping):
        raise CheckpointError("the key 'openblip' of config.json does not hold a table")
    version = ours.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"config.json names no format version of OpenBLIP's but {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"config.json is of format version {version}, and this OpenBLIP reads up to {FORMAT_VERSION}: upgrade it"
        )
    return ours


def _section(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = raw.get(key)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{key} of config.json does not hold a table")
    return section


def _vision(raw: Mapping[str, Any], ours: Mapping[str, Any]) -> VisionConfig:
    def number(key: str) -> int:
        return _number(raw, key, _VISION_DEFAULTS[key])

    return VisionConfig(
        image_size=number("image_size"),
        patch_size=number("patch_size"),
        width=number("hidden_size"),
        depth=number("num_hidden_layers"),
        heads=number("num_attention_heads"),
        mlp_width=number("intermediate_size"),
        activation=_activation(raw),
        layer_norm_eps=_real(raw, "layer_norm_eps", _VISION_DEFAULTS["layer_norm_eps"]),
        attention_dropout=_real(raw, "attention_dropout", 0.0),
        drop_path=_real(ours, "drop_path", 0.0),
    )


def _text(
    raw: Mapping[str, Any], task: ModelKind, vision: VisionConfig, ours: Mapping[str, Any], notes: list[str]
) -> TextConfig:
    def number(key: str) -> int:
        return _number(raw, key, _TEXT_DEFAULTS[key])

    if "num_attention_heads" not in raw:
        notes.append("config.json does not say how many heads the text has: 8, that library's default")
    memory_width: int | None = vision.width
    if task == "text":
        memory_width = number("encoder_hidden_size") if raw.get("is_decoder", True) else None
    dec_id = number("bos_token_id")
    return TextConfig(
        vocab_size=number("vocab_size"),
        width=number("hidden_size"),
        depth=number("num_hidden_layers"),
        heads=number("num_attention_heads"),
        mlp_width=number("intermediate_size"),
        max_positions=number("max_position_embeddings"),
        memory_width=memory_width,
        merge_from=_number(ours, "merge_from", 6),
        activation=_activation(raw),
        layer_norm_eps=_real(raw, "layer_norm_eps", _TEXT_DEFAULTS["layer_norm_eps"]),
        dropout=_real(raw, "hidden_dropout_prob", 0.0),
        attention_dropout=_real(raw, "attention_probs_dropout_prob", 0.0),
        pad_id=number("pad_token_id"),
        cls_id=_number(ours, "cls_token_id", 101),
        sep_id=number("sep_token_id"),
        dec_id=dec_id,
        enc_id=_number(ours, "enc_token_id", dec_id + 1),
    )


def _memory_width(task: ModelKind, text: TextConfig, vision: VisionConfig, ours: Mapping[str, Any]) -> int | None:
    """The answer decoder's memory width; that library builds it as wide as the image's, whatever it will read."""
    if task != "vqa":
        return None
    width = _number(ours, "decoder_memory_width", vision.width)
    return None if width == text.width else width


def _trained_eps(vision: VisionConfig, origin: Published, notes: list[str]) -> VisionConfig:
    trained = VisionConfig().layer_norm_eps
    if vision.layer_norm_eps == trained:
        return vision
    notes.append(f"{origin.name} was trained with LayerNorm eps {trained} in the ViT, not {vision.layer_norm_eps}")
    return replace(vision, layer_norm_eps=trained)


def _trained_heads(text: TextConfig, published: Published, notes: list[str]) -> TextConfig:
    if text.width % 64 or text.heads == (heads := text.width // 64):
        return text
    notes.append(f"{published.name} was trained with {heads} text heads, not {text.heads}")
    return replace(text, heads=heads)


def _text_section(text: TextConfig, memory_width: int | None) -> dict[str, Any]:
    return {
        "model_type": "blip_text_model",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "encoder_hidden_size": memory_width or text.width,
        "intermediate_size": text.mlp_width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.max_positions,
        "hidden_act": _HUB_ACTIVATIONS[text.activation],
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.attention_dropout,
        "bos_token_id": text.dec_id,
        "eos_token_id": text.sep_id,
        "pad_token_id": text.pad_id,
        "sep_token_id": text.sep_id,
        "is_decoder": memory_width is not None,
        "tie_word_embeddings": True,
    }


def _vision_section(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "blip_vision_model",
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp_width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": _HUB_ACTIVATIONS[vision.activation],
        "layer_norm_eps": vision.layer_norm_eps,
        "attention_dropout": vision.attention_dropout,
    }


def _number(raw: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number of a configuration; a pair of equal ones counts as one, as that library allows for sizes."""
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, list) and value and all(side == value[0] for side in value):
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"{key} of config.json is {raw[key]!r}; BLIP needs one whole number there")
    return value


def _real(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{key} of config.json is {value!r}; BLIP needs a number there")
    return float(value)


def _activation(raw: Mapping[str, Any]) -> Activation:
    name = raw.get("hidden_act", "gelu")
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"config.json names the activation {name!r}; known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
