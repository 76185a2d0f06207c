"""The CA key's versions: which issues, and which certificates are good.

As of the other signing keys, what counts is in a sealed record. Certificates by every version that isn't retired are
good; TLS lets all of them through that aren't destroyed, so that whoever comes with a retired one is told in words.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import msgspec

from kms import limits, pki
from kms.domain.service_keys import SigningVersion
from kms.errors import KeypeerError, Refused, Unavailable
from kms.signing_keys import SigningKey

_is_issued_by = lru_cache(limits.IDENTITY_CACHE_MAX)(pki.is_issued_by)
_spki_of = lru_cache(1)(pki.spki_of)


@dataclass(frozen=True)
class Authorities:
    """``key`` with a certificate of each version that ever signed one."""

    key: SigningKey

    @cached_property
    def good(self) -> tuple[bytes, ...]:
        """The certificates in force (DER), newest first."""
        return tuple(version.certificate for version in self.key.good)

    @cached_property
    def heard(self) -> tuple[bytes, ...]:
        """Whose clients TLS lets through, to be answered in words if need be."""
        return tuple(each.certificate for each in self.key.versions if each.certificate and not each.destroyed_at)

    @cached_property
    def bundle(self) -> str:
        """The certificates in force in PEM, newest first."""
        return _bundle(self.good)[0]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bundle, in hex: whether a bundle is the newest."""
        return _bundle(self.good)[1]

    def issuing(self, now: int) -> SigningVersion:
        """What issues certificates at ``now``: the newest that every web worker has heard of."""
        good = self.key.good
        return next((each for each in good if each.made_at + limits.CA_SETTLE_S <= now), good[-1])

    def issuer(self, certificate: bytes) -> SigningVersion | None:
        """The version that signed ``certificate``, if any did."""
        there = (version for version in reversed(self.key.versions) if version.certificate)
        return next((version for version in there if _is_issued_by(certificate, version.certificate)), None)

    def is_behind(self, certificate: bytes, now: int) -> bool:
        """Whether a client certificate should be issued anew: it ends soon, or a newer version issues."""
        ends_soon = known_identity(certificate).not_after - now < limits.CERTIFICATE_RENEW_S
        return ends_soon or self.issuer(certificate) != self.issuing(now)

    def refusal(self, certificate: bytes, who: str) -> KeypeerError | None:
        """Why a certificate that TLS let through isn't good, as far as the CA goes."""
        version = self.issuer(certificate)
        if version is not None and not version.retired_at:
            return None
        which = f"version {version.version} of the CA key" if version else "a CA"
        why = f", which was retired: {version.why}" if version and version.why else " that isn't in force"
        return Refused(
            "auth.ca_retired",
            f"the certificate of {who} is by {which}{why}",
            hint="enrol again (keypeer agent enrol with the new CA file), or have a new certificate issued",
        )


@lru_cache(4)  # it is the same for every caller, until a rotation
def _bundle(certificates: tuple[bytes, ...]) -> tuple[str, str]:
    bundle = "".join(map(pki.to_pem, certificates))
    return bundle, hashlib.sha256(bundle.encode()).hexdigest()


known_identity = lru_cache(limits.IDENTITY_CACHE_MAX)(pki.read_identity)


def authorities(key: SigningKey, first: bytes) -> Authorities:
    """``first``: the certificate of version 1 as `keypeer init` issued it, which counts until the first rotation puts
    it into the record. Raises Unavailable ``settings.ca``."""
    oldest = key.versions[0]
    if oldest.certificate:
        return Authorities(key)
    if _spki_of(first) != oldest.public_key:
        raise Unavailable(
            "settings.ca",
            "ca.pem isn't the certificate of this token's CA key",
            hint="the folder is another service's, or it was copied before the last rotation: keypeer init",
        )
    certified = msgspec.structs.replace(oldest, certificate=first)
    return Authorities(replace(key, versions=(certified, *key.versions[1:])))
