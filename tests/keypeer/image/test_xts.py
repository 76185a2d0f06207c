"""Length-preserving images: beside openssl's own XTS, and what is refused."""

from __future__ import annotations

import io

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from keypeer.errors import KeypeerClientError, StateError
from keypeer.image import XtsReader, decrypt_xts, encrypt_xts
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey

UNIT = 4096


def key() -> VmKey:
    secret = LockedBytes(64)
    secret.writable[:] = bytes(range(64))
    return VmKey(secret, vm="web-1", version=1, generation=3, lease_expires_at=1_900_000_000, grace=300)


def run(data: bytes, *, epoch: int = 1, unit: int = UNIT, back: bool = False) -> bytes:
    target = io.BytesIO()
    with key() as held:
        work = decrypt_xts if back else encrypt_xts
        assert work(io.BytesIO(data), target, held, epoch=epoch, unit=unit) == len(data)
    return target.getvalue()


@pytest.mark.parametrize("size", [0, 16, 17, UNIT - 1, UNIT, 2 * UNIT + 16, 2 * UNIT + 31])
def test_the_length_is_preserved_and_the_data_comes_back(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    sealed = run(data)
    assert len(sealed) == size
    assert run(sealed, back=True) == data
    assert size == 0 or sealed != data


def test_units_are_ieee_1619_with_their_number_as_tweak() -> None:
    data = bytes(2 * UNIT)
    with key() as held, held.derive("image-xts", 5, 64) as derived:
        material = bytes(derived.view())
    wanted = b"".join(
        Cipher(algorithms.AES(material), modes.XTS(number.to_bytes(16, "little"))).encryptor().update(bytes(UNIT))
        for number in (0, 1)
    )
    assert run(data, epoch=5) == wanted


def test_another_epoch_gives_other_bytes() -> None:
    assert run(bytes(64), epoch=1) != run(bytes(64), epoch=2)


@pytest.mark.parametrize(
    ("size", "unit", "code"),
    [
        (5, UNIT, "image.unit"),
        (UNIT + 15, UNIT, "image.unit"),
        (16, 4097, "image.argument"),
        (16, 16, "image.argument"),
    ],
)
def test_what_xts_cannot_do_is_refused(size: int, unit: int, code: str) -> None:
    with pytest.raises(KeypeerClientError) as refused:
        run(bytes(size), unit=unit)
    assert refused.value.code == code


@given(data=st.binary(min_size=16, max_size=3 * UNIT), offset=st.integers(0, 3 * UNIT), count=st.integers(0, 2 * UNIT))
def test_any_part_is_that_part(data: bytes, offset: int, count: int) -> None:
    if 0 < len(data) % UNIT < 16:
        data += bytes(16)
    with key() as held, XtsReader(io.BytesIO(run(data)), held, epoch=1, unit=UNIT) as reader:
        assert reader.size == len(data)
        assert reader.read(offset, count) == data[offset : offset + count]


def test_progress_tells_the_bytes_so_far() -> None:
    told: list[int] = []
    with key() as held:
        encrypt_xts(io.BytesIO(bytes(2 * UNIT + 16)), io.BytesIO(), held, epoch=1, unit=UNIT, progress=told.append)
    assert told == [UNIT, 2 * UNIT, 2 * UNIT + 16]


def test_a_part_that_cannot_be_is_refused() -> None:
    with key() as held, XtsReader(io.BytesIO(bytes(UNIT)), held, epoch=1, unit=UNIT) as reader:
        for offset, size in ((-1, 1), (0, -1)):
            with pytest.raises(StateError):
                reader.read(offset, size)
