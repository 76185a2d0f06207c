"""One key a purpose, out of a VM key: HKDF-SHA-256 (RFC 5869), no salt, info = the label.

| label | bytes | for |
|---|---|---|
| keypeer/disk/v1 | 32 | the LUKS passphrase of the VM's disks, given to QEMU as 64 hexadecimal characters |
| keypeer/vtpm/v1 | 32 | swtpm ``--key``: AES-256-CBC with HMAC over the state files of the vTPM |
| keypeer/vtpm-migration/v1 | 32 | swtpm ``--migration-key``: the same over that state in streams and images |

A VM key belongs to one VM, so its name needn't be in the info. A new version of the VM key gives new keys: re-encrypt
what rests under the old ones while the old version is readable (deploy/keys.md). No label begins as that of
``VmKey.derive`` does, ``keypeer/derive/v1``.
"""

from __future__ import annotations

from typing import TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keypeer.errors import StateError
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey

Key: TypeAlias = VmKey | LockedBytes | bytes | bytearray | memoryview

DISK = "keypeer/disk/v1"
VTPM = "keypeer/vtpm/v1"
VTPM_MIGRATION = "keypeer/vtpm-migration/v1"

_VM_KEY_SIZES = (32, 64)
_DERIVED_BYTES = 32  # AES-256, and enough for a passphrase


def key_view(key: Key) -> memoryview:
    """The bytes of a VM key, without a copy. Raises StateError ``secret.size`` unless there are 32 or 64."""
    view = key.view() if isinstance(key, VmKey | LockedBytes) else memoryview(key).cast("B")
    if len(view) not in _VM_KEY_SIZES:
        raise StateError("secret.size", f"a VM key has 32 or 64 bytes, not {len(view)}")
    return view


def derive(key: Key, label: str) -> LockedBytes:
    """32 bytes for the purpose ``label``; close them."""
    derived = LockedBytes(_DERIVED_BYTES)
    HKDF(hashes.SHA256(), _DERIVED_BYTES, salt=None, info=label.encode()).derive_into(key_view(key), derived.writable)
    return derived


def derive_hex(key: Key, label: str) -> LockedBytes:
    """The same as 64 hexadecimal characters, for programs that want text. They never are a Python string."""
    text = LockedBytes(2 * _DERIVED_BYTES)
    with derive(key, label) as raw:
        hex_into(raw.view(), text.writable)
    return text


def hex_into(raw: memoryview, text: memoryview) -> None:
    """Writes ``raw`` as lower-case hexadecimal characters, without a copy of them elsewhere."""
    digits = b"0123456789abcdef"
    for place, byte in enumerate(raw):
        text[2 * place] = digits[byte >> 4]
        text[2 * place + 1] = digits[byte & 15]
