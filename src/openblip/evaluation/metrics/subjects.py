"""Whether a caption names the main subject of its image, by words that people agreed on.

The rule needs no dictionary: the accepted words of an image are words for things that occur in at least three of its
captions, and their everyday synonyms. A list excludes words for properties, places and numbers, and plurals count as
singulars.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

AGREEMENT = 3  # captions that must have a word

# What occurs in captions again and again without naming a subject.
_OTHER_WORDS = frozenset(
    """
    a an the this that these those his her their its it he she they them him some several many other another each both
    one two three four five six seven eight nine ten few lot couple group bunch
    and or but while with without of in on at to from by for into onto over under near next through across along around
    behind between above below up down off out against toward towards inside outside front back top side middle
    is are was were be being been has have having does do doing there here who which what where when as
    standing stands stand sitting sits sit walking walks walk running runs run jumping jumps jump playing plays play
    riding rides ride wearing wears wear holding holds hold looking looks look watching watches watch smiling smiles
    swimming swims climbing climbs flying flies eating eats lying lies laying lays posing poses talking talks making
    makes taking takes going goes getting gets carrying carries pulling pulls pushing pushes throwing throws catching
    catches hanging hangs covered filled surrounded parked shown seen dressed
    white black red blue green yellow brown orange pink purple gray grey dark light colorful
    big large small little young old long short tall high low different various close
    """.split()  # noqa: SIM905
)

# Words of one line name the same thing in a caption. A word can be in several lines: a boy is a child, a girl is not.
_SYNONYM_LINES = """
    person man
    person woman
    person boy
    person girl
    person child
    man guy
    woman lady
    boy child kid
    girl child kid
    child kid toddler
    baby toddler
    dog puppy
    cat kitten
    bicycle bike
    motorcycle motorbike bike
    bicyclist cyclist biker
    car vehicle
    truck vehicle
    airplane plane jet
    boat ship
    couch sofa
    street road
    path trail
    ocean sea
    rock stone boulder
    television tv
    phone cellphone telephone
    coat jacket
    hat cap
    cup mug
    store shop
    stair step
"""


def _group_synonyms() -> dict[str, set[str]]:
    synonyms: dict[str, set[str]] = {}
    for line in _SYNONYM_LINES.strip().splitlines():
        for word in line.split():
            synonyms.setdefault(word, set()).update(line.split())
    return synonyms


_SYNONYMS = _group_synonyms()


def accepted_words(captions: Iterable[str], agreement: int = AGREEMENT) -> frozenset[str]:
    """Return the words that name the subject of an image, in the singular, with their synonyms.

    Args:
        captions: What people wrote about the image.
        agreement: How many captions must have a word. Synonyms are not counted together.

    Examples:
        >>> sorted(accepted_words(["a dog runs", "the dogs are running", "a brown dog", "two dogs", "a field"]))
        ['dog', 'puppy']
    """
    counts = Counter(word for caption in captions for word in set(subject_words(caption)))
    words = {word for word, count in counts.items() if count >= agreement}
    return frozenset(words.union(*(_SYNONYMS.get(word, ()) for word in words)))


def subject_words(caption: str) -> list[str]:
    """Return the words of a caption that may name a subject, in the singular."""
    words = re.findall(r"[a-z]+", caption.lower())
    return [singular(word) for word in words if word not in _OTHER_WORDS]


def names_subject(caption: str, words: Iterable[str]) -> bool:
    """Return whether a caption contains one of the accepted words, in the singular or plural."""
    said = {singular(word) for word in re.findall(r"[a-z]+", caption.lower())}
    return not said.isdisjoint(singular(word) for word in words)


def subject_accuracy(captions: Sequence[str], words: Sequence[Iterable[str]]) -> float:
    """Return the share of captions that name the subject of their image."""
    return sum(names_subject(text, accepted) for text, accepted in zip(captions, words, strict=True)) / len(captions)


_IRREGULAR = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "mice": "mouse", "feet": "foot",
    "teeth": "tooth", "geese": "goose", "knives": "knife", "wolves": "wolf", "leaves": "leaf", "shelves": "shelf",
}  # fmt: skip


def singular(word: str) -> str:
    """Return the singular of an English noun, or any word unchanged that does not look like a plural.

    >>> [singular(word) for word in ("dogs", "buses", "ponies", "men", "grass", "bus")]
    ['dog', 'bus', 'pony', 'man', 'grass', 'bus']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if re.search(r"(ss|sh|ch|x|z|us)es$", word):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
