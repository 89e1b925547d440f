"""Run the application with uvicorn: check the address, and drain before it stops."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import sys
from types import FrameType

import uvicorn

from openblip.errors import InputError
from openblip.serving.app import Application
from openblip.serving.logs import JsonFormatter, log
from openblip.serving.protocol import timed_protocol

_POLL_SECONDS = 0.05


def check_address(host: str, *, has_keys: bool, no_auth: bool) -> None:
    """Check that a server that other machines can reach requires a key.

    Args:
        host: Address to bind to.
        has_keys: Whether there are API keys.
        no_auth: Whether a server without keys is allowed.

    Raises:
        InputError: Other machines can reach the address, and there are neither keys nor `no_auth`.
    """
    if has_keys and no_auth:
        raise InputError("--no-auth must not be used with API keys: remove one of them")
    if not is_loopback(host) and not has_keys and not no_auth:
        raise InputError(
            f"a server at {host} can be reached by other machines and needs API keys: --api-keys FILE or the variable "
            "OPENBLIP_API_KEYS; --no-auth accepts requests without a key"
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class DrainingServer(uvicorn.Server):
    """A server that finishes accepted requests after SIGTERM, and refuses new ones with status 503.

    Args:
        config: Configuration of uvicorn.
        app: The application.
        drain_seconds: Maximum time to wait for accepted requests.
    """

    def __init__(self, config: uvicorn.Config, app: Application, drain_seconds: float) -> None:
        super().__init__(config)
        self._app, self._drain_seconds = app, drain_seconds
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Serve until a signal."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain. A second signal stops the server immediately."""
        state = self._app.service.state
        if state.draining or self._loop is None:
            super().handle_exit(sig, frame)
            return
        state.draining = True
        self._loop.call_soon_threadsafe(self._start_drain, sig, frame)

    def _start_drain(self, sig: int, frame: FrameType | None) -> None:
        log("draining", signal=signal.Signals(sig).name)
        self._drain = asyncio.ensure_future(self._finish(sig, frame))

    async def _finish(self, sig: int, frame: FrameType | None) -> None:
        end = asyncio.get_running_loop().time() + self._drain_seconds
        while self._app.service.admission.num_open and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_POLL_SECONDS)
        super().handle_exit(sig, frame)


def run_server(
    app: Application, host: str, port: int, *, drain_seconds: float = 30.0, log_level: int = logging.INFO
) -> None:
    """Serve an application until SIGTERM or SIGINT.

    Args:
        app: The application.
        host: Address to bind to.
        port: Port.
        drain_seconds: Maximum time to finish accepted requests after SIGTERM.
        log_level: Level of the log on standard error.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    for name in ("openblip.serving", "uvicorn", "uvicorn.error", "py.warnings", "python_multipart"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(log_level if name == "openblip.serving" else logging.WARNING)
    DrainingServer(make_config(app, host, port), app, drain_seconds).run()


def make_config(app: Application, host: str, port: int) -> uvicorn.Config:
    """Return the settings of uvicorn: a time limit for heads, no access log, no headers of proxies, no server name.

    Args:
        app: The application.
        host: Address to bind to.
        port: Port.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=timed_protocol(app.service.limits.max_head_seconds),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=5,
        backlog=2048,
        lifespan="on",
    )
