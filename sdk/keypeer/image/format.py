"""The container: a header in the clear that its own tag authenticates, then chunks that it binds.

    magic (8) ‖ u32 size ‖ header (JSON, size bytes) ‖ header tag (16) ‖ chunk 0 ‖ chunk 1 ‖ … ‖ last chunk

Each chunk is AES-256-GCM (NIST SP 800-38D) of ``chunk`` bytes of the image, the last one of 0 to ``chunk``, with its
16-byte tag behind. Nonce: u8 (1 on the last chunk, else 0) ‖ 3 zero bytes ‖ u64 index; associated data: SHA-256 of
everything before chunk 0. So no chunk can be dropped, moved, doubled or cut, nor the header exchanged. A key encrypts
one image alone: HKDF-SHA-256 (RFC 5869) of the VM key derived for purpose "image" and the header's epoch, salt = image
id (16 random bytes), info = "keypeer/image/v1".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keypeer import limits
from keypeer.errors import StateError
from keypeer.image.errors import ImageError
from keypeer.image.streams import Source, read
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey
from keypeer.wire.types import VmId

MAGIC: Final = b"KPIMAGE1"
TAG_BYTES: Final = 16
ID_BYTES: Final = 16
PURPOSE: Final = "image"
_LABEL: Final = b"keypeer/image/v1"
_HEADER_NONCE: Final = b"\xff" * 12  # chunks' nonces start with 0 or 1
_SIZE_BYTES: Final = 4

_U32 = Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
_U64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Chunk = Annotated[int, msgspec.Meta(ge=limits.IMAGE_CHUNK_BYTES_MIN, le=limits.IMAGE_CHUNK_BYTES_MAX)]
_Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image says of itself. ``epoch``: the purpose epoch of the VM key that opens it, ``version`` the VM key's;
    ``chunk`` in bytes; ``created_at`` in Unix seconds."""

    vm: VmId
    version: _U32
    epoch: _U64
    id: _Id
    chunk: _Chunk
    created_at: _U64


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A header as read, ``raw`` with all before chunk 0 but the tag; nobody has vouched for it until ``Cipher`` did."""

    header: Header
    raw: bytes
    tag: bytes

    @property
    def size(self) -> int:
        """Bytes before chunk 0."""
        return len(self.raw) + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a file's chunks are. ``last``: the last one's index, ``last_bytes``: its size with its tag, ``size``: what
    all hold, in bytes."""

    last: int
    last_bytes: int
    size: int


_header = msgspec.json.Decoder(Header)


def encode_header(header: Header) -> bytes:
    """Everything before the header's tag. Raises StateError ``image.argument`` for what couldn't be read again."""
    text = msgspec.json.encode(header)
    try:
        _header.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError("image.argument", f"no image can have this header: {error}") from None
    return MAGIC + len(text).to_bytes(_SIZE_BYTES, "big") + text


def read_header(source: Source) -> ImageInfo:
    """The header of the image in ``source``, which stands at chunk 0 then. Not authenticated: that takes the key.
    Raises ImageError ``image.not_one``, ``image.header``, ``image.truncated``."""
    start = read(source, len(MAGIC) + _SIZE_BYTES)
    if start[: len(MAGIC)] != MAGIC:
        raise ImageError("image.not_one", "this isn't a keypeer image", "encrypt one with keypeer image encrypt")
    if len(start) < len(MAGIC) + _SIZE_BYTES:
        raise truncated("the header")
    size = int.from_bytes(start[len(MAGIC) :], "big")
    if size > limits.IMAGE_HEADER_BYTES_MAX:
        raise _unreadable(f"it has {size} bytes; at most {limits.IMAGE_HEADER_BYTES_MAX} are allowed")
    text, tag = read(source, size), read(source, TAG_BYTES)
    if len(text) < size or len(tag) < TAG_BYTES:
        raise truncated("the header")
    try:
        header = _header.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(ascii(str(error))) from None  # it may quote the image, which may hold anything
    if encode_header(header) != start + text:
        raise _unreadable("its JSON isn't in the one form that is allowed")
    return ImageInfo(header, start + text, tag)


