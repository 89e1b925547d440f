"""Greedy decoding, sampling and beam search over an exported decoder step, with openblip's rules and results.

Shapes: I items (images, questions or expressions), W rows of each (beams), T tokens, P prompt tokens, L layers, H
heads, K width of a head, V vocabulary, B beams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip_portable.errors import InputError
from openblip_portable.runtime import Array, Floats, Graph, Ids
from openblip_portable.sampling import Draws, filter_for_sampling, log_softmax
from openblip_portable.words import ForbiddenWords, RequiredWords, RequirementProgress

_EMPTY = -np.inf  # the score of a slot without a hypothesis


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of decoding, with the names and meanings of `openblip`.

    Attributes:
        num_beams: Number of beams; 1 is greedy decoding, or sampling with `do_sample`.
        n: Number of texts per item: at most `num_beams`, or independent samples.
        max_new_tokens: Maximum number of new tokens, [SEP] included.
        min_new_tokens: Minimum number of new tokens before [SEP].
        length_penalty: Exponent of the length that divides the score of a text.
        repetition_penalty: Divides positive and multiplies negative scores of tokens that occurred before.
        no_repeat_ngram_size: Size of n-grams that occur at most once; 0 disables.
        do_sample: Whether to sample. Needs `num_beams=1`.
        top_p: Probability mass of the tokens to sample from; 1 disables.
        top_k: Number of tokens to sample from; 0 disables.
        temperature: Divides the logits before sampling.
        forbidden_words: Words that do not occur in any spelling.
        required_words: Words that steer a beam search. Ignored without beams.
        eos_id: Token id of [SEP].
        pad_id: Token id of [PAD].
    """

    num_beams: int
    n: int = 1
    max_new_tokens: int
    min_new_tokens: int
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    do_sample: bool = False
    top_p: float = 0.9
    top_k: int = 0
    temperature: float = 1.0
    forbidden_words: ForbiddenWords | None = None
    required_words: RequiredWords | None = None
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        minimums = (
            ("num_beams", 1),
            ("n", 1),
            ("max_new_tokens", 1),
            ("min_new_tokens", 0),
            ("no_repeat_ngram_size", 0),
            ("top_k", 0),
        )
        for name, minimum in minimums:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise InputError(f"{name} must be an integer of at least {minimum}, got {value!r}")
        if self.do_sample and self.num_beams > 1:
            raise InputError(f"num_beams must be 1 with do_sample=True, got {self.num_beams}; leave it out to sample")
        if self.n > self.num_beams and not self.do_sample:
            raise InputError(f"n must be at most num_beams={self.num_beams}, got {self.n}")
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(f"min_new_tokens must be at most {self.max_new_tokens}, got {self.min_new_tokens}")
        if not math.isfinite(self.length_penalty):
            raise InputError(f"length_penalty must be finite, got {self.length_penalty}")
        if not 0 < self.repetition_penalty < math.inf:
            raise InputError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature must be above 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")


@dataclass(frozen=True)
class Hypothesis:
    """One decoded text.

    Attributes:
        ids: New tokens, with the final [SEP] if there is one.
        logprob: Summed natural log-probability of `ids`, before penalties and bans.
        score: Score that the beam search ranked the text by; equal to `logprob` without beams.
        finished: Whether the text ends with [SEP].
    """

    ids: list[int]
    logprob: float
    score: float
    finished: bool


