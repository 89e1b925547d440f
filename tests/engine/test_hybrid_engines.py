"""Every engine runs a hybrid ViT: the same captions, embeddings and matches as plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import openblip
from openblip.checkpoints import read, write
from openblip.decoding import Decoding, generate_grouped
from openblip.engine.compiled import CompiledEngine
from openblip.engine.eager import EagerEngine
from openblip.tasks import TaskName
from tests.toys import toy_hybrid, toy_image, toy_tokenizer

CPU = torch.device("cpu")
DECODING = Decoding(num_beams=3, max_new_tokens=8, eos_id=3, pad_id=0)
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


@pytest.mark.parametrize("engine", ["openvino", "compiled"])
@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_decoding_over_a_stem_is_the_same(engine: str, task: TaskName, tmp_path: Path) -> None:
    """What is compiled is the same whatever compiles it; `test_engines.py` runs the real compiler."""
    plain: Any = EagerEngine(toy_hybrid(task), CPU, torch.float32)
    other: Any = CompiledEngine(toy_hybrid(task), CPU, torch.float32, backend="eager")
    if engine == "openvino":
        pytest.importorskip("openvino")
        from openblip.engine.openvino.engine import OpenVinoEngine

        model: Any = toy_hybrid(task)
        other = OpenVinoEngine(model, model.config, "fp32", cache=tmp_path, key=task)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[599, 20, 30, 3], [599, 41, 3, 0], [599, 7, 8, 3]])
    mask = (ids > 0).long()
    results = []
    for built in (plain, other):
        states = built.encode_images(pixels)
        if task == "caption":
            start = built.prepare_captions(states, 12)
        else:
            questions = built.encode_questions(ids, mask, states)
            start = built.prepare_answers(questions, mask, 12)
        results.append((states, generate_grouped(start, [[598]] * 3, DECODING)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-4)
    ours, theirs = ([h for hypotheses in result for h in hypotheses] for _, result in results)
    assert [h.ids for h in ours] == [h.ids for h in theirs]
    assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], abs=1e-3)


def test_half_precision_storage_keeps_captions_and_matches(matcher: Path, captioner: Path, tmp_path: Path) -> None:
    half_matcher = write.save(read.load(matcher), tmp_path / "matcher", dtype=torch.float16)
    half_captioner = write.save(read.load(captioner), tmp_path / "captioner", dtype=torch.float16)
    plain, half = openblip.load(matcher), openblip.load(half_matcher)
    for image in IMAGES:
        expected, result = plain.match(image, "a dog"), half.match(image, "a dog")
        assert result.probability == pytest.approx(expected.probability, abs=0.02)
        assert result.similarity == pytest.approx(expected.similarity, abs=0.01)
    captions = openblip.load(captioner).caption(IMAGES), openblip.load(half_captioner).caption(IMAGES)
    for full, stored in zip(*captions, strict=True):
        assert stored.text == full.text
        assert stored.score == pytest.approx(full.score, abs=0.02)


def test_half_precision_storage_keeps_the_outputs(matcher: Path, tmp_path: Path) -> None:
    stored = write.save(read.load(matcher), tmp_path / "half", dtype=torch.float16)
    assert (stored / "model.safetensors").stat().st_size < 0.6 * (matcher / "model.safetensors").stat().st_size
    plain, half = openblip.load(matcher), openblip.load(stored)
    np.testing.assert_allclose(half.embed_images(IMAGES), plain.embed_images(IMAGES), atol=0.01)
