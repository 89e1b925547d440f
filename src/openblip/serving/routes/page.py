"""The web page: static files of the package."""

from __future__ import annotations

import mimetypes
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from openblip.serving.errors import ApiError

router = APIRouter(include_in_schema=False)

CSP = (
    "default-src 'self'; img-src 'self' blob: data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""What the pages of the server may load: their own files, and the images that a user picks."""

_METHODS = ["GET", "HEAD"]
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


@router.api_route("/", methods=_METHODS)
async def index() -> Response:
    """Return the page."""
    return page_file("index.html")


@router.api_route("/docs", methods=_METHODS)
async def docs() -> Response:
    """Return the API reference, which reads `/openapi.json`."""
    return page_file("docs.html")


@router.api_route("/favicon.ico", methods=_METHODS)
async def favicon() -> Response:
    """Return the icon."""
    return page_file("icon.svg")


@router.api_route("/static/{name:path}", methods=_METHODS)
async def static(name: str) -> Response:
    """Return a file of the page."""
    return page_file(name)


def page_file(name: str) -> Response:
    """Return a file of the folder `page`.

    Args:
        name: Its path in the folder.

    Raises:
        ApiError: There is no such file (404).
    """
    content = _read_files().get(name)
    if content is None:
        raise ApiError(404, "no such file", code="not_found")
    suffix = name[name.rfind(".") :]
    media_type = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(
        content, media_type=media_type, headers={"Content-Security-Policy": CSP, "Cache-Control": "no-cache"}
    )


@cache
def _read_files() -> dict[str, bytes]:
    """Return all files by name, so that the name in a request is only looked up, and never becomes a path."""
    root, contents = files("openblip.serving").joinpath("page"), {}
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        for entry in folder.iterdir():
            if entry.is_dir():
                folders.append((f"{prefix}{entry.name}/", entry))
            else:
                contents[f"{prefix}{entry.name}"] = entry.read_bytes()
    return contents