class Session:
    """A decoding run: the caches of all rows, one row per item at the start.

    Args:
        step: The decoder step.
        shapes: The entry `shapes` of the task in the manifest.
        memory: Cross-attention keys and values, each (I, H, M, K), layer after layer.
        mask: 1 on the tokens of the memory (I, M); `None` if the graph takes no mask.
    """

    def __init__(self, step: Graph, shapes: Mapping[str, int], memory: Sequence[Floats], mask: Ids | None) -> None:
        self.graph = step
        self.memory = list(memory)
        self.mask = mask
        empty = (shapes["layers"], len(self.memory[0]), 1, shapes["heads"], 0, shapes["head_width"])
        self.keys = self.values = np.zeros(empty, np.float32)

    def step(self, ids: Ids) -> Floats:
        """Append tokens (rows, T) to all rows; return the logits (rows, V) of the next token."""
        items, width = self.keys.shape[1:3]
        mask: list[Array] = [] if self.mask is None else [self.mask]
        inputs: list[Array] = [ids.reshape(items, width, -1), self.keys, self.values, *mask, *self.memory]
        logits, self.keys, self.values = self.graph(inputs)
        return logits.reshape(items * width, -1)

    def widen(self, width: int) -> None:
        """Replace the row of each item by `width` copies."""
        self.keys, self.values = (np.repeat(cache, width, 2) for cache in (self.keys, self.values))

    def reorder(self, parents: NDArray[np.intp]) -> None:
        """Replace row w of item i by row `parents[i, w]` of the item."""
        items = np.arange(len(parents))[:, None]
        self.keys, self.values = (np.ascontiguousarray(cache[:, items, parents]) for cache in (self.keys, self.values))

    def keep(self, items: NDArray[np.intp]) -> None:
        """Drop all items except these."""
        self.keys, self.values = self.keys[:, items], self.values[:, items]
        self.memory = [tensor[items] for tensor in self.memory]
        self.mask = None if self.mask is None else self.mask[items]


def generate(session: Session, prompts: Ids, options: Options, seed: int | None = None) -> list[list[Hypothesis]]:
    """Continue prompts.

    Args:
        session: A session with one row per item.
        prompts: Prompts (I, P).
        options: Options.
        seed: Makes samples repeatable; a sample then depends on its item alone.

    Returns:
        `options.n` hypotheses per item, the best first. A beam search returns fewer if its bans allow fewer texts.
    """
    if options.num_beams > 1:
        return _search_beams(session, prompts, options)
    return _decode_rows(session, prompts, options, Draws(len(prompts), options, seed) if options.do_sample else None)


def _decode_rows(session: Session, prompts: Ids, options: Options, draws: Draws | None) -> list[list[Hypothesis]]:
    """Decode without beams: the likeliest token of each row, or a drawn one."""
    (items, prompt_length), rows = prompts.shape, options.n
    tokens = np.full((items, rows, prompt_length + options.max_new_tokens), options.pad_id, np.int64)
    tokens[:, :, :prompt_length] = prompts[:, None]
    logprobs, ended = np.zeros((items, rows)), np.zeros((items, rows), bool)
    live = np.arange(items)
    logits = session.step(prompts)
    if rows > 1:
        session.widen(rows)
        logits = np.repeat(logits, rows, 0)
    for new in range(options.max_new_tokens):
        end = prompt_length + new
        scores = _process(logits, tokens[live, :, :end].reshape(len(logits), end), new, options)
        if draws is None:
            chosen = scores.argmax(-1)
        else:
            chosen = draws.sample_tokens(filter_for_sampling(scores, options), new, live)
        gains = log_softmax(logits)[np.arange(len(chosen)), chosen].reshape(-1, rows)
        # Rows that ended earlier get padding, which adds nothing.
        idle = ended[live]
        chosen = np.where(idle, options.pad_id, chosen.reshape(-1, rows))
        tokens[live, :, end] = chosen
        logprobs[live] += np.where(idle, 0.0, gains)
        ended[live] |= chosen == options.eos_id
        running = np.flatnonzero(~ended[live].all(1))
        if not len(running) or new + 1 == options.max_new_tokens:
            break
        if len(running) < len(live):
            session.keep(running)
            live, chosen = live[running], chosen[running]
        logits = session.step(chosen.reshape(-1, 1))
    results = []
    for item_tokens, item_logprobs in zip(
        tokens[:, :, prompt_length : end + 1].tolist(), logprobs.tolist(), strict=True
    ):
        hypotheses = []
        for ids, logprob in zip(item_tokens, item_logprobs, strict=True):
            finished = options.eos_id in ids
            ids = ids[: ids.index(options.eos_id) + 1] if finished else ids
            hypotheses.append(Hypothesis(ids, logprob, logprob, finished))
        results.append(hypotheses)
    return results


