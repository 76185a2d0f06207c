"""AES-256-XTS (IEEE 1619) for those who need the length preserved: what comes out is as long as what went in.

What it doesn't do: XTS authenticates nothing (a changed unit opens to noise, unnoticed), nothing binds a unit to its
image or says where the end is, and two images under one epoch show which units are equal. So take a new epoch for each
image, and the container of keypeer.image wherever 16 bytes a chunk can be afforded.
"""

from __future__ import annotations

from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keypeer import limits
from keypeer.errors import StateError
from keypeer.image.errors import ImageError
from keypeer.image.writer import fill, write_all
from keypeer.vmkey import VmKey

PURPOSE = "image-xts"
_KEY_BYTES = 64  # two AES-256 keys
_BLOCK_BYTES = 16  # IEEE 1619 §5.1: a unit has at least one block


def encrypt_xts(
    source: BinaryIO, target: BinaryIO, key: VmKey, *, epoch: int, unit: int = limits.XTS_UNIT_BYTES
) -> int:
    """Encrypts ``source`` into ``target`` in data units of ``unit`` bytes → bytes. The tweak is the unit's number,
    little-endian (§5.1). Raises StateError ``image.argument``, ImageError ``image.unit``, and OSError."""
    return _run(source, target, key, epoch, unit, encrypting=True)


def decrypt_xts(
    source: BinaryIO, target: BinaryIO, key: VmKey, *, epoch: int, unit: int = limits.XTS_UNIT_BYTES
) -> int:
    """The reverse; epoch and unit must be those of the encryption, which nothing in the data tells."""
    return _run(source, target, key, epoch, unit, encrypting=False)


def _run(source: BinaryIO, target: BinaryIO, key: VmKey, epoch: int, unit: int, *, encrypting: bool) -> int:
    if unit % _BLOCK_BYTES or not limits.IMAGE_CHUNK_BYTES_MIN <= unit <= limits.IMAGE_CHUNK_BYTES_MAX:
        bounds = f"{limits.IMAGE_CHUNK_BYTES_MIN} to {limits.IMAGE_CHUNK_BYTES_MAX}"
        raise StateError("image.argument", f"a data unit has {bounds} bytes, in whole blocks of {_BLOCK_BYTES}")
    buffer = memoryview(bytearray(unit))
    output = memoryview(bytearray(unit + _BLOCK_BYTES))
    with key.derive(PURPOSE, epoch, _KEY_BYTES) as derived:
        algorithm = algorithms.AES(derived.view())
        done, index = 0, 0
        while size := fill(source, buffer):
            if size < _BLOCK_BYTES:
                raise ImageError(
                    "image.unit", f"the last data unit has {size} bytes; XTS needs {_BLOCK_BYTES}", "pad the image"
                )
            cipher = Cipher(algorithm, modes.XTS(index.to_bytes(_BLOCK_BYTES, "little")))
            context = cipher.encryptor() if encrypting else cipher.decryptor()
            written = context.update_into(buffer[:size], output)
            context.finalize()
            write_all(target, output[:written])
            done, index = done + size, index + 1
    return done
