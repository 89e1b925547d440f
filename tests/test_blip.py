"""The facade: shapes of results, independence of the batch, errors in place, one encoding for many texts."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import openblip
from openblip import Answer, Blip, Caption, ImageError, InputError, Match, UnsupportedTaskError
from openblip.checkpoints import write
from openblip.decoding import Decoding, generate
from openblip.engine.protocols import Captions, TorchModel
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.matcher import Matcher
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from openblip.tasks import TaskName
from tests.toys import SIZE, toy_bundle, toy_image, toy_model, toy_tokenizer

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval")
IMAGES = [toy_image(seed) for seed in range(5)]
TEXTS = ["a cat on a bed", "a yellow school bus parked on the street near a train", "children", "a dog, a man"]
QUESTIONS = ["what is it?", "is there a cat sleeping on the bed near the window?", "why", "how many dogs are there?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bundle(tmp_path_factory.mktemp("toy"), TASKS)


@pytest.fixture(scope="module")
def blip(folder: Path) -> Blip:
    return openblip.load(folder)


def close(a: Any, b: Any) -> None:
    """Equal texts; numbers within the tolerance the library promises across batches."""
    assert type(a) is type(b)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            close(x, y)
        return
    if isinstance(a, Caption):
        assert (a.text, a.finished) == (b.text, b.finished)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        close(a.alternatives, b.alternatives)
    elif isinstance(a, Answer):
        assert a.text == b.text
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
        close(a.alternatives, b.alternatives)
    else:
        assert isinstance(a, Match)
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
        assert a.similarity == pytest.approx(b.similarity, abs=1e-5)


def ranked(best: Answer) -> list[Answer]:
    """The answer without its alternatives, followed by them."""
    return [replace(best, alternatives=()), *best.alternatives]


def tokens_of(blip: Blip, task: TaskName, images: list[Image.Image]) -> torch.Tensor:
    """Image states by the model itself, without the facade's batching."""
    pixels = np.stack([resize(load_image(image), SIZE) for image in images])
    return cast(
        torch.Tensor, blip.pipeline(task).model.module.encode_image(to_tensor(pixels, ImageSettings(size=SIZE)))
    )


