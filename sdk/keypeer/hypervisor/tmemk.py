"""A VM key in a slot of Intel's Total Memory Encryption, Multi-Key (TME-MK): the bytes of it, and no platform.

Software gives an engine a key with PCONFIG leaf 0, MKTME_KEY_PROGRAM (Intel SDM vol. 2B, PCONFIG, table of
MKTME_KEY_PROGRAM_STRUCT; encoding of algorithms: Intel Architecture Memory Encryption Technologies Specification
336907-003, IA32_TME_CAPABILITY and §PCONFIG). Little-endian:

| offset | bytes | field |
|---|---|---|
| 0 | 2 | KEYID, 1 and up |
| 2 | 4 | KEYID_CTRL: bits 7:0 command, bits 23:8 algorithm (one bit), bits 31:24 zero |
| 6 | 58 | zero |
| 64 | 64 | KEY_FIELD_1: the data key, then zeros |
| 128 | 64 | KEY_FIELD_2: the tweak key, then zeros |

PCONFIG is privileged, acts on one package, and wants the structure aligned to 256 bytes; Linux offers no way to it.
Whoever has one (a kernel module, a hypervisor of their own) implements ``KeySlot``. Nothing here was run on hardware.
"""

from __future__ import annotations

import hmac
import struct
from enum import IntEnum
from typing import Protocol

from keypeer.errors import StateError
from keypeer.hypervisor.derive import Key, key_view
from keypeer.hypervisor.errors import HypervisorError
from keypeer.locked import LockedBytes

STRUCTURE_BYTES = 192
_HEAD = struct.Struct("<HI")
_DATA_KEY = 64
_TWEAK_KEY = 128


class Command(IntEnum):
    """KEYID_CTRL, bits 7:0."""

    SET_KEY_DIRECT = 0
    SET_KEY_RANDOM = 1
    CLEAR_KEY = 2
    NO_ENCRYPT = 3


class Algorithm(IntEnum):
    """KEYID_CTRL, bits 23:8: one bit, of those that the firmware activated (IA32_TME_ACTIVATE)."""

    AES_XTS_128 = 1 << 0
    AES_XTS_256 = 1 << 2


class Status(IntEnum):
    """What PCONFIG leaves in RAX."""

    SUCCESS = 0
    INVALID_PROG_CMD = 1
    ENTROPY_ERROR = 2
    INVALID_KEYID = 3
    INVALID_ENC_ALG = 4
    DEVICE_BUSY = 5


class KeySlot(Protocol):
    """A way to PCONFIG on every package of this machine."""

    def program(self, structure: memoryview) -> Status:
        """Executes leaf 0 over a copy of the 192 bytes, aligned to 256, on each package, and wipes the copy."""


def key_program(key: Key, key_id: int) -> LockedBytes:
    """The 192 bytes that give ``key_id`` (1 to 65535) a VM key: 64 bytes for AES-XTS-256, 32 for AES-XTS-128. Close
    them. Raises StateError ``tmemk.key_id``, ``tmemk.weak_key``, ``secret.size``."""
    view = key_view(key)
    half = len(view) // 2
    # The instruction doesn't look for weak keys. Equal halves: FIPS 140-3 IG C.I.
    if hmac.compare_digest(view[:half], view[half:]):
        raise StateError("tmemk.weak_key", "data key and tweak key are equal", "have the service make the key")
    algorithm = Algorithm.AES_XTS_256 if half == 32 else Algorithm.AES_XTS_128
    structure = _structure(key_id, Command.SET_KEY_DIRECT, algorithm)
    structure.writable[_DATA_KEY : _DATA_KEY + half] = view[:half]
    structure.writable[_TWEAK_KEY : _TWEAK_KEY + half] = view[half:]
    return structure


def clear_program(key_id: int, algorithm: Algorithm) -> LockedBytes:
    """The 192 bytes that take ``key_id``'s key away. Also this command wants an activated algorithm."""
    return _structure(key_id, Command.CLEAR_KEY, algorithm)


def set_key(slot: KeySlot, key_id: int, key: Key) -> None:
    """Programs a VM key. Raises StateError as ``key_program``, HypervisorError ``tmemk.refused``."""
    with key_program(key, key_id) as structure:
        _run(slot, structure)


def clear_key(slot: KeySlot, key_id: int, algorithm: Algorithm) -> None:
    """Takes it away. Raises StateError ``tmemk.key_id``, HypervisorError ``tmemk.refused``."""
    with clear_program(key_id, algorithm) as structure:
        _run(slot, structure)


def _structure(key_id: int, command: Command, algorithm: Algorithm) -> LockedBytes:
    # KeyID 0 is TME's own.
    if not 0 < key_id < 1 << 16:
        raise StateError("tmemk.key_id", f"a key id is 1 to 65535, not {key_id}")
    structure = LockedBytes(STRUCTURE_BYTES)
    _HEAD.pack_into(structure.writable, 0, key_id, algorithm << 8 | command)
    return structure


def _run(slot: KeySlot, structure: LockedBytes) -> None:
    status = slot.program(structure.view())
    if status != Status.SUCCESS:
        raise HypervisorError("tmemk.refused", f"PCONFIG: {status.name}")
