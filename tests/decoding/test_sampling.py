"""Seeded samples depend on their item alone, and are drawn with the right probabilities."""

from __future__ import annotations

import pytest
import torch

from openblip.decoding import generate
from openblip.decoding.draws import Draws
from openblip.errors import InputError
from tests.decoding.decoding_toys import EOS, TableSession, ids_of, options, tables, twins

pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = [{"num_beams": 1, "n": 3}, {"num_beams": 3, "n": 3, "score_rule": "generated", "top_p": 1.0}]


@pytest.mark.parametrize("way", WAYS, ids=["rows", "beams"])
def test_a_seeded_sample_depends_on_its_item(way: dict[str, object]) -> None:
    logits = tables(11, items=9, eos_bias=2.0)
    prompts = torch.randint(4, 12, (9, 2))
    chosen = options(do_sample=True, min_new_tokens=4, max_new_tokens=12, **way)
    batched = ids_of(generate(TableSession(logits), prompts, chosen, seed=5))
    order = torch.randperm(9)
    moved = ids_of(generate(TableSession(logits[order]), prompts[order], chosen, seed=5))
    assert moved == [batched[i] for i in order.tolist()]
    single = [ids_of(generate(TableSession(logits[[i]]), prompts[[i]], chosen, seed=5))[0] for i in range(9)]
    assert batched == single
    other = ids_of(generate(TableSession(logits), prompts, chosen, seed=6))
    assert sum(a != b for a, b in zip(batched, other, strict=True)) > 6
    assert sum(len(set(map(tuple, item))) == 3 for item in batched) > 6  # the samples of an item are different draws


def test_items_with_seeds_of_their_own_equal_single_items() -> None:
    logits = tables(11, items=9, eos_bias=2.0)
    prompts = torch.randint(4, 12, (9, 2))
    chosen = options(do_sample=True, num_beams=1, n=3, min_new_tokens=4, max_new_tokens=12)
    seeds = [5, 6, 7, 8, 9, 10, 11, 12, 5]
    batched = ids_of(generate(TableSession(logits), prompts, chosen, seed=seeds))
    single = [
        ids_of(generate(TableSession(logits[[i]]), prompts[[i]], chosen, seed=seed))[0] for i, seed in enumerate(seeds)
    ]
    assert batched == single
    same = ids_of(generate(TableSession(logits), prompts, chosen, seed=5))
    assert [batched[i] == same[i] for i in range(9)] == [True, *[False] * 7, True]


def test_seeds_must_fit_the_items() -> None:
    prompts = torch.full((2, 1), 5)
    chosen = options(do_sample=True, num_beams=1)
    with pytest.raises(InputError, match=r"one integer per item \(2\), got 1"):
        generate(TableSession(tables(0, items=2)), prompts, chosen, seed=[1])
    with pytest.raises(InputError, match="got 'ab'"):
        generate(TableSession(tables(0, items=2)), prompts, chosen, seed="ab")  # type: ignore[arg-type]
    beams = options(do_sample=True, num_beams=2, score_rule="generated")
    with pytest.raises(InputError, match="needs num_beams=1"):
        generate(TableSession(tables(0, items=2)), prompts, beams, seed=[1, 2])


def test_seeded_samples_leave_the_global_generator_alone() -> None:
    chosen = options(num_beams=1, do_sample=True)
    previous = torch.random.get_rng_state()
    generate(TableSession(tables(0)), torch.full((3, 1), 5), chosen, seed=1)
    assert torch.equal(torch.random.get_rng_state(), previous)


def test_unseeded_samples_follow_the_global_generator() -> None:
    def found() -> list[list[list[int]]]:
        return ids_of(generate(TableSession(tables(0)), torch.full((3, 1), 5), options(num_beams=1, do_sample=True)))

    torch.manual_seed(1)
    first, second = found(), found()
    torch.manual_seed(1)
    assert found() == first != second


def test_more_samples_do_not_change_the_first() -> None:
    def found(n: int) -> list[list[int]]:
        chosen = options(num_beams=1, do_sample=True, n=n, top_p=1.0)
        return ids_of(generate(TableSession(tables(0, items=1)), torch.tensor([[5]]), chosen, seed=9))[0]

    assert found(5)[:2] == found(2)


def test_draws_have_the_probabilities_they_should() -> None:
    logits = torch.tensor([1.0, float("-inf"), 2.0, 0.0, -1.0])
    draws = Draws(options(num_beams=1, do_sample=True, n=40_000, max_new_tokens=2), seed=3)
    steps = [draws.sample_tokens(logits.expand(40_000, 5), step) for step in (0, 1)]
    for samples in steps:
        share = torch.bincount(samples, minlength=5) / 40_000
        torch.testing.assert_close(share, logits.softmax(0), atol=0.01, rtol=0)
    agree = float((steps[0] == steps[1]).float().mean())  # the steps are independent
    assert agree == pytest.approx(float(logits.softmax(0).square().sum()), abs=0.01)


def test_candidate_draws_have_the_probabilities_they_should() -> None:
    """Two draws without replacement: the first by the probabilities, the second by those of what remains."""
    scores = torch.tensor([[1.0, 2.0, 0.0, float("-inf")]])
    probs = scores.softmax(1)[0]
    draws = Draws(options(num_beams=2, do_sample=True, score_rule="generated"), seed=3)
    pairs = torch.cat([draws.sample_candidates(scores, 2) for _ in range(8000)])
    for first in range(3):
        for second in range(3):
            share = float((pairs == torch.tensor([first, second])).all(1).float().mean())
            expected = 0.0 if first == second else float(probs[first] * probs[second] / (1 - probs[first]))
            assert share == pytest.approx(expected, abs=0.02)


def test_sampled_beams_hold_nothing_that_was_cut() -> None:
    """Also where fewer candidates remain than a search asks for."""
    logits = tables(1, items=4)
    chosen = options(
        num_beams=4, n=4, do_sample=True, top_k=2, top_p=1.0, score_rule="generated", min_new_tokens=0, max_new_tokens=3
    )
    for seed in range(5):
        for item, hypotheses in enumerate(generate(TableSession(logits), torch.full((4, 1), 5), chosen, seed)):
            assert hypotheses
            for best in hypotheses:
                index = (5 + 7) % 997
                for token in best.ids:
                    assert token in logits[item, index].topk(2).indices
                    index = (index * 31 + token + 7) % 997
                assert EOS not in best.ids[:-1]


def test_a_batch_of_real_decoders_samples_as_single_items_do() -> None:
    toy, _ = twins(0, eos_bias=3.0)
    prompts = torch.tensor([[38, 7]] * 3)
    chosen = options(
        num_beams=1, do_sample=True, n=2, max_new_tokens=9, temperature=1.3, repetition_penalty=1.2, top_k=9
    )
    batched = ids_of(toy.generate(prompts, chosen, seed=8))
    single = [ids_of(toy.generate(prompts[:1], chosen, seed=8, items=[i]))[0] for i in range(3)]
    assert batched == single
