"""The tokeniser against what the Java program said (recorded by ``scripts/record_caption_metrics.py tokens``)."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.evaluation.metrics.ptb import PUNCTUATION, tokenize, tokenize_lines, words

RECORDED = Path(__file__).with_name("ptb_tokens.jsonl")


def test_tokens_are_the_original_s() -> None:
    recorded = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    assert len(recorded) > 3000
    found = tokenize_lines(text for text, _ in recorded)
    wrong = [
        (text, wanted, " ".join(tokens))
        for (text, wanted), tokens in zip(recorded, found, strict=True)
        if " ".join(tokens) != wanted
    ]
    assert wrong == []


def test_a_stop_after_an_abbreviation_is_read_with_the_next_line() -> None:
    # Seen in COCO's captions: the original reads all lines as one text.
    assert tokenize_lines(["a sign for Main Rd. ", "Two cats"])[0][-2:] == ["rd.", "."]
    assert tokenize_lines(["a sign for Main Rd.", "two cats"])[0][-2:] == ["main", "rd."]
    assert tokenize_lines(["a sign that reads K. ", "A cat"])[0][-2:] == ["k", "."]
    assert tokenize("a sign that reads K.")[-1] == "k."


def test_brackets_stay_words_and_other_punctuation_goes() -> None:
    found = words(tokenize('"Two (cats)", he said - and left...'))
    assert " ".join(found) == "two -lrb- cats -rrb- he said and left"
    assert "-LRB-" in PUNCTUATION  # as the original writes it, which never occurs


def test_a_mixed_fraction_is_one_token() -> None:
    assert tokenize("22 3/4 St.") == ["22\u00a03/4", "st."]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_text_has_its_own_tokens(texts: list[str]) -> None:
    found = tokenize_lines(texts)
    assert len(found) == len(texts)
    for tokens in found:
        assert all(tokens), "no token is empty"
        assert not any(space in token for token in tokens for space in " \n\t\r")
        assert all(token == token.lower() for token in tokens)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["two", "dogs", "run", "on", "the", "a", "ball", ",", "."]), max_size=8))
def test_plain_words_do_not_depend_on_their_neighbours(parts: list[str]) -> None:
    text = " ".join(parts)
    assert tokenize_lines(["A cat.", text, "The dog."])[1] == tokenize(text)
