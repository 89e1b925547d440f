"""Words that are forbidden or required, against every text that a toy vocabulary can spell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openblip.decoding import Decoding, Hypothesis, generate
from openblip.decoding.words import ForbiddenWords, RequiredWords, contains_phrase, split_words, trim_function_words

PIECES = ("[PAD]", "[SEP]", "[DEC]", "a", "cat", "##s", "c", "##at", "dog", "##c", "the")
PAD, SEP, DEC = 0, 1, 2


class Grammar:
    """A session whose logits depend on the tokens so far alone, and are known in advance."""

    def __init__(self, seed: int, items: int = 1) -> None:
        self.seed = seed
        self.rows: list[list[int]] = [[] for _ in range(items)]
        self.width = 1

    def logits(self, tokens: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, *tokens)) % (2**31))
        scores = 2 * torch.randn(len(PIECES), generator=generator)
        scores[[PAD, DEC]] = -30.0
        return scores

    def step(self, ids: Tensor) -> Tensor:
        self.rows = [row + new for row, new in zip(self.rows, ids.tolist(), strict=True)]
        return torch.stack([self.logits(row) for row in self.rows])

    def widen(self, width: int) -> None:
        self.rows, self.width = [list(row) for row in self.rows for _ in range(width)], width

    def reorder(self, rows: Tensor) -> None:
        self.rows = [list(self.rows[row]) for row in rows.tolist()]

    def keep(self, items: Tensor) -> None:
        self.rows = [self.rows[i * self.width + w] for i in items.tolist() for w in range(self.width)]


def every_text(seed: int, most: int) -> list[tuple[float, list[int]]]:
    """All sequences up to ``most`` tokens with their scores by the rule "generated", the best first."""
    grammar, actual = Grammar(seed), []
    usable = [i for i in range(len(PIECES)) if i not in (PAD, DEC, SEP)]

    def logprob(tokens: Sequence[int]) -> float:
        total, history = 0.0, [DEC]
        for token in tokens:
            total += float(grammar.logits(history).log_softmax(-1)[token])
            history.append(token)
        return total

    for size in range(most + 1):
        for tokens in itertools.product(usable, repeat=size):
            full = [*tokens, SEP] if size < most else list(tokens)
            actual.append((logprob(full) / len(full), full))
    return sorted(actual, reverse=True)


def search(seed: int, beams: int = 3, most: int = 3, **options: object) -> list[Hypothesis]:
    decoding = Decoding(
        num_beams=beams, n=beams if beams > 1 else 1, max_new_tokens=most, min_new_tokens=0, score_rule="generated",
        eos_id=SEP, pad_id=PAD, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    (actual,) = generate(Grammar(seed), torch.tensor([[DEC]]), decoding)
    return actual


def test_words_of_pieces() -> None:
    assert split_words(PIECES, [DEC, 6, 7, 3, 4, 5, SEP]) == ["[DEC]", "cat", "a", "cats", "[SEP]"]
    assert split_words(PIECES, [7, 99, 5]) == ["at", "", "s"], "a leading mark, and an id that has no piece"
    assert contains_phrase(["a", "cat"], ("cat",))
    assert not contains_phrase(["a", "cats"], ("cat",))


@given(st.lists(st.integers(3, 10), max_size=5))
@settings(max_examples=100, deadline=None)
def test_completing_tokens_are_exactly_those_that_make_the_phrase(tokens: list[int]) -> None:
    forbidden = ForbiddenWords(PIECES, (("cat",), ("the", "dog")))
    history = [DEC, *tokens]
    barred = set(forbidden.completing_ids(history, len(tokens)))
    for token in range(3, len(PIECES)):
        words = split_words(PIECES, [*tokens, token])
        completes = words[-1:] == ["cat"] or words[-2:] == ["the", "dog"]
        assert completes == (token in barred), PIECES[token]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("seed", range(8))
def test_a_forbidden_word_is_never_said_in_any_spelling(seed: int, beams: int) -> None:
    forbidden = ForbiddenWords(PIECES, (("cat",), ("a",)))
    for actual in search(seed, beams, most=4, forbidden_words=forbidden):
        words = split_words(PIECES, actual.ids)
        assert "cat" not in words
        assert "a" not in words


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_search_finds_the_best_text_without_the_word(seed: int) -> None:
    best = next(text for _, text in every_text(seed, 3) if "cat" not in split_words(PIECES, text))
    actual = search(seed, beams=200, forbidden_words=ForbiddenWords(PIECES, (("cat",),)))
    assert actual[0].ids == best, "longer words that begin with it stay possible"


def required(*alternatives: str) -> RequiredWords:
    spellings = {"cat": (6, 7), "dog": (8,), "the": (10,), "cats": (4, 5)}
    return RequiredWords(PIECES, (tuple(((word,), spellings[word]) for word in alternatives),))


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_search_finds_the_best_text_with_the_word(seed: int) -> None:
    texts = [text for _, text in every_text(seed, 3) if set(split_words(PIECES, text)) & {"cats", "the"}]
    actual = search(seed, beams=400, required_words=required("cats", "the"))
    met = [item for item in actual if required("cats", "the").are_met(split_words(PIECES, item.ids))]
    assert met[0].ids == texts[0]


@pytest.mark.parametrize("beams", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_few_beams_still_say_the_word(seed: int, beams: int) -> None:
    both = RequiredWords(PIECES, (*required("cat").clauses, *required("the").clauses))
    for expected in (required("cat"), required("dog", "the"), both):
        actual = search(seed, beams, most=6, required_words=expected)
        ended = [item for item in actual if item.finished]
        assert all(expected.are_met(split_words(PIECES, item.ids)) for item in ended), "no text ends before"
        assert any(expected.are_met(split_words(PIECES, item.ids)) for item in actual)


def test_without_requirements_nothing_changes() -> None:
    for seed in range(3):
        plain, helped = search(seed), search(seed, required_words=RequiredWords(PIECES, ()))
        assert [item.ids for item in plain] == [item.ids for item in helped]


def test_what_a_sentence_does_not_end_with_is_taken_off() -> None:
    assert trim_function_words(PIECES, [8, 3, 10, SEP], SEP) == [8]
    assert trim_function_words(PIECES, [3, 4, 5], SEP) == [3, 4, 5]
    assert trim_function_words(PIECES, [3, 10], SEP) == [3, 10], "something stays"
