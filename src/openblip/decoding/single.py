"""Greedy decoding and sampling: rows that know nothing of each other.

Shapes: I items, L of them still running, N rows per item, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.decoding.draws import Draws
from openblip.decoding.logits import Processors, shape
from openblip.decoding.options import Decoding, Hypothesis
from openblip.decoding.protocol import Session


def decode_single(session: Session, prompts: Tensor, options: Decoding, draws: Draws | None) -> list[list[Hypothesis]]:
    """Take the likeliest token of every row at every step or, with ``draws``, a drawn one."""
    (items, start), rows, device = prompts.shape, options.n, prompts.device
    process = Processors(options)
    tokens = torch.full((items, rows, start + options.max_new_tokens), options.pad_id, device=device)
    tokens[:, :, :start] = prompts[:, None]
    logprob = torch.zeros(items, rows, device=device)
    ended = torch.zeros(items, rows, dtype=torch.bool, device=device)
    live = torch.arange(items, device=device)
    logits = session.step(prompts)  # (I, V)
    if rows > 1:
        session.widen(rows)
        logits = logits.repeat_interleave(rows, 0)
    for new in range(options.max_new_tokens):
        end = start + new
        scores = process(logits, tokens[live, :, :end].flatten(0, 1), new)
        chosen = scores.argmax(-1) if draws is None else draws.tokens(shape(scores, options), new)
        gained = logits.gather(1, chosen[:, None]).squeeze(1) - logits.logsumexp(1)
        idle = ended[live]
        chosen = chosen.view(-1, rows).masked_fill(idle, options.pad_id)
        tokens[live, :, end] = chosen
        logprob[live] += gained.view(-1, rows).masked_fill(idle, 0.0)
        ended[live] |= ~idle & (chosen == options.eos_id)
        if new + 1 == options.max_new_tokens:
            break
        done = ended[live].all(1).tolist()
        if all(done):
            break
        # Unseeded draws come from one stream over all rows, so that a row must not leave it.
        if worth_leaving(done) and (draws is None or draws.seeded):
            stay = torch.tensor([i for i, over in enumerate(done) if not over], device=device)
            session.keep(stay)
            live, chosen = live[stay], chosen[stay]
        logits = session.step(chosen.reshape(-1, 1))
    return _results(tokens[:, :, start:].tolist(), logprob.tolist(), options)


def worth_leaving(done: list[bool]) -> bool:
    """Whether so many items are done that dropping them repays the copy of what the others keep."""
    return 4 * sum(done) >= len(done)


def _results(tokens: list[list[list[int]]], logprobs: list[list[float]], options: Decoding) -> list[list[Hypothesis]]:
    return [
        [_hypothesis(ids, logprob, options) for ids, logprob in zip(rows, totals, strict=True)]
        for rows, totals in zip(tokens, logprobs, strict=True)
    ]


def _hypothesis(ids: list[int], logprob: float, options: Decoding) -> Hypothesis:
    finished = options.eos_id in ids
    if finished:
        ids = ids[: ids.index(options.eos_id) + 1]
    return Hypothesis(ids, logprob, logprob, finished)
