"""Greedy decoding, sampling and beam search over logits in NumPy: the same tokens as `openblip.decoding`.

Beam search follows the score rule "generated": the summed log-probability over the number of new tokens, with [SEP].

Shapes: I items, N rows per item, B beams, K = 2 * B candidates per step, R rows (I * N or I * B), P prompt tokens,
L tokens so far, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip.decoding.options import Decoding, Hypothesis
from openblip.errors import InputError

Integers: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]

_IMPOSSIBLE = np.float32(-np.inf)


class DecodingSession(Protocol):
    """A decoding run: one row per item, until `widen`."""

    def start(self, prompts: Integers) -> Floats:
        """Decode prompts (I, P), and return logits (I, V)."""

    def widen(self, width: int) -> None:
        """Let the row of each item become several rows."""

    def reorder(self, rows: Integers) -> None:
        """Let each row continue another one."""

    def step(self, ids: Integers) -> Floats:
        """Append a token to each row, and return logits (R, V)."""


class Draws:
    """The random draws of one decoding run.

    With a seed, each item uses the same stream of random numbers, so that the result of an item does not depend on the
    other items. Without a seed, draws come from NumPy's global generator, which `keras.utils.set_random_seed` sets.

    Args:
        options: Options of the run.
        seed: Seed, or `None`.
    """

    def __init__(self, options: Decoding, seed: int | None) -> None:
        self._generator = None if seed is None else np.random.default_rng(seed)
        self._uniform = None if self._generator is None else self._generator.random((options.n, options.max_new_tokens))

    def tokens(self, scores: Floats, step: int) -> Integers:
        """Draw one token per row.

        Args:
            scores: Logits (R, V); the rows of an item are adjacent.
            step: Number of new tokens so far.

        Returns:
            Token ids (R,).
        """
        sums = np.exp(log_softmax(scores).astype(np.float64)).cumsum(1)
        if self._uniform is None:
            uniform = np.random.random_sample(len(scores))
        else:
            uniform = np.tile(self._uniform[:, step], len(scores) // len(self._uniform))
        targets = uniform * sums[:, -1]
        found = [np.searchsorted(row, target, side="right") for row, target in zip(sums, targets, strict=True)]
        return np.minimum(found, scores.shape[1] - 1).astype(np.int32)

    def candidates(self, scores: Floats, count: int) -> Integers:
        """Draw distinct columns per item.

        Args:
            scores: Logits (I, columns).
            count: Number of columns to draw.

        Returns:
            Columns (I, count).
        """
        # The columns with the shortest exponential waiting times are a draw without replacement.
        if self._generator is None:
            waiting = np.asarray(np.random.standard_exponential(scores.shape))
        else:
            waiting = np.asarray(self._generator.standard_exponential(scores.shape[1]))[None]
        return rank(log_softmax(scores) - np.log(waiting), count)


def decode_single(
    session: DecodingSession, prompts: Integers, history: Integers, options: Decoding, draws: Draws | None
) -> list[list[Hypothesis]]:
    """Decode without beams.

    Args:
        session: A session with one row per item.
        prompts: Prompts (I, P).
        history: Prompts (I, P) as penalties count them.
        options: Options; `options.n` rows are sampled per item.
        draws: Random draws; `None` takes the likeliest token in each step.

    Returns:
        `options.n` hypotheses per item.
    """
    rows, length = options.n, prompts.shape[1]
    logits = session.start(prompts)
    if rows > 1:
        session.widen(rows)
        logits = logits.repeat(rows, 0)
    tokens = np.full((len(logits), length + options.max_new_tokens), options.pad_id, np.int32)
    tokens[:, :length] = history.repeat(rows, 0)
    logprob = np.zeros(len(logits), np.float32)
    ended = np.zeros(len(logits), bool)
    for new in range(options.max_new_tokens):
        scores = apply_penalties(logits, tokens[:, : length + new], new, options)
        if draws is None:
            chosen = scores.argmax(1).astype(np.int32)
        else:
            chosen = draws.tokens(filter_for_sampling(scores, options), new)
        chosen_logprob = np.take_along_axis(log_softmax(logits), chosen[:, None], 1)[:, 0]
        logprob += np.where(ended, np.float32(0), chosen_logprob)
        chosen = np.where(ended, np.int32(options.pad_id), chosen)
        tokens[:, length + new] = chosen
        ended |= chosen == options.eos_id
        if ended.all() or new + 1 == options.max_new_tokens:
            break
        logits = session.step(chosen)
    hypotheses = [
        Hypothesis.from_row(row.tolist(), float(value), options.eos_id)
        for row, value in zip(tokens[:, length:], logprob, strict=True)
    ]
    return [hypotheses[start : start + rows] for start in range(0, len(hypotheses), rows)]


@dataclass
class _Beams:
    """A fixed number of slots with hypotheses per item: running beams, candidates, or complete hypotheses."""

    tokens: Integers  # (I, slots, P + max_new_tokens), prompt included
    score: Floats  # (I, slots): summed log-probabilities with penalties or, if complete, the score of the rule
    logprob: Floats  # (I, slots): summed log-probabilities without penalties
    length: Integers  # (I, slots): number of new tokens

    def gather(self, slots: Integers) -> _Beams:
        """Return the hypotheses in these slots (I, k)."""
        tokens = np.take_along_axis(self.tokens, slots[..., None], 1)
        score, logprob = np.take_along_axis(self.score, slots, 1), np.take_along_axis(self.logprob, slots, 1)
        return _Beams(tokens, score, logprob, np.take_along_axis(self.length, slots, 1))

    def merge(self, new: _Beams, scores: Floats) -> _Beams:
        """Return the best of these hypotheses and of new ones with these scores, in the same number of slots."""
        union = _Beams(
            np.concatenate([self.tokens, new.tokens], 1),
            np.concatenate([self.score, scores], 1),
            np.concatenate([self.logprob, new.logprob], 1),
            np.concatenate([self.length, new.length], 1),
        )
        return union.gather(rank(union.score, self.score.shape[1]))


def beam_search(
    session: DecodingSession, prompts: Integers, history: Integers, options: Decoding, draws: Draws | None
) -> list[list[Hypothesis]]:
    """Search for the best hypotheses of each item.

    Args:
        session: A session with one row per item.
        prompts: Prompts (I, P).
        history: Prompts (I, P) as penalties count them.
        options: Options; `options.num_beams` is at least 2.
        draws: Random draws of the candidates; `None` takes the best candidates.

    Returns:
        Up to `options.n` hypotheses per item, the best first.
    """
    (items, length), beams = prompts.shape, options.num_beams
    tokens = np.full((items, beams, length + options.max_new_tokens), options.pad_id, np.int32)
    tokens[:, :, :length] = history[:, None]
    zeros, counts = np.zeros((items, beams), np.float32), np.zeros((items, beams), np.int32)
    running = _Beams(tokens[:, :1], zeros[:, :1], zeros[:, :1], counts[:, :1])
    complete = _Beams(tokens, np.full_like(zeros, _IMPOSSIBLE), zeros, counts)
    done = np.zeros(items, bool)
    logits = session.start(prompts)
    for step in range(1, options.max_new_tokens + 1):
        # Candidates: the best (or drawn) continuations of each item. `flat` indexes (beam, token) pairs.
        logprobs = log_softmax(logits)
        so_far = running.tokens[:, :, : length + step - 1].reshape(len(logits), -1)
        scores = apply_penalties(logprobs, so_far, step - 1, options)
        vocab_size, width = scores.shape[1], running.score.shape[1]
        if draws is not None:
            scores = filter_for_sampling(scores, options)
        sums = (scores.reshape(items, width, -1) + running.score[..., None]).reshape(items, -1)
        if sums.shape[1] < 2 * beams:  # a vocabulary smaller than K
            sums = np.pad(sums, ((0, 0), (0, 2 * beams - sums.shape[1])), constant_values=_IMPOSSIBLE)
        flat = rank(sums, 2 * beams) if draws is None else draws.candidates(sums, 2 * beams)
        score = np.take_along_axis(sums, flat, 1)
        flat = np.where(flat < width * vocab_size, flat, 0)
        parents, chosen = flat // vocab_size, flat % vocab_size  # (I, K)
        candidates = running.gather(parents)
        candidates.tokens[:, :, length + step - 1] = chosen
        candidates.score = score
        candidates.logprob = candidates.logprob + np.take_along_axis(logprobs.reshape(items, -1), flat, 1)
        candidates.length = candidates.length + 1

        # The best candidates that do not end are the next beams; candidates of the better half that end are complete.
        ends = chosen == options.eos_id
        open_score = np.where(ends, _IMPOSSIBLE, score)
        slots = rank(open_score, beams)
        running = candidates.gather(slots)
        running.score = np.take_along_axis(open_score, slots, 1)
        better_half = np.arange(ends.shape[1]) < beams
        is_complete = better_half if step == options.max_new_tokens else ends & better_half
        rule_scores = (candidates.score / np.float32(step**options.length_penalty)).astype(np.float32)
        rule_scores = np.where(is_complete & ~done[:, None], rule_scores, _IMPOSSIBLE)
        complete = complete.merge(candidates, rule_scores)
        done |= _is_settled(complete.score[:, -1], running.score[:, 0], step, options)
        if done.all() or step == options.max_new_tokens:
            break

        # Bring the rows of the session into the order of the beams, and feed the new tokens.
        if step == 1:
            session.widen(beams)
        else:
            sources = np.take_along_axis(parents, slots, 1) + beams * np.arange(items)[:, None]
            session.reorder(sources.reshape(-1).astype(np.int32))
        logits = session.step(running.tokens[:, :, length + step - 1].reshape(-1))
    return [_best(complete, item, length, options) for item in range(items)]


def _is_settled(worst: Floats, best_running: Floats, step: int, options: Decoding) -> NDArray[np.bool_]:
    """Return which items (I,) are done: no running beam can improve them, or no beam is left."""
    favorable = options.early_stopping == "never" and options.length_penalty > 0
    count = options.max_new_tokens if favorable else step
    settled: NDArray[np.bool_] = ~(best_running / np.float32(count**options.length_penalty) > worst)
    if options.early_stopping is True:
        settled |= worst > _IMPOSSIBLE
    return settled | (best_running == _IMPOSSIBLE)


def _best(complete: _Beams, item: int, length: int, options: Decoding) -> list[Hypothesis]:
    """Return the best complete hypotheses of an item."""
    hypotheses = []
    for slot in range(options.n):
        score = float(complete.score[item, slot])
        if score > _IMPOSSIBLE:
            ids = complete.tokens[item, slot, length : length + complete.length[item, slot]].tolist()
            hypotheses.append(
                Hypothesis(ids, float(complete.logprob[item, slot]), score, finished=ids[-1] == options.eos_id)
            )
    return hypotheses


def apply_penalties(scores: Floats, history: Integers, new: int, options: Decoding) -> Floats:
    """Apply penalties and bans to the scores of the next token.

    Args:
        scores: Scores (R, V).
        history: Tokens so far (R, L).
        new: Number of tokens of the history after the prompt.
        options: Options of the run.

    Returns:
        Scores (R, V); minus infinity for banned tokens.

    Raises:
        InputError: A banned token id is not in the vocabulary.
    """
    scores = scores.copy()
    if options.repetition_penalty != 1.0:
        previous = np.take_along_axis(scores, history, 1)
        penalty = np.float32(options.repetition_penalty)
        np.put_along_axis(scores, history, np.where(previous < 0, previous * penalty, previous / penalty), 1)
    if options.no_repeat_ngram_size:
        _ban_repeated_ngrams(scores, history, options.no_repeat_ngram_size)
    if new < options.min_new_tokens:
        scores[:, options.eos_id] = _IMPOSSIBLE
    if options.forbid_ids:
        if max(options.forbid_ids) >= scores.shape[1]:
            raise InputError(
                f"token ids must be below the vocabulary size {scores.shape[1]}, got {max(options.forbid_ids)}"
            )
        scores[:, list(options.forbid_ids)] = _IMPOSSIBLE
    return scores


def _ban_repeated_ngrams(scores: Floats, history: Integers, size: int) -> None:
    """Ban in place all tokens that would complete an n-gram of length `size` that occurs in `history`."""
    count = history.shape[1] - size + 1  # number of complete n-grams
    if count < 1:
        return
    repeats = np.ones((len(history), count), bool)
    for offset in range(size - 1):
        repeats &= history[:, offset : offset + count] == history[:, count + offset, None]
    for row, column in zip(*repeats.nonzero(), strict=True):
        scores[row, history[row, column + size - 1]] = _IMPOSSIBLE


def filter_for_sampling(scores: Floats, options: Decoding) -> Floats:
    """Apply temperature, top-k and top-p to scores; excluded tokens get minus infinity.

    At least one token remains, or two with beams: a beam search needs a token other than [SEP].

    Args:
        scores: Scores (R, V).
        options: Options of the run.

    Returns:
        Scores (R, V).
    """
    min_tokens = 1 if options.num_beams == 1 else 2
    scores = scores / np.float32(options.temperature)
    ordered = -np.sort(-scores, axis=1)
    if options.top_k:
        threshold = ordered[:, min(max(options.top_k, min_tokens), scores.shape[1]) - 1, None]
        scores = np.where(scores < threshold, _IMPOSSIBLE, scores)
        ordered = np.where(ordered < threshold, _IMPOSSIBLE, ordered)
    if options.top_p < 1.0:
        mass = np.exp(log_softmax(ordered)).cumsum(1)
        inside = np.pad(mass[:, :-1], ((0, 0), (1, 0))) < options.top_p  # tokens whose better ones do not reach top_p
        last = np.maximum(inside.sum(1), min_tokens) - 1
        scores = np.where(scores < np.take_along_axis(ordered, last[:, None], 1), _IMPOSSIBLE, scores)
    return scores


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities.

    Args:
        logits: Logits (R, V).

    Returns:
        Log-probabilities (R, V).
    """
    shifted = logits - logits.max(1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def rank(scores: NDArray[Any], count: int) -> Integers:
    """Return the columns of the best scores, the best first, and the first column first among equal scores.

    Args:
        scores: Scores (I, columns).
        count: Number of columns to return.

    Returns:
        Columns (I, count).
    """
    columns: NDArray[Any] = np.arange(scores.shape[1])[None].repeat(len(scores), 0)
    if scores.shape[1] > 4 * count:  # sort only scores that reach the lowest of the best
        columns = np.sort(np.argpartition(-scores, count, axis=1)[:, : count + 1], axis=1)
    kept = np.take_along_axis(scores, columns, 1)
    order = np.argsort(-kept, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(columns, order, 1).astype(np.int32)
