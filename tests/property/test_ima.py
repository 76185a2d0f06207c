"""What the fuzz target holds, for bytes that hypothesis makes out of well-formed lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.property.fuzz_ima import holds_for
from tests.support.ima_log import ImaList

LOG = ImaList().file("/usr/bin/bash", b"bash").legacy("/old", b"old").buffer(".ima", b"key").violation("/x")


@given(st.sampled_from((LOG.ascii(), LOG.binary())), st.data())
def test_spoiled_lists_are_judged_or_malformed(log: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(log)))
    end = data.draw(st.integers(start, min(len(log), start + 16)))
    holds_for(log[:start] + data.draw(st.binary(max_size=16)) + log[end:])


@given(st.binary(max_size=300))
def test_any_bytes_are_judged_or_malformed(data: bytes) -> None:
    holds_for(data)
