"""The question answering pipeline: an image and questions about it to `Answer`.

Shapes: I images, Q questions, T tokens, D width, A answers of a closed list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from openblip.decoding import Decoding, generate_grouped
from openblip.engine.protocols import Answers as AnswerEngine
from openblip.errors import InputError
from openblip.pipelines.base import TEXT_ROWS, Pipeline, Prepared, TaskModel, check_text
from openblip.pipelines.inputs import ImageInput
from openblip.preprocess.text import clean_question
from openblip.results import Answer

MAX_WORDS = 50  # of a question
MAX_TOKENS = 35

QuestionIds = list[list[int]]  # token ids of the questions about one image


class VqaPipeline(Pipeline[tuple[ImageInput, "Sequence[str]"], QuestionIds, "list[list[Answer]]", "list[Answer]"]):
    """Answers questions. Items are pairs of an image and its questions; a result is a list with an answer for each.

    An image is encoded once for all its questions.

    Args:
        model: The model of the VQA task.
        answers: Closed list of answers to choose from; by default answers are generated.
        n: Answers per question.
        shortlist: Number of answers that the first ranking step keeps; by default all. Needs `answers`.
        smoothing: Label smoothing of the ranking; by default 0. Needs `answers`.
        num_beams: Beams of the search for generated answers; by default 3.
        min_new_tokens: Fewest tokens of generated answers; by default 1.
        max_new_tokens: Most tokens of generated answers, [SEP] included; by default 9.
        length_penalty: Exponent of the length that divides the log-probability of an answer in the search; by default
            1, as published.

    Raises:
        InputError: An option is out of range or belongs to the other way of answering.
    """

    def __init__(
        self,
        model: TaskModel,
        *,
        answers: Sequence[str] | None = None,
        n: int = 1,
        shortlist: int | None = None,
        smoothing: float | None = None,
        num_beams: int | None = None,
        min_new_tokens: int | None = None,
        max_new_tokens: int | None = None,
        length_penalty: float | None = None,
    ) -> None:
        super().__init__(model)
        self.n = n
        self.shortlist = shortlist
        self.smoothing = 0.0 if smoothing is None else smoothing
        self.answers = answers
        self.answer_ids = None if answers is None else self.tokenize_answers(answers)
        ranking = {"shortlist": shortlist, "smoothing": smoothing}
        generation = {
            "num_beams": num_beams,
            "min_new_tokens": min_new_tokens,
            "max_new_tokens": max_new_tokens,
            "length_penalty": length_penalty,
        }
        for name, value in (ranking if answers is None else generation).items():
            if value is not None:
                needed = "needs a list of answers" if answers is None else "cannot be used with a list of answers"
                raise InputError(f"{name} {needed}, got {name}={value}")
        if answers is not None and not 1 <= n <= len(answers):
            raise InputError(f"n must be between 1 and the number of answers ({len(answers)}), got {n}")
        self.decoding = Decoding(
            num_beams=3 if num_beams is None else num_beams,
            length_penalty=1.0 if length_penalty is None else length_penalty,
            n=n if answers is None else 1,
            min_new_tokens=1 if min_new_tokens is None else min_new_tokens,
            max_new_tokens=9 if max_new_tokens is None else max_new_tokens,
            eos_id=model.tokenizer.sep_id,
            pad_id=model.tokenizer.pad_id,
        )

    def preprocess(self, item: tuple[ImageInput, Sequence[str]]) -> Prepared[QuestionIds]:
        """Return the opened image and the token ids of the questions."""
        image, questions = item
        opened = self.model.open_image(image)
        rows = [self.tokenize_question(question) for question in questions]
        return Prepared(opened, rows, len(rows))

    def forward(self, batch: list[Prepared[QuestionIds]]) -> list[list[Answer]]:
        """Return the answers to each question, image by image."""
        engine = self.model.engine.require(AnswerEngine)
        states = engine.project_images(self.model.encode_images([p.image for p in batch], join_frames=True))
        answers: list[list[Answer]] = [[] for _ in batch]
        width = max(1, TEXT_ROWS // len(batch))
        for start in range(0, batch[0].num_texts, width):
            rows: list[list[int]] = []
            for prepared in batch:
                rows += prepared.text[start : start + width]
            ids, mask = self.model.pad(rows)
            questions = engine.encode_questions(ids, mask, states)
            computed = self.generate(questions, mask) if self.answer_ids is None else self.rank(questions, mask)
            count = len(rows) // len(batch)
            for index, image_answers in enumerate(answers):
                image_answers += computed[index * count : (index + 1) * count]
        return answers

    def postprocess(self, raw: list[list[Answer]], batch: list[Prepared[QuestionIds]]) -> list[list[Answer]]:
        """Return the answers of each image."""
        return raw

    def tokenize_question(self, question: str) -> list[int]:
        """Return the token ids of a question, cleaned as in training.

        Args:
            question: The question.

        Returns:
            Token ids from [ENC] to [SEP].

        Raises:
            InputError: The question is not a string.
        """
        cleaned = clean_question(check_text(question, "a question"), MAX_WORDS)
        return self.model.token_ids(cleaned, "enc", MAX_TOKENS)

    def tokenize_answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Return the token ids of answers, which are not cleaned, as in training.

        Args:
            answers: The answers.

        Returns:
            Token ids of each answer, from [DEC] to [SEP].

        Raises:
            InputError: It is not a list of strings, or an answer is too long.
        """
        if isinstance(answers, str) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise InputError(f"answers must be a list of strings, got {answers!r}")
        return [self.model.check_length(self.model.token_ids(answer, "dec")) for answer in answers]

    def generate(self, questions: Tensor, mask: Tensor) -> list[Answer]:
        """Generate answers to encoded questions.

        Args:
            questions: States (Q, T, D) of the questions.
            mask: 1 for tokens, 0 for padding (Q, T).

        Returns:
            The answer to each question. With `n` > 1, the answers that the search finds are ranked by probability, and
            the most probable one has the others as its alternatives; a single answer is the best one by the search's
            rule, which also depends on the length.
        """
        engine, tokenizer = self.model.engine.require(AnswerEngine), self.model.tokenizer
        start = engine.prepare_answers(questions, mask, self.decoding.capacity(1))
        prompts = [[tokenizer.dec_id]] * len(questions)
        searched = generate_grouped(start, prompts, self.decoding, device=engine.device)
        results = []
        for hypotheses in searched:
            hypotheses = sorted(hypotheses, key=lambda hypothesis: -hypothesis.logprob)
            answers = [Answer(tokenizer.decode(h.ids), math.exp(h.logprob), h.logprob / len(h.ids)) for h in hypotheses]
            results.append(_best(answers))
        return results

    def rank(self, questions: Tensor, mask: Tensor) -> list[Answer]:
        """Rank the answers of the closed list for encoded questions.

        Args:
            questions: States (Q, T, D) of the questions.
            mask: 1 for tokens, 0 for padding (Q, T).

        Returns:
            The most probable answer to each question with its alternatives.

        Raises:
            InputError: The pipeline has no list of answers.
        """
        if self.answers is None or self.answer_ids is None:
            raise InputError("ranking requires a list of answers: pass answers=[...]")
        engine = self.model.engine.require(AnswerEngine)
        scores = engine.rank_answers(questions, mask, self.answer_ids, self.shortlist, self.smoothing)
        lengths = torch.tensor([len(ids) - 1 for ids in self.answer_ids], device=scores.device)  # without [DEC]
        per_token = (scores / lengths).tolist()
        best = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
        results = []
        for row, probabilities, indices in zip(per_token, best.values.tolist(), best.indices.tolist(), strict=True):
            answers = []
            for probability, index in zip(probabilities[: self.n], indices[: self.n], strict=True):
                score = row[index] if math.isfinite(row[index]) else None
                answers.append(Answer(self.answers[index], probability, score))
            results.append(_best(answers))
        return results


def _best(ranked: list[Answer]) -> Answer:
    """Return the first answer with the others as its alternatives."""
    return replace(ranked[0], alternatives=tuple(ranked[1:])) if len(ranked) > 1 else ranked[0]
