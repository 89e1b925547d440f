"""A server on this machine that cuts connections, changes files and speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = bytes(range(256)) * 4096  # one MiB
REPOSITORY = "someone/some-blip"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Files by path. ``cuts``: after how many bytes to drop each connection to come, in turn."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.repository: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.refusals: list[int] = []
        self.ranges = True
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self) -> list[tuple[str, str | None]]:
        """What was asked for by GET: the path and its Range header."""
        return [(path, span) for method, path, span in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if self.server.refusals:
            self.send_error(self.server.refusals.pop(0))
        elif path.startswith("/api/models/"):
            self._api(path)
        elif match := re.fullmatch(rf"/{REPOSITORY}/resolve/(main|{COMMIT})/(.+)", path):
            data = self.server.repository.get(match[2])
            extra = {"X-Repo-Commit": COMMIT}
            self._file(data, body, extra)
        else:
            self._file(self.server.files.get(path), body, {})

    def _file(self, data: bytes | None, body: bool, extra: dict[str, str]) -> None:
        if data is None:
            self.send_error(404)
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start, span = 0, self.headers.get("Range")
        if span and self.server.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        for name, value in {**extra, "ETag": etag, "Content-Length": str(len(data) - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if self.server.cuts:
            self.wfile.write(data[start : start + self.server.cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _api(self, path: str) -> None:
        files = self.server.repository
        if not path.startswith(f"/api/models/{REPOSITORY}"):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return

        def large(name: str, key: str) -> dict[str, dict[str, object]]:
            data = files[name]
            if not name.endswith((".safetensors", ".bin")):
                return {}
            return {"lfs": {"size": len(data), key: hashlib.sha256(data).hexdigest(), "pointerSize": 1}}

        if "/tree/" in path:
            answer: object = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40, **large(name, "oid")}
                for name, data in files.items()
            ]
        else:
            siblings = [{"rfilename": name, **large(name, "sha256")} for name in files]
            answer = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}
        encoded = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that answers until the block ends."""
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
