"""Admission: the queue is limited in estimated seconds of work, and each client to a share of it."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field

from openblip.serving.errors import ApiError
from openblip.serving.metrics import Metrics
from openblip.serving.options import Limits

_ROUNDING = 1e-9  # rounding error of sums and differences, in seconds
_NEW_WEIGHT = 0.1  # weight of the newest batch in the moving averages


class CostModel:
    """Moving averages of the seconds that each kind of work takes. Threads can share it.

    Args:
        initial: Seconds per unit of a kind that has not run yet.
    """

    def __init__(self, initial: float = 0.1) -> None:
        self._initial = initial
        self._rates: dict[str, float] = {}
        self._requests: dict[str, float] = {}
        self._lock = threading.Lock()

    def seconds(self, kind: str, units: float) -> float:
        """Return the estimated seconds of some units of work."""
        return self._rates.get(kind, self._initial) * units

    def observe(self, kind: str, units: float, seconds: float) -> None:
        """Update the average with a batch."""
        with self._lock:
            rate = seconds / units
            self._rates[kind] = rate if kind not in self._rates else _mix(self._rates[kind], rate)

    def request_seconds(self, route: str) -> float:
        """Return the mean seconds of the requests of a route, the estimate before the body is read."""
        return self._requests.get(route, self._initial)

    def observe_request(self, route: str, seconds: float) -> None:
        """Update the mean of a route with the estimate for a request, made from its body."""
        with self._lock:
            mean = self._requests.get(route)
            self._requests[route] = seconds if mean is None else _mix(mean, seconds)


def _mix(mean: float, value: float) -> float:
    return (1 - _NEW_WEIGHT) * mean + _NEW_WEIGHT * value


@dataclass(eq=False)
class Ticket:
    """The share of a request in the queue. Use it on the event loop only.

    Attributes:
        client: Name of the client.
        route: Route of the request.
        timeout: Seconds until its deadline, from its headers.
        seconds: Estimated seconds of its remaining work.
        size: Bytes of its body that are reserved.
        settled: Whether `seconds` was estimated from the body.
    """

    admission: Admission = field(repr=False)
    client: str
    route: str
    timeout: float
    seconds: float
    size: int
    settled: bool = False
    closed: bool = False

    def settle(self, seconds: float) -> None:
        """Replace the mean of the route by the estimate for this request.

        Raises:
            ApiError: The work does not fit into the queue (429).
        """
        self.admission.costs.observe_request(self.route, seconds)
        self._change(-self.seconds)
        self.admission.check(self.client, seconds, self.timeout)
        self._change(seconds)
        self.settled = True

    def finish(self, seconds: float) -> None:
        """Subtract work that is done."""
        self._change(-min(seconds, self.seconds))

    def grow(self, size: int) -> None:
        """Reserve the bytes of a body as they arrive.

        Raises:
            ApiError: The bodies of all requests together are too large (429).
        """
        if size > self.size:
            self.admission.check_bytes(size - self.size)
            self.admission.pending_bytes += size - self.size
            self.size = size

    def close(self) -> None:
        """Free the share."""
        if not self.closed:
            self.closed = True
            self._change(-self.seconds)
            self.admission.pending_bytes -= self.size
            self.admission.report()

    def _change(self, seconds: float) -> None:
        self.seconds += seconds
        self.admission.add(self.client, seconds)


class Admission:
    """Admits requests while the queue has room. Use it on the event loop only.

    Args:
        limits: The limits.
        costs: Estimates of seconds.
        metrics: Receives the state of the queue.
    """

    def __init__(self, limits: Limits, costs: CostModel, metrics: Metrics) -> None:
        self.limits, self.costs = limits, costs
        self._metrics = metrics
        self._by_client: dict[str, float] = defaultdict(float)
        self._open: dict[str, int] = defaultdict(int)
        self.queued_seconds = 0.0
        self.pending_bytes = 0

    @property
    def num_open(self) -> int:
        """The number of admitted requests that have not ended."""
        return sum(self._open.values())

    def enter(self, client: str, route: str, timeout: float, size: int | None) -> Ticket:
        """Admit a request by its headers.

        Args:
            client: Name of the client.
            route: Route of the request.
            timeout: Seconds until its deadline.
            size: Size of its body; `None` if it is unknown.

        Returns:
            Its share of the queue, estimated as the mean of the route until the body is read.

        Raises:
            ApiError: The queue is full (429).
        """
        seconds = self.costs.request_seconds(route)
        self.check(client, seconds, timeout)
        self.check_bytes(size or 0)
        ticket = Ticket(self, client, route, timeout, 0.0, size or 0)
        self.pending_bytes += ticket.size
        self._open[client] += 1
        ticket._change(seconds)
        return ticket

    def check(self, client: str, seconds: float, timeout: float) -> None:
        """Raise `ApiError` (429) if work does not fit. A single request always fits."""
        limit, own = self.limits.max_queue_seconds, self._by_client[client]
        if self.queued_seconds <= _ROUNDING:
            return
        if self.queued_seconds + seconds > min(limit, timeout):
            over = self.queued_seconds + seconds - min(limit, timeout)
            raise ApiError(429, "the queue is full; try again later", code="queue_full", retry_after=over)
        share = limit * self.limits.client_share
        if own > _ROUNDING and own + seconds > share:
            raise ApiError(
                429,
                "this client's share of the queue is full; wait for its other requests",
                code="client_queue_full",
                retry_after=own + seconds - share,
            )

    def check_bytes(self, size: int) -> None:
        """Raise `ApiError` (429) if more bytes do not fit."""
        if self.pending_bytes and self.pending_bytes + size > self.limits.max_pending_bytes:
            raise ApiError(429, "too many large requests at once; try again later", code="queue_full", retry_after=1)

    def add(self, client: str, seconds: float) -> None:
        """Add to the work of a client."""
        self._by_client[client] += seconds
        self.queued_seconds += seconds
        self.report()

    def leave(self, ticket: Ticket) -> None:
        """Close the ticket of a request that has ended."""
        ticket.close()
        self._open[ticket.client] -= 1
        if not self._open[ticket.client]:  # exactly zero, without rounding errors
            self.queued_seconds -= self._by_client.pop(ticket.client, 0.0)
            del self._open[ticket.client]
        if not self._open:
            self.queued_seconds = 0.0
        self.report()

    def report(self) -> None:
        """Update the metrics."""
        self._metrics.queue_seconds.set(max(0.0, self.queued_seconds))
        self._metrics.pending_bytes.set(self.pending_bytes)
