"""Words that a text must not or must have, whatever word pieces spell them. Plain data, free of torch.

A word is a piece and the ``##`` pieces that continue it. ``pieces`` (V) are those of the vocabulary, by id; what has no
piece, as [DEC] in a plain vocabulary, is "".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

CONTINUED = "##"
Phrase: TypeAlias = tuple[str, ...]

# What a sentence does not end with: where one was cut off, these hang in the air.
_FUNCTION_WORDS = """
a an the this that these those his her its their our your my some any each every another other of in on at by for
from with without to into onto over under near behind beside between through across along around above below
against about during toward towards up down out off as than like and or but nor so while because if when where
which who whose is are was were be been being am has have had do does did will would can could may might very , - '
" . ; : ( [ &
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def split(pieces: Sequence[str], ids: Sequence[int]) -> list[str]:
    """The words that ids spell; a special token is a word of its own, and a leading ``##`` begins one."""
    words: list[str] = []
    joins = False
    for i in ids:
        piece = pieces[i] if i < len(pieces) else ""
        if piece.startswith(CONTINUED) and joins:
            words[-1] += piece.removeprefix(CONTINUED)
        else:
            words.append(piece.removeprefix(CONTINUED))
        joins = bool(piece) and not (piece.startswith("[") and piece.endswith("]"))
    return words


def says(words: Sequence[str], phrase: Phrase) -> bool:
    """Whether the phrase is among the words."""
    size = len(phrase)
    return any(tuple(words[at : at + size]) == phrase for at in range(len(words) - size + 1))


@dataclass(frozen=True)
class Forbidden:
    """Phrases that are never said as whole words: "cat" bars neither "cats" nor "scatter"."""

    pieces: Sequence[str] = field(repr=False)
    phrases: tuple[Phrase, ...]

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each piece."""
        return {piece: i for i, piece in enumerate(self.pieces) if piece}

    @cached_property
    def continuing(self) -> tuple[int, ...]:
        """The ids of all ``##`` pieces."""
        return tuple(i for i, piece in enumerate(self.pieces) if piece.startswith(CONTINUED))

    def said(self, history: Sequence[int], new: int) -> bool:
        """Whether a phrase has just been said, so that only a longer word can save the text."""
        return any(
            tuple(words[-len(phrase) :]) == phrase for words in self._readings(history, new) for phrase in self.phrases
        )

    def completing(self, history: Sequence[int], new: int) -> list[int]:
        """The tokens that would make a phrase whole."""
        found = []
        for words in self._readings(history, new):
            for *start, last in self.phrases:
                if words[len(words) - len(start) :] == start:  # as a new word, which a leading ## can begin too
                    found += [last, CONTINUED + last] if not new else [last]
                if words and words[len(words) - 1 - len(start) : -1] == start and last.startswith(words[-1]):
                    found.append(CONTINUED + last.removeprefix(words[-1]))
        return [self.ids[piece] for piece in found if piece in self.ids]

    def _readings(self, history: Sequence[int], new: int) -> list[list[str]]:
        """The words so far: of the ``new`` tokens alone, as a text without its prompt reads, and of all."""
        own = split(self.pieces, history[len(history) - new :])
        return [own, split(self.pieces, history)]


@dataclass(frozen=True)
class Progress:
    """How far a text has come: clauses met, pieces of a phrase begun, and the tokens that would take it further."""

    met: int
    begun: int
    next: tuple[int, ...]

    @property
    def bank(self) -> tuple[int, int]:
        """Texts that came equally far compete with each other."""
        return self.met, self.begun


@dataclass(frozen=True)
class Required:
    """Clauses, of each of which one phrase must be said as whole words; phrases come with a spelling in ids."""

    pieces: Sequence[str] = field(repr=False)
    clauses: tuple[tuple[tuple[Phrase, tuple[int, ...]], ...], ...]

    def met(self, words: Sequence[str]) -> bool:
        """Whether every clause is."""
        return all(any(says(words, phrase) for phrase, _ in clause) for clause in self.clauses)

    def progress(self, ids: Sequence[int]) -> Progress:
        """How far the decoded ``ids`` have come."""
        words = split(self.pieces, ids)
        met, begun, following = 0, 0, list[int]()
        for clause in self.clauses:
            if any(says(words, phrase) for phrase, _ in clause):
                met += 1
                continue
            for _, spelling in clause:
                size = next((k for k in range(len(spelling) - 1, 0, -1) if tuple(ids[-k:]) == spelling[:k]), 0)
                begun = max(begun, size)
                following.append(spelling[size])
        return Progress(met, begun, tuple(dict.fromkeys(following)))


def trimmed(pieces: Sequence[str], ids: Sequence[int], end: int) -> list[int]:
    """``ids`` without the words at their end that no sentence ends with; ``ids`` themselves if nothing would stay."""
    kept = [i for i in ids if i != end]
    while kept:
        start = len(kept) - 1
        while start and (pieces[kept[start]] if kept[start] < len(pieces) else "").startswith(CONTINUED):
            start -= 1
        if "".join(split(pieces, kept[start:])) not in FUNCTION_WORDS:
            return kept
        kept = kept[:start]
    return list(ids)
