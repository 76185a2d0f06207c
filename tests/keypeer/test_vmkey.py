"""The VM key: derivation, check value, and what can't be done with it."""

from __future__ import annotations

import copy
import hmac
import pickle
from collections.abc import Callable
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keypeer.errors import StateError
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey

MATERIAL = bytes(range(64))


def key(vm: str = "web-1", version: int = 1, material: bytes = MATERIAL) -> VmKey:
    secret = LockedBytes(len(material))
    secret.writable[:] = material
    return VmKey(secret, vm=vm, version=version, generation=3, lease_expires_at=1_900_000_000, grace=300)


def hkdf(material: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 written out."""
    pseudorandom = hmac.digest(bytes(32), material, "sha256")
    block, out = b"", b""
    while len(out) < size:
        block = hmac.digest(pseudorandom, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:size]


@pytest.mark.parametrize("size", [16, 32, 64])
def test_derive_is_hkdf_over_the_documented_info(size: int) -> None:
    info = b"keypeer/derive/v1" + b"\x00\x05web-1" + bytes([0, 0, 0, 1]) + b"\x00\x05image" + (7).to_bytes(8, "big")
    with key() as vm_key, vm_key.derive("image", 7, size) as derived:
        assert bytes(derived.view()) == hkdf(MATERIAL, info, size)
        assert derived.locked == vm_key.locked


def test_each_part_of_the_info_makes_another_key() -> None:
    others = [
        key(vm="web-2").derive("image", 7),
        key(version=2).derive("image", 7),
        key().derive("vtpm", 7),
        key().derive("image", 8),
        key(material=MATERIAL[::-1]).derive("image", 7),
        key(vm="web-1\x00").derive("image", 7),
    ]
    found = {bytes(other.view()) for other in [*others, key().derive("image", 7)]}
    assert len(found) == len(others) + 1
    assert bytes(key().derive("image", 7).view()) in found


@pytest.mark.parametrize(
    ("epoch", "size", "code"),
    [(0, 15, "secret.size"), (0, 65, "secret.size"), (-1, 32, "secret.epoch"), (2**64, 32, "secret.epoch")],
)
def test_derivations_out_of_bounds(epoch: int, size: int, code: str) -> None:
    with key() as vm_key, pytest.raises(StateError) as caught:
        vm_key.derive("image", epoch, size)
    assert caught.value.code == code


def test_a_derived_key_outlives_its_source() -> None:
    vm_key = key()
    derived = vm_key.derive("image", 1)
    before = bytes(derived.view())
    vm_key.close()
    assert bytes(derived.view()) == before
    with pytest.raises(StateError):
        vm_key.derive("image", 1)


def test_the_check_value_is_short_and_keyed() -> None:
    assert key().check_value() == hmac.new(MATERIAL, b"keypeer/check-value/v1", sha256).hexdigest()[:8]
    assert key().check_value() != key(material=bytes(64)).check_value()


def test_a_cipher_takes_the_view_as_it_is() -> None:
    with key() as vm_key:
        page = Cipher(algorithms.AES(vm_key.view()), modes.XTS(bytes(16))).encryptor().update(bytes(4096))
    plain = Cipher(algorithms.AES(MATERIAL), modes.XTS(bytes(16))).decryptor().update(page)
    assert plain == bytes(4096)


def test_it_says_what_it_is_and_not_its_bytes() -> None:
    with key(material=b"SECRET!!" * 8) as vm_key:
        assert repr(vm_key) == "<VmKey web-1 version 1, 64 bytes>"
        assert (vm_key.vm, vm_key.version, vm_key.generation, vm_key.size) == ("web-1", 1, 3, 64)
        assert (vm_key.lease_expires_at, vm_key.grace) == (1_900_000_000, 300)
        assert not hasattr(vm_key, "__dict__")
        assert "SECRET" not in f"{vm_key} {vm_key!r} {vars(VmKey)}"
    assert repr(vm_key) == "<VmKey web-1 version 1, 64 bytes, closed>"


@pytest.mark.parametrize("deed", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_it_is_neither_copied_nor_pickled(deed: Callable[[object], object]) -> None:
    with key() as vm_key, pytest.raises(TypeError):
        deed(vm_key)


def test_dropping_it_wipes_it() -> None:
    vm_key = key()
    view = vm_key.view()
    del vm_key
    assert bytes(view) == bytes(64)


def test_closed_it_serves_nothing() -> None:
    vm_key = key()
    vm_key.close()
    vm_key.close()
    assert vm_key.closed
    for use in (vm_key.view, vm_key.check_value, lambda: vm_key.derive("image", 1)):
        with pytest.raises(StateError) as caught:
            use()
        assert caught.value.code == "secret.closed"
