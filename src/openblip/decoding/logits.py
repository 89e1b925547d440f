"""Penalties and bans on scores, and the filters of sampling.

Shapes: R rows, V vocabulary, L tokens so far (prompt included). No function changes its arguments in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.decoding.options import Decoding
from openblip.decoding.words import ForbiddenWords
from openblip.errors import InputError

_IMPOSSIBLE = float("-inf")


class Processors:
    """The penalties and bans of one decoding run.

    Args:
        options: Options of the run.
    """

    def __init__(self, options: Decoding) -> None:
        self.options = options
        self._banned: Tensor | None = None  # (V,); made on the first call, which shows the vocabulary's size

    def __call__(self, scores: Tensor, history: Tensor, new: int) -> Tensor:
        """Apply penalties and bans to the scores of the next token.

        Args:
            scores: Scores (R, V).
            history: Tokens so far (R, L).
            new: Number of tokens of the history after the prompt.

        Returns:
            Scores (R, V); minus infinity for banned tokens.
        """
        options = self.options
        if options.repetition_penalty != 1.0:
            scores = penalize_repetition(scores, history, options.repetition_penalty)
        if options.no_repeat_ngram_size:
            scores = ban_repeated_ngrams(scores, history, options.no_repeat_ngram_size)
        if new < options.min_new_tokens:
            scores = scores.clone()
            scores[:, options.eos_id] = _IMPOSSIBLE
        if options.forbid_ids or options.allowed_ids is not None:
            if self._banned is None:
                self._banned = _make_ban_mask(options, scores)
            scores = scores.masked_fill(self._banned, _IMPOSSIBLE)
        if options.forbidden_words is not None:
            # In the last step, and without beams, nothing can replace a text that completes a forbidden word.
            final = options.num_beams == 1 or new + 1 == options.max_new_tokens
            scores = ban_words(scores, history, new, options.forbidden_words, final)
        return scores


def _make_ban_mask(options: Decoding, scores: Tensor) -> Tensor:
    """Return a mask (V,) of `forbid_ids` and of all ids outside `allowed_ids`."""
    vocab_size = scores.shape[1]
    largest = max((*options.forbid_ids, *(options.allowed_ids or ())))
    if largest >= vocab_size:
        raise InputError(f"token ids must be below the vocabulary size {vocab_size}, got {largest}")
    banned = torch.full((vocab_size,), options.allowed_ids is not None, dtype=torch.bool)
    banned[list(options.allowed_ids or ())] = False
    banned[list(options.forbid_ids)] = True
    return banned.to(scores.device)


def penalize_repetition(scores: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Divide positive scores of tokens in `history` by `penalty` and multiply negative ones, once per token."""
    previous = scores.gather(1, history)
    penalized = torch.where(previous < 0, previous * penalty, previous / penalty)
    return scores.scatter(1, history, penalized)


def ban_repeated_ngrams(scores: Tensor, history: Tensor, size: int) -> Tensor:
    """Ban all tokens that would complete an n-gram of length `size` that occurs in `history`."""
    ngrams = history.shape[1] - size + 1  # number of complete n-grams
    if ngrams < 1:
        return scores
    # Mark the n-grams whose first size - 1 tokens equal the last size - 1 tokens of the history.
    repeats = torch.ones_like(history[:, :ngrams], dtype=torch.bool)
    for offset in range(size - 1):
        repeats &= history[:, offset : offset + ngrams] == history[:, ngrams + offset, None]
    # Ban the final tokens of these n-grams. Column V takes the writes of all other n-grams.
    vocab_size = scores.shape[1]
    banned = torch.zeros(len(scores), vocab_size + 1, dtype=torch.bool, device=scores.device)
    banned.scatter_(1, history[:, size - 1 :].where(repeats, vocab_size), True)
    return scores.masked_fill(banned[:, :vocab_size], _IMPOSSIBLE)


def ban_words(scores: Tensor, history: Tensor, new: int, forbidden: ForbiddenWords, final: bool) -> Tensor:
    """Ban tokens that would leave a forbidden word in the text.

    A text that ends with a forbidden word must continue with a `##` piece, which makes a longer word of it.

    Args:
        scores: Scores (R, V).
        history: Tokens so far (R, L).
        new: Number of tokens of the history after the prompt.
        forbidden: Forbidden words.
        final: Whether to ban the word piece that would complete a forbidden word, too.

    Returns:
        Scores (R, V); minus infinity for banned tokens.
    """
    scores = scores.clone()
    final = final or not forbidden.continuation_ids
    for row, ids in enumerate(history.tolist()):
        if new and forbidden.ends_with_phrase(ids, new):
            banned = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
            banned[list(forbidden.continuation_ids)] = False
            scores[row] = scores[row].masked_fill(banned, _IMPOSSIBLE)
        if final:
            completing = forbidden.completing_ids(ids, new)
            if completing:
                scores[row, completing] = _IMPOSSIBLE
    return scores


def filter_for_sampling(scores: Tensor, options: Decoding) -> Tensor:
    """Apply temperature, top-k and top-p to scores (R, V); excluded tokens get minus infinity.

    At least one token remains, or two with beams: a beam search needs a token other than [SEP].
    """
    min_tokens = 1 if options.num_beams == 1 else 2
    if options.temperature != 1.0:
        scores = scores / options.temperature
    if options.top_k:
        threshold = scores.topk(min(max(options.top_k, min_tokens), scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < threshold, _IMPOSSIBLE)
    if options.top_p < 1.0:
        scores = scores.masked_fill(scores < _nucleus_threshold(scores, options.top_p, min_tokens), _IMPOSSIBLE)
    return scores


def _nucleus_threshold(scores: Tensor, top_p: float, min_tokens: int) -> Tensor:
    """Return the lowest score (R, 1) among the likeliest tokens that together reach probability `top_p`."""
    total = scores.logsumexp(-1, keepdim=True)
    vocab_size = scores.shape[1]
    for count in (min(256, vocab_size), vocab_size):  # 256 tokens nearly always suffice, and a full sort is slow
        best = scores.topk(count).values
        mass = (best - total).exp().cumsum(-1)
        if count == vocab_size or bool((mass[:, -1] > top_p).all()):
            break
    inside = F.pad(mass[:, :-1], (1, 0)) < top_p  # tokens whose better ones do not reach top_p yet
    return best.gather(1, inside.sum(-1, keepdim=True).clamp_(min=min_tokens) - 1)
