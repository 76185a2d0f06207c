"""MKTME_KEY_PROGRAM_STRUCT, byte by byte (Intel SDM vol. 2B, PCONFIG)."""

from __future__ import annotations

import pytest

from keypeer.errors import StateError
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.tmemk import Algorithm, Status, clear_key, clear_program, key_program, set_key
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey

KEY = bytes(range(1, 65))


class Slot:
    """Keeps what it was given."""

    def __init__(self, answer: Status = Status.SUCCESS) -> None:
        self.answer = answer
        self.seen = b""
        self.view = memoryview(b"")

    def program(self, structure: memoryview) -> Status:
        self.seen, self.view = bytes(structure), structure
        return self.answer


@pytest.mark.parametrize(
    ("key", "key_id", "head", "half"),
    [
        (KEY, 1, "0100 00040000", 32),
        (KEY, 0x1234, "3412 00040000", 32),
        (KEY[:32], 0xFFFF, "ffff 00010000", 16),
    ],
)
def test_the_structure(key: bytes, key_id: int, head: str, half: int) -> None:
    with key_program(key, key_id) as secret:
        structure = bytes(secret.view())
    assert len(structure) == 192
    assert structure[:64] == bytes.fromhex(head) + bytes(58)
    assert structure[64:128] == key[:half] + bytes(64 - half)
    assert structure[128:] == key[half:] + bytes(64 - half)


def test_clearing_names_an_algorithm_and_no_key() -> None:
    with clear_program(7, Algorithm.AES_XTS_256) as structure:
        assert bytes(structure.view()) == bytes.fromhex("0700 02040000") + bytes(186)


def test_a_vm_key_is_programmed_and_the_structure_wiped() -> None:
    secret = LockedBytes(64)
    secret.writable[:] = KEY
    slot = Slot()
    with VmKey(secret, vm="web-1", version=1, generation=1, lease_expires_at=0, grace=0) as key:
        set_key(slot, 3, key)
    assert slot.seen[64:96] + slot.seen[128:160] == KEY
    assert bytes(slot.view) == bytes(192)
    clear_key(slot, 3, Algorithm.AES_XTS_256)
    assert slot.seen[64:] == bytes(128)


@pytest.mark.parametrize(
    ("key", "key_id", "code"),
    [
        (KEY, 0, "tmemk.key_id"),
        (KEY, -1, "tmemk.key_id"),
        (KEY, 65536, "tmemk.key_id"),
        (KEY[:32] * 2, 1, "tmemk.weak_key"),
        (bytes(64), 1, "tmemk.weak_key"),
        (KEY[:63], 1, "secret.size"),
    ],
)
def test_what_would_fault_or_be_weak_reaches_no_slot(key: bytes, key_id: int, code: str) -> None:
    slot = Slot()
    with pytest.raises(StateError) as refused:
        set_key(slot, key_id, key)
    assert (refused.value.code, slot.seen) == (code, b"")


@pytest.mark.parametrize("status", [status for status in Status if status != Status.SUCCESS])
def test_what_pconfig_refuses_is_an_error(status: Status) -> None:
    slot = Slot(status)
    with pytest.raises(HypervisorError, match=status.name) as refused:
        set_key(slot, 1, KEY)
    assert refused.value.code == "tmemk.refused"
    assert bytes(slot.view) == bytes(192)
