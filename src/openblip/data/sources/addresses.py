"""Addresses of data: braces and wild cards expanded, and the form of data guessed by suffix (no torch)."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from openblip.data.files import is_local, require
from openblip.errors import InputError

Kind = Literal["folder", "json", "jsonl", "csv", "parquet", "tar", "hub", "rows"]

HUB_PREFIX = "hub:"
FORMS = """a folder of images (photo.jpg with photo.txt next to it, or a metadata.jsonl),
  a .jsonl, .json, .csv, .tsv, .txt or .parquet file, WebDataset .tar files (shards-{000..012}.tar or shards-*.tar),
  any of these files at an address that fsspec supports (https://, s3://, ...),
  hub:NAME or hub:NAME:CONFIG for a dataset of the Hugging Face hub, a datasets object, or a list of rows"""

_KINDS: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".psv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.bz2": "tar",
    ".tar.xz": "tar",
    ".tar.zst": "tar",
}
_BRACES = re.compile(r"\{([^{}]*)\}")


def expand(address: str) -> list[str]:
    """Return the files that an address stands for.

    Args:
        address: A path or an fsspec address. `{000..012}` and `{a,b}` are written out; `*`, `?` and `[` are matched.

    Returns:
        Paths or addresses, in order.

    Raises:
        InputError: If no file matches, or a file does not exist.
    """
    written = [""]
    for position, text in enumerate(_BRACES.split(address)):
        choices = _choices(text) if position % 2 else [text]
        written = [start + choice for start, choice in itertools.product(written, choices)]
    if is_local(address) and Path(address).exists():
        return [address]
    paths = [path for pattern in written for path in _matches(pattern)]
    if not paths:
        raise InputError(f"{address} matches no file")
    if missing := [path for path in paths if is_local(path) and not Path(path).exists()]:
        is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", address) is not None
        hint = f"\n  If it is a dataset of the hub, write {HUB_PREFIX}{address}." if is_hub_name else ""
        raise InputError(f"there is no file or folder {missing[0]}.{hint} Data can be:\n  {FORMS}")
    return paths


def _choices(text: str) -> list[str]:
    """Return the choices written inside a pair of braces."""
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        low, high = match.groups()
        return [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    return text.split(",") if "," in text else ["{" + text + "}"]


def _matches(path: str) -> list[str]:
    if not any(letter in path for letter in "*?["):
        return [path]
    if is_local(path):
        return sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (it takes an absolute pattern)
    filesystem, pattern = require("fsspec", f"reading {path}").core.url_to_fs(path)
    scheme = path.partition("://")[0]
    return sorted(name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in filesystem.glob(pattern))


def kind_of(path: str) -> Kind | None:
    """Return the form of data that a path names by its suffix, or `None` if the suffix is unknown."""
    return _KINDS.get(_suffix(path))


def is_table(path: str) -> bool:
    """Return whether a path names, by its suffix, a file of records rather than an image."""
    return kind_of(path) is not None


def is_bulk(path: str) -> bool:
    """Return whether a path names a tar or a Parquet file, which a folder without images stands for."""
    return kind_of(path) in ("tar", "parquet")


def is_indexable(kind: Kind, paths: Sequence[str]) -> bool:
    """Return whether the records of these files can be read in any order: local, and not compressed."""
    return all(is_local(path) and (kind != "tar" or _suffix(path) == ".tar") for path in paths)


def _suffix(path: str) -> str:
    name = path.partition("?")[0].lower() if not is_local(path) else path.lower()
    double = "." + ".".join(os.path.basename(name).rsplit(".", 2)[1:])  # noqa: PTH119
    return double if double in _KINDS else os.path.splitext(name)[1]  # noqa: PTH122
