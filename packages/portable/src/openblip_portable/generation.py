"""Tasks that generate text: captions and answers.

Shapes: I images, Q questions, T tokens.
"""

# A path is a string and a file is an iterator, so type checkers see overlaps in the overloads. The first one fits.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, overload

import numpy as np

from openblip_portable.base import Task, deliver, group, pair
from openblip_portable.constraints import forbid_words, require_words
from openblip_portable.decoding import Hypothesis, Options, Session, generate
from openblip_portable.errors import InputError
from openblip_portable.images import ImageInput
from openblip_portable.results import Answer, Caption
from openblip_portable.runtime import Array, Floats, Ids
from openblip_portable.sampling import log_softmax
from openblip_portable.words import split_words, trim_function_words

if TYPE_CHECKING:
    from typing_extensions import Unpack

RankedT = TypeVar("RankedT", Caption, Answer)


class CaptionOptions(TypedDict, total=False):
    """Options of `Captioner.caption`, which documents them."""

    num_beams: int | None
    n: int
    min_new_tokens: int | None
    max_new_tokens: int | None
    length_penalty: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    do_sample: bool
    top_p: float | None
    top_k: int | None
    temperature: float | None
    seed: int | None
    forbid: Sequence[str]
    require: Sequence[str | Sequence[str]]
    trim: bool


@dataclass(frozen=True)
class _CaptionSettings:
    """What a call of `caption` asked for, apart from the prompts."""

    decoding: Options
    n: int
    seed: int | None
    trim: bool


class AnswerOptions(TypedDict, total=False):
    """Options of `Answerer.ask`, which documents them."""

    answers: Sequence[str] | None
    n: int
    num_beams: int | None
    min_new_tokens: int | None
    max_new_tokens: int | None
    length_penalty: float | None


