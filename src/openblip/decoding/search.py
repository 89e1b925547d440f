"""Decoding over a session: one entry point for all engines and strategies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.decoding.beam import beam_search
from openblip.decoding.draws import Draws
from openblip.decoding.options import Decoding, Hypothesis
from openblip.decoding.protocol import Monitor, Session, SessionFactory
from openblip.decoding.single import decode_single
from openblip.errors import InputError


@torch.inference_mode()
def generate(
    session: Session,
    prompts: Tensor,
    options: Decoding,
    seed: int | Sequence[int] | None = None,
    monitor: Monitor | None = None,
) -> list[list[Hypothesis]]:
    """Continue prompts of equal length.

    The result of an item does not depend on the other items, except for samples without a seed.

    Args:
        session: A new session with one row per item and room for `options.capacity(P)` tokens.
        prompts: Prompts (I, P), one per item.
        options: How to decode.
        seed: Seed for sampling, or one seed per item (without beams); `None` uses torch's global generator.
        monitor: Takes part in each step; it replaces penalties, bans and filters of the options.

    Returns:
        `options.n` hypotheses per item, the best first. A beam search returns fewer if its bans allow fewer texts.

    Raises:
        InputError: The prompts are empty or not a table, there is a seed without sampling, or the seeds do not fit.
    """
    if prompts.ndim != 2 or prompts.shape[1] == 0:
        raise InputError(f"prompts must have shape (items, tokens) with at least one token, got {tuple(prompts.shape)}")
    if seed is not None and not options.do_sample:
        raise InputError(f"seed needs do_sample=True, got seed={seed}")
    if seed is not None:
        _check_seed(seed, len(prompts), options)
    if len(prompts) == 0:
        return []
    draws = Draws(options, seed) if options.do_sample else None
    if options.num_beams == 1:
        return decode_single(session, prompts, options, draws, monitor)
    return beam_search(session, prompts, options, draws, monitor)


def generate_grouped(
    make_session: SessionFactory,
    prompts: Sequence[Sequence[int]],
    options: Decoding,
    seed: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> list[list[Hypothesis]]:
    """Continue prompts of any length. Items whose prompts have equal length are decoded together.

    Args:
        make_session: Makes the session of some items, given by index.
        prompts: Token ids of the prompts, one prompt per item.
        options: How to decode.
        seed: Seed for sampling, or one seed per item (without beams); `None` uses torch's global generator.
        device: Device of the prompts.

    Returns:
        Hypotheses per item, in the order of `prompts`; see [`generate`][openblip.decoding.search.generate].

    Raises:
        InputError: A prompt is empty, or there is a seed without sampling.
    """
    groups: dict[int, list[int]] = {}
    for item, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(item)
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    for items in groups.values():
        table = torch.tensor([list(prompts[item]) for item in items], dtype=torch.long, device=device)
        group_seed = seed if seed is None or isinstance(seed, int) else [seed[item] for item in items]
        hypotheses = generate(make_session(items), table, options, group_seed)
        for item, item_hypotheses in zip(items, hypotheses, strict=True):
            results[item] = item_hypotheses
    return results


def stack_hypotheses(prompts: Tensor, results: Sequence[Sequence[Hypothesis]], pad_id: int) -> Tensor:
    """Return prompts and their continuations as one table.

    Args:
        prompts: Prompts (I, P).
        results: n hypotheses per item.
        pad_id: Token id for padding on the right.

    Returns:
        Token ids (I * n, T), item by item.
    """
    longest = max((len(hypothesis.ids) for hypotheses in results for hypothesis in hypotheses), default=0)
    rows: list[list[int]] = []
    for prompt, hypotheses in zip(prompts.tolist(), results, strict=True):
        rows += [prompt + h.ids + [pad_id] * (longest - len(h.ids)) for h in hypotheses]
    return torch.tensor(rows, dtype=torch.long, device=prompts.device)


def _check_seed(seed: int | Sequence[int], items: int, options: Decoding) -> None:
    """Raise `InputError` unless the seed is an integer, or a list of one integer per item and there are no beams."""
    if isinstance(seed, int):
        return
    if isinstance(seed, str) or not isinstance(seed, Sequence) or not all(isinstance(number, int) for number in seed):
        raise InputError(f"seed must be an integer, or one integer per item, got {seed!r}")
    if len(seed) != items:
        raise InputError(f"seed must have one integer per item ({items}), got {len(seed)}")
    if options.num_beams > 1:
        raise InputError(f"a seed per item needs num_beams=1, got {options.num_beams}")