@dataclass
class _Beams:
    """A fixed number of slots with hypotheses per item."""

    tokens: Ids  # (I, slots, P + max_new_tokens), prompt included
    score: Array  # (I, slots)
    logprob: Array  # (I, slots)
    length: Array  # (I, slots)

    def gather(self, slots: NDArray[np.intp]) -> _Beams:
        """Return the hypotheses in these slots (I, k)."""
        items = np.arange(len(slots))[:, None]
        return _Beams(*(array[items, slots] for array in (self.tokens, self.score, self.logprob, self.length)))

    def select(self, items: NDArray[np.intp]) -> _Beams:
        """Return the hypotheses of these items."""
        return _Beams(*(array[items] for array in (self.tokens, self.score, self.logprob, self.length)))

    def merge(self, new: _Beams, scores: Array) -> _Beams:
        """Return the best of these hypotheses and of new ones with these scores, in the same number of slots."""
        union = _Beams(
            np.concatenate([self.tokens, new.tokens], 1),
            np.concatenate([self.score, scores], 1),
            np.concatenate([self.logprob, new.logprob], 1),
            np.concatenate([self.length, new.length], 1),
        )
        return union.gather(_rank(union.score, self.score.shape[1]))


def _search_beams(session: Session, prompts: Ids, options: Options) -> list[list[Hypothesis]]:
    """Search with the rule of the original BLIP: scores per token of the whole text without [SEP]."""
    (items, prompt_length), beams = prompts.shape, options.num_beams
    tokens = np.full((items, beams, prompt_length + options.max_new_tokens), options.pad_id, np.int64)
    tokens[:, :, :prompt_length] = prompts[:, None]
    zeros = np.zeros((items, beams), np.float32)
    lengths = np.zeros((items, beams), np.int64)
    running = _Beams(tokens[:, :1], zeros[:, :1], zeros[:, :1], lengths[:, :1])
    complete = _Beams(tokens, np.full((items, beams), _EMPTY), zeros, lengths)
    done, live = np.zeros(items, bool), np.arange(items)
    results: list[list[Hypothesis]] = [[] for _ in range(items)]
    required = options.required_words if options.required_words and options.required_words.clauses else None
    logits = session.step(prompts)
    for step in range(1, options.max_new_tokens + 1):
        # Candidates: the best continuations of each item.
        logprobs = log_softmax(logits)
        history = running.tokens[:, :, : prompt_length + step - 1].reshape(len(logits), -1)
        scores = _process(logprobs, history, step - 1, options)
        progress: list[RequirementProgress] = []
        if required is not None:  # no text ends before it has all required words
            progress = [required.progress(ids) for ids in history[:, prompt_length:].tolist()]
            scores = scores.copy()
            scores[[row.clauses_met < len(required.clauses) for row in progress], options.eos_id] = _EMPTY
        score, flat = _best_candidates(scores, running.score, 2 * beams)
        if required is not None:
            score, flat = _add_required_tokens(scores, running.score, score, flat, progress, options.eos_id)
        parents, chosen = flat // scores.shape[1], flat % scores.shape[1]
        candidates = running.gather(parents)
        candidates.tokens[:, :, prompt_length + step - 1] = chosen
        candidates.score = score
        rows = parents + running.score.shape[1] * np.arange(len(parents))[:, None]
        candidates.logprob = candidates.logprob + logprobs[rows, chosen]
        candidates.length = candidates.length + 1

        # The best candidates that do not end are the next beams; those that end among the better half are complete.
        ends = chosen == options.eos_id
        open_score = np.where(ends, _EMPTY, score)
        if required is None:
            slots = _rank(open_score, beams)
            is_complete = ends & (np.arange(2 * beams) < beams) & ~done[:, None]
        else:  # an end counts at any rank, because few candidates are allowed to end
            texts = candidates.tokens[:, :, prompt_length : prompt_length + step]
            slots = _choose_by_progress(open_score, texts, required, beams)
            is_complete = ends & ~done[:, None]
        running = candidates.gather(slots)
        running.score = np.take_along_axis(open_score, slots, 1)
        parents = np.take_along_axis(parents, slots, 1)
        final = candidates.score.astype(np.float64) / (prompt_length + step - 1) ** options.length_penalty
        complete = complete.merge(candidates, np.where(is_complete, final, _EMPTY))
        worst, best = complete.score[:, -1], candidates.score[:, 0].astype(np.float64)
        settled = (worst > _EMPTY) & (worst >= best / (prompt_length + step - 1) ** options.length_penalty)
        done = done | settled | (running.score[:, 0] == _EMPTY)
        if step == options.max_new_tokens:
            cut = running.score.astype(np.float64) / (prompt_length + step) ** options.length_penalty
            complete = complete.merge(running, np.where(done[:, None], _EMPTY, cut))
            break
        if done.all():
            break

        # Store the results of finished items, and drop their rows.
        if done.any():
            for index in np.flatnonzero(done).tolist():
                results[live[index]] = _to_hypotheses(complete, index, prompt_length, options)
            kept = np.flatnonzero(~done)
            session.keep(kept)
            running, complete, parents = running.select(kept), complete.select(kept), parents[kept]
            done, live = done[kept], live[kept]
        if step == 1:
            session.widen(beams)
        elif (parents != np.arange(beams)).any():
            session.reorder(parents)
        logits = session.step(running.tokens[:, :, prompt_length + step - 1].reshape(-1, 1))
    for index, item in enumerate(live):
        results[item] = _to_hypotheses(complete, index, prompt_length, options)
    return results


