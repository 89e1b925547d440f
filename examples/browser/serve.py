"""Serve the browser example on this machine, compressed and with the headers that threads need.

    openblip export pocket --to onnx --task caption --task vqa --task retrieval --precision fp16 --out pocket-fp16
    cd examples/browser
    npm ci
    python serve.py --model ../../pocket-fp16

The server sends files only; it receives nothing. Threads share memory, which browsers allow only to pages with the
headers `Cross-Origin-Opener-Policy` and `Cross-Origin-Embedder-Policy`, from this machine or over https.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).resolve().parent
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
COMPRESSED = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif"}  # by their format
MAX_COMPRESSED = 64 * 10**6  # larger files are weights, which compression hardly shrinks
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser may keep files, but asks whether they changed
    "Vary": "Accept-Encoding",
}


class Server(ThreadingHTTPServer):
    """A server of the page, a model and the example photos.

    Args:
        address: Host and port.
        model: Folder of an exported model.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], model: Path) -> None:
        self.folders = {"model": model.resolve(), "photos": (HERE.parent / "photos").resolve(), "": HERE}
        super().__init__(address, Handler)

    def find(self, url: str) -> Path | None:
        """Return the file of an address; `None` without one.

        Args:
            url: The path of the request.
        """
        path = unquote(urlsplit(url).path).lstrip("/") or "index.html"
        first, _, rest = path.partition("/")
        folder, name = (self.folders[first], rest) if first in self.folders and rest else (HERE, path)
        # `node_modules` may be a link to another folder, but `..` must not lead out of a folder.
        if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            return None
        file = folder / name
        return file if file.suffix in TYPES and file.is_file() else None


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Send a file."""
        file = self.server.find(self.path)
        if file is None:
            self.send_error(404)
            return
        status = file.stat()
        accepts = "gzip" in self.headers.get("Accept-Encoding", "")
        compresses = accepts and file.suffix not in COMPRESSED and status.st_size <= MAX_COMPRESSED
        tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}{"-gzip" if compresses else ""}"'
        if self.headers.get("If-None-Match") == tag:
            self._start(304, tag, None)
            return
        content = compress(file, status.st_mtime_ns) if compresses else None
        length = status.st_size if content is None else len(content)
        self._start(200, tag, length, TYPES[file.suffix], compresses)
        if self.command == "HEAD":
            return
        if content is not None:
            self.wfile.write(content)
        else:
            with file.open("rb") as stream:
                shutil.copyfileobj(stream, self.wfile)

    do_HEAD = do_GET  # noqa: N815

    def _start(self, code: int, tag: str, length: int | None, kind: str = "", compressed: bool = False) -> None:
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("ETag", tag)
        if length is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
        if compressed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log errors only."""
        if str(args[1:2]).startswith("('4") or str(args[1:2]).startswith("('5"):
            super().log_message(format, *args)


@lru_cache(maxsize=256)
def compress(file: Path, modified: int) -> bytes:
    """Return the compressed content of a file.

    Args:
        file: The file.
        modified: When it changed; a new time compresses it again.
    """
    return gzip.compress(file.read_bytes(), 6, mtime=0)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=HERE / "model", help="folder of an exported model")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 chooses a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    options = parser.parse_args()
    if not (options.model / "manifest.json").is_file():
        sys.exit(
            f"{options.model} must be an exported model, and has no manifest.json: run\n"
            "  openblip export pocket --to onnx --precision fp16 --out FOLDER"
        )
    if not (HERE / "node_modules" / "onnxruntime-web").is_dir():
        sys.exit(f"onnxruntime-web is missing: run 'npm ci' in {HERE}")
    with Server((options.host, options.port), options.model) as server:
        print(f"http://{options.host}:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
