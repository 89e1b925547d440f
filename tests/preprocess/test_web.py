"""Pictures from ``https`` addresses, from a server on this machine: limits, redirects, and answers that are none."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import openblip
from openblip.errors import ImageError
from openblip.preprocess import web
from openblip.preprocess.image import load_image
from tests.preprocess.odd_images import encoded, photo

PNG = encoded(photo(), "PNG")


PORT = 0  # of the server, once it runs


class Handler(BaseHTTPRequestHandler):
    """Each path is one behaviour of a server."""

    protocol_version = "HTTP/1.1"
    recorded: list[str]

    def do_GET(self) -> None:
        Handler.recorded.append(f"{self.path} {self.headers['User-Agent']}")
        self.close_connection = True
        way = self.path.split("?")[0].strip("/").replace("%20", "-").replace("%C3%A9", "e")
        getattr(self, f"answer_{way.replace('-', '_')}")()

    def answer_photo(self) -> None:
        self.reply(200, PNG)

    answer_a_cafe = answer_photo

    def answer_page(self) -> None:
        self.reply(200, b"<!doctype html><p>Sign in</p>", ("Content-Type", "text/html"))

    def answer_gone(self) -> None:
        self.reply(404, b"")

    def answer_elsewhere(self) -> None:
        self.reply(302, b"", ("Location", "/photo"))

    def answer_downgrade(self) -> None:
        self.reply(302, b"", ("Location", f"http://localhost:{PORT}/photo"))

    def answer_local(self) -> None:
        self.reply(302, b"", ("Location", "file:///etc/hostname"))

    def answer_circle(self) -> None:
        self.reply(302, b"", ("Location", "/circle"))

    def answer_chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(PNG), 50):
            part = PNG[start : start + 50]
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def answer_cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PNG)))
        self.end_headers()
        self.wfile.write(PNG[:-40])

    def answer_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.trickle(b"\0" * 4096, 0)

    def answer_trickle(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.trickle(b"\0", 0.02)

    def answer_slow_head(self) -> None:
        self.trickle(b"HTTP/1.1 200 OK\r\nX-Wait: ", 0)
        self.trickle(b"x", 0.02)

    def answer_nonsense(self) -> None:
        self.wfile.write(b"what is this?\r\n\r\n")

    def trickle(self, part: bytes, pause: float) -> None:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            self.wfile.write(part)
            self.wfile.flush()
            if b"HTTP" in part:
                return
            time.sleep(pause)

    def reply(self, code: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(code)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up on purpose here


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    certificate = Path(__file__).with_name("localhost.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    global PORT
    Handler.recorded = []
    with Server(("127.0.0.1", 0), Handler) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        PORT = listening.server_port
        yield f"https://localhost:{PORT}"
        listening.shutdown()


@pytest.fixture(autouse=True)
def _only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(__file__).with_name("localhost.pem")))
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("way", ["photo", "photo?width=3&height=4", "elsewhere", "chunked", "a café"])
def test_pictures_come_over_https(server: str, way: str) -> None:
    np.testing.assert_array_equal(np.asarray(load_image(f"{server}/{way}")), photo())


def test_the_server_is_told_who_asks(server: str) -> None:
    web.download(f"{server}/photo?who")
    assert Handler.recorded[-1] == f"/photo?who openblip/{openblip.__version__}"


def test_the_scheme_may_be_in_capitals(server: str) -> None:
    assert web.download(server.replace("https", "HTTPS") + "/photo") == PNG


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("page", "web page"),
        ("gone", "404"),
        ("downgrade", "not https"),
        ("local", "not allowed"),
        ("circle", "302"),
        ("cut", "connection was lost"),
        ("nonsense", "cannot fetch"),
    ],
)
def test_what_is_no_picture_is_an_image_error_that_names_the_address(server: str, way: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        load_image(f"{server}/{way}")
    assert f"{server}/{way}" in str(caught.value)


def test_a_long_answer_is_cut_off(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 2**20)
    with pytest.raises(ImageError, match="larger than 1 MB"):
        load_image(f"{server}/endless")
    monkeypatch.setattr(web, "MAX_BYTES", len(PNG))
    assert web.download(f"{server}/photo") == PNG


@pytest.mark.parametrize("way", ["trickle", "slow-head"])
def test_a_slow_answer_is_given_up(server: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"more than 0\.3 s"):
        load_image(f"{server}/{way}")
    assert time.monotonic() - start < 1.5


def test_an_unknown_certificate_is_refused(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ImageError, match="CERTIFICATE_VERIFY_FAILED"):
        load_image(f"{server}/photo")


@pytest.mark.parametrize(
    "address", ["http://localhost/a.jpg", "ftp://localhost/a.jpg", "file:///etc/hostname", "s3://b/k"]
)
def test_other_schemes_are_refused_without_a_connection(address: str) -> None:
    with pytest.raises(ImageError, match="only https"):
        load_image(address)


@pytest.mark.parametrize(
    "address", ["https://", "https://localhost:99999/x", "https://[::1/x", "https://\0/", "https://localhost:1/x"]
)
def test_impossible_addresses(address: str) -> None:
    with pytest.raises(ImageError, match="cannot fetch"):
        load_image(address)
