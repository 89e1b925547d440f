"""The fetcher: public addresses only, each redirect again, robots.txt, limits and pace."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from openblip.errors import ImageError, InputError
from openblip.io import fetch
from openblip.io.fetch import Fetcher, FetchOptions, is_public, refuses_ai


def png(side: int = 4) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (side, side)).save(encoded, "PNG")
    return encoded.getvalue()


class Site:
    """A server on this machine; `pages` maps a path to status, headers and content."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {"/a.png": (200, {}, png())}
        self.requests: list[tuple[str, float]] = []
        self.agents: set[str] = set()
        self.slow = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append((self.path, time.monotonic()))
                site.agents.add(self.headers["User-Agent"])
                status, headers, content = site.pages.get(self.path, (404, {}, b""))
                if self.path == "/slow.png":
                    self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                    while not site.slow.wait(0.05):
                        self.wfile.write(b"X-A: b\r\n")
                    return
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.slow.set()
    site.server.shutdown()


@pytest.fixture
def options(site: Site) -> FetchOptions:
    return FetchOptions(allow_hosts=(f"127.0.0.1:{site.port}",), interval=0.0, max_seconds=3.0)


def test_a_file_is_fetched(site: Site, options: FetchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # ignored
    assert Fetcher(options).fetch_bytes(site.url("/a.png")) == png()
    assert site.agents == {fetch.USER_AGENT}
    assert [path for path, _ in site.requests] == ["/robots.txt", "/a.png"]


def test_private_addresses_are_refused(site: Site) -> None:
    fetcher = Fetcher(FetchOptions(interval=0.0, max_seconds=3.0))
    for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "169.254.169.254", "10.0.0.1", "[::ffff:127.0.0.1]"):
        with pytest.raises(ImageError, match=r"not public|cannot be found|cannot be read"):
            fetcher.fetch(site.url("/a.png", host))
    assert site.requests == []


def test_an_allowed_port_is_not_the_whole_host(site: Site, options: FetchOptions) -> None:
    with pytest.raises(ImageError, match="not public"):
        Fetcher(options).fetch(f"http://127.0.0.1:{site.port + 1}/a.png")


