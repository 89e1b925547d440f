"""Time limits and cancellation: a call ends soon, says why, and keeps the results so far."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import openblip
from openblip import Blip, Caption, InputError, StoppedError, TimeLimitError
from openblip.io import limits
from openblip.io.limits import Limit
from tests.toys import toy_bundle, toy_image


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    return openblip.load(toy_bundle(tmp_path_factory.mktemp("toy"), ("caption", "retrieval")), batch_size=2)


def test_a_stopped_list_keeps_the_results_so_far(blip: Blip) -> None:
    event = threading.Event()
    images = [toy_image(n) for n in range(6)]
    expected = blip.caption(images)

    def progress(done: int, total: int | None) -> None:
        if done == 3:
            event.set()

    with pytest.raises(StoppedError, match="the call was stopped") as raised:
        blip.caption(images, stop=event.is_set, progress=progress)
    assert raised.value.partial == expected[:3]
    with pytest.raises(StoppedError) as raised:
        blip.embed_images(images, stop=event.is_set)
    assert raised.value.partial == []
    event.clear()
    assert blip.caption(images, stop=event.is_set, timeout=600) == expected


def test_a_call_ends_within_one_step_of_the_decoder(blip: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))  # each look at the clock takes a second
    monkeypatch.setattr("openblip.io.limits.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(TimeLimitError, match="longer than timeout=5 s") as raised:
        blip.caption(toy_image(0), timeout=5, max_new_tokens=16, min_new_tokens=16)
    assert isinstance(raised.value, TimeoutError)
    assert next(clock) < 10, "the decoder looked at the clock before it had 16 tokens"


def test_streams_are_limited_from_the_call_on(blip: Blip) -> None:
    def images() -> Iterator[Any]:
        while True:
            yield toy_image(0)

    stream = blip.caption(images(), stop=lambda: len(results) == 2)
    results: list[Caption] = []
    with pytest.raises(StoppedError):
        results.extend(stream)
    for caption in blip.caption(iter([toy_image(0)]), timeout=600):
        assert caption.text
    with pytest.raises(InputError, match="timeout must be a positive"):
        blip.caption(toy_image(0), timeout=0)
    limits.check()  # outside of a call there is no limit
    assert list(limits.apply(iter("ab"), Limit())) == ["a", "b"]


def test_embeddings_are_tensors_on_request(blip: Blip) -> None:
    images, texts = [toy_image(n) for n in range(3)], ["a cat", "a dog"]
    cases: list[tuple[Any, list[Any]]] = [(blip.embed_images, list(images)), (blip.embed_texts, list(texts))]
    for function, inputs in cases:
        tensors, arrays = function(inputs, output="torch"), function(inputs)
        assert isinstance(tensors, torch.Tensor)
        assert torch.equal(tensors, torch.from_numpy(arrays))
        assert function([], output="torch").shape == (0, arrays.shape[1])
        assert torch.allclose(function(inputs[0], output="torch"), tensors[0], atol=1e-6)
    rows = blip.embed_images([images[0], Path("gone.png")], output="torch", on_error="return")
    assert [type(row).__name__ for row in rows] == ["Tensor", "ImageError"]
    stream = blip.embed_texts(iter(texts), output="torch")
    assert np.allclose(torch.stack(list(stream)), blip.embed_texts(texts))
    with pytest.raises(InputError, match="output must be 'numpy' or 'torch'"):
        blip.embed_texts(texts, output="list")  # type: ignore[call-overload]


def test_threads_are_set_for_the_process(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        openblip.load(toy_bundle(tmp_path, ("caption",)), threads=3)
        assert torch.get_num_threads() == 3
        with pytest.raises(InputError, match="threads must be at least 1"):
            openblip.load(tmp_path, threads=0)
    finally:
        torch.set_num_threads(before)
