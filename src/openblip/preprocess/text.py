"""Text as BLIP was trained on it: cleaned captions and questions, and BERT WordPiece with [DEC] and [ENC].

The first token selects the task of the text transformer (paper section 3.1): [CLS] for text alone, [ENC] for text that
is encoded together with an image, [DEC] for decoding. The tokenizer sets it.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openblip.errors import CheckpointError, InputError
from openblip.preprocess import vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FirstToken = Literal["cls", "enc", "dec"]

_REMOVED = '.!"()*#:;~'
_REMOVED_TO_SPACE = str.maketrans(dict.fromkeys(_REMOVED, " "))
_REMOVED_TO_NOTHING = str.maketrans(dict.fromkeys(_REMOVED, ""))
_PUNCTUATION_TO_NOTHING = str.maketrans(dict.fromkeys(string.punctuation, ""))
_SPACE_RUN = re.compile(r"\s{2,}")


def clean_caption(text: str, max_words: int = 50) -> str:
    """Clean a caption as in training: lower case, `. ! " ( ) * # : ; ~` to spaces, runs of white space to one space.

    >>> clean_caption("A dog (brown) runs.")
    'a dog brown runs'

    Args:
        text: The caption.
        max_words: Number of words to keep.

    Returns:
        The cleaned caption.
    """
    text = _SPACE_RUN.sub(" ", text.lower().translate(_REMOVED_TO_SPACE))
    return _truncate_words(text.rstrip("\n").strip(" "), max_words)


def clean_question(text: str, max_words: int = 50) -> str:
    """Clean a question as in training: lower case, `. ! " ( ) * # : ; ~` and spaces at the end removed.

    >>> clean_question("What time is it: 3:30?")
    'what time is it 330?'

    Args:
        text: The question.
        max_words: Number of words to keep.

    Returns:
        The cleaned question.
    """
    return _truncate_words(text.lower().translate(_REMOVED_TO_NOTHING).rstrip(" "), max_words)


def clean_expression(text: str) -> str:
    """Clean a grounding expression as in mmpretrain's training: lower case, all ASCII punctuation removed.

    >>> clean_expression("The man's hat, left.")
    'the mans hat left'

    Args:
        text: The expression.

    Returns:
        The cleaned expression.
    """
    return _SPACE_RUN.sub(" ", text.strip().translate(_PUNCTUATION_TO_NOTHING)).lower()


def _truncate_words(text: str, limit: int) -> str:
    # Words are separated by single spaces, so a run of spaces contains empty words, as in training.
    return " ".join(text.split(" ")[:limit])


# The gaps that BERT's word splitting leaves in English, closed in this order by every BERT decoder since 2019.
_GAPS = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


@dataclass(frozen=True)
class Tokens:
    """A batch of tokenized texts, padded on the right.

    Attributes:
        ids: Token ids (B, T), int64.
        mask: 1 for tokens, 0 for padding (B, T), int64.
    """

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """Return the tokens on another device."""
        return Tokens(self.ids.to(device), self.mask.to(device))


class Tokenizer:
    """BERT WordPiece from the files of a checkpoint, with [DEC] and [ENC].

    Create it with `load`, `from_folder` or `from_vocab`. It is immutable, so threads may share it.

    [DEC] and [ENC] have the ids of the files. If the files lack them, like the plain BERT vocabulary of the hub, the id
    of [DEC] is `dec_id` (the `bos_token_id` of a configuration) or the first id after the vocabulary, and the id of
    [ENC] is `enc_id` or the next id. Saved files then lack them too, so that transformers finds the vocabulary that it
    knows; the two ids are saved in `tokenizer_config.json`.

    Args:
        description: Content of `tokenizer.json`.
        settings: Content of `tokenizer_config.json`.

    Attributes:
        backend: The tokenizer of the `tokenizers` library. Do not change it.
        vocab_size: Number of rows of the word embedding: the largest id plus 1, [DEC] and [ENC] included.

    Raises:
        CheckpointError: The files do not describe a tokenizer that BLIP can use.
    """

    def __init__(self, description: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        import tokenizers

        self._description, vocab, self._names = vocabulary.complete(description, settings)
        try:
            self.backend = tokenizers.Tokenizer.from_str(json.dumps(self._description))
        except Exception as error:  # the library raises no narrower type
            raise CheckpointError(f"the tokenizer files cannot be used: {error}") from error
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            vocab[self._names[name]] for name in ("pad", "unk", "cls", "sep")
        )
        saved_ids: Mapping[str, int] = settings.get("openblip") or {}
        self.dec_id: int = vocab.get("[DEC]", saved_ids.get("dec_id", len(vocab)))
        self.enc_id: int = vocab.get("[ENC]", saved_ids.get("enc_id", self.dec_id + 1))
        self.vocab_size = max(len(vocab), self.dec_id + 1, self.enc_id + 1)
        self._first_ids = {"cls": self.cls_id, "enc": self.enc_id, "dec": self.dec_id}
        special_ids = {token["id"] for token in self._description["added_tokens"] if token["special"]}
        self._special_ids = frozenset(special_ids | {self.dec_id, self.enc_id})
        lacks_names = not {"[DEC]", "[ENC]"} <= vocab.keys()
        own_ids = {"dec_id": self.dec_id, "enc_id": self.enc_id} if lacks_names else None
        self._settings = {**settings, "openblip": own_ids}

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dec_id: int | None = None, enc_id: int | None = None) -> Tokenizer:
        """Load a tokenizer from a folder of the hub, a `vocab.txt` or a `tokenizer.json`.

        Args:
            path: The folder or file.
            dec_id: Id of [DEC], if the files lack it.
            enc_id: Id of [ENC], if the files lack it.

        Returns:
            The tokenizer.

        Raises:
            CheckpointError: The files cannot be read or used.
            InputError: An id is negative.
        """
        path = Path(path)
        if path.is_dir():
            return cls.from_folder(path, dec_id=dec_id, enc_id=enc_id)
        if path.suffix == ".json":
            return cls(vocabulary.read_json(path), _with_ids({}, dec_id, enc_id))
        return cls.from_vocab(path, dec_id=dec_id, enc_id=enc_id)

    @classmethod
    def from_vocab(
        cls,
        vocab: str | os.PathLike[str] | Sequence[str],
        *,
        lower_case: bool = True,
        dec_id: int | None = None,
        enc_id: int | None = None,
    ) -> Tokenizer:
        """Create a tokenizer from a vocabulary.

        Args:
            vocab: Path of a `vocab.txt`, or its lines: one word piece per line, in the order of the ids.
            lower_case: Whether to convert text to lower case.
            dec_id: Id of [DEC], if the vocabulary lacks it.
            enc_id: Id of [ENC], if the vocabulary lacks it.

        Returns:
            The tokenizer.

        Raises:
            CheckpointError: The vocabulary cannot be read or used.
            InputError: An id is negative.
        """
        lines = vocabulary.read_vocab(Path(vocab)) if isinstance(vocab, (str, os.PathLike)) else vocab
        settings = {"do_lower_case": lower_case, "clean_up_tokenization_spaces": True}
        return cls(vocabulary.describe(lines, settings), _with_ids(settings, dec_id, enc_id))

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], *, dec_id: int | None = None, enc_id: int | None = None
    ) -> Tokenizer:
        """Load a tokenizer from a folder of the hub, written by transformers 4 or 5.

        Args:
            folder: A folder with `tokenizer.json` or `vocab.txt`; the former is preferred.
            dec_id: Id of [DEC], if the files lack it.
            enc_id: Id of [ENC], if the files lack it.

        Returns:
            The tokenizer.

        Raises:
            CheckpointError: The files cannot be read or used.
            InputError: An id is negative.
        """
        description, settings = vocabulary.read_folder(Path(folder))
        try:
            return cls(description, _with_ids(settings, dec_id, enc_id))
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `vocab.txt`.

        transformers can read the files.
        """
        vocabulary.write_folder(Path(folder), self._description, self._settings, self._names)

    def encode(
        self,
        texts: str | Sequence[str],
        first_token: FirstToken = "cls",
        max_length: int | None = None,
        pad_to: Literal["longest"] | int | None = None,
    ) -> Tokens:
        """Tokenize texts: the first token, word pieces, [SEP], padding. Texts are not cleaned.

        Args:
            texts: Texts, or a single text.
            first_token: First token of all texts.
            max_length: Maximum number of tokens, the first token and [SEP] included; longer texts are truncated.
            pad_to: Length to pad to. The default is the length of the longest text.

        Returns:
            Token ids and mask (B, T).

        Raises:
            InputError: A text is not a string, or has more than `pad_to` tokens, or an option is out of range.
        """
        if first_token not in self._first_ids:
            raise InputError(f"first_token must be 'cls', 'enc' or 'dec', got {first_token!r}")
        if max_length is not None and max_length < 2:
            raise InputError(f"max_length must be at least 2, for the first token and [SEP], got {max_length}")
        texts = [texts] if isinstance(texts, str) else list(texts)
        max_pieces = None if max_length is None else max_length - 2
        first_id = self._first_ids[first_token]
        rows = [[first_id, *self.spell(text)[:max_pieces], self.sep_id] for text in texts]
        longest = max(map(len, rows), default=0)
        width = longest if pad_to in (None, "longest") else int(pad_to)
        if width < longest:
            raise InputError(
                f"pad_to must be at least the length of the longest text, {longest} tokens, got {width}; "
                "set max_length to truncate texts"
            )

        import torch

        ids = [row + [self.pad_id] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        shape = (len(rows), width)
        return Tokens(
            torch.tensor(ids, dtype=torch.int64).reshape(shape), torch.tensor(mask, dtype=torch.int64).reshape(shape)
        )

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return [DEC] and the word pieces of a prompt, without [SEP]: the tokens that decoding continues."""
        return [self.dec_id, *self.spell(prompt)]

    def spell(self, text: str) -> tuple[int, ...]:
        """Return the ids of the word pieces of a text, without special tokens."""
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, got {type(text).__name__}")
        # Drop lone surrogates, which occur in broken JSON and file names, as BERT drops U+FFFD.
        text = text.encode("utf-8", "ignore").decode("utf-8")
        return tuple(self.backend.encode(text, add_special_tokens=False).ids)

    @cached_property
    def vocab_pieces(self) -> tuple[str, ...]:
        """The word piece of each id of the vocabulary; the empty string for unused ids."""
        vocab = self.backend.get_vocab()
        pieces = [""] * (max(vocab.values()) + 1)
        for piece, i in vocab.items():
            pieces[i] = piece
        return tuple(pieces)

    def decode(self, ids: Iterable[int] | Tensor, *, clean_up: bool = True, skip_special: bool = True) -> str:
        """Join word pieces to readable text. Ids outside the vocabulary are skipped.

        Args:
            ids: Token ids (T,).
            clean_up: Whether to close the gaps before punctuation and in "it's", as the original does, and to drop `##`
                at the start. Without it, the text is the default output of transformers 5 for the tokenizers of the
                hub: "it's" stays "it ' s".
            skip_special: Whether to skip special tokens.

        Returns:
            The text.
        """
        ids = self._known_ids(ids, skip_special)
        text = self.backend.decode(ids, skip_special_tokens=skip_special)
        if not clean_up:
            return text
        return _close_gaps(text.removeprefix("##") if self._starts_inside_word(ids) else text)

    def decode_after(self, prompt: str, ids: Iterable[int] | Tensor) -> str:
        """Return a prompt as it was typed, continued by new tokens. A `##` piece continues the prompt's final word.

        >>> tokenizer.decode_after("a photo of snow", ids_of("##man ."))  # doctest: +SKIP
        'a photo of snowman.'

        Args:
            prompt: The prompt.
            ids: Ids of the new tokens (T,).

        Returns:
            The text.
        """
        ids = self._known_ids(ids, skip_special=True)
        text = self.backend.decode(ids)
        prompt = prompt.strip()
        if not prompt or not text:
            return prompt or self.decode(ids)
        if self._starts_inside_word(ids):
            return prompt + _close_gaps(text.removeprefix("##"))
        return prompt + _close_gaps(f" {text}")

    def pieces(self, ids: Iterable[int] | Tensor) -> list[str]:
        """Return the word piece or special token of each id (T,), or the number of an id outside the vocabulary."""
        special_names = {self.dec_id: "[DEC]", self.enc_id: "[ENC]"}
        return [self._piece(i) or special_names.get(i, f"[{i}]") for i in _to_list(ids)]

    def _known_ids(self, ids: Iterable[int] | Tensor, skip_special: bool) -> list[int]:
        """Return the ids that have a word piece."""
        known = [i for i in _to_list(ids) if self._piece(i) is not None]
        return [i for i in known if i not in self._special_ids] if skip_special else known

    def _starts_inside_word(self, ids: list[int]) -> bool:
        return bool(ids) and str(self._piece(ids[0])).startswith("##")

    def _piece(self, i: int) -> str | None:
        return self.backend.id_to_token(i) if i >= 0 else None

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, dec_id={self.dec_id}, enc_id={self.enc_id})"


def _close_gaps(text: str) -> str:
    for gap, replacement in _GAPS.items():
        text = text.replace(gap, replacement)
    return text


def _to_list(ids: Iterable[int] | Tensor) -> list[int]:
    return [int(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]


def _with_ids(settings: Mapping[str, Any], dec_id: int | None, enc_id: int | None) -> dict[str, Any]:
    """Return the settings with the ids of the caller, which take precedence over saved ids."""
    overrides = {name: i for name, i in (("dec_id", dec_id), ("enc_id", enc_id)) if i is not None}
    if min(overrides.values(), default=0) < 0:
        raise InputError(f"token ids must not be negative, got {overrides}")
    # A new [DEC] discards a saved [ENC]: [ENC] is then the next id, unless the caller sets it too.
    saved = {} if "dec_id" in overrides else settings.get("openblip") or {}
    return {**settings, "openblip": {**saved, **overrides}}
