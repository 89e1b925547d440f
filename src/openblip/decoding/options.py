"""What can be asked of decoding, and what comes back: plain data, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from openblip.decoding.words import Forbidden, Required
from openblip.errors import InputError

ScoreRule = Literal["total", "generated"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to decode; every combination that would silently ignore an option raises :class:`InputError`.

    ``beams=1`` is greedy, more is beam search; with ``sample`` tokens are drawn, which takes ``beams=1`` unless
    ``score_rule`` is "generated" (that library also samples beams). Lengths count new tokens: at least
    ``min_new_tokens`` before [SEP], at most ``max_new_tokens`` with it. ``n`` is how many hypotheses an item gets: the
    best ones of a search, or independent samples.

    ``score_rule`` names the beam search that is followed exactly. Both keep the best 2 * beams continuations of each
    step, let a [SEP] end a hypothesis only from the first half of them, and divide summed log-probabilities by a
    length to the power of ``length_penalty``; they differ in that length and in when they stop:

    - "total", of the original BLIP (transformers 4.15): the length of the whole text, prompt and [DEC] included, the
      final [SEP] excluded.
    - "generated", of transformers 5: the new tokens, [SEP] included.

    ``early_stopping`` ends an item once ``beams`` hypotheses are complete (``True``), or once no running beam can
    still beat the worst of them, judged at the present length (``False``) or at the most favourable one ("never",
    with "generated" only).

    Penalties and bans see the prompt too, as in the originals: ``repetition_penalty`` divides positive scores of tokens
    already there by itself and multiplies negative ones (logits when greedy or sampling, log-probabilities in a beam
    search), ``no_repeat_ngram`` lets no n-gram of that size occur twice. ``forbid_ids`` are never produced; with
    ``allowed_ids`` nothing else is. ``forbidden`` are whole words that are not said in any spelling: a beam that has
    said one must make a longer word of it; without beams the piece that would complete one is barred. ``required``
    words steer a beam search: beams that came equally far towards them compete with each other, and no text ends before
    it has them, so that it lacks them only where it is cut off, or where there are no beams. ``temperature``, ``top_k``
    (0 is off) and ``top_p`` (1 is off) shape what is sampled from, in that order.
    """

    beams: int = 3
    max_new_tokens: int = 16
    min_new_tokens: int = 1
    n: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    sample: bool = False
    top_p: float = 0.9
    top_k: int = 0
    temperature: float = 1.0
    score_rule: ScoreRule = "total"
    early_stopping: bool | Literal["never"] = False
    forbid_ids: tuple[int, ...] = ()
    allowed_ids: tuple[int, ...] | None = None
    forbidden: Forbidden | None = None
    required: Required | None = None
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            _check(_is_int(getattr(self, name), least), f"{name} is a whole number from {least} on", name, self)
        _check(self.min_new_tokens <= self.max_new_tokens, "min_new_tokens is at most max_new_tokens", *_LENGTHS, self)
        _check(isfinite(self.length_penalty), "length_penalty is a finite number", "length_penalty", self)
        for name in ("repetition_penalty", "temperature"):
            _check(0 < getattr(self, name) < float("inf"), f"{name} is above 0", name, self)
        _check(0 < self.top_p <= 1, "top_p is above 0 and at most 1", "top_p", self)
        _check(self.score_rule in get_args(ScoreRule), "score_rule is 'total' or 'generated'", "score_rule", self)
        _check(
            isinstance(self.early_stopping, bool) or self.early_stopping == "never",
            "early_stopping is True, False or 'never'",
            "early_stopping",
            self,
        )
        self._check_ids()
        self._check_ignored()

    def capacity(self, prompt_length: int) -> int:
        """The most tokens that are fed to a row: what a session's caches must hold."""
        return prompt_length + self.max_new_tokens - 1

    def _check_ids(self) -> None:
        allowed = self.allowed_ids
        for name in ("forbid_ids", "allowed_ids"):
            ids = getattr(self, name) or ()
            _check(all(_is_int(i, 0) for i in ids), f"{name} holds token ids", name, self)
        if allowed is not None and not set(allowed) - set(self.forbid_ids):
            raise InputError("allowed_ids minus forbid_ids leaves no token to produce")

    def _check_ignored(self) -> None:
        """Refuse options that the chosen way of decoding would not look at."""
        defaults = type(self).__dataclass_fields__
        if not self.sample:
            for name in ("temperature", "top_p", "top_k"):
                if getattr(self, name) != defaults[name].default:
                    raise InputError(f"{name}={getattr(self, name)} has no effect without sample=True")
        if self.beams == 1:
            for name in ("length_penalty", "early_stopping"):
                if getattr(self, name) != defaults[name].default:
                    raise InputError(f"{name}={getattr(self, name)!r} has no effect with beams=1: use more beams")
            if self.n > 1 and not self.sample:
                raise InputError(f"n={self.n} with beams=1: greedy decoding has one result; use beams >= n, or sample")
            return
        if self.n > self.beams:
            raise InputError(f"n={self.n} is more than beams={self.beams}: a beam search keeps as many as it has beams")
        if self.score_rule == "total":
            if self.sample:
                raise InputError(f"sample=True with beams={self.beams}: use beams=1, or score_rule='generated'")
            if self.early_stopping == "never":
                raise InputError("early_stopping='never' exists with score_rule='generated' only")


@dataclass(frozen=True)
class Hypothesis:
    """One decoded text.

    ``ids`` are the new tokens, with the final [SEP] if it was reached (``finished``). ``logprob`` is their summed
    natural log-probability by the model itself: before penalties, bans and temperature. ``score`` is what a beam
    search ranked it by; without beams it equals ``logprob``.
    """

    ids: list[int]
    logprob: float
    score: float
    finished: bool


_LEAST = {
    "beams": 1,
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "n": 1,
    "no_repeat_ngram": 0,
    "top_k": 0,
    "eos_id": 0,
    "pad_id": 0,
}
_LENGTHS = ("min_new_tokens", "max_new_tokens")


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check(holds: bool, rule: str, *named: object) -> None:
    """Raise unless ``holds``; ``named`` is one or more option names, then the options."""
    if not holds:
        *names, options = named
        found = ", ".join(f"{name}={getattr(options, str(name))!r}" for name in names)
        raise InputError(f"{rule}, not {found}")
