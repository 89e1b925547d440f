"""The cache of views: what a view shows, where boxes go, and that training reads the features of its images."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from openblip.data.collate import normalize_batch
from openblip.data.images import FileImage
from openblip.data.records import Expression, Record
from openblip.data.tasks.caption import CaptionData
from openblip.data.tasks.grounding import GroundingData
from openblip.data.views import (
    COMPLETE,
    MIRRORED,
    ViewCache,
    Views,
    boxes_in_view,
    build_part,
    draw_window,
    view_key,
)
from openblip.errors import InputError
from openblip.preprocess.image import resize
from openblip.preprocess.settings import ImageSettings
from tests.toys import toy_image, toy_tokenizer

SIDE = 32
SETTINGS = ImageSettings(SIDE)
COUNT = 5


def encode(pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Means of 8 x 8 pixels: a grid (B, 3, 4, 4)."""
    blocks = pixels.reshape(len(pixels), 4, 8, 4, 8, 3).mean((2, 4))
    return np.moveaxis(blocks, 3, 1) / 255


@pytest.fixture
def images(tmp_path: Path) -> list[FileImage]:
    found = []
    for number in range(10):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        toy_image(number, 40 + number, 30).save(path)
        found.append(FileImage(str(path)))
    return found


@pytest.fixture
def cache(tmp_path: Path, images: list[FileImage]) -> ViewCache:
    build_part(tmp_path / "views", "part", images, range(COUNT), Views(SIDE), encode)
    return ViewCache(tmp_path / "views", COUNT)


def test_the_first_views_are_the_image_and_its_mirror_image() -> None:
    image = toy_image(1)
    views = Views(SIDE)
    np.testing.assert_array_equal(views(image, COMPLETE, "a"), resize(image, 32))
    np.testing.assert_array_equal(views(image, MIRRORED, "a"), resize(ImageOps.mirror(image), 32))


def test_random_views_are_a_function_of_image_and_number() -> None:
    image, views = toy_image(1), Views(SIDE, jitter=0.0)
    shown = [views(image, number, key) for number in (2, 3) for key in ("a", "b")]
    assert len({view.tobytes() for view in shown}) == 4
    np.testing.assert_array_equal(views(image, 3, "b"), shown[3])
    window, mirrored = draw_window(40, 30, 3, "b")
    crop = image.crop(window)
    np.testing.assert_array_equal(shown[3], resize(ImageOps.mirror(crop) if mirrored else crop, 32))


@pytest.mark.parametrize("number", range(12))
def test_boxes_follow_their_view(number: int) -> None:
    """A black image with one white box: the box of a view is where its white pixels are."""
    box = (40.0, 30.0, 100.0, 90.0)
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[30:90, 40:100] = 255
    view = Views(64, jitter=0.0)(Image.fromarray(pixels), number, "key")
    (found,) = boxes_in_view([box], (160, 120), number, "key")
    if found is None:
        assert (view > 127).mean() < 0.3
        return
    rows, columns = np.nonzero(view[..., 0] > 127)
    seen = columns.min() / 64, rows.min() / 64, (columns.max() + 1) / 64, (rows.max() + 1) / 64
    np.testing.assert_allclose(found, seen, atol=1.5 / 64)


def test_a_box_that_a_view_hardly_shows_is_left_out() -> None:
    numbers = range(2, 40)
    found = [boxes_in_view([(0.0, 0.0, 8.0, 8.0)], (100, 100), number, "key")[0] for number in numbers]
    assert None in found
    assert any(found)


def test_a_cache_gives_the_features_of_each_image_and_view(cache: ViewCache, images: list[FileImage]) -> None:
    views = Views(SIDE)
    for ref in images:
        image = Image.open(ref.path).convert("RGB")
        for number in range(COUNT):
            expected = encode(views(image, number, view_key(ref.address))[None])[0]
            np.testing.assert_allclose(cache.read(ref, number), expected, atol=1e-3)
    numbers = {cache.draw(images[0], random.Random(seed))[1] for seed in range(60)}
    assert numbers == set(range(COUNT))
    with pytest.raises(InputError, match="which has 5 of it"):
        cache.read(images[0], COUNT)
    with pytest.raises(InputError, match="is not in the cache"):
        cache.read(FileImage("elsewhere/9.png"), 0)


def test_building_resumes_and_a_cache_travels_to_other_processes(cache: ViewCache, images: list[FileImage]) -> None:
    def fail(pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        raise AssertionError("computed again")

    build_part(cache.folder, "part", images, range(COUNT), Views(SIDE), fail)
    copy = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(copy.read(images[3], 2), cache.read(images[3], 2))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a cache of views"):
        ViewCache(tmp_path)


def test_captions_come_with_cached_features(cache: ViewCache, images: list[FileImage]) -> None:
    task = CaptionData(tokenizer=toy_tokenizer(), transform=cache, texts_per_image=2, packed=True, prompt="")
    records = [Record((ref,), ref.address, captions=("a dog", "a cat", "a man")) for ref in images[:3]]
    samples = [task.make_sample(record, 0, random.Random(1)) for record in records]
    batch = normalize_batch(task.make_batch(samples), SETTINGS)
    assert batch["pixels"].shape == (3, 3, 4, 4)
    assert batch["pixels"].dtype == torch.float32
    assert batch["mask"].max() == 2


def test_expressions_come_with_the_boxes_of_their_view(cache: ViewCache, images: list[FileImage]) -> None:
    task = GroundingData(tokenizer=toy_tokenizer(), transform=cache, texts_per_image=2)
    refs = (Expression("the left dog", (2, 3, 22, 18)), Expression("a cat", (20, 5, 38, 28)))
    record = Record((images[0],), images[0].address, expressions=refs)
    mirrored = 0
    for seed in range(40):
        batch = task.make_batch([task.make_sample(record, 0, random.Random(seed))])
        assert ((batch["boxes"] >= 0) & (batch["boxes"] <= 4)).all()
        assert (batch["boxes"][:, 2:] > batch["boxes"][:, :2]).all()
        assert set(batch["sizes"].flatten().tolist()) == {4}
        texts = [task.tokenizer.decode(ids) for ids in batch["ids"]]
        mirrored += "the right dog" in texts
    assert 0 < mirrored < 40
    outside = Record((images[0],), "here", expressions=(Expression("a dog", (50, 50, 60, 60)),))
    with pytest.raises(InputError, match="a box must overlap the image"):
        task.make_sample(outside, 0, random.Random(0))


def test_keys_survive_a_move_of_the_data() -> None:
    assert view_key("/data/train/a-000.tar:c.jpg") == view_key("../train/a-000.tar:c.jpg") == "train/a-000.tar:c.jpg"
