"""Boxes and heat as pictures: what must be coloured is, and what must show does."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from openblip.drawing import Edges, draw_boxes, draw_explanation, overlay
from openblip.results import Explanation

GREY = Image.new("RGB", (200, 120), (128, 128, 128))


def changed(picture: Image.Image) -> np.ndarray:
    return np.asarray(np.abs(np.asarray(picture).astype(int) - 128).max(2) > 8)


def test_a_box_is_drawn_on_its_edges_and_nowhere_inside() -> None:
    where = changed(draw_boxes(GREY, [(40, 50, 160, 110)], ["cat"]))
    assert where[50:110, 40:42].all()
    assert where[50:110, 158:160].all()
    assert where[50:52, 40:160].all()
    assert where[108:110, 40:160].all()
    assert not where[54:106, 44:156].any()
    assert not where[112:].any()
    assert where[34:50, 40:60].any(), "its name stands above it"
    assert not changed(GREY).any(), "the picture itself stays"


def test_boxes_have_colours_of_their_own() -> None:
    drawn = np.asarray(draw_boxes(GREY, [(10, 60, 50, 110), (100, 60, 150, 110)], ["a", "b"]))
    assert tuple(drawn[100, 10]) != tuple(drawn[100, 100])


def test_equal_boxes_are_seen_beside_each_other_and_so_are_their_names() -> None:
    box = (40, 50, 160, 110)
    drawn = np.asarray(draw_boxes(GREY, [box, box, box], ["aa", "bb", "cc"])).astype(int)
    colours = [tuple(drawn[109 - 2 * number, 100]) for number in range(3)]
    assert len({*colours, (128, 128, 128)}) == 4, "three lines, one inside the other"
    high = 12 + 4  # of a name
    for number, colour in enumerate(colours):
        ground = (drawn[50 - high + number * high : 50 + number * high, 41:60] == colour).all(2)
        assert ground.mean() > 0.4, "a name on its own colour, below the one before"


@pytest.mark.parametrize("box", [(0, 0, 200, 120), (199, 119, 200, 120), (50, 50, 50, 50)])
def test_boxes_at_the_border_and_empty_ones_are_drawn_too(box: Edges) -> None:
    drawn = draw_boxes(GREY, [box], ["a very long name that does not fit beside the box at all, whatever its size"])
    assert drawn.size == GREY.size
    assert changed(drawn).any()


def test_heat_is_red_where_most_and_nothing_where_least() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 0.5
    drawn = np.asarray(overlay(GREY, heat)).astype(int)
    red, green, blue = drawn[5, 195]
    assert red > green + 60
    assert red > blue + 60
    assert (abs(drawn[60:, :100] - 128) <= 8).all()


def test_heat_that_is_even_colours_nothing() -> None:
    assert not changed(overlay(GREY, np.full((3, 3), 0.2))).any()


def test_a_sheet_has_a_tile_for_each_word() -> None:
    maps = np.zeros((3, 2, 2), np.float32)
    maps[0, 0, 0], maps[2, 1, 1] = 0.1, 0.3
    sheet = draw_explanation(
        Image.new("RGB", (1000, 600), (128, 128, 128)), Explanation("a cat", ("a", "cat", "!"), maps, maps.mean(0), 0.9)
    )
    width, height = 320, 192
    assert sheet.size == (4 * (width + 6) + 6, 22 + 2 * (height + 22 + 6) + 6)

    def tile(number: int) -> np.ndarray:
        left, top = 6 + number % 4 * (width + 6), 28 + number // 4 * (height + 28)
        return np.asarray(sheet)[top : top + height, left : left + width].astype(int)

    assert (tile(0) == 128).all(), "the picture"
    red = [tile(number)[:, :, 0] - tile(number)[:, :, 2] for number in range(5)]
    assert red[2][5, 5] > 60, "'a' looked at the top left"
    assert abs(red[3]).max() == 0, "'cat' nowhere"
    assert red[4][-5, -5] > 60, "'!' at the bottom right"
    assert red[1][-5, -5] > 60, "so did all of them together, most of all"
