"""Flickr30k retrieval in both directions, Karpathy's test split (the authors' `flickr30k_test.json`)."""

from __future__ import annotations

from openblip.evaluation.protocols.base import Protocol, PublishedScore, Split
from openblip.evaluation.protocols.builders import recall_score, retrieval_presets
from openblip.evaluation.protocols.readers import read_retrieval

ZERO_SHOT = "paper, table 6, zero-shot"

PROTOCOL = Protocol(
    name="flickr30k-retrieval",
    title="Flickr30k retrieval",
    published_at="https://storage.googleapis.com/sfr-vision-language-research/datasets/ and shannon.cs.illinois.edu",
    presets=retrieval_presets(
        Split("Karpathy test", ("flickr30k_test.json",), 1000),
        128,
        {
            "paper": (
                recall_score("paper, table 5", "model_base_retrieval_flickr", 97.3, 99.9, 100.0, 87.3, 97.6, 98.9),
                recall_score("paper, table 5", "model_large_retrieval_flickr", 97.4, 99.8, 99.9, 87.6, 97.7, 99.0),
                recall_score(ZERO_SHOT, "model_base_retrieval_coco", 96.0, 99.9, 100.0, 85.0, 96.8, 98.6),
                recall_score(ZERO_SHOT, "model_large_retrieval_coco", 96.7, 100.0, 100.0, 86.7, 97.3, 98.7),
            ),
            "lavis": (recall_score("LAVIS", "blip_flickr_retrieval", 96.9, 99.9, 100.0, 87.5, 97.6, 98.9),),
            "mmpretrain": (
                PublishedScore(
                    "mmpretrain",
                    ("blip-base_3rdparty_retrieval",),
                    {"txt_r1": 95.10, "txt_r5": 99.60, "img_r1": 85.26, "img_r5": 96.58},
                ),
            ),
        },
    ),
    reader=read_retrieval,
)
