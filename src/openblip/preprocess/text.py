"""Text as BLIP was trained on it: cleaned captions and questions, and BERT WordPiece with [DEC] and [ENC].

The first token tells the text transformer what to do (paper section 3.1): [CLS] for text alone, [ENC] for text encoded
together with an image, [DEC] for decoding. It is set here and never changed later.
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

First = Literal["cls", "enc", "dec"]

# --- cleaning -----------------------------------------------------------------------------------------------------

_DROPPED = '.!"()*#:;~'
_TO_SPACE = str.maketrans(dict.fromkeys(_DROPPED, " "))
_TO_NOTHING = str.maketrans(dict.fromkeys(_DROPPED, ""))
_NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, ""))
_SPACE_RUN = re.compile(r"\s{2,}")


def clean_caption(text: str, max_words: int = 50) -> str:
    """A caption as training saw it: lower case, ``. ! " ( ) * # : ; ~`` as spaces, runs of white space as one space.

    >>> clean_caption("A dog (brown) runs.")
    'a dog brown runs'
    """
    text = _SPACE_RUN.sub(" ", text.lower().translate(_TO_SPACE))
    return _first_words(text.rstrip("\n").strip(" "), max_words)


def clean_question(text: str, max_words: int = 50) -> str:
    """A question as training saw it: lower case, ``. ! " ( ) * # : ; ~`` deleted, spaces at the end dropped.

    >>> clean_question("What time is it: 3:30?")
    'what time is it 330?'
    """
    return _first_words(text.lower().translate(_TO_NOTHING).rstrip(" "), max_words)


def clean_expression(text: str) -> str:
    """An expression to ground as mmpretrain's model saw it in training: lower case, all ASCII punctuation deleted.

    >>> clean_expression("The man's hat, left.")
    'the mans hat left'
    """
    return _SPACE_RUN.sub(" ", text.strip().translate(_NO_PUNCTUATION)).lower()


def _first_words(text: str, limit: int) -> str:
    # A word is what lies between two single spaces, so a run of spaces counts empty words, as it did in training.
    return " ".join(text.split(" ")[:limit])


# --- tokens -------------------------------------------------------------------------------------------------------

# The gaps that BERT's splitting leaves in English, closed in this order by every BERT decoder since 2019.
_GAPS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """A batch padded on the right: ``ids`` and ``mask`` (B, T), int64; the mask is 1 on tokens and 0 on padding."""

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        return Tokens(self.ids.to(device), self.mask.to(device))


class Tokenizer:
    """BERT WordPiece from a checkpoint's own files, with [DEC] and [ENC]. Immutable: many threads may share one.

    Built by ``load``, ``from_folder`` or ``from_vocab``. ``backend`` is the tokenizer of the ``tokenizers`` library,
    for reading only. ``vocab_size`` is what the word embedding must hold: one more than the largest id, [DEC] and [ENC]
    counted in.

    [DEC] and [ENC] keep the ids that the files give them. Where the files lack them, as the hub's plain BERT vocabulary
    does, [DEC] is ``dec_id`` (a configuration's ``bos_token_id``) or else the id after the vocabulary, [ENC] is
    ``enc_id`` or else the id after [DEC]; the files are then saved without them too, so that transformers finds the
    vocabulary it knows, and the two ids are kept beside it in ``tokenizer_config.json``.
    """

    def __init__(self, description: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """From what tokenizer.json and tokenizer_config.json hold; ``CheckpointError`` where BLIP cannot use it."""
        import tokenizers

        self._description, vocab, self._names = vocabulary.complete(description, settings)
        try:
            self.backend = tokenizers.Tokenizer.from_str(json.dumps(self._description))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"the tokenizer's files cannot be used: {error}") from error
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            vocab[self._names[name]] for name in ("pad", "unk", "cls", "sep")
        )
        given: Mapping[str, int] = settings.get("openblip") or {}
        self.dec_id: int = vocab.get("[DEC]", given.get("dec_id", len(vocab)))
        self.enc_id: int = vocab.get("[ENC]", given.get("enc_id", self.dec_id + 1))
        self.vocab_size = max(len(vocab), self.dec_id + 1, self.enc_id + 1)
        self._first = {"cls": self.cls_id, "enc": self.enc_id, "dec": self.dec_id}
        special = {token["id"] for token in self._description["added_tokens"] if token["special"]}
        self._special = frozenset(special | {self.dec_id, self.enc_id})
        unnamed = not {"[DEC]", "[ENC]"} <= vocab.keys()
        self._settings = {**settings, "openblip": {"dec_id": self.dec_id, "enc_id": self.enc_id} if unnamed else None}

    # -- files -----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dec_id: int | None = None, enc_id: int | None = None) -> Tokenizer:
        """From a hub folder, a ``vocab.txt`` or a ``tokenizer.json``."""
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
        """From ``vocab.txt`` or its lines: one piece each, in the order of their ids."""
        lines = vocabulary.read_vocab(Path(vocab)) if isinstance(vocab, (str, os.PathLike)) else vocab
        settings = {"do_lower_case": lower_case, "clean_up_tokenization_spaces": True}
        return cls(vocabulary.describe(lines, settings), _with_ids(settings, dec_id, enc_id))

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], *, dec_id: int | None = None, enc_id: int | None = None
    ) -> Tokenizer:
        """From the tokenizer files of a hub folder, written by transformers 4 or 5: tokenizer.json, else vocab.txt."""
        description, settings = vocabulary.read_folder(Path(folder))
        try:
            return cls(description, _with_ids(settings, dec_id, enc_id))
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt, for transformers too."""
        vocabulary.write_folder(Path(folder), self._description, self._settings, self._names)

    # -- text to ids -----------------------------------------------------------------------------------------------

    def encode(
        self,
        texts: str | Sequence[str],
        first: First = "cls",
        max_length: int | None = None,
        pad_to: Literal["longest"] | int | None = None,
    ) -> Tokens:
        """Texts as ids (B, T): the first token, the pieces, [SEP], then padding to the longest or to ``pad_to``.

        ``max_length`` counts the first token and [SEP], which stay; without it nothing is cut. Texts are not cleaned
        here. ``InputError`` for what is not text, and where ``pad_to`` is too short.
        """
        if first not in self._first:
            raise InputError(f"first is 'cls', 'enc' or 'dec', not {first!r}")
        if max_length is not None and max_length < 2:
            raise InputError(
                f"max_length {max_length} leaves no room for the first token and [SEP]; it must be 2 or more"
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        keep = None if max_length is None else max_length - 2
        rows = [[self._first[first], *self._split(text)[:keep], self.sep_id] for text in texts]
        longest = max(map(len, rows), default=0)
        width = longest if pad_to in (None, "longest") else int(pad_to)
        if width < longest:
            raise InputError(f"a text has {longest} tokens, more than pad_to={width}: set max_length to cut it")

        import torch

        ids = [row + [self.pad_id] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        shape = (len(rows), width)
        return Tokens(
            torch.tensor(ids, dtype=torch.int64).reshape(shape), torch.tensor(mask, dtype=torch.int64).reshape(shape)
        )

    def encode_prompt(self, prompt: str) -> list[int]:
        """[DEC] and the pieces of the prompt, without [SEP]: where decoding starts."""
        return [self.dec_id, *self._split(prompt)]

    @cached_property
    def vocab_pieces(self) -> tuple[str, ...]:
        """The piece of every id that the vocabulary has, (V,); "" where it has none."""
        vocab = self.backend.get_vocab()
        found = [""] * (max(vocab.values()) + 1)
        for piece, number in vocab.items():
            found[number] = piece
        return tuple(found)

    def spell(self, text: str) -> tuple[int, ...]:
        """The ids of a text's pieces alone."""
        return tuple(self._split(text))

    def _split(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"a text is a str, not {type(text).__name__}")
        # Half a surrogate pair, as broken JSON or file names hold, is no character: BERT drops such as it drops U+FFFD.
        text = text.encode("utf-8", "ignore").decode("utf-8")
        return self.backend.encode(text, add_special_tokens=False).ids

    # -- ids to text -----------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int] | Tensor, *, clean_up: bool = True, skip_special: bool = True) -> str:
        """Readable text of ids (T,): pieces joined, special tokens and ids outside the vocabulary left out.

        ``clean_up`` closes the gaps before full stops and in "it's", as the original's outputs have it, and drops the
        mark of a word piece at the start. Without it the text is what transformers 5 gives by default for the hub's
        tokenizers, whose own clean-up sees one piece at a time: "it's" stays "it ' s".
        """
        kept = self._kept(ids, skip_special)
        text = self.backend.decode(kept, skip_special_tokens=skip_special)
        return _close_gaps(text.removeprefix("##") if self._continues(kept) else text) if clean_up else text

    def decode_after(self, prompt: str, ids: Iterable[int] | Tensor) -> str:
        """The prompt as it was typed, continued by the new ids; a "##" piece continues the prompt's last word.

        >>> tokenizer.decode_after("a photo of snow", ids_of("##man ."))  # doctest: +SKIP
        'a photo of snowman.'
        """
        kept = self._kept(ids, skip_special=True)
        text = self.backend.decode(kept)
        head = prompt.strip()
        if not head or not text:
            return head or self.decode(kept)
        return head + (_close_gaps(text.removeprefix("##")) if self._continues(kept) else _close_gaps(f" {text}"))

    def pieces(self, ids: Iterable[int] | Tensor) -> list[str]:
        """The name of every id (T,), special ones included; an id outside the vocabulary is shown as its number."""
        named = {self.dec_id: "[DEC]", self.enc_id: "[ENC]"}
        return [self._piece(i) or named.get(i, f"[{i}]") for i in _as_list(ids)]

    def _kept(self, ids: Iterable[int] | Tensor, skip_special: bool) -> list[int]:
        known = [i for i in _as_list(ids) if self._piece(i) is not None]
        return [i for i in known if i not in self._special] if skip_special else known

    def _continues(self, kept: list[int]) -> bool:
        return bool(kept) and str(self._piece(kept[0])).startswith("##")

    def _piece(self, token: int) -> str | None:
        return self.backend.id_to_token(token) if token >= 0 else None

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} ids, [DEC] {self.dec_id}, [ENC] {self.enc_id})"


def _close_gaps(text: str) -> str:
    for gap, closed in _GAPS:
        text = text.replace(gap, closed)
    return text


def _as_list(ids: Iterable[int] | Tensor) -> list[int]:
    return [int(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]


def _with_ids(settings: Mapping[str, Any], dec_id: int | None, enc_id: int | None) -> dict[str, Any]:
    """The settings with the ids that a caller gives in place of those that the files remember."""
    given = {name: number for name, number in (("dec_id", dec_id), ("enc_id", enc_id)) if number is not None}
    if min(given.values(), default=0) < 0:
        raise InputError(f"an id is not negative: {given}")
    # A given [DEC] drops a remembered [ENC]: the next id is meant, unless that is given too.
    return {**settings, "openblip": given if "dec_id" in given else {**(settings.get("openblip") or {}), **given}}
