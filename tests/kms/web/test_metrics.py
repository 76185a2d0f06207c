"""Metrics are counted in the process and told by files: what is told must be what was counted."""

from __future__ import annotations

import re

import pytest

from kms.audit.record import AuditRecord, Outcome, encode_record, told_of
from kms.errors import Refused
from kms.web.health import ROUTES
from kms.web.metrics import Metrics

ROUTE = ROUTES[0]


def told(metrics: Metrics, name: str) -> dict[str, float]:
    """Samples of one metric: labels → value."""
    text = metrics.exposition()[0].decode()
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def entry(action: str, outcome: Outcome, code: str = "") -> bytes:
    return encode_record(AuditRecord(time=1.5, action=action, outcome=outcome, actor="a", role="host", code=code))


def test_answers_and_refusals_add_up() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.answered(ROUTE, 200, 0.0004)
    metrics.refused(ROUTE, Refused("some.code", "words", hint="mend"), 7.0)
    metrics.answered(ROUTE, 200, 0.0005)
    route = f'method="{ROUTE.method}",route="{ROUTE.path}"'
    assert told(metrics, "keypeer_http_answers_total") == {f'{route},status="200"': 4, f'{route},status="403"': 1}
    assert told(metrics, "keypeer_refusals_total") == {'code="some.code"': 1}
    # A bucket holds what is at most its bound (Prometheus' `le`); the last holds all.
    buckets = told(metrics, "keypeer_http_seconds_bucket")
    assert buckets[f'le="0.0005",route="{ROUTE.path}"'] == 4
    assert buckets[f'le="5.0",route="{ROUTE.path}"'] == 4
    assert buckets[f'le="+Inf",route="{ROUTE.path}"'] == 5
    assert told(metrics, "keypeer_http_seconds_sum")[f'route="{ROUTE.path}"'] == pytest.approx(7.0017)


def test_flushes_add_to_each_other() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.committed("committed", 0.001, [entry("key.release", "granted")] * 5)
        metrics.flush()
    assert told(metrics, "keypeer_acts_total") == {'action="key.release",code="",outcome="granted"': 10}
    assert told(metrics, "keypeer_store_commit_seconds_count") == {'outcome="committed"': 2}


@pytest.mark.parametrize(
    ("action", "outcome", "code"),
    [("key.release", "granted", ""), ("vm.create", "done", ""), ("key.release", "refused", "release.refused")],
)
def test_an_entry_tells_what_is_counted(action: str, outcome: Outcome, code: str) -> None:
    assert told_of(entry(action, outcome, code)) == (action, outcome, code)


def test_a_refusal_tells_its_own_code() -> None:
    told_of(entry("key.release", "refused", "one.code"))
    assert told_of(entry("key.release", "refused", "another.code")) == ("key.release", "refused", "another.code")
