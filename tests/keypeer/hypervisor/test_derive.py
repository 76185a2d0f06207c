"""Keys for purposes: known answers, and no two alike."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from keypeer.errors import StateError
from keypeer.hypervisor.derive import DISK, VTPM, VTPM_MIGRATION, derive, derive_hex
from keypeer.hypervisor.secretfd import SecretFd
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey

KEY = bytes(range(64))


def derived(key: bytes | VmKey, label: str) -> bytes:
    with derive(key, label) as secret:
        return bytes(secret.view())


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 §2 for 32 bytes: extract under zeros, one block of expand."""
    extracted = hmac.digest(bytes(32), key, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


@pytest.mark.parametrize("label", [DISK, VTPM, VTPM_MIGRATION])
@pytest.mark.parametrize("size", [32, 64])
def test_it_is_hkdf(label: str, size: int) -> None:
    key = KEY[:size]
    expected = hkdf(key, label.encode())
    assert derived(key, label) == expected
    with derive_hex(key, label) as text:
        assert bytes(text.view()) == expected.hex().encode()
    secret = LockedBytes(size)
    secret.writable[:] = key
    vm_key = VmKey(secret, vm="web-1", version=1, generation=1, lease_expires_at=0, grace=0)
    assert derived(vm_key, label) == expected


def test_no_two_purposes_share_a_key() -> None:
    assert len({derived(KEY, label) for label in (DISK, VTPM, VTPM_MIGRATION)}) == 3


@pytest.mark.parametrize("size", [0, 16, 31, 33, 63, 65, 128])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(StateError) as refused:
        derive(bytes(size), DISK)
    assert refused.value.code == "secret.size"


def test_a_lent_secret_is_wiped_for_all_who_have_it_open() -> None:
    with SecretFd(b"pass", memoryview(b"word")) as secret, open(secret.path, "rb") as other:
        assert other.read() == b"password"
        assert "password" not in repr(secret)
        secret.close()
        other.seek(0)
        assert other.read() == b""
    with pytest.raises(TypeError):
        SecretFd(b"x").__reduce_ex__(2)
