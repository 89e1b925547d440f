"""The OpenAI-compatible routes, called by OpenAI's own client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from openblip import Blip
from openblip.serving.options import ServerOptions
from openblip.serving.streaming import WordBuffer
from tests.serving.serving_toys import RunningServer, encode, running_app
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "correct-horse-battery"
IMAGES = [encode(toy_image(seed)) for seed in range(3)]
URIS = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in IMAGES]


@pytest.fixture(scope="module")
def guarded(toy: Blip) -> Iterator[RunningServer]:
    with running_app(toy, ServerOptions(keys={"alice": KEY})) as running:
        yield running


@pytest.fixture(scope="module")
def client(guarded: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def messages(question: str | None, image: str = URIS[0]) -> Any:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image}}]
    if question is not None:
        content.append({"type": "text", "text": question})
    return [{"role": "system", "content": "You see images."}, {"role": "user", "content": content}]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "toy"
    assert model.model_extra is not None
    assert model.model_extra["limits"]["max_images"] == 16


def test_text_embeddings(client: openai.OpenAI, toy: Blip) -> None:
    texts = ["a cat", "two dogs on a bed"]
    expected = toy.embed_texts(texts)
    for options in ({}, {"encoding_format": "float"}):  # the client asks for base64 unless it is told otherwise
        answer = client.embeddings.create(model="toy", input=texts, **options)  # type: ignore[arg-type]
        assert [entry.index for entry in answer.data] == [0, 1]
        np.testing.assert_allclose([entry.embedding for entry in answer.data], expected, atol=1e-5)
    assert answer.usage.prompt_tokens > 0


def test_image_embeddings(client: openai.OpenAI, toy: Blip) -> None:
    expected = toy.embed_images(IMAGES)
    plain = [uri.partition(",")[2] for uri in URIS]
    for inputs, extra in ((URIS, {}), (plain, {"modality": "image"}), (URIS, {"modality": "image"})):
        answer = client.embeddings.create(model="toy", input=inputs, extra_body=extra)
        np.testing.assert_allclose([entry.embedding for entry in answer.data], expected, atol=1e-5)
    mixed = client.embeddings.create(model="toy", input=["a cat", URIS[1]])
    np.testing.assert_allclose(mixed.data[0].embedding, toy.embed_texts("a cat"), atol=1e-5)
    np.testing.assert_allclose(mixed.data[1].embedding, expected[1], atol=1e-5)


def test_chat_answers_a_question(client: openai.OpenAI, toy: Blip) -> None:
    answer = client.chat.completions.create(model="toy", messages=messages("what is it?"), max_tokens=5)
    expected = toy.ask(IMAGES[0], "what is it?", max_new_tokens=5)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_captions_without_a_question(client: openai.OpenAI, toy: Blip) -> None:
    answer = client.chat.completions.create(model="toy", messages=messages(None), n=2, max_completion_tokens=8)
    expected = toy.caption(IMAGES[0], n=2, max_new_tokens=8)
    assert [choice.message.content for choice in answer.choices] == [
        expected.text,
        *(caption.text for caption in expected.alternatives),
    ]
    assert answer.choices[0].finish_reason == ("stop" if expected.finished else "length")


def test_a_temperature_of_almost_zero_is_greedy(client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(model="toy", messages=messages(None), temperature=value).choices[0].message
        for value in (0.0, 1e-300)
    ]
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"temperature": 1.5, "seed": 3}, {"extra_body": {"num_beams": 1}}, {"n": 2}],
    ids=["beams", "greedy", "sampling", "one beam", "two"],
)
@pytest.mark.parametrize("question", [None, "what is it?"])
def test_streams_equal_complete_answers(client: openai.OpenAI, options: dict[str, Any], question: str | None) -> None:
    create: Any = client.chat.completions.create
    complete = create(model="toy", messages=messages(question, URIS[1]), max_tokens=12, **options)
    chunks = list(create(model="toy", messages=messages(question, URIS[1]), max_tokens=12, stream=True, **options))
    for choice in complete.choices:
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(pieces) == choice.message.content
        (reason,) = {chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].index == choice.index} - {
            None
        }
        assert reason == choice.finish_reason
    words = len(complete.choices[0].message.content.split())
    if question is None and options not in ({}, {"n": 2}) and words > 2:
        assert len(chunks) > 3, "word by word"


def test_words_wait_until_they_are_complete() -> None:
    words = WordBuffer()
    texts = ["it", "it '", "it's", "it's snow", "it's snowman"]
    assert [words.push(text) for text in texts] == ["", "it", "", "'s", ""]
    assert words.finish("it's snowman") == " snowman"


def test_rerank_and_score_use_image_text_matching(client: openai.OpenAI, toy: Blip) -> None:
    texts = ["a cat", "two dogs", "a bed"]
    expected = [match.probability for match in toy.match(IMAGES, "a cat")]
    answer: Any = client.post(
        "/rerank", body={"model": "toy", "query": "a cat", "documents": URIS, "top_n": 2}, cast_to=object
    )
    ranked = sorted(range(3), key=lambda index: -expected[index])[:2]
    assert [result["index"] for result in answer["results"]] == ranked
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(
        [expected[index] for index in ranked], abs=1e-5
    )
    scores: Any = client.post("/score", body={"model": "toy", "text_1": URIS[0], "text_2": texts}, cast_to=object)
    reference = [match.probability for match in toy.match(IMAGES[0], texts)]
    assert [entry["score"] for entry in scores["data"]] == pytest.approx(reference, abs=1e-5)
    pairs: Any = client.post("/score", body={"model": "toy", "text_1": URIS, "text_2": texts}, cast_to=object)
    paired = [match.probability for match in toy.match(IMAGES, texts, paired=True)]
    assert [entry["score"] for entry in pairs["data"]] == pytest.approx(paired, abs=1e-5)


PART = {"type": "text", "text": "what?"}


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ("chat/completions", {"messages": [{"role": "user", "content": [PART, {"type": "text"}]}]},
         "messages.0.content.1.text"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
         "messages.0.content.0.text"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.content.0"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages.0.content.0.image_url.url"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}]},
         "messages.0.content.0.image_url"),
        ("chat/completions", {"messages": [{"role": "judge"}]}, "messages.0.role"),
        ("chat/completions", {}, "messages"),
        ("embeddings", {"input": 5}, "input"),
        ("embeddings", {"input": ["a", 5]}, "input.1"),
        ("embeddings", {"input": ""}, "input"),
        ("score", {"text_1": [[]], "text_2": "a"}, "text_1.0"),
    ],
)  # fmt: skip
def test_errors_name_the_field_that_was_sent(
    guarded: RunningServer, route: str, fields: dict[str, Any], param: str
) -> None:
    """Not a member of the union that the field may be."""
    headers = {"X-API-Key": KEY}
    response = guarded.client.post(f"/v1/{route}", json={"model": "toy", **fields}, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, param), error
    assert error["message"].startswith(f"{param}: ")
    assert "more error" not in error["message"]


def test_errors_are_those_of_the_client(client: openai.OpenAI, guarded: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError, match="model must be one of toy"):
        client.embeddings.create(model="text-embedding-3-small", input="a cat")
    with pytest.raises(openai.UnprocessableEntityError, match="one image") as error:
        client.chat.completions.create(model="toy", messages=[{"role": "user", "content": "hello"}])
    assert error.value.param == "messages"
    with pytest.raises(openai.UnprocessableEntityError, match="addresses are not fetched"):
        client.chat.completions.create(model="toy", messages=messages("what?", "https://example.org/a.jpg"))
    with pytest.raises(openai.UnprocessableEntityError, match="base64"):
        client.chat.completions.create(model="toy", messages=messages("what?", "file:///etc/passwd"))
    with pytest.raises(openai.UnprocessableEntityError, match="cannot read"):
        client.chat.completions.create(
            model="toy", messages=messages("what?", "data:image/png;base64,aGVsbG8="), stream=True
        )
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong-key-of-some-length").models.list()
