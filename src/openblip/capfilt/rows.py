"""The stored rows of CapFilt: an image with its texts, their scores and verdicts. Tables are pyarrow's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from openblip.capfilt.rules import Rule, RuleFields
from openblip.data.files import require
from openblip.errors import JobError
from openblip.io import atomic

if TYPE_CHECKING:
    import pyarrow as pa

TextSource: TypeAlias = Literal["web", "synthetic"]
METADATA = b"openblip.capfilt"

COLUMNS: Mapping[str, str] = {
    "key": "name of the image; it seeds the samples",
    "image": "the image: a path, relative to the file's folder for images that the job stored, or an address",
    "captions": "the texts that the rule keeps",
    "texts": "all texts: those of the source, then the synthetic ones",
    "sources": '"web" or "synthetic" for each text',
    "itm": "probability of a match for each text; null for a text that was not scored",
    "itc": "cosine for each text",
    "logprob": "log-probability of each synthetic text",
    "kept": "whether the rule keeps each text",
    "reasons": "why a text was not scored",
    "filtered": "whether the rule keeps no text; training leaves such a row out",
    "error": "why the image failed; such a row has no texts",
    "json_offset": "position of the image's JSON in the tar (--to webdataset)",
    "json_size": "bytes of that JSON",
}


@dataclass(frozen=True)
class ScoredText:
    """A text about an image.

    Attributes:
        text: The text.
        source: Origin of the text: the web or the captioner.
        itm: Probability that the text matches the image.
        itc: Cosine of the embeddings of image and text.
        logprob: Log-probability of a synthetic text.
        reason: Why the text has no scores.
    """

    text: str
    source: TextSource
    itm: float | None = None
    itc: float | None = None
    logprob: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """An image with its texts, or the reason why the image failed.

    Attributes:
        key: Name of the image.
        image: Path or address of the image, as training reads it.
        texts: The texts.
        error: Why the image failed.
        json_offset: Position of its JSON in the tar, in bytes.
        json_size: Size of the JSON in bytes.
    """

    key: str
    image: str | None = None
    texts: tuple[ScoredText, ...] = ()
    error: str | None = None
    json_offset: int | None = None
    json_size: int | None = None


class ShardMetadata(TypedDict):
    """The metadata of a shard: the rule of its verdicts, its counts, and the identity of its job."""

    rule: RuleFields
    counts: dict[str, int]
    job: str


def make_schema() -> pa.Schema:
    """Return the schema of the stored rows."""
    pa = require("pyarrow", "storing scores")
    floats, strings = pa.list_(pa.float32()), pa.list_(pa.string())
    types = {
        "key": pa.string(),
        "image": pa.string(),
        "captions": strings,
        "texts": strings,
        "sources": strings,
        "itm": floats,
        "itc": floats,
        "logprob": floats,
        "kept": pa.list_(pa.bool_()),
        "reasons": strings,
        "filtered": pa.bool_(),
        "error": pa.string(),
        "json_offset": pa.int64(),
        "json_size": pa.int64(),
    }
    return pa.schema([pa.field(name, types[name]) for name in COLUMNS])


def make_table(rows: Sequence[Row], rule: Rule) -> pa.Table:
    """Return a table of rows with the verdicts of a rule."""
    pa = require("pyarrow", "storing scores")
    values: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for row in rows:
        for name in ("key", "image", "error", "json_offset", "json_size"):
            values[name].append(getattr(row, name))
        values["texts"].append([text.text for text in row.texts])
        values["sources"].append([text.source for text in row.texts])
        values["reasons"].append([text.reason for text in row.texts])
        for name in ("itm", "itc", "logprob"):
            values[name].append([getattr(text, name) for text in row.texts])
        for name in ("captions", "kept"):
            values[name].append([])
        values["filtered"].append(False)
    return judge(pa.Table.from_pydict(values, schema=make_schema()), rule)


def judge(table: pa.Table, rule: Rule) -> pa.Table:
    """Return a table with the verdicts of a rule in `kept`, `captions` and `filtered`. Other columns are unchanged.

    Args:
        table: Stored rows.
        rule: The rule.

    Returns:
        A new table that shares the other columns.
    """
    pa = require("pyarrow", "reading scores")
    texts = _one_array(table["texts"])
    accepted = rule.accepts(flatten(table["itm"]), flatten(table["itc"]))
    offsets = texts.offsets.to_numpy()
    counts = np.concatenate([[0], np.cumsum(accepted)])
    first = offsets[0] if len(offsets) else 0
    values = texts.values[first : first + len(accepted)]
    captions = pa.ListArray.from_arrays(
        pa.array(counts[offsets - first], pa.int32()), values.filter(pa.array(accepted))
    )
    kept = pa.ListArray.from_arrays(pa.array(offsets - first, pa.int32()), pa.array(accepted))
    empty = np.diff(counts[offsets - first]) == 0
    filtered = pa.array(empty & table["error"].is_null().to_numpy(zero_copy_only=False).astype(bool))
    for name, column in (("captions", captions), ("kept", kept), ("filtered", filtered)):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def changed_rows(previous: pa.Table, current: pa.Table) -> NDArray[np.intp]:
    """Return the indices of the rows whose verdicts differ between two tables of the same rows."""
    offsets = _one_array(current["texts"]).offsets.to_numpy()
    differs = flatten(previous["kept"]) != flatten(current["kept"])
    counts = np.concatenate([[0], np.cumsum(differs)])
    return np.flatnonzero(np.diff(counts[offsets - (offsets[0] if len(offsets) else 0)]))


def to_rows(table: pa.Table) -> list[Row]:
    """Return the rows of a table, without verdicts."""
    rows = []
    for values in table.drop_columns(["captions", "kept", "filtered"]).to_pylist():
        names = ("texts", "sources", "itm", "itc", "logprob", "reasons")
        texts = tuple(ScoredText(*fields) for fields in zip(*(values[name] for name in names), strict=True))
        head = {name: values[name] for name in ("key", "image", "error", "json_offset", "json_size")}
        rows.append(Row(texts=texts, **head))
    return rows


def count(table: pa.Table) -> Counter[str]:
    """Count the images, texts and verdicts of a table.

    Returns:
        Numbers of `images`, `failed`, `web`, `web_kept`, `synthetic`, `synthetic_kept`, `rejected` texts, and, as
        `error: REASON` and `text: REASON`, of every reason for a failure.
    """
    counts: Counter[str] = Counter()
    errors = table["error"].drop_null().to_pylist()
    sources = np.asarray(flatten(table["sources"]), dtype=object)
    kept = flatten(table["kept"]).astype(bool)
    counts["images"] = len(table) - len(errors)
    counts["failed"] = len(errors)
    for source in ("web", "synthetic"):
        chosen = sources == source
        counts[source] = int(chosen.sum())
        counts[f"{source}_kept"] = int((chosen & kept).sum())
    reasons = _one_array(table["reasons"]).flatten().drop_null().to_pylist()
    counts["rejected"] = len(reasons)
    for key, error in zip(table["key"].filter(table["error"].is_valid()).to_pylist(), errors, strict=True):
        counts[f"error: {summarize_reason(error, key)}"] += 1
    for reason in reasons:
        counts[f"text: {reason}"] += 1
    return counts


def summarize_reason(error: str, key: str) -> str:
    """Return a reason without the name of its image, so that equal reasons are counted together."""
    for name in sorted({word for word in error.split() if key in word or "/" in word}, key=len, reverse=True):
        error = error.replace(name, "the image" + (":" if name.endswith(":") else ""))
    return error.replace(key, "the image")


def write_table(path: Path, table: pa.Table, rule: Rule, job: str) -> None:
    """Write a table with its rule and its counts, atomically and durably.

    Args:
        path: The Parquet file.
        table: The rows.
        rule: The rule of the verdicts.
        job: Identity of the job that computed the scores.
    """
    metadata = {"rule": rule.to_dict(), "counts": count(table), "job": job}
    table = table.replace_schema_metadata({METADATA: json.dumps(metadata).encode()})
    with atomic.replace_file(path, sync=True) as file:
        require("pyarrow.parquet", "storing scores").write_table(table, file, compression="zstd")


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a shard.

    Raises:
        JobError: The file cannot be read.
    """
    try:
        return require("pyarrow.parquet", "reading scores").read_table(path, columns=columns)
    except (OSError, require("pyarrow", "reading scores").ArrowException) as error:
        raise JobError(f"cannot read {path}: {error}") from error


def read_metadata(path: Path) -> ShardMetadata:
    """Return the rule, the counts and the job that `write_table` stored next to the rows. Only the footer is read.

    Raises:
        JobError: The file cannot be read, or was not written by CapFilt.
    """
    try:
        metadata = require("pyarrow.parquet", "reading scores").read_schema(path).metadata or {}
        values: ShardMetadata = json.loads(metadata[METADATA])
    except (OSError, KeyError, ValueError, require("pyarrow", "reading scores").ArrowException) as error:
        raise JobError(f"{path} is not a shard of CapFilt: {error}") from error
    return values


def _one_array(column: Any) -> Any:
    """Return a column as one array, with its chunks combined."""
    pa = require("pyarrow", "reading scores")
    return (
        column
        if isinstance(column, pa.Array)
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else pa.array([], column.type)
    )


def flatten(column: Any) -> Any:
    """Return the values of a column of lists as a NumPy array; nulls become NaN in columns of numbers."""
    return _one_array(column).flatten().to_numpy(zero_copy_only=False)
