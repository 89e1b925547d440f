"""Boxes follow the random changes of their images."""

from __future__ import annotations

import colorsys
import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openblip.data.augment import ColorJitter
from openblip.data.boxes import GroundingTransform, ResizeWithBoxes
from openblip.data.samples import Box
from openblip.errors import ConfigError

ALONE = GroundingTransform(size=96, jitter=None)


def with_box(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """Return a white box on gray, which its color identifies; padding is black."""
    image = Image.new("RGB", (width, height), (128, 128, 128))
    image.paste((255, 255, 255), box)
    return image


def found(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Box:
    """Return the white area of an image, to about half a pixel."""
    white = pixels[..., 0] > 192
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(60, 150), st.integers(60, 150)),
    corner=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)),
    extent=st.tuples(st.floats(0.2, 0.4), st.floats(0.2, 0.4)),
)
def test_the_box_is_where_the_thing_is(
    seed: int, size: tuple[int, int], corner: tuple[float, float], extent: tuple[float, float]
) -> None:
    x0, y0 = int(size[0] * corner[0]), int(size[1] * corner[1])
    box = (x0, y0, x0 + int(size[0] * extent[0]), y0 + int(size[1] * extent[1]))
    for transform in (ALONE, ResizeWithBoxes(96)):
        pixels, (moved,) = transform(with_box(*size, box), [box], random.Random(seed))
        assert pixels.shape == (96, 96, 3)
        assert moved == pytest.approx(found(pixels), abs=1.5)


def test_all_boxes_keep_something() -> None:
    image = with_box(100, 100, (0, 0, 1, 1))
    boxes: list[Box] = [(0, 0, 2, 2), (98, 98, 100, 100), (-5, 40, 105, 60)]
    for seed in range(50):
        _, moved = ALONE(image, boxes, random.Random(seed))
        assert all(x1 > x0 and y1 > y0 for x0, y0, x1, y1 in moved)
        assert all(0 <= side <= 96 for box in moved for side in box)


def test_sides_and_places_are_the_published_ones_scaled() -> None:
    def frame(seed: int, transform: GroundingTransform) -> tuple[int, int, int]:
        pixels, _ = transform(Image.new("RGB", (50, 40), "white"), [], random.Random(seed))
        covered = np.flatnonzero(pixels[..., 0].any(1))
        return len(covered), int(covered[0]), int(np.flatnonzero(pixels[..., 0].any(0))[0])

    frames = [frame(seed, ALONE) for seed in range(300)]
    assert {side for side, _, _ in frames} == {round(side / 4) for side in (384, 360, 344, 312, 300, 286, 270)}
    assert all(0 <= y0 <= 96 - side for side, y0, _ in frames)
    assert len({(y0, x0) for _, y0, x0 in frames}) > 100
    assert {frame(seed, dataclasses.replace(ALONE, sides=(384,))) for seed in range(20)} == {(96, 0, 0)}


def test_a_crop_keeps_eighty_percent_of_each_side() -> None:
    windows = [ALONE._draw_window(Image.new("RGB", (100, 50)), [], random.Random(seed)) for seed in range(300)]
    widths = [x1 - x0 for x0, _, x1, _ in windows]
    heights = [y1 - y0 for _, y0, _, y1 in windows]
    assert (min(widths), max(widths)) == (80, 100)
    assert (min(heights), max(heights)) == (40, 50)
    assert len(set(zip(widths, heights, strict=True))) > 100  # drawn apart


def test_the_same_draws_give_the_same_pixels() -> None:
    transform = GroundingTransform(size=64)
    image = with_box(80, 60, (10, 10, 30, 40))
    initial, repeated = (transform(image, [(10, 10, 30, 40)], random.Random(5)) for _ in range(2))
    assert np.array_equal(initial[0], repeated[0])
    assert initial[1] == repeated[1]


def test_jitter_changes_half_of_the_images_and_no_shape() -> None:
    image = Image.new("RGB", (6, 4), (200, 100, 50))
    jittered = [ColorJitter()(image, random.Random(seed)) for seed in range(400)]
    assert all(jittered_image.size == (6, 4) and jittered_image.mode == "RGB" for jittered_image in jittered)
    changed = sum(jittered_image.getpixel((0, 0)) != (200, 100, 50) for jittered_image in jittered)
    assert 150 < changed < 250
    assert image.getpixel((0, 0)) == (200, 100, 50)


def test_hue_alone_turns_the_circle() -> None:
    jitter = ColorJitter(brightness=0, contrast=0, saturation=0, hue=0.1, probability=1)
    image = Image.new("RGB", (1, 1), (200, 100, 50))
    colours = [np.asarray(jitter(image, random.Random(seed)))[0, 0] / 255 for seed in range(200)]
    hues = [colorsys.rgb_to_hsv(*colour)[0] for colour in colours]
    hue_before = colorsys.rgb_to_hsv(200 / 255, 100 / 255, 50 / 255)[0]
    turns = [(hue - hue_before + 0.5) % 1 - 0.5 for hue in hues]
    assert -0.11 < min(turns) < -0.08
    assert 0.08 < max(turns) < 0.11


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="crop must be in"):
        GroundingTransform(crop=0)
    with pytest.raises(ConfigError, match="sides must be between 1 and 384"):
        GroundingTransform(sides=(400,))
