"""A cache as a user's machine has one: files in the original formats under their published names, weights random."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from openblip.checkpoints import published, write
from openblip.model.build import build_model
from openblip.model.config import ModelConfig, TextConfig, VisionConfig
from openblip.preprocess.vocabulary import read_vocab
from tests.conftest import GOLDEN

NAMES = (
    "blip-base_3rdparty_caption",
    "blip-base_3rdparty_vqa",
    "blip-base_3rdparty_retrieval",
    "blip-base_3rdparty_nlvr",
    "blip-base_8xb16_refcoco",
    "blip_caption/base_coco",
    "blip_vqa/vqav2",
    "blip_feature_extractor/base",
    "blip_image_text_matching/large",
)


def fill(home: Path) -> dict[str, str]:
    """Write the cache; the environment in which a program finds it. Nothing in the program is changed."""
    cache = home / "openblip"
    cache.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        entry = published.get(name)
        path = write.save(_model(entry, number), cache / str(entry.file), to=entry.family)
        if entry.digits:  # as `sha256sum` writes it: this file is what is meant, whatever the published name says
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    _vocabulary(home / "hf" / "hub" / "models--google-bert--bert-base-uncased")
    return {"OPENBLIP_CACHE": str(cache), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}


def _model(entry: published.Published, seed: int) -> torch.nn.Module:
    """Small towers of the widths that the files let be told: heads of 64, the published vocabulary."""
    text = TextConfig(width=64, depth=2, heads=1, mlp_width=80, memory_width=64)
    config = ModelConfig(
        task=entry.task, vision=VisionConfig(image_size=48, width=64, depth=2, heads=1, mlp_width=96), text=text
    )
    if ("blip_image_text_matching", "large") in entry.lavis:
        config = replace(config, text=replace(text, depth=8))  # the example of LAVIS explains block 7
    if entry.task == "nlvr":
        config = replace(config, text=replace(text, merge_from=6, depth=7))
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def _vocabulary(repository: Path) -> None:
    """As long as bert-base-uncased, with the words that the tests say."""
    lines = [f"[unused{number - 1 if number < 100 else number - 5}]" for number in range(30522)]
    pieces = {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1037: "a",
        3861: "picture",
        1997: "of",
    }
    words = [word for word in read_vocab(GOLDEN / "vocab.txt") if word[0] != "[" and word not in pieces.values()]
    for number, piece in (pieces | dict(enumerate(words, 5000))).items():
        lines[number] = piece
    commit = "0" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
