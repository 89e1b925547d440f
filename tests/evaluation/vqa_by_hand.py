"""The three rules of VQA accuracy written down a second time, from their description alone, and answers to try them on.

Nothing here calls the library: texts are taken apart character by character, and votes are counted in loops.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from functools import cache

SIGNS = [*";/", *"[]", '"', *"{}", *"()", *"=+", "\\", *"_-", *"><", *"@`", *",?!"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DO_NOTHING = ["let's", "she's", "Im", "Ive", "Id've", "I'dve"]  # in the table too: themselves, or never met
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
    """Misspelled contractions to right ones: one apostrophe is missing, whichever of them."""
    words = ["ma'am", "o'clock", "'twas", "y'all", "y'all'll", "y'all'd've", "'ow's'at"]
    words += [stem + ending for ending, stems in BY_ENDING.items() for stem in stems.split()]
    pairs = {"somebody'd": "somebodyd"}
    for word in words:
        for place, letter in enumerate(word):
            if letter == "'":
                pairs[word[:place] + word[place + 1 :]] = word
    return pairs


TABLE = table()


def first_step(text: str) -> str:
    return re.sub(r"[\n\t]", " ", text).strip()


@cache
def second_and_third_step(text: str) -> str:
    number = re.search(r"\d,\d", text)
    kept = ""
    for letter in text:
        if letter not in SIGNS:
            kept += letter
        elif not number and not re.search(f" {re.escape(letter)}|{re.escape(letter)} ", text):
            kept += " "
    out, gone = "", 0
    for place, letter in enumerate(kept):
        if letter == "." and gone < 32 and not kept[place + 1 : place + 2].isdecimal():
            gone += 1
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


def leave_one_out(said: str, answers: list[str]) -> float:
    total = Fraction(0)
    for left_out in range(len(answers)):
        matches = 0
        for person, answer in enumerate(answers):
            if person != left_out and answer == said:
                matches += 1
        total += min(Fraction(1), Fraction(matches, 3))
    return float(total / len(answers))


def official(said: str, answers: list[str]) -> float:
    said, answers = first_step(said), [first_step(answer) for answer in answers]
    if any(answer != answers[0] for answer in answers):
        said = fourth_and_fifth_step(second_and_third_step(said))
        answers = [fourth_and_fifth_step(second_and_third_step(answer)) for answer in answers]
    return leave_one_out(said, answers)


def lavis(said: str, answers: list[str]) -> float:
    if any(answer != answers[0] for answer in answers):
        answers = [second_and_third_step(answer) for answer in answers]
    return leave_one_out(all_steps(said), answers)


def mmpretrain(said: str, answers: list[str]) -> float:
    total = Fraction(0)
    for distinct in set(answers):
        if all_steps(distinct) == all_steps(said):
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
    [*sorted(TABLE), *sorted(set(TABLE.values())), *DO_NOTHING],
    ["", " ", "\n", "\t", "..", "...", "." * 40, ". " * 35, "'", ":"],
]


def text(rng: random.Random) -> str:
    """A few pieces, joined by spaces, signs or nothing."""
    made = ""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 4])):
        if made:
            made += rng.choice([" ", " ", " ", "  ", "\t", "\n", "", rng.choice(SIGNS), rng.choice(SIGNS) + " "])
        made += rng.choice(rng.choice(PIECES))
    return made


def another_way(said: str, rng: random.Random) -> str:
    """Nearly the same answer: it may be equal after normalisation, under all rules or some."""
    way = rng.randrange(9)
    if way == 0:
        return said + rng.choice([*SIGNS, ".", " .", " ", "\n", "..."])
    if way == 1:
        return rng.choice([*SIGNS, "the ", "a ", "An ", "\t", "."]) + said
    if way == 2:
        return rng.choice([said.upper(), said.title(), said.lower()])
    if way == 3:
        return said.replace(" ", rng.choice([*SIGNS, "  ", "\n"]))
    if way == 4:
        return said.replace("'", "", 1)
    return said


def question(rng: random.Random) -> tuple[str, list[str]]:
    """A prediction, and what one to ten people said; on one question of five they agree, but perhaps for the ends."""
    if rng.random() < 0.2:
        answer = text(rng)
        answers = [answer + (rng.choice(["", "", " ", "\n"]) if rng.random() < 0.2 else "") for _ in range(10)]
    else:
        pool = [text(rng) for _ in range(rng.randint(1, 6))]
        people = rng.choice([10, 10, 10, rng.randint(1, 9)])
        answers = [another_way(rng.choice(pool), rng) for _ in range(people)]
    return another_way(rng.choice(answers), rng) if rng.random() < 0.8 else text(rng), answers
