"""Boxes, against mmpretrain's recorded ones and one coordinate at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from openblip import Blip, Box, EncodedImage, InputError
from openblip.engine.protocols import Grounding
from openblip.model.grounder import Grounder
from openblip.model.text import Memory
from openblip.preprocess.image import load_image
from tests.pipelines.pipeline_toys import (
    IMAGES,
    TEXTS,
    assert_close,
    count_images,
    encode_directly,
    encode_pixels,
    load_golden,
)
from tests.toys import toy_image, toy_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_boxes_equal_the_recorded_ones() -> None:
    blip, tensors, strings = load_golden("grounding")
    height, width = strings["img_shape_hw"]
    images = encode_pixels(blip, tensors["pixel_values"], (width, height))
    engine = blip.pipeline("grounding").model.engine
    states = torch.stack([image.states[id(engine)] for image in images])
    shares, logprob = engine.require(Grounding).ground(tensors["text_ids"], tensors["text_mask"], states)
    torch.testing.assert_close(shares, tensors["pred_box_xyxy_unit"])
    first_bin = strings["tokens"]["first_bin"]
    bins = tensors["pred_box_ids"] - first_bin
    scores = tensors["prediction_scores"][:, :, first_bin:][..., :641].log_softmax(-1)
    assert bins.shape == (3, 4)
    # The recorded scores were computed after the true coordinates; only the first one depends on none of them.
    assert torch.equal(scores[:, 0].argmax(-1), bins[:, 0])
    assert (logprob < scores[:, 0].amax(-1)).all()
    # The third text was recorded with its comma, which cleaning deletes, in mmpretrain's pipeline too.
    for box, edges in zip(blip.ground(images[:2], strings["texts"][:2]), tensors["pred_boxes"].tolist(), strict=False):
        assert box.edges == pytest.approx(edges, abs=1e-3)


@pytest.mark.parametrize("reading", ["likeliest", "median"])
@pytest.mark.parametrize("index", range(3))
def test_coordinates_are_decoded_one_after_the_other(
    blip: Blip, index: int, reading: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with a decoder without caches, batches and shared projections."""
    pipeline = blip.pipeline("grounding")
    network, states = cast(Grounder, pipeline.model.module), encode_directly(blip, "grounding", index)
    monkeypatch.setattr(network, "config", dataclasses.replace(network.config, box_reading=reading))
    text = torch.tensor([pipeline.tokenize(TEXTS[index])])
    ids, coordinates, probability = [500], list[float](), 1.0
    with torch.no_grad():
        fused = network.fusion.encode_embedded(network.text.encode(text), None, states)
        for _ in range(4):
            memory = torch.cat([states, fused], 1)
            scores = network.logits(torch.tensor([ids]), memory)[0, -1, 501:542].softmax(0)
            best = int(scores.argmax())
            bin_index, coordinate = find_median(scores.tolist()) if reading == "median" else (best, float(best))
            ids.append(501 + bin_index)
            coordinates.append(coordinate)
            probability *= scores[bin_index].item()
    x, y, w, h = (coordinate / 40 for coordinate in coordinates)
    width, height = IMAGES[index].size
    edges = [min(max(edge, 0.0), 1.0) for edge in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
    expected = Box(edges[0] * width, edges[1] * height, edges[2] * width, edges[3] * height, probability)
    assert_close(blip.ground(IMAGES[index], TEXTS[index]), expected)


def find_median(shares: list[float]) -> tuple[int, float]:
    """Return the bin in which half of the total is reached, and the coordinate inside it."""
    remaining = sum(shares) / 2
    for index, share in enumerate(shares):
        if share >= remaining:
            return index, index + remaining / share
        remaining -= share
    raise AssertionError


def test_joined_memories_equal_one_long_memory() -> None:
    text = cast(Grounder, toy_model("grounding")).decoder
    states, more = torch.randn(2, 5, 32), torch.randn(6, 3, 32)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]] * 2)
    ids = torch.randint(5, 500, (6, 4))
    with torch.no_grad():
        joined: Memory = text.project(states).concatenate(text.project(more, mask))
        memory = torch.cat([states.repeat_interleave(3, 0), more], 1)
        memory_mask = torch.cat([torch.ones(6, 5, dtype=torch.long), mask], 1)
        torch.testing.assert_close(text.decode(ids, None, joined), text.decode(ids, None, memory, memory_mask))


def test_an_image_is_encoded_once_for_all_its_expressions(blip: Blip) -> None:
    with count_images(blip, "grounding") as counter:
        results = blip.ground(IMAGES[0], TEXTS * 5)
    assert counter.count == 1
    assert_close(results, [blip.ground(IMAGES[0], text) for text in TEXTS] * 5)


def test_boxes_are_in_pixels_of_the_file_at_any_decoded_size(blip: Blip, tmp_path: Path) -> None:
    """Large JPEG files are decoded at reduced size; one of these has an EXIF rotation too."""
    large = toy_image(7, 320, 200)
    exif = large.getexif()
    exif[0x0112] = 6
    large.save(tmp_path / "large.jpg", quality=95)
    large.save(tmp_path / "rotated.jpg", quality=95, exif=exif)
    for name, size in (("large.jpg", (320, 200)), ("rotated.jpg", (200, 320))):
        encoded = blip.encode_images(tmp_path / name)
        assert encoded.size == size
        assert_close(blip.ground(tmp_path / name, TEXTS[0]), blip.ground(encoded, TEXTS[0]))
    exact = blip.ground(load_image(tmp_path / "large.jpg"), TEXTS[0])
    reduced = blip.ground(tmp_path / "large.jpg", TEXTS[0])
    assert reduced.edges == pytest.approx(exact.edges, abs=25), "a bin is 8 pixels wide"


def test_an_encoded_image_needs_its_size(blip: Blip) -> None:
    encoded = blip.encode_images(IMAGES[0])
    assert encoded.size == IMAGES[0].size
    with pytest.raises(InputError, match="size"):
        blip.ground(EncodedImage(encoded.states), TEXTS[0])


def test_expressions_must_have_words(blip: Blip) -> None:
    with pytest.raises(InputError, match="must contain words"):
        blip.ground(IMAGES[0], "?!")
    with pytest.raises(InputError, match="2 images need 2 expressions, got 1"):
        blip.ground(IMAGES[:2], ["a"])
