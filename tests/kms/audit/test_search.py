"""Which entries a search finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.audit.record import AuditRecord, encode_record
from kms.audit.search import AuditFilter

RECORD = AuditRecord(
    time=1000.5, action="key.release", outcome="refused", actor="fra-1", role="host", host="fra-1", vm="web-1",
    code="release.refused",
)  # fmt: skip
BATCH = AuditRecord(
    time=2000.0, action="vm.create", outcome="done", actor="operator", role="operator",
    facts={"vms": ["a", "web-1", "b"], "policies": ["eu"]},
)  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "record", "found"),
    [
        (AuditFilter(), RECORD, True),
        (AuditFilter(action="key.release", outcome="refused", actor="fra-1", host="fra-1", vm="web-1"), RECORD, True),
        (AuditFilter(code="release.refused"), RECORD, True),
        (AuditFilter(code="release"), RECORD, False),
        (AuditFilter(action="release.refused"), RECORD, False),  # stands in the entry, but isn't its action
        (AuditFilter(host="web-1"), RECORD, False),
        (AuditFilter(vm="fra-1"), RECORD, False),
        (AuditFilter(vm="web"), RECORD, False),
        (AuditFilter(outcome="granted"), RECORD, False),
        (AuditFilter(vm="web-1"), BATCH, True),
        (AuditFilter(vm="eu"), BATCH, False),
        (AuditFilter(host="web-1"), BATCH, False),
        (AuditFilter(since=1000.0), RECORD, True),
        (AuditFilter(since=1001.0), RECORD, False),
        (AuditFilter(until=1001.0), RECORD, True),
        (AuditFilter(until=1000.0), RECORD, False),
        (AuditFilter(since=1000.0, until=2000.0, vm="web-1"), BATCH, True),
    ],
)
def test_what_is_asked_for_is_found(wanted: AuditFilter, record: AuditRecord, found: bool) -> None:
    assert wanted.match(encode_record(record)) == (record if found else None)


@given(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8))
def test_any_text_is_found_by_itself_and_by_no_other(text: str, other: str) -> None:
    entry = encode_record(AuditRecord(time=0, action="a", outcome="done", actor=text, role=""))
    assert AuditFilter(actor=text).match(entry) is not None
    assert (AuditFilter(actor=other).match(entry) is not None) == (text == other)
