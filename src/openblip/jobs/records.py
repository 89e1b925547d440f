"""The record: what every command writes about a picture, in JSONL, CSV and Parquet alike.

``openblip.data`` reads these files as they are: ``path`` is the picture, ``text`` its caption, ``question`` with
``text`` a question and its answer, ``expression`` with ``bbox`` a box, a ``path`` of two pictures a pair with its
statement and ``label``, and a row with an ``error`` is passed over.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Row: TypeAlias = dict[str, Any]

FIELDS: Mapping[str, str] = {
    "path": "the picture: from the folder of the file, or the whole path where it lies elsewhere; or its address; "
    "of a pair a list of both",
    "index": "its number in the input, from 0",
    "rank": "0 for the best result, 1 for the next ...; only where several were asked for",
    "prompt": "how the caption was made to begin; only where a column gave it",
    "question": "what was asked",
    "expression": "what was looked for",
    "bbox": "where it is: left, top, width and height in pixels of the picture",
    "label": "the label that was chosen; or whether the statement about a pair is true",
    "text": "the caption with its prefix, suffix and template; the answer; the text that was judged or explained",
    "generated": "the caption as the model gave it, where prefix, suffix or template changed it",
    "logprob": "summed natural-log probability of the caption's new tokens",
    "finished": "whether the caption came to its end, or was cut off by the greatest length",
    "unmet": "true where a required word could not be had",
    "probability": "of the answer, the label or the box; or that picture and text belong together (ITM); or that the "
    "statement is true",
    "similarity": "cosine of the embeddings of picture and text (ITC)",
    "embedding": "the picture's embedding (ITC), L2-normalised",
    "words": "the words that were explained",
    "maps": "for each of the words a heat map over the picture's patches, from 0 up, as rows of rows",
    "overall": "the mean of the maps over word pieces",
    "start": "the map of the token before a text or a question",
    "drawing": "the picture that was drawn (`--draw`)",
    "model": "what computed it",
    "error": "why there is no result; such a row has no other field of results",
}


def ordered(row: Mapping[str, Any]) -> Row:
    """The row with its fields in the order of :data:`FIELDS`, then any others; what is ``None`` is left out."""
    known = [name for name in FIELDS if name in row]
    return {name: row[name] for name in (*known, *(n for n in row if n not in FIELDS)) if row[name] is not None}


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names that occur in ``rows``, in the order of :data:`FIELDS`."""
    found = dict.fromkeys(name for row in rows for name in row)
    return [name for name in FIELDS if name in found] + [name for name in found if name not in FIELDS]


def pack(vector: NDArray[np.float32]) -> str:
    """An embedding as it stands in a journal: base64 of its float32 values, lowest byte first."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def unpack(text: str) -> NDArray[np.float32]:
    """The embedding that :func:`pack` wrote."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
