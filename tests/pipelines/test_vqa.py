"""Answers: generated ones, closed lists, and one encoding for many questions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from openblip import Answer, Blip, InputError
from openblip.model.answerer import Answerer
from tests.pipelines.pipeline_toys import IMAGES, QUESTIONS, assert_close, count_images, encode_directly

pytestmark = pytest.mark.usefixtures("one_thread")


def ranked(best: Answer) -> list[Answer]:
    """Return the best answer without its alternatives, followed by them."""
    return [replace(best, alternatives=()), *best.alternatives]


def test_closed_answers_are_ranked_by_whole_sequences(blip: Blip) -> None:
    model = blip.pipeline("vqa").model
    network, tokenizer = cast(Answerer, model.module), model.tokenizer
    candidates = ["yes", "no", "a cat sleeping", "a cat", "two", "a yellow bus"]
    question = tokenizer.encode(["what is it?"], "enc")
    scores = []
    with torch.no_grad():
        states = network.encode_question(question.ids, question.mask, encode_directly(blip, "vqa", 3))
        for candidate in candidates:
            ids = tokenizer.encode([candidate], "dec").ids
            logprobs = network.logits(ids, None, states)[0, :-1].log_softmax(-1)
            scores.append(logprobs.gather(1, ids[0, 1:, None]).sum().item())
    expected = sorted(zip(torch.tensor(scores).softmax(0).tolist(), candidates, strict=True), reverse=True)
    best = blip.ask(IMAGES[3], "what is it?", answers=candidates, n=len(candidates))
    assert_close(ranked(best), [Answer(text, probability) for probability, text in expected])
    shortlisted = blip.ask(IMAGES[3], "what is it?", answers=candidates, shortlist=2, smoothing=0.1, n=6)
    assert sum(answer.probability > 0 for answer in ranked(shortlisted)) == 2


def test_generated_answers_carry_the_probability_of_their_sequence(blip: Blip) -> None:
    best, second = ranked(blip.ask(IMAGES[0], "what is it?", n=2))
    assert 0 < second.probability <= best.probability <= 1
    assert blip.ask(IMAGES[0], "what is it?") == best


def test_questions_of_several_lengths_share_a_batch(blip: Blip) -> None:
    expected = [blip.ask(image, question) for image, question in zip(IMAGES, QUESTIONS, strict=False)]
    assert_close(blip.ask(IMAGES[:4], QUESTIONS), expected)
    assert_close(blip.ask(IMAGES[0], QUESTIONS), [blip.ask(IMAGES[0], question) for question in QUESTIONS])
    assert blip.ask(IMAGES[0], []) == []


def test_an_image_is_encoded_once_for_all_its_questions(blip: Blip) -> None:
    with count_images(blip, "vqa") as counter:
        blip.ask(IMAGES[0], QUESTIONS)
    assert counter.count == 1


@pytest.mark.parametrize("answers", [None, ["yes", "no", "a cat"]])
def test_a_pipeline_takes_any_number_of_questions_per_image(blip: Blip, answers: list[str] | None) -> None:
    items = [(IMAGES[0], QUESTIONS), (IMAGES[1], []), (IMAGES[2], QUESTIONS[:1]), (IMAGES[3], QUESTIONS * 20)]
    results = list(blip.pipeline("vqa", answers=answers).run(items))
    assert_close(results, [blip.ask(image, questions, answers=answers) for image, questions in items])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": []}, "answers must be"), ({"answers": "yes"}, "answers must be"), ({"answers": [7]}, "answers"),
        ({"shortlist": 3}, "shortlist needs a list of answers"), ({"smoothing": 0.0}, "smoothing needs"),
        ({"answers": ["yes"], "n": 2}, "between 1 and the number of answers"),
        ({"answers": ["yes"], "num_beams": 3}, "num_beams cannot be used"),
        ({"answers": ["yes"], "min_new_tokens": 1}, "min_new_tokens"),
        ({"answers": ["yes"], "max_new_tokens": 9}, "max_new_tokens"), ({"num_beams": 0}, "num_beams"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(blip: Blip, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        blip.ask(IMAGES[0], "what?", **options)


def test_a_question_must_be_text(blip: Blip) -> None:
    with pytest.raises(InputError, match="a question must be a string, got int"):
        blip.ask(IMAGES[0], cast(Any, [7]))
