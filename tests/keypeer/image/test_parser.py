"""The container's parser against what hypothesis can think of: what comes out is a verified beginning, or all."""

from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypeer import limits
from keypeer.errors import StateError
from keypeer.image import Header, ImageError, ImageReader, decrypt, encrypt, read_header
from keypeer.image.format import MAGIC, encode_header
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey

CHUNK = 4096
DATA = bytes(range(256)) * 48  # three chunks


def key(vm: str = "web-1") -> VmKey:
    secret = LockedBytes(32)
    secret.writable[:] = bytes(range(32))
    return VmKey(secret, vm=vm, version=1, generation=0, lease_expires_at=0, grace=0)


def image_of(data: bytes) -> bytes:
    target = io.BytesIO()
    with key() as held:
        encrypt(io.BytesIO(data), target, held, epoch=5, created_at=9, image_id=bytes(16), chunk=CHUNK)
    return target.getvalue()


IMAGE = image_of(DATA)
START = read_header(io.BytesIO(IMAGE)).size

# What is done to an image: cut out a stretch, and put another in its place.
places = st.integers(0, len(IMAGE)) | st.sampled_from([0, 8, 12, START, START + CHUNK + 16, len(IMAGE)])
stretches = st.binary(max_size=40) | st.sampled_from(
    [IMAGE[START : START + CHUNK + 16], IMAGE[START + CHUNK + 16 :], IMAGE[:START], b""]
)


@given(st.lists(st.tuples(places, places, stretches), min_size=1, max_size=3))
def test_a_changed_image_gives_out_a_verified_beginning_and_says_so(changes: list[tuple[int, int, bytes]]) -> None:
    changed = IMAGE
    for one, two, stretch in changes:
        changed = changed[: min(one, two)] + stretch + changed[max(one, two) :]
    target = io.BytesIO()
    with key() as held:
        if changed == IMAGE:
            assert decrypt(io.BytesIO(changed), target, held) == len(DATA)
        else:
            with pytest.raises(ImageError):
                decrypt(io.BytesIO(changed), target, held)
            assert len(target.getvalue()) < len(DATA)
    assert DATA.startswith(target.getvalue())


@given(st.lists(st.tuples(places, places, stretches), min_size=1, max_size=2), places, st.integers(0, 2 * CHUNK))
def test_a_part_of_a_changed_image_is_that_part_or_nothing(
    changes: list[tuple[int, int, bytes]], offset: int, count: int
) -> None:
    changed = IMAGE
    for one, two, stretch in changes:
        changed = changed[: min(one, two)] + stretch + changed[max(one, two) :]
    with key() as held:
        try:
            found = ImageReader(io.BytesIO(changed), held).read(offset, count)
        except ImageError:
            assert changed != IMAGE
        else:
            assert found == DATA[offset : offset + count]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
GOOD = {"vm": "web-1", "version": 1, "epoch": 5, "id": "00" * 16, "chunk": CHUNK, "created_at": 9}
near_headers = st.fixed_dictionaries(
    {}, optional={name: st.just(value) | json_values for name, value in GOOD.items()} | {"more": json_values}
)


@given(st.binary(max_size=200) | near_headers.map(msgspec.json.encode) | st.text(max_size=99).map(str.encode))
def test_a_header_reads_in_its_one_form_or_not_at_all(text: bytes) -> None:
    raw = MAGIC + len(text).to_bytes(4, "big") + text
    refused = None
    try:
        info = read_header(io.BytesIO(raw + bytes(16)))
    except ImageError as error:
        refused = error
    if refused is None:
        assert encode_header(info.header) == info.raw == raw
    else:
        assert refused.code == "image.header"
        assert refused.detail.isprintable()


