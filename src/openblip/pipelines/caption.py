"""The caption pipeline: an image, and a prompt if there is one, to a `Caption`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from openblip.decoding import Decoding, Hypothesis, generate_grouped
from openblip.decoding.words import (
    ForbiddenWords,
    Phrase,
    RequiredWords,
    contains_phrase,
    split_words,
    trim_function_words,
)
from openblip.engine.protocols import Captions
from openblip.errors import InputError
from openblip.pipelines.base import Pipeline, Prepared, TaskModel
from openblip.pipelines.inputs import ImageInput
from openblip.results import Caption


@dataclass(frozen=True)
class Prompt:
    """The start of a caption.

    Attributes:
        ids: Token ids to start from.
        text: The prompt that the caller passed, which the caption's text includes; `None` for the checkpoint's own.
        seed: Seed of this item's samples. Either all items of a batch have one, or the pipeline's seed counts.
    """

    ids: list[int]
    text: str | None
    seed: int | None = None


@dataclass(frozen=True)
class _Candidate:
    """A caption with its sort key; smaller keys rank first."""

    unmet: bool
    unfinished: bool
    cost: float
    caption: Caption


class CaptionPipeline(Pipeline[tuple[ImageInput, "str | None"], Prompt, "list[list[Hypothesis]]", Caption]):
    """Captions images and videos. Items are pairs of an image and a prompt; `None` is the prompt of the pipeline.

    Args:
        model: The model of the caption task.
        prompt: Prompt of the items without one; by default the checkpoint's own. Words of `require` that it contains
            count as met.
        num_beams: Beams of the search; by default 3, or 1 with `do_sample`.
        n: Captions per image, ranked by log-probability over length ** `length_penalty`.
        min_new_tokens: Fewest tokens before [SEP].
        max_new_tokens: Most tokens, [SEP] included.
        length_penalty: Exponent of the length that divides the score of a beam; above 0 prefers long captions.
        repetition_penalty: Divides the scores of tokens that occurred; above 1 avoids repetitions.
        no_repeat_ngram_size: Size of the n-grams that must not occur twice; 0 allows all. The default is the
            checkpoint's own, or 0.
        do_sample: Whether to sample tokens instead of searching.
        top_p: Smallest total probability of the tokens to sample from; by default 0.9. Needs `do_sample`.
        top_k: Number of tokens to sample from; by default all. Needs `do_sample`.
        temperature: Divides the scores before sampling; by default 1. Needs `do_sample`.
        seed: Seed that makes samples repeatable. Needs `do_sample`.
        forbid: Words that must not occur, however their pieces spell them.
        require: Words, or lists of alternative words, that the search steers towards.
        trim: Whether to prefer finished captions, and to remove function words from the end of unfinished ones.

    Raises:
        InputError: An option is out of range, or options contradict each other.
    """

    def __init__(
        self,
        model: TaskModel,
        *,
        prompt: str | None = None,
        num_beams: int | None = None,
        n: int = 1,
        min_new_tokens: int = 1,
        max_new_tokens: int = 16,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int | None = None,
        do_sample: bool = False,
        top_p: float | None = None,
        top_k: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        forbid: Sequence[str] = (),
        require: Sequence[str | Sequence[str]] = (),
        trim: bool = False,
    ) -> None:
        self.model = model
        self.prompt = prompt
        for name, value in (("top_p", top_p), ("top_k", top_k), ("temperature", temperature), ("seed", seed)):
            if value is not None and not do_sample:
                raise InputError(f"{name} needs do_sample=True, got {name}={value} without it")
        if num_beams is None:
            num_beams = 1 if do_sample else 3
        if no_repeat_ngram_size is None:
            no_repeat_ngram_size = model.generation.no_repeat_ngram_size
        self.decoding = Decoding(
            num_beams=num_beams,
            n=n,
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            do_sample=do_sample,
            top_p=0.9 if top_p is None else top_p,
            top_k=0 if top_k is None else top_k,
            temperature=1.0 if temperature is None else temperature,
            forbidden_words=self._forbidden(forbid) if forbid else None,
            required_words=self._required(require, prompt, forbid) if require else None,
            eos_id=model.tokenizer.sep_id,
            pad_id=model.tokenizer.pad_id,
        )
        self.seed = seed
        self.n = n
        self.trim = trim
        if num_beams > 1 and (trim or self.decoding.required_words):
            self.decoding = replace(self.decoding, n=num_beams)  # postprocess chooses among all beams

    def preprocess(self, item: tuple[ImageInput, str | None]) -> Prepared[Prompt]:
        """Return the opened image and the token ids of the prompt."""
        image, prompt = item
        text = self.prompt if prompt is None else prompt
        ids = self.model.tokenizer.encode_prompt(self.model.prompt if text is None else text)
        limit = self.model.config.text.max_positions
        if len(ids) >= limit:
            raise InputError(f"a prompt must have fewer than {limit} tokens, got {len(ids)}; shorten it")
        return Prepared(self.model.open_image(image), Prompt(ids, text))

    def forward(self, batch: list[Prepared[Prompt]]) -> list[list[Hypothesis]]:
        """Return the ranked hypotheses of each image."""
        engine = self.model.engine.require(Captions)
        states = self.model.encode_images([prepared.image for prepared in batch], join_frames=True)
        prompts = [prepared.text.ids for prepared in batch]
        start = engine.prepare_captions(states, self.decoding.capacity(max(map(len, prompts))))
        seeds = [prepared.text.seed for prepared in batch if prepared.text.seed is not None]
        return generate_grouped(start, prompts, self.decoding, seeds or self.seed, engine.device)

    def postprocess(self, raw: list[list[Hypothesis]], batch: list[Prepared[Prompt]]) -> list[Caption]:
        """Return the best caption of each image with its alternatives.

        Captions with all required words come first and, with `trim`, finished captions before unfinished ones. Captions
        that are equal in this respect are ranked by their likelihood per token, or per power of tokens with a
        `length_penalty`. A single caption is the search's choice, whose published rule also counts the prompt's tokens.
        """
        tokenizer, required = self.model.tokenizer, self.decoding.required_words
        pieces = tokenizer.vocab_pieces if required or self.trim else ()
        captions = []
        for hypotheses, prepared in zip(raw, batch, strict=True):
            prompt = prepared.text.text
            candidates: list[_Candidate] = []
            for hypothesis in hypotheses:
                ids, unmet = hypothesis.ids, False
                if required:
                    words = split_words(pieces, [*tokenizer.spell(prompt or ""), *ids])
                    unmet = not required.are_met(words)
                unfinished = self.trim and not hypothesis.finished
                if unfinished:
                    ids = trim_function_words(pieces, ids, tokenizer.sep_id)
                text = tokenizer.decode_after(prompt, ids) if prompt else tokenizer.decode(ids)
                score = hypothesis.logprob / len(hypothesis.ids)
                confidence = None if self.model.confidence is None else self.model.confidence.probability(score)
                caption = Caption(text, hypothesis.logprob, score, hypothesis.finished, unmet, confidence)
                likelihood = hypothesis.logprob / len(hypothesis.ids) ** self.decoding.length_penalty
                candidates.append(_Candidate(unmet, unfinished, -likelihood, caption))
            if required or self.trim:
                candidates.sort(key=attrgetter("unmet", "unfinished"))
            ranked = sorted(candidates[: self.n], key=attrgetter("unmet", "unfinished", "cost"))
            best, *alternatives = [candidate.caption for candidate in ranked]
            captions.append(replace(best, alternatives=tuple(alternatives)) if alternatives else best)
        return captions

    def _forbidden(self, words: Sequence[str]) -> ForbiddenWords:
        """Return the token constraint of words that must not occur."""
        phrases = dict.fromkeys(self._phrase(word, "forbid") for word in _check_words(words, "forbid"))
        return ForbiddenWords(self.model.tokenizer.vocab_pieces, tuple(phrases))

    def _required(
        self, clauses: Sequence[str | Sequence[str]], prompt: str | None, forbid: Sequence[str]
    ) -> RequiredWords | None:
        """Return the token constraint of words that must occur, except those in the `prompt`."""
        if isinstance(clauses, str):
            raise InputError(f"require must be a list of words or of lists of alternatives, got {clauses!r}")
        tokenizer = self.model.tokenizer
        forbidden = {self._phrase(word, "forbid") for word in forbid}
        prompt_words = split_words(tokenizer.vocab_pieces, tokenizer.spell(prompt)) if prompt else []
        required = []
        for clause in clauses:
            words = _check_words([clause] if isinstance(clause, str) else clause, "require")
            phrases = [(self._phrase(word, "require"), tokenizer.spell(word)) for word in words]
            allowed = tuple(pair for pair in phrases if pair[0] not in forbidden)
            if not allowed:
                raise InputError(
                    f"require must name words that forbid allows, got {' or '.join(words) or 'an empty list'}"
                )
            if not any(contains_phrase(prompt_words, phrase) for phrase, _ in phrases):
                required.append(allowed)
        return RequiredWords(tokenizer.vocab_pieces, tuple(required)) if required else None

    def _phrase(self, text: str, option: str) -> Phrase:
        tokenizer = self.model.tokenizer
        ids = tokenizer.spell(text)
        if not ids or tokenizer.unk_id in ids:
            raise InputError(f"{option} must name words that the model's vocabulary can spell, got {text!r}")
        return tuple(split_words(tokenizer.vocab_pieces, ids))


def _check_words(words: Sequence[str], option: str) -> list[str]:
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{option} must be a list of words, got {words!r}")
    return list(words)
