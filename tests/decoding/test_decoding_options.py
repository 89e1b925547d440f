"""Every option changes something or raises; penalties, bans and cuts equal those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation import logits_process as peer

from openblip.decoding import generate
from openblip.decoding.logits import Processors, filter_for_sampling
from openblip.errors import InputError
from tests.decoding.decoding_toys import EOS, TableSession, ids_of, options, tables

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_beams": 0}, "beams"),
        ({"num_beams": 2.5}, "beams"),
        ({"num_beams": True}, "beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 and max_new_tokens=8"),
        ({"n": 0}, "n must be"),
        ({"n": 4, "num_beams": 3}, "n must be at most num_beams=3 .* got 4"),
        ({"n": 2, "num_beams": 1}, "greedy"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram"),
        ({"temperature": 0.0, "do_sample": True, "num_beams": 1}, "temperature"),
        ({"top_p": 0.0, "do_sample": True, "num_beams": 1}, "top_p"),
        ({"top_p": 1.5, "do_sample": True, "num_beams": 1}, "top_p"),
        ({"top_k": -1, "do_sample": True, "num_beams": 1}, "top_k"),
        ({"score_rule": "mean"}, "score_rule"),
        ({"early_stopping": "sometimes"}, "early_stopping"),
        ({"forbid_ids": (-1,)}, "forbid_ids"),
        ({"allowed_ids": ()}, "must contain a token"),
        ({"allowed_ids": (4,), "forbid_ids": (4,)}, "must contain a token"),
        # What would be ignored.
        ({"temperature": 0.7}, "needs do_sample=True"),
        ({"top_p": 0.7}, "needs do_sample=True"),
        ({"top_k": 5}, "needs do_sample=True"),
        ({"num_beams": 1, "length_penalty": 2.0}, "length_penalty needs num_beams"),
        ({"num_beams": 1, "early_stopping": True}, "early_stopping needs num_beams"),
        ({"do_sample": True, "num_beams": 3}, "num_beams must be 1 with do_sample=True"),
        ({"early_stopping": "never"}, "generated"),
    ],
)
def test_bad_options_raise(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(**overrides)


def test_a_seed_needs_sampling() -> None:
    with pytest.raises(InputError, match="seed"):
        generate(TableSession(tables(0)), torch.full((3, 1), 5), options(), seed=1)


def test_ids_outside_the_vocabulary_raise() -> None:
    with pytest.raises(InputError, match="below the vocabulary size 12, got 12"):
        generate(TableSession(tables(0)), torch.full((3, 1), 5), options(forbid_ids=(12,)))


SEARCH: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 8}
DRAW: dict[str, Any] = {"num_beams": 1, "do_sample": True, "max_new_tokens": 8, "n": 4}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (SEARCH, {"num_beams": 1}),
        (SEARCH, {"num_beams": 2}),
        (SEARCH, {"max_new_tokens": 4}),
        (SEARCH, {"min_new_tokens": 6}),
        (SEARCH, {"n": 2}),
        (SEARCH, {"length_penalty": -2.0}),
        (SEARCH, {"repetition_penalty": 2.0}),
        (SEARCH, {"no_repeat_ngram_size": 1}),
        (SEARCH, {"score_rule": "generated"}),
        (SEARCH, {"early_stopping": True}),
        ({**SEARCH, "score_rule": "generated"}, {"early_stopping": "never"}),
        (SEARCH, {"forbid_ids": (6, 7, 8)}),
        (SEARCH, {"allowed_ids": (6, 7, 8)}),
        (SEARCH, {"eos_id": 5}),
        (DRAW, {"top_p": 0.5}),
        (DRAW, {"top_k": 2}),
        (DRAW, {"temperature": 3.0}),
        (DRAW, {"n": 3}),
        (DRAW, {"do_sample": False, "n": 1}),
    ],
    ids=str,
)
def test_every_option_changes_something(base: dict[str, Any], change: dict[str, Any]) -> None:
    logits = tables(2, items=12, eos_bias=1.5)
    prompts = torch.full((12, 2), 5)

    def found(overrides: dict[str, Any]) -> list[list[list[int]]]:
        chosen = options(**overrides)
        return ids_of(generate(TableSession(logits), prompts, chosen, seed=3 if chosen.do_sample else None))

    assert found(base) == found(dict(base))
    assert found(base) != found({**base, **change})


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_penalties_and_bans_equal_the_peer(n: int) -> None:
    scores = 3 * torch.randn(6, 12)
    history = torch.randint(0, 12, (6, 9))
    overrides = options(
        repetition_penalty=1.7,
        no_repeat_ngram_size=n,
        min_new_tokens=5,
        max_new_tokens=9,
        forbid_ids=(2, 7),
        num_beams=2,
    )
    expected = scores
    for processor in (
        peer.RepetitionPenaltyLogitsProcessor(1.7),
        peer.NoRepeatNGramLogitsProcessor(n),
        peer.MinNewTokensLengthLogitsProcessor(5, 5, EOS),
        peer.SuppressTokensLogitsProcessor([2, 7]),
    ):
        expected = processor(history, expected)
    previous = scores.clone()
    assert torch.equal(Processors(overrides)(scores, history, new=4), expected)
    assert torch.equal(scores, previous)
    assert Processors(overrides)(scores, history, new=4)[0, EOS] == float("-inf")
    late = peer.SuppressTokensLogitsProcessor([2, 7])(history, scores)
    free = options(min_new_tokens=5, max_new_tokens=9, forbid_ids=(2, 7))
    assert torch.equal(Processors(free)(scores, history, new=5), late)


def test_allowed_ids_leave_nothing_else() -> None:
    scores = torch.randn(3, 12)
    overrides = options(allowed_ids=(4, 9, 10), forbid_ids=(9,), min_new_tokens=0)
    left = Processors(overrides)(scores, torch.full((3, 1), 5), new=0)
    assert left.isfinite().nonzero()[:, 1].view(3, -1).tolist() == [[4, 10]] * 3
    assert torch.equal(left[:, [4, 10]], scores[:, [4, 10]])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("top_k", [0, 1, 4, 99])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 1.0])
def test_what_is_sampled_from_equals_the_peer(beams: int, top_k: int, top_p: float) -> None:
    scores = 3 * torch.randn(8, 12)
    stay = 1 if beams == 1 else 2
    expected = peer.TemperatureLogitsWarper(0.6)(None, scores)
    if top_k:
        expected = peer.TopKLogitsWarper(top_k, min_tokens_to_keep=stay)(None, expected)
    if top_p < 1:
        expected = peer.TopPLogitsWarper(top_p, min_tokens_to_keep=stay)(None, expected)
    overrides = options(
        num_beams=beams, do_sample=True, top_k=top_k, top_p=top_p, temperature=0.6, score_rule="generated"
    )
    assert torch.equal(filter_for_sampling(scores, overrides), expected)
