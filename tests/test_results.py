"""Results: what they hold, how they print, their records, and the drawings of notebooks."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import openblip
from openblip import Answer, Blip, Box, Caption, Classification, Comparison, Explanation, Label, Match
from openblip.pipelines.inputs import ImagePreview
from tests.toys import toy_bundle, toy_image

MAPS = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
EXPLANATION = Explanation("a cat", ("a", "cat"), MAPS, MAPS.mean(0), 0.5, None, MAPS[0])
RESULTS: list[tuple[object, object]] = [
    (
        Caption(
            "a cat", -1.5, -0.5, confidence=0.75,
            alternatives=(Caption("a dog", -3.0, -1.0, finished=False, unmet=True),),
        ),
        {
            "text": "a cat", "logprob": -1.5, "score": -0.5, "finished": True, "unmet": False, "confidence": 0.75,
            "alternatives": [
                {
                    "text": "a dog", "logprob": -3.0, "score": -1.0, "finished": False, "unmet": True,
                    "confidence": None,
                }
            ],
        },
    ),
    (Answer("yes", 0.75, -0.5), {"text": "yes", "probability": 0.75, "score": -0.5}),
    (
        Answer("yes", 0.75, -0.5, (Answer("no", 0.0),)),
        {
            "text": "yes", "probability": 0.75, "score": -0.5,
            "alternatives": [{"text": "no", "probability": 0.0, "score": None}],
        },
    ),
    (Match(0.5, 0.25), {"probability": 0.5, "similarity": 0.25}),
    (
        Classification((Label("cat", 0.5), Label("dog", 0.25))),
        {"labels": [{"text": "cat", "probability": 0.5}, {"text": "dog", "probability": 0.25}]},
    ),
    (Comparison(True, 0.75), {"label": True, "probability": 0.75}),
    (
        Box(1.0, 2.0, 3.0, 4.0, 0.0625, lambda: toy_image(0)),
        {"left": 1.0, "top": 2.0, "right": 3.0, "bottom": 4.0, "probability": 0.0625, "score": math.log(0.5)},
    ),
    (
        EXPLANATION,
        {
            "text": "a cat", "probability": 0.5, "words": ["a", "cat"], "maps": MAPS.tolist(),
            "overall": MAPS.mean(0).tolist(), "start": MAPS[0].tolist(),
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("result", "record"), RESULTS, ids=lambda value: type(value).__name__)
def test_results_become_json(result: object, record: object) -> None:
    values = result.to_dict()  # type: ignore[attr-defined]
    assert values == record
    assert json.loads(json.dumps(values)) == record


@pytest.mark.parametrize("result", [result for result, _ in RESULTS], ids=lambda value: type(value).__name__)
def test_results_are_frozen_and_documented(result: object) -> None:
    assert dataclasses.is_dataclass(result)
    for field in dataclasses.fields(result):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, field.name, None)
        assert f"        {field.name}: " in str(type(result).__doc__), f"{field.name} is not documented"


def test_repr_shows_what_matters() -> None:
    assert repr(Caption("a cat", -1.5, -0.5)) == "Caption(text='a cat', logprob=-1.5, score=-0.5)"
    assert repr(Caption("a cat", -1.5, -0.5, finished=False)) == (
        "Caption(text='a cat', logprob=-1.5, score=-0.5, finished=False)"
    )
    assert repr(Answer("yes", 0.75, alternatives=(Answer("no", 0.25),))) == (
        "Answer(text='yes', probability=0.75, alternatives=(Answer(text='no', probability=0.25),))"
    )
    box = Box(1.0, 2.0, 3.0, 4.0, 0.5, lambda: toy_image(0))
    assert repr(box) == "Box(left=1.0, top=2.0, right=3.0, bottom=4.0, probability=0.5)"
    assert repr(EXPLANATION) == "Explanation(text='a cat', words=('a', 'cat'), probability=0.5)"


def test_the_best_label_stands_for_a_classification() -> None:
    result = Classification((Label("cat", 0.5), Label("dog", 0.25)))
    assert (result.text, result.probability) == ("cat", 0.5)


def test_the_image_of_a_box_does_not_count() -> None:
    plain, drawn = Box(1, 2, 3, 4, 0.5), Box(1, 2, 3, 4, 0.5, lambda: toy_image(0))
    assert plain == drawn
    assert hash(plain) == hash(drawn)


# Drawings of notebooks.


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    return openblip.load(toy_bundle(tmp_path_factory.mktemp("toy"), ("grounding", "retrieval")))


def decode(png: bytes | None) -> Image.Image:
    assert png is not None
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image.convert("RGB")


@pytest.mark.parametrize("source", ["path", "image", "encoded"])
def test_a_box_draws_itself(blip: Blip, source: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 200), "white")
    picture.save(tmp_path / "white.png")
    image: Any = {
        "path": tmp_path / "white.png", "image": picture, "encoded": blip.encode_images(picture, task="grounding"),
    }[source]  # fmt: skip
    box = dataclasses.replace(blip.ground(image, "a cat"), left=50.0, top=60.0, right=250.0, bottom=160.0)
    drawn = np.asarray(decode(box._repr_png_()))
    assert drawn.shape == (200, 300, 3)
    rows, columns = np.nonzero((drawn != 255).any(-1))
    assert (columns.min(), columns.max()) == (50, 249)
    assert rows.max() == 159
    assert (drawn[100, 150] == 255).all(), "the inside is untouched"


def test_an_explanation_draws_itself(blip: Blip) -> None:
    sheet = decode(blip.explain(toy_image(1, 300, 200), "a cat on a bed")._repr_png_())
    assert sheet.width > 300
    assert EXPLANATION._repr_png_() is None, "no image, no drawing"
    assert Box(1, 2, 3, 4, 0.5)._repr_png_() is None


def test_drawings_are_saved_and_plotted(blip: Blip, tmp_path: Path) -> None:
    picture = toy_image(1, 300, 200)
    for result in (blip.ground(picture, "a cat"), blip.explain(picture, "a cat on a bed")):
        result.save(tmp_path / "drawn.png")
        with Image.open(tmp_path / "drawn.png") as saved:
            assert np.array_equal(np.asarray(saved), np.asarray(result.draw()))
        with pytest.raises(openblip.InputError, match=r"path must end in .png"):
            result.save(tmp_path / "drawn.xyz")
        figure = pytest.importorskip("matplotlib.figure").Figure()
        axes = result.plot(figure.add_subplot())
        (shown,) = axes.get_images()
        assert np.array_equal(np.asarray(shown.get_array()), np.asarray(result.draw()))
    with pytest.raises(openblip.InputError, match="the Box has no image"):
        Box(1, 2, 3, 4, 0.5).draw()


def test_large_drawings_are_made_smaller(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1500), "white").save(tmp_path / "large.png")
    box = Box(10, 10, 2000, 1000, 0.5, ImagePreview(tmp_path / "large.png", (3000, 1500)))
    assert decode(box._repr_png_()).size == (1024, 512)


def test_previews_take_little_memory_and_survive_pickling() -> None:
    """A box of an image in memory keeps at most 256 x 256 pixels of it."""
    pixels = np.full((384, 384, 3), 7, np.uint8)
    preview = ImagePreview.of(Image.new("RGB", (640, 480)), pixels, (640, 480))
    assert isinstance(preview.source, np.ndarray)
    assert preview.source.base is None
    assert preview.source.nbytes <= 256 * 256 * 3
    copy = pickle.loads(pickle.dumps(Box(1, 2, 3, 4, 0.5, preview)))
    assert copy.image().size == (640, 480)
    assert ImagePreview.of("photo.jpg", pixels, (640, 480)).source == "photo.jpg"