def _to_hypotheses(complete: _Beams, index: int, prompt_length: int, options: Options) -> list[Hypothesis]:
    """Return the best complete hypotheses of an item."""
    hypotheses = []
    for slot in range(options.n):
        score = float(complete.score[index, slot])
        if score > _EMPTY:
            length = int(complete.length[index, slot])
            ids = complete.tokens[index, slot, prompt_length : prompt_length + length].tolist()
            logprob = float(complete.logprob[index, slot])
            hypotheses.append(Hypothesis(ids, logprob, score, ids[-1] == options.eos_id))
    return hypotheses


def _best_candidates(scores: Array, running: Array, count: int) -> tuple[Array, NDArray[np.intp]]:
    """Return summed scores (I, count) of the best continuations, the best first, and their (beam, token) pairs.

    Args:
        scores: Scores of the next token (rows, V).
        running: Scores of the beams (I, W).
        count: Number of candidates.
    """
    items, width = running.shape
    vocab_size = scores.shape[1]
    size = min(count, vocab_size)
    best = np.sort(np.argpartition(-scores, size - 1, axis=1)[:, :size], 1) if size < vocab_size else np.broadcast_to(
        np.arange(vocab_size), scores.shape
    )  # fmt: skip
    sums = (np.take_along_axis(scores, best, 1).reshape(items, width, -1) + running[..., None]).reshape(items, -1)
    flat = (best.reshape(items, width, -1) + vocab_size * np.arange(width)[:, None]).reshape(items, -1)
    if sums.shape[1] < count:  # a vocabulary smaller than the number of candidates
        missing = ((0, 0), (0, count - sums.shape[1]))
        sums, flat = np.pad(sums, missing, constant_values=_EMPTY), np.pad(flat, missing)
    order = _rank(sums, count)
    return np.take_along_axis(sums, order, 1), np.take_along_axis(flat, order, 1)


def _add_required_tokens(
    scores: Array,
    running: Array,
    score: Array,
    flat: NDArray[np.intp],
    progress: Sequence[RequirementProgress],
    eos_id: int,
) -> tuple[Array, NDArray[np.intp]]:
    """Append candidates that bring each beam closer to a required word or, if it has all words, to its end."""
    (items, width), vocab_size = running.shape, scores.shape[1]
    additions: list[list[int]] = []
    for item, existing in enumerate(flat.tolist()):
        indices = [
            row * vocab_size + token
            for row in range(width)
            for token in progress[item * width + row].next_ids or (eos_id,)
        ]
        additions.append([index for index in indices if index not in existing])
    longest = max(map(len, additions))
    new_flat = np.array([indices + [-1] * (longest - len(indices)) for indices in additions], np.intp)
    new_flat = new_flat.reshape(items, longest)
    sums = (scores.reshape(items, width, -1) + running[..., None]).reshape(items, -1)
    new_score = np.where(new_flat < 0, _EMPTY, np.take_along_axis(sums, new_flat.clip(0), 1))
    new_score = new_score.astype(score.dtype)
    return np.concatenate([score, new_score], 1), np.concatenate([flat, new_flat.clip(0)], 1)


