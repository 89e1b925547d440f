"""The routes of the verbs return what the library returns."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import openblip
from openblip import Blip
from openblip.serving.app import create_app
from tests.serving.serving_toys import RunningServer, encode
from tests.toys import toy_image

IMAGES = [encode(toy_image(seed)) for seed in range(3)]
TEXTS = ["a cat on a bed", "two dogs", "<b>a man</b>"]

pytestmark = pytest.mark.usefixtures("one_thread")


def post(server: RunningServer, route: str, images: list[bytes] = IMAGES, **fields: Any) -> list[dict[str, Any]]:
    body = {"images": [base64.b64encode(image).decode() for image in images], **fields}
    response = server.client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == "toy"
    results: list[dict[str, Any]] = response.json()["results"]
    assert [result["index"] for result in results] == list(range(len(results)))
    return results


def test_captions_equal_the_librarys(server: RunningServer, toy: Blip) -> None:
    expected = toy.caption(IMAGES, n=2, max_new_tokens=8)
    for result, caption in zip(post(server, "caption", n=2, max_new_tokens=8), expected, strict=True):
        assert result["text"] == caption.text
        assert result["logprob"] == pytest.approx(caption.logprob, abs=1e-4)
        assert [each["text"] for each in result["alternatives"]] == [each.text for each in caption.alternatives]


def test_sampled_captions_are_repeatable(server: RunningServer, toy: Blip) -> None:
    options: dict[str, Any] = {"do_sample": True, "seed": 7, "top_p": 0.8, "temperature": 1.5}
    expected = toy.caption(IMAGES, do_sample=True, seed=7, top_p=0.8, temperature=1.5)
    assert [result["text"] for result in post(server, "caption", **options)] == [each.text for each in expected]


def test_answers_equal_the_librarys(server: RunningServer, toy: Blip) -> None:
    questions = ["what is it?", "where is it?"]
    for image, result in zip(IMAGES, post(server, "ask", questions=questions), strict=True):
        expected = toy.ask(image, questions)
        assert [answer["question"] for answer in result["answers"]] == questions
        assert [answer["text"] for answer in result["answers"]] == [answer.text for answer in expected]
        assert [answer["probability"] for answer in result["answers"]] == pytest.approx(
            [answer.probability for answer in expected], rel=1e-3
        )


def test_answers_of_a_closed_list_equal_the_librarys(server: RunningServer, toy: Blip) -> None:
    (result,) = post(server, "ask", IMAGES[:1], question="what?", answers=["cat", "dog", "bed"], n=3)
    expected = toy.ask(IMAGES[0], "what?", answers=["cat", "dog", "bed"], n=3)
    (answer,) = result["answers"]
    ranked = [answer, *answer["alternatives"]]
    assert [each["text"] for each in ranked] == [each.text for each in (expected, *expected.alternatives)]


def test_matches_equal_the_librarys(server: RunningServer, toy: Blip) -> None:
    expected = toy.match(IMAGES, TEXTS)
    assert isinstance(expected, list)
    for result, matches in zip(post(server, "match", texts=TEXTS), expected, strict=True):
        assert [match["text"] for match in result["matches"]] == TEXTS
        assert isinstance(matches, list)
        for match, reference in zip(result["matches"], matches, strict=True):
            assert match["probability"] == pytest.approx(reference.probability, abs=1e-5)
            assert match["similarity"] == pytest.approx(reference.similarity, abs=1e-5)


@pytest.mark.parametrize("by", ["itc", "itm"])
def test_labels_equal_the_librarys(server: RunningServer, toy: Blip, by: Any) -> None:
    labels = ["cat", "dog", "bed"]
    expected = toy.classify(IMAGES, labels, by=by, n=2)
    for result, classification in zip(post(server, "classify", labels=labels, by=by, n=2), expected, strict=True):
        assert [label["text"] for label in result["labels"]] == [label.text for label in classification.labels]


def test_boxes_equal_the_librarys(server: RunningServer, toy: Blip) -> None:
    (result,) = post(server, "ground", IMAGES[:1], expressions=["the cat", "the dog"])
    assert (result["width"], result["height"]) == (40, 30)
    expected = toy.ground(IMAGES[0], ["the cat", "the dog"])
    for entry, box in zip(result["boxes"], expected, strict=True):
        assert [entry[edge] for edge in ("left", "top", "right", "bottom")] == pytest.approx(box.edges, abs=1e-3)


def test_comparisons_equal_the_librarys(server: RunningServer, toy: Blip) -> None:
    (result,) = post(server, "compare", IMAGES[:2], statements=TEXTS)
    expected = toy.compare(IMAGES[0], IMAGES[1], TEXTS)
    for entry, comparison in zip(result["comparisons"], expected, strict=True):
        assert entry["label"] == comparison.label
        assert entry["probability"] == pytest.approx(comparison.probability, abs=1e-5)


@pytest.mark.parametrize(
    ("task", "text"), [("retrieval", "a cat"), ("caption", "a cat"), ("caption", None), ("vqa", "what is it?")]
)
def test_explanations_equal_the_librarys(server: RunningServer, toy: Blip, task: Any, text: str | None) -> None:
    fields = {} if text is None else {"text": text}
    (result,) = post(server, "explain", IMAGES[:1], task=task, **fields)
    (entry,) = result["explanations"]
    expected = toy.explain(IMAGES[0], text, task=task)
    assert entry["text"] == expected.text
    assert entry["words"] == list(expected.words)
    assert entry["answer"] == expected.answer
    np.testing.assert_allclose(entry["maps"], expected.maps, atol=1e-5)
    assert np.shape(entry["maps"]) == (len(entry["words"]), entry["grid"], entry["grid"])


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_equal_the_librarys(server: RunningServer, toy: Blip, encoding: str) -> None:
    body = {
        "images": [base64.b64encode(image).decode() for image in IMAGES],
        "texts": TEXTS,
        "encoding_format": encoding,
    }
    answer = server.client.post("/v1/embed", json=body).json()
    for name, expected in (("images", toy.embed_images(IMAGES)), ("texts", toy.embed_texts(TEXTS))):
        rows = answer[name]
        if encoding == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert answer["dimensions"] == 16


def test_multipart_equals_json(server: RunningServer) -> None:
    files = [("image", (f"<img src=x onerror=alert({index})>.png", data)) for index, data in enumerate(IMAGES)]
    response = server.client.post("/v1/match", files=files, data={"text": TEXTS})
    for result, expected in zip(response.json()["results"], post(server, "match", texts=TEXTS), strict=True):
        for match, reference in zip(result["matches"], expected["matches"], strict=True):
            assert match == pytest.approx(reference, abs=1e-5)
    one = server.client.post("/v1/caption", files=files[:1], data={"n": "2", "trim": "true"})
    assert one.status_code == 200, one.text
    assert len(one.json()["results"][0]["alternatives"]) == 1


def test_an_image_that_fails_is_named_or_returned(server: RunningServer) -> None:
    body = {"images": [base64.b64encode(data).decode() for data in (IMAGES[0], b"no image")]}
    response = server.client.post("/v1/caption", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "images.1"
    results = server.client.post("/v1/caption", json={**body, "on_error": "return"}).json()["results"]
    assert "text" in results[0]
    assert results[1]["error"]["code"] == "invalid_image"


def test_only_loaded_models_are_selected(server: RunningServer) -> None:
    body = {"image": base64.b64encode(IMAGES[0]).decode()}
    assert server.client.post("/v1/caption", json={**body, "model": "toy"}).status_code == 200
    for name in ("base", "../toy", "Salesforce/blip-image-captioning-base", "https://example.org/x.pth", ""):
        response = server.client.post("/v1/caption", json={**body, "model": name})
        assert response.status_code == 404, name
        assert response.json()["error"]["code"] == "model_not_found"


def test_each_model_has_its_own_verbs(toy: Blip, folder: Path) -> None:
    app = create_app({"toy": toy, "captions": openblip.load(folder / "caption", engine="torch")})
    app.service.state.ready = True

    async def read_info() -> dict[str, Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            info: dict[str, Any] = (await client.get("/v1/info")).json()
            return info

    info = asyncio.run(read_info())
    app.service.batcher.close()
    assert info["by_model"]["captions"] == {"tasks": ["caption"], "verbs": ["caption", "explain"]}
    assert info["by_model"]["toy"] == {"tasks": info["tasks"], "verbs": info["verbs"]}
    assert {"ask", "match", "ground"} <= set(info["verbs"])
