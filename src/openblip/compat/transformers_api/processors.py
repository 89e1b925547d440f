"""Processors of scores and stopping criteria of `generate`, in the order in which `transformers` applies them.

Shapes: R rows, L tokens so far, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openblip.decoding.logits import ban_repeated_ngrams, penalize_repetition
from openblip.errors import InputError

Processor = Callable[[Tensor, Tensor], Tensor]
"""Function of the tokens so far (R, L) and of scores (R, V) that returns scores (R, V)."""

Criterion = Callable[..., Any]
"""Function of the tokens so far (R, L) and of scores that returns whether texts end: a boolean, or booleans (R,)."""

_IMPOSSIBLE = float("-inf")
_TOP_H_TOKENS = 100


@dataclass(frozen=True)
class Prompts:
    """What processors know about the prompts of a run.

    Attributes:
        length: Number of tokens of each prompt.
        max_length: Maximum number of tokens of a text, prompt included.
        min_new_tokens: Minimum number of new tokens before the end token.
        rows: Number of each prompt in the batch.
        rows_per_prompt: Number of adjacent rows of each prompt.
        eos_id: Token id of the end.
    """

    length: int
    max_length: int
    min_new_tokens: int
    rows: Sequence[int]
    rows_per_prompt: int
    eos_id: int


def make_processors(settings: Mapping[str, Any], prompts: Prompts) -> list[Processor]:
    """Return the processors of a run, in order.

    A processor of the caller takes the place of one of `transformers` with the same class.

    Args:
        settings: Options of `generate` by name.
        prompts: The prompts, as far as processors need them.

    Returns:
        The processors.
    """
    given = list(settings.get("logits_processor") or ())
    processors: list[Processor] = []
    for class_name, processor in _default_processors(settings, prompts):
        own = [candidate for candidate in given if type(candidate).__name__ == class_name]
        processors += own or [processor]
        given = [candidate for candidate in given if candidate not in own]
    processors += given
    if settings["do_sample"]:
        processors += _sampling_filters(settings, 1 if settings["num_beams"] == 1 else 2)
    if settings["renormalize_logits"]:
        processors.append(lambda _ids, scores: scores.log_softmax(-1))
    return processors


def _default_processors(settings: Mapping[str, Any], prompts: Prompts) -> list[tuple[str, Processor]]:
    """Return the processors that options require, each with its class name in `transformers`."""
    eos, found = prompts.eos_id, []

    def add(class_name: str, processor: Processor) -> None:
        found.append((class_name, processor))

    if settings["sequence_bias"] is not None:
        biases = _check_sequence_bias(settings["sequence_bias"])
        add("SequenceBiasLogitsProcessor", lambda ids, scores: bias_sequences(ids, scores, biases))
    if settings["repetition_penalty"] != 1.0:
        penalty = float(settings["repetition_penalty"])
        add("RepetitionPenaltyLogitsProcessor", lambda ids, scores: penalize_repetition(scores, ids, penalty))
    if settings["no_repeat_ngram_size"]:
        size = settings["no_repeat_ngram_size"]
        add("NoRepeatNGramLogitsProcessor", lambda ids, scores: ban_repeated_ngrams(scores, ids, size))
    if settings["bad_words_ids"] is not None:
        bans = _check_bad_words(settings["bad_words_ids"], eos)
        add("NoBadWordsLogitsProcessor", lambda ids, scores: bias_sequences(ids, scores, bans))
    if prompts.min_new_tokens > 0:
        shortest = prompts.length + prompts.min_new_tokens
        add("MinLengthLogitsProcessor", lambda ids, scores: _ban_if(ids.shape[1] < shortest, scores, [eos]))
    if settings["prefix_allowed_tokens_fn"] is not None:
        function = settings["prefix_allowed_tokens_fn"]
        add("PrefixConstrainedLogitsProcessor", lambda ids, scores: keep_allowed(ids, scores, function, prompts))
    if settings["forced_bos_token_id"] is not None:
        first = settings["forced_bos_token_id"]
        add("ForcedBOSTokenLogitsProcessor", lambda ids, scores: _force_if(ids.shape[1] == 1, scores, first))
    if settings["forced_eos_token_id"] is not None:
        last, end = settings["forced_eos_token_id"], prompts.max_length - 1
        add("ForcedEOSTokenLogitsProcessor", lambda ids, scores: _force_if(ids.shape[1] == end, scores, last))
    if settings["remove_invalid_values"]:
        add("InfNanRemoveLogitsProcessor", lambda _ids, scores: scores.nan_to_num(nan=0.0))
    if settings["exponential_decay_length_penalty"] is not None:
        start, factor = settings["exponential_decay_length_penalty"]
        start += prompts.length
        add(
            "ExponentialDecayLengthPenalty",
            lambda ids, scores: favor_end(scores, eos, factor ** max(ids.shape[1] - start, 0)),
        )
    if settings["suppress_tokens"] is not None:
        suppressed = list(settings["suppress_tokens"])
        add("SuppressTokensLogitsProcessor", lambda _ids, scores: _ban_if(True, scores, suppressed))
    if settings["begin_suppress_tokens"] is not None:
        banned_first = list(settings["begin_suppress_tokens"])
        begin = prompts.length + int(prompts.length == 1 and settings["forced_bos_token_id"] is not None)
        add(
            "SuppressTokensAtBeginLogitsProcessor",
            lambda ids, scores: _ban_if(ids.shape[1] == begin, scores, banned_first),
        )
    return found


def _sampling_filters(settings: Mapping[str, Any], min_tokens: int) -> list[Processor]:
    """Return temperature and the filters of sampling; at least `min_tokens` tokens remain."""
    filters: list[Processor] = []
    temperature, top_k, top_p = settings["temperature"], settings["top_k"], settings["top_p"]
    if temperature not in (None, 1.0):
        filters.append(lambda _ids, scores: scores / temperature)
    if settings["top_h"] is not None:
        filters.append(lambda _ids, scores: keep_top_h(scores, settings["top_h"]))
    if top_k:
        filters.append(lambda _ids, scores: keep_top_k(scores, max(top_k, min_tokens)))
    if top_p is not None and top_p < 1.0:
        filters.append(lambda _ids, scores: keep_top_p(scores, top_p, min_tokens))
    if settings["min_p"] is not None:
        min_p = _check_fraction("min_p", settings["min_p"])
        filters.append(lambda _ids, scores: keep_min_p(scores, min_p, min_tokens))
    if settings["typical_p"] is not None and settings["typical_p"] < 1.0:
        mass = _check_fraction("typical_p", settings["typical_p"])
        filters.append(lambda _ids, scores: keep_typical(scores, mass, min_tokens))
    if settings["epsilon_cutoff"]:
        epsilon = _check_fraction("epsilon_cutoff", settings["epsilon_cutoff"])
        filters.append(lambda _ids, scores: _keep_above(scores, torch.tensor(epsilon), min_tokens))
    if settings["eta_cutoff"]:
        eta = _check_fraction("eta_cutoff", settings["eta_cutoff"])
        filters.append(lambda _ids, scores: keep_above_eta(scores, eta, min_tokens))
    return filters


def bias_sequences(ids: Tensor, scores: Tensor, biases: Mapping[tuple[int, ...], float]) -> Tensor:
    """Add a bias to each token that would complete one of some sequences.

    Args:
        ids: Tokens so far (R, L).
        scores: Scores (R, V).
        biases: Sequences with their biases.

    Returns:
        Scores (R, V).

    Raises:
        InputError: A token id is not in the vocabulary.
    """
    bias = torch.zeros_like(scores)
    for sequence, value in biases.items():
        *start, last = sequence
        if max(sequence) >= scores.shape[1]:
            raise InputError(f"token ids must be below the vocabulary size {scores.shape[1]}, got {max(sequence)}")
        if len(start) > ids.shape[1]:
            continue
        matches = (ids[:, ids.shape[1] - len(start) :] == torch.tensor(start, device=ids.device)).all(1)
        bias[:, last] += torch.where(matches, value, 0.0)
    return scores + bias


def keep_min_p(scores: Tensor, min_p: float, min_tokens: int) -> Tensor:
    """Exclude tokens less likely than `min_p` times the likeliest token (Nguyen et al. 2024).

    Args:
        scores: Scores (R, V).
        min_p: The fraction.
        min_tokens: Number of tokens that remain at least.

    Returns:
        Scores (R, V).
    """
    probs = scores.softmax(-1)
    best = scores.topk(min(min_tokens, scores.shape[1])).indices
    excluded = (probs < min_p * probs.amax(-1, keepdim=True)).scatter(1, best, False)
    return scores.masked_fill(excluded, _IMPOSSIBLE)


def keep_typical(scores: Tensor, mass: float, min_tokens: int) -> Tensor:
    """Exclude tokens whose information is far from the entropy (locally typical sampling; Meister et al. 2022).

    Args:
        scores: Scores (R, V).
        mass: Probability mass of the remaining tokens.
        min_tokens: Number of tokens that remain at least.

    Returns:
        Scores (R, V).
    """
    logprobs = scores.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    distance, order = (-logprobs - entropy).abs().sort()
    reached = scores.gather(-1, order).softmax(-1).cumsum(-1)
    last = (reached < mass).sum(1, keepdim=True).clamp_(max=scores.shape[1] - 1)
    excluded = distance > distance.gather(1, last)
    excluded[:, :min_tokens] = False
    return scores.masked_fill(excluded.scatter(1, order, excluded), _IMPOSSIBLE)


def keep_above_eta(scores: Tensor, eta: float, min_tokens: int) -> Tensor:
    """Exclude tokens below a threshold that depends on the entropy (eta sampling; Hewitt et al. 2022).

    Args:
        scores: Scores (R, V).
        eta: The threshold's parameter.
        min_tokens: Number of tokens that remain at least.

    Returns:
        Scores (R, V).
    """
    epsilon = torch.tensor(eta, device=scores.device)
    entropy = _entropy(scores)
    threshold = torch.minimum(epsilon, epsilon.sqrt() * torch.exp(-entropy))[:, None]
    return _keep_above(scores, threshold, min_tokens)


def keep_top_h(scores: Tensor, top_h: float) -> Tensor:
    """Keep the likeliest tokens until their entropy exceeds a fraction of the whole (top-H; Potraghloo et al. 2025).

    Args:
        scores: Scores (R, V).
        top_h: The fraction, above 0 and at most 1.

    Returns:
        Scores (R, V).
    """
    if not 0 < top_h <= 1:
        raise InputError(f"top_h must be above 0 and at most 1, got {top_h}")
    best, order = scores.topk(min(_TOP_H_TOKENS, scores.shape[1]))
    probs = best.softmax(-1)
    kept = (-probs * probs.log()).cumsum(-1) <= _entropy(best)[:, None] * top_h
    kept[:, 0] = True
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, kept)
    return scores.masked_fill(~mask, _IMPOSSIBLE)


def _entropy(scores: Tensor) -> Tensor:
    """Return the entropy (R,) of the distributions of scores (R, V)."""
    logprobs = scores.log_softmax(-1)
    return -(logprobs.clamp(min=torch.finfo(scores.dtype).min) * logprobs.exp()).sum(-1)


def keep_top_k(scores: Tensor, count: int) -> Tensor:
    """Exclude all tokens but the `count` likeliest ones."""
    threshold = scores.topk(min(count, scores.shape[1])).values[:, -1:]
    return scores.masked_fill(scores < threshold, _IMPOSSIBLE)


def keep_top_p(scores: Tensor, top_p: float, min_tokens: int) -> Tensor:
    """Exclude the least likely tokens that together have at most a probability of 1 - `top_p`."""
    ordered, order = scores.sort()
    excluded = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    excluded[:, -min_tokens:] = False
    return scores.masked_fill(excluded.scatter(1, order, excluded), _IMPOSSIBLE)


def _keep_above(scores: Tensor, threshold: Tensor, min_tokens: int) -> Tensor:
    kept = scores.topk(min(min_tokens, scores.shape[1])).values[:, -1:]
    excluded = (scores.softmax(-1) < threshold.to(scores.device)) & (scores < kept)
    return scores.masked_fill(excluded, _IMPOSSIBLE)


def _ban_if(applies: bool, scores: Tensor, ids: Sequence[int]) -> Tensor:
    if not applies:
        return scores
    scores = scores.clone()
    scores[:, list(ids)] = _IMPOSSIBLE
    return scores


def _force_if(applies: bool, scores: Tensor, ids: int | Sequence[int]) -> Tensor:
    if not applies:
        return scores
    forced = torch.full_like(scores, _IMPOSSIBLE)
    forced[:, ids] = 0.0
    return forced


def favor_end(scores: Tensor, eos_id: int, factor: float) -> Tensor:
    """Raise the score of the end token by (factor - 1) times its absolute value."""
    end = scores[:, eos_id]
    scores = scores.clone()
    scores[:, eos_id] = end + torch.where(end.isfinite(), end.abs() * (factor - 1), 0.0)
    return scores


def keep_allowed(
    ids: Tensor, scores: Tensor, function: Callable[[int, Tensor], Sequence[int]], prompts: Prompts
) -> Tensor:
    """Ban all tokens that a function of the caller does not allow after each row."""
    mask = torch.full_like(scores, _IMPOSSIBLE)
    for row, text in enumerate(ids):
        allowed = list(function(prompts.rows[row // prompts.rows_per_prompt], text))
        if not allowed:
            raise InputError("prefix_allowed_tokens_fn must return at least one token id, got none")
        mask[row, allowed] = 0.0
    allowed_scores = scores + mask
    # A prompt whose allowed tokens are all banned otherwise gets them anyway.
    stuck = allowed_scores.amax(-1).isneginf().view(-1, prompts.rows_per_prompt).all(-1)
    return torch.where(stuck.repeat_interleave(prompts.rows_per_prompt)[:, None], mask, allowed_scores)


def _check_sequence_bias(value: Any) -> dict[tuple[int, ...], float]:
    pairs = value.items() if isinstance(value, Mapping) else value
    try:
        biases = {tuple(map(int, sequence)): float(bias) for sequence, bias in pairs}
    except (TypeError, ValueError):
        biases = {}
    if not biases or any(not sequence or min(sequence) < 0 for sequence in biases):
        raise InputError(f"sequence_bias must map sequences of token ids to numbers, got {value!r}")
    return biases


def _check_bad_words(value: Any, eos_id: int) -> dict[tuple[int, ...], float]:
    is_list = isinstance(value, list) and value and all(isinstance(ids, list) and ids for ids in value)
    if not is_list or any(not isinstance(i, int) or i < 0 for ids in value for i in ids):
        raise InputError(f"bad_words_ids must be a list of lists of token ids, got {value!r}")
    return {tuple(ids): _IMPOSSIBLE for ids in value if ids != [eos_id]}


def _check_fraction(name: str, value: Any) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{name} must be between 0 and 1, got {value!r}")
    return float(value)


def make_criteria(settings: Mapping[str, Any], tokenizer: Any) -> list[Criterion]:
    """Return the conditions, apart from the end token and the length, under which texts end.

    Args:
        settings: Options of `generate` by name.
        tokenizer: Tokenizer of `stop_strings`.

    Returns:
        The criteria.

    Raises:
        InputError: There are `stop_strings`, but no tokenizer.
    """
    criteria: list[Criterion] = []
    if settings["max_time"] is not None:
        end = time.monotonic() + float(settings["max_time"])
        criteria.append(lambda _ids, _scores: time.monotonic() > end)
    if settings["stop_strings"] is not None:
        if tokenizer is None:
            raise InputError("stop_strings need the tokenizer: generate(..., stop_strings=..., tokenizer=tokenizer)")
        strings = settings["stop_strings"]
        strings = [strings] if isinstance(strings, str) else list(strings)
        criteria.append(lambda ids, _scores: _find_strings(ids, strings, tokenizer))
    return criteria + list(settings.get("stopping_criteria") or ())


def _find_strings(ids: Tensor, strings: Sequence[str], tokenizer: Any) -> Tensor:
    """Return in which rows (R,) the last token completes a string."""
    ends = []
    for row in ids.tolist():
        text, before = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (row, row[:-1]))
        ends.append(any(text.find(string, max(len(before) - len(string) + 1, 0)) >= 0 for string in strings))
    return torch.tensor(ends, device=ids.device)
