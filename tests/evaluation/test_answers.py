"""VQA accuracy: corner cases by hand, brute force over every vote, and a second implementation of the rules."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.errors import EvaluationError
from openblip.evaluation.metrics import answers as ours
from openblip.evaluation.metrics.answers import (
    AnswerReference,
    direct,
    exact,
    lavis,
    normalize,
    official,
    score,
    shortcut,
)
from tests.evaluation import vqa_by_hand as by_hand


@pytest.mark.parametrize(
    ("agreeing", "leave_one_out", "shortcut_value"),
    [(0, 0, 0), (1, 0.3, 1 / 3), (2, 0.6, 2 / 3), (3, 0.9, 1), (4, 1, 1), (10, 1, 1)],
)
def test_number_of_people_who_agree(agreeing: int, leave_one_out: float, shortcut_value: float) -> None:
    answers = ["cat"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert official("cat", answers) == pytest.approx(leave_one_out)
    assert lavis("cat", answers) == pytest.approx(leave_one_out)
    assert shortcut("cat", answers) == pytest.approx(shortcut_value)
    assert direct("cat", answers) == pytest.approx(shortcut_value)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["cat", "dog", "two cats"]), min_size=2, max_size=10), st.sampled_from(["cat", "dog"]))
def test_each_person_is_left_out_in_turn(answers: list[str], prediction: str) -> None:
    accuracies = []
    for i in range(len(answers)):
        peers = answers[:i] + answers[i + 1 :]
        accuracies.append(min(1, peers.count(prediction) / 3))
    assert official(prediction, answers) == pytest.approx(sum(accuracies) / len(accuracies))


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The cat.", "cat"),
        ("Two  dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("shouldntve", "shouldntve"),  # the table has it with one apostrophe only
        ("shouldnt've", "shouldn't've"),
        ("youre", "you're"),
        ("somebody'd", "somebodyd"),
        ("red/white", "red white"),  # inside a word: a space
        ("red / white", "red white"),  # next to a space: removed
        ("red, white-blue", "red white blue"),
        ("1,000-5", "10005"),  # a number with a comma: every sign is removed
        ("it's 3:30", "it's 3:30"),  # neither the apostrophe nor the colon is in the list
        ("3.5", "3.5"),
        ("5 p.m.", "5 pm"),
        ("." * 40, "." * 8),  # at most 32 periods are removed: the original passes a flag as the count
        ("a an the", ""),
        ("Im", "im"),  # the table has "Im", but words are in lower case
        ("what?\n", "what"),
    ],
)
def test_normalization(answer: str, normalized: str) -> None:
    assert normalize(answer) == normalized


def test_answers_are_not_normalized_if_all_people_agree() -> None:
    assert official("the cat", ["cat"] * 10) == 0
    assert official("the cat", ["the cat"] * 10) == 1
    assert official("the cat", ["cat"] * 9 + ["dog"]) == 1


@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy"),
    [
        ("The cat.", ["cat"] * 10, 1),  # a prediction is normalized even if all people agree
        ("the cat", ["the cat"] * 10, 0),  # so it differs from their answer
        ("cat", ["cat."] * 10, 0),  # their answers stay unchanged
        ("cat", ["cat."] * 9 + ["dog"], 1),  # if they disagree, punctuation is removed from their answers
        ("cat", ["Cat"] * 9 + ["dog"], 0),  # but capitals stay
        ("two", ["two"] * 9 + ["dog"], 0),  # and so do number words; the prediction becomes "2"
        # Eight people have two others who answered 2, two people have one: (8 x 2/3 + 2 x 1/3) / 10.
        ("two", ["2"] * 2 + ["two"] * 8, 0.6),
        ("dont know", ["don't know"] * 9 + ["dont know"], 1),
        ("dont know", ["dont know"] * 9 + ["no"], 0),
        ("cat", ["cat "] * 9 + ["dog"], 0),  # and so does a space at the end
        ("red-white", ["red/white"] * 9 + ["red"], 1),
    ],
)
def test_lavis_normalizes_the_sides_differently(prediction: str, answers: list[str], accuracy: float) -> None:
    assert lavis(prediction, answers) == pytest.approx(accuracy)
    assert score({1: prediction}, {1: AnswerReference(answers)}, "lavis").accuracy == pytest.approx(accuracy)


def test_each_rule_agrees_with_a_second_implementation() -> None:
    rng = random.Random(0)
    questions = [by_hand.question(rng) for _ in range(2500)]
    texts = {text for prediction, answers in questions for text in (prediction, *answers)}
    assert {"", "a", "two"} < texts
    assert len(texts) > 5000
    for text in sorted(texts):
        assert normalize(text) == by_hand.all_steps(text), repr(text)
    rows = []
    for question in questions:
        expected = by_hand.official(*question), by_hand.lavis(*question), by_hand.mmpretrain(*question)
        actual = official(*question), lavis(*question), shortcut(*question)
        assert actual == pytest.approx(expected, abs=1e-12), question
        rows.append(expected)
    # The questions distinguish the rules, and right from wrong.
    for rule, other_rule in ((0, 1), (0, 2), (1, 2)):
        assert sum(abs(scores[rule] - scores[other_rule]) > 0.01 for scores in rows) > 300
    for rule in range(3):
        for least, most in ((0, 0), (0.01, 0.99), (1, 1)):
            assert sum(least <= scores[rule] <= most for scores in rows) > 200


def test_table_of_contractions() -> None:
    """The challenge's 120 entries, without the six that have no effect; each key lacks one of its apostrophes."""
    table = ours._CONTRACTIONS
    assert table == by_hand.TABLE
    assert len(table) + len(by_hand.WITHOUT_EFFECT) == 120
    for word, contraction in table.items():
        assert word == word.lower()
        assert word.replace("'", "") == contraction.replace("'", ""), "the letters are the same"
        assert contraction.count("'") - word.count("'") == (-1 if word == "somebody'd" else 1)
        assert normalize(word) == normalize(word.upper()) == contraction
        assert normalize(f"The {word}, two!") == f"{contraction} 2"
    for word in by_hand.WITHOUT_EFFECT:
        assert normalize(word) == word.lower()


def test_rules_without_leave_one_out() -> None:
    assert shortcut("the cat", ["Cat"] * 10) == 1
    assert direct("Cat", ["cat"] * 10) == 0
    assert exact("The Cat", ["cat"]) == 1
    assert exact("dog", ["cat"]) == 0


def test_accuracy_by_type() -> None:
    references = {
        1: AnswerReference(["yes"] * 10, "is this", "yes/no"),
        2: AnswerReference(["no"] * 10, "is this", "yes/no"),
        3: AnswerReference(["2"] * 10, "how many", "number"),
    }
    scores = score({1: "yes", 2: "yes", 3: "2"}, references)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.by_answer_type == {"yes/no": 0.5, "number": 1.0}
    assert scores.by_question_type == {"is this": 0.5, "how many": 1.0}
    assert scores.items == {1: 1.0, 2: 0.0, 3: 1.0}
    with pytest.raises(EvaluationError, match="no prediction for id 3"):
        score({1: "yes", 2: "no"}, references)
