"""The record that every command writes for an image, with equal fields in JSON Lines, CSV and Parquet.

`openblip.data` loads these files:

- `path` is the image and `text` is its caption.
- `question` and `text` are a question and its answer.
- `expression` and `bbox` are a phrase and its box.
- Two paths in `path` are a pair of images, with a statement in `text` and its `label`.
- Rows with an `error` are skipped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Row: TypeAlias = dict[str, Any]

FIELDS: Mapping[str, str] = {
    "path": "the image: a path relative to the output file, an absolute path for images elsewhere, or a URL; a list of "
    "two for a pair",
    "index": "number of the item in the input, from 0",
    "rank": "0 for the best result, 1 for the next, ...; only with several results per image",
    "prompt": "text the caption starts with; only if a column of the list set it",
    "question": "the question",
    "expression": "the phrase that was located",
    "bbox": "location of the expression: left, top, width and height in pixels of the image",
    "label": "the label with the highest score; or whether the statement about a pair is true",
    "text": "the caption with prefix, suffix and template; the answer; or the text that was matched or explained",
    "generated": "the caption without prefix, suffix and template; only if they changed it",
    "logprob": "sum of the natural-log probabilities of the caption's new tokens",
    "score": "mean natural-log probability per token of the caption or answer, or of the four coordinates of the box",
    "confidence": "probability that the caption names the subject of the image; only for models with a calibration",
    "finished": "false if the caption reached the maximum length",
    "unmet": "true if a required word could not be generated",
    "probability": "probability of the answer, label or box; that image and text match (ITM); or that the statement is "
    "true",
    "similarity": "cosine similarity of the image and text embeddings (ITC)",
    "embedding": "the image embedding (ITC), L2-normalized",
    "words": "the words that were explained",
    "maps": "one heat map over the image patches per word, values from 0 up, as a list of rows",
    "overall": "mean of the maps over all word pieces",
    "start": "heat map of the token that precedes a text or a question",
    "drawing": "path of the drawing (`--draw`)",
    "model": "the model",
    "error": "the reason for a failure; such a row has no result fields",
}


def order_fields(row: Mapping[str, Any]) -> Row:
    """Return the row without `None` values, ordered as `FIELDS`; other fields follow in their own order.

    Returns:
        The row without `None` values, ordered as `FIELDS`; other fields follow in their own order.
    """
    names = [*(name for name in FIELDS if name in row), *(name for name in row if name not in FIELDS)]
    return {name: row[name] for name in names if row[name] is not None}


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all field names of `rows`, ordered as `FIELDS`; other fields follow by first occurrence.

    Returns:
        All field names of `rows`, ordered as `FIELDS`; other fields follow by first occurrence.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in FIELDS if name in names] + [name for name in names if name not in FIELDS]


def pack_embedding(vector: NDArray[np.float32]) -> str:
    """Encode an embedding for the journal: base64 of little-endian float32 values."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def unpack_embedding(text: str) -> NDArray[np.float32]:
    """Decode an embedding that `pack_embedding` encoded."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
