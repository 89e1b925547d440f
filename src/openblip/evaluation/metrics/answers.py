"""VQA accuracy: answers compared with the answers of several people, after normalization.

Sources: Antol et al. 2015 and the evaluation code of the VQA challenge (`vqaEval.py`), including its mistakes, because
published scores include them; LAVIS's copy of an older version of that code (`vqa_tools`); mmpretrain's `VQAAcc`;
A-OKVQA's `load_aokvqa` example.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Generic, Literal

from openblip.evaluation.metrics.ids import Id, check_ids

Rule = Literal["official", "lavis", "mmpretrain", "direct", "exact"]


@dataclass(frozen=True)
class AnswerReference:
    """The reference of a question.

    Attributes:
        answers: The answers that people gave, one per person.
        question_type: The type of the question, such as "how many"; empty if unknown.
        answer_type: The type of the answer, such as "number"; empty if unknown.
    """

    answers: Sequence[str]
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True)
class AnswerScores(Generic[Id]):
    """Accuracies from 0 to 1.

    Attributes:
        accuracy: The mean over all questions.
        items: The accuracy of each question, by id.
        by_question_type: The mean over the questions of each question type.
        by_answer_type: The mean over the questions of each answer type.
    """

    accuracy: float
    items: dict[Id, float]
    by_question_type: dict[str, float] = field(default_factory=dict)
    by_answer_type: dict[str, float] = field(default_factory=dict)


def score(
    predictions: Mapping[Id, str], references: Mapping[Id, AnswerReference], rule: Rule = "official"
) -> AnswerScores[Id]:
    """Score one answer per question.

    Args:
        predictions: The predicted answer of each question.
        references: The answers that people gave to each question, and the types of the question.
        rule: How an answer is compared with people's answers:

            - "official" (VQAv2, OK-VQA): `official`, each person left out in turn.
            - "lavis": `lavis`, the same with LAVIS's normalization.
            - "mmpretrain": `shortcut`, a shortcut that scores higher.
            - "direct" (A-OKVQA): `direct`, the shortcut on unchanged strings.
            - "exact" (OCR-VQA and video questions): `exact`, equal to any answer after normalization.

    Returns:
        The accuracy over all questions, per type, and per question.

    Raises:
        EvaluationError: If ids differ, or if a question has no answers.
    """
    check_ids(predictions, {key: reference.answers for key, reference in references.items()})
    compare = _RULES[rule]
    items = {key: compare(predictions[key], reference.answers) for key, reference in references.items()}
    by_question_type: dict[str, list[float]] = defaultdict(list)
    by_answer_type: dict[str, list[float]] = defaultdict(list)
    for key, reference in references.items():
        if reference.question_type:
            by_question_type[reference.question_type].append(items[key])
        if reference.answer_type:
            by_answer_type[reference.answer_type].append(items[key])
    return AnswerScores(
        accuracy=fsum(items.values()) / len(items),
        items=items,
        by_question_type={name: fsum(values) / len(values) for name, values in by_question_type.items()},
        by_answer_type={name: fsum(values) / len(values) for name, values in by_answer_type.items()},
    )


def official(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of one answer by the VQA challenge's rule, with each person left out in turn.

    As in the original, both sides are normalized only if people disagree.

    Args:
        prediction: The predicted answer.
        answers: The answers that people gave.

    Returns:
        The mean, over people, of min(1, number of other people with the predicted answer / 3).
    """
    answers = [_strip_space(answer) for answer in answers]
    prediction = _strip_space(prediction)
    if len(set(answers)) > 1:
        prediction = _normalize_words(_strip_punctuation(prediction))
        answers = [_normalize_words(_strip_punctuation(answer)) for answer in answers]
    return _leave_one_out(prediction, answers)


def lavis(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of one answer by LAVIS's rule, with each person left out in turn.

    The prediction is always normalized in full. People's answers lose punctuation only, and only if people disagree. So
    "2" never matches the answer "two", nothing matches the answer "the cat", and "cat" does not match "Cat".

    Args:
        prediction: The predicted answer.
        answers: The answers that people gave.

    Returns:
        The mean, over people, of min(1, number of other people with the predicted answer / 3).
    """
    if len(set(answers)) > 1:
        answers = [_strip_punctuation(answer) for answer in answers]
    return _leave_one_out(normalize(prediction), answers)


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    agreeing = Counter(answers)[prediction]
    accuracies = [min(1.0, (agreeing - (answer == prediction)) / 3) for answer in answers]
    return fsum(accuracies) / len(accuracies)


def shortcut(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of one answer by mmpretrain's rule, a shortcut that scores higher than the official one.

    Args:
        prediction: The predicted answer.
        answers: The answers that people gave.

    Returns:
        min(1, share of people with the predicted answer / 0.3), both sides normalized.
    """
    normalized = normalize(prediction)
    return min(1.0, sum(normalize(answer) == normalized for answer in answers) / len(answers) / 0.3)


def direct(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of one answer by A-OKVQA's rule for direct answers.

    Args:
        prediction: The predicted answer.
        answers: The answers that people gave.

    Returns:
        min(1, number of people with exactly the predicted answer / 3), without normalization.
    """
    return min(1.0, sum(answer == prediction for answer in answers) / 3)


def exact(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the answer equals any of the given answers after normalization, else 0.

    Args:
        prediction: The predicted answer.
        answers: The right answers.

    Returns:
        1.0 or 0.0.
    """
    return float(normalize(prediction) in {normalize(answer) for answer in answers})


_RULES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "official": official,
    "lavis": lavis,
    "mmpretrain": shortcut,
    "direct": direct,
    "exact": exact,
}
RULES = tuple(_RULES)


def normalize(answer: str) -> str:
    """Normalize an answer as the VQA challenge does.

    Args:
        answer: An answer.

    Returns:
        The answer in lower case, without punctuation and articles, with digits for number words.
    """
    return _normalize_words(_strip_punctuation(_strip_space(answer)))


def _strip_space(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    """Remove punctuation as the original does.

    A sign is removed if the text has it next to a space, or has a number with a comma; otherwise it becomes a space. A
    period is removed unless a digit follows. All tests look at the original text.
    """
    result = text
    has_comma_number = _COMMA.search(text) is not None
    for sign in _SIGNS:
        next_to_space = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if next_to_space or has_comma_number else " ")
    return _PERIOD.sub("", result, count=32)  # the original passes a flag as the count


def _normalize_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip


def _build_contractions() -> dict[str, str]:
    """Build the challenge's table: a word without one or all of its apostrophes to the word with all of them."""
    one_apostrophe = (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
        "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
        "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
        "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
        "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
        "you'd you'll you're you've"
    )
    two_apostrophes = (
        "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
        "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
    )
    table = {word.replace("'", ""): word for word in one_apostrophe.split()}
    for word in two_apostrophes.split():
        start, middle, end = word.split("'")
        table[f"{start}{middle}'{end}"] = table[f"{start}'{middle}{end}"] = word
    # Odd entries of the original. (Its entries that begin with "I" never match, because words are in lower case.)
    table |= {"somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}
    return table | dict.fromkeys(["yall'd've", "y'alld've", "y'all'dve"], "y'all'd've")


_CONTRACTIONS = _build_contractions()
