"""Prometheus metrics of all web workers together (prometheus-client's multi-process mode)."""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from kms.audit.record import decode_told
from kms.errors import KeypeerError
from kms.web import metric_table as table
from kms.web.metric_files import FOLDER_VARIABLE
from kms.web.routing import Route

# Seconds; from a cached read to the deadline of an HSM operation.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """What a web worker counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._answers = self._counter(table.HTTP_ANSWERS)
        self._seconds = self._histogram(table.HTTP_SECONDS)
        self._refusals = self._counter(table.REFUSALS)
        self._acts = self._counter(table.ACTS)
        self._commits = self._histogram(table.COMMIT_SECONDS)
        streams = table.EVENT_STREAMS
        self._streams = Gauge(streams.name, streams.help, registry=self._registry, multiprocess_mode="livesum")

    def answered(self, route: Route, status: int, seconds: float) -> None:
        """One request answered as asked."""
        self._answers.labels(route.method, route.path, str(int(status))).inc()
        self._seconds.labels(route.path).observe(seconds)

    def refused(self, route: Route, error: KeypeerError, seconds: float) -> None:
        """One request answered with a problem document."""
        self._refusals.labels(error.code).inc()
        self.answered(route, error.status, seconds)

    def committed(self, outcome: str, seconds: float, entries: Sequence[bytes]) -> None:
        """One commit came back; ``entries`` of the audit log are durable with it."""
        self._commits.labels(outcome).observe(seconds)
        # A batch of releases is thousands of entries that differ in nothing that is counted.
        for told, count in Tally(map(decode_told, entries)).items():
            self._acts.labels(told.action, told.outcome, told.code).inc(count)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """An event stream is open."""
        self._streams.inc()
        try:
            yield
        finally:
            self._streams.dec()

    def exposition(self, looked_up: Iterable[Metric] = ()) -> tuple[bytes, str]:
        """All workers' metrics and ``looked_up`` in Prometheus' text form, and its content type."""
        registry = self._registry
        if FOLDER_VARIABLE in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped
        state = CollectorRegistry()
        state.register(_Given(looked_up))
        return generate_latest(registry) + generate_latest(state), CONTENT_TYPE_LATEST

    def _counter(self, described: table.Described) -> Counter:
        return Counter(described.name, described.help, tuple(described.labels), registry=self._registry)

    def _histogram(self, described: table.Described) -> Histogram:
        return Histogram(
            described.name, described.help, tuple(described.labels), buckets=_BUCKETS, registry=self._registry
        )


class _Given(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics
