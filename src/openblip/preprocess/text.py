"""Text as BLIP was trained on it: cleaned captions and questions, and BERT WordPiece with [DEC] and [ENC].

The first token tells the text transformer what to do (paper section 3.1): [CLS] for text alone, [ENC] for text encoded
together with an image, [DEC] for decoding. It is set here and never changed later.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import tokenizers
    import torch
    from torch import Tensor

First = Literal["cls", "enc", "dec"]


def clean_caption(text: str, max_words: int = 50) -> str:
    """A caption as training saw it: lower case, ``. ! " ( ) * # : ; ~`` turned to spaces, runs of space collapsed."""
    raise NotImplementedError


def clean_question(text: str, max_words: int = 50) -> str:
    """A question as training saw it: lower case, ``. ! " ( ) * # : ; ~`` deleted, spaces at the end dropped."""
    raise NotImplementedError


@dataclass(frozen=True)
class Tokens:
    """A padded batch: ``ids`` and ``mask`` (B, T), int64; the mask is 1 on tokens and 0 on padding, which is right."""

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.ids.to(device), self.mask.to(device))


class Tokenizer:
    """BERT WordPiece from a checkpoint's own files, with [DEC] and [ENC]. Immutable, so that many threads can share it."""

    backend: tokenizers.Tokenizer
    vocab_size: int  # what the word embedding must hold: one more than the largest id, [DEC] and [ENC] counted
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    dec_id: int
    enc_id: int

    @classmethod
    def from_vocab(
        cls,
        vocab: str | os.PathLike[str] | Sequence[str],
        *,
        lower_case: bool = True,
        dec_id: int | None = None,
        enc_id: int | None = None,
    ) -> Tokenizer:
        """From ``vocab.txt`` or its lines. [DEC] and [ENC] follow the vocabulary unless they stand in it or are given."""
        raise NotImplementedError

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], *, dec_id: int | None = None, enc_id: int | None = None
    ) -> Tokenizer:
        """From a hub folder: tokenizer.json, or vocab.txt; ``dec_id``/``enc_id`` are used where the files lack them."""
        raise NotImplementedError

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, dec_id: int | None = None, enc_id: int | None = None
    ) -> Tokenizer:
        """From a folder, a ``vocab.txt`` or a ``tokenizer.json``."""
        raise NotImplementedError

    def encode(
        self,
        texts: str | Sequence[str],
        first: First = "cls",
        max_length: int | None = None,
        pad_to: Literal["longest"] | int | None = None,
    ) -> Tokens:
        """Texts as ids (B, T): first token, pieces, [SEP], padding on the right to the longest or to ``pad_to``."""
        raise NotImplementedError

    def encode_prompt(self, prompt: str) -> list[int]:
        """[DEC] and the pieces of the prompt, without [SEP]: where decoding starts."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int] | Tensor, *, clean_up: bool = True, skip_special: bool = True) -> str:
        """Readable text of ids, special tokens left out; ``clean_up=False`` is what transformers 5 prints by default."""
        raise NotImplementedError

    def decode_after(self, prompt: str, ids: Sequence[int] | Tensor) -> str:
        """The prompt as it was typed, continued by the new ids; a "##" piece joins the prompt's last word."""
        raise NotImplementedError

    def pieces(self, ids: Sequence[int] | Tensor) -> list[str]:
        """The name of every id, special ones included."""
        raise NotImplementedError

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt."""
        raise NotImplementedError
