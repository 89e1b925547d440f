"""Statements about two images, against Salesforce's recorded logits and the head of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from openblip import Blip, Comparison, ImageError, InputError
from openblip.engine.protocols import Comparisons
from openblip.model.comparer import Comparer
from tests.pipelines.pipeline_toys import (
    IMAGES,
    RIGHT_IMAGES,
    TEXTS,
    UNREADABLE,
    assert_close,
    count_images,
    encode_directly,
    encode_pixels,
    load_golden,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_comparisons_equal_the_recorded_ones() -> None:
    blip, tensors, strings = load_golden("nlvr")
    engine = blip.pipeline("nlvr").model.engine
    images = [encode_pixels(blip, pixels) for pixels in tensors["pixel_values"].chunk(2)]
    for (left, right), logits in ((images, tensors["logits"]), (images[::-1], tensors["logits_swapped_pair"])):
        states = [torch.stack([image.states[id(engine)] for image in side]) for side in (left, right)]
        computed = engine.require(Comparisons).compare_logits(tensors["input_ids"], tensors["attention_mask"], *states)
        torch.testing.assert_close(computed, logits, atol=1e-5, rtol=1e-4)
        # The third text was recorded with its full stop, which cleaning deletes.
        results = blip.compare(left[:2], right[:2], strings["texts"][:2])
        assert [r.probability for r in results] == pytest.approx(logits.softmax(-1)[:2, 1].tolist(), abs=1e-5)
        assert [r.label for r in results] == logits[:2].argmax(-1).bool().tolist()


def test_a_comparison_is_the_output_of_the_head(blip: Blip) -> None:
    model = blip.pipeline("nlvr").model
    network = cast(Comparer, model.module)
    ids = model.tokenizer.encode(["the dog on the left , near the train"], "enc").ids
    with torch.no_grad():
        logits = network.logits(ids, None, (encode_directly(blip, "nlvr", 0), encode_directly(blip, "nlvr", 1)))[0]
    result = blip.compare(IMAGES[0], IMAGES[1], "The dog on the left, near the train.")
    assert_close(result, Comparison(bool(logits.argmax() == 1), logits.softmax(-1)[1].item()))
    assert result.probability != pytest.approx(blip.compare(IMAGES[1], IMAGES[0], TEXTS[1]).probability, abs=1e-3)


def test_pairs_come_as_one_as_lists_and_as_iterators(blip: Blip) -> None:
    expected = [blip.compare(left, right, "a dog") for left, right in zip(IMAGES, RIGHT_IMAGES, strict=True)]
    assert len({result.probability for result in expected}) == len(expected)
    assert_close(blip.compare(IMAGES, RIGHT_IMAGES, "a dog"), expected)
    assert_close(list(blip.compare(iter(IMAGES), iter(RIGHT_IMAGES), "a dog")), expected)
    assert blip.compare([], [], "a dog") == []
    results = blip.compare(IMAGES[0], IMAGES[1], TEXTS)
    assert_close(results, [blip.compare(IMAGES[0], IMAGES[1], text) for text in TEXTS])


def test_a_pair_is_encoded_once_for_all_its_statements(blip: Blip) -> None:
    with count_images(blip, "nlvr") as counter:
        results = blip.compare(IMAGES[0], IMAGES[1], TEXTS * 20)
    assert counter.count == 2
    assert_close(results[:4], results[-4:])


def test_an_unreadable_right_image_is_the_error_of_its_pair(blip: Blip) -> None:
    with pytest.raises(ImageError):
        blip.compare(IMAGES[0], UNREADABLE[1], "a dog")
    right = [RIGHT_IMAGES[0], UNREADABLE[2], RIGHT_IMAGES[2]]
    results = blip.compare(IMAGES[:3], right, "a dog", on_error="return")
    assert [isinstance(result, ImageError) for result in results] == [False, True, False]
    with pytest.raises(ImageError, match="item 1: ") as raised:
        blip.compare(IMAGES[:3], right, "a dog")
    assert raised.value.item == (IMAGES[1], UNREADABLE[2])


@pytest.mark.parametrize(
    "call",
    [
        lambda blip: blip.compare(IMAGES[:2], IMAGES[:1], "a"),
        lambda blip: blip.compare(IMAGES[:2], IMAGES[0], "a"),
        lambda blip: blip.compare(IMAGES[0], IMAGES[:2], "a"),
        lambda blip: blip.compare(IMAGES[0], IMAGES[1], "a," * 40),
        lambda blip: blip.compare(IMAGES[0], IMAGES[1], cast(Any, [7])),
    ],
)
def test_wrong_arguments_are_named(blip: Blip, call: Callable[[Blip], Any]) -> None:
    with pytest.raises(InputError):
        call(blip)
