"""An attestation session on the host's side: opens releases, and refuses those that the HSM didn't make for it.

The HSM signs what it makes for a session (canonical.grant_preimage) under a key that the host pinned when it enrolled.
The session key comes out of the TPM, the MAC key wrapped under it. A release counts only if its MAC names the VM *that
was asked for*, this host and this session (canonical.release_mac_input): nobody between HSM and host can swap keys.
"""

from __future__ import annotations

import hmac
import time
from types import TracebackType
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keypeer import limits
from keypeer.errors import AnswerError, ReleaseForged
from keypeer.keywrap import Unwrapper
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey
from keypeer.wire.canonical import grant_preimage, release_mac_input, session_key_preimage
from keypeer.wire.encoding import WireError, b64decode
from keypeer.wire.messages import Release, SessionGrant


def uptime() -> float:
    """Seconds since boot, suspend included: what deadlines are measured by, whatever the wall clock does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Session:
    """Opened from a grant and the session key that the TPM gave back. A context manager; closing wipes its keys."""

    def __init__(self, host: str, grant: SessionGrant, session_key: LockedBytes, now: int) -> None:
        """Takes ``session_key`` over; ``now`` is the service's clock (Unix seconds). Raises AnswerError when the grant
        isn't well made."""
        if session_key.size != limits.SESSION_KEY_BYTES:
            found = f"a session key of {session_key.size} bytes"
            raise AnswerError("session.key", found, "the service's HSM makes AES-256 keys")
        self.host = host
        self.encapsulated_key = grant.encapsulated_key
        self._id = decoded(grant.session, "session.session")
        self._key = session_key
        with Unwrapper(session_key) as unwrapper:
            self._mac_key = unwrapper.unwrap(decoded(grant.wrapped_mac_key, "session.wrapped_mac_key"))
        self._name = grant.session
        self.renewed(grant.expires_at, now)

    @property
    def name(self) -> str:
        """The session as messages carry it."""
        return self._name

    def renewed(self, expires_at: int, now: int) -> None:
        """Notes the service's clock: ``now`` when it answered, and when it ends the session (Unix seconds). The host's
        own wall clock isn't asked."""
        self._expires_at = expires_at
        self._clock_offset = now - uptime()

    @property
    def seconds_left(self) -> float:
        """Until the service ends the session, by its own clock."""
        return self._expires_at - self._now()

    def opens(self, grant: SessionGrant) -> bool:
        """Whether ``grant`` is this session, so that the TPM needn't be asked again."""
        return grant.session == self._name and grant.encapsulated_key == self.encapsulated_key

    def open(self, release: Release, vm: str, version: int | None = None) -> VmKey:
        """The key of ``vm``, and ``version`` of it where one was asked for. Raises ReleaseForged ``release.mac``,
        ``release.version``, ``release.stale``, ``release.size`` or ``release.unwrap``."""
        wrapped = decoded(release.wrapped_key, "wrapped_key")
        self._check_mac(release, vm, wrapped)
        if version not in (None, release.version):
            found = f"version {version} of VM {vm}'s key was asked for, version {release.version} came"
            raise ReleaseForged("release.version", found, "tell the service's operator")
        late = self._now() - release.lease_expires_at
        if late >= 0:
            raise ReleaseForged("release.stale", f"the lease of VM {vm} ended {late:.0f} s ago", "release it again")
        with Unwrapper(self._key) as unwrapper:
            secret = unwrapper.unwrap(wrapped)
        if secret.size != release.size:
            secret.close()
            found = f"the key of VM {vm} has {secret.size} bytes, the release says {release.size}"
            raise ReleaseForged("release.size", found, "tell the service's operator")
        return VmKey(
            secret,
            vm=vm,
            version=release.version,
            generation=release.generation,
            lease_expires_at=release.lease_expires_at,
            grace=release.grace,
            as_of=release.as_of,
        )

    def _check_mac(self, release: Release, vm: str, wrapped: bytes) -> None:
        try:
            message = release_mac_input(
                vm=vm,
                key_version=release.version,
                generation=release.generation,
                host=self.host,
                session=self._id,
                lease_expires=release.lease_expires_at,
                grace=release.grace,
                wrapped=wrapped,
            )
        except OverflowError:
            raise AnswerError("service.answer", f"the release of VM {vm} has numbers out of range") from None
        expected = hmac.digest(self._mac_key.view(), message, "sha256")
        if not hmac.compare_digest(expected, decoded(release.mac, "mac")):
            raise ReleaseForged(
                "release.mac",
                f"the release isn't what the HSM made for VM {vm}, host {self.host} and this session",
                "attest again; if it stays, the service or something before it is tampering",
            )

    def _now(self) -> float:
        return uptime() + self._clock_offset

    def close(self) -> None:
        """Wipes session key and MAC key; keys already released stay."""
        self._key.close()
        self._mac_key.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_grant(grant: SessionGrant, host: str, session_key: bytes) -> None:
    """Raises ReleaseForged ``session.signature`` unless the HSM of ``session_key`` (SPKI DER) made ``grant`` for
    ``host``."""
    message = grant_preimage(
        session=decoded(grant.session, "session.session"),
        host=host,
        binding_name=decoded(grant.binding_name, "session.binding_name"),
        oaep_hash=grant.oaep_hash,
        encapsulated_key=decoded(grant.encapsulated_key, "session.encapsulated_key"),
        wrapped_mac_key=decoded(grant.wrapped_mac_key, "session.wrapped_mac_key"),
    )
    try:
        _verify(session_key, decoded(grant.signature, "session.signature"), message)
    except (ValueError, InvalidSignature):
        raise ReleaseForged(
            "session.signature",
            f"the session isn't what the HSM made for host {host} under the key that was pinned at enrolment",
            "after a new HSM enrol again; else the service or something before it is tampering",
        ) from None


def follow(pinned: bytes, grant: SessionGrant) -> bytes:
    """The key (SPKI DER) that ``pinned`` leads to by what each version of the HSM's session key said of the next one.
    Links of other keys lead nowhere, so whoever makes them up gains nothing."""
    current = pinned
    for link in grant.key_links:
        successor = decoded(link.public_key, "session.key_links.public_key")
        endorsement = decoded(link.endorsement, "session.key_links.endorsement")
        try:
            message = session_key_preimage(link.version, current, successor)
            _verify(current, endorsement, message)
        except (ValueError, OverflowError, InvalidSignature):
            continue
        current = successor
    return current


def _verify(spki: bytes, signature: bytes, message: bytes) -> None:
    key = load_der_public_key(spki)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not an EC key")
    key.verify(signature, message, ec.ECDSA(hashes.SHA256()))


def decoded(text: str, where: str) -> bytes:
    """base64url of an answer. Raises AnswerError."""
    try:
        return b64decode(text, where)
    except WireError as error:
        raise AnswerError("service.answer", str(error), "does the URL lead to a keypeer service?") from None
