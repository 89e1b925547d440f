"""A server on a thread of the test, over toy models."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from PIL import Image

from openblip import Blip
from openblip.serving.app import Application, create_app
from openblip.serving.batching import Recorder
from openblip.serving.options import ServerOptions
from openblip.serving.run import make_config


def listen() -> socket.socket:
    """A listening socket. asyncio sends small packets at once only if it knows that the protocol is TCP."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    return listener


class RunningServer:
    """A server with its address, and a client of it."""

    def __init__(self, app: Application, port: int) -> None:
        self.app, self.port = app, port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 if nothing has counted it yet."""
        return self.app.service.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def running_app(
    blip: Blip, options: ServerOptions | None = None, *, recorder: Recorder | None = None, name: str = "toy"
) -> Iterator[RunningServer]:
    """Serve a model until the end of the block."""
    app = create_app({name: blip}, options, recorder=recorder)
    listener = listen()
    config = make_config(app, "127.0.0.1", 0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    running = RunningServer(app, listener.getsockname()[1])
    try:
        end = time.monotonic() + 60
        while not app.service.state.ready:
            assert time.monotonic() < end, "the server did not become ready"
            assert thread.is_alive(), "the server ended"
            time.sleep(0.01)
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join(30)


def encode(image: Image.Image, image_format: str = "PNG") -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()