class Forwards:
    """Counts the images that pass through an encoder."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.images = 0
        self.hook = module.register_forward_hook(self.count)

    def count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        self.images += len(inputs[0])

    def __enter__(self) -> Forwards:
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


CALLS: dict[str, Callable[..., Any]] = {
    "caption": lambda blip, images, **options: blip.caption(images, **options),
    "caption, 2 beams of which 2": lambda blip, images, **options: blip.caption(images, num_beams=2, n=2, **options),
    "caption, greedy": lambda blip, images, **options: blip.caption(images, num_beams=1, max_new_tokens=5, **options),
    "caption, sampled": lambda blip, images, **options: blip.caption(images, do_sample=True, seed=3, n=2, **options),
    "ask": lambda blip, images, **options: blip.ask(images, "what is it?", **options),
    "ask, closed": lambda blip, images, **options: blip.ask(
        images, "what is it?", answers=["a cat", "dog", "yes"], n=2, **options
    ),
    "match": lambda blip, images, **options: blip.match(images, "a cat", **options),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_one_gives_one_a_list_a_list_and_an_iterator_streams(blip: Blip, call: Callable[[Blip, Any], Any]) -> None:
    each = [call(blip, image) for image in IMAGES]
    close(call(blip, IMAGES), each)
    stream = call(blip, iter(IMAGES))
    assert isinstance(stream, Iterator)
    close(list(stream), each)
    assert call(blip, []) == []


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_the_batch_size_changes_nothing(folder: Path, blip: Blip, size: int) -> None:
    other = openblip.load(folder, batch_size=size, num_workers=0)
    prompts = ["a picture of ", "", "a cat sleeping on the", "a"]
    close(other.caption(IMAGES[:4], prompt=prompts), blip.caption(IMAGES[:4], prompt=prompts))
    close(other.ask(IMAGES[:4], QUESTIONS), blip.ask(IMAGES[:4], QUESTIONS))
    close(other.match(IMAGES, TEXTS), blip.match(IMAGES, TEXTS))


def test_mixed_lengths_in_a_batch_equal_single_items(blip: Blip) -> None:
    prompts = ["a picture of ", "", "a cat sleeping on the", "a"]
    close(
        blip.caption(IMAGES[:4], prompt=prompts),
        [blip.caption(image, prompt=prompt) for image, prompt in zip(IMAGES, prompts, strict=False)],
    )
    close(blip.ask(IMAGES[:4], QUESTIONS), [blip.ask(i, q) for i, q in zip(IMAGES, QUESTIONS, strict=False)])
    close(blip.ask(IMAGES[0], QUESTIONS), [blip.ask(IMAGES[0], q) for q in QUESTIONS])
    close(blip.match(IMAGES, TEXTS), [[blip.match(i, t) for t in TEXTS] for i in IMAGES])
    close(blip.match(IMAGES[:4], TEXTS, paired=True), [blip.match(i, t) for i, t in zip(IMAGES, TEXTS, strict=False)])
    np.testing.assert_allclose(blip.embed_texts(TEXTS), [blip.embed_texts(text) for text in TEXTS], atol=1e-5)
    np.testing.assert_allclose(blip.embed_images(IMAGES), [blip.embed_images(i) for i in IMAGES], atol=1e-5)


def test_the_default_prompt_is_left_out_and_a_given_one_included(blip: Blip) -> None:
    plain, given = blip.caption(IMAGES[0]), blip.caption(IMAGES[0], prompt="a picture of ")
    assert given.text == f"a picture of {plain.text}"
    assert given.logprob == plain.logprob
    assert blip.caption(IMAGES[0], prompt="").logprob != plain.logprob


def test_logprob_is_the_model_s_own_probability_of_the_new_tokens(blip: Blip) -> None:
    part = blip.pipeline("caption").model
    options: dict[str, Any] = {
        "num_beams": 4,
        "repetition_penalty": 1.7,
        "no_repeat_ngram_size": 2,
        "max_new_tokens": 7,
    }
    decoding = Decoding(eos_id=part.tokenizer.sep_id, pad_id=part.tokenizer.pad_id, **options)
    states = tokens_of(blip, "caption", IMAGES[1:2])
    session = part.engine.require(Captions).prepare_captions(states, decoding.capacity(1))([0])
    start = torch.tensor([[part.tokenizer.dec_id]])
    ids = torch.cat([start, torch.tensor([generate(session, start, decoding)[0][0].ids])], dim=1)
    with torch.no_grad():
        scores = cast(Captioner, part.module).logits(ids, None, states)[0, :-1].log_softmax(-1)
    expected = scores.gather(1, ids[0, 1:, None]).sum().item()
    caption = blip.caption(IMAGES[1], prompt="", **options)
    assert caption.logprob == pytest.approx(expected, abs=1e-4)
    assert caption.text == part.tokenizer.decode(ids[0])
    assert caption.finished == (ids[0, -1] == part.tokenizer.sep_id)


def test_a_seeded_sample_depends_on_its_image_alone(blip: Blip) -> None:
    sample: dict[str, Any] = {"do_sample": True, "seed": 11, "temperature": 2.0}
    alone = blip.caption(IMAGES[2], **sample)
    close(blip.caption([*IMAGES, IMAGES[2]], **sample)[2], alone)
    close(blip.caption([*IMAGES, IMAGES[2]], **sample)[5], alone)
    assert blip.caption(IMAGES[2], do_sample=True, seed=12, temperature=2.0) != alone


def test_many_questions_and_texts_encode_the_image_once(blip: Blip) -> None:
    with Forwards(blip.pipeline("vqa").model.module.vision) as seen:
        blip.ask(IMAGES[0], QUESTIONS)
    assert seen.images == 1
    with Forwards(blip.pipeline("retrieval").model.module.vision) as seen:
        blip.match(IMAGES, TEXTS)
    assert seen.images == len(IMAGES)


def test_an_encoded_image_stands_for_its_picture(blip: Blip) -> None:
    encoded = blip.encode_images(IMAGES)
    with Forwards(blip.pipeline("vqa").model.module.vision) as seen:
        found = blip.ask(encoded[0], QUESTIONS)
    assert seen.images == 0
    close(found, blip.ask(IMAGES[0], QUESTIONS))
    close(blip.caption([encoded[1], IMAGES[2]]), blip.caption(IMAGES[1:3]))
    np.testing.assert_array_equal(blip.embed_images(encoded), blip.embed_images(IMAGES))
    with pytest.raises(InputError, match="must be encoded for retrieval"):
        blip.match(blip.encode_images(IMAGES[0], task="caption"), "a cat")


def test_match_scores_are_those_of_the_heads(blip: Blip) -> None:
    part = blip.pipeline("retrieval").model
    model, tokenizer = cast(Matcher, part.module), part.tokenizer
    states = tokens_of(blip, "retrieval", IMAGES[:1])
    with torch.no_grad():
        enc, cls = (tokenizer.encode(["a dog , a man"], first) for first in ("enc", "cls"))
        probability = model.match_logits(enc.ids, enc.mask, states).softmax(-1)[0, 1].item()
        cosine = (model.embed_image(states) @ model.embed_text(cls.ids, cls.mask).T).item()
    close(blip.match(IMAGES[0], "A dog, a man."), Match(probability, cosine))


def test_closed_answers_are_ranked_by_whole_sequences(blip: Blip) -> None:
    part = blip.pipeline("vqa").model
    model, tokenizer = cast(Answerer, part.module), part.tokenizer
    candidates = ["yes", "no", "a cat sleeping", "a cat", "two", "a yellow bus"]
    asked = tokenizer.encode(["what is it?"], "enc")
    scores = []
    with torch.no_grad():
        heard = model.encode_question(asked.ids, asked.mask, tokens_of(blip, "vqa", IMAGES[3:4]))
        for candidate in candidates:
            ids = tokenizer.encode([candidate], "dec").ids
            logprobs = model.logits(ids, None, heard)[0, :-1].log_softmax(-1)
            scores.append(logprobs.gather(1, ids[0, 1:, None]).sum().item())
    expected = sorted(zip(torch.tensor(scores).softmax(0).tolist(), candidates, strict=True), reverse=True)
    found = blip.ask(IMAGES[3], "what is it?", answers=candidates, n=len(candidates))
    close(ranked(found), [Answer(text, probability) for probability, text in expected])
    short = blip.ask(IMAGES[3], "what is it?", answers=candidates, shortlist=2, smoothing=0.1, n=6)
    assert sum(answer.probability > 0 for answer in ranked(short)) == 2


def test_free_answers_carry_the_probability_of_their_sequence(blip: Blip) -> None:
    best, second = ranked(blip.ask(IMAGES[0], "what is it?", n=2))
    assert second.probability > 0
    assert 0 < best.probability <= 1
    assert blip.ask(IMAGES[0], "what is it?") == best


BAD: list[Any] = [b"", b"not a picture", "/no/such/file.jpg", Path("/no/such/file.png")]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_bad_image_raises_its_error_with_its_index(blip: Blip, call: Callable[..., Any]) -> None:
    for bad in BAD:
        with pytest.raises(ImageError) as single:
            call(blip, bad)
        assert (single.value.index, single.value.item, single.value.partial) == (None, bad, None)
    with pytest.raises(ImageError, match="item 2: ") as listed:
        call(blip, [IMAGES[0], IMAGES[1], BAD[1], BAD[2]])
    assert (listed.value.index, listed.value.item) == (2, BAD[1])
    close(listed.value.partial, call(blip, IMAGES[:2]))
    stream = call(blip, iter([IMAGES[0], BAD[3], IMAGES[1]]))
    close(next(stream), call(blip, IMAGES[0]))
    with pytest.raises(ImageError, match=r"item 1: cannot read /no/such/file.png") as streamed:
        next(stream)
    assert (streamed.value.index, streamed.value.item, streamed.value.partial) == (1, BAD[3], None)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_on_error_return_puts_errors_in_place(blip: Blip, call: Callable[..., Any]) -> None:
    for bad in BAD:
        assert isinstance(call(blip, bad, on_error="return"), ImageError)
    inputs = [IMAGES[0], BAD[1], IMAGES[1], BAD[2]]
    for mixed in (call(blip, inputs, on_error="return"), list(call(blip, iter(inputs), on_error="return"))):
        assert [isinstance(result, ImageError) for result in mixed] == [False, True, False, True]
        close([mixed[0], mixed[2]], call(blip, IMAGES[:2]))
        assert [mixed[1].item, mixed[3].item] == [BAD[1], BAD[2]]


def test_errors_of_embeddings(blip: Blip) -> None:
    mixed: list[Any] = [IMAGES[0], BAD[1], IMAGES[1], BAD[2]]
    with pytest.raises(ImageError, match="item 1: ") as raised:
        blip.embed_images(mixed)
    np.testing.assert_allclose(cast(Any, raised.value.partial), blip.embed_images(IMAGES[:1]), atol=1e-5)
    results = blip.embed_images(mixed, on_error="return")
    assert [isinstance(result, ImageError) for result in results] == [False, True, False, True]
    with pytest.raises(InputError, match="on_error"):
        blip.caption(IMAGES[0], on_error=cast(Any, "ignore"))


def test_embeddings_are_normalised_float32(blip: Blip) -> None:
    for vectors in (blip.embed_images(IMAGES), blip.embed_texts(TEXTS)):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == 16
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert blip.embed_images(IMAGES[0]).shape == (16,)
    assert blip.embed_texts("a cat").shape == (16,)
    assert blip.embed_images([]).shape == (0, 16)
    assert next(blip.embed_images(iter(IMAGES))).shape == (16,)


def test_every_form_of_a_picture_gives_the_same(blip: Blip, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
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
    close([blip.caption(form) for form in forms], [blip.caption(IMAGES[0])] * len(forms))
    close(blip.caption(torch.stack([chw, chw])), blip.caption([IMAGES[0]] * 2))


def test_a_checkpoint_refuses_what_it_cannot_serve(folder: Path, blip: Blip) -> None:
    captioner = openblip.load(folder / "caption")
    assert captioner.tasks == ("caption",)
    with pytest.raises(UnsupportedTaskError, match=r"serves caption, not vqa.*blip-vqa"):
        captioner.ask(IMAGES[0], "what is it?")
    with pytest.raises(UnsupportedTaskError, match="retrieval"):
        captioner.embed_texts("a cat")
    assert blip.tasks == TASKS


def test_a_pretraining_checkpoint_captions_and_matches(tmp_path: Path) -> None:
    write.save(toy_model("pretrain"), tmp_path / "p", tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE))
    blip = openblip.load(tmp_path / "p")
    assert isinstance(blip.caption(IMAGES[0]), Caption)
    assert isinstance(blip.match(IMAGES[0], "a cat"), Match)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 0}, {"n": 4}, {"top_p": 0.5}, {"temperature": 2.0}, {"seed": 1}, {"num_beams": 1, "n": 2},
        {"do_sample": True, "num_beams": 5}, {"min_new_tokens": 9, "max_new_tokens": 4}, {"repetition_penalty": 0.0},
        {"num_beams": 1, "length_penalty": 2.0}, {"do_sample": True, "top_p": 1.5},
    ],
)  # fmt: skip
def test_options_that_would_do_nothing_are_refused(blip: Blip, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        blip.caption(IMAGES[0], **options)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda blip: blip.caption(IMAGES[:2], prompt=["a"]),
        lambda blip: blip.caption(IMAGES[0], do_sample=True, seed=1.5),
        lambda blip: list(blip.match(iter(IMAGES[:2]), iter(["a"]), paired=True)),
        lambda blip: blip.pipeline("capton"),
        lambda blip: blip.caption(IMAGES[0], prompt=["a"]),
        lambda blip: blip.caption(IMAGES[0], prompt="a " * 80),
        lambda blip: blip.ask(IMAGES[:2], ["what?"]),
        lambda blip: blip.ask(IMAGES[0], "what?", answers=[]),
        lambda blip: blip.ask(IMAGES[0], "what?", answers="yes"),
        lambda blip: blip.ask(IMAGES[0], "what?", shortlist=3),
        lambda blip: blip.ask(IMAGES[0], "what?", answers=["yes"], n=2),
        lambda blip: blip.match(IMAGES[:2], ["a"], paired=True),
        lambda blip: blip.match(IMAGES[0], [7]),
        lambda blip: openblip.load("pocket", engine=cast(Any, "warp")),
        lambda blip: openblip.load("pocket", precision=cast(Any, "fp8")),
        lambda blip: openblip.load("pocket", device="abacus"),
        lambda blip: openblip.load("pocket", batch_size=0),
        lambda blip: openblip.load("pocket", num_workers=-1),
    ],
)
def test_wrong_arguments_are_named(blip: Blip, wrong: Callable[[Blip], Any]) -> None:
    with pytest.raises(InputError):
        wrong(blip)


def test_one_blip_under_eight_threads(folder: Path, blip: Blip) -> None:
    fresh = openblip.load(folder)  # its parts are loaded under contention, too
    jobs: list[Callable[[Blip], Any]] = [
        lambda b: b.caption(IMAGES), lambda b: b.ask(IMAGES[0], QUESTIONS), lambda b: b.match(IMAGES, TEXTS),
        lambda b: b.caption(IMAGES[0], do_sample=True, seed=1),
    ]  # fmt: skip
    expected = [job(blip) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(lambda job: job(fresh), jobs * 4), expected * 4, strict=True):
            close(found, wanted)


def test_precision_is_chosen_by_the_caller_and_not_by_the_file(folder: Path, blip: Blip, tmp_path: Path) -> None:
    write.save(
        toy_model("retrieval"), tmp_path / "half", tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE),
        dtype=torch.float16,
    )  # fmt: skip
    assert (
        openblip.load(tmp_path / "half").pipeline("retrieval").model.engine.require(TorchModel).dtype is torch.float32
    )
    half = openblip.load(folder / "retrieval", precision="bf16")
    vectors = half.embed_images(IMAGES)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, blip.embed_images(IMAGES), atol=0.05)
    probability, similarity = (getattr(half.match(IMAGES[0], "a cat"), f) for f in ("probability", "similarity"))
    assert math.isfinite(probability)
    assert math.isfinite(similarity)
