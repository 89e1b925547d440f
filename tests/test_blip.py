"""The public API: shapes, errors, batches, encoded images, threads, and the loading of models."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import openblip
from openblip import (
    Blip,
    Caption,
    CheckpointError,
    EncodedImage,
    ImageError,
    InputError,
    Match,
    UnsupportedTaskError,
)
from openblip.checkpoints import write
from openblip.engine.protocols import TorchModel
from openblip.preprocess.image import ImageSettings
from tests.pipelines.pipeline_toys import (
    IMAGES,
    LABELS,
    PROMPTS,
    QUESTIONS,
    RIGHT_IMAGES,
    TASKS,
    TEXTS,
    UNREADABLE,
    assert_close,
    count_images,
)
from tests.toys import SIZE, toy_bundle, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


def right_images(images: Any) -> Any:
    """Return right images in the shape of the left ones."""
    if isinstance(images, Iterator):
        return iter(RIGHT_IMAGES)
    return RIGHT_IMAGES[: len(images)] if isinstance(images, list) else RIGHT_IMAGES[0]


Call = Callable[..., Any]
CALLS: dict[str, Call] = {
    "caption": lambda blip, images, **options: blip.caption(images, **options),
    "caption, n=2": lambda blip, images, **options: blip.caption(images, num_beams=2, n=2, **options),
    "caption, greedy": lambda blip, images, **options: blip.caption(images, num_beams=1, max_new_tokens=5, **options),
    "caption, sampled": lambda blip, images, **options: blip.caption(images, do_sample=True, seed=3, n=2, **options),
    "ask": lambda blip, images, **options: blip.ask(images, "what is it?", **options),
    "ask, closed": lambda blip, images, **options: blip.ask(images, "what?", answers=["cat", "yes"], n=2, **options),
    "match": lambda blip, images, **options: blip.match(images, "a cat", **options),
    "match, several texts": lambda blip, images, **options: blip.match(images, TEXTS, **options),
    "classify": lambda blip, images, **options: blip.classify(images, LABELS, n=2, **options),
    "classify, itm": lambda blip, images, **options: blip.classify(images, LABELS, by="itm", **options),
    "ground": lambda blip, images, **options: blip.ground(images, "the dog on the left", **options),
    "compare": lambda blip, images, **options: blip.compare(images, right_images(images), "a dog", **options),
    "explain": lambda blip, images, **options: blip.explain(images, "a dog on the street", layer=0, **options),
    "explain caption": lambda blip, images, **options: blip.explain(images, task="caption", **options),
    "explain answer": lambda blip, images, **options: blip.explain(images, "what is it?", task="vqa", **options),
}
all_calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
calls_of_one_image = pytest.mark.parametrize("name", [name for name in CALLS if name != "compare"])


@calls_of_one_image
def test_one_gives_one_a_list_a_list_and_an_iterator_an_iterator(blip: Blip, name: str) -> None:
    call = CALLS[name]
    expected = [call(blip, image) for image in IMAGES]
    assert_close(call(blip, IMAGES), expected)
    assert_close(call(blip, tuple(IMAGES)), expected)
    stream = call(blip, iter(IMAGES))
    assert isinstance(stream, Iterator)
    assert_close(list(stream), expected)
    assert call(blip, []) == []


def test_an_iterator_is_read_as_its_results_are_consumed(blip: Blip) -> None:
    opened: list[int] = []

    def images() -> Iterator[Any]:
        for index in range(1000):
            opened.append(index)
            yield IMAGES[index % 5]

    captions = blip.caption(images(), max_new_tokens=2)
    assert opened == []
    next(captions)
    assert len(opened) <= 3 * blip.batch_size + 1


# Errors.


@calls_of_one_image
def test_a_bad_image_raises_with_its_index(blip: Blip, name: str) -> None:
    call = CALLS[name]
    for bad in UNREADABLE:
        with pytest.raises(ImageError) as single:
            call(blip, bad)
        assert (single.value.index, single.value.partial) == (None, None)
    with pytest.raises(ImageError, match="item 2: ") as listed:
        call(blip, [IMAGES[0], IMAGES[1], UNREADABLE[1], UNREADABLE[2]])
    assert listed.value.index == 2
    assert_close(listed.value.partial, call(blip, IMAGES[:2]))
    stream = call(blip, iter([IMAGES[0], UNREADABLE[3], IMAGES[1]]))
    assert_close(next(stream), call(blip, IMAGES[:1])[0])
    with pytest.raises(ImageError, match=r"item 1: cannot read /no/such/file.png") as streamed:
        next(stream)
    assert (streamed.value.index, streamed.value.partial) == (1, None)


def test_an_error_holds_its_item(blip: Blip) -> None:
    bad = UNREADABLE[1]
    calls: list[Callable[[], Any]] = [
        lambda: blip.caption([IMAGES[0], bad]),
        lambda: blip.ask([IMAGES[0], bad], "what?"),
        lambda: blip.embed_images([IMAGES[0], bad]),
    ]
    for call in calls:
        with pytest.raises(ImageError) as raised:
            call()
        assert raised.value.item is bad


@calls_of_one_image
def test_on_error_return_puts_errors_in_place(blip: Blip, name: str) -> None:
    call = CALLS[name]
    for bad in UNREADABLE:
        assert isinstance(call(blip, bad, on_error="return"), ImageError)
    images = [IMAGES[0], UNREADABLE[1], IMAGES[1], UNREADABLE[2]]
    expected = call(blip, IMAGES[:1])
    for results in (call(blip, images, on_error="return"), list(call(blip, iter(images), on_error="return"))):
        assert [isinstance(result, ImageError) for result in results] == [False, True, False, True]
        assert_close([results[0]], expected)
        assert str(results[3]) == "cannot read /no/such/file.jpg: no such file", "its position says where it was"


def test_errors_of_embeddings(blip: Blip) -> None:
    images: list[Any] = [IMAGES[0], UNREADABLE[1], IMAGES[1], UNREADABLE[2]]
    with pytest.raises(ImageError, match="item 1: ") as raised:
        blip.embed_images(images)
    np.testing.assert_allclose(cast(Any, raised.value.partial), blip.embed_images(IMAGES[:1]), atol=1e-5)
    results = blip.embed_images(images, on_error="return")
    assert [isinstance(result, ImageError) for result in results] == [False, True, False, True]


def test_a_bad_text_is_an_error_of_its_item(blip: Blip) -> None:
    for results in (
        blip.ground(IMAGES[:3], ["a dog", "?!", "a cat"], on_error="return"),
        blip.explain(IMAGES[:3], ["a dog", "!", "a cat"], on_error="return"),
        blip.compare(IMAGES[:3], RIGHT_IMAGES[:3], ["a dog", cast(Any, 7), "a cat"], on_error="return"),
    ):
        assert [isinstance(result, InputError) for result in results] == [False, True, False]


def test_on_error_must_be_known(blip: Blip) -> None:
    with pytest.raises(InputError, match="on_error must be 'raise' or 'return', got 'ignore'"):
        blip.caption(IMAGES[0], on_error=cast(Any, "ignore"))


# Progress.


@all_calls
def test_progress_is_reported(blip: Blip, call: Call) -> None:
    reports: list[tuple[int, int | None]] = []
    call(blip, IMAGES[:2], progress=lambda *report: reports.append(report))
    assert reports == [(1, 2), (2, 2)]
    assert_close(call(blip, IMAGES[:2], progress=True), call(blip, IMAGES[:2]))


def test_progress_of_embeddings(blip: Blip) -> None:
    for method, inputs in ((blip.embed_images, IMAGES), (blip.embed_texts, TEXTS), (blip.encode_images, IMAGES)):
        reports: list[tuple[int, int | None]] = []
        cast(Any, method)(inputs, progress=lambda *report, log=reports: log.append(report))
        assert reports == [(done, len(inputs)) for done in range(1, len(inputs) + 1)]


# Batches.


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_results_do_not_depend_on_the_batch_size(folder: Path, blip: Blip, size: int) -> None:
    other = openblip.load(folder, batch_size=size, num_workers=0)
    assert (other.batch_size, other.num_workers) == (size, 0)
    four = IMAGES[:4]
    assert_close(other.caption(four, prompt=PROMPTS), blip.caption(four, prompt=PROMPTS))
    assert_close(other.ask(four, QUESTIONS), blip.ask(four, QUESTIONS))
    assert_close(other.match(IMAGES, TEXTS), blip.match(IMAGES, TEXTS))
    assert_close(other.classify(IMAGES, LABELS, n=5), blip.classify(IMAGES, LABELS, n=5))
    assert_close(other.ground(four, TEXTS), [blip.ground(i, t) for i, t in zip(four, TEXTS, strict=True)])
    assert_close(other.compare(four, RIGHT_IMAGES[:4], TEXTS), blip.compare(four, RIGHT_IMAGES[:4], TEXTS))
    explanations = [blip.explain(image, text, layer=0) for image, text in zip(four, TEXTS, strict=True)]
    assert_close(other.explain(four, TEXTS, layer=0), explanations)


def test_the_batch_size_can_change(folder: Path, blip: Blip) -> None:
    other = openblip.load(folder)
    pipeline = other.pipeline("caption")
    other.batch_size = 1
    assert pipeline.model.batching.batch_size == 1
    assert_close(other.caption(IMAGES), blip.caption(IMAGES))


# Images.


def test_every_form_of_an_image_gives_the_same(blip: Blip, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    IMAGES[0].save(path)
    array = np.asarray(IMAGES[0])
    chw = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        array,
        chw,
        chw.float() / 255,
    ]
    assert_close([blip.caption(form) for form in forms], [blip.caption(IMAGES[0])] * len(forms))
    assert_close(blip.caption(torch.stack([chw, chw])), [blip.caption(IMAGES[0])] * 2)


@calls_of_one_image
def test_an_encoded_image_replaces_its_image(blip: Blip, name: str) -> None:
    call = CALLS[name]
    encoded, other = blip.encode_images(IMAGES[:2])
    assert_close(call(blip, encoded), call(blip, IMAGES[0]))
    assert_close(call(blip, [IMAGES[0], other]), call(blip, IMAGES[:2]))


def test_encoded_images_skip_the_encoder(blip: Blip) -> None:
    encoded = blip.encode_images(IMAGES[0])
    with count_images(blip, "vqa") as counter:
        blip.ask(encoded, QUESTIONS)
    assert counter.count == 0
    np.testing.assert_array_equal(blip.embed_images(encoded), blip.embed_images(IMAGES[0]))
    assert_close(blip.compare(encoded, encoded, TEXTS), blip.compare(IMAGES[0], IMAGES[0], TEXTS))
    assert_close(blip.ground(blip.encode_images(encoded), TEXTS[0]), blip.ground(IMAGES[0], TEXTS[0]))


def test_images_are_encoded_for_one_task_or_all(blip: Blip) -> None:
    with count_images(blip, "vqa") as counter:
        encoded = blip.encode_images(IMAGES[0], task="caption")
    assert counter.count == 0
    with pytest.raises(InputError, match="must be encoded for retrieval"):
        blip.match(encoded, "a cat")
    streams = [io.BytesIO() for _ in range(2)]
    for stream, image in zip(streams, IMAGES, strict=False):
        image.save(stream, "PNG")
        stream.seek(0)
    results = blip.encode_images([streams[0], UNREADABLE[0], streams[1]], on_error="return")
    assert [type(result) for result in results] == [EncodedImage, ImageError, EncodedImage]
    assert_close(blip.caption(cast(Any, results[2])), blip.caption(IMAGES[1]))


def test_images_encoded_together_do_not_share_memory(blip: Blip) -> None:
    """One image must not keep the states of its batch alive."""
    for encoded in blip.encode_images(IMAGES, task="vqa"):
        (states,) = encoded.states.values()
        assert states.untyped_storage().nbytes() == states.nbytes


# Loading.


def test_a_model_refuses_the_tasks_it_does_not_serve(folder: Path, blip: Blip) -> None:
    captioner = openblip.load(folder / "caption")
    assert captioner.tasks == ("caption",)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: captioner.ask(IMAGES[0], "what is it?"), r"supports caption, not vqa.*blip-vqa"),
        (lambda: captioner.embed_texts("a cat"), "retrieval"),
        (lambda: captioner.ground(IMAGES[0], "a cat"), "blip-base_8xb16_refcoco"),
        (lambda: captioner.compare(IMAGES[0], IMAGES[1], "a cat"), "model_base_nlvr"),
        (lambda: captioner.encode_images(IMAGES[0], task="vqa"), "not vqa"),
    ]
    for call, message in calls:
        with pytest.raises(UnsupportedTaskError, match=message):
            call()
    assert blip.tasks == TASKS
    with pytest.raises(InputError, match="task must be one of caption, vqa"):
        captioner.pipeline("visdial")
    with pytest.raises(InputError, match="did you mean caption"):
        captioner.pipeline(cast(Any, "capton"))


def test_one_task_of_a_bundle(folder: Path) -> None:
    assert openblip.load(folder, task="vqa").tasks == ("vqa",)
    with pytest.raises(UnsupportedTaskError, match="no model for 'pretrain'"):
        openblip.load(folder, task="pretrain")


def test_a_pretraining_checkpoint_captions_and_matches(tmp_path: Path) -> None:
    write.save(toy_model("pretrain"), tmp_path / "p", tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE))
    pretrained = openblip.load(tmp_path / "p")
    assert pretrained.tasks == ("caption", "retrieval")
    assert isinstance(pretrained.caption(IMAGES[0]), Caption)
    assert isinstance(pretrained.match(IMAGES[0], "a cat"), Match)
    assert pretrained.pipeline("caption").model is pretrained.pipeline("retrieval").model
    with count_images(pretrained, "caption") as counter:
        pretrained.encode_images(IMAGES[0])
    assert counter.count == 1


def test_a_pretraining_checkpoint_in_a_bundle_fills_gaps(tmp_path: Path) -> None:
    mixed = openblip.load(toy_bundle(tmp_path, ("pretrain", "caption")))
    assert set(mixed.tasks) == {"caption", "retrieval"}
    assert mixed.pipeline("caption").model.config.task == "caption"
    assert mixed.pipeline("retrieval").model.config.task == "pretrain"


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "no config"])
def test_load_checks_every_member_of_a_bundle(tmp_path: Path, damage: str) -> None:
    home = toy_bundle(tmp_path, ("caption", "vqa"))
    weights = home / "vqa" / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "no config":
        (home / "vqa" / "config.json").unlink()
    else:
        weights.write_bytes(b"" if damage == "empty" else weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="vqa"):
        openblip.load(home)


def test_a_model_without_a_vocabulary_still_embeds_images(folder: Path, blip: Blip, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(folder / "retrieval" / name, tmp_path)
    model = openblip.load(tmp_path)
    np.testing.assert_allclose(model.embed_images(IMAGES), blip.embed_images(IMAGES), atol=1e-5)
    with pytest.raises(InputError, match="no vocabulary"):
        model.embed_texts("a cat")


def test_precision_is_chosen_by_the_caller_and_not_by_the_file(folder: Path, blip: Blip, tmp_path: Path) -> None:
    write.save(
        toy_model("retrieval"), tmp_path / "half", tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE),
        dtype=torch.float16,
    )  # fmt: skip
    stored_half = openblip.load(tmp_path / "half").pipeline("retrieval").model
    assert stored_half.engine.require(TorchModel).dtype is torch.float32
    half = openblip.load(folder / "retrieval", precision="bf16")
    embeddings = half.embed_images(IMAGES)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, blip.embed_images(IMAGES), atol=0.05)
    match = half.match(IMAGES[0], "a cat")
    assert math.isfinite(match.probability)
    assert math.isfinite(match.similarity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "warp"}, "engine"), ({"precision": "fp8"}, "precision"), ({"device": "abacus"}, "device must be"),
        ({"decode": "lossy"}, "decode must be"), ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"calibration": [], "precision": "int8"}, "at least one image"),
    ],
)  # fmt: skip
def test_wrong_loading_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        openblip.load("pocket", **options)


def test_one_blip_in_eight_threads(folder: Path, blip: Blip) -> None:
    fresh = openblip.load(folder)  # its models are loaded by competing threads too
    calls: list[Callable[[Blip], Any]] = [
        lambda b: b.caption(IMAGES), lambda b: b.ask(IMAGES[0], QUESTIONS), lambda b: b.match(IMAGES, TEXTS),
        lambda b: b.caption(IMAGES[0], do_sample=True, seed=1), lambda b: b.ground(IMAGES, TEXTS[1]),
        lambda b: b.compare(IMAGES, RIGHT_IMAGES, TEXTS[0]), lambda b: b.explain(IMAGES[0], TEXTS, layer=0),
        lambda b: b.explain(IMAGES[1], task="caption"),
    ]  # fmt: skip
    expected = [call(blip) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for result, value in zip(pool.map(lambda call: call(fresh), calls * 3), expected * 3, strict=True):
            assert_close(result, value)


def test_a_model_and_a_pipeline_name_what_they_are() -> None:
    blip = openblip.load("pocket", task="caption")
    assert repr(blip) == "Blip('pocket', tasks=('caption',), engine='auto', precision='fp32')"
    assert repr(blip.pipeline("caption")) == "CaptionPipeline(task='caption')"


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(openblip.InputError, match="name_or_path must name a model"):
        openblip.load("")
