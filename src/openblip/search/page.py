"""A page of search results: one self-contained HTML file with thumbnails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from openblip.data.images import FileImage
from openblip.errors import SearchError
from openblip.io import atomic
from openblip.io.templates import render_html
from openblip.jobs.sheet import encode_thumbnail
from openblip.search.results import Hit, SearchResults


@dataclass(frozen=True)
class ResultCard:
    """A hit on the page.

    Attributes:
        hit: The hit.
        thumbnail: JPEG file, base64 encoded; `None` if the image cannot be opened.
        link: Address of the image relative to the page.
        original: Name of the better hit that it nearly equals.
    """

    hit: Hit
    thumbnail: str | None
    link: str
    original: str | None


def write_page(path: Path, query: Sequence[str], results: SearchResults) -> None:
    """Write a page of search results.

    Args:
        path: The HTML file.
        query: The parts of the query, in words.
        results: The results.

    Raises:
        SearchError: The page cannot be written.
    """
    names = {hit.id: hit.name for hit in results}
    folder = os.path.abspath(path.parent)  # noqa: PTH100
    cards = [
        ResultCard(
            hit,
            encode_thumbnail(FileImage(hit.path)),
            quote(os.path.relpath(hit.path, folder).replace(os.sep, "/")),
            names.get(hit.duplicate_of or ""),
        )
        for hit in results
    ]
    html = render_html("openblip.search", "results.html", title=path.stem, query=query, results=results, cards=cards)
    try:
        with atomic.replace_file(path) as file:
            file.write(html.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise SearchError(f"cannot write {path}: {error.strerror or error}") from error
