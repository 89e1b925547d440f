"""Caption metrics against recorded scores of pycocoevalcap, and against sums worked by hand."""

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
words = str.split
CAPTIONS = st.lists(st.sampled_from("abcd"), max_size=7)


def test_scores_are_the_original_s() -> None:
    found = score(RECORDED["predictions"], RECORDED["references"])
    for name, value in RECORDED["corpus"].items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    for key, values in RECORDED["items"].items():
        assert found.items[key] == pytest.approx(values, abs=1e-9), key
    assert set(found.corpus) == set(METRICS)


def test_order_and_scale() -> None:
    found = score({1: "a cat sits", 2: "two red dogs"}, {2: ["two red dogs"], 1: ["a cat sits"]})
    assert list(found.items) == [2, 1]  # as in the references
    assert (found["Bleu_3"], found["ROUGE_L"]) == pytest.approx((1, 1))
    assert found["CIDEr"] == pytest.approx(7.5)  # of ten: three words have no 4-grams


def test_bleu_by_hand() -> None:
    # Clipped: "the" counts twice of seven; the closest reference has six or eight words, and the shorter is taken.
    hypothesis = ["the"] * 7
    references = [words("the cat is on the mat"), words("there is a cat on the mat now")]
    (whole, each), (second, _), *_ = bleu([hypothesis], [references])
    assert whole == each[0] == pytest.approx(2 / 7)
    assert second < 1e-6
    ((short, _), *_) = bleu([words("the cat")], [references[:1]])
    assert short == pytest.approx(math.exp(1 - 6 / 2))  # brevity


def test_rouge_takes_the_best_precision_and_the_best_recall_apart() -> None:
    # Against "a b c d": 2 common of 2 and of 4; against "x a": 1 of 2 and of 2. So precision 1, recall 1/2.
    (found,) = rouge_l([["a", "b"]], [[words("a b c d"), ["x", "a"]]])
    assert found == pytest.approx((1 + 1.44) * 1 * 0.5 / (0.5 + 1.44))
    assert rouge_l([[]], [[["a"]]]) == [0.0]


@settings(deadline=None, max_examples=50)
@given(CAPTIONS, CAPTIONS)
def test_rouge_finds_the_longest_common_subsequence(left: list[str], right: list[str]) -> None:
    def subsequences(words: list[str]) -> set[tuple[str, ...]]:
        return {part for n in range(len(words) + 1) for part in itertools.combinations(words, n)}

    longest = max(map(len, subsequences(left) & subsequences(right)))
    (found,) = rouge_l([left], [[right]])
    if left and right and longest:
        precision, recall = longest / len(left), longest / len(right)
        assert found == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    else:
        assert found == float(not left and not right)  # two empty captions are one equal empty word to the original


def test_cider_by_hand() -> None:
    # Two images; "cat" is in the references of one (weight log 2), "a" in those of both (weight 0).
    found = cider([["a", "cat"], ["a"]], [[["a", "cat"]], [["a", "dog"]]])
    # Words: equal, cosine 1. Pairs: "a cat" equal, cosine 1. No longer n-grams. Mean of four, times ten.
    assert found[0] == pytest.approx(10 * (1 + 1) / 4)
    assert found[1] == 0
    # Twice as many pairs as the reference: damped by exp(-(3 - 1)^2 / 72), counts clipped.
    damped = cider([["a", "cat", "a", "cat"], ["a"]], [[["a", "cat"]], [["a", "dog"]]])
    pairs = 1 / math.sqrt(2**2 + 1)  # "a cat" twice and "cat a" once, each of weight log 2; clipped to once
    assert damped[0] == pytest.approx(10 * (0.5 + pairs) / 4 * math.exp(-4 / 72))


def test_one_image_has_no_cider_and_an_empty_caption_scores_nothing() -> None:
    found = score({1: ""}, {1: ["a cat"]})
    assert found["CIDEr"] == 0
    assert found["ROUGE_L"] == 0
    assert found["Bleu_1"] == pytest.approx(0, abs=1e-6)


def test_java_metrics_are_null_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_not = score({1: "a"}, {1: ["a"]})
    assert asked_not["METEOR"] is None
    assert "request" in asked_not.missing["SPICE"]
    monkeypatch.setattr(java, "PACKAGE", "no_such_package_of_metrics")
    found = score({1: "a"}, {1: ["a"]}, java=True)
    assert found["METEOR"] is None
    assert "openblip[java]" in found.missing["METEOR"]
    monkeypatch.setattr(java, "PACKAGE", "openblip")  # a package that is there, without Java and without models
    assert "get_stanford_models" in java.unavailable("SPICE") or "no `java`" in java.unavailable("SPICE")
    monkeypatch.setenv("PATH", "")
    assert "no `java`" in java.unavailable("METEOR")


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({1: "a"}, {1: ["a"], 2: ["b"]}, "no prediction for id 2"),
        ({1: "a", 3: "b"}, {1: ["a"]}, "a prediction for id 3"),
        ({1: "a"}, {1: []}, "id 1 has no references"),
        ({}, {}, "no references"),
        ({}, {i: ["a"] for i in range(9)}, "id 0, id 1, id 2 and 6 more"),
    ],
)
def test_what_does_not_fit_is_named(
    predictions: dict[int, str], references: dict[int, list[str]], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        score(predictions, references)
