"""The layout of salesforce/LAVIS, which is salesforce/BLIP's with another name for the queue pointer of retrieval.

OpenBLIP does not support the classification model of LAVIS; its table only serves messages that name such a file.
"""

from __future__ import annotations

from openblip.checkpoints.layouts import parts, salesforce
from openblip.checkpoints.layouts.table import Group, Table, merged, prefixed

TABLES = salesforce.tables("lavis", ("queue_ptr", "ptr_queue"))

CLASSIFICATION = Table(
    "lavis",
    "classification",
    (
        Group("image encoder", prefixed(parts.TIMM_VISION, "visual_encoder", "vision")),
        Group("text encoder", prefixed(parts.TEXT, "text_encoder", "text")),
        Group("classification head", {"cls_head.0": "head.dense", "cls_head.2": "head.out"}),
        Group(
            "momentum copies",
            merged(
                prefixed(parts.TIMM_VISION, "visual_encoder_m", "momentum.vision"),
                prefixed(parts.TEXT, "text_encoder_m", "momentum.text"),
                {"cls_head_m.0": "momentum.head.dense", "cls_head_m.2": "momentum.head.out"},
            ),
            "optional",
        ),
        parts.position_ids("text_encoder", "text_encoder_m"),
    ),
)
