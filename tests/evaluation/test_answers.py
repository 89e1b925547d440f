"""VQA accuracy: hand-worked corner cases of the official code, brute force over every vote, and a second writing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.errors import EvaluationError
from openblip.evaluation.metrics import answers as ours
from openblip.evaluation.metrics.answers import Reference, direct, exact, lavis, normalize, official, score, shortcut
from tests.evaluation import vqa_by_hand as by_hand


@pytest.mark.parametrize(
    ("agreeing", "left_out", "short"), [(0, 0, 0), (1, 0.3, 1 / 3), (2, 0.6, 2 / 3), (3, 0.9, 1), (4, 1, 1), (10, 1, 1)]
)
def test_people_who_agree(agreeing: int, left_out: float, short: float) -> None:
    answers = ["cat"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert official("cat", answers) == pytest.approx(left_out)
    assert lavis("cat", answers) == pytest.approx(left_out)
    assert shortcut("cat", answers) == pytest.approx(short)
    assert direct("cat", answers) == pytest.approx(short)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["cat", "dog", "two cats"]), min_size=2, max_size=10), st.sampled_from(["cat", "dog"]))
def test_each_person_is_left_out_in_turn(answers: list[str], said: str) -> None:
    each = []
    for i in range(len(answers)):
        others = answers[:i] + answers[i + 1 :]
        each.append(min(1, others.count(said) / 3))
    assert official(said, answers) == pytest.approx(sum(each) / len(each))


@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ("The cat.", "cat"),
        ("Two  dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("shouldntve", "shouldntve"),  # the table only has it with one of its apostrophes
        ("shouldnt've", "shouldn't've"),
        ("youre", "you're"),
        ("somebody'd", "somebodyd"),
        ("red/white", "red white"),  # inside a word: a space
        ("red / white", "red white"),  # beside a space: gone
        ("red, white-blue", "red white blue"),
        ("1,000-5", "10005"),  # a number with a comma: every sign goes
        ("it's 3:30", "it's 3:30"),  # neither the apostrophe nor the colon is on the list
        ("3.5", "3.5"),
        ("5 p.m.", "5 pm"),
        ("." * 40, "." * 8),  # at most 32 stops go: the original passes a flag as the count
        ("a an the", ""),
        ("Im", "im"),  # the table has "Im", which no word in lower case equals
        ("what?\n", "what"),
    ],
)
def test_normalisation(said: str, compared: str) -> None:
    assert normalize(said) == compared


def test_agreement_of_all_leaves_both_sides_as_they_are() -> None:
    assert official("the cat", ["cat"] * 10) == 0
    assert official("the cat", ["the cat"] * 10) == 1
    assert official("the cat", ["cat"] * 9 + ["dog"]) == 1


@pytest.mark.parametrize(
    ("said", "answers", "worth"),
    [
        ("The cat.", ["cat"] * 10, 1),  # a prediction is normalised even where all agree
        ("the cat", ["the cat"] * 10, 0),  # and then differs from what they agree on
        ("cat", ["cat."] * 10, 0),  # which nothing is taken from
        ("cat", ["cat."] * 9 + ["dog"], 1),  # where they disagree, punctuation is
        ("cat", ["Cat"] * 9 + ["dog"], 0),  # and nothing else: neither capitals,
        ("two", ["two"] * 9 + ["dog"], 0),  # nor number words, of which the prediction's is "2"
        (
            "two",
            ["2"] * 2 + ["two"] * 8,
            0.6,
        ),  # eight find two others who said 2, two find one: (8 x 2/3 + 2 x 1/3) / 10
        ("dont know", ["don't know"] * 9 + ["dont know"], 1),
        ("dont know", ["dont know"] * 9 + ["no"], 0),
        ("cat", ["cat "] * 9 + ["dog"], 0),  # nor the space at an end
        ("red-white", ["red/white"] * 9 + ["red"], 1),
    ],
)
def test_lavis_normalises_the_sides_differently(said: str, answers: list[str], worth: float) -> None:
    assert lavis(said, answers) == pytest.approx(worth)
    assert score({1: said}, {1: Reference(answers)}, "lavis").accuracy == pytest.approx(worth)


def test_each_rule_is_that_of_a_second_writing() -> None:
    rng = random.Random(0)
    questions = [by_hand.question(rng) for _ in range(2500)]
    texts = {text for said, answers in questions for text in (said, *answers)}
    assert {"", "a", "two"} < texts
    assert len(texts) > 5000
    for text in sorted(texts):
        assert normalize(text) == by_hand.all_steps(text), repr(text)
    found = []
    for said, answers in questions:
        wanted = by_hand.official(said, answers), by_hand.lavis(said, answers), by_hand.mmpretrain(said, answers)
        got = official(said, answers), lavis(said, answers), shortcut(said, answers)
        assert got == pytest.approx(wanted, abs=1e-12), (said, answers)
        found.append(wanted)
    # The questions can tell the rules apart, and right from wrong.
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert sum(abs(scores[first] - scores[second]) > 0.01 for scores in found) > 300
    for rule in range(3):
        for least, most in ((0, 0), (0.01, 0.99), (1, 1)):
            assert sum(least <= scores[rule] <= most for scores in found) > 200


def test_table_of_contractions() -> None:
    """The challenge's 120 entries but the six that do nothing, each a word that lacks one of its apostrophes."""
    table = ours._CONTRACTIONS
    assert table == by_hand.TABLE
    assert len(table) + len(by_hand.DO_NOTHING) == 120
    for word, right in table.items():
        assert word == word.lower()
        assert word.replace("'", "") == right.replace("'", ""), "the letters are the same"
        assert right.count("'") - word.count("'") == (-1 if word == "somebody'd" else 1)
        assert normalize(word) == normalize(word.upper()) == right
        assert normalize(f"The {word}, two!") == f"{right} 2"
    for word in by_hand.DO_NOTHING:
        assert normalize(word) == word.lower()


def test_other_rules() -> None:
    assert shortcut("the cat", ["Cat"] * 10) == 1
    assert direct("Cat", ["cat"] * 10) == 0
    assert exact("The Cat", ["cat"]) == 1
    assert exact("dog", ["cat"]) == 0


def test_kinds_of_questions() -> None:
    references = {
        1: Reference(["yes"] * 10, "is this", "yes/no"),
        2: Reference(["no"] * 10, "is this", "yes/no"),
        3: Reference(["2"] * 10, "how many", "number"),
    }
    found = score({1: "yes", 2: "yes", 3: "2"}, references)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.by_answer_type == {"yes/no": 0.5, "number": 1.0}
    assert found.by_question_type == {"is this": 0.5, "how many": 1.0}
    assert found.items == {1: 1.0, 2: 0.0, 3: 1.0}
    with pytest.raises(EvaluationError, match="no prediction for id 3"):
        score({1: "yes", 2: "no"}, references)
