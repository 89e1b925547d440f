"""Two-stage retrieval against the recorded score matrices of the original, and against judging every pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import openblip
from openblip.checkpoints.read import load
from openblip.engine.eager import EagerEngine
from openblip.engine.protocols import Embeddings
from openblip.errors import InputError
from openblip.evaluation import two_stage
from openblip.evaluation.metrics import ranks
from openblip.pipelines.base import TaskModel
from openblip.pipelines.inputs import EncodedImage
from openblip.pipelines.retrieval import RetrievalPipeline
from tests.conftest import GOLDEN
from tests.evaluation.evaluation_toys import toy_bundle
from tests.toys import toy_image

TEXTS = ["a man", "a dog playing in the park", "two cats", "a plate", "a horse", "an old clock tower", "people"]


@pytest.fixture(scope="module")
def recorded() -> tuple[two_stage.Scores, dict[str, torch.Tensor]]:
    """Scores on the golden weights, and what the original gave."""
    seen = load_file(GOLDEN / "retrieval.io.safetensors")
    config = {"vision": {"heads": 4}, "text": {"heads": 4}}
    loaded = load(GOLDEN / "retrieval.weights.safetensors", config=config, tokenizer=GOLDEN / "vocab.txt")
    runner = RetrievalPipeline(TaskModel(loaded, EagerEngine(loaded.model, torch.device("cpu"), torch.float32)))
    states = runner.model.engine.encode_images(seen["pixel_values"].float())
    images = [EncodedImage({id(runner.model.engine): state}) for state in states]
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(seen["text_ids"], seen["text_mask"], strict=True)]
    return two_stage.score(runner, images, rows, 4), seen


def test_recorded_score_matrices_are_reproduced(
    recorded: tuple[two_stage.Scores, dict[str, torch.Tensor]],
) -> None:
    found, seen = recorded
    np.testing.assert_allclose(found.texts_of_images, seen["score_i2t"], atol=1e-4)
    np.testing.assert_allclose(found.images_of_texts, seen["score_t2i"], atol=1e-4)


def test_recorded_recalls_are_reproduced(
    recorded: tuple[two_stage.Scores, dict[str, torch.Tensor]],
) -> None:
    """The original ranks by ``argsort()[::-1]``: after the shortlist comes all that is off it, which is equal.

    In what order numpy's default sort leaves equal scores depends on its version and the processor, so the order is
    written down here; the last first, as without AVX, would give a recall of texts at 5 of 50, not 66.7.
    """
    found, seen = recorded
    said = json.loads((GOLDEN / "retrieval.json").read_text())
    assert said["k_test"] == 4
    means = []
    for side, scores, theirs, right in (
        ("txt", found.texts_of_images, seen["score_i2t"].numpy(), said["img2txt"]),
        ("img", found.images_of_texts, seen["score_t2i"].numpy(), [[image] for image in said["txt2img"]]),
    ):
        shortlists = two_stage.rankings(scores)
        assert shortlists == two_stage.rankings(theirs)
        # Of the six images two are off each text's shortlist.
        rest = REST if side == "txt" else [sorted(set(range(6)) - set(kept), reverse=True) for kept in shortlists]
        orders = [kept + others for kept, others in zip(shortlists, rest, strict=True)]
        assert all(sorted(order) == list(range(scores.shape[1])) for order in orders)
        places = ranks.from_lists(dict(enumerate(orders)), dict(enumerate(right))).items.values()
        recalls = [100 * sum(place <= k for place in places) / len(places) for k in ranks.KS]
        assert recalls == [said["metrics"][f"{side}_r{k}"] for k in ranks.KS]
        means.append(sum(recalls) / 3)
        assert means[-1] == said["metrics"][f"{side}_r_mean"]
    assert sum(means) / 2 == said["metrics"]["r_mean"]


REST = [
    [8, 9, 11, 5, 3, 2, 1, 0],
    [8, 9, 11, 6, 5, 2, 1, 0],
    [8, 9, 10, 7, 4, 5, 1, 0],
    [8, 9, 7, 4, 3, 2, 1, 0],
    [8, 9, 11, 6, 3, 2, 1, 0],
    [8, 9, 11, 6, 5, 3, 1, 0],
]  # texts off each image's shortlist, as numpy 2.4 with AVX2 or AVX-512 sorts what was recorded


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> RetrievalPipeline:
    return openblip.load(toy_bundle(tmp_path_factory.mktemp("toy"))).pipeline("retrieval")


def every_pair(runner: RetrievalPipeline, images: list[Any], texts: list[list[int]]) -> np.ndarray:
    """ITC plus ITM of each pair alone, one at a time."""
    rows = []
    engine = runner.model.engine.require(Embeddings)
    for image in images:
        state = runner.model.encode_images([runner.model.open_image(image)])
        row = []
        for ids in texts:
            cosine = engine.embed_images(state) @ engine.embed_texts(*runner.model.pad([ids])).T
            grounded = runner.model.pad([[runner.model.tokenizer.enc_id, *ids[1:]]])
            row.append(float(cosine + runner.model.module.match_logits(*grounded, state)[0, 1]))
        rows.append(row)
    return np.array(rows)


def test_with_all_candidates_it_is_brute_force_and_with_fewer_the_shortlist(runner: RetrievalPipeline) -> None:
    images = [toy_image(seed) for seed in range(5)]
    texts = two_stage.texts_as_ids(runner, TEXTS, 30, 35)
    with torch.inference_mode():
        wanted = every_pair(runner, images, texts)
    full = two_stage.score(runner, images, texts, 999, batch_size=2)
    np.testing.assert_allclose(full.texts_of_images, wanted, atol=1e-5)
    np.testing.assert_allclose(full.images_of_texts, wanted.T, atol=1e-5)
    states = runner.model.encode_images([runner.model.open_image(image) for image in images])
    similarity = (runner.embed_images(states) @ runner.embed_texts(texts).T).numpy()
    short = two_stage.score(runner, images, texts, 2)
    for scores, pairs, cosines in (
        (short.texts_of_images, wanted, similarity),
        (short.images_of_texts, wanted.T, similarity.T),
    ):
        for got, pair, cosine in zip(scores, pairs, cosines, strict=True):
            kept = set(np.argsort(-cosine)[:2].tolist())
            for j, value in enumerate(got):
                assert value == pytest.approx(pair[j] if j in kept else two_stage.UNSCORED, abs=1e-5)
    right = [[i] for i in range(5)]
    assert ranks.from_matrix(full.texts_of_images, right) == ranks.from_matrix(wanted, right)


def test_what_cannot_be_opened_is_left_out_with_its_texts(
    runner: RetrievalPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What remains is ranked as if it had never been there; here two of three blocks lose a picture or all of them."""
    monkeypatch.setattr(two_stage, "BLOCK", 2)
    images: list[Any] = [toy_image(seed) for seed in range(6)]
    owners = [0, 1, 1, 2, 3, 4, 5]
    for lost in (1, 2, 3):
        images[lost] = tmp_path / f"lost{lost}.jpg"
    texts = two_stage.texts_as_ids(runner, TEXTS, 30, 35)
    found = two_stage.score(runner, images, texts, 2, owners=owners, batch_size=2)
    assert list(found.failed) == [1, 2, 3]
    assert all(f"lost{number}.jpg" in why for number, why in found.failed.items())
    kept, kept_texts = [0, 4, 5], [0, 5, 6]
    rest = [texts[text] for text in kept_texts]
    wanted = two_stage.score(runner, [images[image] for image in kept], rest, 2)
    for got, right, rows, columns in (
        (found.texts_of_images, wanted.texts_of_images, kept, kept_texts),
        (found.images_of_texts, wanted.images_of_texts, kept_texts, kept),
    ):
        np.testing.assert_allclose(got[np.ix_(rows, columns)], right, atol=1e-5)
        got[np.ix_(rows, columns)] = two_stage.UNSCORED
        assert (got == two_stage.UNSCORED).all(), "nothing else is on any shortlist"


def test_what_cannot_work_is_said(runner: RetrievalPipeline, tmp_path: Path) -> None:
    texts = two_stage.texts_as_ids(runner, TEXTS, 30, 35)
    with pytest.raises(InputError, match="shortlist of 0"):
        two_stage.score(runner, [toy_image(0)], texts, 0)
