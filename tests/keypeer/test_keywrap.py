"""RFC 5649 unwrapping in locked memory, against its own vectors and cryptography's implementation."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.keywrap import aes_key_wrap, aes_key_wrap_with_padding
from hypothesis import given
from hypothesis import strategies as st

from keypeer.errors import ReleaseForged
from keypeer.keywrap import Unwrapper
from keypeer.locked import LockedBytes


def unwrap(key: bytes, wrapped: bytes) -> bytes:
    with LockedBytes(len(key)) as kek:
        kek.writable[:] = key
        with Unwrapper(kek) as unwrapper, unwrapper.unwrap(wrapped) as secret:
            return bytes(secret.view())


@pytest.mark.parametrize(
    ("plain", "wrapped"),
    [
        (
            "c37b7e6492584340bed12207808941155068f738",
            "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a",
        ),
        ("466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"),
    ],
    ids=["20 octets", "7 octets"],
)
def test_the_rfcs_own_examples(plain: str, wrapped: str) -> None:
    """RFC 5649 §6."""
    key = bytes.fromhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
    assert unwrap(key, bytes.fromhex(wrapped)) == bytes.fromhex(plain)


@given(key=st.binary(min_size=32, max_size=32), plain=st.binary(min_size=1, max_size=64))
def test_whatever_cryptography_wraps(key: bytes, plain: bytes) -> None:
    assert unwrap(key, aes_key_wrap_with_padding(key, plain)) == plain


@given(plain=st.binary(min_size=1, max_size=64), bit=st.integers(0, 8 * 72 - 1))
def test_any_flipped_bit_is_refused(plain: bytes, bit: int) -> None:
    key = bytes(range(32))
    wrapped = bytearray(aes_key_wrap_with_padding(key, plain))
    wrapped[bit // 8 % len(wrapped)] ^= 1 << bit % 8
    with pytest.raises(ReleaseForged) as caught:
        unwrap(key, bytes(wrapped))
    assert caught.value.code == "release.unwrap"


def wrapped_with(aiv: bytes, padded: bytes, key: bytes) -> bytes:
    """RFC 3394's W of any initial value: what a broken or hostile wrapper could make."""
    if len(padded) == 8:
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(aiv + padded)  # noqa: S305 - RFC 5649 §4.1
    state, blocks = aiv, [padded[at : at + 8] for at in range(0, len(padded), 8)]
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - RFC 3394 §2.2.1
    for step in range(6 * len(blocks)):
        block = encryptor.update(state + blocks[step % len(blocks)])
        state = (int.from_bytes(block[:8], "big") ^ (step + 1)).to_bytes(8, "big")
        blocks[step % len(blocks)] = block[8:]
    return state + b"".join(blocks)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize(
    ("constant", "shorter", "fill", "good"),
    [
        ("a65959a6", 0, 0, True),
        ("a65959a6", 7, 0, True),
        ("a65959a6", 8, 0, False),  # a whole semiblock of fill
        ("a65959a6", -1, 0, False),  # longer than what is there
        ("a65959a6", 3, 1, False),  # fill that isn't zero
        ("a6a6a6a6", 0, 0, False),  # RFC 3394's initial value
    ],
)
def test_the_integrity_checks_one_by_one(count: int, constant: str, shorter: int, fill: int, good: bool) -> None:
    """RFC 5649 §3: the constant, the length indicator's range, zero fill."""
    key, size = bytes(range(32)), 8 * count - shorter
    padded = (b"\x11" * max(size, 0) + bytes([fill]) * 8)[: 8 * count]
    wrapped = wrapped_with(bytes.fromhex(constant) + size.to_bytes(4, "big"), padded, key)
    if good:
        assert unwrap(key, wrapped) == padded[:size]
        return
    with pytest.raises(ReleaseForged):
        unwrap(key, wrapped)


def test_plain_key_wrap_isn_t_taken() -> None:
    with pytest.raises(ReleaseForged):
        unwrap(bytes(32), aes_key_wrap(bytes(32), bytes(64)))


@pytest.mark.parametrize("size", [0, 8, 15, 17, 71, 73, 80, 4096])
def test_lengths_that_no_wrapped_key_has(size: int) -> None:
    with pytest.raises(ReleaseForged) as caught:
        unwrap(bytes(32), bytes(size))
    assert caught.value.code == "release.unwrap"


def test_another_key_doesn_t_open_it() -> None:
    with pytest.raises(ReleaseForged):
        unwrap(b"\x01" * 32, aes_key_wrap_with_padding(bytes(32), bytes(64)))
