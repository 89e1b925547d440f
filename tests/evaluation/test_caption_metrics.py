"""Caption metrics, compared with recorded scores of pycocoevalcap and with values computed by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.errors import EvaluationError
from openblip.evaluation.metrics import java
from openblip.evaluation.metrics.captions import METRICS, bleu, cider, rouge_l, score

RECORDED = json.loads(Path(__file__).with_name("caption_scores.json").read_text(encoding="utf-8"))
split = str.split
CAPTIONS = st.lists(st.sampled_from("abcd"), max_size=7)


def test_scores_equal_the_recorded_ones() -> None:
    scores = score(RECORDED["predictions"], RECORDED["references"])
    for name, value in RECORDED["corpus"].items():
        assert scores[name] == pytest.approx(value, abs=1e-9), name
    for key, values in RECORDED["items"].items():
        assert scores.items[key] == pytest.approx(values, abs=1e-9), key
    assert set(scores.corpus) == set(METRICS)


def test_order_and_scale() -> None:
    scores = score({1: "a cat sits", 2: "two red dogs"}, {2: ["two red dogs"], 1: ["a cat sits"]})
    assert list(scores.items) == [2, 1]  # the order of the references
    assert (scores["Bleu_3"], scores["ROUGE_L"]) == pytest.approx((1, 1))
    assert scores["CIDEr"] == pytest.approx(7.5)  # out of 10: three words have no 4-grams


def test_bleu_by_hand() -> None:
    # Clipped: "the" counts twice in seven. The references have six and eight words, equally close: the shorter wins.
    hypothesis = ["the"] * 7
    references = [split("the cat is on the mat"), split("there is a cat on the mat now")]
    (bleu_1, items), (bleu_2, _), *_ = bleu([hypothesis], [references])
    assert bleu_1 == items[0] == pytest.approx(2 / 7)
    assert bleu_2 < 1e-6
    ((short, _), *_) = bleu([split("the cat")], [references[:1]])
    assert short == pytest.approx(math.exp(1 - 6 / 2))  # the brevity penalty


def test_rouge_combines_the_best_precision_and_the_best_recall() -> None:
    # Against "a b c d": 2 common of 2 and of 4; against "x a": 1 of 2 and of 2. So precision 1, recall 1/2.
    (value,) = rouge_l([["a", "b"]], [[split("a b c d"), ["x", "a"]]])
    assert value == pytest.approx((1 + 1.44) * 1 * 0.5 / (0.5 + 1.44))
    assert rouge_l([[]], [[["a"]]]) == [0.0]


@settings(deadline=None, max_examples=50)
@given(CAPTIONS, CAPTIONS)
def test_rouge_uses_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    def subsequences(words: list[str]) -> set[tuple[str, ...]]:
        return {chosen for n in range(len(words) + 1) for chosen in itertools.combinations(words, n)}

    longest = max(map(len, subsequences(a) & subsequences(b)))
    (value,) = rouge_l([a], [[b]])
    if a and b and longest:
        precision, recall = longest / len(a), longest / len(b)
        assert value == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    else:
        assert value == float(not a and not b)  # the original splits an empty caption into one empty word


def test_cider_by_hand() -> None:
    # Two images. "cat" is in the references of one (weight log 2), "a" in the references of both (weight 0).
    scores = cider([["a", "cat"], ["a"]], [[["a", "cat"]], [["a", "dog"]]])
    # Words: equal, cosine 1. Pairs: "a cat" equal, cosine 1. No longer n-grams. Mean of four, times ten.
    assert scores[0] == pytest.approx(10 * (1 + 1) / 4)
    assert scores[1] == 0
    # Three bigrams against one in the reference: damped by exp(-(3 - 1)^2 / 72), counts clipped.
    damped = cider([["a", "cat", "a", "cat"], ["a"]], [[["a", "cat"]], [["a", "dog"]]])
    pairs = 1 / math.sqrt(2**2 + 1)  # "a cat" twice and "cat a" once, each of weight log 2; clipped to once
    assert damped[0] == pytest.approx(10 * (0.5 + pairs) / 4 * math.exp(-4 / 72))


def test_cider_of_one_image_and_scores_of_an_empty_caption_are_zero() -> None:
    scores = score({1: ""}, {1: ["a cat"]})
    assert scores["CIDEr"] == 0
    assert scores["ROUGE_L"] == 0
    assert scores["Bleu_1"] == pytest.approx(0, abs=1e-6)


def test_java_metrics_are_none_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = score({1: "a"}, {1: ["a"]})
    assert scores["METEOR"] is None
    assert "request" in scores.missing["SPICE"]
    monkeypatch.setattr(java, "PACKAGE", "no_such_package_of_metrics")
    scores = score({1: "a"}, {1: ["a"]}, java=True)
    assert scores["METEOR"] is None
    assert "openblip[java]" in scores.missing["METEOR"]
    monkeypatch.setattr(java, "PACKAGE", "openblip")  # an installed package without the models
    assert "get_stanford_models" in java.explain_unavailable("SPICE") or "no `java`" in java.explain_unavailable(
        "SPICE"
    )
    monkeypatch.setenv("PATH", "")
    assert "no `java`" in java.explain_unavailable("METEOR")


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({1: "a"}, {1: ["a"], 2: ["b"]}, "no prediction for id 2"),
        ({1: "a", 3: "b"}, {1: ["a"]}, "no reference for id 3"),
        ({1: "a"}, {1: []}, "id 1 has no references"),
        ({}, {}, "no references"),
        ({}, {i: ["a"] for i in range(9)}, "id 0, id 1, id 2 and 6 more"),
    ],
)
def test_ids_that_differ_are_errors(
    predictions: dict[int, str], references: dict[int, list[str]], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        score(predictions, references)
