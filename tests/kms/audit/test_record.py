"""The bytes of an audit entry: JSON that reads back, and stays readable without keypeer."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

from kms import limits
from kms.audit.record import AuditRecord, decode_record, encode_record, flat, refused_for
from kms.errors import Reason, Unavailable

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


def test_what_no_bundle_takes_is_shortened_and_still_names_what_it_was_of() -> None:
    text = "x" * 70_000
    reasons = flat(tuple(Reason(f"id.{number}", text, "found", "mend") for number in range(1000)))
    facts: dict[str, str | int | bool | list[str]] = {
        "document": text,
        "names": ["n"] * 9000,
        "policy": "eu",
        "size": 7,
    }
    data = encode_record(msgspec.structs.replace(RECORD, reasons=reasons, facts=facts))
    assert len(data) <= limits.LOG_ENTRY_BYTES_MAX
    short = decode_record(data)
    assert (short.action, short.code, short.actor) == (RECORD.action, RECORD.code, RECORD.actor)
    assert len(short.reasons) == limits.LOG_REASONS_MAX
    assert short.reasons[0][0] == "id.0"
    assert short.facts == {
        "policy": "eu",
        "size": 7,
        "document_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "names_sha256": hashlib.sha256(json.dumps(["n"] * 9000, separators=(",", ":")).encode()).hexdigest(),
        "reasons_left_out": 1000 - limits.LOG_REASONS_MAX,
    }


def test_a_shortened_record_fits_whatever_its_texts_hold() -> None:
    wide = "\x00" * (2 * limits.LOG_REASON_CHARS_MAX)  # six bytes each in JSON
    reasons = tuple((wide, wide, wide, wide) for _ in range(2 * limits.LOG_REASONS_MAX))
    facts: dict[str, str | int | bool | list[str]] = {
        f"f{number}": "\x00" * (limits.LOG_FACT_BYTES_MAX // 6 - 1) for number in range(20)
    }
    data = encode_record(msgspec.structs.replace(RECORD, reasons=reasons, facts=facts))
    assert len(data) <= limits.LOG_ENTRY_BYTES_MAX


def test_a_batch_that_names_the_most_vms_an_entry_may_is_not_shortened() -> None:
    names = [f"{number:063}" for number in range(limits.LOG_VMS_AN_ENTRY_MAX)]
    facts: dict[str, str | int | bool | list[str]] = {"vms": names, "policies": names}
    assert decode_record(encode_record(msgspec.structs.replace(RECORD, facts=facts))).facts == facts


def test_the_refusal_of_what_would_have_been_granted() -> None:
    granted = msgspec.structs.replace(RECORD, outcome="granted", code="", reasons=())
    full = Unavailable("store.full", "no room")
    refusal = refused_for(granted, full, 5.0, 3)
    assert (refusal.outcome, refusal.code, refusal.vm, refusal.time) == ("refused", "store.full", "vm-1", 5.0)
    assert refusal.facts == {"would_be": "granted", "entries": 3}
