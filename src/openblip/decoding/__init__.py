"""Decoding and answer ranking: score bookkeeping over a small protocol that an engine implements."""

from __future__ import annotations

from openblip.decoding.boxes import decode_boxes
from openblip.decoding.options import Decoding, Hypothesis, ScoreRule
from openblip.decoding.protocol import Session
from openblip.decoding.rank import rank_answers
from openblip.decoding.search import generate, generate_grouped, stack

__all__ = [
    "Decoding",
    "Hypothesis",
    "ScoreRule",
    "Session",
    "decode_boxes",
    "generate",
    "generate_grouped",
    "rank_answers",
    "stack",
]
