"""Every engine runs a hybrid ViT: the same captions, embeddings and matches as plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import openblip
from openblip.checkpoints import read, write
from tests.toys import toy_hybrid, toy_image, toy_tokenizer

IMAGES = [toy_image(seed, 90, 70) for seed in range(3)]


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write.save(toy_hybrid("retrieval"), tmp_path_factory.mktemp("match") / "model", tokenizer=toy_tokenizer())


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = toy_hybrid("caption")
    return write.save(model, tmp_path_factory.mktemp("caption") / "model", tokenizer=toy_tokenizer(), prompt="")


@pytest.mark.parametrize(
    ("engine", "precision", "tolerance"),
    [("openvino", "fp32", 1e-4), ("torch", "int8", 0.05), ("torch", "bf16", 0.05)],
)
def test_an_engine_embeds_and_matches_as_plain_pytorch(
    matcher: Path, engine: Any, precision: Any, tolerance: float
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    plain, other = openblip.load(matcher), openblip.load(matcher, engine=engine, precision=precision)
    np.testing.assert_allclose(other.embed_images(IMAGES), plain.embed_images(IMAGES), atol=tolerance)
    for image in IMAGES:
        expected, found = plain.match(image, "a dog"), other.match(image, "a dog")
        assert found.probability == pytest.approx(expected.probability, abs=10 * tolerance)


def test_openvino_captions_as_plain_pytorch(captioner: Path) -> None:
    pytest.importorskip("openvino")
    plain, other = openblip.load(captioner), openblip.load(captioner, engine="openvino")
    assert [c.text for c in other.caption(IMAGES)] == [c.text for c in plain.caption(IMAGES)]


def test_half_precision_storage_keeps_the_outputs(matcher: Path, tmp_path: Path) -> None:
    stored = write.save(read.load(matcher), tmp_path / "half", dtype=torch.float16)
    assert (stored / "model.safetensors").stat().st_size < 0.6 * (matcher / "model.safetensors").stat().st_size
    plain, half = openblip.load(matcher), openblip.load(stored)
    np.testing.assert_allclose(half.embed_images(IMAGES), plain.embed_images(IMAGES), atol=0.01)
