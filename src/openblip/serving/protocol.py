"""HTTP/1.1 with a time limit for request heads, which uvicorn lacks."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from openblip.serving.options import Limits


class TimedProtocol(H11Protocol):
    """A connection that closes when the head of a request does not arrive in time.

    uvicorn limits only how long a connection is idle after a response, up to the first byte of the next request. The
    time runs from the connection, or from the first byte of a later request.

    Attributes:
        head_seconds: The limit.
    """

    head_seconds = Limits.max_head_seconds
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the time of the first head."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Receive a part of a request; the time of its head starts with the first part, and ends with the last one."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._stop_timer()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        # uvicorn makes a cycle when a head is complete; between two requests, the cycle of the first one remains.
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._end)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def timed_protocol(head_seconds: float) -> type[TimedProtocol]:
    """Return the class of connections with a limit, as uvicorn takes it.

    Args:
        head_seconds: Seconds in which the head of a request must arrive.
    """

    class LimitedProtocol(TimedProtocol):
        pass

    LimitedProtocol.head_seconds = head_seconds
    return LimitedProtocol
