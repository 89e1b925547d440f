"""Greedy decoding and sampling, in which rows are independent of each other.

Shapes: I items, L items that still run, N rows per item, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.decoding.draws import Draws
from openblip.decoding.logits import Processors, filter_for_sampling
from openblip.decoding.options import Decoding, Hypothesis
from openblip.decoding.protocol import Monitor, Session
from openblip.io import limits


def decode_single(
    session: Session, prompts: Tensor, options: Decoding, draws: Draws | None, monitor: Monitor | None = None
) -> list[list[Hypothesis]]:
    """Decode without beams.

    Args:
        session: A session with one row per item.
        prompts: Prompts (I, P).
        options: Options; `options.n` rows are sampled per item.
        draws: Random draws; `None` takes the likeliest token in each step.
        monitor: Takes part in each step; it replaces penalties, bans and filters of the options.

    Returns:
        `options.n` hypotheses per item.
    """
    (items, prompt_length), rows, device = prompts.shape, options.n, prompts.device
    process = Processors(options)
    tokens = torch.full((items, rows, prompt_length + options.max_new_tokens), options.pad_id, device=device)
    tokens[:, :, :prompt_length] = prompts[:, None]
    logprob = torch.zeros(items, rows, device=device)
    ended = torch.zeros(items, rows, dtype=torch.bool, device=device)
    live = torch.arange(items, device=device)  # items in the session
    logits = session.step(prompts)  # (I, V)
    if rows > 1:
        session.widen(rows)
        logits = logits.repeat_interleave(rows, 0)
    for new in range(options.max_new_tokens):
        limits.check()
        end = prompt_length + new
        history = tokens[live, :, :end].flatten(0, 1)
        if monitor is not None:
            scores = monitor.process(logits, logits, history)
        else:
            scores = process(logits, history, new)
            scores = scores if draws is None else filter_for_sampling(scores, options)
        chosen = scores.argmax(-1) if draws is None else draws.sample_tokens(scores, new, live)
        chosen_logprob = logits.gather(1, chosen[:, None]).squeeze(1) - logits.logsumexp(1)
        # Rows that ended earlier get padding, which adds nothing.
        idle = ended[live]  # (L, N)
        chosen = chosen.view(-1, rows).masked_fill(idle, options.pad_id)
        tokens[live, :, end] = chosen
        logprob[live] += chosen_logprob.view(-1, rows).masked_fill(idle, 0.0)
        ended[live] |= ~idle & (chosen == options.eos_id)
        if monitor is not None:
            ended |= monitor.find_ends(tokens[:, :, : end + 1].flatten(0, 1)).view_as(ended)
        if new + 1 == options.max_new_tokens:
            break
        done = ended[live].all(1).tolist()
        if all(done):
            break
        # Unseeded draws come from one stream for all rows, so dropping a row would change the draws of the others.
        if monitor is None and should_drop(done) and (draws is None or draws.seeded):
            running = torch.tensor([i for i, item_done in enumerate(done) if not item_done], device=device)
            session.keep(running)
            live, chosen = live[running], chosen[running]
        logits = session.step(chosen.reshape(-1, 1))
    return [
        [Hypothesis.from_row(*row, options.eos_id) for row in zip(item_tokens, item_logprobs, strict=True)]
        for item_tokens, item_logprobs in zip(
            tokens[:, :, prompt_length : end + 1].tolist(), logprob.tolist(), strict=True
        )
    ]


def should_drop(done: list[bool]) -> bool:
    """Return whether enough items are done that dropping them is worth copying the caches of the others."""
    return 4 * sum(done) >= len(done)
