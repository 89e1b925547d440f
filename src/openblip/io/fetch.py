"""Fetch files that strangers named: images of web data sets, and addresses that users send to a server.

- Every address that a host name resolves to must be public, and the connection goes to an address that was checked, so
  a name cannot change its meaning in between. Each redirect is checked again. Proxy variables are ignored.
- `robots.txt` and `X-Robots-Tag: noai` or `noimageai` are honored.
- Size, pixels, time and the rate per host are limited.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from openblip._version import __version__
from openblip.errors import ImageError, InputError
from openblip.extras import require

AGENT = "openblip"
USER_AGENT = f"{AGENT}/{__version__} (image fetcher; honors robots.txt and X-Robots-Tag: noai)"
MAX_ROBOTS_BYTES = 500 * 1024
"""Bytes of robots.txt that are read (RFC 9309, section 2.5)."""
MAX_CRAWL_DELAY = 30.0
_REMEMBERED_HOSTS = 10_000
_CHUNK_BYTES = 2**16
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_AGENTS = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class HostError(ImageError):
    """A host that is unknown, or that has an address that is not public. Strangers must not learn which.

    Attributes:
        detail: The reason with the resolved address, without the name of the host, for logs.
    """

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class Robots(Protocol):
    """The rules of a robots.txt."""

    def can_fetch(self, url: str, user_agent: str) -> bool:
        """Return whether an agent may fetch an address."""

    def crawl_delay(self, user_agent: str) -> float | None:
        """Return the seconds between two requests, if the file sets them."""


@dataclass(frozen=True)
class FetchOptions:
    """What may be fetched, and how fast.

    Attributes:
        max_bytes: Largest file.
        max_pixels: Most pixels of an image.
        max_seconds: Longest time of a request: name lookup, connection, redirects and the complete response.
        max_redirects: Most redirects of a request.
        interval: Seconds between two requests to one host.
        user_agent: Name in every request.
        allow_hosts: Hosts, as `name` or `name:port`, that may have private addresses.
        robots: Honor `robots.txt` and `X-Robots-Tag`.
        only_hosts: The only hosts to fetch from, also after redirects: names, or `.example.org` for all below it; `*`
            is any. Empty allows all.

    Raises:
        InputError: A limit is not positive.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_seconds: float = 30.0
    max_redirects: int = 5
    interval: float = 0.5
    user_agent: str = USER_AGENT
    allow_hosts: tuple[str, ...] = ()
    robots: bool = True
    only_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("max_redirects", "interval"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")

    def open(self) -> Fetcher:
        """Return a fetcher with these options."""
        return Fetcher(self)


@dataclass(frozen=True)
class Response:
    """A complete response.

    Attributes:
        url: Address after all redirects.
        status: HTTP status.
        headers: Headers.
        content: Content.
    """

    url: str
    status: int
    headers: http.client.HTTPMessage = field(repr=False)
    content: bytes = field(repr=False)


class Fetcher:
    """Fetches addresses within limits. Several threads can share one.

    Args:
        options: The limits.
        ssl_context: How certificates are checked; by default as the system does.

    Raises:
        InputError: `protego`, which reads robots.txt, is missing.
    """

    def __init__(self, options: FetchOptions | None = None, ssl_context: ssl.SSLContext | None = None) -> None:
        self.options = options or FetchOptions()
        self._ssl = ssl_context or ssl.create_default_context()
        self._pace = _Pace()
        self._robots: OrderedDict[str, Robots | str] = OrderedDict()
        self._locks: OrderedDict[str, threading.Lock] = OrderedDict()
        self._lock = threading.Lock()
        self._protego = require("protego", "fetching", "fetch").Protego if self.options.robots else None

    def fetch_bytes(self, url: str) -> bytes:
        """Return the encoded image at an address.

        Args:
            url: An `http` or `https` address.

        Raises:
            ImageError: The address must not or cannot be fetched. The message states the reason.
        """
        content = self.fetch(url).content
        with suppress(Exception), Image.open(io.BytesIO(content)) as image:  # other files fail when they are decoded
            pixels = image.width * image.height
            if pixels > self.options.max_pixels:
                content = b""
        if not content:
            raise ImageError(
                f"cannot fetch {url}: the image has more than {self.options.max_pixels} pixels or is empty"
            )
        return content

    def fetch(self, url: str) -> Response:
        """Return the content of an address.

        Args:
            url: An `http` or `https` address.

        Raises:
            ImageError: The address must not or cannot be fetched. The message states the reason.
        """
        response = self._follow(url, self.options.max_bytes, ask_robots=self.options.robots)
        if response.status != 200:
            raise ImageError(f"cannot fetch {url}: the server returned {response.status}")
        return response

    def _follow(self, url: str, max_bytes: int, *, ask_robots: bool) -> Response:
        """Return the response after all redirects, whatever its status."""
        current = url
        for _ in range(self.options.max_redirects + 1):
            target = _Target.parse(current, url)
            if not _is_listed(target.host, self.options.only_hosts):
                raise ImageError(f"cannot fetch {url}: its host is not on the list of allowed hosts")
            if ask_robots:
                self._check_robots(target, url)
            self._pace.wait(target.host, self.options.interval)
            response = self._request(target, url, max_bytes)
            if response.status in (429, 503):
                self._pace.reserve(target.host, _retry_after(response.headers))
            if ask_robots and refuses_ai(response.headers.get_all("X-Robots-Tag") or ()):
                raise ImageError(f"cannot fetch {url}: its X-Robots-Tag refuses use for AI (noai)")
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            current = urllib.parse.urljoin(current, location)
        raise ImageError(f"cannot fetch {url}: more than {self.options.max_redirects} redirects")

    def _check_robots(self, target: _Target, url: str) -> None:
        """Raise `ImageError` if the host's robots.txt forbids the address; its crawl delay slows later requests."""
        with self._lock:
            lock = self._locks.setdefault(target.origin, threading.Lock())
            while len(self._locks) > _REMEMBERED_HOSTS:
                self._locks.popitem(last=False)
        with lock:  # one request for robots.txt per host
            rules = self._robots.get(target.origin)
            if rules is None:
                rules = self._read_robots(target)
                self._robots[target.origin] = rules
                while len(self._robots) > _REMEMBERED_HOSTS:
                    self._robots.popitem(last=False)
        if isinstance(rules, str):
            raise ImageError(f"cannot fetch {url}: {rules}")
        if not rules.can_fetch(target.url, AGENT):
            raise ImageError(f"cannot fetch {url}: robots.txt of {target.host} forbids it")
        self._pace.slow_down(target.host, min(rules.crawl_delay(AGENT) or 0.0, MAX_CRAWL_DELAY))

    def _read_robots(self, target: _Target) -> Robots | str:
        """Return the rules of a host, or the reason to fetch nothing from it."""
        try:
            response = self._follow(f"{target.origin}/robots.txt", MAX_ROBOTS_BYTES, ask_robots=False)
        except ImageError as error:
            return f"its robots.txt cannot be read ({error})"
        if response.status >= 500 or response.status == 429:
            return f"its robots.txt cannot be read (the server returned {response.status})"
        content = response.content.decode("utf-8", "replace") if response.status == 200 else ""
        rules: Robots = self._protego.parse(content) if self._protego else AllowAll()
        return rules

    def _request(self, target: _Target, url: str, max_bytes: int) -> Response:
        """Make one request within the time limit."""
        exchange = _Exchange(target, self.options, self._ssl, max_bytes)
        # A separate thread, because timeouts do not limit name lookups, or servers that send a byte now and then.
        thread = threading.Thread(target=exchange.run, daemon=True, name="openblip-fetch")
        thread.start()
        thread.join(self.options.max_seconds)
        if exchange.outcome is None:
            exchange.abort()
            raise ImageError(f"cannot fetch {url}: it took more than {self.options.max_seconds:g} s")
        if isinstance(exchange.outcome, Response):
            return exchange.outcome
        if isinstance(exchange.outcome, HostError):
            raise HostError(f"cannot fetch {url}: {exchange.outcome}", exchange.outcome.detail)
        raise ImageError(f"cannot fetch {url}: {exchange.outcome}")


class AllowAll:
    """The rules of a host that is not asked."""

    def can_fetch(self, url: str, user_agent: str) -> bool:
        """Return true."""
        return True

    def crawl_delay(self, user_agent: str) -> float | None:
        """Return none."""
        return None


@dataclass(frozen=True)
class _Target:
    """A parsed address."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @staticmethod
    def parse(url: str, asked: str) -> _Target:
        try:
            # Escape spaces and letters outside ASCII, as browsers do, without changing existing escapes.
            parts = urllib.parse.urlsplit(url.strip())
            host = (parts.hostname or "").rstrip(".")
            host = host.encode("idna").decode() if not host.isascii() else host
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise ImageError(f"cannot fetch {asked}: {url} is not an address ({error})") from error
        if parts.scheme not in ("http", "https") or not host:
            raise ImageError(f"cannot fetch {asked}: only http and https addresses are fetched, got {url}")
        if parts.username is not None or parts.password is not None:
            raise ImageError(f"cannot fetch {asked}: the address must not contain a password")
        path = urllib.parse.quote(parts.path or "/", safe="%/:=&~+!$,;'@()*[]")
        if parts.query:
            path += "?" + urllib.parse.quote(parts.query, safe="%/:=&?~+!$,;'@()*[]")
        return _Target(url, parts.scheme, host, port, path)


class _Exchange:
    """One request on a thread of its own; `outcome` is the response or the reason for its failure."""

    def __init__(self, target: _Target, options: FetchOptions, context: ssl.SSLContext, max_bytes: int) -> None:
        self._target, self._options, self._context, self._max_bytes = target, options, context, max_bytes
        self._socket: socket.socket | None = None
        self.outcome: Response | HostError | str | None = None

    def run(self) -> None:
        try:
            self.outcome = self._exchange()
        except HostError as error:
            self.outcome = error
        except ImageError as error:
            self.outcome = str(error)
        except Exception as error:  # a malformed response, a lost connection, a wrong certificate
            self.outcome = str(error) or type(error).__name__

    def abort(self) -> None:
        with suppress(Exception):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _exchange(self) -> Response:
        target, options = self._target, self._options
        connection = http.client.HTTPConnection(target.host, target.port, timeout=options.max_seconds)
        # `connect` is never called: the socket is connected to an address that was checked.
        connection.sock = self._socket = self._connect()
        default_port = target.port == (443 if target.scheme == "https" else 80)
        host = f"[{target.host}]" if ":" in target.host else target.host
        headers = {
            "Host": host if default_port else f"{host}:{target.port}",
            "User-Agent": options.user_agent,
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        try:
            connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            return self._read(connection.getresponse())
        finally:
            connection.close()

    def _connect(self) -> socket.socket:
        target, seconds = self._target, self._options.max_seconds
        addresses = resolve(target.host, target.port, self._options.allow_hosts)
        failure: OSError | None = None
        for address in addresses:
            try:
                plain = socket.create_connection((address, target.port), timeout=seconds)
            except OSError as error:
                failure = error
                continue
            if target.scheme == "http":
                return plain
            return self._context.wrap_socket(plain, server_hostname=target.host)
        raise ImageError(f"{target.host} does not answer ({failure})")

    def _read(self, response: http.client.HTTPResponse) -> Response:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        content = b""
        if response.status == 200:
            if encoding not in ("", "identity"):
                raise ImageError(f"the server sent {encoding} although it was asked not to compress")
            if response.length is not None and response.length > self._max_bytes:
                raise ImageError(f"it is larger than {self._max_bytes} bytes")
            content = self._read_content(response)
        return Response(self._target.url, response.status, response.headers, content)

    def _read_content(self, response: http.client.HTTPResponse) -> bytes:
        chunks, size = [], 0
        while chunk := response.read1(_CHUNK_BYTES):
            chunks.append(chunk)
            size += len(chunk)
            if size > self._max_bytes:
                raise ImageError(f"it is larger than {self._max_bytes} bytes")
        if response.length:  # bytes that were announced and did not arrive
            raise ImageError(f"the connection was lost after {size} bytes")
        return b"".join(chunks)


class _Pace:
    """The earliest time of the next request to each host."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: OrderedDict[str, float] = OrderedDict()
        self._delays: dict[str, float] = {}

    def wait(self, host: str, interval: float) -> None:
        """Wait for the host's turn, and take it; the next turn comes after the interval or the host's crawl delay."""
        while True:
            with self._lock:
                remaining = self._next.get(host, 0.0) - time.monotonic()
                if remaining <= 0:
                    self._next[host] = time.monotonic() + max(interval, self._delays.get(host, 0.0))
                    return
            time.sleep(min(remaining, 1.0))

    def reserve(self, host: str, seconds: float) -> None:
        """Allow no request to the host within the next seconds."""
        with self._lock:
            self._next[host] = max(self._next.get(host, 0.0), time.monotonic() + seconds)
            self._next.move_to_end(host)
            while len(self._next) > _REMEMBERED_HOSTS:
                self._delays.pop(self._next.popitem(last=False)[0], None)

    def slow_down(self, host: str, delay: float) -> None:
        """Set the crawl delay of a host."""
        if delay:
            with self._lock:
                self._delays[host] = delay


def _is_listed(host: str, hosts: Sequence[str]) -> bool:
    """Return whether a host is on a list, or the list is empty."""
    name = host.lower()
    return not hosts or any(
        name == entry or entry == "*" or (entry[:1] == "." and name.endswith(entry)) for entry in hosts
    )


def resolve(host: str, port: int, allow_hosts: Sequence[str] = ()) -> list[str]:
    """Return the addresses of a host, all of which are public.

    Args:
        host: Name or address.
        port: Port.
        allow_hosts: Hosts, as `name` or `name:port`, that may have private addresses.

    Raises:
        HostError: The name is unknown, or one of its addresses is not public.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = error.strerror or str(error)
        raise HostError(f"{host} cannot be found ({reason})", reason) from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    allowed = host in allow_hosts or f"{host}:{port}" in allow_hosts
    private = [address for address in addresses if not is_public(address)]
    if private and not allowed:
        raise HostError(f"{host} has the address {private[0]}, which is not public", f"{private[0]} is not public")
    return addresses


def is_public(address: str) -> bool:
    """Return whether an IP address is public, and so is every address that it contains (mapped, 6to4, Teredo, NAT64).

    Args:
        address: An IPv4 or IPv6 address.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
    excluded = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    if isinstance(ip, ipaddress.IPv6Address) and ip in _NAT64:
        excluded = False
    return ip.is_global and not excluded and all(is_public(str(each)) for each in inner if each is not None)


def refuses_ai(values: Iterable[str]) -> bool:
    """Return whether `X-Robots-Tag` headers refuse use for AI, to everybody or to this agent.

    Args:
        values: The values of the header.
    """
    for value in values:
        applies = True
        for part in value.split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip().lower() not in _NOT_AGENTS:
                applies, part = name.strip().lower() == AGENT, rest
            if applies and part.strip().lower() in ("noai", "noimageai"):
                return True
    return False


def _retry_after(headers: http.client.HTTPMessage) -> float:
    """Return the seconds that a busy server asks to wait, at most a minute."""
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return min(float(value), 60.0)
    with suppress(ValueError, TypeError):
        return min(max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0), 60.0)
    return 5.0
