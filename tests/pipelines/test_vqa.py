"""Answers: generated ones, closed lists, and one encoding for many questions."""

from __future__ import annotations

import math
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
        means = []
        for candidate in candidates:
            ids = tokenizer.encode([candidate], "dec").ids
            logprobs = network.logits(ids, None, states)[0, :-1].log_softmax(-1)
            scores.append(logprobs.gather(1, ids[0, 1:, None]).sum().item())
            means.append(logprobs.gather(1, ids[0, 1:, None]).mean().item())
    expected = sorted(zip(torch.tensor(scores).softmax(0).tolist(), candidates, means, strict=True), reverse=True)
    best = blip.ask(IMAGES[3], "what is it?", answers=candidates, n=len(candidates))
    assert_close(ranked(best), [Answer(text, probability, mean) for probability, text, mean in expected])
    shortlisted = blip.ask(IMAGES[3], "what is it?", answers=candidates, shortlist=2, smoothing=0.1, n=6)
    assert sum(answer.probability > 0 for answer in ranked(shortlisted)) == 2
    assert [answer.score is None for answer in ranked(shortlisted)] == [False] * 2 + [True] * 4


def test_generated_answers_carry_the_probability_of_their_sequence(blip: Blip) -> None:
    model = blip.pipeline("vqa").model
    network, tokenizer = cast(Answerer, model.module), model.tokenizer
    best = blip.ask(IMAGES[0], "what is it?", n=2)
    question = tokenizer.encode(["what is it?"], "enc")
    for answer in ranked(best):
        assert answer.score is not None
        length = round(math.log(answer.probability) / answer.score)
        ids = tokenizer.encode([answer.text], "dec").ids
        if tokenizer.decode(ids[0]) != answer.text or length != ids.shape[1] - 1:
            continue  # cut off, or spelled with other pieces
        with torch.no_grad():
            states = network.encode_question(question.ids, question.mask, encode_directly(blip, "vqa", 0))
            logprobs = network.logits(ids, None, states)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        assert answer.probability == pytest.approx(logprobs.sum().exp().item(), rel=1e-3)
        assert answer.score == pytest.approx(logprobs.mean().item(), abs=1e-4)


@pytest.mark.parametrize("num_beams", [3, 6])
def test_generated_answers_are_ranked_by_probability(
    blip: Blip, num_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = blip.pipeline("vqa").model
    bias = cast(Answerer, model.module).lm_head.bias
    ends = torch.zeros_like(bias).index_fill(0, torch.tensor(model.tokenizer.sep_id), 4.0)
    monkeypatch.setattr(bias, "data", bias.data + ends)  # answers of several lengths
    options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 9}
    reordered = 0
    for image in IMAGES:
        for question in QUESTIONS:
            answers = ranked(blip.ask(image, question, n=num_beams, **options))
            probabilities = [answer.probability for answer in answers]
            assert probabilities == sorted(probabilities, reverse=True)
            chosen = blip.ask(image, question, **options)
            assert chosen in answers, "one answer is the choice of the published search"
            reordered += chosen != answers[0]
            by_probability = ranked(blip.ask(image, question, n=num_beams, length_penalty=0.0, **options))
            assert blip.ask(image, question, length_penalty=0.0, **options) == by_probability[0]
    assert reordered, "the published rule depends on the length too, so this test can fail"


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
        ({"answers": ["yes"], "max_new_tokens": 9}, "max_new_tokens"),
        ({"answers": ["yes"], "length_penalty": 0.0}, "length_penalty cannot be used"), ({"num_beams": 0}, "num_beams"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(blip: Blip, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        blip.ask(IMAGES[0], "what?", **options)


def test_a_question_must_be_text(blip: Blip) -> None:
    with pytest.raises(InputError, match="a question must be a string, got int"):
        blip.ask(IMAGES[0], cast(Any, [7]))
