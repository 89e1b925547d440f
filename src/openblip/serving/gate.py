"""The gate checks every request before its body is read. It is pure ASGI, so refusals are cheap."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openblip.serving.admission import Admission, Ticket
from openblip.serving.batching import Job
from openblip.serving.errors import ApiError
from openblip.serving.keys import KeyStore, sent_key
from openblip.serving.logs import log
from openblip.serving.metrics import Metrics
from openblip.serving.options import ServerOptions

COMPUTED_ROUTES = frozenset(
    f"/v1/{name}"
    for name in (
        "caption", "ask", "match", "compare", "embed", "classify", "ground", "explain", "search", "embeddings",
        "chat/completions", "rerank", "score",
    )
)  # fmt: skip
"""Routes that use the model: only they wait in the queue."""

_OPEN_ROUTES = frozenset({"/", "/docs", "/healthz", "/favicon.ico"})
_BODIES = frozenset({"POST", "PUT", "PATCH"})
_SAFE_SITES = frozenset({"same-origin", "none"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_LINGER_SECONDS = 2.0
_MAX_LINGER_BYTES = 512 * 2**20
_TIMEOUT = re.compile(r"\d{1,6}(\.\d{1,6})?")
_API_CSP = "default-src 'none'; frame-ancestors 'none'"


@dataclass
class ServerState:
    """Whether the server accepts requests.

    Attributes:
        ready: Whether all models are loaded.
        draining: Whether the server is stopping.
    """

    ready: bool = False
    draining: bool = False


@dataclass(eq=False)
class Exchange:
    """A request that has passed the gate; routes find it in the scope under `openblip`.

    Attributes:
        id: Id of the request in the logs and in `X-Request-Id`.
        client: Name of the client's key, or the client's address.
        job: Its deadline, and whether it was cancelled.
        timeout: Seconds from its headers to its deadline.
        max_body_bytes: Maximum size of the body.
        ticket: Its share of the queue; `None` for routes that compute nothing.
        body_read: Whether the body was received completely.
        started: Monotonic time of its headers.
    """

    id: str
    client: str
    job: Job
    timeout: float
    max_body_bytes: int
    ticket: Ticket | None = None
    body_read: bool = False
    started: float = field(default_factory=time.monotonic)


class Gate:
    """Middleware that checks host, origin, key, size and queue from the headers, and writes metrics and logs.

    Args:
        app: The application behind the gate.
        options: Options of the server.
        keys: The API keys.
        state: Whether the server accepts requests.
        admission: The queue.
        metrics: Receives counts and times.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        options: ServerOptions,
        keys: KeyStore,
        state: ServerState,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self._app, self._options, self._keys = app, options, keys
        self._state, self._admission, self._metrics = state, admission, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange: Exchange | None = None
        started = time.monotonic()
        counted = _CountedReceive(receive, self._options.limits.max_body_bytes)
        response = _Response(scope, counted, send, self._options.origins)
        try:
            exchange = self._admit(scope, response.id)
            scope["openblip"] = exchange
            counted.exchange = exchange
            response.release = partial(self._leave, exchange)
            await self._app(scope, counted, response)
        except ApiError as error:
            await error.response()(scope, receive, response)
            self._metrics.refusal_seconds.observe(response.seconds(started))
        except Exception:
            log("error", level=logging.ERROR, request=response.id, route=_route(scope))
            logging.getLogger("openblip.serving").exception("request %s failed", response.id)
            if not response.started:
                await unexpected_error(response.id).response()(scope, receive, response)
        finally:
            if exchange is not None:
                exchange.job.cancelled = exchange.job.cancelled or not response.completed
                self._leave(exchange)
            self._record(scope, response, exchange, response.seconds(started))

    def _admit(self, scope: Scope, request_id: str) -> Exchange:
        """Return the exchange of an accepted request.

        Raises:
            ApiError: The request is refused.
        """
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        if "content-length" in headers and "transfer-encoding" in headers:  # proxies may disagree on where it ends
            raise ApiError(
                400, "a request must have Content-Length or Transfer-Encoding, not both", code="ambiguous_length"
            )
        self._check_host(headers)
        self._check_origin(headers, scope)
        client = self._client(scope, headers, path)
        timeout = self._timeout(headers)
        size = _content_length(headers)
        limit = self._options.limits.max_body_bytes if path in COMPUTED_ROUTES else 2**20
        if size is not None and size > limit:
            raise _too_large(limit)
        exchange = Exchange(request_id, client, Job(client, time.monotonic() + timeout), timeout, limit)
        if path in COMPUTED_ROUTES and method == "POST":
            if self._state.draining:
                raise ApiError(503, "the server is stopping", code="draining", retry_after=5)
            if not self._state.ready:
                raise ApiError(503, "the models are being loaded", code="not_ready", retry_after=2)
            exchange.ticket = self._admission.enter(client, path, timeout, size)
        return exchange

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        allowed = self._options.hosts
        if "*" not in allowed and name.strip("[]").rstrip(".").lower() not in allowed:
            raise ApiError(403, "the Host header must name an allowed host (--allow-host)", code="host_not_allowed")

    def _check_origin(self, headers: Headers, scope: Scope) -> None:
        """Raise `ApiError` for requests from the page of another site."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self._options.origins and origin is not None:
            return
        # Browsers hide the origin of forms, because of the referrer policy; no page can set Sec-Fetch-Site.
        is_hidden = origin == "null" and site == "same-origin"
        if origin is not None and not is_hidden and not _is_same_origin(origin, headers.get("host", "")):
            raise ApiError(403, "requests from pages of other sites are refused", code="foreign_origin")
        # A link on another site can open only the page itself.
        opens_page = scope["method"] in ("GET", "HEAD") and scope["path"] in ("/", "/edit", "/docs")
        if site is not None and site not in _SAFE_SITES and not opens_page:
            raise ApiError(403, "requests from pages of other sites are refused", code="foreign_origin")

    def _client(self, scope: Scope, headers: Headers, path: str) -> str:
        """Return the name of the client, if its key allows the route."""
        address = scope["client"][0] if scope.get("client") else "unknown"
        is_open = path in _OPEN_ROUTES or path.startswith(("/static/", "/edit"))  # edits: own keys
        is_preflight = scope["method"] == "OPTIONS" and headers.get("origin") in self._options.origins
        if not self._keys or is_open or is_preflight:
            return _network(address)
        key = sent_key(headers)
        if not key:
            raise ApiError(
                401, "an API key is required: Authorization: Bearer KEY, or X-API-Key: KEY", code="missing_api_key"
            )
        client = self._keys.find(key)
        if client is None:
            raise ApiError(401, "the API key is wrong", code="invalid_api_key")
        return client

    def _timeout(self, headers: Headers) -> float:
        limit, value = self._options.limits.max_seconds, headers.get("x-request-timeout")
        if value is None:
            return limit
        if not _TIMEOUT.fullmatch(value) or not float(value) > 0:
            raise ApiError(400, "X-Request-Timeout must be a positive number of seconds", code="invalid_timeout")
        return min(limit, float(value))

    def _leave(self, exchange: Exchange) -> None:
        """Free the share of a request in the queue."""
        if exchange.ticket is not None:
            self._admission.leave(exchange.ticket)
            exchange.ticket = None

    def _record(self, scope: Scope, response: _Response, exchange: Exchange | None, seconds: float) -> None:
        route, status = _route(scope), response.status or 499
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        log(
            "request",
            level=logging.ERROR if status == 500 else logging.INFO,
            request=response.id,
            client=exchange.client if exchange is not None else None,
            method=scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other",
            route=route,
            status=status,
            seconds=round(seconds, 6),
        )


class _CountedReceive:
    """Receives a body within its limit, and counts its bytes into the ticket."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.limit = receive, limit
        self.exchange: Exchange | None = None
        self._size = 0

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request" and self.exchange is not None:
            self._size += len(message.get("body", b""))
            limit = self.exchange.max_body_bytes
            if self._size > limit:
                raise _too_large(limit)
            if self.exchange.ticket is not None:
                self.exchange.ticket.grow(self._size)
            self.exchange.body_read = not message.get("more_body", False)
        return message

    def is_unbounded(self, scope: Scope) -> bool:
        """Return whether there is an unread body that is too large, or of unknown size."""
        headers = Headers(scope=scope)
        if self.exchange is not None and self.exchange.body_read:
            return False
        return "transfer-encoding" in headers or (_content_length(headers) or 0) > self.limit

    async def discard(self) -> None:
        """Receive and discard the rest of a body, for a limited time, so that the client reads the response."""
        end, size = time.monotonic() + _MAX_LINGER_SECONDS, 0
        while (remaining := end - time.monotonic()) > 0 and size < _MAX_LINGER_BYTES:
            try:
                message = await asyncio.wait_for(self.receive(), remaining)
            except asyncio.TimeoutError:
                return
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return


