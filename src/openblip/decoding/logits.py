"""From logits to the scores that tokens are chosen by: penalties and bans, then what shapes a draw.

Shapes: R rows, V vocabulary, L tokens so far (prompt included). Nothing is changed in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.decoding.options import Decoding
from openblip.decoding.words import Forbidden
from openblip.errors import InputError

_NEVER = float("-inf")


class Processors:
    """The penalties and bans of one decoding run."""

    def __init__(self, options: Decoding) -> None:
        self.options = options
        self._banned: Tensor | None = None  # (V,), made when the vocabulary is first seen

    def __call__(self, scores: Tensor, history: Tensor, new: int) -> Tensor:
        """Adjust ``scores`` (R, V) for the token after ``history`` (R, L), of which ``new`` tokens were decoded."""
        options = self.options
        if options.repetition_penalty != 1.0:
            scores = penalise_repetition(scores, history, options.repetition_penalty)
        if options.no_repeat_ngram:
            scores = ban_ngrams(scores, history, options.no_repeat_ngram)
        if new < options.min_new_tokens:
            scores = scores.clone()
            scores[:, options.eos_id] = _NEVER
        if options.forbid_ids or options.allowed_ids is not None:
            if self._banned is None:
                self._banned = _banned(options, scores)
            scores = scores.masked_fill(self._banned, _NEVER)
        if options.forbidden is not None:
            scores = ban_words(scores, history, new, options.forbidden, self._whole_words_end(new))
        return scores

    def _whole_words_end(self, new: int) -> bool:
        """Whether a word that is whole now can no longer become a longer one that another beam would be better than."""
        options = self.options
        return options.beams == 1 or new + 1 == options.max_new_tokens


def _banned(options: Decoding, scores: Tensor) -> Tensor:
    vocab = scores.shape[1]
    if (largest := max((*options.forbid_ids, *(options.allowed_ids or ())))) >= vocab:
        raise InputError(f"token id {largest} is outside the vocabulary of {vocab}")
    banned = torch.full((vocab,), options.allowed_ids is not None, dtype=torch.bool)
    banned[list(options.allowed_ids or ())] = False
    banned[list(options.forbid_ids)] = True
    return banned.to(scores.device)


def penalise_repetition(scores: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Divide the positive scores of tokens in ``history`` by ``penalty`` and multiply the negative ones, once each."""
    seen = scores.gather(1, history)
    return scores.scatter(1, history, torch.where(seen < 0, seen * penalty, seen / penalty))


def ban_ngrams(scores: Tensor, history: Tensor, size: int) -> Tensor:
    """Forbid every token that would complete an n-gram of ``size`` that ``history`` already holds."""
    starts = history.shape[1] - size + 1  # complete n-grams so far
    if starts < 1:
        return scores
    repeats = torch.ones_like(history[:, :starts], dtype=torch.bool)  # n-grams that begin as the last n - 1 tokens do
    for offset in range(size - 1):
        repeats &= history[:, offset : offset + starts] == history[:, starts + offset, None]
    vocab = scores.shape[1]
    banned = torch.zeros(len(scores), vocab + 1, dtype=torch.bool, device=scores.device)
    banned.scatter_(1, history[:, size - 1 :].where(repeats, vocab), True)  # column V takes those that do not repeat
    return scores.masked_fill(banned[:, :vocab], _NEVER)


def ban_words(scores: Tensor, history: Tensor, new: int, forbidden: Forbidden, final: bool) -> Tensor:
    """Forbid what would leave a forbidden word whole: anything but a continuation of one that was just said.

    With ``final`` already the token that would complete one.
    """
    scores = scores.clone()
    final = final or not forbidden.continuing
    for row, ids in enumerate(history.tolist()):
        if new and forbidden.said(ids, new):
            rest = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
            rest[list(forbidden.continuing)] = False
            scores[row] = scores[row].masked_fill(rest, _NEVER)
        if final and (completing := forbidden.completing(ids, new)):
            scores[row, completing] = _NEVER
    return scores


def shape(scores: Tensor, options: Decoding) -> Tensor:
    """Apply temperature, top-k and top-p to ``scores`` (R, V); what falls away gets minus infinity.

    A search that samples must keep a token besides [SEP], so with beams two always stay.
    """
    stay = 1 if options.beams == 1 else 2
    if options.temperature != 1.0:
        scores = scores / options.temperature
    if options.top_k:
        least = scores.topk(min(max(options.top_k, stay), scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, _NEVER)
    if options.top_p < 1.0:
        scores = scores.masked_fill(scores < _nucleus(scores, options.top_p, stay), _NEVER)
    return scores


def _nucleus(scores: Tensor, top_p: float, stay: int) -> Tensor:
    """The least score (R, 1) among the likeliest tokens that together have probability ``top_p``, at least ``stay``."""
    total = scores.logsumexp(-1, keepdim=True)
    vocab = scores.shape[1]
    for count in (min(256, vocab), vocab):  # a few tokens nearly always suffice, and sorting all of them is slow
        best = scores.topk(count).values
        mass = (best - total).exp().cumsum(-1)
        if count == vocab or bool((mass[:, -1] > top_p).all()):
            break
    inside = F.pad(mass[:, :-1], (1, 0)) < top_p  # whether those before a token do not suffice yet
    return best.gather(1, inside.sum(-1, keepdim=True).clamp_(min=stay) - 1)
