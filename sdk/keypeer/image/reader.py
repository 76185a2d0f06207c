"""Reading an image: as a stream, or any part of a file."""

from __future__ import annotations

import os

from keypeer.errors import StateError
from keypeer.image.format import TAG_BYTES, Cipher, ImageInfo, check_asked, layout, read_header, truncated
from keypeer.image.streams import Progress, SeekableSource, Source, Target, fill, write_all
from keypeer.vmkey import VmKey


def decrypt(
    source: Source,
    target: Target,
    key: VmKey,
    *,
    info: ImageInfo | None = None,
    epoch: int | None = None,
    image_id: bytes | None = None,
    progress: Progress | None = None,
) -> int:
    """Decrypts the image in ``source`` into ``target`` → its bytes. Each chunk is verified before a byte of it is
    written, but only the last one tells that the image is whole: who acts on what came before an ImageError acts on
    a part.

    ``info``: the header, where ``read_header`` has read it off ``source``. An old image of the VM is an image of the
    VM: ``epoch`` and ``image_id`` say which one it must be. Raises ImageError, and OSError of the streams.
    """
    info = info or read_header(source)
    cipher = _cipher(info, key, epoch, image_id)
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
    Holds two chunks. ``epoch`` and ``image_id`` as for ``decrypt``. Raises ImageError, and OSError of the file.
    """

    def __init__(
        self, file: SeekableSource, key: VmKey, *, epoch: int | None = None, image_id: bytes | None = None
    ) -> None:
        self._file = file
        file.seek(0)
        self.info = read_header(file)
        self._cipher = _cipher(self.info, key, epoch, image_id)
        self._chunk = self.info.header.chunk
        self._sealed = memoryview(bytearray(self._chunk + TAG_BYTES))
        self._plain = memoryview(bytearray(self._chunk))
        self._held = -1  # the chunk whose bytes are in ``_plain``
        self._layout = layout(self.info, file.seek(0, os.SEEK_END))
        self.size = self._layout.size
        self._open(self._layout.last)

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, fewer at the image's end. Raises StateError ``image.argument``."""
        if offset < 0 or size < 0:
            raise StateError("image.argument", f"{size} bytes from {offset} on aren't a part of an image")
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
        last = index == self._layout.last
        wanted = self._layout.last_bytes if last else self._chunk + TAG_BYTES
        if fill(self._file, self._sealed[:wanted]) < wanted:
            raise truncated(f"chunk {index}")
        self._cipher.open(index, last=last, data=self._sealed[:wanted], into=self._plain[: wanted - TAG_BYTES])
        self._held = index


def _cipher(info: ImageInfo, key: VmKey, epoch: int | None, image_id: bytes | None) -> Cipher:
    check_asked(info, vm=key.vm, version=key.version, epoch=epoch, image_id=image_id)
    cipher = Cipher(key, info.raw, info.header)
    cipher.verify_header(info.tag)
    return cipher
