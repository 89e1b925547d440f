"""Retrieval on Flickr30k both ways, Karpathy's test split of 1,000 pictures (the authors' ``flickr30k_test.json``)."""

from __future__ import annotations

from openblip.evaluation.protocols.base import Protocol, RetrievalPreset, Score
from openblip.evaluation.protocols.readers import recalls, retrieval

FILES = ("flickr30k_test.json",)
ZERO_SHOT = "paper, table 6, zero-shot"

PROTOCOL = Protocol(
    name="flickr30k-retrieval",
    title="Flickr30k retrieval",
    task="retrieval",
    published_at="https://storage.googleapis.com/sfr-vision-language-research/datasets/ and shannon.cs.illinois.edu",
    presets={
        "paper": RetrievalPreset(
            split="Karpathy test",
            files=FILES,
            count=1000,
            k=128,
            max_words=30,
            published=(
                recalls("paper, table 5", "model_base_retrieval_flickr", 97.3, 99.9, 100.0, 87.3, 97.6, 98.9),
                recalls("paper, table 5", "model_large_retrieval_flickr", 97.4, 99.8, 99.9, 87.6, 97.7, 99.0),
                recalls(ZERO_SHOT, "model_base_retrieval_coco", 96.0, 99.9, 100.0, 85.0, 96.8, 98.6),
                recalls(ZERO_SHOT, "model_large_retrieval_coco", 96.7, 100.0, 100.0, 86.7, 97.3, 98.7),
            ),
        ),
        "lavis": RetrievalPreset(
            split="Karpathy test",
            files=FILES,
            count=1000,
            k=128,
            max_words=50,
            published=(recalls("LAVIS", "blip_flickr_retrieval", 96.9, 99.9, 100.0, 87.5, 97.6, 98.9),),
        ),
        "mmpretrain": RetrievalPreset(
            split="Karpathy test",
            files=FILES,
            count=1000,
            k=256,
            max_words=None,
            bare=True,
            published=(
                Score(
                    "mmpretrain",
                    ("blip-base_3rdparty_retrieval",),
                    {"txt_r1": 95.10, "txt_r5": 99.60, "img_r1": 85.26, "img_r5": 96.58},
                ),
            ),
        ),
    },
    read=retrieval,
)