class Captioner(Task):
    """Describes images; the task `caption`. See [`Task`][openblip_portable.base.Task] for the arguments."""

    name = "caption"

    @overload
    def caption(
        self, images: ImageInput, *, prompt: str | None = None, **options: Unpack[CaptionOptions]
    ) -> Caption: ...
    @overload
    def caption(
        self,
        images: Iterator[ImageInput],
        *,
        prompt: str | Iterable[str | None] | None = None,
        **options: Unpack[CaptionOptions],
    ) -> Iterator[Caption]: ...
    @overload
    def caption(
        self,
        images: Iterable[ImageInput],
        *,
        prompt: str | Iterable[str | None] | None = None,
        **options: Unpack[CaptionOptions],
    ) -> list[Caption]: ...
    def caption(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        prompt: str | Iterable[str | None] | None = None,
        num_beams: int | None = None,
        n: int = 1,
        min_new_tokens: int | None = None,
        max_new_tokens: int | None = None,
        length_penalty: float | None = None,
        repetition_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        do_sample: bool = False,
        top_p: float | None = None,
        top_k: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        forbid: Sequence[str] = (),
        require: Sequence[str | Sequence[str]] = (),
        trim: bool = False,
    ) -> Caption | list[Caption] | Iterator[Caption]:
        """Describe images. Options that are left out have the values of the export.

        Args:
            images: One image, a list, or an iterator.
            prompt: Text that captions start with, one for all images or one per image; by default the model's own.
            num_beams: Beams of the search; 1 is greedy decoding, and the default with `do_sample`.
            n: Captions per image: at most `num_beams`, or independent samples.
            min_new_tokens: Fewest tokens before [SEP].
            max_new_tokens: Most tokens, [SEP] included.
            length_penalty: Exponent of the length that divides the score of a beam.
            repetition_penalty: Divides the scores of tokens that occurred.
            no_repeat_ngram_size: Size of the n-grams that must not occur twice; 0 allows all.
            do_sample: Whether to sample tokens instead of searching for the best caption.
            top_p: Samples from the most probable tokens with this total probability; by default 0.9.
            top_k: Samples from this many of the most probable tokens; by default from all.
            temperature: Above 1 samples more diverse captions, below 1 more probable ones; by default 1.
            seed: Makes samples repeatable. A seed gives the samples of `openblip.Blip`, except where rounding moves a
                token across a random number, which is rare. A sample with a seed depends only on its image.
            forbid: Words that must not occur, however their pieces spell them.
            require: Words, or lists of alternative words, that the search steers towards. Where one is missing, the
                caption is `unmet`.
            trim: Whether to prefer finished captions, and to remove words such as "of the" from the end of others.

        Returns:
            A caption per image, in the shape of `images`.

        Raises:
            ImageError: An image cannot be read.
            InputError: An option is out of range.
        """
        for name, value in (("top_p", top_p), ("top_k", top_k), ("temperature", temperature), ("seed", seed)):
            if value is not None and not do_sample:
                raise InputError(f"{name} needs do_sample=True, got {name}={value} without it")
        options = _options(
            self,
            num_beams=1 if do_sample and num_beams is None else num_beams,
            n=n,
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            do_sample=do_sample,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            forbidden_words=forbid_words(self.tokenizer, forbid),
            required_words=require_words(self.tokenizer, require, prompt if isinstance(prompt, str) else None, forbid),
        )
        if options.num_beams > 1 and (trim or options.required_words):
            options = replace(options, n=options.num_beams)  # the result is chosen among all beams
        settings = _CaptionSettings(options, n, seed, trim)
        return deliver(self._caption(pair(images, prompt, "prompt"), settings), images)

    def _caption(self, items: Iterable[tuple[ImageInput, str | None]], settings: _CaptionSettings) -> Iterator[Caption]:
        for batch, pixels, _ in self.iter_batches(items, lambda item: item[0]):
            prompts = [self._prompt_ids(text, settings.decoding) for _, text in batch]
            memory = self.run("image_memory", self.encode_images(pixels))
            texts = _generate_grouped(self, memory, None, prompts, settings.decoding, settings.seed)
            for (_, prompt), hypotheses in zip(batch, texts, strict=True):
                yield self._to_caption(prompt, hypotheses, settings)

    def _prompt_ids(self, prompt: str | None, options: Options) -> list[int]:
        ids = self.settings["prompt_ids"]
        if prompt is not None:
            ids = [self.tokenizer.special_ids["dec"], *self.tokenizer.spell(prompt)]
        _check_length(self, len(ids) + options.max_new_tokens - 1)
        return list(ids)

    def _to_caption(self, prompt: str | None, hypotheses: list[Hypothesis], settings: _CaptionSettings) -> Caption:
        """Return the best caption with its alternatives.

        Captions with all required words come first and, with `trim`, finished captions before unfinished ones; those
        that are equal in this respect are ranked by their likelihood per token, or per power of tokens.
        """
        tokenizer, required = self.tokenizer, settings.decoding.required_words
        candidates: list[tuple[tuple[bool, bool], float, Caption]] = []
        for hypothesis in hypotheses:
            ids, unmet = hypothesis.ids, False
            if required:
                unmet = not required.are_met(split_words(tokenizer.pieces, [*tokenizer.spell(prompt or ""), *ids]))
            unfinished = settings.trim and not hypothesis.finished
            if unfinished:
                ids = trim_function_words(tokenizer.pieces, ids, settings.decoding.eos_id)
            text = tokenizer.decode_after(prompt, ids) if prompt else tokenizer.decode(ids)
            score = hypothesis.logprob / len(hypothesis.ids)
            caption = Caption(text, hypothesis.logprob, score, hypothesis.finished, unmet, self._confidence(score))
            cost = -hypothesis.logprob / len(hypothesis.ids) ** settings.decoding.length_penalty
            candidates.append(((unmet, unfinished), cost, caption))
        candidates.sort(key=lambda candidate: candidate[0])
        return _best([caption for *_, caption in sorted(candidates[: settings.n], key=lambda found: found[:2])])

    def _confidence(self, score: float) -> float | None:
        calibration = self.settings["confidence"]
        if calibration is None:
            return None
        logit = calibration["slope"] * score + calibration["intercept"]
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


