"""Options and results of decoding: plain data, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from openblip.decoding.words import ForbiddenWords, RequiredWords
from openblip.errors import InputError

ScoreRule = Literal["total", "generated"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Options of decoding. Names follow `transformers`' generation options.

    An option that would have no effect raises `InputError`.

    The two score rules reproduce two published beam searches. Both keep the best `2 * num_beams` continuations of each
    step, let [SEP] end a hypothesis only from the better half of them, and divide summed log-probabilities by a length
    to the power of `length_penalty`. They differ in this length, and in the condition for stopping:

    - `"total"`: original BLIP (transformers 4.15). The length of the text with prompt and [DEC], without the final
      [SEP].
    - `"generated"`: transformers 5. The number of new tokens, with [SEP].

    Penalties and bans also look at the prompt, as in the originals.

    Attributes:
        num_beams: Number of beams; 1 is greedy decoding, or sampling with `do_sample`.
        max_new_tokens: Maximum number of new tokens, [SEP] included.
        min_new_tokens: Minimum number of new tokens before [SEP].
        n: Number of hypotheses per item: the best ones of a beam search, or independent samples.
        length_penalty: Exponent of the length in the score of a hypothesis. Beam search only.
        repetition_penalty: Divides positive and multiplies negative scores of tokens that occurred before. The scores
            are logits without beams, log-probabilities with beams.
        no_repeat_ngram_size: Size of n-grams that occur at most once; 0 disables.
        do_sample: Whether to sample. Needs `num_beams=1`, or `score_rule="generated"`.
        top_p: Probability mass of the tokens to sample from; 1 disables.
        top_k: Number of tokens to sample from; 0 disables.
        temperature: Divides the logits before sampling.
        score_rule: Beam search to reproduce.
        early_stopping: When a beam search ends: once `num_beams` hypotheses are complete (`True`), or once no running
            beam can beat the worst of them, judged at the current length (`False`) or at the most favorable length
            (`"never"`, only with `score_rule="generated"`).
        forbid_ids: Token ids that are never produced.
        allowed_ids: Token ids to choose from; `None` allows all.
        forbidden_words: Words that do not occur in any spelling. With beams, a beam that produced one must extend it to
            a longer word; without beams, the word piece that would complete one is banned.
        required_words: Words that steer a beam search. Beams that made equal progress compete with each other, and no
            text ends before it has all words, so words are missing only from texts that are cut off. Ignored without
            beams.
        eos_id: Token id of [SEP].
        pad_id: Token id of [PAD].
    """

    num_beams: int = 3
    max_new_tokens: int = 16
    min_new_tokens: int = 1
    n: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    do_sample: bool = False
    top_p: float = 0.9
    top_k: int = 0
    temperature: float = 1.0
    score_rule: ScoreRule = "total"
    early_stopping: bool | Literal["never"] = False
    forbid_ids: tuple[int, ...] = ()
    allowed_ids: tuple[int, ...] | None = None
    forbidden_words: ForbiddenWords | None = None
    required_words: RequiredWords | None = None
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUMS.items():
            value = getattr(self, name)
            _check(_is_int(value, minimum), f"{name} must be an integer of at least {minimum}", value)
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                "min_new_tokens must be at most max_new_tokens, "
                f"got min_new_tokens={self.min_new_tokens} and max_new_tokens={self.max_new_tokens}"
            )
        _check(isfinite(self.length_penalty), "length_penalty must be finite", self.length_penalty)
        _check(
            0 < self.repetition_penalty < float("inf"), "repetition_penalty must be above 0", self.repetition_penalty
        )
        _check(0 < self.temperature < float("inf"), "temperature must be above 0", self.temperature)
        _check(0 < self.top_p <= 1, "top_p must be above 0 and at most 1", self.top_p)
        _check(self.score_rule in get_args(ScoreRule), "score_rule must be 'total' or 'generated'", self.score_rule)
        stopping = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        _check(stopping, "early_stopping must be True, False or 'never'", self.early_stopping)
        for name in ("forbid_ids", "allowed_ids"):
            ids = getattr(self, name)
            _check(all(_is_int(i, 0) for i in ids or ()), f"{name} must contain token ids", ids)
        if self.allowed_ids is not None and not set(self.allowed_ids) - set(self.forbid_ids):
            raise InputError("allowed_ids must contain a token that is not in forbid_ids")
        self._check_unused()

    def capacity(self, prompt_length: int) -> int:
        """Return the number of tokens that a session must hold per row."""
        return prompt_length + self.max_new_tokens - 1  # the last token is never fed back

    def _check_unused(self) -> None:
        """Raise for options that have no effect."""
        defaults = type(self).__dataclass_fields__
        if not self.do_sample:
            for name in ("temperature", "top_p", "top_k"):
                if getattr(self, name) != defaults[name].default:
                    raise InputError(f"{name} needs do_sample=True, got {name}={getattr(self, name)}")
        if self.num_beams == 1:
            for name in ("length_penalty", "early_stopping"):
                if getattr(self, name) != defaults[name].default:
                    raise InputError(f"{name} needs num_beams of at least 2, got {name}={getattr(self, name)!r}")
            if self.n > 1 and not self.do_sample:
                raise InputError(f"n must be 1 in greedy decoding, got {self.n}; use num_beams >= n or do_sample=True")
            return
        if self.n > self.num_beams:
            raise InputError(f"n must be at most num_beams={self.num_beams} in a beam search, got {self.n}")
        if self.score_rule == "total":
            if self.do_sample:
                raise InputError(
                    f"num_beams must be 1 with do_sample=True, got {self.num_beams}; leave num_beams out to sample"
                )
            if self.early_stopping == "never":
                raise InputError("early_stopping='never' needs score_rule='generated', got 'total'")


@dataclass(frozen=True)
class Hypothesis:
    """One decoded text.

    Attributes:
        ids: New tokens, with the final [SEP] if there is one.
        logprob: Summed natural log-probability of `ids`, before penalties, bans and temperature.
        score: Score that the beam search ranked the text by; equal to `logprob` without beams.
        finished: Whether the text ends with [SEP].
        beam_indices: With a monitor, the row that each new token continued.
    """

    ids: list[int]
    logprob: float
    score: float
    finished: bool
    beam_indices: tuple[int, ...] | None = None

    @classmethod
    def from_row(cls, ids: list[int], logprob: float, eos_id: int) -> Hypothesis:
        """Return the text of a row of new tokens, without what follows its first [SEP].

        Args:
            ids: New tokens.
            logprob: Summed log-probability of the tokens.
            eos_id: Id of [SEP].

        Returns:
            The text, scored by its log-probability.
        """
        finished = eos_id in ids
        return cls(ids[: ids.index(eos_id) + 1] if finished else ids, logprob, logprob, finished)


_MINIMUMS = {
    "num_beams": 1,
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "n": 1,
    "no_repeat_ngram_size": 0,
    "top_k": 0,
    "eos_id": 0,
    "pad_id": 0,
}


def _is_int(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _check(valid: bool, requirement: str, value: object) -> None:
    if not valid:
        raise InputError(f"{requirement}, got {value!r}")
