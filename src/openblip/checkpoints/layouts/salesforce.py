"""The layout of salesforce/BLIP, under the key `model` of a `.pth`. LAVIS uses it with one other name."""

from __future__ import annotations

from collections.abc import Sequence

from openblip.checkpoints.layouts import parts
from openblip.checkpoints.layouts.table import Group, Table, merged, prefixed
from openblip.model.config import ModelKind

_VISION = Group("image encoder", prefixed(parts.TIMM_VISION, "visual_encoder", "vision"))
_MATCHING = (
    Group("text encoder", prefixed(parts.TEXT, "text_encoder", "text")),
    Group("projections", {"vision_proj": "vision_proj", "text_proj": "text_proj"}),
    Group("matching head", {"itm_head": "itm_head"}),
    Group(
        "momentum copies",
        merged(
            prefixed(parts.TIMM_VISION, "visual_encoder_m", "momentum.vision"),
            prefixed(parts.TEXT, "text_encoder_m", "momentum.text"),
            {"vision_proj_m": "momentum.vision_proj", "text_proj_m": "momentum.text_proj"},
        ),
        "optional",
    ),
)
_DECODER = parts.decoder_stack("text_decoder.bert", "decoder")
_HEAD = parts.language_head("text_decoder.cls.predictions", "decoder.embeddings.word")


def _queues(pointers: Sequence[str], ids: bool) -> tuple[Group, ...]:
    features = {"image_queue": "queue.image", "text_queue": "queue.text"}
    named = Group("queues", features | dict.fromkeys(pointers, "queue.pointer"), "optional")
    return (named, Group("queue of image ids", {"idx_queue": "queue.ids"}, "optional")) if ids else (named,)


def tables(family: str, retrieval_pointers: Sequence[str]) -> dict[ModelKind, Table]:
    """Return the tables of a family with this layout.

    Args:
        family: Name of the family.
        retrieval_pointers: Names of the queue pointer in the retrieval model: all are read, the first is written.
    """
    groups: dict[ModelKind, tuple[Group, ...]] = {
        "caption": (_VISION, _DECODER, *_HEAD, parts.position_ids("text_decoder.bert")),
        "vqa": (
            _VISION,
            Group("question encoder", prefixed(parts.TEXT, "text_encoder", "encoder")),
            _DECODER,
            *_HEAD,
            parts.position_ids("text_encoder", "text_decoder.bert"),
        ),
        "retrieval": (
            _VISION,
            *_MATCHING,
            # the separate matching model has none
            Group("temperature", {"temp": "temperature"}, "optional"),
            *_queues(retrieval_pointers, ids=True),
            parts.position_ids("text_encoder", "text_encoder_m"),
        ),
        "nlvr": (
            _VISION,
            Group("text encoder of two images", prefixed(parts.TWIN_TEXT, "text_encoder", "text")),
            Group("comparison head", {"cls_head.0": "head.dense", "cls_head.2": "head.out"}),
            parts.position_ids("text_encoder"),
        ),
        "pretrain": (
            _VISION,
            *_MATCHING,
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
            Group("temperature", {"temp": "temperature"}),
            *_queues(("queue_ptr",), ids=False),
            parts.position_ids("text_encoder", "text_encoder_m", "text_decoder.bert"),
        ),
    }
    return {task: Table(family, task, parts) for task, parts in groups.items()}


TABLES = tables("salesforce", ("ptr_queue", "queue_ptr"))
