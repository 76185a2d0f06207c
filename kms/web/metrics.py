"""Prometheus metrics of all web workers together (prometheus-client's multi-process mode).

Its counters are in files, and each step of one costs more than the call that is counted. So a worker counts in plain
numbers, and adds them to the files several times a second and whenever it is asked.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from kms import limits
from kms.audit.record import told_of
from kms.errors import KeypeerError
from kms.web import metric_table as table
from kms.web.metric_files import FOLDER_VARIABLE
from kms.web.routing import Route

# Seconds; from a cached read to the deadline of an HSM operation.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


_Labels = tuple[str, ...]


class _Times:
    """Observations of a histogram that aren't in its file yet."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BUCKETS) + 1)  # the last one has no bound
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(_BUCKETS, seconds)] += 1
        self.total += seconds


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
        self._counted: Tally[tuple[Counter, _Labels]] = Tally()
        self._timed: dict[tuple[Histogram, _Labels], _Times] = {}

    def answered(self, route: Route, status: int, seconds: float) -> None:
        """One request answered as asked."""
        self._counted[self._answers, (route.method, route.path, str(int(status)))] += 1
        self._time(self._seconds, route.path, seconds)

    def refused(self, route: Route, error: KeypeerError, seconds: float) -> None:
        """One request answered with a problem document."""
        self._counted[self._refusals, (error.code,)] += 1
        self.answered(route, error.status, seconds)

    def committed(self, outcome: str, seconds: float, entries: Sequence[bytes]) -> None:
        """One commit came back; ``entries`` of the audit log are durable with it."""
        self._time(self._commits, outcome, seconds)
        for entry in entries:
            self._counted[self._acts, told_of(entry)] += 1

    def _time(self, histogram: Histogram, label: str, seconds: float) -> None:
        times = self._timed.get((histogram, (label,)))
        if times is None:
            times = self._timed[histogram, (label,)] = _Times()
        times.add(seconds)

    def flush(self) -> None:
        """Adds what was counted since the last time to the files."""
        counted, self._counted = self._counted, Tally()
        for (counter, labels), count in counted.items():
            counter.labels(*labels).inc(count)
        timed, self._timed = self._timed, {}
        for (histogram, labels), times in timed.items():
            child = histogram.labels(*labels)
            # What `observe` adds to, for many at once; there is no public way.
            child._sum.inc(times.total)
            for bucket, count in zip(child._buckets, times.buckets, strict=True):
                if count:
                    bucket.inc(count)

    async def run(self) -> None:
        """Flushes now and then, until cancelled."""
        while True:
            await asyncio.sleep(limits.METRICS_FLUSH_S)
            self.flush()

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
        self.flush()
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