class _Response:
    """Sends a response with the common headers, and records its progress."""

    def __init__(self, scope: Scope, receive: _CountedReceive, send: Send, origins: Sequence[str]) -> None:
        self._scope, self._receive, self._send, self._origins = scope, receive, send, origins
        self.id = secrets.token_hex(8)
        self.status = 0
        self.completed = False
        self.release: Callable[[], None] = lambda: None
        self._first = 0.0
        self._lingers = False

    @property
    def started(self) -> bool:
        return self.status > 0

    def seconds(self, started: float) -> float:
        """Return the seconds from `started` to the start of the response."""
        return (self._first or time.monotonic()) - started

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self._first = message["status"], time.monotonic()
            self._add_headers(MutableHeaders(scope=message))
            await self._send(message)
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self.release()  # before the client can read the end of the response
            if self._lingers:
                await self._send({**message, "more_body": True})
                await self._receive.discard()
                message = {"type": "http.response.body", "body": b""}
            self.completed = True
            await self._send(message)
        else:
            await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers["X-Request-Id"] = self.id
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers.setdefault("Content-Security-Policy", _API_CSP)
        headers.setdefault("Cache-Control", "no-store")
        origin = Headers(scope=self._scope).get("origin")
        if origin in self._origins and origin is not None and "access-control-allow-origin" not in headers:
            headers["Access-Control-Allow-Origin"] = origin  # the gate's refusals do not pass the CORS middleware
            headers["Access-Control-Expose-Headers"] = "x-request-id, retry-after"
            headers.add_vary_header("Origin")
        if self._scope["method"] in _BODIES and self._receive.is_unbounded(self._scope):
            self._lingers = True
            headers["Connection"] = "close"


