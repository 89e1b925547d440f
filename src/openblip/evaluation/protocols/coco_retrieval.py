"""Retrieval on COCO both ways, Karpathy's split: entries {"image", "caption": [texts]} of the authors' files."""

from __future__ import annotations

from openblip.evaluation.protocols.base import Protocol, RetrievalPreset, Score
from openblip.evaluation.protocols.readers import recalls, retrieval

PROTOCOL = Protocol(
    name="coco-retrieval",
    title="COCO retrieval",
    task="retrieval",
    published_at=(
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/ (annotations) and cocodataset.org "
        "(val2014)"
    ),
    presets={
        "paper": RetrievalPreset(
            split="Karpathy test",
            files=("coco_karpathy_test.json",),
            count=5000,
            k=256,
            max_words=30,
            published=(
                recalls("paper, table 5", "model_base_retrieval_coco", 81.9, 95.4, 97.8, 64.3, 85.7, 91.5),
                recalls("paper, table 5", "model_large_retrieval_coco", 82.4, 95.4, 97.9, 65.1, 86.3, 91.8),
            ),
        ),
        "lavis": RetrievalPreset(
            split="Karpathy test",
            files=("coco_karpathy_test.json",),
            count=5000,
            k=256,
            max_words=50,
            published=(recalls("LAVIS", "blip_coco_retrieval", 82.0, 95.8, 98.1, 64.5, 86.0, 91.7),),
        ),
        "mmpretrain": RetrievalPreset(
            split="Karpathy val",
            files=("coco_karpathy_val.json",),
            count=5000,
            k=256,
            max_words=None,
            bare=True,
            published=(
                Score(
                    "mmpretrain",
                    ("blip-base_3rdparty_retrieval",),
                    {"txt_r1": 82.52, "txt_r5": 95.34, "img_r1": 64.82, "img_r5": 86.28},
                ),
            ),
        ),
    },
    read=retrieval,
)
