"""AES-256-XTS (IEEE 1619) for those who need the length preserved: what comes out is as long as what went in.

What it doesn't do: XTS authenticates nothing (a changed unit opens to noise, unnoticed), nothing binds a unit to its
image or says where the end is, a wrong key or epoch opens to noise too, and two images under one epoch show which units
are equal. So take a new epoch for each image, and the container of keypeer.image wherever 16 bytes a chunk can be
afforded.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keypeer import limits
from keypeer.errors import StateError
from keypeer.image.errors import ImageError
from keypeer.image.streams import Progress, SeekableSource, Source, Target, fill, write_all
from keypeer.vmkey import VmKey

PURPOSE = "image-xts"
_KEY_BYTES = 64  # two AES-256 keys
_BLOCK_BYTES = 16  # IEEE 1619 §5.1: a unit has at least one block


def encrypt_xts(
    source: Source,
    target: Target,
    key: VmKey,
    *,
    epoch: int,
    unit: int = limits.XTS_UNIT_BYTES,
    progress: Progress | None = None,
) -> int:
    """Encrypts ``source`` into ``target`` in data units of ``unit`` bytes → bytes. The tweak is the unit's number,
    little-endian (§5.1). Raises StateError ``image.argument``, ImageError ``image.unit``, and OSError."""
    return _run(source, target, key, epoch, unit, progress, encrypting=True)


def decrypt_xts(
    source: Source,
    target: Target,
    key: VmKey,
    *,
    epoch: int,
    unit: int = limits.XTS_UNIT_BYTES,
    progress: Progress | None = None,
) -> int:
    """The reverse; epoch and unit must be those of the encryption, which nothing in the data tells."""
    return _run(source, target, key, epoch, unit, progress, encrypting=False)


class XtsReader:
    """Any part of such an image in a file. ``size``: bytes. Close it, or use it as a context manager.

    Nothing is verified, so a cut or changed file, another key or epoch all read as noise. Raises StateError
    ``image.argument``, ImageError ``image.unit``, and OSError of the file.
    """

    def __init__(self, file: SeekableSource, key: VmKey, *, epoch: int, unit: int = limits.XTS_UNIT_BYTES) -> None:
        _check_unit(unit)
        self._file = file
        self._unit = unit
        self._buffer = memoryview(bytearray(unit))
        self._units = _Units(key, epoch, unit)
        self.size = file.seek(0, os.SEEK_END)

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, fewer at the image's end."""
        if offset < 0 or size < 0:
            raise StateError("image.argument", f"{size} bytes from {offset} on aren't a part of an image")
        parts, end = [], min(offset + size, self.size)
        while offset < end:
            index, start = divmod(offset, self._unit)
            self._file.seek(index * self._unit)
            got = fill(self._file, self._buffer)
            stop = min(got, start + end - offset)
            if stop <= start:
                raise ImageError("image.truncated", f"the file ends within unit {index}", "did it shrink meanwhile?")
            parts.append(bytes(self._units.run(index, self._buffer[:got], encrypting=False)[start:stop]))
            offset += stop - start
        return b"".join(parts)

    def close(self) -> None:
        """Wipes the derived key; a second call does nothing."""
        self._units.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Units:
    """One image's units, one at a time."""

    def __init__(self, key: VmKey, epoch: int, unit: int) -> None:
        self._derived = key.derive(PURPOSE, epoch, _KEY_BYTES)
        self._algorithm = algorithms.AES(self._derived.view())
        self._output = memoryview(bytearray(unit + _BLOCK_BYTES))

    def run(self, index: int, data: memoryview, *, encrypting: bool) -> memoryview:
        """Unit ``index``; what is given out lasts until the next."""
        if len(data) < _BLOCK_BYTES:
            raise ImageError(
                "image.unit", f"the last data unit has {len(data)} bytes; XTS needs {_BLOCK_BYTES}", "pad the image"
            )
        cipher = Cipher(self._algorithm, modes.XTS(index.to_bytes(_BLOCK_BYTES, "little")))
        context = cipher.encryptor() if encrypting else cipher.decryptor()
        written = context.update_into(data, self._output)
        context.finalize()
        return self._output[:written]

    def close(self) -> None:
        self._derived.close()


def _check_unit(unit: int) -> None:
    if unit % _BLOCK_BYTES or not limits.IMAGE_CHUNK_BYTES_MIN <= unit <= limits.IMAGE_CHUNK_BYTES_MAX:
        bounds = f"{limits.IMAGE_CHUNK_BYTES_MIN} to {limits.IMAGE_CHUNK_BYTES_MAX}"
        raise StateError("image.argument", f"a data unit has {bounds} bytes, in whole blocks of {_BLOCK_BYTES}")


def _run(
    source: Source, target: Target, key: VmKey, epoch: int, unit: int, progress: Progress | None, *, encrypting: bool
) -> int:
    _check_unit(unit)
    buffer = memoryview(bytearray(unit))
    units = _Units(key, epoch, unit)
    try:
        done, index = 0, 0
        while size := fill(source, buffer):
            write_all(target, units.run(index, buffer[:size], encrypting=encrypting))
            done, index = done + size, index + 1
            if progress is not None:
                progress(done)
    finally:
        units.close()
    return done
