"""The routes of the live contact sheet, `/edit`. They require a session from the one-time token, or an API key."""

from __future__ import annotations

import asyncio
import secrets
from urllib.parse import parse_qs

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from openblip.serving.editing import LiveSheet
from openblip.serving.errors import ApiError
from openblip.serving.keys import sent_key
from openblip.serving.routes.page import page_file
from openblip.serving.schemas import RequestModel
from openblip.serving.service import Service, service_of

router = APIRouter(include_in_schema=False)

_COOKIE = "openblip_edit"
_MAX_TEXT = 10_000


class SaveRequest(RequestModel):
    """An edit of a caption."""

    text: str
    version: str


@router.get("/edit")
async def sheet(request: Request, token: str | None = None, page: int = 1) -> Response:
    """Return a page of the sheet. The one-time token in the address starts a session."""
    live = _sheet_of(request)
    if token is not None:
        session = live.sessions.redeem(token)
        if session is None:
            raise ApiError(403, "the token is wrong or was used; restart the server for a new one", code="wrong_token")
        return _with_cookie(RedirectResponse("/edit", 303), session)
    if not _may_edit(request, live):
        return page_file("edit-login.html")
    if page < 1:
        raise ApiError(422, "page must be at least 1", param="page", code="invalid_value")
    nonce = secrets.token_urlsafe(16)
    html = await asyncio.to_thread(live.render, page, nonce)
    csp = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    content = html.encode("utf-8", "backslashreplace")
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": csp})


@router.post("/edit/session")
async def begin(request: Request) -> Response:
    """Start a session with an API key."""
    live, keys = _sheet_of(request), service_of(request).keys
    body = await request.body()
    key = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0]
    if not keys or keys.find(key.strip()) is None:
        raise ApiError(401, "the API key is wrong", code="invalid_api_key")
    return _with_cookie(RedirectResponse("/edit", 303), live.sessions.begin())


@router.get("/edit/captions/{image_id}")
async def read(request: Request, image_id: str) -> JSONResponse:
    """Return a caption and its version."""
    live = _editable(request)
    saved = await asyncio.to_thread(live.read, image_id)
    return JSONResponse({"text": saved.text, "version": saved.version})


@router.post("/edit/captions/{image_id}")
async def save(request: Request, image_id: str) -> JSONResponse:
    """Store a caption."""
    live = _editable(request)
    fields, _ = await service_of(request).read(request, SaveRequest)
    if len(fields.text) > _MAX_TEXT or "\0" in fields.text:
        raise ApiError(
            422, f"text must have at most {_MAX_TEXT} characters, and no NUL", param="text", code="invalid_value"
        )
    saved = await asyncio.to_thread(live.save, image_id, fields.text, fields.version)
    return JSONResponse({"text": saved.text, "version": saved.version})


def _sheet_of(request: Request) -> LiveSheet:
    service: Service = service_of(request)
    if service.sheet is None:
        raise ApiError(404, "this server edits no folder (openblip serve --edit FOLDER)", code="not_found")
    return service.sheet


def _editable(request: Request) -> LiveSheet:
    live = _sheet_of(request)
    if not _may_edit(request, live):
        raise ApiError(401, "open the address with the one-time token, or send an API key", code="missing_api_key")
    return live


def _may_edit(request: Request, live: LiveSheet) -> bool:
    if live.sessions.is_open(request.cookies.get(_COOKIE, "")):
        return True
    key, keys = sent_key(request.headers), service_of(request).keys
    return bool(key) and bool(keys) and keys.find(key) is not None


def _with_cookie(response: Response, session: str) -> Response:
    """Store the session in a cookie that scripts cannot read, and that browsers do not send from other sites."""
    response.set_cookie(_COOKIE, session, httponly=True, samesite="strict", path="/edit")
    return response