def _unreadable(why: str) -> ImageError:
    return ImageError("image.header", f"the header doesn't read: {why}", "fetch or copy the image again")


def layout(info: ImageInfo, file_bytes: int) -> Layout:
    """The chunks of an image that is a file of so many bytes. Raises ImageError ``image.truncated``."""
    body, sealed = file_bytes - info.size, info.header.chunk + TAG_BYTES
    last = max(0, body - 1) // sealed
    last_bytes = body - last * sealed
    if last_bytes < TAG_BYTES:
        raise truncated(f"chunk {last}")
    return Layout(last, last_bytes, body - (last + 1) * TAG_BYTES)


def truncated(where: str) -> ImageError:
    """The image ends where it mustn't."""
    return ImageError("image.truncated", f"the image ends within {where}", "fetch or copy it again, whole")


class Cipher:
    """The one key of one image. Close it, or use it as a context manager."""

    def __init__(self, key: VmKey, raw: bytes, header: Header) -> None:
        with key.derive(PURPOSE, header.epoch) as epoch_key, LockedBytes(32) as image_key:
            salt = bytes.fromhex(header.id)
            HKDF(hashes.SHA256(), 32, salt=salt, info=_LABEL).derive_into(epoch_key.view(), image_key.writable)
            self._aead = AESGCM(image_key.view())
        self._raw = raw
        self._bound = b""

    def header_tag(self) -> bytes:
        """The tag behind the header, which chunks are bound to from now on."""
        tag = self._aead.encrypt(_HEADER_NONCE, b"", self._raw)
        self._bound = hashlib.sha256(self._raw + tag).digest()
        return tag

    def verify_header(self, tag: bytes) -> None:
        """Raises ImageError ``image.key`` when the header was changed or is another key's."""
        try:
            self._aead.decrypt(_HEADER_NONCE, tag, self._raw)
        except InvalidTag:
            raise ImageError(
                "image.key",
                "the header doesn't verify: it was changed, or this isn't the VM key that the image was written with",
                "release the key version that keypeer image inspect shows",
            ) from None
        self._bound = hashlib.sha256(self._raw + tag).digest()

    def seal(self, index: int, *, last: bool, data: memoryview, into: memoryview) -> int:
        """One chunk into ``into``, which holds it and its tag exactly → its size."""
        return self._aead.encrypt_into(_nonce(index, last), data, self._bound, into)

    def open(self, index: int, *, last: bool, data: memoryview, into: memoryview) -> int:
        """The reverse. Raises ImageError ``image.damaged`` and gives out nothing of the chunk."""
        try:
            return self._aead.decrypt_into(_nonce(index, last), data, self._bound, into)
        except InvalidTag:
            raise ImageError(
                "image.damaged",
                f"chunk {index} doesn't verify: changed, moved, cut or of another image",
                "fetch or copy the image again",
            ) from None


def _nonce(index: int, last: bool) -> bytes:
    return bytes((last, 0, 0, 0)) + index.to_bytes(8, "big")


def check_asked(
    info: ImageInfo, *, vm: str | None, version: int | None, epoch: int | None, image_id: bytes | None
) -> None:
    """That an image says it is the one that was asked for, as far as that was said; its tag proves it then. Raises
    ImageError ``image.vm``, ``image.other``."""
    header = info.header
    if (vm or header.vm, version or header.version) != (header.vm, header.version):
        raise ImageError(
            "image.vm",
            f"the image is of VM {header.vm}, key version {header.version}; the key is of {vm}, {version or 'any'}",
            f"release version {header.version} of {header.vm}'s key",
        )
    if epoch not in (None, header.epoch):
        raise ImageError("image.other", f"the image's epoch is {header.epoch}; asked for was {epoch}")
    if image_id is not None and image_id.hex() != header.id:
        raise ImageError("image.other", f"the image's id is {header.id}; asked for was {image_id.hex()}")