class Answerer(Task):
    """Answers questions about images; the task `vqa`. See [`Task`][openblip_portable.base.Task] for the arguments."""

    name = "vqa"

    @overload
    def ask(self, images: ImageInput, questions: str, **options: Unpack[AnswerOptions]) -> Answer: ...
    @overload
    def ask(
        self, images: Iterator[ImageInput], questions: str | Iterable[str], **options: Unpack[AnswerOptions]
    ) -> Iterator[Answer]: ...
    @overload
    def ask(
        self,
        images: ImageInput | Iterable[ImageInput],
        questions: str | Iterable[str],
        **options: Unpack[AnswerOptions],
    ) -> list[Answer]: ...
    def ask(
        self,
        images: ImageInput | Iterable[ImageInput],
        questions: str | Iterable[str],
        *,
        answers: Sequence[str] | None = None,
        n: int = 1,
        num_beams: int | None = None,
        min_new_tokens: int | None = None,
        max_new_tokens: int | None = None,
        length_penalty: float | None = None,
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Answer questions about images. Options that are left out have the values of the export.

        Args:
            images: One image, a list, or an iterator.
            questions: One question for all images, one per image, or several about one image, which is encoded once.
            answers: Closed list of answers to choose from; by default answers are generated.
            n: Answers per question.
            num_beams: Beams of the search; 1 is greedy decoding.
            min_new_tokens: Fewest tokens of an answer.
            max_new_tokens: Most tokens of an answer, [SEP] included.
            length_penalty: Exponent of the length that divides the score of an answer.

        Returns:
            An answer per image, in the shape of `images`; a list of answers for one image with several questions.

        Raises:
            ImageError: An image cannot be read.
            InputError: A question is not a string, or an option is out of range.
        """
        given = (num_beams, min_new_tokens, max_new_tokens, length_penalty)
        if answers is not None:
            if isinstance(answers, str) or not answers or not all(isinstance(answer, str) for answer in answers):
                raise InputError(f"answers must be a list of strings, got {answers!r}")
            if any(value is not None for value in given) or not 1 <= n <= len(answers):
                raise InputError("a list of answers takes no options of generation, and n of at most its length")
        options = _options(
            self, num_beams=num_beams, n=n if answers is None else 1, min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens, length_penalty=length_penalty,
        )  # fmt: skip
        items, nested = group(images, questions, "question")
        results = self._ask(items, options, answers, n)
        if nested:
            return next(results)
        return deliver((found[0] for found in results), images)

    def _ask(
        self, items: Iterable[tuple[ImageInput, list[str]]], options: Options, answers: Sequence[str] | None, n: int
    ) -> Iterator[list[Answer]]:
        """Yield the answers about each image."""
        for batch, pixels, _ in self.iter_batches(items, lambda item: item[0]):
            memory = self.run("image_memory", self.encode_images(pixels))
            found: list[list[Answer]] = [[] for _ in batch]
            count = len(batch[0][1])  # one image with several questions is a batch of its own
            width = max(1, self.text_rows // len(batch))
            for start in range(0, count, width):
                rows = [
                    self.tokenizer.encode(question, self.settings["text"])
                    for _, questions in batch
                    for question in questions[start : start + width]
                ]
                ids, mask = self.tokenizer.pad(rows)
                _check_length(self, ids.shape[1])
                shape = (len(batch), -1, ids.shape[1])
                encoded = self.run("question_encoder", ids.reshape(shape), mask.reshape(shape), *memory)
                flat = [tensor.reshape(-1, *tensor.shape[2:]) for tensor in encoded]
                texts = self._generate(flat, mask, options) if answers is None else self._rank(flat, mask, answers, n)
                for index, answer in enumerate(texts):
                    found[index * len(batch) // len(texts)].append(answer)
            yield from found

    def _generate(self, memory: list[Floats], mask: Ids, options: Options) -> list[Answer]:
        prompts = [list(self.settings["prompt_ids"])] * len(mask)
        results = []
        for hypotheses in _generate_grouped(self, memory, mask, prompts, options):
            ranked = sorted(hypotheses, key=lambda hypothesis: -hypothesis.logprob)
            results.append(
                _best(
                    [Answer(self.tokenizer.decode(h.ids), math.exp(h.logprob), h.logprob / len(h.ids)) for h in ranked]
                )
            )
        return results

    def _rank(self, memory: list[Floats], mask: Ids, answers: Sequence[str], n: int) -> list[Answer]:
        rows = [
            self.tokenizer.encode(answer, {"clean": "none", "first_token": "dec", "max_tokens": None})
            for answer in answers
        ]
        _check_length(self, max(map(len, rows)))
        scores = self._score_answers(memory, mask, rows)
        probabilities = np.exp(log_softmax(scores))
        results = []
        for row, shares in zip(scores, probabilities, strict=True):
            order = np.argsort(-shares, kind="stable")[:n]
            results.append(
                _best([Answer(answers[i], float(shares[i]), float(row[i]) / (len(rows[i]) - 1)) for i in order])
            )
        return results

    def _score_answers(self, memory: list[Floats], mask: Ids, rows: list[list[int]]) -> Array:
        """Return the log-probabilities (Q, answers) of answers; each distinct prefix is decoded once, by its length."""
        step, scores = self.folder.graph(self.name, "decoder_step"), np.zeros((len(mask), len(rows)))
        for length in range(1, max(map(len, rows))):
            prefixes = sorted({tuple(row[:length]) for row in rows if len(row) > length})
            index = {prefix: i for i, prefix in enumerate(prefixes)}
            ids = np.array(prefixes, np.int64)
            width = max(1, self.text_rows // len(mask))
            chunks = []
            for start in range(0, len(ids), width):
                session = Session(step, self.settings["shapes"], memory, mask)
                session.widen(len(ids[start : start + width]))
                logits = session.step(np.tile(ids[start : start + width], (len(mask), 1)))
                chunks.append(log_softmax(logits).reshape(len(mask), -1, logits.shape[1]))
            logprobs = np.concatenate(chunks, 1)  # (Q, prefixes, V)
            for column, row in enumerate(rows):
                if len(row) > length:
                    scores[:, column] += logprobs[:, index[tuple(row[:length])], row[length]]
        return scores


def _options(task: Task, *, n: int, **given: Any) -> Options:
    """Return the options of the caller, and for those that were left out the export's own, if it has any."""
    defaults = task.settings["generation"]
    values = {name: defaults.get(name) if value is None else value for name, value in given.items()}
    values = {name: value for name, value in values.items() if value is not None}
    ids = task.tokenizer.special_ids
    return Options(n=n, eos_id=ids["sep"], pad_id=ids["pad"], **values)


def _generate_grouped(
    task: Task,
    memory: Sequence[Floats],
    mask: Ids | None,
    prompts: Sequence[list[int]],
    options: Options,
    seed: int | None = None,
) -> list[list[Hypothesis]]:
    """Continue prompts of any length; those of equal length together."""
    groups: dict[int, list[int]] = {}
    for item, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(item)
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    step = task.folder.graph(task.name, "decoder_step")
    for items in groups.values():
        own_memory = memory if len(items) == len(prompts) else [tensor[items] for tensor in memory]
        own_mask = mask if mask is None or len(items) == len(prompts) else mask[items]
        size = task.batch_size if task.text_rows == 1 else len(items)
        for start in range(0, len(items), size):
            rows = slice(start, start + size)
            session = Session(
                step, task.settings["shapes"], [tensor[rows] for tensor in own_memory],
                None if own_mask is None else own_mask[rows],
            )  # fmt: skip
            table = np.array([prompts[item] for item in items[rows]], np.int64)
            for item, hypotheses in zip(items[rows], generate(session, table, options, seed), strict=True):
                results[item] = hypotheses
    return results


def _check_length(task: Task, length: int) -> None:
    limit = task.settings["shapes"]["max_positions"]
    if length > limit:
        raise InputError(f"a text must have at most {limit} tokens, got {length}; shorten it, or lower max_new_tokens")


def _best(ranked: list[RankedT]) -> RankedT:
    """Return the first result with the others as its alternatives."""
    return replace(ranked[0], alternatives=tuple(ranked[1:])) if len(ranked) > 1 else ranked[0]
