"""`BlipTokenizer`: the BERT tokenizer of a `BlipProcessor`.

The vocabulary comes from the files. Folders on the hub do not contain [DEC] and [ENC]; ids outside the vocabulary are
omitted from decoded text. `BlipTokenizer.core` is OpenBLIP's tokenizer, which always has both tokens. Threads can share
a tokenizer; `add_tokens` replaces `core` by a larger one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers

from openblip.compat.transformers_api.features import BatchFeature
from openblip.compat.transformers_api.files import PushToHub, StrPath, local_folder, write_text
from openblip.compat.transformers_api.tensors import is_tensor, to_array
from openblip.errors import InputError
from openblip.preprocess import vocabulary
from openblip.preprocess.text import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "bos_token": None,
    "eos_token": None,
}
_NO_LIMIT = 10**20  # transformers writes larger numbers for an unlimited length
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


class BlipTokenizer(PushToHub):
    """Converts texts to token ids and back.

    Args:
        vocab: Vocabulary file, list of word pieces, or tokenizer.
        **settings: Settings of `tokenizer_config.json`.
    """

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def __init__(self, vocab: StrPath | Sequence[str] | Tokenizer, **settings: Any) -> None:
        if not isinstance(vocab, Tokenizer):
            pieces = vocab if isinstance(vocab, list | tuple) else vocabulary.read_vocab(Path(str(vocab)))
            vocab = Tokenizer(vocabulary.describe(pieces, settings), settings)
        self.core = vocab
        self._settings = settings
        self.special_tokens: dict[str, str | None] = {}
        for name, default in _SPECIAL_TOKENS.items():
            token = settings.get(name, default)
            self.special_tokens[name] = token["content"] if isinstance(token, Mapping) else token
        self.model_max_length = int(settings.get("model_max_length") or _NO_LIMIT)
        self.padding_side = settings.get("padding_side") or "right"
        self.truncation_side = settings.get("truncation_side") or "right"
        self.clean_up_tokenization_spaces = bool(settings.get("clean_up_tokenization_spaces", False))

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer of the `tokenizers` library. Do not change it."""
        return self.core.backend

    def __call__(self, text: Any, text_pair: Any = None, **options: Any) -> BatchFeature:
        """Encode texts.

        Args:
            text: A text or a list of texts.
            text_pair: A second text for each text.
            **options: `padding`, `truncation`, `max_length`, `pad_to_multiple_of`, `padding_side`,
                `add_special_tokens`, `is_split_into_words`, `return_tensors`, and `return_...` for each entry, as in
                `transformers`.

        Returns:
            `input_ids`, `token_type_ids` and `attention_mask`.

        Raises:
            InputError: If texts or options are invalid or not supported.
            TypeError: If there is no such option.
        """
        settings = _Options.parse(self, options)
        texts, pairs, is_single = _list_texts(text, text_pair, settings.split)
        encodings = [self._encode(entry, pair, settings) for entry, pair in zip(texts, pairs, strict=True)]
        length = settings.padded_length([len(encoding.ids) for encoding in encodings])
        rows = [self._make_row(encoding, length, settings) for encoding in encodings]
        data: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        if is_single and settings.tensors is None:
            data = {name: values if name == "length" else values[0] for name, values in data.items()}
        return BatchFeature(data, tensor_type=settings.tensors)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> list[int] | list[list[int]] | Tensor:
        """Return the token ids of texts.

        Args:
            text: A text or a list of texts.
            text_pair: A second text for each text.
            **options: Options of a call.

        Returns:
            Ids of one text, a list of these, or a tensor with `return_tensors`.
        """
        ids: list[int] | list[list[int]] | Tensor = self(text, text_pair, **options)["input_ids"]
        return ids

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """Return the word pieces of a text.

        Args:
            text: The text.
            pair: A second text.
            add_special_tokens: Add [CLS] and [SEP].

        Returns:
            The word pieces.
        """
        return list(self.backend.encode(text, pair, add_special_tokens=add_special_tokens).tokens)

    def _encode(self, text: Any, pair: Any, settings: _Options) -> tokenizers.Encoding:
        encode = self.backend.encode
        encoding = encode(text, is_pretokenized=settings.split, add_special_tokens=False)
        pair_encoding = None
        if pair is not None:
            pair_encoding = encode(pair, is_pretokenized=settings.split, add_special_tokens=False)
        if settings.truncation:
            num_special = 0
            if settings.special:
                num_special = self.backend.num_special_tokens_to_add(pair_encoding is not None)
            max_length = max(settings.max_length - num_special, 0)
            settings.truncate(encoding, pair_encoding, max_length, self.truncation_side)
        return self.backend.post_process(encoding, pair_encoding, settings.special)

    def _make_row(self, encoding: tokenizers.Encoding, length: int, settings: _Options) -> dict[str, Any]:
        """Return the entries of one text, padded to `length` tokens."""
        entries: dict[str, tuple[list[Any], Any]] = {"input_ids": (encoding.ids, self.pad_token_id)}
        if settings.returns["token_type_ids"]:
            entries["token_type_ids"] = (encoding.type_ids, 0)
        if settings.returns["attention_mask"]:
            entries["attention_mask"] = (encoding.attention_mask, 0)
        if settings.returns["special_tokens_mask"]:
            entries["special_tokens_mask"] = (encoding.special_tokens_mask, 1)
        if settings.returns["offsets_mapping"]:
            entries["offset_mapping"] = (encoding.offsets, (0, 0))
        row: dict[str, Any] = {}
        for name, (values, filler) in entries.items():
            padding = [filler] * (length - len(values))
            row[name] = padding + values if settings.side == "left" else values + padding
        if settings.returns["length"]:
            row["length"] = len(row["input_ids"])
        return row

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str | list[str]:
        """Return the text of token ids.

        Args:
            token_ids: A row of ids, or several rows.
            skip_special_tokens: Omit special tokens.
            clean_up_tokenization_spaces: Remove spaces before punctuation; by default as in the files.

        Returns:
            One text, or a list with one text per row.
        """
        rows = _to_lists(token_ids)
        if rows and isinstance(rows[0], list):
            return self.batch_decode(rows, skip_special_tokens, clean_up_tokenization_spaces)
        return self._decode_row(rows, skip_special_tokens, clean_up_tokenization_spaces)

    def _decode_row(self, ids: list[int], skip_special_tokens: bool, clean: bool | None) -> str:
        text: str = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if self.clean_up_tokenization_spaces if clean is None else clean:
            for spaced in (" .", " ?", " !", " ,"):
                text = text.replace(spaced, spaced[1:])
            text = text.replace(" ' ", "'")
            for spaced in (" n't", " 'm", " 's", " 've", " 're"):
                text = text.replace(spaced, spaced[1:])
        return text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Return the texts of rows of token ids.

        Args:
            sequences: Rows of ids.
            skip_special_tokens: Omit special tokens.
            clean_up_tokenization_spaces: Remove spaces before punctuation; by default as in the files.

        Returns:
            The texts of rows of token ids.
        """
        options = (skip_special_tokens, clean_up_tokenization_spaces)
        return [self._decode_row(_to_lists(row), *options) for row in sequences]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str | None] | None:
        """Return the word piece of an id, or the pieces of several ids; `None` for ids outside the vocabulary.

        Args:
            ids: An id, or several ids.
            skip_special_tokens: Omit the special tokens among several ids.

        Returns:
            The word piece of an id, or the pieces of several ids; `None` for ids outside the vocabulary.
        """
        if isinstance(ids, int):
            return self.backend.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend.id_to_token(token_id) for token_id in _to_lists(ids) if token_id not in skipped]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Return the id of a word piece, or the ids of several pieces; the id of [UNK] for unknown pieces.

        Args:
            tokens: A word piece, or several pieces.

        Returns:
            The id of a word piece, or the ids of several pieces; the id of [UNK] for unknown pieces.
        """
        pieces = [tokens] if isinstance(tokens, str) else tokens
        ids = []
        for piece in pieces:
            token_id = self.backend.token_to_id(piece)
            ids.append(self.core.unk_id if token_id is None else token_id)
        return ids[0] if isinstance(tokens, str) else ids

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return the text of word pieces.

        Args:
            tokens: Word pieces.

        Returns:
            The text.
        """
        return str(self.backend.decoder.decode(list(tokens)))

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchFeature:
        """Pad encoded texts to one length; collators call it.

        Args:
            encoded_inputs: One encoded text, a batch of them, or a list of encoded texts.
            padding: `True` or "longest" for the longest text, "max_length" for `max_length`, `False` for none.
            max_length: Length of "max_length"; the model's maximum by default.
            pad_to_multiple_of: Round the length up to a multiple of this one.
            padding_side: "left" or "right".
            return_attention_mask: Return `attention_mask`, which is the default.
            return_tensors: "pt" or "np".
            verbose: Ignored.

        Returns:
            The padded entries. Entries of other names are returned as they are.

        Raises:
            InputError: There are no `input_ids`, or an option is invalid.
        """
        data: dict[str, Any]
        if isinstance(encoded_inputs, list | tuple):
            data = {
                name: [row[name] for row in encoded_inputs] for name in (encoded_inputs[0] if encoded_inputs else {})
            }
        else:
            data = dict(encoded_inputs)
        if "input_ids" not in data:
            raise InputError(f"pad needs input_ids, got {', '.join(data) or 'nothing'}")
        data = {name: _to_lists(values) if name in self.model_input_names else values for name, values in data.items()}
        is_single = not data["input_ids"] or not isinstance(data["input_ids"][0], list)
        if is_single:
            data = {name: [values] for name, values in data.items()}
        options = {"padding": padding, "max_length": max_length, "pad_to_multiple_of": pad_to_multiple_of}
        settings = _Options.parse(self, {**options, "padding_side": padding_side, "truncation": False})
        lengths = [len(ids) for ids in data["input_ids"]]
        length = settings.padded_length(lengths)
        if return_attention_mask is not False and "attention_mask" not in data:
            data["attention_mask"] = [[1] * count for count in lengths]
        if return_attention_mask is False:
            data.pop("attention_mask", None)
        fillers = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
        for name, filler in fillers.items():
            if name in data:
                data[name] = [_pad_row(row, length, filler, settings.side) for row in data[name]]
        if is_single and return_tensors is None:
            data = {name: values[0] for name, values in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens to the vocabulary; `resize_token_embeddings` gives a model embeddings for them.

        Args:
            new_tokens: A token or several tokens: texts, or `AddedToken` objects.
            special_tokens: Whether `skip_special_tokens` omits them.

        Returns:
            How many tokens were new.
        """
        tokens = new_tokens if isinstance(new_tokens, list | tuple) else [new_tokens]
        contents = [str(getattr(token, "content", token)) for token in tokens]
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        added = [tokenizers.AddedToken(content, special=special_tokens, normalized=False) for content in contents]
        count = int(backend.add_special_tokens(added) if special_tokens else backend.add_tokens(added))
        ids = {"dec_id": self.core.dec_id, "enc_id": self.core.enc_id}
        self.core = Tokenizer(json.loads(backend.to_str()), {**self._settings, "openblip": ids})
        return count

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Add special tokens, and set them by name.

        Args:
            special_tokens_dict: Tokens by name, such as `{"bos_token": "[DEC]"}`; `additional_special_tokens` or
                `extra_special_tokens` is a list.
            replace_extra_special_tokens: Ignored: tokens are never removed from the vocabulary.

        Returns:
            How many tokens were new.

        Raises:
            InputError: A name is unknown.
        """
        count = 0
        for name, value in special_tokens_dict.items():
            if name in ("additional_special_tokens", "extra_special_tokens"):
                count += self.add_tokens(list(value), special_tokens=True)
            elif name in self.special_tokens:
                count += self.add_tokens(value, special_tokens=True)
                self.special_tokens[name] = str(getattr(value, "content", value))
            else:
                raise InputError(f"special tokens must be {', '.join(self.special_tokens)}, got {name!r}")
        return count

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by name."""
        return {name: token for name, token in self.special_tokens.items() if token is not None}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The ids of special and added tokens."""
        return {token.content: number for number, token in self.backend.get_added_tokens_decoder().items()}

    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """Special and added tokens by id."""
        return dict(self.backend.get_added_tokens_decoder())

    def get_added_vocab(self) -> dict[str, int]:
        """Return the ids of special and added tokens.

        Returns:
            The ids.
        """
        return self.added_tokens_encoder

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of the `tokenizers` library."""
        return self.backend

    @property
    def is_fast(self) -> bool:
        """Whether the `tokenizers` library does the work: always."""
        return True

    @property
    def vocab(self) -> dict[str, int]:
        """The ids of all tokens."""
        return self.get_vocab()

    @property
    def pad_token_type_id(self) -> int:
        """The token type of padding."""
        return 0

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens a text gets.

        Args:
            pair: Count for a pair of texts.

        Returns:
            The number.
        """
        return int(self.backend.num_special_tokens_to_add(pair))

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for special tokens, 0 for others; trainers of masked language models call it.

        Args:
            token_ids_0: Ids of a text.
            token_ids_1: Ids of a second text.
            already_has_special_tokens: Whether the ids contain special tokens.

        Returns:
            The mask.
        """
        special = set(self.all_special_ids)
        if already_has_special_tokens:
            return [int(token_id in special) for token_id in token_ids_0]
        second = [] if token_ids_1 is None else [0] * len(token_ids_1) + [1]
        return [1] + [0] * len(token_ids_0) + [1] + second

    @property
    def vocab_size(self) -> int:
        """The number of tokens, including added ones."""
        return len(self)

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens.

        Returns:
            The ids of all tokens.
        """
        return dict(self.backend.get_vocab(with_added_tokens=True))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of all special tokens."""
        return sorted(number for number, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens."""
        return [str(self.backend.id_to_token(number)) for number in self.all_special_ids]

    def __getattr__(self, name: str) -> Any:
        """Return a special token or its id by name: `pad_token`, `pad_token_id`, ..."""
        special = self.__dict__.get("special_tokens", {})
        if name in special:
            return special[name]
        if name.removesuffix("_id") in special:
            token = special[name.removesuffix("_id")]
            return None if token is None else self.convert_tokens_to_ids(token)
        raise AttributeError(f"BlipTokenizer has no {name!r}")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, **kwargs: Any) -> BlipTokenizer:
        """Load `tokenizer.json` or `vocab.txt`, and `tokenizer_config.json`.

        Args:
            pretrained_model_name_or_path: Local folder or hub id.
            **kwargs: Settings to override, and the location of the files (`revision`, `cache_dir`, `subfolder`, ...).

        Returns:
            The tokenizer.

        Raises:
            CheckpointError: If files are missing or damaged.
        """
        folder, kwargs = local_folder(pretrained_model_name_or_path, kwargs)
        description, settings = vocabulary.read_folder(folder)
        settings.update({name: value for name, value in kwargs.items() if name in _CHANGEABLE})
        return cls(Tokenizer(description, settings), **settings)

    def save_vocabulary(self, save_directory: StrPath, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `vocab.txt`.

        Args:
            save_directory: Folder to write to.
            filename_prefix: Text before the name of the file.

        Returns:
            The path of the file.
        """
        path = Path(save_directory) / (f"{filename_prefix}-vocab.txt" if filename_prefix else "vocab.txt")
        write_text(path, "".join(f"{piece}\n" for piece in self.core.vocab_pieces))
        return (str(path),)

    def save_pretrained(
        self,
        save_directory: StrPath,
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Write the tokenizer's files, which `transformers` reads, too.

        Args:
            save_directory: Folder to write to.
            legacy_format: Ignored; the files of all versions are written.
            filename_prefix: Must be `None`.
            push_to_hub: Upload the folder to the hub.
            **kwargs: Arguments of `push_to_hub`.

        Returns:
            The paths of all files.

        Raises:
            InputError: `filename_prefix` is given.
        """
        if filename_prefix:
            raise InputError(f"filename_prefix must be None, got {filename_prefix!r}: loading expects the usual names")
        self.core.save(save_directory)
        self._push(Path(save_directory), push_to_hub, kwargs)
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
        return tuple(str(Path(save_directory) / name) for name in names)


def _pad_row(row: Sequence[Any], length: int, filler: Any, side: str) -> list[Any]:
    """Return a row of `length` entries."""
    padding = [filler] * (length - len(row))
    return [*padding, *row] if side == "left" else [*row, *padding]


class _Options:
    """The validated options of a call."""

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
    def parse(cls, tokenizer: BlipTokenizer, options: Mapping[str, Any]) -> _Options:
        options = dict(options)
        padding, truncation = options.pop("padding", False), options.pop("truncation", None)
        max_length, side = options.pop("max_length", None), options.pop("padding_side", None) or tokenizer.padding_side
        if max_length is not None and padding is False and truncation is None:
            truncation = "longest_first"  # max_length without padding truncates
        padding, truncation = padding or False, truncation or False
        _check_choice("padding", padding, _PADDING)
        _check_choice("truncation", truncation, _TRUNCATION)
        _check_choice("padding_side", side, _SIDES)
        if options.pop("stride", 0) or options.pop("return_overflowing_tokens", False):
            raise InputError("stride and return_overflowing_tokens are not supported: BLIP processes one short text")
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
        """Return the length that rows of these lengths are padded to, or 0 without padding."""
        if not self.padding:
            return 0
        length = self.max_length if self.padding == "max_length" else max(lengths)
        return -(-length // self.multiple) * self.multiple if self.multiple else length

    def truncate(
        self, encoding: tokenizers.Encoding, pair: tokenizers.Encoding | None, max_length: int, direction: str
    ) -> None:
        """Truncate a text, or a pair of texts, to `max_length` tokens in total."""
        lengths = [len(encoding), len(pair) if pair is not None else 0]
        excess = sum(lengths) - max_length
        if excess <= 0:
            return
        if self.truncation == "longest_first":
            lengths = _share_length(lengths, max_length) if pair is not None else [max_length, 0]
        else:
            index = 0 if self.truncation == "only_first" else 1
            if lengths[index] <= excess:
                raise InputError(
                    f"truncation={self.truncation!r} needs a text of more than {excess} tokens, got {lengths[index]}"
                )
            lengths[index] -= excess
        encoding.truncate(lengths[0], direction=direction)
        if pair is not None:
            pair.truncate(lengths[1], direction=direction)


def _share_length(lengths: Sequence[int], max_length: int) -> list[int]:
    """Return the lengths of a truncated pair: the longer text is cut until both are equally long."""
    short, long = min(lengths), max(lengths)
    long = short if short > max_length else max(short, max_length - short)
    if short + long > max_length:
        short, long = max_length // 2, max_length // 2 + max_length % 2
    return [short, long] if lengths[0] <= lengths[1] else [long, short]


def _list_texts(text: Any, pair: Any, split: bool) -> tuple[list[Any], list[Any], bool]:
    """Return texts, their second texts (or `None`), and whether the input was a single text."""
    if isinstance(text, list | tuple) and (not split or (text and isinstance(text[0], list | tuple))):
        texts = list(text)
        if not texts:
            raise InputError("text must not be an empty list")
        if not split and all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in texts):
            return [entry[0] for entry in texts], [entry[1] for entry in texts], False
        pairs: list[Any] = [None] * len(texts)
        if pair is not None:
            pairs = [] if isinstance(pair, str) else list(pair)
        if len(pairs) != len(texts):
            raise InputError(f"text_pair must have one text for each of {len(texts)} texts, got {len(pairs)}")
        is_single = False
    else:
        texts, pairs, is_single = [text], [pair or None], True
    if not split and not all(isinstance(entry, str) for entry in texts):
        raise InputError("text must be a string or a list of strings")
    return texts, pairs, is_single


def _to_lists(ids: Any) -> list[Any]:
    """Return ids as a list, or a list of lists, of Python numbers."""
    if is_tensor(ids) or isinstance(ids, np.ndarray | np.generic):
        ids = to_array(ids).tolist()
    if isinstance(ids, int):
        return [ids]
    lists: list[Any] = []
    for entry in ids:
        is_row = isinstance(entry, list | tuple) or getattr(entry, "ndim", 0) > 0
        lists.append(_to_lists(entry) if is_row else int(entry))
    return lists


def _check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
