"""The bytes of an audit entry: JSON that reads back, and stays readable without keypeer."""

from __future__ import annotations

import json

import msgspec
import pytest

from kms.audit.record import AuditRecord, decode_record, encode_record, flat
from kms.errors import Reason

RECORD = AuditRecord(
    time=1_753_000_000.25,
    action="key.release",
    outcome="refused",
    actor="iad-1",
    role="host",
    host="iad-1",
    vm="vm-1",
    code="release.refused",
    reasons=flat((Reason("geo.country", "policy asks for DE", "tag says US", "move the host"),)),
    facts={"versions": ["1", "2"], "generation": 3, "batch": False},
)


def test_a_record_reads_back() -> None:
    assert decode_record(encode_record(RECORD)) == RECORD


def test_anybody_can_read_it_and_what_is_empty_is_left_out() -> None:
    small = AuditRecord(time=1.0, action="host.approve", outcome="done", actor="o", role="officer")
    assert json.loads(encode_record(small)) == {
        "time": 1.0,
        "action": "host.approve",
        "outcome": "done",
        "actor": "o",
        "role": "officer",
    }
    assert json.loads(encode_record(RECORD))["reasons"] == [
        ["geo.country", "policy asks for DE", "tag says US", "move the host"]
    ]


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"null", b"[]", encode_record(RECORD)[:-1], encode_record(RECORD).replace(b"refused", b"maybe", 1)],
)
def test_bytes_that_are_no_record_are_an_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_record(data)
