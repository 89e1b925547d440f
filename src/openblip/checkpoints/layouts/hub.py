"""The names of `transformers`, in hub folders, our native format. Tasks that it lacks have names of the same style."""

from __future__ import annotations

from functools import cache

from openblip.checkpoints.layouts import parts
from openblip.checkpoints.layouts.table import Group, Table, merged, prefixed
from openblip.errors import CheckpointError
from openblip.model.config import ModelKind

VISION = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding": "patch_embed",
    "encoder.layers.#.layer_norm1": "blocks.#.norm1",
    "encoder.layers.#.self_attn.qkv": "blocks.#.attn.qkv",
    "encoder.layers.#.self_attn.projection": "blocks.#.attn.proj",
    "encoder.layers.#.layer_norm2": "blocks.#.norm2",
    "encoder.layers.#.mlp.fc1": "blocks.#.mlp.fc1",
    "encoder.layers.#.mlp.fc2": "blocks.#.mlp.fc2",
    "post_layernorm": "norm",
}

# The CNN of a hybrid ViT, which no other library has; the configuration tells whether there is one.
STEM = {"embeddings.stem": "stem"}

_VISION = Group("image encoder", prefixed(VISION, "vision_model", "vision"))
_STEM = Group("stem", prefixed(STEM, "vision_model", "vision"), "derivable")
_PROJECTIONS = Group("projections", {"vision_proj": "vision_proj", "text_proj": "text_proj"})
_ITM = Group("matching head", {"itm_head": "itm_head"})
_POOLER = {"pooler.dense": "pooler"}

_GROUPS: dict[ModelKind, tuple[Group, ...]] = {
    "caption": (
        _VISION,
        _STEM,
        parts.decoder_stack("text_decoder.bert", "decoder"),
        *parts.language_head("text_decoder.cls.predictions", "decoder.embeddings.word"),
        parts.position_ids("text_decoder.bert"),
    ),
    "vqa": (
        _VISION,
        _STEM,
        Group("question encoder", prefixed(parts.TEXT, "text_encoder", "encoder")),
        parts.decoder_stack("text_decoder.bert", "decoder"),
        *parts.language_head("text_decoder.cls.predictions", "decoder.embeddings.word"),
        parts.position_ids("text_encoder", "text_decoder.bert"),
    ),
    "retrieval": (
        _VISION,
        _STEM,
        Group("text encoder", prefixed(parts.TEXT, "text_encoder", "text")),
        _PROJECTIONS,
        _ITM,
        parts.position_ids("text_encoder"),
    ),
    "nlvr": (
        _VISION,
        _STEM,
        Group("text encoder of two images", prefixed(parts.TWIN_TEXT, "text_encoder", "text")),
        Group("comparison head", {"cls_head.0": "head.dense", "cls_head.2": "head.out"}),
    ),
    "grounding": (
        _VISION,
        _STEM,
        Group("text encoder", prefixed(parts.TEXT, "text_encoder", "text")),
        Group("fusion encoder", prefixed(parts.TEXT, "multimodal_encoder", "fusion")),
        parts.decoder_stack("text_decoder.bert", "decoder"),
        *parts.language_head("text_decoder.cls.predictions", "decoder.embeddings.word"),
    ),
    "pretrain": (
        _VISION,
        _STEM,
        Group("text encoder", prefixed(parts.TEXT, "text_encoder", "text")),
        Group(
            "self-attention of the text decoder",
            prefixed(parts.self_attention("decoder_attn", "decoder_norm"), "text_decoder.bert", "text"),
        ),
        Group(
            "weights that the text decoder shares with the encoder",
            prefixed(parts.SHARED, "text_decoder.bert", "text"),
            "optional",
            "shared",
        ),
        *parts.language_head("text_decoder.cls.predictions", "text.embeddings.word"),
        _PROJECTIONS,
        _ITM,
        Group("temperature", {"temp": "temperature"}),
    ),
    "two_tower": (
        _VISION,
        _STEM,
        Group("text encoder", prefixed(merged(parts.TEXT, _POOLER), "text_model", "text")),
        Group("projections", {name: name for name in ("visual_projection", "text_projection")}),
        Group("logit scale", {"logit_scale": "logit_scale"}),
        parts.position_ids("text_model"),
    ),
    "text": (
        Group("text transformer", merged(parts.EMBEDDINGS, parts.self_attention(), parts.MLP, _POOLER)),
        Group("cross-attention", parts.CROSS_ATTENTION),  # only if the configuration has it
        parts.position_ids(""),
    ),
    "vision": (Group("image encoder", VISION), Group("stem", STEM, "derivable")),
}

TABLES: dict[ModelKind, Table] = {task: Table("hub", task, groups) for task, groups in _GROUPS.items()}


def hub_name(task: ModelKind, our_name: str) -> str:
    """Return the hub's name for one of our tensors, or for anything in one of our modules.

    >>> hub_name("caption", "decoder.layers.3.self_attn.query.lora_A.default.weight")
    'text_decoder.bert.encoder.layer.3.attention.self.query.lora_A.default.weight'

    Raises:
        CheckpointError: If the table has no such name.
    """
    if matches := TABLES[task].theirs(our_name):
        return matches[0][1]
    raise CheckpointError(f"the hub has no name for {our_name!r} in a model for {task!r}")


def our_name(task: ModelKind, hub_name: str) -> str:
    """Return our name for one of the hub's tensors, or for anything in one of its modules; tied copies included.

    >>> our_name("caption", "text_decoder.cls.predictions.decoder.weight")
    'decoder.embeddings.word.weight'

    Raises:
        CheckpointError: If the table has no such name, or if it is a buffer that is computed.
    """
    match = TABLES[task].ours(hub_name)
    if match is None or match[0].kind == "constant":
        raise CheckpointError(f"{hub_name!r} must be a tensor of a hub model for {task!r}")
    return match[1]


@cache
def tied_names(task: ModelKind) -> dict[str, str]:
    """Return the names by which the hub's models repeat a tensor in memory (not in safetensors), with our names."""
    groups = TABLES[task].groups
    return {theirs: ours for group in groups if group.kind == "tied" for theirs, ours in group.names.items()}
