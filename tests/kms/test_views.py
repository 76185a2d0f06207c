"""What is read out of stored records, which whoever writes the database may have changed."""

from __future__ import annotations

import msgspec
import pytest

from hsm_adapter.protocol import KeyRecord
from kms.errors import KeypeerError
from kms.views import key_attributes

BROKEN = {
    "a text that is no UTF-8": b"\x96\xa2e\xce",
    "no msgpack": b"\xc1",
    "of another shape": msgspec.msgpack.encode({"policy": 1}),
    "nothing": b"",
}


@pytest.mark.parametrize("case", BROKEN)
def test_attributes_that_are_none_are_called_tampered(case: str) -> None:
    record = KeyRecord("vm-1", 1, 64, BROKEN[case], 1, 1, bytes(72), bytes(32))
    with pytest.raises(KeypeerError) as caught:
        key_attributes(record)
    assert caught.value.code == "store.tampered"
