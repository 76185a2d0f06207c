"""Every metric that the service tells: its name, kind, labels and meaning. deploy/grafana/metrics.md is made from it.

Names and units follow Prometheus' convention (https://prometheus.io/docs/practices/naming/): base units, times as Unix
seconds (``_timestamp_seconds``), so that an age is ``time()`` less the metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Source = Literal["counted", "looked up"]


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """One metric. ``labels``: what each says. "counted": by all web workers of a node together since the service
    started; "looked up": asked when Prometheus reads, by the worker that answers it."""

    name: str
    kind: Kind
    help: str
    source: Source
    labels: Mapping[str, str] = field(default_factory=dict)


_ROUTE = "the route's path, with its parameters' names"

HTTP_ANSWERS = Described(
    "keypeer_http_answers_total",
    "counter",
    "Answers by route and status",
    "counted",
    {"method": "HTTP method", "route": _ROUTE, "status": "HTTP status"},
)
HTTP_SECONDS = Described(
    "keypeer_http_seconds", "histogram", "Seconds from a request's head to its answer", "counted", {"route": _ROUTE}
)
REFUSALS = Described(
    "keypeer_refusals_total",
    "counter",
    "Requests answered with a problem document",
    "counted",
    {"code": "the problem's stable code"},
)
ACTS = Described(
    "keypeer_acts_total",
    "counter",
    "Entries that web workers added to the audit log; of a batch one for each VM",
    "counted",
    {
        "action": "what was asked, as in the log (key.release)",
        "outcome": "granted, done or refused",
        "code": "why it was refused; empty otherwise",
    },
)
COMMIT_SECONDS = Described(
    "keypeer_store_commit_seconds",
    "histogram",
    "Seconds until the store had made a web worker's change durable, or refused it",
    "counted",
    {"outcome": "committed, conflict (another change came first), unknown or failed"},
)
EVENT_STREAMS = Described(
    "keypeer_event_streams_open", "gauge", "Event streams that agents and staff hold open", "counted"
)

READY = Described("keypeer_ready", "gauge", "1 while a release would succeed, as GET /readyz says", "looked up")
CHECK_OK = Described(
    "keypeer_check_ok",
    "gauge",
    "1 while a check of GET /readyz is good; job.*, process.* and background are there only while they aren't",
    "looked up",
    {"check": "the check's id"},
)
HSM_WORKER = Described(
    "keypeer_hsm_worker_healthy",
    "gauge",
    "1 while an HSM worker answers and its token is in order",
    "looked up",
    {"worker": "the HSM worker"},
)
STORE_USED = Described("keypeer_store_used_bytes", "gauge", "Bytes that the store takes", "looked up")
STORE_CAPACITY = Described(
    "keypeer_store_capacity_bytes", "gauge", "Bytes that the store may take; not there on PostgreSQL", "looked up"
)
LOG_ENTRIES = Described("keypeer_audit_entries", "gauge", "Entries in the audit log", "looked up")
LOG_NEWEST = Described(
    "keypeer_audit_newest_timestamp_seconds", "gauge", "When the newest entry of the audit log was made", "looked up"
)
CHECKPOINT_ENTRIES = Described(
    "keypeer_audit_checkpoint_entries", "gauge", "Entries that the newest signed checkpoint covers", "looked up"
)
CHECKPOINT_AT = Described(
    "keypeer_audit_checkpoint_timestamp_seconds", "gauge", "When the newest checkpoint was signed", "looked up"
)
ANCHORED_ENTRIES = Described(
    "keypeer_audit_anchored_entries", "gauge", "Entries that the HSM token remembers (its anchor)", "looked up"
)
ANCHOR_FAILING = Described(
    "keypeer_audit_anchor_failing", "gauge", "1 while the token refuses to remember the log's head", "looked up"
)
_WITNESS = {"witness": "the witness' name"}
WITNESS_FAILURES = Described(
    "keypeer_witness_failures", "gauge", "Failures in a row of asking a witness; 0: it cosigns", "looked up", _WITNESS
)
WITNESS_AT = Described(
    "keypeer_witness_cosigned_timestamp_seconds", "gauge", "When a witness cosigned last", "looked up", _WITNESS
)
JOB_FAILURES = Described(
    "keypeer_job_failures",
    "gauge",
    "Failures in a row of a background job; there once it failed, 0: it works again",
    "looked up",
    {"job": "the job, as in the background process' log"},
)
BACKGROUND_AT = Described(
    "keypeer_background_timestamp_seconds", "gauge", "Last sign of life of the background process", "looked up"
)
_KEY = {"key": "kek or record-mac"}
ROTATION_RUNNING = Described(
    "keypeer_rotation_running",
    "gauge",
    "1 while a key in the HSM is being rotated, 0 once that has ended",
    "looked up",
    _KEY,
)
ROTATION_PAUSED = Described(
    "keypeer_rotation_paused", "gauge", "1 while a running rotation is paused", "looked up", _KEY
)
ROTATION_TOTAL = Described(
    "keypeer_rotation_records",
    "gauge",
    "Records that the last rotation had before it at its start",
    "looked up",
    _KEY,
)
ROTATION_DONE = Described(
    "keypeer_rotation_records_done", "gauge", "Records that the last rotation has moved", "looked up", _KEY
)
ROTATION_FAILED = Described(
    "keypeer_rotation_records_failed",
    "gauge",
    "Records that the last rotation couldn't move; the old version can't be destroyed while there are any",
    "looked up",
    _KEY,
)
CERTIFICATE_EXPIRY = Described(
    "keypeer_certificate_expiry_timestamp_seconds",
    "gauge",
    "When a certificate of the service ends",
    "looked up",
    {"certificate": "server, or ca: the CA version that issues now"},
)

ALL: tuple[Described, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Described))