def _choose_by_progress(open_score: Array, texts: Ids, required: RequiredWords, beams: int) -> NDArray[np.intp]:
    """Return the slots (I, B) of the next beams, by descending score.

    Candidates with equal progress towards the required words form a bank. The banks take turns, the most advanced bank
    first, so that beams with and without the required words both survive (Post and Vilar, 2018).
    """
    orders = _rank(open_score, open_score.shape[1]).tolist()
    chosen = []
    for order, scores, item_texts in zip(orders, open_score.tolist(), texts.tolist(), strict=True):
        banks: dict[tuple[int, int], list[int]] = {}
        for slot in order:
            if scores[slot] > _EMPTY:
                banks.setdefault(required.progress(item_texts[slot]).bank, []).append(slot)
        ranked_banks = [banks[key] for key in sorted(banks, reverse=True)]
        slots = [bank[turn] for turn in range(beams) for bank in ranked_banks if turn < len(bank)][:beams]
        slots.sort(key=lambda slot: -scores[slot])
        fill = [slot for slot in order if slot not in slots]  # slots without a hypothesis
        chosen.append(slots + fill[: beams - len(slots)])
    return np.array(chosen, np.intp)


def _rank(scores: Array, count: int) -> NDArray[np.intp]:
    """Return the slots (I, count) of the best scores, the first slot first among equal scores."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _process(scores: Array, history: Ids, new: int, options: Options) -> Array:
    """Apply penalties and bans to the scores (R, V) of the token after the history (R, T)."""
    size, forbidden = options.no_repeat_ngram_size, options.forbidden_words
    if options.repetition_penalty == 1 and not size and new >= options.min_new_tokens and forbidden is None:
        return scores
    scores = scores.copy()
    for row, ids in enumerate(history):
        if options.repetition_penalty != 1:
            seen = np.unique(ids)
            previous = scores[row, seen]
            penalty = np.float32(options.repetition_penalty)
            scores[row, seen] = np.where(previous < 0, previous * penalty, previous / penalty)
        if size and len(ids) >= size:
            grams = np.lib.stride_tricks.sliding_window_view(ids, size)
            repeats = (grams[:, :-1] == ids[len(ids) - size + 1 :]).all(1)
            scores[row, grams[repeats, -1]] = _EMPTY
    if new < options.min_new_tokens:
        scores[:, options.eos_id] = _EMPTY
    if forbidden is not None:
        # In the last step, and without beams, nothing can replace a text that completes a forbidden word.
        final = options.num_beams == 1 or new + 1 == options.max_new_tokens or not forbidden.continuation_ids
        for row, ids in enumerate(history.tolist()):
            if new and forbidden.ends_with_phrase(ids, new):  # a `##` piece makes a longer word of it
                allowed = np.zeros(scores.shape[1], bool)
                allowed[list(forbidden.continuation_ids)] = True
                scores[row, ~allowed] = _EMPTY
            if final:
                scores[row, forbidden.completing_ids(ids, new)] = _EMPTY
    return scores


def decode_boxes(session: Session, box: Mapping[str, Any], items: int) -> tuple[Array, Array]:
    """Decode one box per item.

    Args:
        session: A session with one row per item.
        box: The entry `box` of the task in the manifest.
        items: Number of items.

    Returns:
        Left, top, right and bottom edges as shares of the image (I, 4), and log-probabilities (I,).
    """
    first = box["start_id"] + 1
    ids = np.full((items, 1), box["start_id"], np.int64)
    logprob = np.zeros(items, np.float32)
    numbers = []
    for _ in range(4):  # center x, center y, width, height
        scores = log_softmax(session.step(ids)[:, first : first + box["bins"] + 1])
        bins = scores.argmax(-1)
        number = bins.astype(np.float32)
        if box["reading"] == "median":
            bins, number = _find_medians(np.exp(scores))
        logprob = logprob + scores[np.arange(items), bins]
        numbers.append(number)
        ids = (first + bins)[:, None].astype(np.int64)
    x, y, width, height = np.stack(numbers) / np.float32(box["bins"])
    edges = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    return edges.clip(0, 1), logprob


def _find_medians(weights: Array) -> tuple[NDArray[np.intp], Array]:
    """Return the bin (I,) of the median of each histogram (I, C), and the median (I,)."""
    cumulative = weights.cumsum(-1)
    half = cumulative[:, -1:] / 2
    bins = (cumulative < half).sum(-1, keepdims=True)
    fraction = 1 - (np.take_along_axis(cumulative, bins, 1) - half) / np.take_along_axis(weights, bins, 1)
    return bins[:, 0], (bins + fraction)[:, 0].astype(np.float32)
