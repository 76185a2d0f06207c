"""AES Key Unwrap with Padding (RFC 5649 §4.2) from one locked buffer into another: the library's own call returns
``bytes``, which Python can't wipe."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keypeer import limits
from keypeer.errors import ReleaseForged
from keypeer.locked import LockedBytes

_CONSTANT = bytes.fromhex("a65959a6")  # RFC 5649 §3
_BLOCK, _HALF = 16, 8  # bytes; AES' block and the semiblocks of RFC 3394
_ROUNDS = 6  # RFC 3394 §2.2.2
# cryptography wants a block less a byte of room after what update_into() writes.
_ROOM = _BLOCK + _BLOCK - 1


class Unwrapper:
    """Unwraps under one key-encryption key. A context manager; its scratch memory is wiped at the end."""

    def __init__(self, key: LockedBytes) -> None:
        # ECB is the bare block cipher that RFC 3394 is built on.
        self._decryptor = Cipher(algorithms.AES(key.view()), modes.ECB()).decryptor()  # noqa: S305
        self._scratch = LockedBytes(_BLOCK + _ROOM + limits.WRAPPED_KEY_BYTES_MAX)

    def unwrap(self, wrapped: bytes) -> LockedBytes:
        """The key in ``wrapped`` (16 to 72 bytes). Raises ReleaseForged ``release.unwrap`` when it doesn't hold."""
        if len(wrapped) % _HALF or not 2 * _HALF <= len(wrapped) <= limits.WRAPPED_KEY_BYTES_MAX:
            raise _broken(f"{len(wrapped)} bytes are no wrapped key")
        padded = self._unwrapped(wrapped)
        size = int.from_bytes(padded[4:_HALF], "big")
        body = padded[_HALF:]
        # The message length indicator is within the last semiblock, and what follows it is zero (RFC 5649 §3).
        good = padded[:4] == _CONSTANT and 0 <= len(body) - size < _HALF and not any(body[size:])
        if not good:
            raise _broken("its integrity check fails")
        key = LockedBytes(size)
        key.writable[:] = body[:size]
        return key

    def _unwrapped(self, wrapped: bytes) -> memoryview:
        """RFC 3394 §2.2.2 by index: A ‖ R[1] ‖ … ‖ R[n], in scratch memory."""
        memory = self._scratch.writable
        block, out, work = memory[:_BLOCK], memory[_BLOCK : _BLOCK + _ROOM], memory[_BLOCK + _ROOM :][: len(wrapped)]
        work[:] = wrapped
        count = len(wrapped) // _HALF - 1
        if count == 1:  # RFC 5649 §4.2: two semiblocks are one block
            self._decryptor.update_into(work, out)
            work[:] = out[:_BLOCK]
            return work
        block[:_HALF] = work[:_HALF]
        for step in range(_ROUNDS * count, 0, -1):
            at = ((step - 1) % count + 1) * _HALF
            block[_HALF - 1] ^= step  # t fits one octet: n is at most 8
            block[_HALF:] = work[at : at + _HALF]
            self._decryptor.update_into(block, out)
            block[:_HALF] = out[:_HALF]
            work[at : at + _HALF] = out[_HALF:_BLOCK]
        work[:_HALF] = block[:_HALF]
        return work

    def close(self) -> None:
        """Wipes the scratch memory."""
        self._scratch.close()

    def __enter__(self) -> Unwrapper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _broken(why: str) -> ReleaseForged:
    return ReleaseForged("release.unwrap", f"the wrapped key doesn't open under the session key: {why}", "attest again")
