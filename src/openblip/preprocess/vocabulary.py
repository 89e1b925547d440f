"""The files of a BERT tokenizer, as transformers 4 and 5, the original and people write them, as one description.

A description is what ``tokenizer.json`` holds. Once complete, its model's vocabulary has every token, also those that
other files add to it, so that the ids are 0, 1, 2 ... without gaps; special tokens are marked; nothing pads or cuts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.errors import CheckpointError

# In tokenizer_config.json, and in the normalizer of tokenizer.json.
_CASING = (
    ("do_lower_case", "lowercase"),
    ("strip_accents", "strip_accents"),
    ("tokenize_chinese_chars", "handle_chinese_chars"),
)
_NAMES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
# Settings that are not ours but mean something to transformers; paths and the like are left behind.
_KEPT = ("clean_up_tokenization_spaces", "eos_token", "model_input_names", "model_max_length", "processor_class")

# --- reading ------------------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description and the settings (``tokenizer_config.json`` and smaller files) that a hub folder holds."""
    maps, config, added = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json")
    )
    settings = {**maps, **config, "added_tokens": added}
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json"), settings
    if (folder / "vocab.txt").is_file():
        return describe(read_vocab(folder / "vocab.txt"), settings), settings
    raise CheckpointError(f"{folder} holds neither tokenizer.json nor vocab.txt: give a tokenizer that does")


def read_vocab(path: Path) -> list[str]:
    """The lines of ``vocab.txt``."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would break pieces like U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read the vocabulary {path}: {error}") from error
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no record but {type(content).__name__}")
    return content


def describe(lines: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """BERT's tokenizer over this vocabulary, one piece in each line."""
    vocabulary: dict[str, int] = {}
    for number, piece in enumerate(lines):
        if (before := vocabulary.setdefault(piece, number)) != number:
            raise CheckpointError(f"line {number + 1} of the vocabulary repeats line {before + 1}: {piece!r}")
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,  # as lowercase
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": _content(settings.get("unk_token")) or _NAMES["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


# --- one description out of many files ----------------------------------------------------------------------------


def complete(
    description: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, int], dict[str, str]]:
    """The description with all that the settings say, its vocabulary, and the names of pad, unk, cls, sep and mask.

    Where the two disagree on lower-casing and the like, the settings hold, as in transformers. ``CheckpointError`` for
    another kind of tokenizer, a vocabulary with gaps, or one without BERT's special tokens.
    """
    try:
        return _complete(json.loads(json.dumps(description)), settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the tokenizer's files are not as transformers writes them: {error!r}") from error


def _complete(
    description: dict[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, int], dict[str, str]]:
    model = description["model"]
    if model.setdefault("type", "WordPiece") != "WordPiece":
        raise CheckpointError(f"the tokenizer is a {model['type']}; BLIP reads BERT's WordPiece")
    normalizer = description.get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        normalizer.update({theirs: settings[key] for key, theirs in _CASING if key in settings})

    vocabulary: dict[str, int] = model["vocab"]
    added = {token["content"]: token for token in (*_added(settings), *description.get("added_tokens", []))}
    for content, token in sorted(added.items(), key=lambda item: item[1]["id"]):
        if vocabulary.setdefault(content, token["id"]) != token["id"]:
            raise CheckpointError(f"{content} is {vocabulary[content]} in the vocabulary, but added as {token['id']}")
    for content in (more := _more(settings)):
        vocabulary.setdefault(content, len(vocabulary))
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise CheckpointError("the ids of the vocabulary leave gaps or repeat: its files belong to different models")

    names = {name: _content(settings.get(f"{name}_token")) or usual for name, usual in _NAMES.items()}
    if missing := [token for name, token in names.items() if token not in vocabulary and name != "mask"]:
        raise CheckpointError(f"the vocabulary lacks {', '.join(missing)}: it is not one of BERT's")
    names = {name: token for name, token in names.items() if token in vocabulary}
    for content in (*names.values(), *more, "[DEC]", "[ENC]"):
        if content in vocabulary:
            added[content] = {"id": vocabulary[content], "content": content, **_FLAGS}
    description["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    description["post_processor"] = _frame(names["cls"], names["sep"], vocabulary)
    description["truncation"] = description["padding"] = None
    return description, vocabulary, names


def _added(settings: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Tokens beside the vocabulary: transformers kept them in added_tokens.json, later in tokenizer_config.json."""
    for content, number in (settings.get("added_tokens") or {}).items():
        yield {"id": number, "content": content, **_FLAGS}
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        yield {**_FLAGS, **token, "id": int(number)}


def _more(settings: Mapping[str, Any]) -> list[str]:
    """Further special tokens; those that the vocabulary lacks are appended in this order, as transformers does."""
    found = [settings.get("bos_token"), settings.get("eos_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = settings.get(key) or []
        found += extra.values() if isinstance(extra, dict) else extra
    return list(dict.fromkeys(content for token in found if (content := _content(token))))


def _content(token: Any) -> str | None:
    """A token as the files write it: a string, or a record with its ``content``."""
    return token["content"] if isinstance(token, dict) else token


def _frame(cls: str, sep: str, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """[CLS] and [SEP] around one text or two, for readers of the file that leave it to the library."""
    first, last, again = (
        {"SpecialToken": {"id": token, "type_id": part}} for token, part in ((cls, 0), (sep, 0), (sep, 1))
    )
    text, second = ({"Sequence": {"id": name, "type_id": part}} for part, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, text, last],
        "pair": [first, text, last, second, again],
        "special_tokens": {token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (cls, sep)},
    }


# --- writing ------------------------------------------------------------------------------------------------------


def write_folder(
    folder: Path, description: Mapping[str, Any], settings: Mapping[str, Any], names: Mapping[str, str]
) -> None:
    """Write a completed description as the four files that transformers 4 and 5 read, each at once or not at all."""
    vocabulary: dict[str, int] = description["model"]["vocab"]
    special: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    special |= {"bos_token": "[DEC]"} if "[DEC]" in vocabulary else {}
    taken = {*special.values(), _content(settings.get("eos_token"))}
    extra = [token for token in (*_more(settings), "[ENC]") if token in vocabulary and token not in taken]
    special |= {"additional_special_tokens": list(dict.fromkeys(extra))} if extra else {}
    normalizer = description.get("normalizer") or {}
    config = {
        **{key: settings[key] for key in _KEPT if settings.get(key) is not None},
        **special,
        **{key: normalizer[theirs] for key, theirs in _CASING if theirs in normalizer},
        "tokenizer_class": "BertTokenizer",
        **({"openblip": settings["openblip"]} if settings.get("openblip") else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.txt", "".join(f"{piece}\n" for piece in sorted(vocabulary, key=vocabulary.__getitem__)))
    files = {"tokenizer": description, "special_tokens_map": special, "tokenizer_config": config}
    for name, content in files.items():
        _write(folder / f"{name}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