def unexpected_error(request_id: str) -> ApiError:
    """Return the error of a request that failed for an unexpected reason, which only the log contains.

    Args:
        request_id: Id of the request in the log.
    """
    return ApiError(500, f"internal error; the log has it as request {request_id}", code="internal_error")


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body must have at most {limit} bytes", code="body_too_large")


def _content_length(headers: Headers) -> int | None:
    value = headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdecimal() else None


def _is_same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        own = urlsplit(f"{parts.scheme}://{host}")
        own_port = own.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return False
    return parts.scheme in _DEFAULT_PORTS and (parts.hostname, port) == (own.hostname, own_port)


def _network(address: str) -> str:
    """Return the name of a client without a key: its address, of IPv6 the network."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(ip), 64), strict=False))
    return str(ip)


def _route(scope: Scope) -> str:
    """Return the route of a request for metrics and logs, without text from the client."""
    path = scope["path"]
    if path in COMPUTED_ROUTES or path in _OPEN_ROUTES or path in _OTHER_ROUTES:
        return str(path)
    prefix = next(
        (
            prefix
            for prefix in ("/static/", "/v1/gallery/", "/edit/captions/", "/edit/images/")
            if path.startswith(prefix)
        ),
        None,
    )
    return f"{prefix}*" if prefix else "other"


_OTHER_ROUTES = frozenset(
    {"/readyz", "/metrics", "/docs", "/openapi.json", "/edit", "/edit/session", "/v1/info", "/v1/models", "/v1/gallery"}
)
