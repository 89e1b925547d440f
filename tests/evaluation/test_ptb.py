"""The tokenizer, compared with recorded tokens of the Java program (`scripts/record_caption_metrics.py tokens`)."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.evaluation.metrics.ptb import PUNCTUATION, remove_punctuation, tokenize, tokenize_lines

RECORDED = Path(__file__).with_name("ptb_tokens.jsonl")


def test_tokens_equal_the_recorded_ones() -> None:
    recorded = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    assert len(recorded) > 3000
    wrong = []
    for (text, expected), tokens in zip(recorded, tokenize_lines(text for text, _ in recorded), strict=True):
        if " ".join(tokens) != expected:
            wrong.append((text, expected, " ".join(tokens)))
    assert wrong == []


def test_a_period_after_an_abbreviation_depends_on_the_next_line() -> None:
    # Examples from COCO's captions: the original tokenizes all lines as one text.
    assert tokenize_lines(["a sign for Main Rd. ", "Two cats"])[0][-2:] == ["rd.", "."]
    assert tokenize_lines(["a sign for Main Rd.", "two cats"])[0][-2:] == ["main", "rd."]
    assert tokenize_lines(["a sign that reads K. ", "A cat"])[0][-2:] == ["k", "."]
    assert tokenize("a sign that reads K.")[-1] == "k."


def test_brackets_count_as_words_and_other_punctuation_is_removed() -> None:
    tokens = remove_punctuation(tokenize('"Two (cats)", he said - and left...'))
    assert " ".join(tokens) == "two -lrb- cats -rrb- he said and left"
    assert "-LRB-" in PUNCTUATION  # in capitals, as in the original; tokens are in lower case


def test_a_mixed_fraction_is_one_token() -> None:
    assert tokenize("22 3/4 St.") == ["22\u00a03/4", "st."]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=40), max_size=4))
def test_every_text_has_a_list_of_tokens(texts: list[str]) -> None:
    lists = tokenize_lines(texts)
    assert len(lists) == len(texts)
    for tokens in lists:
        assert all(tokens), "no token is empty"
        assert not any(space in token for token in tokens for space in " \n\t\r")
        assert all(token == token.lower() for token in tokens)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["two", "dogs", "run", "on", "the", "a", "ball", ",", "."]), max_size=8))
def test_plain_words_do_not_depend_on_their_neighbors(words: list[str]) -> None:
    text = " ".join(words)
    assert tokenize_lines(["A cat.", text, "The dog."])[1] == tokenize(text)
