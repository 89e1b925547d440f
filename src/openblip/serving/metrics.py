"""Prometheus metrics of the server, without contents of requests."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_REFUSAL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


class Metrics:
    """The metrics of one application, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("openblip_requests", "Requests by route and status.", ["route", "status"], registry=r)
        self.request_seconds = Histogram(
            "openblip_request_seconds", "Seconds from headers to response.", ["route"], buckets=_SECONDS, registry=r
        )
        self.refusal_seconds = Histogram(
            "openblip_refusal_seconds",
            "Seconds from headers to a refusal before the body is read.",
            buckets=_REFUSAL_SECONDS,
            registry=r,
        )
        self.phase_seconds = Histogram(
            "openblip_phase_seconds",
            "Seconds of a phase: read (body), prepare (decode), queue, compute (a batch).",
            ["phase"],
            buckets=_SECONDS,
            registry=r,
        )
        self.batch_size = Histogram(
            "openblip_batch_size",
            "Items of a batch.",
            ["kind"],
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128),
            registry=r,
        )
        self.submitted = Counter("openblip_items_submitted", "Items that entered the queue.", ["kind"], registry=r)
        self.computed = Counter("openblip_items_computed", "Items that the model computed.", ["kind"], registry=r)
        self.dropped = Counter("openblip_items_dropped", "Items that never reached the model.", ["reason"], registry=r)
        self.stopped = Counter("openblip_batches_stopped", "Batches whose requests all ended early.", registry=r)
        self.queue_seconds = Gauge("openblip_queue_seconds", "Estimated seconds of admitted work.", registry=r)
        self.queue_items = Gauge("openblip_queue_items", "Items that wait for the model.", registry=r)
        self.pending_bytes = Gauge("openblip_pending_bytes", "Bytes of the bodies of admitted requests.", registry=r)

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)
