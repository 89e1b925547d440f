"""Beam search against a slow and plain one written from the two rules, and against exhaustive search."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openblip.decoding import Decoding, Hypothesis, generate, generate_grouped
from openblip.errors import InputError
from tests.decoding.decoding_toys import EOS, RecomputeSession, TableSession, ids_of, options, tables, twins

pytestmark = pytest.mark.usefixtures("one_thread")
Scores = Callable[[list[int]], list[float]]  # a whole text -> log-probability of every next token
Found = tuple[float, list[int], float]  # score, new tokens, log-probability


def table_scores(table: Tensor) -> Scores:
    """What :class:`TableSession` says of one item (S, V), computed from whole texts."""

    def scores(text: list[int]) -> list[float]:
        index = 0
        for token in text:
            index = (index * 31 + token + 7) % len(table)
        return table[index].double().log_softmax(-1).tolist()

    return scores


def adjusted(logprobs: list[float], text: list[int], new: int, o: Decoding) -> list[float]:
    scores = list(logprobs)
    for token in set(text):
        scores[token] = (
            scores[token] * o.repetition_penalty if scores[token] < 0 else scores[token] / o.repetition_penalty
        )
    size = o.no_repeat_ngram_size
    grams = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)} if size else set()
    for token in range(len(scores)):
        repeats = bool(size) and (*text[len(text) - size + 1 :], token) in grams
        outside = o.allowed_ids is not None and token not in o.allowed_ids
        if repeats or outside or token in o.forbid_ids or (token == EOS and new < o.min_new_tokens):
            scores[token] = float("-inf")
    return scores


def reference(logprobs: Scores, prompt: list[int], o: Decoding) -> list[Found]:
    """One item, plain lists."""
    total = o.score_rule == "total"

    def scored(summed: float, tokens: list[int]) -> float:
        length = len(tokens)
        if total:
            length += len(prompt) - (tokens[-1] == EOS)
        return summed / length**o.length_penalty

    running: list[Found] = [(0.0, [], 0.0)]
    remaining: list[Found] = []
    for new in range(1, o.max_new_tokens + 1):
        final = new == o.max_new_tokens
        pool: list[Found] = []
        for summed, tokens, logprob in running:
            raw = logprobs(prompt + tokens)
            scores = adjusted(raw, prompt + tokens, new - 1, o)
            pool += [(summed + s, [*tokens, t], logprob + raw[t]) for t, s in enumerate(scores) if s > float("-inf")]
        pool = sorted(pool, reverse=True)[: 2 * o.num_beams]
        running = []
        for rank, actual in enumerate(pool):
            ends = actual[1][-1] == EOS
            if rank < o.num_beams and (ends or (final and not total)):
                remaining.append((scored(actual[0], actual[1]), *actual[1:]))
            if not ends and len(running) < o.num_beams:
                running.append(actual)
        remaining = sorted(remaining, reverse=True)[: o.num_beams]
        full = len(remaining) == o.num_beams
        if not running or (full and o.early_stopping is True):
            break
        if total:
            beaten = remaining and remaining[-1][0] >= pool[0][0] / (len(prompt) + new - 1) ** o.length_penalty
        else:
            reach = o.max_new_tokens if o.early_stopping == "never" and o.length_penalty > 0 else new
            beaten = remaining and remaining[-1][0] >= running[0][0] / reach**o.length_penalty
        if full and beaten:
            break
    else:
        if total:
            remaining = sorted(remaining + [(scored(s, t), t, p) for s, t, p in running], reverse=True)[: o.num_beams]
    return remaining[: o.n]


@st.composite
def searches(draw: st.DrawFn) -> Decoding:
    beams = draw(st.integers(2, 5))
    most = draw(st.integers(1, 9))
    rule = draw(st.sampled_from(["total", "generated"]))
    return options(
        num_beams=beams,
        n=draw(st.integers(1, beams)),
        max_new_tokens=most,
        min_new_tokens=draw(st.integers(0, min(3, most))),
        length_penalty=draw(st.sampled_from([1.0, 1.0, 0.0, 0.5, 2.0, -1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.5, 0.7])),
        no_repeat_ngram_size=draw(st.sampled_from([0, 0, 1, 2, 3])),
        score_rule=rule,
        early_stopping=draw(st.sampled_from([False, True] + ["never"] * (rule == "generated"))),
        forbid_ids=draw(st.sampled_from([(), (5, 8)])),
        allowed_ids=draw(st.sampled_from([None, None, (1, 2, EOS, 5, 7, 9)])),
    )


def check(actual: list[Hypothesis], expected: list[Found]) -> None:
    assert [best.ids for best in actual] == [tokens for _, tokens, _ in expected]
    for best, (score, tokens, logprob) in zip(actual, expected, strict=True):
        assert best.score == pytest.approx(score, abs=1e-4)
        assert best.logprob == pytest.approx(logprob, abs=1e-4)
        assert best.finished == (tokens[-1] == EOS)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(searches(), st.integers(0, 10**6), st.sampled_from([0.0, 2.0, 4.0]), st.sampled_from([[4], [4, 9, 4, 9]]))
def test_equals_the_plain_search(o: Decoding, seed: int, eos_bias: float, prompt: list[int]) -> None:
    logits = tables(seed, eos_bias=eos_bias)
    actual = generate(TableSession(logits), torch.tensor([prompt] * len(logits)), o)
    for item, hypotheses in enumerate(actual):
        check(hypotheses, reference(table_scores(logits[item]), prompt, o))


@pytest.mark.parametrize("rule", ["total", "generated"])
@pytest.mark.parametrize("power", [1.0, 0.0, -0.5])
def test_equals_exhaustive_search_when_nothing_is_cut(rule: str, power: float) -> None:
    """With room for every sequence, the result is all of them in the order of their scores."""
    logits = tables(5, items=2, vocab=5)
    prompt, most = [4, 1], 3
    words = [token for token in range(5) if token != EOS]
    texts = [[*body, EOS] for size in range(most) for body in product(words, repeat=size)]
    texts += [list(body) for body in product(words, repeat=most)]
    o = options(
        num_beams=len(texts) + 5,
        n=len(texts) + 5,
        max_new_tokens=most,
        min_new_tokens=0,
        score_rule=rule,
        length_penalty=power,
    )
    actual = generate(TableSession(logits), torch.tensor([prompt] * 2), o)
    for item, hypotheses in enumerate(actual):
        scores = table_scores(logits[item])
        expected: list[Found] = []
        for text in texts:
            summed = sum(scores(prompt + text[:i])[token] for i, token in enumerate(text))
            length = len(text) if rule == "generated" else len(prompt) + len(text) - (text[-1] == EOS)
            expected.append((summed / length**power, text, summed))
        check(hypotheses, sorted(expected, reverse=True))


@pytest.mark.parametrize(
    "chosen", [{"num_beams": 1}, {"num_beams": 4, "n": 4}, {"num_beams": 3, "score_rule": "generated"}]
)
def test_items_do_not_see_each_other(chosen: dict[str, object]) -> None:
    o = options(max_new_tokens=12, **chosen)
    logits = tables(7, items=9, eos_bias=2.5)
    prompts = torch.randint(4, 12, (9, 3))
    batched = ids_of(generate(TableSession(logits), prompts, o))
    single = [ids_of(generate(TableSession(logits[[i]]), prompts[[i]], o))[0] for i in range(9)]
    assert batched == single
    assert len({len(item[0]) for item in batched}) > 2  # they did end at different times


@pytest.mark.parametrize("chosen", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "score_rule": "generated"}])
def test_finished_items_leave_the_session(chosen: dict[str, object]) -> None:
    logits = tables(7, items=8, eos_bias=2.5)
    session = TableSession(logits)
    actual = generate(session, torch.full((8, 2), 5), options(max_new_tokens=16, **chosen))
    assert session.calls.count("keep") >= 2
    longest = max(len(item[0].ids) for item in actual)
    assert longest <= session.calls.count("step") < 16
    assert session.calls.count("widen") == (chosen["num_beams"] != 1)


def test_a_beam_that_continues_itself_is_not_reordered() -> None:
    """The likeliest token gains so little on the next that no beam ever overtakes another."""
    logits = torch.full((1, 997, 12), -50.0)
    logits[:, :, 4], logits[:, :, 5] = 0.0, -10.0
    session = TableSession(logits)
    generate(session, torch.tensor([[7]]), options(num_beams=2, max_new_tokens=2))
    assert session.calls == ["step", "widen", "step"]
    sideways = TableSession(tables(3, items=1, eos_bias=-9.0))
    generate(sideways, torch.tensor([[7]]), options(num_beams=4, max_new_tokens=12))
    assert "reorder" in sideways.calls


@pytest.mark.parametrize(
    "chosen",
    [{"num_beams": 1}, {"num_beams": 4, "n": 3}, {"num_beams": 1, "do_sample": True, "n": 3, "temperature": 1.5}],
)
@pytest.mark.parametrize("penalty", [1.0, 1.6])
def test_cached_equals_uncached(chosen: dict[str, object], penalty: float) -> None:
    """Tokens agree, and log-probabilities are the model's own, whatever the penalty and temperature."""
    toy, _ = twins(1, eos_bias=4.0)
    prompts = torch.tensor([[38, 7, 9]] * 3)
    o = options(max_new_tokens=9, repetition_penalty=penalty, **chosen)
    seed = 4 if o.do_sample else None
    cached = toy.generate(prompts, o, seed)
    assert ids_of(generate(RecomputeSession(toy), prompts, o, seed)) == ids_of(cached)
    for item, hypotheses in enumerate(cached):
        for best in hypotheses:
            assert best.logprob == pytest.approx(toy.logprob([38, 7, 9], best.ids, item), abs=1e-4)


