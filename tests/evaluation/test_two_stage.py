"""Two-stage retrieval, compared with recorded score matrices of the original and with scoring every pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import openblip
from openblip.checkpoints.read import load
from openblip.engine.eager import EagerEngine
from openblip.errors import InputError
from openblip.evaluation import two_stage
from openblip.evaluation.metrics import ranks
from openblip.pipelines.base import TaskModel
from openblip.pipelines.inputs import EncodedImage, ImageInput
from openblip.pipelines.retrieval import RetrievalPipeline
from tests.conftest import GOLDEN
from tests.evaluation.evaluation_toys import make_bundle, network
from tests.toys import toy_image

TEXTS = ["a man", "a dog playing in the park", "two cats", "a plate", "a horse", "an old clock tower", "people"]


@pytest.fixture(scope="module")
def recorded() -> tuple[two_stage.RetrievalScores, dict[str, torch.Tensor]]:
    """Return our scores with the golden weights, and the recorded outputs of the original."""
    outputs = load_file(GOLDEN / "retrieval.io.safetensors")
    config = {"vision": {"heads": 4}, "text": {"heads": 4}}
    loaded = load(GOLDEN / "retrieval.weights.safetensors", config=config, tokenizer=GOLDEN / "vocab.txt")
    model = TaskModel(loaded, EagerEngine(loaded.model, torch.device("cpu"), torch.float32))
    states = model.engine.encode_images(outputs["pixel_values"].float())
    images = [EncodedImage({id(model.engine): image_states}) for image_states in states]
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(outputs["text_ids"], outputs["text_mask"], strict=True)]
    return two_stage.score(model, images, rows, 4), outputs


def test_recorded_score_matrices_are_reproduced(
    recorded: tuple[two_stage.RetrievalScores, dict[str, torch.Tensor]],
) -> None:
    scores, outputs = recorded
    np.testing.assert_allclose(scores.texts_of_images, outputs["score_i2t"], atol=1e-4)
    np.testing.assert_allclose(scores.images_of_texts, outputs["score_t2i"], atol=1e-4)


def test_recorded_recalls_are_reproduced(
    recorded: tuple[two_stage.RetrievalScores, dict[str, torch.Tensor]],
) -> None:
    """The original ranks by `argsort()[::-1]`: the equal scores off the shortlist come after the shortlist.

    The order in which numpy's default sort leaves equal scores depends on its version and the processor, so the order
    is listed here. The reverse order, as without AVX, would give a recall of texts at 5 of 50 instead of 66.7.
    """
    scores, outputs = recorded
    expected = json.loads((GOLDEN / "retrieval.json").read_text())
    assert expected["k_test"] == 4
    means = []
    for side, matrix, original, relevant in (
        ("txt", scores.texts_of_images, outputs["score_i2t"].numpy(), expected["img2txt"]),
        ("img", scores.images_of_texts, outputs["score_t2i"].numpy(), [[image] for image in expected["txt2img"]]),
    ):
        shortlists = two_stage.rank_candidates(matrix)
        assert shortlists == two_stage.rank_candidates(original)
        # Of the six images, two are off the shortlist of each text.
        remaining = [sorted(set(range(6)) - set(shortlist), reverse=True) for shortlist in shortlists]
        if side == "txt":
            remaining = TEXTS_OFF_THE_SHORTLIST
        orders = [shortlist + equal for shortlist, equal in zip(shortlists, remaining, strict=True)]
        assert all(sorted(order) == list(range(matrix.shape[1])) for order in orders)
        best_ranks = ranks.score(dict(enumerate(orders)), dict(enumerate(relevant))).items.values()
        recalls = [100 * sum(rank <= k for rank in best_ranks) / len(best_ranks) for k in ranks.KS]
        assert recalls == [expected["metrics"][f"{side}_r{k}"] for k in ranks.KS]
        means.append(sum(recalls) / 3)
        assert means[-1] == expected["metrics"][f"{side}_r_mean"]
    assert sum(means) / 2 == expected["metrics"]["r_mean"]


# For each image, in the order in which numpy 2.4 with AVX2 or AVX-512 sorted the recorded scores.
TEXTS_OFF_THE_SHORTLIST = [
    [8, 9, 11, 5, 3, 2, 1, 0],
    [8, 9, 11, 6, 5, 2, 1, 0],
    [8, 9, 10, 7, 4, 5, 1, 0],
    [8, 9, 7, 4, 3, 2, 1, 0],
    [8, 9, 11, 6, 3, 2, 1, 0],
    [8, 9, 11, 6, 5, 3, 1, 0],
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return openblip.load(make_bundle(tmp_path_factory.mktemp("toy")), batch_size=2).pipeline("retrieval").model


@torch.inference_mode()
def score_every_pair(model: TaskModel, images: list[Image.Image], texts: list[list[int]]) -> np.ndarray:
    """Return ITC plus ITM of each pair, computed separately."""
    rows = []
    module = network(model)
    for image in images:
        states = model.encode_images([model.open_image(image)])
        row = []
        for ids in texts:
            cosine = module.embed_image(states) @ module.embed_text(*model.pad([ids])).T
            grounded = model.pad([[model.tokenizer.enc_id, *ids[1:]]])
            row.append(float(cosine + module.match_logits(*grounded, states)[0, 1]))
        rows.append(row)
    return np.array(rows)


def test_a_full_shortlist_equals_brute_force_and_a_short_one_a_selection(model: TaskModel) -> None:
    images = [toy_image(seed) for seed in range(5)]
    texts = two_stage.encode_texts(model, TEXTS, 30, 35)
    expected = score_every_pair(model, images, texts)
    full = two_stage.score(model, images, texts, 999)
    np.testing.assert_allclose(full.texts_of_images, expected, atol=1e-5)
    np.testing.assert_allclose(full.images_of_texts, expected.T, atol=1e-5)
    pipeline = RetrievalPipeline(model)
    states = model.encode_images([model.open_image(image) for image in images])
    similarity = (pipeline.embed_images(states) @ pipeline.embed_texts(texts).T).numpy()
    short = two_stage.score(model, images, texts, 2)
    for matrix, pairs, cosines in (
        (short.texts_of_images, expected, similarity),
        (short.images_of_texts, expected.T, similarity.T),
    ):
        for row, pair_scores, row_cosines in zip(matrix, pairs, cosines, strict=True):
            shortlist = set(np.argsort(-row_cosines)[:2].tolist())
            for j, value in enumerate(row):
                assert value == pytest.approx(pair_scores[j] if j in shortlist else two_stage.UNSCORED, abs=1e-5)
    relevant = [[i] for i in range(5)]
    assert ranks.score_matrix(full.texts_of_images, relevant) == ranks.score_matrix(expected, relevant)


def test_images_that_cannot_be_opened_are_excluded_with_their_texts(
    model: TaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are ranked as if the excluded images did not exist. Two of three blocks lose one image or all."""
    monkeypatch.setattr(two_stage, "BLOCK", 2)
    images: list[ImageInput] = [toy_image(seed) for seed in range(6)]
    for missing in (1, 2, 3):
        images[missing] = tmp_path / f"missing{missing}.jpg"
    texts = two_stage.encode_texts(model, TEXTS, 30, 35)
    scores = two_stage.score(model, images, texts, 2, image_of_text=[0, 1, 1, 2, 3, 4, 5])
    assert list(scores.failed) == [1, 2, 3]
    assert all(f"missing{number}.jpg" in error for number, error in scores.failed.items())
    good_images, good_texts = [0, 4, 5], [0, 5, 6]
    expected = two_stage.score(model, [images[i] for i in good_images], [texts[i] for i in good_texts], 2)
    for matrix, good_matrix, rows, columns in (
        (scores.texts_of_images, expected.texts_of_images, good_images, good_texts),
        (scores.images_of_texts, expected.images_of_texts, good_texts, good_images),
    ):
        np.testing.assert_allclose(matrix[np.ix_(rows, columns)], good_matrix, atol=1e-5)
        matrix[np.ix_(rows, columns)] = two_stage.UNSCORED
        assert (matrix == two_stage.UNSCORED).all(), "nothing else is on a shortlist"


def test_an_empty_shortlist_is_an_error(model: TaskModel) -> None:
    texts = two_stage.encode_texts(model, TEXTS, 30, 35)
    with pytest.raises(InputError, match="shortlist must be at least 1, got 0"):
        two_stage.score(model, [toy_image(0)], texts, 0)
