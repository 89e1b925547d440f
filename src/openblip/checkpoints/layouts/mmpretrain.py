"""The layout of open-mmlab/mmpretrain, under the key `state_dict` of a `.pth`. It has no pretraining model."""

from __future__ import annotations

from openblip.checkpoints.layouts import parts
from openblip.checkpoints.layouts.table import Group, Table, merged, prefixed
from openblip.model.config import ModelKind

VISION = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.projection": "patch_embed",
    "layers.#.ln1": "blocks.#.norm1",
    "layers.#.attn.qkv": "blocks.#.attn.qkv",
    "layers.#.attn.proj": "blocks.#.attn.proj",
    "layers.#.ln2": "blocks.#.norm2",
    "layers.#.ffn.layers.0.0": "blocks.#.mlp.fc1",
    "layers.#.ffn.layers.1": "blocks.#.mlp.fc2",
    "ln1": "norm",  # the final norm
}


def _vision(prefix: str) -> Group:
    return Group("image encoder", prefixed(VISION, prefix, "vision"))


def _decoder(head: str) -> tuple[Group, ...]:
    return (
        parts.decoder_stack(f"{head}.decoder.bert", "decoder"),
        *parts.language_head(f"{head}.decoder.cls.predictions", "decoder.embeddings.word"),
    )


_GROUPS: dict[ModelKind, tuple[Group, ...]] = {
    "caption": (
        _vision("visual_encoder"),
        *_decoder("seq_gen_head"),
        parts.position_ids("seq_gen_head.decoder.bert"),
    ),
    "vqa": (
        _vision("vision_backbone"),
        Group("question encoder", prefixed(parts.TEXT, "multimodal_backbone", "encoder")),
        *_decoder("vqa_head"),
        parts.position_ids("multimodal_backbone", "vqa_head.decoder.bert"),
    ),
    "retrieval": (
        _vision("vision_backbone"),
        Group("text encoder", prefixed(parts.TEXT, "text_backbone", "text")),
        Group("projections", {"vision_neck": "vision_proj", "text_neck": "text_proj"}),
        Group("matching head", {"multimodal_head.fc": "itm_head"}),
        Group("temperature", {"temp": "temperature"}, "optional"),
        Group("copy of the temperature", {"head.temp": "temperature"}, "derivable", "shared"),
        Group(
            "momentum copies",
            merged(
                prefixed(VISION, "vision_backbone_m", "momentum.vision"),
                prefixed(parts.TEXT, "text_backbone_m", "momentum.text"),
                {"vision_neck_m": "momentum.vision_proj", "text_neck_m": "momentum.text_proj"},
            ),
            "optional",
        ),
        Group(
            "queues",
            {
                "head.image_queue": "queue.image",
                "head.text_queue": "queue.text",
                "head.queue_ptr": "queue.pointer",
            },
            "optional",
        ),
        Group("queue of image ids", {"head.idx_queue": "queue.ids"}, "optional"),
        parts.position_ids("text_backbone", "text_backbone_m"),
    ),
    "nlvr": (
        _vision("vision_backbone"),
        Group("text encoder of two images", prefixed(parts.TWIN_TEXT, "multimodal_backbone", "text")),
        Group("comparison head", {"head.0": "head.dense", "head.2": "head.out"}),
        parts.position_ids("multimodal_backbone"),
    ),
    "grounding": (
        _vision("visual_encoder"),
        Group("text encoder", prefixed(parts.TEXT, "text_encoder", "text")),
        Group("fusion encoder", prefixed(parts.TEXT, "multimodal_encoder", "fusion")),
        *_decoder("grounding_head"),
        Group(
            "coordinate tokens",
            {
                "grounding_head.prefix_ids": "=box_start",
                "grounding_head.target_ids": "=box_tokens",
                "grounding_head.bbox_prob_mask": "=box_mask",
            },
            "derivable",
            "constant",
        ),
        parts.position_ids("text_encoder", "multimodal_encoder", "grounding_head.decoder.bert"),
    ),
}

TABLES: dict[ModelKind, Table] = {task: Table("mmpretrain", task, groups) for task, groups in _GROUPS.items()}
