"""Answers judged as the VQA benchmarks do: by what ten people said, after both sides are made comparable.

Sources: Antol et al. 2015 and the evaluation code of the VQA challenge (``vqaEval.py``), its mistakes included, since
published numbers have them; LAVIS's copy of an older form of it (``vqa_tools``); mmpretrain's ``VQAAcc``; A-OKVQA's
``load_aokvqa`` example.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any, Literal

from openblip.evaluation.metrics.ids import check_ids

Rule = Literal["official", "lavis", "mmpretrain", "direct", "exact"]


@dataclass(frozen=True)
class Reference:
    """What people answered to one question, one entry per person, and its types, where they are known."""

    answers: Sequence[str]
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True)
class AnswerScores:
    """``accuracy`` over all questions, of each kind of question and answer, and of each question, from 0 to 1."""

    accuracy: float
    items: dict[Any, float]
    by_question_type: dict[str, float] = field(default_factory=dict)
    by_answer_type: dict[str, float] = field(default_factory=dict)


def score(predictions: Mapping[Any, str], references: Mapping[Any, Reference], rule: Rule = "official") -> AnswerScores:
    """Judge one answer per question.

    ``rule``: "official" (VQAv2, OK-VQA: each person left out in turn, at least three of the others agreeing is right),
    "lavis" (the same, but what is compared is normalised otherwise, see :func:`lavis`), "mmpretrain" (its shortcut, at
    least three of all, which is higher), "direct" (A-OKVQA: the shortcut on the strings as they are) or "exact" (the
    first answer, after normalisation: OCR-VQA and the video sets).

    Raises :class:`EvaluationError` for a missing or unknown question.
    """
    check_ids(predictions, {key: reference.answers for key, reference in references.items()})
    judge = _RULES[rule]
    items = {key: judge(predictions[key], reference.answers) for key, reference in references.items()}
    kinds: dict[str, dict[str, list[float]]] = {"question_type": defaultdict(list), "answer_type": defaultdict(list)}
    for key, reference in references.items():
        for kind, values in kinds.items():
            if name := getattr(reference, kind):
                values[name].append(items[key])
    by = {kind: {name: fsum(found) / len(found) for name, found in values.items()} for kind, values in kinds.items()}
    return AnswerScores(fsum(items.values()) / len(items), items, by["question_type"], by["answer_type"])


def official(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one answer, leave-one-out: the mean, over people, of min(1, agreeing others / 3).

    As in the original, both sides are normalised only where people disagree.
    """
    answers = [_spaced(answer) for answer in answers]
    prediction = _spaced(prediction)
    if len(set(answers)) > 1:
        prediction = _words(_unpunctuated(prediction))
        answers = [_words(_unpunctuated(answer)) for answer in answers]
    return _leave_one_out(prediction, answers)


def lavis(prediction: str, answers: Sequence[str]) -> float:
    """LAVIS's accuracy of one answer, leave-one-out.

    The prediction is always normalised in full, but people's answers lose their punctuation only, and only where they
    disagree: "2" never matches their "two", nor anything their "the cat", and "cat" does not match "Cat".
    """
    if len(set(answers)) > 1:
        answers = [_unpunctuated(answer) for answer in answers]
    return _leave_one_out(normalize(prediction), answers)


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """The mean, over people, of min(1, agreeing others / 3), of texts as they are."""
    agreeing = Counter(answers)[prediction]
    each = [min(1.0, (agreeing - (answer == prediction)) / 3) for answer in answers]
    return fsum(each) / len(each)


def shortcut(prediction: str, answers: Sequence[str]) -> float:
    """mmpretrain's accuracy: everything normalised, then min(1, share of people who agree / 0.3)."""
    wanted = normalize(prediction)
    return min(1.0, sum(normalize(answer) == wanted for answer in answers) / len(answers) / 0.3)


def direct(prediction: str, answers: Sequence[str]) -> float:
    """A-OKVQA's direct answers: min(1, people who said exactly this / 3)."""
    return min(1.0, sum(answer == prediction for answer in answers) / 3)


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 if the answer is one of the right ones after normalisation, else 0."""
    return float(normalize(prediction) in {normalize(answer) for answer in answers})


_RULES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "official": official, "lavis": lavis, "mmpretrain": shortcut, "direct": direct, "exact": exact,
}  # fmt: skip
RULES = tuple(_RULES)


def normalize(answer: str) -> str:
    """An answer as the VQA challenge compares it: no punctuation, articles or number words, lower case."""
    return _words(_unpunctuated(_spaced(answer)))


def _spaced(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _unpunctuated(text: str) -> str:
    """Without punctuation: a sign goes where the text has it beside a space, or has a number with a comma; else it
    becomes a space. A full stop goes unless a digit follows. All tests look at the text as it was given."""
    found = text
    with_comma = _COMMA.search(text) is not None
    for sign in _SIGNS:
        beside_space = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if beside_space or with_comma else " ")
    return _STOP.sub("", found, count=32)  # the original passes a flag as the count


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip


def _contractions() -> dict[str, str]:
    """The challenge's table: a word without its apostrophes, or without one of two, to the word with them."""
    one = (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
        "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
        "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
        "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
        "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
        "you'd you'll you're you've"
    )
    two = (
        "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
        "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
    )
    table = {word.replace("'", ""): word for word in one.split()}
    for word in two.split():
        first, second, third = word.split("'")
        table[f"{first}{second}'{third}"] = table[f"{first}'{second}{third}"] = word
    # The odd ones, as they stand there. (Those that begin with "I" never match, since words are in lower case.)
    table |= {"somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}
    return table | dict.fromkeys(["yall'd've", "y'alld've", "y'all'dve"], "y'all'd've")


_CONTRACTIONS = _contractions()
