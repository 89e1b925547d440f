"""What the gate refuses, and that it does so before a body is read."""

from __future__ import annotations

import base64
import json
import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from openblip import Blip
from openblip.errors import InputError
from openblip.serving.keys import KeyStore, is_readable_by_all, parse_keys, read_keys
from openblip.serving.options import Limits, ServerOptions
from openblip.serving.run import check_address
from tests.serving.serving_toys import RunningServer, encode, running_app
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")

KEY, OTHER_KEY = "correct-horse-battery", "another-key-of-length"
IMAGE = base64.b64encode(encode(toy_image(0))).decode()
CUT = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + base64.b64decode(IMAGE)
BODY = json.dumps({"image": IMAGE}).encode()


@pytest.fixture(scope="module")
def guarded(toy: Blip) -> Iterator[RunningServer]:
    """A server with keys, small limits and a site that may call it."""
    options = ServerOptions(
        keys={"alice": KEY, "bob": OTHER_KEY},
        origins=("https://app.example.org",),
        limits=Limits(max_body_bytes=300_000, max_images=3, max_texts=10, max_pairs=20, max_pixels=10**6),
    )
    with running_app(toy, options) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


def raw(server: RunningServer, head: str, body: bytes = b"") -> bytes:
    """Send a request head, and return what comes back although no body follows."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            chunk = connection.recv(65536)
            if not chunk:
                break
            answer += chunk
        return answer


@pytest.mark.parametrize(
    "route", ["/v1/caption", "/v1/info", "/v1/models", "/metrics", "/readyz", "/openapi.json", "/nothing"]
)
def test_keys_guard_everything_but_the_page(guarded: RunningServer, route: str) -> None:
    plain = httpx.Client(base_url=guarded.url)
    for headers, code in (
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer wrong-key-of-some-length"}, "invalid_api_key"),
        ({"Authorization": f"Basic {KEY}"}, "missing_api_key"),
        ({"X-API-Key": KEY[:-1]}, "invalid_api_key"),
    ):
        response = plain.get(route, headers=headers)
        assert response.status_code == 401, route
        assert response.json()["error"]["code"] == code
        assert KEY not in response.text
    assert plain.get(route, headers={"X-API-Key": OTHER_KEY}).status_code != 401
    assert plain.get("/").status_code == plain.get("/docs").status_code == 200
    assert plain.get("/healthz").json() == {"status": "ok"}


def test_head_requests_have_the_headers_of_get(guarded: RunningServer) -> None:
    for route in ("/", "/docs", "/healthz", "/readyz", "/static/app.js", "/favicon.ico"):
        answers = [guarded.client.request(method, route) for method in ("GET", "HEAD")]
        assert [answer.status_code for answer in answers] == [200, 200], route
        assert answers[1].content == b""
        assert answers[0].headers["content-length"] == answers[1].headers["content-length"]
    assert httpx.head(f"{guarded.url}/readyz").status_code == 401


def test_keys_never_reach_the_logs(guarded: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="openblip.serving"):
        guarded.client.post("/v1/ask", json={"image": IMAGE, "question": "a secret question?"})
        httpx.get(f"{guarded.url}/v1/secret-path?key=secret", headers={"Authorization": "Bearer secret-wrong-key"})
    lines = [record.getMessage() for record in caplog.records if record.name == "openblip.serving"]
    assert any(json.loads(line).get("client") == "alice" for line in lines)
    assert not any(word in line for line in lines for word in ("secret", KEY, IMAGE[:20]))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://app.example.org", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Host": "localhost:1234", "Origin": "http://localhost:1234"}, 200),
        ({"Host": "localhost:1234", "Origin": "http://localhost:4321"}, 403),
    ],
)
def test_foreign_hosts_and_origins_are_refused(guarded: RunningServer, headers: dict[str, str], status: int) -> None:
    response = guarded.client.get("/v1/info", headers=headers)
    assert response.status_code == status
    allowed = headers.get("Origin") == "https://app.example.org"
    assert ("access-control-allow-origin" in response.headers) == allowed


def test_responses_have_the_headers_of_a_careful_server(guarded: RunningServer) -> None:
    for route in ("/", "/v1/info", "/nothing"):
        headers = guarded.client.get(route).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers
    assert "default-src 'self'" in guarded.client.get("/").headers["content-security-policy"]


def test_refusals_come_before_the_body(guarded: RunningServer) -> None:
    head = f"POST /v1/caption HTTP/1.1\nHost: localhost\nAuthorization: Bearer {KEY}\nContent-Type: application/json\n"
    started = time.monotonic()
    assert b"413" in raw(guarded, head + f"Content-Length: {200 * 2**20}").split(b"\r\n")[0]
    assert b"401" in raw(guarded, head.replace(KEY, "x" * 20) + "Content-Length: 1000").split(b"\r\n")[0]
    assert b"400" in raw(guarded, head + "X-Request-Timeout: soon\nContent-Length: 1000").split(b"\r\n")[0]
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("order", [1, -1])
def test_a_body_with_two_lengths_is_refused(guarded: RunningServer, order: int) -> None:
    """A proxy in front may take the other one, and see another request in the rest of the body."""
    lengths = ["Content-Length: 4", "Transfer-Encoding: chunked"][::order]
    head = "\n".join(["POST /v1/caption HTTP/1.1", "Host: localhost", f"X-API-Key: {KEY}", *lengths])
    answer = raw(guarded, head, b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_without_a_length_is_refused_at_its_limit(guarded: RunningServer) -> None:
    head = f"POST /v1/caption HTTP/1.1\nHost: localhost\nAuthorization: Bearer {KEY}\nContent-Type: application/json\n"
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    answer = raw(guarded, head + "Transfer-Encoding: chunked", chunk * 6)
    assert b"413" in answer.split(b"\r\n")[0]
    end = time.monotonic() + 1  # the test reads the head of the response only
    while guarded.app.service.admission.pending_bytes and time.monotonic() < end:
        time.sleep(0.01)
    assert guarded.app.service.admission.pending_bytes == 0


def test_a_client_that_sends_a_large_body_reads_the_refusal(guarded: RunningServer) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 2**20

    response = guarded.client.post("/v1/caption", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"image": IMAGE, "text": "x" * 1001}, 422, "texts"),
        ({"image": IMAGE, "texts": ["x"] * 11}, 413, "texts"),
        ({"images": [IMAGE] * 3, "texts": ["x"] * 10}, 413, "texts"),
        ({"images": [IMAGE] * 4, "text": "x"}, 413, "images"),
        ({"image": IMAGE, "texts": ["x"] * 60_000}, 413, "texts"),
        ({"image": IMAGE}, 422, "text"),
        ({"image": IMAGE, "text": "x", "texts": ["x"]}, 422, "text"),
        ({"image": IMAGE, "text": 3}, 422, "text"),
        ({"image": IMAGE, "text": "x", "unknown": 1}, 422, "unknown"),
        ({"text": "x"}, 422, "images"),
        ({"image": "file:///etc/passwd", "text": "x"}, 422, "images.0"),
        ({"image": "/etc/passwd", "text": "x"}, 422, "images.0"),
        ({"image": "https://example.org/a.jpg", "text": "x"}, 422, "images.0"),
        ({"image": "data:image/png,plain", "text": "x"}, 422, "images.0"),
        ({"image": "", "text": "x"}, 422, "images.0"),
    ],
)
def test_bodies_beyond_the_limits_are_refused_quickly(
    guarded: RunningServer, body: dict[str, object], status: int, param: str
) -> None:
    guarded.client.get("/healthz")
    started = time.monotonic()
    response = guarded.client.post("/v1/match", json=body)
    assert time.monotonic() - started < 0.5
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert "etc/passwd" not in error["message"]
    assert len(response.content) < 1000, "the error repeats no value of the request"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_beams", 11),
        ("n", 11),
        ("max_new_tokens", 65),
        ("length_penalty", 1e300),
        ("length_penalty", -1e300),
        ("temperature", 1e-300),
        ("temperature", 1e300),
        ("forbid", ["x" * 1001]),
    ],
)
def test_costly_decoding_is_refused(guarded: RunningServer, field: str, value: object) -> None:
    sampling = {"do_sample": True} if field == "temperature" else {}
    response = guarded.client.post("/v1/caption", json={"image": IMAGE, field: value, **sampling})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("route", "field", "value", "param"),
    [("caption", "prompt", "a " * 490, "prompt"), ("ground", "expression", "?", "expressions")],
)
def test_errors_about_a_text_name_its_field(
    guarded: RunningServer, route: str, field: str, value: str, param: str
) -> None:
    response = guarded.client.post(f"/v1/{route}", json={"image": IMAGE, field: value})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    response = guarded.client.post(f"/v1/{route}", json={"image": "AAAA", field: "a"})
    assert response.json()["error"]["param"] == "images.0"


@pytest.mark.parametrize(
    "options",
    [{"length_penalty": 10}, {"length_penalty": -10}, *({"do_sample": True, "temperature": t} for t in (1e-5, 100))],
)
def test_extreme_decoding_works(guarded: RunningServer, options: dict[str, object]) -> None:
    response = guarded.client.post("/v1/caption", json={"image": IMAGE, **options})
    assert response.status_code == 200, response.text


def test_as_many_labels_as_the_limit(guarded: RunningServer) -> None:
    labels = [f"label {number}" for number in range(11)]
    assert guarded.client.post("/v1/classify", json={"image": IMAGE, "labels": labels[:10]}).status_code == 200
    error = guarded.client.post("/v1/classify", json={"image": IMAGE, "labels": labels}).json()["error"]
    assert error["message"] == "labels must have at most 10 entries, got 11"


def test_unexpected_errors_have_the_shape_of_all(toy: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    with running_app(toy) as running:
        monkeypatch.setattr(running.app.service.metrics, "render", fail)
        response = running.client.get("/metrics")
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal_error"
    assert response.headers["X-Request-Id"] in error["message"]
    assert "defect" not in response.text


def test_an_allowed_site_can_read_refusals(guarded: RunningServer) -> None:
    for origin, allowed in (("https://app.example.org", "https://app.example.org"), ("https://evil.example", None)):
        response = httpx.get(f"{guarded.url}/v1/info", headers={"Origin": origin})
        assert response.status_code == (401 if allowed else 403)
        assert response.headers.get("Access-Control-Allow-Origin") == allowed
        served = guarded.client.get("/v1/info", headers={"Origin": origin})
        assert served.headers.get_list("Access-Control-Allow-Origin") == ([allowed] if allowed else [])


def test_a_slash_too_many_is_no_redirect(guarded: RunningServer) -> None:
    assert guarded.client.get("/v1/info/").status_code == 404


def test_malformed_bodies(guarded: RunningServer) -> None:
    for content, content_type, status in (
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"x", "text/plain", 415),
        (b"x", "multipart/form-data", 400),
        (b"broken", "multipart/form-data; boundary=x", 400),
        (b"--x--", "multipart/form-data; boundary=x", 422),
        (CUT, "multipart/form-data; boundary=x", 400),
        (CUT + b"\r\n--x--\r\n", "multipart/form-data; boundary=x", 200),
    ):
        response = guarded.client.post("/v1/caption", content=content, headers={"Content-Type": content_type})
        assert response.status_code == status, (content, response.text)
        if status != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert guarded.client.get("/v1/caption").status_code == 405
    assert guarded.client.get("/static/../app.py").status_code == 404
    assert guarded.client.get("/static/%2e%2e/app.py").status_code == 404


def test_a_decompression_bomb_is_refused_by_its_header(guarded: RunningServer) -> None:
    from PIL import Image

    bomb = encode(Image.new("1", (4_000, 4_000)))
    assert len(bomb) < 300_000
    guarded.client.post("/v1/caption", json={"image": IMAGE})
    started = time.monotonic()
    response = guarded.client.post("/v1/caption", files={"image": bomb})
    assert time.monotonic() - started < 0.5
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "image_too_large"


def test_the_queue_refuses_what_it_cannot_compute_in_time(toy: Blip) -> None:
    with running_app(toy, ServerOptions(limits=Limits(max_queue_seconds=0.5, client_share=1.0))) as server:
        service = server.app.service
        service.costs.observe_request("/v1/caption", 100.0)
        ticket = service.admission.enter("other", "/v1/match", 30.0, 10)
        response = server.client.post("/v1/caption", content=BODY, headers={"Content-Type": "application/json"})
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
        service.admission.leave(ticket)
        response = server.client.post("/v1/caption", content=BODY, headers={"Content-Type": "application/json"})
        assert response.status_code == 200, "a request that is alone always fits"
        assert service.admission.queued_seconds == 0.0
        assert service.admission.pending_bytes == 0


def test_a_client_has_a_share_of_the_queue(toy: Blip) -> None:
    with running_app(toy, ServerOptions(limits=Limits(max_queue_seconds=10.0, client_share=0.5))) as server:
        service = server.app.service
        for _ in range(20):
            service.costs.observe_request("/v1/caption", 3.0)
        tickets = [service.admission.enter("127.0.0.1", "/v1/caption", 30.0, 10)]
        response = server.client.post("/v1/caption", content=BODY, headers={"Content-Type": "application/json"})
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "client_queue_full"
        tickets.append(service.admission.enter("another", "/v1/caption", 30.0, 10))
        for ticket in tickets:
            service.admission.leave(ticket)


def test_a_deadline_ends_a_request(server: RunningServer) -> None:
    response = server.client.post(
        "/v1/caption", json={"image": IMAGE, "max_new_tokens": 64}, headers={"X-Request-Timeout": "0.001"}
    )
    assert response.status_code in (408, 504)
    assert server.client.post("/v1/caption", json={"image": IMAGE}).status_code == 200


def test_a_head_that_does_not_arrive_ends_the_connection(toy: Blip) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with running_app(toy, ServerOptions(limits=Limits(max_head_seconds=0.3))) as server:
        for whole_first in (False, True):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                if whole_first:
                    connection.sendall(head + b"\r\n")
                    answer = b""
                    while not answer.endswith(b"}"):
                        answer += connection.recv(65536)
                    assert b"200" in answer.split(b"\r\n")[0]
                started = time.monotonic()
                for part in (head, b"X-Slow: 1\r\n"):  # a later part does not start the time again
                    connection.sendall(part)
                assert connection.recv(100) == b""
                assert 0.1 < time.monotonic() - started < 3
        slow_body = "POST /v1/caption HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 9\n"
        answer = raw(server, slow_body + "X-Request-Timeout: 0.6", b"{")
        assert b"408" in answer.split(b"\r\n")[0], "the limit of the head does not apply to the body"


def test_a_slow_body_ends_with_408(server: RunningServer) -> None:
    head = "POST /v1/caption HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 1000\n"
    answer = raw(server, head + "X-Request-Timeout: 0.1", b'{"image"')
    assert b"408" in answer.split(b"\r\n")[0]


def test_a_draining_server_refuses_and_is_not_ready(toy: Blip, caplog: pytest.LogCaptureFixture) -> None:
    with running_app(toy) as server:
        assert server.client.get("/readyz").status_code == 200
        server.app.service.state.draining = True
        with caplog.at_level(logging.INFO, logger="openblip.serving"):
            assert server.client.get("/readyz").status_code == 503
            deadline = time.monotonic() + 10  # a request is logged after its response
            while time.monotonic() < deadline and not any("/readyz" in line.getMessage() for line in caplog.records):
                time.sleep(0.01)
        assert {record.levelno for record in caplog.records if "/readyz" in record.getMessage()} == {logging.INFO}
        assert server.client.get("/healthz").status_code == 200
        response = server.client.post("/v1/caption", content=BODY)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"


def test_keys_are_stored_hashed_and_must_be_long(tmp_path: object) -> None:
    store = KeyStore({"alice": KEY})
    assert KEY not in repr(vars(store))
    assert store.find(KEY) == "alice"
    assert store.find(KEY + "x") is None
    with pytest.raises(InputError, match="at least 16 characters, got 5"):
        KeyStore({"alice": "short"})
    assert KEY not in repr(ServerOptions(keys={"alice": KEY}))


def test_keys_come_from_a_file_or_the_environment(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    file = Path(str(tmp_path)) / "keys.txt"
    file.write_text(f"# clients\nalice={KEY}\n{OTHER_KEY}  # nameless\nc2VjcmV0LXNlY3JldC0=\n")
    file.chmod(0o644)
    assert is_readable_by_all(file)
    file.chmod(0o600)
    assert not is_readable_by_all(file)
    assert read_keys(file) == {"alice": KEY, "key-2": OTHER_KEY, "key-3": "c2VjcmV0LXNlY3JldC0="}
    monkeypatch.setenv("OPENBLIP_API_KEYS", f"carol={KEY},{OTHER_KEY}")
    assert read_keys(None) == {"carol": KEY, "key-2": OTHER_KEY}
    with pytest.raises(InputError, match="must differ"):
        parse_keys("a=1 a=2")


def test_other_machines_need_keys_or_no_auth() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_address(host, has_keys=False, no_auth=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "blip.example.org"):
        with pytest.raises(InputError, match="API keys"):
            check_address(host, has_keys=False, no_auth=False)
        check_address(host, has_keys=True, no_auth=False)
        check_address(host, has_keys=False, no_auth=True)
    with pytest.raises(InputError, match="must not be used"):
        check_address("127.0.0.1", has_keys=True, no_auth=True)
