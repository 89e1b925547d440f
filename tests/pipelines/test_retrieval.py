"""Match scores, embeddings and labels, against the heads of the network."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from openblip import Blip, InputError, Label, Match
from openblip.model.matcher import Matcher
from tests.pipelines.pipeline_toys import IMAGES, LABELS, TEXTS, assert_close, count_images, encode_directly

pytestmark = pytest.mark.usefixtures("one_thread")


def test_match_scores_are_those_of_the_heads(blip: Blip) -> None:
    model = blip.pipeline("retrieval").model
    network, tokenizer = cast(Matcher, model.module), model.tokenizer
    states = encode_directly(blip, "retrieval", 0)
    with torch.no_grad():
        enc, cls = (tokenizer.encode(["a dog , a man"], first) for first in ("enc", "cls"))
        probability = network.match_logits(enc.ids, enc.mask, states).softmax(-1)[0, 1].item()
        cosine = (network.embed_image(states) @ network.embed_text(cls.ids, cls.mask).T).item()
    assert_close(blip.match(IMAGES[0], "A dog, a man."), Match(probability, cosine))


def test_all_pairs_equal_single_pairs(blip: Blip) -> None:
    expected = [[blip.match(image, text) for text in TEXTS] for image in IMAGES]
    assert_close(blip.match(IMAGES, TEXTS), expected)
    assert_close(blip.match(IMAGES[0], TEXTS), expected[0])
    assert_close(list(blip.match(iter(IMAGES), TEXTS)), expected)
    diagonal = [expected[index][index] for index in range(4)]
    assert_close(blip.match(IMAGES[:4], TEXTS, paired=True), diagonal)
    assert_close(list(blip.match(iter(IMAGES[:4]), iter(TEXTS), paired=True)), diagonal)
    assert_close(blip.match(IMAGES, TEXTS[0], paired=True), blip.match(IMAGES, TEXTS[0]))


def test_images_are_encoded_once_for_all_texts(blip: Blip) -> None:
    with count_images(blip, "retrieval") as counter:
        blip.match(IMAGES, TEXTS)
    assert counter.count == len(IMAGES)
    with count_images(blip, "retrieval") as counter:
        blip.classify(IMAGES[0], LABELS, by="itm")
    assert counter.count == 1


def test_embeddings_are_normalized_float32(blip: Blip) -> None:
    for embeddings in (blip.embed_images(IMAGES), blip.embed_texts(TEXTS)):
        assert embeddings.dtype == np.float32
        assert embeddings.shape == (len(embeddings), 16)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(blip.embed_texts(TEXTS), [blip.embed_texts(text) for text in TEXTS], atol=1e-5)
    np.testing.assert_allclose(blip.embed_images(IMAGES), [blip.embed_images(image) for image in IMAGES], atol=1e-5)


def test_shapes_of_embeddings(blip: Blip) -> None:
    assert blip.embed_images(IMAGES[0]).shape == (16,)
    assert blip.embed_texts("a cat").shape == (16,)
    assert blip.embed_images([]).shape == (0, 16)
    assert blip.embed_texts([]).shape == (0, 16)
    assert next(blip.embed_images(iter(IMAGES))).shape == (16,)
    assert next(blip.embed_texts(iter(TEXTS))).shape == (16,)
    many = blip.embed_texts(TEXTS * 40)
    np.testing.assert_allclose(many[:4], many[-4:], atol=1e-5)


@pytest.mark.parametrize("by", ["itc", "itm"])
def test_labels_are_ranked_by_their_texts(blip: Blip, by: Any) -> None:
    texts = [f"a picture of {label}" for label in LABELS]
    if by == "itc":
        scores = blip.embed_images(IMAGES[:1]) @ blip.embed_texts(texts).T / 0.07
    else:
        odds = [match.probability / (1 - match.probability) for match in blip.match(IMAGES[0], texts)]
        scores = np.log([odds])
    shares = np.exp(scores[0]) / np.exp(scores[0]).sum()
    expected = [Label(LABELS[i], float(shares[i])) for i in np.argsort(-shares)]
    labels = blip.classify(IMAGES[0], LABELS, by=by, n=len(LABELS)).labels
    assert [label.text for label in labels] == [label.text for label in expected]
    assert [label.probability for label in labels] == pytest.approx([label.probability for label in expected], abs=1e-4)
    assert_close(blip.classify(IMAGES[0], LABELS, by=by).labels, labels[:1])
    bare = blip.classify(IMAGES[0], texts, by=by, template="{}", n=5)
    assert_close([label.probability for label in bare.labels], [label.probability for label in labels])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "cat"}, "labels must be"), ({"labels": []}, "labels must be"), ({"labels": [7]}, "labels must be"),
        ({"n": 6}, "between 1 and the number of labels"), ({"n": 0}, "between 1"),
        ({"template": "a picture"}, "template must contain"), ({"by": "vibes"}, "by must be"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(blip: Blip, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        blip.classify(IMAGES[0], **({"labels": LABELS} | options))


def test_texts_must_be_strings_and_as_many_as_images(blip: Blip) -> None:
    with pytest.raises(InputError, match="a text must be a string, got int"):
        blip.match(IMAGES[0], cast(Any, [7]))
    with pytest.raises(InputError, match="2 images need 2 texts, got 1"):
        blip.match(IMAGES[:2], ["a"], paired=True)
