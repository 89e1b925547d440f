"""Ground, compare, classify and explain: the golden recordings, brute force, a peer, and the manners of the facade."""

from __future__ import annotations

import dataclasses
import json
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
    Box,
    Classification,
    Comparison,
    EncodedImage,
    Explanation,
    ImageError,
    InputError,
    Label,
    UnsupportedTaskError,
)
from openblip.engine.base import BaseEngine
from openblip.engine.protocols import Comparisons, Grounding
from openblip.model.comparer import Comparer
from openblip.model.grounder import Grounder
from openblip.model.text import Memory
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from openblip.tasks import TaskName
from tests.checkpoints.checkpoint_toys import recorded
from tests.conftest import GOLDEN
from tests.test_blip import BAD, Forwards
from tests.toys import SIZE, toy_bundle, toy_image, toy_model

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "grounding", "nlvr")
IMAGES = [toy_image(seed, 40 + 3 * seed, 30) for seed in range(5)]
OTHERS = IMAGES[::-1]
NAMES = ["a man", "the dog on the left, near the train", "cat", "people sitting at a table in the street"]
LABELS = ["a cat", "dog", "a yellow school bus", "man", "train on the street"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bundle(tmp_path_factory.mktemp("toy"), TASKS)


@pytest.fixture(scope="module")
def blip(folder: Path) -> Blip:
    return openblip.load(folder)


def golden(name: str, heads: int = 4) -> tuple[Blip, dict[str, torch.Tensor], dict[str, Any]]:
    """A golden checkpoint through the facade, what was recorded, and the strings beside it."""
    vocabulary = GOLDEN / ("vocab_grounding.txt" if name == "grounding" else "vocab.txt")
    config = {"text": {"heads": heads}, "vision": {"heads": 4}}
    blip = openblip.load(GOLDEN / f"{name}.weights.safetensors", config=config, tokenizer=vocabulary)
    return blip, recorded(name), json.loads((GOLDEN / f"{name}.json").read_text())


def encoded(blip: Blip, pixels: torch.Tensor, size: tuple[int, int] | None = None) -> list[EncodedImage]:
    """Recorded pixels, which have no picture, as images that the model has seen."""
    part = blip.pipeline(blip.tasks[0]).model
    return [EncodedImage({id(part.engine): states}, size) for states in part.engine.encode_images(pixels)]


def close(a: Any, b: Any) -> None:
    """Equal texts and decisions; numbers within the tolerance the library promises across batches."""
    assert type(a) is type(b)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            close(x, y)
    elif isinstance(a, Box | Comparison | Label | Classification | Explanation):
        for field in dataclasses.fields(a):
            if field.name != "image":
                close(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, float | np.ndarray):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
    else:
        assert a == b


def states_of(blip: Blip, task: TaskName, number: int) -> torch.Tensor:
    """One image's states by the model itself."""
    pixels = to_tensor(resize(load_image(IMAGES[number]), SIZE)[None], ImageSettings(size=SIZE))
    with torch.no_grad():
        return cast(torch.Tensor, blip.pipeline(task).model.module.encode_image(pixels))


# --- recorded from the originals ----------------------------------------------------------------------------------


def test_boxes_of_mmpretrain() -> None:
    blip, seen, told = golden("grounding")
    height, width = told["img_shape_hw"]
    images = encoded(blip, seen["pixel_values"], (width, height))
    part = blip.pipeline("grounding").model
    shares, logprob = part.engine.require(Grounding).ground(
        seen["text_ids"], seen["text_mask"], torch.stack([s.states[id(part.engine)] for s in images])
    )
    torch.testing.assert_close(shares, seen["pred_box_xyxy_unit"])
    bins = seen["pred_box_ids"] - told["tokens"]["first_bin"]
    scores = seen["prediction_scores"][:, :, told["tokens"]["first_bin"] :][..., :641].log_softmax(-1)
    assert bins.shape == (3, 4)
    # The recorded scores are those after the true coordinates; the first one depends on none of them.
    assert torch.equal(scores[:, 0].argmax(-1), bins[:, 0])
    assert (logprob < scores[:, 0].amax(-1)).all()
    # The third text was recorded with its comma, which mmpretrain's pipeline deletes as ours does.
    found = blip.ground(images[:2], told["texts"][:2])
    for box, edges in zip(found, seen["pred_boxes"].tolist(), strict=False):
        assert (box.left, box.top, box.right, box.bottom) == pytest.approx(edges, abs=1e-3)


def test_verdicts_of_salesforce() -> None:
    blip, seen, told = golden("nlvr")
    part = blip.pipeline("nlvr").model
    images = [encoded(blip, pixels) for pixels in seen["pixel_values"].chunk(2)]
    for (first, second), logits in ((images, seen["logits"]), (images[::-1], seen["logits_swapped_pair"])):
        states = [torch.stack([one.states[id(part.engine)] for one in side]) for side in (first, second)]
        torch.testing.assert_close(
            part.engine.require(Comparisons).compare_logits(seen["input_ids"], seen["attention_mask"], *states),
            logits,
            atol=1e-5,
            rtol=1e-4,
        )
        # The third text was recorded with its full stop, which training cleaned away.
        found = blip.compare(first[:2], second[:2], told["texts"][:2])
        assert [one.probability for one in found] == pytest.approx(logits.softmax(-1)[:2, 1].tolist(), abs=1e-5)
        assert [one.label for one in found] == logits[:2].argmax(-1).bool().tolist()


def test_heat_of_lavis() -> None:
    """The recorded layer is the last, where only [ENC] is read: the other rows are zero, there and here."""
    blip, seen, told = golden("gradcam", heads=12)
    pixels = seen["pixel_values_48"].repeat_interleave(8, 2).repeat_interleave(8, 3)
    for number, found in enumerate(blip.explain(encoded(blip, pixels), told["texts"])):
        rows = seen[f"gradcam{number}"]
        assert rows[0].max() > 0.01
        torch.testing.assert_close(torch.tensor(found.start), rows[0], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(found.overall), rows[1], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(found.maps), rows[2 : 2 + len(found.words)], atol=1e-6, rtol=1e-4)
        assert found.probability == pytest.approx(seen["itm_logits"].softmax(-1)[number, 1].item(), abs=1e-5)
        assert " ".join(found.words).replace(" ,", ",") == told["texts"][number]


# --- brute force --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["likeliest", "median"])
@pytest.mark.parametrize("number", range(3))
def test_a_box_is_read_off_one_coordinate_after_the_other(
    blip: Blip, number: int, reading: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without caches, batches and shared projections, over all bins."""
    part = blip.pipeline("grounding").model
    monkeypatch.setattr(part.module, "config", dataclasses.replace(part.module.config, box_reading=reading))
    model, states = cast(Grounder, part.module), states_of(blip, "grounding", number)
    text = torch.tensor([blip.pipeline("grounding").tokenize(NAMES[number])])
    fed, numbers, probability = [500], list[float](), 1.0
    with torch.no_grad():
        fused = model.fusion.encode_embedded(model.text.encode(text), None, states)
        for _ in range(4):
            scores = model.logits(torch.tensor([fed]), torch.cat([states, fused], 1))[0, -1, 501:542].softmax(0)
            best = int(scores.argmax())
            chosen, place = halved(scores.tolist()) if reading == "median" else (best, float(best))
            fed.append(501 + chosen)
            numbers.append(place)
            probability *= scores[chosen].item()
    x, y, w, h = (place / 40 for place in numbers)
    width, height = IMAGES[number].size
    edges = [min(max(edge, 0.0), 1.0) for edge in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
    expected = Box(edges[0] * width, edges[1] * height, edges[2] * width, edges[3] * height, probability)
    close(blip.ground(IMAGES[number], NAMES[number]), expected)


def halved(shares: list[float]) -> tuple[int, float]:
    """The bin that half of the shares ends in, and where in it."""
    left = sum(shares) / 2
    for place, share in enumerate(shares):
        if share >= left:
            return place, place + left / share
        left -= share
    raise AssertionError


def test_a_memory_before_another_is_both_of_them() -> None:
    text = cast(Grounder, toy_model("grounding")).decoder
    states, more = torch.randn(2, 5, 32), torch.randn(6, 3, 32)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]] * 2)
    ids = torch.randint(5, 500, (6, 4))
    with torch.no_grad():
        joined: Memory = text.project(states).concatenate(text.project(more, mask))
        whole = torch.cat([states.repeat_interleave(3, 0), more], 1)
        seen = torch.cat([torch.ones(6, 5, dtype=torch.long), mask], 1)
        torch.testing.assert_close(text.decode(ids, None, joined), text.decode(ids, None, whole, seen))


def test_a_comparison_is_what_the_head_says(blip: Blip) -> None:
    part = blip.pipeline("nlvr").model
    model = cast(Comparer, part.module)
    ids = part.tokenizer.encode(["the dog on the left , near the train"], "enc").ids
    with torch.no_grad():
        logits = model.logits(ids, None, (states_of(blip, "nlvr", 0), states_of(blip, "nlvr", 1)))[0]
    found = blip.compare(IMAGES[0], IMAGES[1], "The dog on the left, near the train.")
    close(found, Comparison(bool(logits.argmax() == 1), logits.softmax(-1)[1].item()))
    assert found.probability != pytest.approx(blip.compare(IMAGES[1], IMAGES[0], NAMES[1]).probability, abs=1e-3)


@pytest.mark.parametrize("by", ["itc", "itm"])
def test_labels_are_ranked_by_their_texts(blip: Blip, by: Any) -> None:
    texts = [f"a picture of {label}" for label in LABELS]
    if by == "itc":
        scores = blip.embed_images(IMAGES[:1]) @ blip.embed_texts(texts).T / 0.07
    else:
        odds = [match.probability / (1 - match.probability) for match in blip.match(IMAGES[0], texts)]
        scores = np.log([odds])
    shares = np.exp(scores[0]) / np.exp(scores[0]).sum()
    expected = [Label(LABELS[i], float(shares[i])) for i in np.argsort(-shares)]
    found = blip.classify(IMAGES[0], LABELS, by=by, n=len(LABELS)).labels
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.probability for one in found] == pytest.approx([one.probability for one in expected], abs=1e-4)
    best = blip.classify(IMAGES[0], LABELS, by=by)
    close(best.labels, found[:1])
    assert (best.text, best.probability) == (best.labels[0].text, best.labels[0].probability)
    bare = blip.classify(IMAGES[0], texts, by=by, template="{}", n=5)
    close([one.probability for one in bare.labels], [one.probability for one in found])


# --- Grad-CAM against transformers --------------------------------------------------------------------------------


def peer_heat(score: torch.Tensor, weights: torch.Tensor) -> np.ndarray:
    """LAVIS's formula: (T, G, G) from attention (1, H, T, N + 1) of that library."""
    (gradient,) = torch.autograd.grad(score, weights, retain_graph=True)
    heat = (weights * gradient.clamp(min=0))[0, :, :, 1:].mean(0)
    return cast(np.ndarray, heat.detach().unflatten(-1, (2, 2)).numpy())  # type: ignore[no-untyped-call]


def peer(folder: Path, name: str, number: int) -> tuple[Any, torch.Tensor]:
    """A model of that library, and the image states it gives, with gradients."""
    import transformers

    model = getattr(transformers, name).from_pretrained(folder).eval()
    pixels = to_tensor(resize(load_image(IMAGES[number]), SIZE)[None], ImageSettings(size=SIZE))
    return model, model.vision_model(pixels).last_hidden_state


@pytest.mark.parametrize("layer", [0, 1])
def test_heat_of_a_match(folder: Path, blip: Blip, layer: int) -> None:
    model, states = peer(folder / "retrieval", "BlipForImageTextRetrieval", 2)
    pipeline = blip.pipeline("retrieval")
    ids = torch.tensor(pipeline.with_enc(pipeline.tokenize([NAMES[1]])))
    read = model.text_encoder(
        input_ids=ids, encoder_hidden_states=states, is_decoder=False, output_attentions=True, return_dict=True
    )
    heat = peer_heat(model.itm_head(read.last_hidden_state[:, 0])[0, 1], read.cross_attentions[layer])
    found = blip.explain(IMAGES[2], NAMES[1], layer=layer)
    assert heat[0].max() > 0
    close(found.start, heat[0])
    pieces = blip.pipeline("retrieval").model.tokenizer.pieces(ids[0, 1:-1])
    assert len(found.words) == len(pieces) - sum(piece.startswith("##") for piece in pieces)
    close(found.overall, heat[1:-1].mean(0))
    assert "".join(found.words) == "".join(pieces).replace("##", "")
    close(found.probability, blip.match(IMAGES[2], NAMES[1]).probability)


@pytest.mark.parametrize("layer", [0, 1])
def test_heat_of_a_caption(folder: Path, blip: Blip, layer: int) -> None:
    model, states = peer(folder / "caption", "BlipForConditionalGeneration", 1)
    tokenizer = blip.pipeline("caption").model.tokenizer
    prompt = tokenizer.encode_prompt("a picture of ")
    ids = torch.tensor([[*prompt, *tokenizer.encode_prompt("children play on the street")[1:]]])
    said = model.text_decoder(input_ids=ids, encoder_hidden_states=states, output_attentions=True, return_dict=True)
    logprobs = said.logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    places = range(len(prompt) - 1, ids.shape[1] - 1)
    heat = [peer_heat(logprobs[place], said.cross_attentions[layer])[place] for place in places]
    found = blip.explain(IMAGES[1], "Children play on the street.", task="caption", layer=layer)
    close(found.overall, np.mean(heat, 0))
    close(found.maps[-1], heat[-1])
    close(found.probability, logprobs[list(places)].sum().exp().item())
    assert found.start is None


@pytest.mark.parametrize("layer", [0, 1])
def test_heat_of_an_answer(folder: Path, blip: Blip, layer: int) -> None:
    model, states = peer(folder / "vqa", "BlipForQuestionAnswering", 3)
    pipeline = blip.pipeline("vqa")
    ids = torch.tensor([pipeline.tokenize_question("what is on the table?")])
    answer = torch.tensor(pipeline.tokenize_answers(["a yellow bus"]))
    heard = model.text_encoder(
        input_ids=ids, encoder_hidden_states=states, is_decoder=False, output_attentions=True, return_dict=True
    )
    said = model.text_decoder(input_ids=answer, encoder_hidden_states=heard.last_hidden_state, return_dict=True)
    logprob = said.logits.log_softmax(-1)[0, :-1].gather(1, answer[0, 1:, None]).sum()
    heat = peer_heat(logprob, heard.cross_attentions[layer])
    found = blip.explain(IMAGES[3], "what is on the table?", task="vqa", answer="a yellow bus", layer=layer)
    close(found.start, heat[0])
    close(found.overall, heat[1:-1].mean(0))
    close(found.probability, logprob.exp().item())
    assert (found.text, found.answer) == ("what is on the table?", "a yellow bus")


def test_what_the_model_says_itself_is_explained(blip: Blip) -> None:
    assert blip.explain(IMAGES[0], task="caption").text == blip.caption(IMAGES[0]).text
    answer = blip.ask(IMAGES[0], "what is it?")
    found = blip.explain(IMAGES[0], "what is it?", task="vqa")
    assert found.answer == answer.text
    close(found, blip.explain(IMAGES[0], "what is it?", task="vqa", answer=answer.text))


def test_pieces_of_a_word_are_one_word(blip: Blip) -> None:
    tokenizer = blip.pipeline("retrieval").model.tokenizer
    word = next(
        w for w in ("snowman", "dogs", "cats", "bottles") if len(tokenizer.pieces(tokenizer.encode(w).ids[0])) > 3
    )
    assert blip.explain(IMAGES[0], f"a {word}").words == ("a", word)


def test_explaining_needs_gradients(folder: Path) -> None:
    rounded = openblip.load(folder, precision="int8", engine="torch")
    with pytest.raises(InputError, match="fp32"):
        rounded.explain(IMAGES[0], "a cat", layer=0)

    class OtherEngine(BaseEngine):
        """An engine without explanations."""

        name = "other"

    other = openblip.load(folder)
    other.pipeline("retrieval").model.engine = cast(Any, OtherEngine(torch.device("cpu"), frozenset()))
    with pytest.raises(InputError, match="engine='torch'"):
        other.explain(IMAGES[0], "a cat")


def test_explaining_works_inside_inference_mode(blip: Blip) -> None:
    plain = blip.explain(IMAGES[0], "a cat", layer=0)
    with torch.inference_mode():
        close(blip.explain(IMAGES[0], "a cat", layer=0), plain)


# --- the manners of the facade ------------------------------------------------------------------------------------

Call = Callable[..., Any]
CALLS: dict[str, Call] = {
    "ground": lambda blip, images, **options: blip.ground(images, "the dog on the left", **options),
    "classify": lambda blip, images, **options: blip.classify(images, LABELS, n=2, **options),
    "classify, itm": lambda blip, images, **options: blip.classify(images, LABELS, by="itm", **options),
    "explain": lambda blip, images, **options: blip.explain(images, "a dog on the street", layer=0, **options),
    "explain caption": lambda blip, images, **options: blip.explain(images, task="caption", **options),
    "explain answer": lambda blip, images, **options: blip.explain(images, "what is it?", task="vqa", **options),
    "compare": lambda blip, images, **options: blip.compare(images, _beside(images), "a dog", **options),
}


def _beside(images: Any) -> Any:
    """As many pictures to the right of ``images``."""
    if isinstance(images, Iterator):
        return iter(OTHERS)
    return OTHERS[: len(images)] if isinstance(images, list) else OTHERS[0]


@pytest.mark.parametrize("name", [name for name in CALLS if name != "compare"])
def test_one_gives_one_a_list_a_list_and_an_iterator_streams(blip: Blip, name: str) -> None:
    call = CALLS[name]
    each = [call(blip, image) for image in IMAGES]
    close(call(blip, IMAGES), each)
    stream = call(blip, iter(IMAGES))
    assert isinstance(stream, Iterator)
    close(list(stream), each)
    assert call(blip, []) == []


def test_pairs_come_as_one_as_lists_and_as_iterators(blip: Blip) -> None:
    each = [blip.compare(left, right, "a dog") for left, right in zip(IMAGES, OTHERS, strict=True)]
    assert len({one.probability for one in each}) == len(each)
    close(blip.compare(IMAGES, OTHERS, "a dog"), each)
    stream = blip.compare(iter(IMAGES), iter(OTHERS), "a dog")
    assert isinstance(stream, Iterator)
    close(list(stream), each)
    assert blip.compare([], [], "a dog") == []
    said = [blip.compare(IMAGES[0], IMAGES[1], name) for name in NAMES]
    close(blip.compare(IMAGES[0], IMAGES[1], NAMES), said)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_the_batch_changes_nothing(folder: Path, blip: Blip, size: int) -> None:
    other = openblip.load(folder, batch_size=size, num_workers=0)
    four = IMAGES[:4]
    close(other.ground(four, NAMES), [blip.ground(i, n) for i, n in zip(four, NAMES, strict=True)])
    close(other.ground(IMAGES[4], NAMES * 5), [blip.ground(IMAGES[4], name) for name in NAMES] * 5)
    close(other.compare(four, OTHERS[:4], NAMES), blip.compare(four, OTHERS[:4], NAMES))
    close(other.classify(IMAGES, LABELS, n=5), blip.classify(IMAGES, LABELS, n=5))
    close(other.explain(four, NAMES, layer=0), [blip.explain(i, n, layer=0) for i, n in zip(four, NAMES, strict=True)])
    close(other.explain(IMAGES[0], NAMES * 5, layer=0), [blip.explain(IMAGES[0], n, layer=0) for n in NAMES] * 5)


def test_one_encoding_serves_all_texts(blip: Blip) -> None:
    jobs: list[tuple[TaskName, Callable[[], Any], int]] = [
        ("grounding", lambda: blip.ground(IMAGES[0], NAMES), 1),
        ("nlvr", lambda: blip.compare(IMAGES[0], IMAGES[1], NAMES), 2),
        ("retrieval", lambda: blip.classify(IMAGES[0], LABELS, by="itm"), 1),
        ("retrieval", lambda: blip.explain(IMAGES[0], NAMES), 1),
    ]
    for task, job, images in jobs:
        with Forwards(blip.pipeline(task).model.module.vision) as seen:
            job()
        assert seen.images == images


def test_an_encoded_image_stands_for_its_picture(blip: Blip) -> None:
    first, second = blip.encode_images(IMAGES[:2])
    assert first.size == IMAGES[0].size
    close(blip.ground([first, IMAGES[1]], NAMES[0]), blip.ground(IMAGES[:2], NAMES[0]))
    close(blip.compare(first, second, NAMES), blip.compare(IMAGES[0], IMAGES[1], NAMES))
    close(blip.explain(second, NAMES[1], layer=0), blip.explain(IMAGES[1], NAMES[1], layer=0))
    close(blip.ground(blip.encode_images(first), NAMES[0]), blip.ground(IMAGES[0], NAMES[0]))
    with pytest.raises(InputError, match="size"):
        blip.ground(EncodedImage(first.states), NAMES[0])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_bad_image_raises_or_holds_its_place(blip: Blip, call: Call) -> None:
    with pytest.raises(ImageError):
        call(blip, BAD[1])
    assert isinstance(call(blip, BAD[1], on_error="return"), ImageError)
    inputs = [IMAGES[0], BAD[1], IMAGES[1], BAD[2]]
    mixed = call(blip, inputs, on_error="return")
    assert [isinstance(result, ImageError) for result in mixed] == [False, True, False, True]
    expected = call(blip, IMAGES[:3])[0]
    close(mixed[0], expected)
    with pytest.raises(ImageError, match="item 1: ") as raised:
        call(blip, inputs)
    assert raised.value.index == 1
    close(raised.value.partial, [expected])


def test_boxes_are_in_pixels_of_the_file_whatever_it_was_decoded_at(blip: Blip, tmp_path: Path) -> None:
    """A large JPEG is decoded at a half of its size or less, this one lying on its side too."""
    large = toy_image(7, 320, 200)
    exif = large.getexif()
    exif[0x0112] = 6
    large.save(tmp_path / "large.jpg", quality=95)
    large.save(tmp_path / "lying.jpg", quality=95, exif=exif)
    for name, size in (("large.jpg", (320, 200)), ("lying.jpg", (200, 320))):
        assert blip.encode_images(tmp_path / name).size == size
        close(blip.ground(tmp_path / name, NAMES[0]), blip.ground(blip.encode_images(tmp_path / name), NAMES[0]))
    whole = blip.ground(load_image(tmp_path / "large.jpg"), NAMES[0])
    near = blip.ground(tmp_path / "large.jpg", NAMES[0])
    assert near.edges == pytest.approx(whole.edges, abs=25), "a bin is 8 pixels wide"


def test_a_bad_picture_on_the_right_counts_too(blip: Blip) -> None:
    with pytest.raises(ImageError):
        blip.compare(IMAGES[0], BAD[1], "a dog")
    found = blip.compare(IMAGES[:3], [OTHERS[0], BAD[2], OTHERS[2]], "a dog", on_error="return")
    assert [isinstance(one, ImageError) for one in found] == [False, True, False]
    with pytest.raises(ImageError) as raised:
        blip.compare(IMAGES[:2], [OTHERS[0], BAD[2]], "a dog")
    assert raised.value.item == (IMAGES[1], BAD[2])


def test_a_bad_text_holds_its_place(blip: Blip) -> None:
    for found in (
        blip.ground(IMAGES[:3], ["a dog", "?!", "a cat"], on_error="return"),
        blip.explain(IMAGES[:3], ["a dog", "!", "a cat"], on_error="return"),
        blip.compare(IMAGES[:3], OTHERS[:3], ["a dog", cast(Any, 7), "a cat"], on_error="return"),
    ):
        assert [isinstance(one, InputError) for one in found] == [False, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda blip: blip.ground(IMAGES[:2], ["a"]),
        lambda blip: blip.compare(IMAGES[:2], IMAGES[:1], "a"),
        lambda blip: blip.compare(IMAGES[:2], IMAGES[0], "a"),
        lambda blip: blip.compare(IMAGES[0], IMAGES[:2], "a"),
        lambda blip: blip.compare(IMAGES[0], IMAGES[1], "a," * 40),
        lambda blip: blip.classify(IMAGES[0], "cat"),
        lambda blip: blip.classify(IMAGES[0], []),
        lambda blip: blip.classify(IMAGES[0], LABELS, n=6),
        lambda blip: blip.classify(IMAGES[0], LABELS, template="a picture"),
        lambda blip: blip.classify(IMAGES[0], LABELS, by="vibes"),
        lambda blip: blip.explain(IMAGES[0], "a cat", task="dance"),
        lambda blip: blip.explain(IMAGES[0]),
        lambda blip: blip.explain(IMAGES[0], task="vqa"),
        lambda blip: blip.explain(IMAGES[0], "a cat", layer=2),
        lambda blip: blip.explain(IMAGES[0], "a cat", answer="yes"),
        lambda blip: blip.explain(IMAGES[0], "a," * 31, task="caption"),
    ],
)
def test_wrong_arguments_are_named(blip: Blip, wrong: Callable[[Blip], Any]) -> None:
    with pytest.raises(InputError):
        wrong(blip)


@pytest.mark.parametrize(("task", "published"), [("grounding", "blip-base_8xb16_refcoco"), ("nlvr", "model_base_nlvr")])
def test_a_checkpoint_refuses_what_it_cannot_serve(folder: Path, task: TaskName, published: str) -> None:
    captioner = openblip.load(folder / "caption")
    with pytest.raises(UnsupportedTaskError, match=published):
        captioner.ground(IMAGES[0], "a") if task == "grounding" else captioner.compare(IMAGES[0], IMAGES[1], "a")


def test_one_blip_under_eight_threads(folder: Path, blip: Blip) -> None:
    fresh = openblip.load(folder)
    jobs: list[Callable[[Blip], Any]] = [
        lambda b: b.ground(IMAGES, NAMES[1]), lambda b: b.compare(IMAGES, OTHERS, NAMES[0]),
        lambda b: b.explain(IMAGES[0], NAMES, layer=0), lambda b: b.explain(IMAGES[1], task="caption"),
    ]  # fmt: skip
    expected = [job(blip) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(lambda job: job(fresh), jobs * 2), expected * 2, strict=True):
            close(found, wanted)
    assert all(p.grad is None for p in fresh.pipeline("retrieval").model.module.parameters())


def test_an_explanation_as_a_record(blip: Blip) -> None:
    found = blip.explain(IMAGES[0], "what is it?", task="vqa")
    record = json.loads(json.dumps(found.to_dict()))
    assert record["words"] == list(found.words)
    np.testing.assert_allclose(record["maps"], found.maps, rtol=1e-6)
    assert set(record) == {"text", "probability", "words", "answer", "maps", "overall", "start"}
    assert "start" not in blip.explain(IMAGES[0], task="caption").to_dict()
