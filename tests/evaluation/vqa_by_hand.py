"""A second implementation of the three rules of VQA accuracy, from their description alone, and answers to test.

It does not call the library: it processes texts one character at a time, and counts votes in loops.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from functools import cache

SIGNS = [*";/", *"[]", '"', *"{}", *"()", *"=+", "\\", *"_-", *"><", *"@`", *",?!"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WITHOUT_EFFECT = ["let's", "she's", "Im", "Ive", "Id've", "I'dve"]  # in the original table: unchanged, or never matched
BY_ENDING = {
    "n't": "ai are ca could did do does had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'s": "he how somebody someone that there what when where who why",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you",
}


def table() -> dict[str, str]:
    """Map contractions that lack any one apostrophe to the complete ones."""
    words = ["ma'am", "o'clock", "'twas", "y'all", "y'all'll", "y'all'd've", "'ow's'at"]
    words += [stem + ending for ending, stems in BY_ENDING.items() for stem in stems.split()]
    pairs = {"somebody'd": "somebodyd"}
    for word in words:
        for index, letter in enumerate(word):
            if letter == "'":
                pairs[word[:index] + word[index + 1 :]] = word
    return pairs


TABLE = table()


def first_step(text: str) -> str:
    return re.sub(r"[\n\t]", " ", text).strip()


@cache
def second_and_third_step(text: str) -> str:
    number = re.search(r"\d,\d", text)
    spaced = ""
    for letter in text:
        if letter not in SIGNS:
            spaced += letter
        elif not number and not re.search(f" {re.escape(letter)}|{re.escape(letter)} ", text):
            spaced += " "
    out, removed = "", 0
    for index, letter in enumerate(spaced):
        if letter == "." and removed < 32 and not spaced[index + 1 : index + 2].isdecimal():
            removed += 1
        else:
            out += letter
    return out


@cache
def fourth_and_fifth_step(text: str) -> str:
    out = []
    for word in re.findall(r"\S+", text.lower()):
        if word in NUMBERS:
            out.append(str(NUMBERS.index(word)))
        elif word == "none":
            out.append("0")
        elif not re.fullmatch("an?|the", word):
            out.append(TABLE.get(word, word))
    return " ".join(out)


def all_steps(text: str) -> str:
    return fourth_and_fifth_step(second_and_third_step(first_step(text)))


def leave_one_out(prediction: str, answers: list[str]) -> float:
    total = Fraction(0)
    for excluded in range(len(answers)):
        matches = 0
        for person, answer in enumerate(answers):
            if person != excluded and answer == prediction:
                matches += 1
        total += min(Fraction(1), Fraction(matches, 3))
    return float(total / len(answers))


def official(prediction: str, answers: list[str]) -> float:
    prediction, answers = first_step(prediction), [first_step(answer) for answer in answers]
    if any(answer != answers[0] for answer in answers):
        prediction = fourth_and_fifth_step(second_and_third_step(prediction))
        answers = [fourth_and_fifth_step(second_and_third_step(answer)) for answer in answers]
    return leave_one_out(prediction, answers)


def lavis(prediction: str, answers: list[str]) -> float:
    if any(answer != answers[0] for answer in answers):
        answers = [second_and_third_step(answer) for answer in answers]
    return leave_one_out(all_steps(prediction), answers)


def mmpretrain(prediction: str, answers: list[str]) -> float:
    total = Fraction(0)
    for distinct in set(answers):
        if all_steps(distinct) == all_steps(prediction):
            total += Fraction(answers.count(distinct), len(answers))
    return float(min(Fraction(1), total / Fraction(3, 10)))


PLAIN = "cat dogs red blue yes no pizza it's 3:30 left st mr p.m u.s a.m. frisbee I x"
PIECES = [
    PLAIN.split(),
    ["a", "an", "the", "The", "A", "AN"],
    [*NUMBERS, "none", "None", "Two", "eleven"],
    ["3.5", ".5", "5.", "1,000", "12,345.67", "1, 2", "2,", ",2", "0", "2.0.", "10%", "$5.00"],
    [
        "½",
        "²",
        "3.²",
        "٣,٤",
        ".٣",
        "café",
        "İ",
        "ß",
        "猫",
        "a\u00a0cat",
        "\u3000",
        "“red”",
        "\u2019tis",
        "x\u2028y",
        "😀",
    ],
    [*sorted(TABLE), *sorted(set(TABLE.values())), *WITHOUT_EFFECT],
    ["", " ", "\n", "\t", "..", "...", "." * 40, ". " * 35, "'", ":"],
]


def text(rng: random.Random) -> str:
    """Return a few pieces, joined by spaces, signs or nothing."""
    joined = ""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 4])):
        if joined:
            joined += rng.choice([" ", " ", " ", "  ", "\t", "\n", "", rng.choice(SIGNS), rng.choice(SIGNS) + " "])
        joined += rng.choice(rng.choice(PIECES))
    return joined


def vary_answer(answer: str, rng: random.Random) -> str:
    """Return a similar answer, which may be equal after normalization, for all rules or for some."""
    variant = rng.randrange(9)
    if variant == 0:
        return answer + rng.choice([*SIGNS, ".", " .", " ", "\n", "..."])
    if variant == 1:
        return rng.choice([*SIGNS, "the ", "a ", "An ", "\t", "."]) + answer
    if variant == 2:
        return rng.choice([answer.upper(), answer.title(), answer.lower()])
    if variant == 3:
        return answer.replace(" ", rng.choice([*SIGNS, "  ", "\n"]))
    if variant == 4:
        return answer.replace("'", "", 1)
    return answer


def question(rng: random.Random) -> tuple[str, list[str]]:
    """Return a prediction and the answers of one to ten people.

    For one question in five all agree, except for spaces at the end.
    """
    if rng.random() < 0.2:
        answer = text(rng)
        answers = [answer + (rng.choice(["", "", " ", "\n"]) if rng.random() < 0.2 else "") for _ in range(10)]
    else:
        pool = [text(rng) for _ in range(rng.randint(1, 6))]
        people = rng.choice([10, 10, 10, rng.randint(1, 9)])
        answers = [vary_answer(rng.choice(pool), rng) for _ in range(people)]
    return vary_answer(rng.choice(answers), rng) if rng.random() < 0.8 else text(rng), answers
