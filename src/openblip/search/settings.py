"""The settings of an index, including its weights, and the filters of a search (no torch)."""

from __future__ import annotations

import datetime
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypeAlias, get_args

from openblip.errors import InputError, SearchError
from openblip.tasks import did_you_mean

FORMAT = 1
"""Version of the files and tables of an index."""

Dtype: TypeAlias = Literal["fp32", "fp16"]
StatesMode: TypeAlias = Literal["none", "cache", "stored"]

_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?")
_EARLIEST = "0001-01-01T00:00:00"
_IDENTITY = ("weights", "engine", "precision", "decode", "width")


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """The settings of an index.

    Attributes:
        model: Name of the model, as it was loaded.
        weights: Digest of the files of the retrieval model: weights, configuration, vocabulary and image settings.
        engine: Engine that computed the embeddings.
        precision: Precision of the arithmetic.
        decode: How images were decoded: "fast" or "exact".
        version: Version of OpenBLIP that created the index.
        width: Width of the embeddings.
        tokens: Number of image tokens.
        state_width: Width of the image states.
        dtype: Type of the stored embeddings: "fp32" or "fp16".
        states: Whether the image states for the re-rank are computed in each search ("none"), kept in a cache of
            limited size ("cache"), or stored with the embeddings ("stored").
        format: Version of the files and tables.
    """

    model: str
    weights: str
    engine: str
    precision: str
    decode: str
    version: str
    width: int
    tokens: int
    state_width: int
    dtype: Dtype = "fp32"
    states: StatesMode = "none"
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name, choices in (("dtype", get_args(Dtype)), ("states", get_args(StatesMode))):
            value = getattr(self, name)
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")

    @property
    def embedding_bytes(self) -> int:
        """Bytes of the stored embedding of an image."""
        return self.width * (4 if self.dtype == "fp32" else 2)

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of an image in fp16, even if they are not stored."""
        return 2 * self.tokens * self.state_width

    def to_json(self) -> str:
        """Return the settings as JSON.

        Returns:
            An object in one line.
        """
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> IndexSettings:
        """Return the settings of an index.

        Args:
            text: The stored settings.

        Returns:
            The settings.

        Raises:
            SearchError: An incompatible version of OpenBLIP wrote the settings, or they are damaged.
        """
        damaged = "the settings of the index are damaged: index the images again"
        try:
            values = json.loads(text)
        except ValueError as error:
            raise SearchError(damaged) from error
        if not isinstance(values, dict):
            raise SearchError(damaged)
        if values.get("format") != FORMAT:
            raise SearchError(
                f"the index must have format {FORMAT}, got {values.get('format')}; "
                f"OpenBLIP {values.get('version')} made it: use that version, or index the images again"
            )
        known = {field.name for field in fields(IndexSettings)}
        try:
            return IndexSettings(**{name: value for name, value in values.items() if name in known})
        except (TypeError, InputError) as error:  # a setting is missing, or has no such value
            raise SearchError(damaged) from error

    def check_same_embeddings(self, other: IndexSettings) -> None:
        """Raise an error if the embeddings of another model must not be added to this index.

        Args:
            other: The settings that the other model would make an index with.

        Raises:
            SearchError: The embeddings would differ.
        """
        differences = [
            f"{name} {getattr(self, name)} and not {getattr(other, name)}"
            for name in _IDENTITY
            if getattr(self, name) != getattr(other, name)
        ]
        if differences:
            raise SearchError(
                f"the index was made by {self.model!r} with {', '.join(differences)}; embeddings of different models "
                "cannot be mixed: use that model, or make another index"
            )

    def check_same_weights(self, weights: str, model: str) -> None:
        """Raise an error if a model's embeddings cannot be compared with those of this index.

        Args:
            weights: Digest of the model.
            model: Name of the model.

        Raises:
            SearchError: The index was made with other weights.
        """
        if weights != self.weights:
            raise SearchError(
                f"the index was made by {self.model!r} (weights {self.weights}), got {model!r} (weights {weights}); "
                "search with the model that made the index"
            )


@dataclass(frozen=True)
class Term:
    """A word or phrase that a caption must contain.

    Attributes:
        text: The word or phrase.
        prefix: Whether words that start with `text` match.
    """

    text: str
    prefix: bool = False


@dataclass(frozen=True)
class Filter:
    """A filter of the images to search. It applies before scoring, so it never reduces the number of results.

    Attributes:
        folder: Folder that the images are in or below: an absolute path, or a path below an indexed folder.
        after: Earliest date, inclusive: "2024", "2024-05", "2024-05-17" or "2024-05-17T18:30". The date of an image is
            when the photo was taken according to EXIF, otherwise when its file was changed.
        before: Latest date, exclusive: before="2024" excludes 2024.
        caption: Words that the caption must contain, in any order. Quotation marks make a phrase, and `dog*` matches
            words that start with "dog".

    Raises:
        InputError: A date is invalid, the caption contains no word, or a text is not valid UTF-8 or contains NUL.
    """

    folder: str | None = None
    after: str | datetime.date | None = None
    before: str | datetime.date | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        for name in ("after", "before"):
            value = getattr(self, name)
            if value is not None:
                _check_date(name, _to_text(value))
        for name in ("folder", "caption"):
            value = getattr(self, name)
            if value is not None and not is_storable(value):
                raise InputError(f"{name} must be UTF-8 without the character NUL, got {value!r}")
        if self.caption is not None and not self.terms:
            raise InputError(f"caption must contain a word, got {self.caption!r}")

    def __bool__(self) -> bool:
        """Return whether the filter excludes anything."""
        return any(value is not None for value in (self.folder, self.after, self.before, self.caption))

    @property
    def start(self) -> str | None:
        """The earliest date and time, inclusive, in a form to compare as text."""
        return None if self.after is None else _complete(self.after)

    @property
    def end(self) -> str | None:
        """The latest date and time, exclusive, in a form to compare as text."""
        return None if self.before is None else _complete(self.before)

    @property
    def terms(self) -> list[Term]:
        """The words and phrases of `caption`."""
        terms = []
        for phrase, word in re.findall(r'"([^"]*)"|([^\s"]+)', self.caption or ""):
            text = phrase or word.rstrip("*")
            if re.search(r"\w", text):
                terms.append(Term(text, not phrase and word.endswith("*")))
        return terms

    def prefixes(self, roots: list[str]) -> list[str]:
        """Return the paths that images in `folder` start with.

        Args:
            roots: The indexed folders.

        Returns:
            Absolute paths that end in a separator.
        """
        paths = [os.path.normpath(os.path.join(root, self.folder or "")) for root in roots or [os.sep]]  # noqa: PTH118
        return list(dict.fromkeys(path.rstrip(os.sep) + os.sep for path in paths))  # an absolute folder is only itself


def is_storable(text: str) -> bool:
    """Return whether an index can store a text: databases accept only UTF-8, and PostgreSQL no NUL.

    Args:
        text: The text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8 has surrogates
        return False
    return "\0" not in text


def _to_text(value: str | datetime.date) -> str:
    text = value if isinstance(value, str) else value.isoformat()
    return text[: len(_EARLIEST)].replace(" ", "T")


def _complete(value: str | datetime.date) -> str:
    text = _to_text(value)
    return text + _EARLIEST[len(text) :]


def _check_date(name: str, text: str) -> None:
    if _DATE.fullmatch(text):
        try:
            datetime.datetime.fromisoformat(_complete(text))
        except ValueError:
            pass
        else:
            return
    raise InputError(f"{name} must be a date such as 2024, 2024-05 or 2024-05-17, got {text!r}")
