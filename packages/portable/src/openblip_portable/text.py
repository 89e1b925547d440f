"""Text as BLIP was trained on it: cleaned texts, and BERT WordPiece with [DEC] and [ENC]. The rules are openblip's."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openblip_portable.errors import ExportError, InputError
from openblip_portable.runtime import Ids

_REMOVED = '.!"()*#:;~'
_REMOVED_TO_SPACE = str.maketrans(dict.fromkeys(_REMOVED, " "))
_REMOVED_TO_NOTHING = str.maketrans(dict.fromkeys(_REMOVED, ""))
_PUNCTUATION_TO_NOTHING = str.maketrans(dict.fromkeys(string.punctuation, ""))
_SPACE_RUN = re.compile(r"\s{2,}")
_GAPS = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve",
    " 're": "'re",
}  # fmt: skip


def clean_caption(text: str, max_words: int | None = None) -> str:
    """Clean a caption or a text to match: lower case, some punctuation to spaces, single spaces."""
    text = _SPACE_RUN.sub(" ", text.lower().translate(_REMOVED_TO_SPACE))
    return _cut_words(text.rstrip("\n").strip(" "), max_words)


def clean_question(text: str, max_words: int | None = None) -> str:
    """Clean a question: lower case, some punctuation and spaces at the end removed."""
    return _cut_words(text.lower().translate(_REMOVED_TO_NOTHING).rstrip(" "), max_words)


def clean_expression(text: str, max_words: int | None = None) -> str:
    """Clean a grounding expression: lower case, all ASCII punctuation removed."""
    return _SPACE_RUN.sub(" ", text.strip().translate(_PUNCTUATION_TO_NOTHING)).lower()


CLEANERS: Mapping[str, Callable[[str, int | None], str]] = {
    "caption": clean_caption,
    "question": clean_question,
    "expression": clean_expression,
}


def _cut_words(text: str, limit: int | None) -> str:
    return " ".join(text.split(" ")[:limit])


class Tokenizer:
    """The tokenizer of an export.

    Args:
        path: Its `tokenizer.json`.
        special_ids: Ids of the special tokens by name.

    Raises:
        ExportError: The file cannot be read.
    """

    def __init__(self, path: Path, special_ids: Mapping[str, int]) -> None:
        import tokenizers

        try:
            self.backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower type
            raise ExportError(f"{path} cannot be read: {error}") from error
        self.special_ids = dict(special_ids)
        added = self.backend.get_added_tokens_decoder()
        self._skipped = {i for i, token in added.items() if token.special} | {special_ids["dec"], special_ids["enc"]}

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The word piece of each id of the vocabulary; the empty string for unused ids."""
        vocab = self.backend.get_vocab()
        pieces = [""] * (max(vocab.values()) + 1)
        for piece, i in vocab.items():
            pieces[i] = piece
        return tuple(pieces)

    def spell(self, text: str) -> list[int]:
        """Return the ids of the word pieces of a text, without special tokens."""
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, got {type(text).__name__}")
        text = text.encode("utf-8", "ignore").decode("utf-8")  # drop lone surrogates
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, text: str, settings: Mapping[str, Any], *, first: str | None = None) -> list[int]:
        """Clean and tokenize a text: the first token, word pieces, [SEP].

        Args:
            text: The text.
            settings: The entry `text` of the task in the manifest.
            first: The first token, in place of the one of the settings.

        Returns:
            Token ids.

        Raises:
            InputError: The text is not a string.
        """
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, got {type(text).__name__}")
        if settings["clean"] in CLEANERS:
            text = CLEANERS[settings["clean"]](text, settings["max_words"])
        limit = settings["max_tokens"]
        pieces = self.spell(text)[: None if limit is None else limit - 2]
        return [self.special_ids[first or settings["first_token"]], *pieces, self.special_ids["sep"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Join word pieces to readable text, without special tokens."""
        ids = self._known(ids)
        text: str = self.backend.decode(ids)
        return _close_gaps(text.removeprefix("##") if self._starts_inside_word(ids) else text)

    def decode_after(self, prompt: str, ids: Sequence[int]) -> str:
        """Return a prompt as it was typed, continued by new tokens. A `##` piece continues its final word."""
        ids = self._known(ids)
        text: str = self.backend.decode(ids)
        prompt = prompt.strip()
        if not prompt or not text:
            return prompt or self.decode(ids)
        if self._starts_inside_word(ids):
            return prompt + _close_gaps(text.removeprefix("##"))
        return prompt + _close_gaps(f" {text}")

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
        """Pad rows of token ids on the right; return the ids (B, T), and a mask that is 1 on tokens."""
        ids = np.full((len(rows), max(map(len, rows))), self.special_ids["pad"], np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return ids, mask

    def _known(self, ids: Iterable[int]) -> list[int]:
        return [i for i in ids if i not in self._skipped and self.backend.id_to_token(i) is not None]

    def _starts_inside_word(self, ids: Sequence[int]) -> bool:
        return bool(ids) and str(self.backend.id_to_token(ids[0])).startswith("##")


def _close_gaps(text: str) -> str:
    for gap, replacement in _GAPS.items():
        text = text.replace(gap, replacement)
    return text