def test_a_name_with_a_private_address_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: Any, **kwargs: Any) -> list[Any]:
        return [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("127.0.0.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ImageError, match=r"has the address 127\.0\.0\.1, which is not public"):
        fetch.resolve("rebinding.example", 80)


def test_the_connection_goes_to_the_address_that_was_checked(
    site: Site, options: FetchOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second lookup would give another address: there is none."""
    lookups = []
    look_up = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        lookups.append(host)
        return look_up("127.0.0.1" if host == "site.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    named = replace(options, allow_hosts=("site.test",), robots=False)
    assert Fetcher(named).fetch(site.url("/a.png", "site.test")).content == png()
    assert lookups.count("site.test") == 1
    assert set(lookups) <= {"site.test", "127.0.0.1"}


def test_only_listed_hosts_are_asked_also_after_redirects(site: Site, options: FetchOptions) -> None:
    site.pages["/away"] = (302, {"Location": f"http://localhost:{site.port}/a.png"}, b"")
    listed = replace(options, only_hosts=("127.0.0.1", ".example.org"), robots=False)
    assert Fetcher(listed).fetch(site.url("/a.png")).content == png()
    for address in (site.url("/away"), "http://example.org/a.png", "http://127.0.0.1.example.com/a.png"):
        with pytest.raises(ImageError, match="not on the list of allowed hosts"):
            Fetcher(listed).fetch(address)


def test_redirects_are_followed_and_checked(site: Site, options: FetchOptions) -> None:
    site.pages["/moved"] = (302, {"Location": "/a.png"}, b"")
    site.pages["/inside"] = (302, {"Location": "http://10.1.2.3/secret"}, b"")
    site.pages["/file"] = (302, {"Location": "file:///etc/passwd"}, b"")
    site.pages["/loop"] = (302, {"Location": "/loop"}, b"")
    fetcher = Fetcher(options)
    assert fetcher.fetch(site.url("/moved")).content == png()
    for path, reason in (
        ("/inside", "not public"),
        ("/file", "only http and https"),
        ("/loop", "more than 5 redirects"),
    ):
        with pytest.raises(ImageError, match=reason):
            fetcher.fetch(site.url(path))


@pytest.mark.parametrize(
    ("status", "content", "fetched"),
    [
        (200, b"User-agent: *\nDisallow: /*.png$", False),
        (200, b"User-agent: openblip\nDisallow: /", False),
        (200, b"User-agent: other\nDisallow: /", True),
        (404, b"", True),
        (503, b"", False),
    ],
)
def test_robots(site: Site, options: FetchOptions, status: int, content: bytes, fetched: bool) -> None:
    site.pages["/robots.txt"] = (status, {"Retry-After": "0"}, content)
    fetcher = Fetcher(options)
    for _ in range(2):
        if fetched:
            assert fetcher.fetch(site.url("/a.png")).content == png()
        else:
            with pytest.raises(ImageError, match=r"robots\.txt"):
                fetcher.fetch(site.url("/a.png"))
    assert [path for path, _ in site.requests].count("/robots.txt") == 1
    assert ("/a.png" in [path for path, _ in site.requests]) == fetched


def test_tags_that_refuse_ai(site: Site, options: FetchOptions) -> None:
    site.pages["/a.png"] = (200, {"X-Robots-Tag": "noai, noimageai"}, png())
    with pytest.raises(ImageError, match="X-Robots-Tag"):
        Fetcher(options).fetch(site.url("/a.png"))
    assert refuses_ai(["noindex", "NoImageAI"])
    assert refuses_ai(["openblip: noai"])
    assert refuses_ai(["other: noindex, openblip: noai"])
    assert not refuses_ai(["other: noai, nofollow", "unavailable_after: 25 Jun 2030", "noindex"])


def test_limits(site: Site, options: FetchOptions) -> None:
    site.pages["/large.png"] = (200, {}, b"x" * 5000)
    site.pages["/endless.png"] = (200, {"Content-Length": ""}, b"x" * 5000)
    site.pages["/short.png"] = (200, {"Content-Length": "9"}, b"x")
    site.pages["/zipped.png"] = (200, {"Content-Encoding": "gzip"}, b"x")
    site.pages["/big.png"] = (200, {}, png(100))
    fetcher = Fetcher(replace(options, max_bytes=2000, max_pixels=9000, max_seconds=0.5))
    for path, reason in (
        ("/large.png", "larger than 2000 bytes"),
        ("/endless.png", "larger than 2000 bytes"),
        ("/short.png", "connection was lost|IncompleteRead|1 bytes"),
        ("/zipped.png", "asked not to compress"),
        ("/gone.png", "returned 404"),
        ("/slow.png", "more than 0.5 s"),
        ("/big.png", "more than 9000 pixels"),
    ):
        with pytest.raises(ImageError, match=reason):
            fetcher.fetch_bytes(site.url(path))
    for name in ("max_bytes", "max_pixels", "max_seconds"):
        with pytest.raises(InputError, match=name):
            FetchOptions(**{name: 0})  # type: ignore[arg-type]


def test_pace(site: Site, options: FetchOptions) -> None:
    fetcher = Fetcher(replace(options, interval=0.15))
    threads = [threading.Thread(target=fetcher.fetch, args=(site.url("/a.png"),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = sorted(moment for _, moment in site.requests)
    assert len(times) == 5
    assert times[-1] - times[0] >= 4 * 0.14


def test_wrong_addresses(options: FetchOptions) -> None:
    for url in ("ftp://a.org/x", "http://", "http://user:secret@a.org/x", "http://[::1/x", "a.png"):
        with pytest.raises(ImageError, match="cannot fetch"):
            Fetcher(options).fetch(url)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of 93.184.216.34
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("169.254.1.1", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("2002:0a00:0001::1", False),  # 6to4 of 10.0.0.1
        ("64:ff9b::a00:1", False),  # NAT64 of 10.0.0.1
        ("no address", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public
