"""Closed-answer ranking equals scoring every answer by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.decoding import rank_answers
from openblip.errors import InputError
from tests.decoding.decoding_toys import DEC, EOS, Toy, twins

pytestmark = pytest.mark.usefixtures("one_thread")


def masked() -> Toy:
    """Items of which some states are padding, as questions have."""
    toy, _ = twins(1, eos_bias=4.0)
    mask = torch.ones(toy.states.shape[:2], dtype=torch.long)
    mask[0, 3:] = 0
    mask[2, 2:] = 0
    return Toy(toy.text, toy.head, toy.states, mask)


def answers(count: int = 60) -> list[list[int]]:
    """Random answers of one to five tokens; many share beginnings, some begin as others end, one comes twice."""
    samples = torch.randint(5, 9, (count, 5)).tolist()
    sizes = torch.randint(1, 6, (count,)).tolist()
    texts = [[DEC, *tokens[:size], EOS] for tokens, size in zip(samples, sizes, strict=True)]
    return [*texts, texts[0], [DEC, EOS]]


def brute(toy: Toy, texts: list[list[int]], smoothing: float = 0.0) -> Tensor:
    """Scores (I, C), one forward pass per item and answer."""
    rows = []
    for item in range(len(toy.states)):
        row = []
        for text in texts:
            logits = toy.logits(text[:-1], item)
            losses = F.cross_entropy(logits, torch.tensor(text[1:]), reduction="sum", label_smoothing=smoothing)
            row.append(-float(losses))
        rows.append(row)
    return torch.tensor(rows)


def rank(toy: Toy, texts: list[list[int]], **overrides: Any) -> Tensor:
    return rank_answers(toy.packed_decoder(), texts, **overrides)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_brute_force(smoothing: float) -> None:
    toy, texts = masked(), answers()
    expected = brute(toy, texts, smoothing)
    for chunk in (1, 20, 100, 4096):
        actual = rank(toy, texts, smoothing=smoothing, chunk_size=chunk)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


def test_log_probabilities_of_a_complete_list_sum_to_one() -> None:
    """All texts that end within two tokens, and all longer ones by their first two."""
    toy = masked()
    words = [token for token in range(40) if token != EOS]
    texts = [[DEC, EOS]] + [[DEC, first, EOS] for first in words] + [[DEC, a, b] for a in words for b in words]
    total = rank(toy, texts).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(3), atol=1e-4, rtol=0)


def test_neither_list_nor_batch_matters() -> None:
    toy, texts = masked(), answers()
    whole = rank(toy, texts)
    torch.testing.assert_close(rank(toy, texts[7:19]), whole[:, 7:19], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rank(toy, texts[::-1]), whole.flip(1), atol=1e-5, rtol=1e-5)
    for item in range(3):
        single = rank_answers(toy.packed_decoder([item]), texts)
        torch.testing.assert_close(single, whole[[item]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_two_steps(smoothing: float) -> None:
    """The shortlist goes by the first token alone; what is on it keeps its score."""
    toy = masked()
    texts = [
        [DEC, first, *rest, EOS] for first, *rest in torch.randperm(36).add(2).view(12, 3).tolist() if first != EOS
    ]
    actual = rank(toy, texts, shortlist=4, smoothing=smoothing)
    full = brute(toy, texts, smoothing)
    for item in range(3):
        first = toy.logits([DEC], item)[-1].softmax(-1)
        best = sorted(range(len(texts)), key=lambda i: -float(first[texts[i][1]]))[:4]
        assert sorted(best) == actual[item].isfinite().nonzero().flatten().tolist()
        torch.testing.assert_close(actual[item, best], full[item, best], atol=1e-4, rtol=1e-5)


def test_a_shortlist_longer_than_the_list_is_the_list() -> None:
    toy, texts = masked(), answers(8)
    assert torch.equal(rank(toy, texts, shortlist=128), rank(toy, texts))


def test_equal_first_tokens_are_shortlisted_in_order() -> None:
    toy = masked()
    texts = [[DEC, 5, token, EOS] for token in range(6, 16)]
    actual = rank(toy, texts, shortlist=3)
    assert actual.isfinite().nonzero()[:, 1].view(3, 3).tolist() == [[0, 1, 2]] * 3


def test_lists_longer_than_the_positions_of_the_model() -> None:
    """A tree of many short texts has more nodes than the model has positions (32)."""
    toy = masked()
    texts = [[DEC, first, second, EOS] for first in range(4, 12) for second in range(4, 12)]
    torch.testing.assert_close(rank(toy, texts, chunk_size=4096), brute(toy, texts), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("texts", "overrides", "message"),
    [
        ([], {}, "must not be empty"),
        ([[DEC]], {}, "at least two tokens"),
        ([[DEC, 5, EOS], [2, 5, EOS]], {}, "same first token"),
        ([[DEC, 5, EOS]], {"shortlist": 0}, "shortlist must be at least 1, got 0"),
        ([[DEC, 5, EOS]], {"smoothing": 1.0}, "smoothing"),
        ([[DEC, 5, EOS]], {"chunk_size": 0}, "chunk_size"),
        ([[DEC, *[5] * 40, EOS]], {}, "at most 32 tokens, got 41"),
    ],
)
def test_bad_requests_raise(texts: list[list[int]], overrides: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank(masked(), texts, **overrides)
