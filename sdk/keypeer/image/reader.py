"""Reading an image: as a stream, or any part of a file."""

from __future__ import annotations

import os
from typing import BinaryIO

from keypeer import limits
from keypeer.image.errors import ImageError
from keypeer.image.format import TAG_BYTES, Cipher, ImageInfo, check_vm, read_header, truncated
from keypeer.image.writer import Progress, fill, write_all
from keypeer.vmkey import VmKey


def decrypt(source: BinaryIO, target: BinaryIO, key: VmKey, *, progress: Progress | None = None) -> int:
    """Decrypts the image in ``source`` into ``target`` → its bytes. Each chunk is verified before a byte of it is
    written, but only the last one tells that the image is whole: who acts on what came before an ImageError acts on
    a part. Raises ImageError, and OSError of the streams."""
    info = read_header(lambda size: _read(source, size))
    cipher = _cipher(info, key)
    sealed_bytes = info.header.chunk + TAG_BYTES
    this, following = memoryview(bytearray(sealed_bytes)), memoryview(bytearray(sealed_bytes))
    plain = memoryview(bytearray(info.header.chunk))
    size, index, done = fill(source, this), 0, 0
    while True:
        if size < TAG_BYTES:
            raise truncated(f"chunk {index}")
        more = fill(source, following) if size == sealed_bytes else 0
        opened = cipher.open(index, last=not more, data=this[:size], into=plain[: size - TAG_BYTES])
        write_all(target, plain[:opened])
        done += opened
        if progress is not None:
            progress(done)
        if not more:
            return done
        this, following, size, index = following, this, more, index + 1


class ImageReader:
    """Any part of an image in a file, for restoring page by page. ``size`` is the image's, in bytes.

    The last chunk is verified when it is opened, so that a cut image is refused before anything is read from it.
    Raises ImageError, and OSError of the file.
    """

    def __init__(self, file: BinaryIO, key: VmKey) -> None:
        self._file = file
        file.seek(0)
        self.info = read_header(lambda size: _read(file, size))
        self._cipher = _cipher(self.info, key)
        self._chunk = self.info.header.chunk
        self._plain = memoryview(bytearray(self._chunk))
        self._held = -1  # the chunk whose bytes are in ``_plain``
        body = file.seek(0, os.SEEK_END) - self.info.size
        self._chunks = max(1, -(-body // (self._chunk + TAG_BYTES)))
        self.size = body - self._chunks * TAG_BYTES
        if self.size < 0:
            raise truncated(f"chunk {self._chunks - 1}")
        self._open(self._chunks - 1)

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, fewer at the image's end."""
        if offset < 0 or size < 0:
            raise ImageError("image.argument", f"{size} bytes from {offset} on aren't a part of an image")
        parts, end = [], min(offset + size, self.size)
        while offset < end:
            index, start = divmod(offset, self._chunk)
            self._open(index)
            stop = min(self._chunk, start + end - offset)
            parts.append(bytes(self._plain[start:stop]))
            offset += stop - start
        return b"".join(parts)

    def _open(self, index: int) -> None:
        if index == self._held:
            return
        self._held = -1  # what a failed chunk left there must not be taken for another's
        self._file.seek(self.info.size + index * (self._chunk + TAG_BYTES))
        last = index == self._chunks - 1
        wanted = self.size + TAG_BYTES - index * self._chunk if last else self._chunk + TAG_BYTES
        sealed = memoryview(_read(self._file, wanted))
        if len(sealed) < wanted:
            raise truncated(f"chunk {index}")
        self._cipher.open(index, last=last, data=sealed, into=self._plain[: wanted - TAG_BYTES])
        self._held = index


def _cipher(info: ImageInfo, key: VmKey) -> Cipher:
    check_vm(info, key)
    cipher = Cipher(key, info.raw, info.header)
    cipher.verify_header(info.tag)
    return cipher


def _read(source: BinaryIO, size: int) -> bytes:
    buffer = bytearray(min(size, limits.IMAGE_CHUNK_BYTES_MAX + TAG_BYTES))
    return bytes(buffer[: fill(source, memoryview(buffer))])
