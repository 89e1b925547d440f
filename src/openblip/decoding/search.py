"""Decoding over a :class:`~openblip.decoding.protocol.Session`: one entry, whatever the engine and the strategy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.decoding.beam import beam_search
from openblip.decoding.draws import Draws
from openblip.decoding.options import Decoding, Hypothesis
from openblip.decoding.protocol import Session, SessionFactory
from openblip.decoding.single import decode_single
from openblip.errors import InputError


@torch.inference_mode()
def generate(session: Session, prompts: Tensor, options: Decoding, seed: int | None = None) -> list[list[Hypothesis]]:
    """Continue ``prompts`` (I, P), one per item of the fresh ``session``: ``n`` hypotheses per item, the best first.

    The session needs room for ``options.capacity(P)`` tokens. An item's result does not depend on the other items,
    but for unseeded samples. A search gives fewer than ``n`` only where no more sequences exist under its bans.
    Raises :class:`InputError` for a seed without sampling and for prompts that are not a filled table.
    """
    if prompts.ndim != 2 or prompts.shape[1] == 0:
        raise InputError(f"prompts are a table (items, tokens) with at least [DEC] in each row, not {prompts.shape}")
    if seed is not None and not options.sample:
        raise InputError(f"seed={seed} has no effect without sample=True")
    if len(prompts) == 0:
        return []
    draws = Draws(options, seed) if options.sample else None
    if options.beams == 1:
        return decode_single(session, prompts, options, draws)
    return beam_search(session, prompts, options, draws)


def generate_grouped(
    start: SessionFactory,
    prompts: Sequence[Sequence[int]],
    options: Decoding,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> list[list[Hypothesis]]:
    """As :func:`generate`, for prompts of any lengths: items with equally long ones are decoded together.

    ``start(items)`` makes the session of the named items, in that order; results come in the order of ``prompts``.
    """
    groups: dict[int, list[int]] = {}
    for item, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(item)
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    for items in groups.values():
        table = torch.tensor([list(prompts[item]) for item in items], dtype=torch.long, device=device)
        for item, found in zip(items, generate(start(items), table, options, seed), strict=True):
            results[item] = found
    return results


def stack(prompts: Tensor, results: Sequence[Sequence[Hypothesis]], pad_id: int) -> Tensor:
    """Prompts and what was decoded after them as one table (I * n, T), item by item, padded on the right."""
    longest = max((len(found.ids) for item in results for found in item), default=0)
    rows = [
        prompt + found.ids + [pad_id] * (longest - len(found.ids))
        for prompt, item in zip(prompts.tolist(), results, strict=True)
        for found in item
    ]
    return torch.tensor(rows, dtype=torch.long, device=prompts.device)
