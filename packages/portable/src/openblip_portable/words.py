"""Words that a text must not contain or must contain, in any spelling by word pieces. Plain data, without torch.

A word is a word piece and the `##` pieces that continue it. `pieces` lists the word pieces of the vocabulary by id; an
id without a word piece, such as [DEC] in a plain vocabulary, has the empty string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

CONTINUATION = "##"
Phrase: TypeAlias = tuple[str, ...]

# Words that no sentence ends with; a text that was cut off is trimmed back to the word before them.
_FUNCTION_WORDS = """
a an the this that these those his her its their our your my some any each every another other of in on at by for
from with without to into onto over under near behind beside between through across along around above below
against about during toward towards up down out off as than like and or but nor so while because if when where
which who whose is are was were be been being am has have had do does did will would can could may might very , - '
" . ; : ( [ &
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def split_words(pieces: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Return the words that token ids spell.

    A special token is a word by itself, and a `##` piece at the beginning or after a special token starts a word.
    """
    words: list[str] = []
    joinable = False
    for i in ids:
        piece = pieces[i] if i < len(pieces) else ""
        if piece.startswith(CONTINUATION) and joinable:
            words[-1] += piece.removeprefix(CONTINUATION)
        else:
            words.append(piece.removeprefix(CONTINUATION))
        joinable = bool(piece) and not (piece.startswith("[") and piece.endswith("]"))
    return words


def contains_phrase(words: Sequence[str], phrase: Phrase) -> bool:
    """Return whether the words of a phrase occur in sequence."""
    size = len(phrase)
    return any(tuple(words[start : start + size]) == phrase for start in range(len(words) - size + 1))


@dataclass(frozen=True)
class ForbiddenWords:
    """Phrases that a text must not contain as complete words: "cat" forbids neither "cats" nor "scatter".

    Attributes:
        pieces: Word pieces of the vocabulary by id.
        phrases: Forbidden phrases.
    """

    pieces: Sequence[str] = field(repr=False)
    phrases: tuple[Phrase, ...]

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each word piece."""
        return {piece: i for i, piece in enumerate(self.pieces) if piece}

    @cached_property
    def continuation_ids(self) -> tuple[int, ...]:
        """The ids of all `##` pieces."""
        return tuple(i for i, piece in enumerate(self.pieces) if piece.startswith(CONTINUATION))

    def ends_with_phrase(self, history: Sequence[int], new: int) -> bool:
        """Return whether a text ends with a forbidden phrase, so that it must continue with a `##` piece."""
        for words in self._readings(history, new):
            if any(tuple(words[-len(phrase) :]) == phrase for phrase in self.phrases):
                return True
        return False

    def completing_ids(self, history: Sequence[int], new: int) -> list[int]:
        """Return the ids of word pieces that would complete a forbidden phrase."""
        completing = []
        for words in self._readings(history, new):
            for *start, end in self.phrases:
                if words[len(words) - len(start) :] == start:  # as a new word; a ## piece can start one too
                    completing += [end, CONTINUATION + end] if not new else [end]
                if words and words[len(words) - 1 - len(start) : -1] == start and end.startswith(words[-1]):
                    completing.append(CONTINUATION + end.removeprefix(words[-1]))
        return [self.ids[piece] for piece in completing if piece in self.ids]

    def _readings(self, history: Sequence[int], new: int) -> list[list[str]]:
        """Return the words of the `new` tokens, which are the text without its prompt, and the words of all tokens."""
        new_words = split_words(self.pieces, history[len(history) - new :])
        return [new_words, split_words(self.pieces, history)]


@dataclass(frozen=True)
class RequirementProgress:
    """Progress of a text towards its required words.

    Attributes:
        clauses_met: Number of clauses with a phrase in the text.
        pieces_matched: Number of word pieces at the end of the text that start a missing phrase.
        next_ids: Token ids that continue or start a missing phrase.
    """

    clauses_met: int
    pieces_matched: int
    next_ids: tuple[int, ...]

    @property
    def bank(self) -> tuple[int, int]:
        """Sort key of the progress. Texts with equal keys compete with each other (Post and Vilar, 2018)."""
        return self.clauses_met, self.pieces_matched


@dataclass(frozen=True)
class RequiredWords:
    """Clauses of alternative phrases: a text must contain a phrase of each clause as complete words.

    Attributes:
        pieces: Word pieces of the vocabulary by id.
        clauses: Clauses; each phrase comes with its token ids.
    """

    pieces: Sequence[str] = field(repr=False)
    clauses: tuple[tuple[tuple[Phrase, tuple[int, ...]], ...], ...]

    def are_met(self, words: Sequence[str]) -> bool:
        """Return whether the words contain a phrase of each clause."""
        return all(any(contains_phrase(words, phrase) for phrase, _ in clause) for clause in self.clauses)

    def progress(self, ids: Sequence[int]) -> RequirementProgress:
        """Return the progress of a text, given by its new token ids."""
        words = split_words(self.pieces, ids)
        clauses_met, pieces_matched, next_ids = 0, 0, list[int]()
        for clause in self.clauses:
            if any(contains_phrase(words, phrase) for phrase, _ in clause):
                clauses_met += 1
                continue
            for _, spelling in clause:
                # The longest start of the phrase that the text ends with.
                size = next((k for k in range(len(spelling) - 1, 0, -1) if tuple(ids[-k:]) == spelling[:k]), 0)
                pieces_matched = max(pieces_matched, size)
                next_ids.append(spelling[size])
        return RequirementProgress(clauses_met, pieces_matched, tuple(dict.fromkeys(next_ids)))


def trim_function_words(pieces: Sequence[str], ids: Sequence[int], eos_id: int) -> list[int]:
    """Return `ids` without [SEP] and the function words at the end, or all `ids` if no word would remain."""
    remaining = [i for i in ids if i != eos_id]
    while remaining:
        start = len(remaining) - 1  # where the last word starts
        while start and (pieces[remaining[start]] if remaining[start] < len(pieces) else "").startswith(CONTINUATION):
            start -= 1
        if "".join(split_words(pieces, remaining[start:])) not in FUNCTION_WORDS:
            return remaining
        remaining = remaining[:start]
    return list(ids)
