"""What Prometheus scrapes of a server: requests by route and status, their times, items through models."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One gateway's counters; Ray's own metrics have queues and replicas."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("vfm_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "vfm_request_seconds", "Time to answer", ["route"], buckets=BUCKETS, registry=self.registry
        )
        self.items = Counter("vfm_items", "Images and texts through models", ["task"], registry=self.registry)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """One request; route is the template, so that ids do not become labels."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