HEADERS = {
    "spaces": b'{"vm": "web-1","version":1,"epoch":5,"id":"%s","chunk":4096,"created_at":9}',
    "another order": b'{"version":1,"vm":"web-1","epoch":5,"id":"%s","chunk":4096,"created_at":9}',
    "a field twice": b'{"vm":"web-1","vm":"web-1","version":1,"epoch":5,"id":"%s","chunk":4096,"created_at":9}',
    "a field more": b'{"vm":"web-1","version":1,"epoch":5,"id":"%s","chunk":4096,"created_at":9,"x\\u001b[2J":1}',
    "an escape": b'{"vm":"web\\u002d1","version":1,"epoch":5,"id":"%s","chunk":4096,"created_at":9}',
    "something behind": b'{"vm":"web-1","version":1,"epoch":5,"id":"%s","chunk":4096,"created_at":9} ',
    "not UTF-8": b'{"vm":"web-1\xff","version":1,"epoch":5,"id":"%s","chunk":4096,"created_at":9}',
    "a chunk of 4095": b'{"vm":"web-1","version":1,"epoch":5,"id":"%s","chunk":4095,"created_at":9}',
    "a chunk of 2^24 + 1": b'{"vm":"web-1","version":1,"epoch":5,"id":"%s","chunk":16777217,"created_at":9}',
    "a path as VM": b'{"vm":"../web","version":1,"epoch":5,"id":"%s","chunk":4096,"created_at":9}',
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_another_writer_might_make_are_refused(what: str) -> None:
    text = HEADERS[what] % (b"00" * 16)
    with pytest.raises(ImageError) as refused:
        read_header(io.BytesIO(MAGIC + len(text).to_bytes(4, "big") + text + bytes(16)))
    assert refused.value.code == "image.header"
    assert refused.value.detail.isprintable()


def test_the_largest_header_is_read_and_a_larger_one_is_not_even_looked_at() -> None:
    for size, words in ((limits.IMAGE_HEADER_BYTES_MAX, "malformed"), (limits.IMAGE_HEADER_BYTES_MAX + 1, "at most")):
        with pytest.raises(ImageError, match=words):
            read_header(io.BytesIO(MAGIC + size.to_bytes(4, "big") + b"x" * size + bytes(16)))


@pytest.mark.parametrize(
    "change", [{"vm": "Web 1"}, {"vm": ""}, {"version": 0}, {"epoch": 2**63}, {"created_at": -1}, {"id": "AB" * 16}]
)
def test_nothing_is_written_that_could_not_be_read(change: dict[str, object]) -> None:
    header = Header(**GOOD | change)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(StateError) as refused:
        encode_header(header)
    assert refused.value.code == "image.argument"


def test_a_key_of_an_impossible_vm_writes_nothing() -> None:
    target = io.BytesIO()
    with pytest.raises(StateError), key("Web 1") as held:
        encrypt(io.BytesIO(b"x"), target, held, epoch=0, created_at=0)
    assert target.getvalue() == b""


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"epoch": 5, "image_id": bytes(16)}, None),
        ({"epoch": 6}, "image.other"),
        ({"epoch": 0}, "image.other"),
        ({"image_id": b"x" * 16}, "image.other"),
    ],
)
def test_an_old_image_is_refused_where_another_is_asked_for(asked: dict[str, object], code: str | None) -> None:
    target = io.BytesIO()
    with key() as held:
        if code is None:
            assert decrypt(io.BytesIO(IMAGE), target, held, **asked) == len(DATA)  # type: ignore[arg-type]  # a table
            assert ImageReader(io.BytesIO(IMAGE), held, **asked).size == len(DATA)  # type: ignore[arg-type]  # as above
            return
        with pytest.raises(ImageError) as refused:
            decrypt(io.BytesIO(IMAGE), target, held, **asked)  # type: ignore[arg-type]  # as above
        assert (refused.value.code, target.getvalue()) == (code, b"")
        with pytest.raises(ImageError):
            ImageReader(io.BytesIO(IMAGE), held, **asked)  # type: ignore[arg-type]  # as above


def test_each_image_gets_an_id_and_so_a_key_of_its_own() -> None:
    written, bodies = set(), set()
    with key() as held:
        for _ in range(50):
            target = io.BytesIO()
            made = encrypt(io.BytesIO(DATA), target, held, epoch=0, created_at=0, chunk=CHUNK)
            written.add(made.header.id)
            bodies.add(target.getvalue()[START : START + CHUNK])  # without the tag, which the header alone would change
    assert len(written) == len(bodies) == 50


@pytest.mark.parametrize("size", [0, CHUNK, len(DATA) - 1, len(DATA) + 1])
def test_an_input_of_another_size_than_was_said_makes_no_whole_image(size: int) -> None:
    target = io.BytesIO()
    with key() as held:
        with pytest.raises(ImageError) as refused:
            encrypt(io.BytesIO(DATA), target, held, epoch=0, created_at=0, chunk=CHUNK, size=size)
        assert refused.value.code == "image.size"
        with pytest.raises(ImageError):
            decrypt(io.BytesIO(target.getvalue()), io.BytesIO(), held)
        assert encrypt(io.BytesIO(DATA), target, held, epoch=0, created_at=0, size=len(DATA)).size == len(DATA)


def test_an_input_that_is_too_long_is_not_read_to_its_end() -> None:
    class Endless(io.BytesIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # narrower, for the test alone
            return len(buffer)

    target = io.BytesIO()
    with key() as held, pytest.raises(ImageError, match="or more, not 20000"):
        encrypt(Endless(), target, held, epoch=0, created_at=0, chunk=CHUNK, size=20_000)
    assert len(target.getvalue()) < 20_000


def test_a_stream_that_does_not_block_does_not_pass_for_one_that_ended() -> None:
    class Silent(io.BytesIO):
        def readinto(self, buffer: object) -> None:  # type: ignore[override]  # as a raw stream without data does
            return None

        def write(self, data: object) -> None:  # type: ignore[override]  # as one without room
            return None

    with key() as held:
        for source, target in ((Silent(), io.BytesIO()), (io.BytesIO(DATA), Silent())):
            with pytest.raises(BlockingIOError):
                encrypt(source, target, held, epoch=0, created_at=0)
