"""Decoding equals ``generate`` of transformers 5.23, token for token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.decoding.decoding_toys import DEC, EOS, PAD, options, theirs_generate, twins

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = {0: 3.0, 1: 6.0, 3: 4.0}  # model seed -> how much it favours [SEP]
PROMPTS = ([DEC], [DEC, 7, 9, 7])


def prompts_of(prompt: list[int]) -> Tensor:
    return torch.tensor([prompt] * 3)


def repadded(table: Tensor, start: int) -> Tensor:
    """With the padding id 0, that beam search pads with [SEP]; this puts the padding back."""
    table = table.clone()
    for row in table:
        ends = (row[start:] == EOS).nonzero().flatten().tolist()
        if ends:
            row[start + ends[0] + 1 :] = PAD
    return table


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beams", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"min_new_tokens": 4}, {"min_new_tokens": 4}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"suppress_tokens": [4, 26, 10]}, {"forbid_ids": (4, 26, 10)}),
        (
            {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "min_new_tokens": 2},
            {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "min_new_tokens": 2},
        ),
    ],
    ids=["plain", "min", "repetition", "ngram", "suppress", "all"],
)
def test_greedy_and_beams(seed: int, beams: int, theirs: dict[str, object], ours: dict[str, object]) -> None:
    toy, model = twins(seed, eos_bias=SEEDS[seed])
    for prompt in PROMPTS:
        prompts = prompts_of(prompt)
        chosen = options(num_beams=beams, max_new_tokens=9, score_rule="generated", **{"min_new_tokens": 0, **ours})
        expected = theirs_generate(model, toy, prompts, num_beams=beams, max_new_tokens=9, **theirs)
        assert torch.equal(toy.table(prompts, chosen), repadded(expected, len(prompt)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("power", [1.0, 0.0, 2.0, -1.0])
def test_stopping_length_penalty_and_n_best(seed: int, early: bool | str, power: float) -> None:
    toy, model = twins(seed, eos_bias=SEEDS[seed])
    for prompt in PROMPTS:
        prompts = prompts_of(prompt)
        chosen = options(
            num_beams=4,
            n=3,
            max_new_tokens=9,
            min_new_tokens=0,
            score_rule="generated",
            early_stopping=early,
            length_penalty=power,
        )
        expected = theirs_generate(
            model,
            toy,
            prompts,
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=9,
            early_stopping=early,
            length_penalty=power,
        )
        assert torch.equal(toy.table(prompts, chosen), repadded(expected, len(prompt)))


def test_scores() -> None:
    toy, model = twins(1, eos_bias=4.0)
    prompts = prompts_of([DEC, 7])
    overrides = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9}
    expected = theirs_generate(model, toy, prompts, **overrides, output_scores=True, return_dict_in_generate=True)
    chosen = options(num_beams=3, n=3, max_new_tokens=9, min_new_tokens=0, score_rule="generated")
    actual = torch.tensor([best.score for item in toy.generate(prompts, chosen) for best in item])
    torch.testing.assert_close(actual, expected.sequences_scores, atol=1e-5, rtol=1e-5)


SAMPLING: list[dict[str, object]] = [
    {"top_k": 0, "top_p": 1.0},
    {"top_k": 12, "top_p": 1.0},
    {"top_k": 0, "top_p": 0.8},
    {"top_k": 12, "top_p": 0.9, "temperature": 0.7, "repetition_penalty": 1.3},
    {"top_k": 12, "top_p": 0.9, "temperature": 1.6, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("overrides", SAMPLING, ids=str)
def test_global_seed_gives_the_same_samples(seed: int, overrides: dict[str, object]) -> None:
    compare_samples(seed, 1, overrides)


# A search draws 2 * beams candidates. Where bans and cuts leave fewer, transformers goes on with tokens that were cut;
# ours has fewer beams instead, so the same samples can be asked for only where enough candidates remain.
BEAM_SAMPLING: list[dict[str, object]] = [
    {"top_k": 0, "top_p": 1.0},
    {"top_k": 12, "top_p": 1.0},
    {"top_k": 0, "top_p": 0.999, "temperature": 2.0},
    {"top_k": 15, "top_p": 0.999, "temperature": 1.6, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beams", [2, 3])
@pytest.mark.parametrize("overrides", BEAM_SAMPLING, ids=str)
def test_global_seed_gives_the_same_sampled_beams(seed: int, beams: int, overrides: dict[str, object]) -> None:
    compare_samples(seed, beams, overrides)


def compare_samples(seed: int, beams: int, overrides: dict[str, object]) -> None:
    toy, model = twins(seed, eos_bias=SEEDS[seed])
    ours = {"min_new_tokens": 0, **overrides}
    for prompt in PROMPTS:
        prompts = prompts_of(prompt)
        chosen = options(num_beams=beams, n=2, do_sample=True, max_new_tokens=9, score_rule="generated", **ours)
        torch.manual_seed(seed)
        expected = theirs_generate(
            model, toy, prompts, do_sample=True, num_beams=beams, num_return_sequences=2, max_new_tokens=9, **overrides
        )
        torch.manual_seed(seed)
        assert torch.equal(toy.table(prompts, chosen), repadded(expected, len(prompt)))
