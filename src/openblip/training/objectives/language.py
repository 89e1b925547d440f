"""The LM loss (paper section 3.2): next-token cross-entropy with label smoothing, padding ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.training.objectives.gather import Gather, mean_count

IGNORED = -100
_SINGLE_PROCESS = Gather()


def with_first_token(ids: Tensor, token_id: int) -> Tensor:
    """Return a copy of ids (B, T) with another first token: [ENC] to judge a text, [DEC] to generate it."""
    return torch.cat([torch.full_like(ids[:, :1], token_id), ids[:, 1:]], dim=1)


def lm_targets(ids: Tensor, mask: Tensor, prompt_length: int = 0) -> Tensor:
    """Return labels (B, T) of ids (B, T); padding and the first `prompt_length` positions are ignored."""
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :prompt_length] = IGNORED
    return labels


def lm_loss(
    states: Tensor,
    labels: Tensor,
    to_logits: Callable[[Tensor], Tensor],
    smoothing: float = 0.1,
    reduction: Literal["mean", "none"] = "mean",
    gather: Gather = _SINGLE_PROCESS,
) -> Tensor:
    """Return the loss of decoder states at each position against the label at the next one.

    Args:
        states: Decoder states (B, T, D).
        labels: Token ids to predict (B, T).
        to_logits: The language head; it runs only at positions with a label.
        smoothing: Label smoothing.
        reduction: "mean" averages over the scored tokens and is 0 if there are none; "none" sums over the tokens of
            each text (B,), because VQA weights its answers.
        gather: "mean" divides by the mean number of scored tokens of all processes that it gathers from.
    """
    targets = labels[:, 1:]
    scored = targets != IGNORED
    logits = to_logits(states[:, :-1][scored]).float()  # (tokens, V)
    token = F.cross_entropy(logits, targets[scored], reduction="none", label_smoothing=smoothing)
    if reduction == "mean":
        return token.sum() / mean_count(scored.sum(), gather)
    return token.new_zeros(len(labels)).index_add(0, scored.nonzero()[:, 0], token)
