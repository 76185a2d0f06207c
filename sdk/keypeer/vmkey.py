"""A VM's memory-encryption key in the host's memory."""

from __future__ import annotations

import hmac
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keypeer import limits
from keypeer.errors import StateError
from keypeer.locked import LockedBytes
from keypeer.wire.encoding import field

_DERIVE_LABEL = b"keypeer/derive/v1"
_CHECK_LABEL = b"keypeer/check-value/v1"
_CHECK_HEX = 8  # characters: 32 bits tell keys apart and say nothing of use about one


class VmKey:
    """One version of one VM's key: 64 bytes (AES-256-XTS) or 32. Use it as a context manager, or close it.

    The bytes lie in locked memory that is left out of core dumps, doesn't follow a fork and is zeroed by ``close`` (see
    keypeer.locked; ``locked`` is False where the system didn't allow it). What Python can't promise: a copy that *you*
    make (``bytes(key.view())``) stays in the heap until it is overwritten by chance; a cipher object keeps its own key
    schedule in OpenSSL's memory; and on the way in, the TPM library's response buffer held the session key. Root on
    this host can read it all. So hold the key only as long as it is used, and derive one a purpose.

    There is no way to print, pickle, copy or compare it: compare ``check_value()``.
    """

    __slots__ = ("_secret", "as_of", "generation", "grace", "lease_expires_at", "version", "vm")

    def __init__(
        self,
        secret: LockedBytes,
        *,
        vm: str,
        version: int,
        generation: int,
        lease_expires_at: int,
        grace: int,
        as_of: int = 0,
    ) -> None:
        self._secret = secret
        self.vm = vm
        self.version = version
        self.generation = generation  # the fencing number of the VM's ownership
        self.lease_expires_at = lease_expires_at  # Unix seconds, the service's clock
        self.grace = grace  # seconds that the key may be used on when the service is silent
        self.as_of = as_of  # the last of the host's events when the key was released

    @property
    def size(self) -> int:
        """Bytes."""
        return self._secret.size

    @property
    def locked(self) -> bool:
        """Whether the memory is locked, undumped and wiped on fork."""
        return self._secret.locked

    @property
    def closed(self) -> bool:
        """Whether the key was wiped."""
        return self._secret.closed

    def view(self) -> memoryview:
        """The key, read-only, without a copy: hand it to a cipher. Raises StateError ``secret.closed``."""
        return self._secret.view()

    def derive(self, purpose: str, epoch: int, size: int = 32) -> VmKey:
        """A key of ``size`` bytes (16 to 64) for one purpose and epoch (u64), by HKDF-SHA-256 (RFC 5869) without salt,
        info = label ‖ field(vm) ‖ version (u32) ‖ field(purpose) ‖ epoch (u64). It outlives this one's close."""
        if not limits.DERIVED_BYTES_MIN <= size <= limits.DERIVED_BYTES_MAX:
            bounds = f"{limits.DERIVED_BYTES_MIN} to {limits.DERIVED_BYTES_MAX}"
            raise StateError("secret.size", f"a derived key has {bounds} bytes, not {size}")
        if not 0 <= epoch < 2**64:
            raise StateError("secret.epoch", f"an epoch is a u64, not {epoch}")
        info = (
            _DERIVE_LABEL
            + field(self.vm.encode())
            + self.version.to_bytes(4, "big")
            + field(purpose.encode())
            + epoch.to_bytes(8, "big")
        )
        derived = LockedBytes(size)
        HKDF(hashes.SHA256(), size, salt=None, info=info).derive_into(self.view(), derived.writable)
        return VmKey(
            derived,
            vm=self.vm,
            version=self.version,
            generation=self.generation,
            lease_expires_at=self.lease_expires_at,
            grace=self.grace,
            as_of=self.as_of,
        )

    def check_value(self) -> str:
        """Eight hex characters by which two holders compare keys without showing them."""
        return hmac.digest(self.view(), _CHECK_LABEL, "sha256").hex()[:_CHECK_HEX]

    def close(self) -> None:
        """Wipes the key; a second call does nothing."""
        self._secret.close()

    def __del__(self) -> None:
        # Missing when __init__ never got that far.
        if hasattr(self, "_secret"):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<VmKey {self.vm} version {self.version}, {self.size} bytes{state}>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a VM key is neither pickled nor copied")
