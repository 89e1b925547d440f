"""COCO retrieval in both directions, Karpathy's split: entries {"image", "caption": [texts]} of the authors' files."""

from __future__ import annotations

from openblip.evaluation.protocols.base import Protocol, PublishedScore, Split
from openblip.evaluation.protocols.builders import recall_score, retrieval_presets
from openblip.evaluation.protocols.readers import read_retrieval

TEST = Split("Karpathy test", ("coco_karpathy_test.json",), 5000)
VAL = Split("Karpathy val", ("coco_karpathy_val.json",), 5000)

PROTOCOL = Protocol(
    name="coco-retrieval",
    title="COCO retrieval",
    published_at=(
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/ (annotations) and cocodataset.org "
        "(val2014)"
    ),
    presets=retrieval_presets(
        TEST,
        256,
        {
            "paper": (
                recall_score("paper, table 5", "model_base_retrieval_coco", 81.9, 95.4, 97.8, 64.3, 85.7, 91.5),
                recall_score("paper, table 5", "model_large_retrieval_coco", 82.4, 95.4, 97.9, 65.1, 86.3, 91.8),
            ),
            "lavis": (recall_score("LAVIS", "blip_coco_retrieval", 82.0, 95.8, 98.1, 64.5, 86.0, 91.7),),
            "mmpretrain": (
                PublishedScore(
                    "mmpretrain",
                    ("blip-base_3rdparty_retrieval",),
                    {"txt_r1": 82.52, "txt_r5": 95.34, "img_r1": 64.82, "img_r5": 86.28},
                ),
            ),
        },
        mmpretrain_split=VAL,
    ),
    reader=read_retrieval,
)
