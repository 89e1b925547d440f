"""Decoding and answer ranking: score bookkeeping over a small protocol that engines implement.

Names are imported when first used: the options of decoding need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.decoding.boxes import decode_boxes as decode_boxes
    from openblip.decoding.options import Decoding as Decoding
    from openblip.decoding.options import Hypothesis as Hypothesis
    from openblip.decoding.options import ScoreRule as ScoreRule
    from openblip.decoding.protocol import Session as Session
    from openblip.decoding.protocol import SessionFactory as SessionFactory
    from openblip.decoding.rank import PackedDecoder as PackedDecoder
    from openblip.decoding.rank import rank_answers as rank_answers
    from openblip.decoding.search import generate as generate
    from openblip.decoding.search import generate_grouped as generate_grouped
    from openblip.decoding.search import stack_hypotheses as stack_hypotheses

_HOMES = {
    "decode_boxes": "boxes",
    "Decoding": "options",
    "Hypothesis": "options",
    "ScoreRule": "options",
    "Session": "protocol",
    "SessionFactory": "protocol",
    "PackedDecoder": "rank",
    "rank_answers": "rank",
    "generate": "search",
    "generate_grouped": "search",
    "stack_hypotheses": "search",
}

__all__ = [
    "Decoding",
    "Hypothesis",
    "PackedDecoder",
    "ScoreRule",
    "Session",
    "SessionFactory",
    "decode_boxes",
    "generate",
    "generate_grouped",
    "rank_answers",
    "stack_hypotheses",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
