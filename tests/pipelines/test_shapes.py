"""Shapes of inputs and outputs: pairing of images and texts, errors, and progress."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.io import progress
from openblip.pipelines import shapes
from openblip.pipelines.shapes import (
    Inputs,
    Shape,
    add_right_images,
    grouped_inputs,
    paired_inputs,
    shape_of,
    single_inputs,
)
from openblip.preprocess.video import Video

PATHS = st.lists(st.sampled_from(["a.jpg", "b.jpg", "c.jpg"]), max_size=6)
SINGLE: list[Any] = [
    "a.jpg",
    Path("a.jpg"),
    b"data",
    io.BytesIO(b"data"),
    Image.new("RGB", (2, 2)),
    np.zeros((2, 2, 3), np.uint8),
    torch.zeros(3, 2, 2),
    Video("a.mp4"),
]


@pytest.mark.parametrize("image", SINGLE, ids=lambda image: type(image).__name__)
def test_shapes_of_images(image: Any) -> None:
    assert shape_of(image) is Shape.ONE
    assert single_inputs(image) == Inputs([image], Shape.ONE, 1)
    for images in ([image], (image, image), [], {0: image}.values()):
        assert shape_of(images) is Shape.LIST
    for stream in (iter([image]), (image for _ in range(2))):
        assert shape_of(stream) is Shape.STREAM
        assert single_inputs(stream).total is None


def test_arrays_with_a_batch_axis_are_lists() -> None:
    assert shape_of(np.zeros((3, 2, 2, 3), np.uint8)) is Shape.LIST
    inputs = single_inputs(torch.zeros(3, 3, 2, 2))
    assert (inputs.shape, inputs.total, len(list(inputs.items))) == (Shape.LIST, 3, 3)


@given(PATHS, st.booleans())
def test_one_text_serves_all_images_and_several_one_each(paths: list[str], stream: bool) -> None:
    images: Any = iter(paths) if stream else paths
    inputs = paired_inputs(images, "text", "text")
    assert list(inputs.items) == [(path, "text") for path in paths]
    assert inputs.total == (None if stream else len(paths))
    texts = [f"about {path}" for path in paths]
    assert list(paired_inputs(iter(paths) if stream else paths, texts, "text").items) == list(
        zip(paths, texts, strict=True)
    )


@given(PATHS, PATHS)
def test_lists_of_different_lengths_are_refused(paths: list[str], texts: list[str]) -> None:
    if len(paths) == len(texts):
        return
    with pytest.raises(InputError, match=rf"{len(paths)} images need {len(paths)} prompts, got {len(texts)}"):
        paired_inputs(paths, texts, "prompt")
    shorter = "images" if len(paths) < len(texts) else "prompts"
    with pytest.raises(InputError, match=f"got fewer {shorter}"):
        list(paired_inputs(iter(paths), texts, "prompt").items)


def test_texts_must_be_iterable() -> None:
    with pytest.raises(InputError, match="prompts must be a string or a list of strings, got int"):
        paired_inputs(["a.jpg"], 3, "prompt")  # type: ignore[arg-type]


@given(st.lists(st.text(), max_size=4))
def test_one_image_takes_several_texts(texts: list[str]) -> None:
    inputs = grouped_inputs("a.jpg", texts, "question")
    assert inputs.nested
    assert list(inputs.items) == [("a.jpg", texts)]
    with pytest.raises(InputError, match="one image takes one question"):
        paired_inputs("a.jpg", texts, "question")


def test_pairs_of_images_have_one_shape() -> None:
    left = grouped_inputs(["a", "b"], "text", "statement")
    assert list(add_right_images(left, ["c", "d"])) == [("a", "c", ["text"]), ("b", "d", ["text"])]
    for right in ("c", ["c"], iter(["c", "d"])):
        with pytest.raises(InputError, match="left and right"):
            add_right_images(grouped_inputs(["a", "b"], "text", "statement"), right)
    streams = add_right_images(grouped_inputs(iter(["a", "b"]), "text", "statement"), iter(["c"]))
    with pytest.raises(InputError, match="got fewer right images"):
        list(streams)


RESULTS = st.lists(st.one_of(st.integers(), st.builds(ImageError, st.just("bad"))), max_size=8)


@given(RESULTS)
def test_errors_are_raised_with_what_was_done_or_returned_in_place(results: list[int | OpenBlipError]) -> None:
    bad = [index for index, result in enumerate(results) if isinstance(result, OpenBlipError)]
    inputs: Inputs[str] = Inputs([], Shape.LIST, len(results))
    assert inputs.deliver(iter(results), "return") == results
    stream: Inputs[str] = Inputs([], Shape.STREAM, None)
    returned: Any = stream.deliver(iter(results), "return")
    assert isinstance(returned, Iterator)
    assert list(returned) == results
    if not bad:
        assert inputs.deliver(iter(results)) == results
        return
    with pytest.raises(ImageError, match=f"item {bad[0]}: bad") as raised:
        inputs.deliver(iter(results))
    assert (raised.value.index, raised.value.partial) == (bad[0], results[: bad[0]])
    raised.value.index = raised.value.partial = None
    streamed: Any = stream.deliver(iter(results))
    assert [next(streamed) for _ in range(bad[0])] == results[: bad[0]]
    with pytest.raises(ImageError, match=f"item {bad[0]}: bad"):
        next(streamed)


@pytest.mark.parametrize("shape", Shape)
def test_progress_is_reported_to_a_function(shape: Shape) -> None:
    calls: list[tuple[int, int | None]] = []
    total = None if shape is Shape.STREAM else 1 if shape is Shape.ONE else 3
    inputs: Inputs[str] = Inputs([], shape, total)
    results: Any = inputs.deliver(
        iter([1] if shape is Shape.ONE else [1, 2, 3]), progress=lambda *call: calls.append(call)
    )
    assert (results == 1) if shape is Shape.ONE else list(results) == [1, 2, 3]
    assert calls == [(done, total) for done in range(1, (total or 3) + 1)]


def test_progress_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int | None] = []

    def spy(description: str = "", total: int | None = None) -> Any:
        shown.append(total)
        return progress.bar(description, total)

    monkeypatch.setattr(shapes, "bar", spy)
    inputs: Inputs[str] = Inputs([], Shape.LIST, 2)
    assert inputs.deliver(iter([1, 2]), progress=True) == [1, 2]
    assert shown == [2]
    inputs.deliver(iter([1, 2]))
    assert shown == [2]


@pytest.mark.parametrize(
    "inputs", [{"a": "a.jpg"}, {"a.jpg", "b.jpg"}, frozenset({"a.jpg"})], ids=["dict", "set", "frozenset"]
)
def test_inputs_without_an_order_are_refused(inputs: object) -> None:
    with pytest.raises(InputError, match="must be in a list or an iterator, got a"):
        shape_of(inputs)
