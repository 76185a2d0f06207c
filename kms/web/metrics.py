"""Prometheus metrics of all web workers together (prometheus-client's multi-process mode)."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from kms.errors import KeypeerError
from kms.web.routing import Route

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus-client at import, so the supervisor sets it

# Seconds; from a cached read to the deadline of an HSM operation.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Counts and latencies by route; refusals by stable code."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "keypeer_http_answers",
            "Answers by route and status",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._refusals = Counter("keypeer_refusals", "Refusals by stable code", ("code",), registry=self._registry)
        self._seconds = Histogram(
            "keypeer_http_seconds", "Time to answer", ("route",), buckets=_BUCKETS, registry=self._registry
        )

    def answered(self, route: Route, status: int, seconds: float) -> None:
        """One request answered as asked."""
        self._answers.labels(route.method, route.path, str(int(status))).inc()
        self._seconds.labels(route.path).observe(seconds)

    def refused(self, route: Route, error: KeypeerError, seconds: float) -> None:
        """One request answered with a problem document."""
        self._refusals.labels(error.code).inc()
        self.answered(route, error.status, seconds)

    def exposition(self) -> tuple[bytes, str]:
        """All workers' metrics in Prometheus' text form, and its content type."""
        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        merged = CollectorRegistry()
        MultiProcessCollector(merged)  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped
        return generate_latest(merged), CONTENT_TYPE_LATEST


def worker_died(folder: Path, pid: int) -> None:
    """Lets the gauges of a dead worker go."""
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped


def clear(folder: Path) -> None:
    """Removes an earlier run's files, so that counters start at zero with the service."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink()
