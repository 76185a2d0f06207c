"""Memory images: round trips, the format by hand, and everything that can be done to one."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from hashlib import sha256

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from keypeer.errors import StateError
from keypeer.image import ImageError, ImageReader, decrypt, encrypt, read_header
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey

CHUNK = 4096
TAG = 16
ID = bytes(range(16))
AT = 1_900_000_000


def key(vm: str = "web-1", version: int = 1, first: int = 0) -> VmKey:
    secret = LockedBytes(64)
    secret.writable[:] = bytes(range(first, first + 64))
    return VmKey(secret, vm=vm, version=version, generation=3, lease_expires_at=AT, grace=300)


def image_of(data: bytes, *, image_id: bytes = ID, epoch: int = 7, vm_key: VmKey | None = None) -> bytes:
    target = io.BytesIO()
    with vm_key or key() as held:
        written = encrypt(io.BytesIO(data), target, held, epoch=epoch, image_id=image_id, created_at=AT, chunk=CHUNK)
        assert (written.size, written.header.id) == (len(data), image_id.hex())
    return target.getvalue()


def opened(image: bytes, vm_key: VmKey | None = None) -> bytes:
    target = io.BytesIO()
    with vm_key or key() as held:
        assert decrypt(io.BytesIO(image), target, held) == len(target.getvalue())
    return target.getvalue()


def header_bytes(image: bytes) -> int:
    return read_header(io.BytesIO(image)).size


def memory(size: int) -> bytes:
    return (b"".join(sha256(number.to_bytes(8, "big")).digest() for number in range(-(-size // 32))))[:size]


SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 1, 3 * CHUNK, 3 * CHUNK + 5)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_encrypted_comes_back_whole_and_in_parts(size: int) -> None:
    data = memory(size)
    image = image_of(data)
    assert opened(image) == data
    with key() as held:
        reader = ImageReader(io.BytesIO(image), held)
        assert reader.size == size
        for offset, count in ((0, size), (0, 1), (size, 10), (CHUNK - 3, 6), (size - 1, 5), (CHUNK, CHUNK)):
            if offset >= 0:
                assert reader.read(offset, count) == data[offset : offset + count]


@given(data=st.binary(max_size=3 * CHUNK), offset=st.integers(0, 3 * CHUNK), count=st.integers(0, 2 * CHUNK))
def test_any_part_is_that_part(data: bytes, offset: int, count: int) -> None:
    with key() as held:
        assert ImageReader(io.BytesIO(image_of(data)), held).read(offset, count) == data[offset : offset + count]


def test_the_format_is_the_documented_one_by_other_means() -> None:
    data = memory(CHUNK + 100)
    image = image_of(data)
    size = int.from_bytes(image[8:12], "big")
    raw, tag, body = image[: 12 + size], image[12 + size : 28 + size], image[28 + size :]
    header = msgspec.json.decode(raw[12:])
    assert image[:8] == b"KPIMAGE1"
    assert header == {"vm": "web-1", "version": 1, "epoch": 7, "id": ID.hex(), "chunk": CHUNK, "created_at": AT}
    derive = b"keypeer/derive/v1\x00\x05web-1\x00\x00\x00\x01\x00\x05image" + (7).to_bytes(8, "big")
    epoch_key = HKDF(hashes.SHA256(), 32, salt=None, info=derive).derive(bytes(range(64)))
    aead = AESGCM(HKDF(hashes.SHA256(), 32, salt=ID, info=b"keypeer/image/v1").derive(epoch_key))
    assert aead.decrypt(b"\xff" * 12, tag, raw) == b""
    bound = sha256(raw + tag).digest()
    assert aead.decrypt(bytes(12), body[: CHUNK + TAG], bound) == data[:CHUNK]
    assert aead.decrypt(b"\x01" + bytes(10) + b"\x01", body[CHUNK + TAG :], bound) == data[CHUNK:]


def swap_chunks(image: bytes, start: int) -> bytes:
    one, two = start + CHUNK + TAG, start + 2 * (CHUNK + TAG)
    return image[:start] + image[one:two] + image[start:one] + image[two:]


DAMAGES: dict[str, tuple[Callable[[bytes, int], bytes], str]] = {
    "a flipped bit of the magic": (lambda i, s: bytes([i[0] ^ 1]) + i[1:], "image.not_one"),
    "another size of the header": (lambda i, s: i[:8] + b"\xff\xff\xff\xff" + i[12:], "image.header"),
    "a header that isn't JSON": (lambda i, s: i[:12] + b"x" + i[13:], "image.header"),
    "another time in the header": (lambda i, s: i.replace(str(AT).encode(), str(AT + 1).encode()), "image.key"),
    "another epoch in the header": (lambda i, s: i.replace(b'"epoch":7', b'"epoch":8'), "image.key"),
    "another chunk size in the header": (lambda i, s: i.replace(b'"chunk":4096', b'"chunk":8192'), "image.key"),
    "another VM in the header": (lambda i, s: i.replace(b"web-1", b"web-2"), "image.vm"),
    "a flipped bit of the header's tag": (lambda i, s: i[: s - 1] + bytes([i[s - 1] ^ 1]) + i[s:], "image.key"),
    "a flipped bit of the first chunk": (lambda i, s: i[:s] + bytes([i[s] ^ 1]) + i[s + 1 :], "image.damaged"),
    "a flipped bit at the end": (lambda i, s: i[:-1] + bytes([i[-1] ^ 1]), "image.damaged"),
    "chunks swapped": (swap_chunks, "image.damaged"),
    "the first chunk dropped": (lambda i, s: i[:s] + i[s + CHUNK + TAG :], "image.damaged"),
    "the first chunk doubled": (lambda i, s: i[: s + CHUNK + TAG] + i[s:], "image.damaged"),
    "the last chunk cut off": (lambda i, s: i[: s + 2 * (CHUNK + TAG)], "image.damaged"),
    "cut within a chunk": (lambda i, s: i[: s + CHUNK + TAG + 1000], "image.damaged"),
    "cut within a tag": (lambda i, s: i[: s + CHUNK + TAG + 7], "image.truncated"),
    "cut behind the header": (lambda i, s: i[:s], "image.truncated"),
    "cut within the header": (lambda i, s: i[: s - 20], "image.truncated"),
    "bytes appended": (lambda i, s: i + b"x", "image.damaged"),
    "empty": (lambda i, s: b"", "image.not_one"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_gives_out_only_what_verified(damage: str) -> None:
    data = memory(2 * CHUNK + 500)
    change, code = DAMAGES[damage]
    image = image_of(data)
    damaged = change(image, header_bytes(image))
    assert damaged != image
    target = io.BytesIO()
    with pytest.raises(ImageError) as refused, key() as held:
        decrypt(io.BytesIO(damaged), target, held)
    assert refused.value.code == code
    assert data.startswith(target.getvalue())
    assert len(target.getvalue()) < len(data)


@pytest.mark.parametrize("damage", ["the last chunk cut off", "bytes appended", "cut within a tag", "empty"])
def test_a_reader_refuses_a_cut_image_before_it_gives_out_anything(damage: str) -> None:
    change, _ = DAMAGES[damage]
    image = image_of(memory(2 * CHUNK + 500))
    with pytest.raises(ImageError), key() as held:
        ImageReader(io.BytesIO(change(image, header_bytes(image))), held)


def test_a_reader_refuses_the_one_chunk_that_is_damaged_and_reads_on_elsewhere() -> None:
    data = memory(3 * CHUNK)
    image = bytearray(image_of(data))
    image[header_bytes(bytes(image)) + CHUNK + TAG + 9] ^= 4
    with key() as held:
        reader = ImageReader(io.BytesIO(bytes(image)), held)
        for good in (0, 2):
            assert reader.read(good * CHUNK, 10) == data[good * CHUNK :][:10]
            with pytest.raises(ImageError, match="chunk 1"):
                reader.read(CHUNK, 10)
            assert reader.read(good * CHUNK, 10) == data[good * CHUNK :][:10]
        with pytest.raises(ImageError, match="chunk 1"):
            reader.read(CHUNK - 1, 2)


OTHER_KEYS = {
    "another VM's": (lambda: key(vm="web-2"), "image.vm"),
    "another version's": (lambda: key(version=2), "image.vm"),
    "other bytes under the same name": (lambda: key(first=1), "image.key"),
}


@pytest.mark.parametrize("whose", OTHER_KEYS)
def test_another_key_opens_nothing(whose: str) -> None:
    make, code = OTHER_KEYS[whose]
    target = io.BytesIO()
    with pytest.raises(ImageError) as refused, make() as held:
        decrypt(io.BytesIO(image_of(b"secret")), target, held)
    assert (refused.value.code, target.getvalue()) == (code, b"")


def test_a_chunk_of_another_image_of_the_vm_does_not_fit() -> None:
    data = memory(2 * CHUNK)
    one, two = image_of(data), image_of(data, image_id=bytes(16))
    start = header_bytes(one)
    assert start == header_bytes(two)
    mixed = one[:start] + two[start : start + CHUNK + TAG] + one[start + CHUNK + TAG :]
    with pytest.raises(ImageError, match="chunk 0"):
        opened(mixed)
    assert one[start:] != two[start:]


def test_pipes_that_give_and_take_little_at_a_time_are_served() -> None:
    class Dribble(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.source, self.taken = io.BytesIO(data), b""

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # narrower, for the test alone
            part = self.source.read(min(len(buffer), 999))
            buffer[: len(part)] = part
            return len(part)

        def write(self, data: memoryview) -> int:  # type: ignore[override]  # as above
            self.taken += bytes(data[:777])
            return min(len(data), 777)

    data = memory(2 * CHUNK + 1)
    source, middle, end = Dribble(data), Dribble(b""), Dribble(b"")
    with key() as held:
        encrypt(source, middle, held, epoch=1, image_id=ID, created_at=AT, chunk=CHUNK)  # type: ignore[arg-type]  # raw
        assert decrypt(Dribble(middle.taken), end, held) == len(data)  # type: ignore[arg-type]  # raw
    assert end.taken == data


def test_progress_tells_the_bytes_so_far() -> None:
    told: list[int] = []
    with key() as held:
        target = io.BytesIO()
        encrypt(
            io.BytesIO(memory(2 * CHUNK + 1)), target, held,
            epoch=1, image_id=ID, created_at=AT, chunk=CHUNK, progress=told.append,
        )  # fmt: skip
        assert told == [CHUNK, 2 * CHUNK, 2 * CHUNK + 1]
        told.clear()
        decrypt(io.BytesIO(target.getvalue()), io.BytesIO(), held, progress=told.append)
        assert told == [CHUNK, 2 * CHUNK, 2 * CHUNK + 1]


@pytest.mark.parametrize(("image_id", "chunk"), [(bytes(15), CHUNK), (ID, CHUNK - 1), (ID, 2**25)])
def test_arguments_out_of_bounds_write_nothing(image_id: bytes, chunk: int) -> None:
    target = io.BytesIO()
    with pytest.raises(StateError) as refused, key() as held:
        encrypt(io.BytesIO(b"x"), target, held, epoch=1, image_id=image_id, created_at=AT, chunk=chunk)
    assert (refused.value.code, target.getvalue()) == ("image.argument", b"")


def test_nothing_of_the_memory_is_in_the_image() -> None:
    marker = b"MARKER-IN-GUEST-MEMORY"
    assert marker not in image_of(marker * 1000)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    for image in (data, b"KPIMAGE1" + data, image_of(b"x")[: 12 + len(data)] + data):
        with pytest.raises(ImageError):
            opened(image)


def test_the_default_chunk_is_used_by_default() -> None:
    target = io.BytesIO()
    with key() as held:
        encrypt(io.BytesIO(os.urandom(10)), target, held, epoch=1, image_id=ID, created_at=AT)
    assert read_header(io.BytesIO(target.getvalue())).header.chunk == 1024 * 1024
