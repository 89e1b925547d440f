"""Augmentation against the recorded OpenCV results, plain loops, and its own promises."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from openblip.data.augment import TrainTransform, crop_box, swap_pair
from openblip.data.randaugment import GRAY, RandAugment, warp
from openblip.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "augment.json").read_text())["cases"]
WHOLE = json.loads((GOLDEN / "augment.json").read_text())["whole"]


class Recorded(random.Random):
    """Hands out recorded operations and uniform draws, in order, and nothing beyond them."""

    def __init__(self, operations: list[str], uniforms: list[float]) -> None:
        super().__init__(0)
        self.operations, self.uniforms = operations, list(uniforms)

    def choices(self, population: Any, *args: Any, **kwargs: Any) -> Any:
        assert set(self.operations) <= set(population)
        assert kwargs["k"] == len(self.operations)
        return self.operations

    def random(self) -> float:
        return self.uniforms.pop(0)


@pytest.fixture(scope="module")
def recorded() -> dict[str, NDArray[np.uint8]]:
    return load_file(GOLDEN / "augment.io.safetensors")


def once(operation: str, level: float, negative: bool | None, **options: Any) -> tuple[RandAugment, Recorded]:
    """One operation, applied for certain, with the sign wanted."""
    below = 0.25 if operation == "Rotate" else 0.75  # rotation is negative below a half, the others above
    sign = [] if negative is None else [below if negative else 1 - below]
    return RandAugment(count=1, level=level, **options), Recorded([operation], [0.0, *sign])


@pytest.mark.parametrize("case", [c for c in CASES if c["op"] in RandAugment.operations], ids=lambda c: c["key"])
def test_operation_as_recorded(case: dict[str, Any], recorded: dict[str, NDArray[np.uint8]]) -> None:
    negative = {"neg": True, "pos": False}.get(case["key"].rsplit(".", 1)[-1])
    augment, rng = once(case["op"], case["level"], negative)
    pixels = recorded["input"].copy()
    ours = augment(pixels, rng)
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - recorded[case["key"]]).max() <= 1
    assert rng.uniforms == []  # no draw more, no draw less
    np.testing.assert_array_equal(pixels, recorded["input"])  # the input is not written to


@pytest.mark.parametrize("operation", ["Identity", "AutoContrast", "Brightness", "Sharpness", "Equalize"])
def test_flat_channels_as_recorded(operation: str, recorded: dict[str, NDArray[np.uint8]]) -> None:
    augment, rng = once(operation, 5, None)
    ours = augment(recorded["input_flat"], rng)
    assert np.abs(ours.astype(int) - recorded[f"flat.{operation}.M5"]).max() <= 1


@pytest.mark.parametrize("case", WHOLE, ids=lambda c: c["key"])
def test_whole_as_recorded(case: dict[str, Any], recorded: dict[str, NDArray[np.uint8]]) -> None:
    rng = Recorded(case["ops"], case["uniforms"])
    ours = RandAugment()(recorded["input"], rng)
    assert np.abs(ours.astype(int) - recorded[case["key"]]).max() <= 1
    assert rng.uniforms == []
    assert (ours != recorded["input"]).any() == case["changed"]


def test_warp_is_bilinear_with_grey_outside() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    inverse = (0.9, 0.3, -1.7, -0.2, 1.1, 2.3)
    moved = warp(pixels, inverse)

    def at(row: int, column: int) -> NDArray[np.float64]:
        inside = 0 <= row < 7 and 0 <= column < 9
        return pixels[row, column].astype(float) if inside else np.full(3, float(GRAY))

    for y in range(7):
        for x in range(9):
            # Positions are kept in 1/32 of a pixel, so the plain formula is asked at the nearest of those.
            u, v = inverse[0] * x + inverse[1] * y + inverse[2], inverse[3] * x + inverse[4] * y + inverse[5]
            u, v = round(u * 32) / 32, round(v * 32) / 32
            i, j, du, dv = math.floor(v), math.floor(u), u - math.floor(u), v - math.floor(v)
            expected = (at(i, j) * (1 - du) + at(i, j + 1) * du) * (1 - dv)
            expected += (at(i + 1, j) * (1 - du) + at(i + 1, j + 1) * du) * dv
            assert np.abs(moved[y, x] - expected).max() <= 0.5001, (x, y)


def test_a_shift_by_whole_pixels_copies() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    moved = warp(pixels, (1, 0, 5, 0, 1, 0))
    np.testing.assert_array_equal(moved[:, :3], pixels[:, 5:])
    assert (moved[:, 3:] == GRAY).all()
    assert (warp(pixels, (1, 0, 1000, 0, 1, -1000)) == GRAY).all()


def test_without_overflow_the_operations_do_what_they_are_named_for() -> None:
    pixels = np.linspace(20, 220, 48).astype(np.uint8).reshape(4, 4, 3)
    augment, rng = once("AutoContrast", 5, None)
    assert (augment(pixels, rng) == 255).all()  # as published: no channel reaches 0, so all turn white
    augment, rng = once("AutoContrast", 5, None, overflow=False)
    stretched = augment(pixels, rng)
    assert (stretched.min(axis=(0, 1)) == 0).all()
    assert (stretched.max(axis=(0, 1)) == 255).all()
    spot = np.full((5, 5, 3), 200, np.uint8)
    spot[2, 2] = 250
    augment, rng = once("Sharpness", 10, None)
    assert augment(spot, rng)[2, 2, 0] < 100  # beyond white, round again from black
    augment, rng = once("Sharpness", 10, None, overflow=False)
    assert augment(spot, rng)[2, 2, 0] == 255


def test_each_operation_is_applied_half_of_the_time() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rng = random.Random(0)
    augment = RandAugment(count=1, operations=("TranslateX",), level=1)
    moved = Counter(tuple(augment(pixels, rng)[0, :, 0].tolist()) for _ in range(600))
    still, signs = moved.pop(tuple(pixels[0, :, 0].tolist())), list(moved.values())
    assert len(signs) == 2  # one pixel to the left or to the right
    assert 250 < still < 350
    assert all(110 < n < 190 for n in signs)


def test_unknown_operations_are_named() -> None:
    with pytest.raises(ConfigError, match="Posterise"):
        RandAugment(operations=("Identity", "Posterise"))


def test_crops_have_the_area_and_aspect_asked_for() -> None:
    rng = random.Random(0)
    for _ in range(500):
        x0, y0, x1, y1 = crop_box(400, 300, 0.5, rng)
        assert 0 <= x0 < x1 <= 400
        assert 0 <= y0 < y1 <= 300
        assert (x1 - x0) * (y1 - y0) > 0.49 * 400 * 300
        assert 0.74 < (x1 - x0) / (y1 - y0) < 1.35


@pytest.mark.parametrize(("size", "expected"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))])
def test_a_strip_that_no_draw_fits_gives_its_middle(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert crop_box(*size, 0.9, random.Random(0)) == expected


def settings(size: int) -> Any:
    return cast(Any, SimpleNamespace(size=size))


def test_transform_is_a_function_of_image_and_seed() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    transform = TrainTransform(settings(32), randaugment=RandAugment())
    views = [transform(Image.fromarray(noise), random.Random(seed)) for seed in (1, 1, 2)]
    assert all(view.shape == (32, 32, 3) and view.dtype == np.uint8 for view in views)
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any()


def test_transform_crops_then_resizes_then_mirrors() -> None:
    noise = np.random.default_rng(4).integers(0, 256, (50, 70), dtype=np.uint8)
    image = Image.fromarray(noise)  # gray scale: comes out as RGB
    for seed in range(4):
        view = TrainTransform(settings(32), min_scale=0.2)(image, random.Random(seed))
        rng = random.Random(seed)
        box = crop_box(70, 50, 0.2, rng)
        expected = np.asarray(image.convert("RGB").crop(box).resize((32, 32), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(view, expected[:, ::-1] if rng.random() < 0.5 else expected)
    small = TrainTransform(settings(32), flip=0.0)(Image.fromarray(noise[:40, :40]).convert("RGB"), random.Random(0))
    assert small.shape == (32, 32, 3)


@pytest.mark.parametrize("wrong", [{"min_scale": 0.0}, {"min_scale": 1.5}, {"flip": 2.0}])
def test_transform_refuses_what_is_no_share(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrainTransform(settings(32), **wrong)


def test_swapping_a_pair_exchanges_whole_words() -> None:
    statement = "the left image shows a leftover, the right one is upright, left"
    keep, swap = Recorded([], [0.4]), Recorded([], [0.5])
    assert swap_pair(("a", "b"), statement, keep) == (("a", "b"), statement)
    expected = "the right image shows a leftover, the left one is upright, right"
    assert swap_pair(("a", "b"), statement, swap) == (("b", "a"), expected)
    assert swap_pair((1, 2), "both show cups", Recorded([], [0.9])) == ((2, 1), "both show cups")
