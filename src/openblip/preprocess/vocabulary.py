"""The files of a BERT tokenizer, as transformers 4 and 5, the original and users write them, as one description.

A description is the content of `tokenizer.json`. Once complete, the vocabulary of its model has all tokens, including
those that other files add, so the ids are 0, 1, 2 ... without gaps; special tokens are marked; padding and truncation
are off.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.errors import CheckpointError
from openblip.io import atomic

# Names in tokenizer_config.json, and in the normalizer of tokenizer.json.
_NORMALIZER_NAMES = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_SPECIAL_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
# Settings without meaning here that transformers uses. Others, such as paths, are not saved.
_PRESERVED_SETTINGS = (
    "clean_up_tokenization_spaces",
    "eos_token",
    "model_input_names",
    "model_max_length",
    "processor_class",
)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the tokenizer files of a folder.

    Args:
        folder: A folder of the hub.

    Returns:
        The description, and the settings of `tokenizer_config.json`, `special_tokens_map.json` and
        `added_tokens.json`.

    Raises:
        CheckpointError: The folder has no vocabulary, or a file cannot be read.
    """
    special_tokens, config, added_tokens = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json")
    )
    settings = {**special_tokens, **config, "added_tokens": added_tokens}
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json"), settings
    if (folder / "vocab.txt").is_file():
        return describe(read_vocab(folder / "vocab.txt"), settings), settings
    raise CheckpointError(f"{folder} has neither tokenizer.json nor vocab.txt; load it with tokenizer=...")


