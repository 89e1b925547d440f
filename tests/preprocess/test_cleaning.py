"""Cleaning of captions and questions equals what the original did, on its recorded outputs and by its definition."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from openblip.preprocess.text import clean_caption, clean_question


def test_recorded_pairs(golden: Path) -> None:
    pairs = json.loads((golden / "text.json").read_text())["pairs"]
    assert len(pairs) > 50
    for pair in pairs:
        for limit in (50, 30, 5):
            assert clean_caption(pair["input"], limit) == pair[f"pre_caption_{limit}"], pair["input"]
        for limit in (50, 5):
            assert clean_question(pair["input"], limit) == pair[f"pre_question_{limit}"], pair["input"]


def test_the_limit_is_fifty_words() -> None:
    words = [f"w{i}" for i in range(60)]
    assert clean_caption(" ".join(words)) == clean_question(" ".join(words)) == " ".join(words[:50])


TEXTS = st.text(st.one_of(st.sampled_from(" \n\t.!\"()*#:;~,?'-/aAé"), st.characters()), max_size=60)


@given(TEXTS, st.integers(1, 8))
def test_captions_by_definition(text: str, limit: int) -> None:
    """Written here as the reference describes it, step by step."""
    expected = re.sub(r"[.!\"()*#:;~]", " ", text.lower())
    expected = re.sub(r"\s{2,}", " ", expected)
    while expected.endswith("\n"):
        expected = expected[:-1]
    expected = re.sub(r"^ +| +\Z", "", expected)
    words = re.split(" ", expected)
    assert clean_caption(text, limit) == " ".join(words[:limit])


@given(TEXTS, st.integers(1, 8))
def test_questions_by_definition(text: str, limit: int) -> None:
    expected = re.sub(r" +\Z", "", re.sub(r"[.!\"()*#:;~]", "", text.lower()))
    assert clean_question(text, limit) == " ".join(re.split(" ", expected)[:limit])
