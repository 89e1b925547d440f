"""Images by address: off by default, only from listed hosts, and never from private addresses."""

from __future__ import annotations

import base64
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from openblip import Blip
from openblip.io.fetch import Fetcher
from openblip.serving.options import ServerOptions
from tests.serving.serving_toys import RunningServer, encode, running_app
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def fetching(toy: Blip) -> Iterator[RunningServer]:
    hosts = ("localhost", "127.0.0.1", "[::1]", "::1", ".example.org", "metadata.internal", "10.0.0.1")
    with running_app(toy, ServerOptions(allow_fetch=hosts)) as running:
        yield running


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://localhost:1/a.jpg", "not allowed"),
        ("http://127.0.0.1:1/a.jpg", "not allowed"),
        ("http://[::1]:1/a.jpg", "not allowed"),
        ("http://10.0.0.1/a.jpg", "not allowed"),
        ("https://evil.example.com/a.jpg", "not on the list"),
        ("https://example.org/a.jpg", "not on the list"),
        ("https://user:password@cdn.example.org/a.jpg", "password"),
        ("https://evil.com%2f.example.org/a.jpg", "cannot"),
        ("file:///etc/passwd", "base64"),
        ("ftp://cdn.example.org/a.jpg", "base64"),
    ],
)
def test_addresses_that_must_not_be_fetched(fetching: RunningServer, address: str, reason: str) -> None:
    started = time.monotonic()
    response = fetching.client.post("/v1/caption", json={"image": address})
    assert time.monotonic() - started < 1.0
    assert response.status_code == 422
    assert reason in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "images.0"


def test_a_host_on_the_list_must_still_be_public(fetching: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "cdn.example.org":
            return look_up("169.254.169.254", *arguments, **options)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    response = fetching.client.post("/v1/caption", json={"image": "https://cdn.example.org/a.jpg"})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "address_not_allowed"


def test_only_the_log_has_the_address_of_a_host(
    toy: Blip, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look_up = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "unknown.internal":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up("10.1.2.3" if host == "known.internal" else host, *arguments, **options)

    with running_app(toy, ServerOptions(allow_fetch=("*",))) as server:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with caplog.at_level(logging.DEBUG, logger="openblip.serving"):
            errors = [
                server.client.post("/v1/caption", json={"image": f"http://{host}/secret.jpg"}).json()["error"]
                for host in ("known.internal", "unknown.internal")
            ]
    assert errors[0] == errors[1], "a client must not learn which names exist"
    assert "10.1.2.3" not in str(errors)
    lines = [record.getMessage() for record in caplog.records if "fetch_refused" in record.getMessage()]
    assert "10.1.2.3 is not public" in lines[0]
    assert not any("internal" in line or "secret" in line for line in lines)


def test_a_listed_image_is_answered(toy: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    image = encode(toy_image(3))
    monkeypatch.setattr(Fetcher, "fetch_bytes", lambda self, url: image)
    with running_app(toy, ServerOptions(allow_fetch=("cdn.example.org",))) as server:
        body = {"image": "https://cdn.example.org/a.png"}
        fetched = server.client.post("/v1/caption", json=body).json()["results"][0]["text"]
        sent = {"image": base64.b64encode(image).decode()}
        assert fetched == server.client.post("/v1/caption", json=sent).json()["results"][0]["text"]
        assert server.client.get("/v1/info").json()["fetch"] is True
