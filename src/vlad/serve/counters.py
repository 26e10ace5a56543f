"""What ``/metrics`` tells, by prometheus-client."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Counters"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Counters:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        """Begins at zero."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        names = ["path", "status"]
        self._requests = Counter("vlad_requests", "Requests that were answered.", names, registry=registry)
        self._seconds = Histogram(
            "vlad_request_seconds",
            "From the head of a request to its answer, of those that were scored.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter("vlad_images", "Images that were scored.", registry=registry)
        self._decisions = Counter("vlad_decisions", "Decisions.", ["decision"], registry=registry)
        self._sizes = Histogram("vlad_batch_images", "Images of a batch.", buckets=_SIZES, registry=registry)
        self._batches = Histogram("vlad_batch_seconds", "Scoring a batch.", buckets=_SECONDS, registry=registry)
        self._pending = Gauge("vlad_pending", "Requests that were let in and have no answer yet.", registry=registry)
        self._files = Counter("vlad_watched_files", "Files of the watched folder.", ["state"], registry=registry)

    def watch_pending(self, pending: Callable[[], int]) -> None:
        """Tells of how many requests have no answer yet."""
        self._pending.set_function(pending)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self._requests.labels(path, status).inc()
        if status == 200:
            self._seconds.labels(path).observe(seconds)

    def decided(self, decision: str) -> None:
        """Counts a decision."""
        if decision:
            self._decisions.labels(decision).inc()

    def batch(self, images: int, seconds: float) -> None:
        """Counts a batch."""
        self._images.inc(images)
        self._sizes.observe(images)
        self._batches.observe(seconds)

    def file(self, state: str) -> None:
        """Counts a file of the watched folder: ``scored`` or ``failed``."""
        self._files.labels(state).inc()

    def text(self) -> tuple[bytes, str]:
        """Returns the text, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