def read_vocab(path: Path) -> list[str]:
    """Return the lines of `vocab.txt`.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would break pieces like U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read the vocabulary {path}: {error}") from error
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that has an object.

    Raises:
        CheckpointError: The file cannot be read, or has no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must contain a JSON object, got {type(content).__name__}")
    return content


def describe(lines: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of BERT's tokenizer over a vocabulary.

    Args:
        lines: Word pieces, in the order of their ids.
        settings: Content of `tokenizer_config.json`.

    Returns:
        The description.

    Raises:
        CheckpointError: A word piece occurs twice.
    """
    vocabulary: dict[str, int] = {}
    for i, piece in enumerate(lines):
        if piece in vocabulary:
            raise CheckpointError(f"line {i + 1} of the vocabulary repeats line {vocabulary[piece] + 1}: {piece!r}")
        vocabulary[piece] = i
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,  # like lowercase
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": _content(settings.get("unk_token")) or _SPECIAL_TOKENS["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def complete(
    description: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, int], dict[str, str]]:
    """Merge settings into a description. As in transformers, settings take precedence, for example on lower case.

    Args:
        description: Content of `tokenizer.json`.
        settings: Content of `tokenizer_config.json` and smaller files.

    Returns:
        The complete description, its vocabulary, and the special tokens by name: pad, unk, cls, sep and mask.

    Raises:
        CheckpointError: Another kind of tokenizer, a vocabulary with gaps or without BERT's special tokens, or files
            with an unknown structure.
    """
    try:
        return _complete(json.loads(json.dumps(description)), settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the tokenizer files are not in the format of transformers: {error!r}") from error


def _complete(
    description: dict[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, int], dict[str, str]]:
    model = description["model"]
    if model.setdefault("type", "WordPiece") != "WordPiece":
        raise CheckpointError(f"the tokenizer must be BERT's WordPiece, got {model['type']}")
    normalizer = description.get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        normalizer.update({name: settings[key] for key, name in _NORMALIZER_NAMES.items() if key in settings})

    # Add the tokens of other files to the vocabulary.
    vocabulary: dict[str, int] = model["vocab"]
    added = {token["content"]: token for token in (*_added_tokens(settings), *description.get("added_tokens", []))}
    for content, token in sorted(added.items(), key=lambda item: item[1]["id"]):
        if vocabulary.setdefault(content, token["id"]) != token["id"]:
            raise CheckpointError(f"{content} is {vocabulary[content]} in the vocabulary, but added as {token['id']}")
    extra_tokens = _extra_special_tokens(settings)
    for content in extra_tokens:
        vocabulary.setdefault(content, len(vocabulary))
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise CheckpointError("the ids of the vocabulary have gaps or repeat: its files belong to different models")

    # Name and mark the special tokens.
    names = {}
    for name, default in _SPECIAL_TOKENS.items():
        names[name] = _content(settings.get(f"{name}_token")) or default
    missing = [token for name, token in names.items() if token not in vocabulary and name != "mask"]
    if missing:
        raise CheckpointError(f"the vocabulary lacks {', '.join(missing)}: it is not one of BERT's")
    names = {name: token for name, token in names.items() if token in vocabulary}
    for content in (*names.values(), *extra_tokens, "[DEC]", "[ENC]"):
        if content in vocabulary:
            added[content] = {"id": vocabulary[content], "content": content, **_SPECIAL_FLAGS}
    description["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    description["post_processor"] = _post_processor(names["cls"], names["sep"], vocabulary)
    description["truncation"] = description["padding"] = None
    return description, vocabulary, names


def _added_tokens(settings: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Yield added tokens; old versions of transformers save them in a file of their own, new ones in the config."""
    for content, i in (settings.get("added_tokens") or {}).items():
        yield {"id": i, "content": content, **_SPECIAL_FLAGS}
    for i, token in (settings.get("added_tokens_decoder") or {}).items():
        yield {**_SPECIAL_FLAGS, **token, "id": int(i)}


def _extra_special_tokens(settings: Mapping[str, Any]) -> list[str]:
    """Return further special tokens; missing ones are appended in this order, as transformers does."""
    tokens = [settings.get("bos_token"), settings.get("eos_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = settings.get(key) or []
        tokens += extra.values() if isinstance(extra, dict) else extra
    contents = [_content(token) for token in tokens]
    return list(dict.fromkeys(content for content in contents if content))


def _content(token: Any) -> str | None:
    """Return the text of a token, which files write as a string or as an object with `content`."""
    return token["content"] if isinstance(token, dict) else token


def _post_processor(cls: str, sep: str, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """Return the template of [CLS] and [SEP] around one or two texts, for other readers of the file."""

    def special(token: str, type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": type_id}}

    text_a, text_b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    single = [special(cls, 0), text_a, special(sep, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text_b, special(sep, 1)],
        "special_tokens": {token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (cls, sep)},
    }


def write_folder(
    folder: Path, description: Mapping[str, Any], settings: Mapping[str, Any], names: Mapping[str, str]
) -> None:
    """Write a complete description as the four files that transformers 4 and 5 read, each file atomically.

    Args:
        folder: Folder to write to.
        description: A complete description.
        settings: Content of `tokenizer_config.json`, of which the entries that transformers uses are written.
        names: Special tokens by name.
    """
    vocabulary: dict[str, int] = description["model"]["vocab"]
    special: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    if "[DEC]" in vocabulary:
        special["bos_token"] = "[DEC]"
    named = {*special.values(), _content(settings.get("eos_token"))}
    extra_tokens = (*_extra_special_tokens(settings), "[ENC]")
    extra = list(dict.fromkeys(token for token in extra_tokens if token in vocabulary and token not in named))
    if extra:
        special["additional_special_tokens"] = extra
    normalizer = description.get("normalizer") or {}
    config = {
        **{key: settings[key] for key in _PRESERVED_SETTINGS if settings.get(key) is not None},
        **special,
        **{key: normalizer[name] for key, name in _NORMALIZER_NAMES.items() if name in normalizer},
        "tokenizer_class": "BertTokenizer",
        **({"openblip": settings["openblip"]} if settings.get("openblip") else {}),
    }
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    atomic.write_text(folder / "vocab.txt", "".join(f"{piece}\n" for piece in pieces))
    atomic.write_json(folder / "tokenizer.json", description)
    atomic.write_json(folder / "special_tokens_map.json", special)
    atomic.write_json(folder / "tokenizer_config.json", config)
