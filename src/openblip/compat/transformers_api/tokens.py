"""``BlipTokenizer``: the BERT tokenizer of that library, as a processor holds it.

It knows exactly the tokens of the files it came from, so [DEC] and [ENC] only if they stand there; the hub's folders
lack them, and ids that the vocabulary does not have are left out of decoded text. Beneath it is our own tokenizer
(:mod:`openblip.preprocess.text`), which always knows the two. Nothing changes after construction, so that threads can
share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from torch import Tensor

from openblip.compat.transformers_api.features import BatchFeature
from openblip.compat.transformers_api.files import StrPath, local_folder
from openblip.errors import InputError
from openblip.preprocess import vocabulary
from openblip.preprocess.text import Tokenizer

_NAMED = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "bos_token": None,
    "eos_token": None,
}
_NO_LIMIT = 10**20  # from here on, a length is that library's way to write "any"
_PADDING = (False, True, "longest", "max_length", "do_not_pad")
_TRUNCATION = (False, True, "longest_first", "only_first", "only_second", "do_not_truncate")
_SIDES = ("left", "right")
_RETURNS = {
    "token_type_ids": True,
    "attention_mask": True,
    "special_tokens_mask": False,
    "offsets_mapping": False,
    "length": False,
}
_CHANGEABLE = ("do_lower_case", "model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")


class BlipTokenizer:
    """Texts to ids and back; ``vocab`` is a file of pieces, one a line, or the pieces themselves."""

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def __init__(self, vocab: StrPath | Sequence[str] | Tokenizer, **settings: Any) -> None:
        if not isinstance(vocab, Tokenizer):
            pieces = vocab if isinstance(vocab, list | tuple) else vocabulary.read_vocab(Path(str(vocab)))
            vocab = Tokenizer(vocabulary.describe(pieces, settings), settings)
        self.core = vocab
        self.special_tokens = {name: _content(settings.get(name, default)) for name, default in _NAMED.items()}
        self.model_max_length = int(settings.get("model_max_length") or _NO_LIMIT)
        self.padding_side = settings.get("padding_side") or "right"
        self.truncation_side = settings.get("truncation_side") or "right"
        self.clean_up_tokenization_spaces = bool(settings.get("clean_up_tokenization_spaces", False))

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer of the ``tokenizers`` library, for reading only."""
        return self.core.backend

    # Texts to ids

    def __call__(self, text: Any, text_pair: Any = None, **options: Any) -> BatchFeature:
        """``input_ids``, ``token_type_ids`` and ``attention_mask`` of a text or a list.

        Options are the ordinary ones of that library: ``padding``, ``truncation``, ``max_length``,
        ``pad_to_multiple_of``, ``padding_side``, ``add_special_tokens``, ``is_split_into_words``, ``return_tensors``,
        and ``return_...`` for each entry; an unknown one raises ``TypeError``.
        """
        asked = _Options.of(self, options)
        texts, pairs, single = _batch(text, text_pair, asked.split)
        encodings = [self._encode(one, pair, asked) for one, pair in zip(texts, pairs, strict=True)]
        length = asked.padded_length([len(encoding.ids) for encoding in encodings])
        rows = [self._row(encoding, length, asked) for encoding in encodings]
        data: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        if single and asked.tensors is None:
            data = {name: values if name == "length" else values[0] for name, values in data.items()}
        return BatchFeature(data, tensor_type=asked.tensors)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The ids alone."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, without first and last token."""
        return list(self.backend.encode(text, add_special_tokens=False).tokens)

    def _encode(self, text: Any, pair: Any, asked: _Options) -> tokenizers.Encoding:
        encode = self.backend.encode
        first = encode(text, is_pretokenized=asked.split, add_special_tokens=False)
        second = None
        if pair is not None:
            second = encode(pair, is_pretokenized=asked.split, add_special_tokens=False)
        if asked.truncation:
            added = self.backend.num_special_tokens_to_add(second is not None) if asked.special else 0
            asked.truncate(first, second, max(asked.max_length - added, 0), self.truncation_side)
        return self.backend.post_process(first, second, asked.special)

    def _row(self, encoding: tokenizers.Encoding, length: int, asked: _Options) -> dict[str, Any]:
        """The entries of one text, padded to ``length`` tokens."""
        entries: dict[str, tuple[list[Any], Any]] = {"input_ids": (encoding.ids, self.pad_token_id)}
        if asked.returns["token_type_ids"]:
            entries["token_type_ids"] = (encoding.type_ids, 0)
        if asked.returns["attention_mask"]:
            entries["attention_mask"] = (encoding.attention_mask, 0)
        if asked.returns["special_tokens_mask"]:
            entries["special_tokens_mask"] = (encoding.special_tokens_mask, 1)
        if asked.returns["offsets_mapping"]:
            entries["offset_mapping"] = (encoding.offsets, (0, 0))
        row: dict[str, Any] = {}
        for name, (values, filler) in entries.items():
            padding = [filler] * (length - len(values))
            row[name] = padding + values if asked.side == "left" else values + padding
        if asked.returns["length"]:
            row["length"] = len(row["input_ids"])
        return row

    # Ids to texts

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of a row of ids, or the texts of several rows."""
        ids = _plain(token_ids)
        if ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        clean = clean_up_tokenization_spaces
        return _clean(text) if (self.clean_up_tokenization_spaces if clean is None else clean) else text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The texts of rows of ids."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The pieces of ids; ``None`` for an id that the vocabulary does not have."""
        found = [self.backend.id_to_token(i) for i in _plain(ids)]
        return found[0] if isinstance(ids, int) else found

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The ids of pieces; [UNK] for one that the vocabulary does not have."""
        if isinstance(tokens, str):
            found = self.backend.token_to_id(tokens)
            return self.core.unk_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    # The vocabulary

    @property
    def vocab_size(self) -> int:
        """How many pieces there are; ``len()`` says the same, as added ones are part of the vocabulary here."""
        return len(self)

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """All pieces with their ids."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of tokens that are no text."""
        return sorted(number for number, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @property
    def all_special_tokens(self) -> list[str]:
        """Their pieces."""
        return [str(self.backend.id_to_token(number)) for number in self.all_special_ids]

    def __getattr__(self, name: str) -> Any:
        """``pad_token``, ``pad_token_id``, and so on for every named special token."""
        special = self.__dict__.get("special_tokens", {})
        if name in special:
            return special[name]
        if name.removesuffix("_id") in special:
            token = special[name.removesuffix("_id")]
            return None if token is None else self.convert_tokens_to_ids(token)
        raise AttributeError(f"BlipTokenizer has no {name!r}")

    # Files

    @classmethod
    def from_pretrained(cls, name_or_path: StrPath, **kwargs: Any) -> BlipTokenizer:
        """From ``tokenizer.json`` or ``vocab.txt`` of a folder or hub id, and ``tokenizer_config.json`` beside it."""
        folder, kwargs = local_folder(name_or_path, kwargs)
        description, settings = vocabulary.read_folder(folder)
        settings.update({name: value for name, value in kwargs.items() if name in _CHANGEABLE})
        return cls(Tokenizer(description, settings), **settings)

    def save_pretrained(self, save_directory: StrPath) -> tuple[str, ...]:
        """Write the tokenizer's files, which ``transformers`` reads too; the paths written."""
        self.core.save(save_directory)
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
        return tuple(str(Path(save_directory) / name) for name in names)


class _Options:
    """The options of one call, checked."""

    def __init__(self, **values: Any) -> None:
        self.padding: Any = values["padding"]
        self.truncation: Any = values["truncation"]
        self.max_length: int = values["max_length"]
        self.multiple: int | None = values["multiple"]
        self.side: str = values["side"]
        self.special: bool = values["special"]
        self.split: bool = values["split"]
        self.tensors: str | None = values["tensors"]
        self.returns: dict[str, bool] = values["returns"]

    @classmethod
    def of(cls, tokenizer: BlipTokenizer, given: Mapping[str, Any]) -> _Options:
        options = dict(given)
        padding, truncation = options.pop("padding", False), options.pop("truncation", None)
        max_length, side = options.pop("max_length", None), options.pop("padding_side", None) or tokenizer.padding_side
        if max_length is not None and padding is False and truncation is None:
            truncation = "longest_first"  # a length alone truncates
        padding, truncation = padding or False, truncation or False
        _one_of("padding", padding, _PADDING)
        _one_of("truncation", truncation, _TRUNCATION)
        _one_of("padding_side", side, _SIDES)
        if options.pop("stride", 0) or options.pop("return_overflowing_tokens", False):
            raise InputError("stride and return_overflowing_tokens are not supported: BLIP reads one short text")
        multiple = options.pop("pad_to_multiple_of", None)
        special, split = options.pop("add_special_tokens", True), options.pop("is_split_into_words", False)
        tensors = options.pop("return_tensors", None)
        returns = {name: options.pop(f"return_{name}", None) for name in _RETURNS}
        options.pop("verbose", None)
        if options:
            raise TypeError(f"the tokenizer has no option {', '.join(sorted(options))}")
        unlimited = max_length is None and tokenizer.model_max_length >= _NO_LIMIT
        if padding == "do_not_pad" or (padding == "max_length" and unlimited):
            padding = False
        if truncation == "do_not_truncate" or unlimited:
            truncation = False
        return cls(
            padding=padding,
            truncation="longest_first" if truncation is True else truncation,
            max_length=tokenizer.model_max_length if max_length is None else max_length,
            multiple=multiple,
            side=side,
            special=special,
            split=split,
            tensors=tensors,
            returns={name: _RETURNS[name] if value is None else bool(value) for name, value in returns.items()},
        )

    def padded_length(self, lengths: Sequence[int]) -> int:
        """What rows of these lengths are padded to; 0 if they are not."""
        if not self.padding:
            return 0
        length = self.max_length if self.padding == "max_length" else max(lengths)
        return -(-length // self.multiple) * self.multiple if self.multiple else length

    def truncate(
        self, first: tokenizers.Encoding, second: tokenizers.Encoding | None, room: int, direction: str
    ) -> None:
        """Cut one text, or a pair, to ``room`` tokens together."""
        lengths = [len(first), len(second) if second is not None else 0]
        excess = sum(lengths) - room
        if excess <= 0:
            return
        if self.truncation == "longest_first":
            lengths = _share(lengths, room) if second is not None else [room, 0]
        else:
            place = 0 if self.truncation == "only_first" else 1
            if lengths[place] <= excess:
                raise InputError(f"truncation={self.truncation!r}: that text is too short to lose {excess} tokens")
            lengths[place] -= excess
        first.truncate(lengths[0], direction=direction)
        if second is not None:
            second.truncate(lengths[1], direction=direction)


def _share(lengths: Sequence[int], room: int) -> list[int]:
    """How a pair shares ``room``: the longer text gives, until both are equally long."""
    short, long = min(lengths), max(lengths)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return [short, long] if lengths[0] <= lengths[1] else [long, short]


def _batch(text: Any, pair: Any, split: bool) -> tuple[list[Any], list[Any], bool]:
    """Texts, their partners (or ``None``), and whether a single text was given."""
    if isinstance(text, list | tuple) and (not split or (text and isinstance(text[0], list | tuple))):
        texts = list(text)
        if not texts:
            raise InputError("no text was given")
        if not split and all(isinstance(one, list | tuple) and len(one) == 2 for one in texts):
            return [one[0] for one in texts], [one[1] for one in texts], False
        pairs = [None] * len(texts) if pair is None else list(pair) if not isinstance(pair, str) else []
        if len(pairs) != len(texts):
            raise InputError(f"{len(texts)} texts need as many partners in text_pair")
        single = False
    else:
        texts, pairs, single = [text], [pair or None], True
    if not split and not all(isinstance(one, str) for one in texts):
        raise InputError("a text is a string, several are a list of strings")
    return texts, pairs, single


def _content(token: Any) -> str | None:
    """A special token's text, from the text itself or the record that files have for it."""
    return token["content"] if isinstance(token, Mapping) else token


def _plain(ids: Any) -> list[Any]:
    """Ids as plain numbers, in a list or a list of lists."""
    if isinstance(ids, Tensor | np.ndarray):
        ids = ids.tolist()
    if isinstance(ids, int | np.integer):
        return [int(ids)]
    return [_plain(one) if _is_row(one) else int(one) for one in ids]


def _is_row(one: Any) -> bool:
    return isinstance(one, list | tuple) or (isinstance(one, Tensor | np.ndarray) and one.ndim > 0)


def _clean(text: str) -> str:
    """Close the spaces that word pieces leave before punctuation and within contractions."""
    for spaced in (" .", " ?", " !", " ,"):
        text = text.replace(spaced, spaced[1:])
    text = text.replace(" ' ", "'")
    for spaced in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced[1:])
    return text


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
        raise InputError(f"{name}={value!r}: one of {', '.join(map(repr, allowed))}")