@pytest.mark.parametrize("chosen", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 1, "do_sample": True, "n": 2}])
def test_prompts_of_any_length(chosen: dict[str, object]) -> None:
    toy, _ = twins(1, eos_bias=4.0)
    prompts = [[38, 7, 9], [38], [38, 7, 5]]
    o = options(max_new_tokens=9, **chosen)
    seed = 4 if o.do_sample else None
    groups: list[list[int]] = []

    def start(items: list[int]) -> RecomputeSession:
        groups.append(items)
        return RecomputeSession(toy, items)

    actual = generate_grouped(start, prompts, o, seed)
    assert groups == [[0, 2], [1]]
    for item, prompt in enumerate(prompts):
        assert ids_of([actual[item]]) == ids_of(toy.generate(torch.tensor([prompt]), o, seed, items=[item]))


def test_fewer_than_n_where_no_more_exist() -> None:
    o = options(num_beams=4, n=4, max_new_tokens=1, min_new_tokens=0, allowed_ids=(4, EOS))
    (actual,) = generate(TableSession(tables(0, items=1)), torch.tensor([[7]]), o)
    assert sorted(best.ids for best in actual) == [[EOS], [4]]


def test_nothing_to_decode() -> None:
    assert generate(TableSession(tables(0, items=0)), torch.zeros(0, 2, dtype=torch.long), options(num_beams=2)) == []


@pytest.mark.parametrize("prompts", [torch.zeros(2, 0, dtype=torch.long), torch.tensor([4, 5])])
def test_prompts_must_be_a_filled_table(prompts: Tensor) -> None:
    with pytest.raises(InputError, match="prompts must have shape"):
        generate(TableSession(tables(0)), prompts, options())


def test_the_session_must_have_room() -> None:
    toy, _ = twins(1, eos_bias=4.0)
    o = options(num_beams=2, max_new_tokens=9, min_new_tokens=9)
    assert o.capacity(2) == 10
    prompts = torch.tensor([[38, 7]] * 3)
    generate(toy.session(10), prompts, o)
    with pytest.raises(InputError, match="cache holds at most 9"):
        generate(toy.session(9), prompts, o)
