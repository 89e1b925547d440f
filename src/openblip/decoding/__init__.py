"""Decoding and answer ranking: score bookkeeping over a small protocol that engines implement."""

from __future__ import annotations

from openblip.decoding.boxes import decode_boxes
from openblip.decoding.options import Decoding, Hypothesis, ScoreRule
from openblip.decoding.protocol import Session, SessionFactory
from openblip.decoding.rank import PackedDecoder, rank_answers
from openblip.decoding.search import generate, generate_grouped, stack_hypotheses

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
