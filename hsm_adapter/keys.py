"""Finding keypeer's few long-lived keys on a token (DESIGN §4), and refusing what only looks like them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import Final

import pkcs11
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_adapter import limits
from hsm_adapter.errors import Unusable
from hsm_adapter.translate import translated

SECRET_NAMES: Final = ("kek", "record-mac")
# "session" signs what open_session makes and nothing else: protocol.SigningKey doesn't have it.
SIGNING_LABELS: Final = {
    "ca": "keypeer/ca",
    "geo": "keypeer/geo",
    "audit": "keypeer/audit",
    "appraisal": "keypeer/appraisal",
    "session": "keypeer/session",
}
IMPORT_LABEL: Final = "keypeer/import"  # RSA: unwraps VM keys that were made elsewhere

Labelled = dict[str, list[pkcs11.Object]]


@dataclass(frozen=True, slots=True)
class Keys:
    """Handles of the long-lived keys. ``signing`` and ``signing_public`` (SubjectPublicKeyInfo DER): by name
    and version. ``importing``: handle and SubjectPublicKeyInfo DER; None on a token that was provisioned before there
    were imports."""

    keks: dict[int, int]
    macs: dict[int, int]
    signing: dict[str, dict[int, pkcs11.SignMixin]]
    signing_public: dict[str, dict[int, bytes]]
    kek_check_values: dict[int, bytes]
    importing: tuple[int, bytes] | None = None

    @property
    def public_keys(self) -> dict[str, bytes]:
        """The newest version of each signing key, and ``import``."""
        newest = {name: versions[max(versions)] for name, versions in self.signing_public.items()}
        return newest | ({"import": self.importing[1]} if self.importing else {})

    def versions(self, name: str) -> Collection[int]:
        """The versions there are of a long-lived key, by protocol.VersionedKey."""
        return {"kek": self.keks, "record-mac": self.macs}.get(name) or self.signing[name]

    @property
    def current_kek(self) -> int:
        """The newest KEK's version: new wraps use it."""
        return max(self.keks)

    @property
    def current_mac(self) -> int:
        """The newest record-mac's version."""
        return max(self.macs)


def find_keys(session: pkcs11.Session, working: Callable[[pkcs11.Object], int]) -> Keys:
    """All keys of the service; ``working`` gives the handle to use for a KEK or record-mac.

    Raises Unusable: hsm.key_missing, hsm.key_ambiguous, hsm.key_unfit, hsm.token_crowded.
    """
    with translated("C_FindObjects"):
        secrets = _by_label(session, ObjectClass.SECRET_KEY)
        privates = _by_label(session, ObjectClass.PRIVATE_KEY)
        publics = _by_label(session, ObjectClass.PUBLIC_KEY)
        keks, macs = (
            {version: _fit(_named(secrets, label)) for version, label in _versions(secrets, name).items()}
            for name in SECRET_NAMES
        )
        # Of half a pair, in the making or on its way out, nothing is used.
        whole = {label: keys for label, keys in privates.items() if label in publics}
        signing = {name: _versions(whole, name) for name in SIGNING_LABELS}
        return Keys(
            keks={version: working(key) for version, key in keks.items()},
            macs={version: working(key) for version, key in macs.items()},
            signing={
                name: {version: _signing(_named(privates, label)) for version, label in labels.items()}
                for name, labels in signing.items()
            },
            signing_public={
                name: {version: public_spki(_named(publics, label)) for version, label in labels.items()}
                for name, labels in signing.items()
            },
            kek_check_values={version: _check_value(key) for version, key in keks.items()},
            importing=(handle_of(_fit(_named(privates, IMPORT_LABEL))), public_spki(_named(publics, IMPORT_LABEL)))
            if IMPORT_LABEL in whole
            else None,
        )


def handle_of(thing: pkcs11.Session | pkcs11.Object) -> int:
    """The PKCS #11 handle, which only cryptoki.Session takes."""
    handle: int = thing.handle  # type: ignore[union-attr,assignment]  # sessions have it too, their stub doesn't
    return handle


def _by_label(session: pkcs11.Session, kind: ObjectClass) -> Labelled:
    search = session.get_objects({Attribute.CLASS: kind, Attribute.TOKEN: True})
    found = list(islice(search, limits.TOKEN_OBJECTS_MAX + 1))
    if len(found) > limits.TOKEN_OBJECTS_MAX:
        raise Unusable("hsm.token_crowded", f"the token holds more than {limits.TOKEN_OBJECTS_MAX} {kind.name}s")
    labelled: Labelled = {}
    for item in found:
        labelled.setdefault(str(item[Attribute.LABEL]), []).append(item)
    return labelled


def _named(labelled: Labelled, label: str) -> pkcs11.Object:
    found = labelled.get(label, [])
    if not found:
        raise Unusable("hsm.key_missing", f"the token has no {label}; run the provisioning")
    if len(found) > 1:
        raise Unusable("hsm.key_ambiguous", f"the token has {len(found)} objects labelled {label}")
    return found[0]


def label_of(name: str, version: int) -> str:
    """The label of a version of a long-lived key. A signing key's first has no number, as tokens had it before there
    were more."""
    if name in SIGNING_LABELS and version == 1:
        return SIGNING_LABELS[name]
    return f"keypeer/{name}/{version}"


def versions_of(name: str, labels: Collection[str]) -> dict[int, str]:
    """The label of each version of a long-lived key among ``labels``, in order."""
    prefix = f"keypeer/{name}/"
    numbered = (label for label in labels if re.fullmatch(re.escape(prefix) + "[1-9][0-9]{0,6}", label))
    versions = {int(label.removeprefix(prefix)): label for label in numbered} | {1: label_of(name, 1)}
    return {version: label for version, label in sorted(versions.items()) if label in labels}


def _versions(labelled: Labelled, name: str) -> dict[int, str]:
    """As versions_of. Raises Unusable(hsm.key_missing) when there is none."""
    found = versions_of(name, labelled)
    if not found:
        raise Unusable("hsm.key_missing", f"the token has no {label_of(name, 1)}; run the provisioning")
    return found


def _fit(key: pkcs11.Object) -> pkcs11.Object:
    """Only keys that can't leave the token may stand for the service (DESIGN §4)."""
    if key[Attribute.EXTRACTABLE] or not key[Attribute.SENSITIVE]:
        raise Unusable("hsm.key_unfit", f"{key[Attribute.LABEL]} must be sensitive and not extractable")
    return key


def _signing(key: pkcs11.Object) -> pkcs11.SignMixin:
    if not isinstance(key, pkcs11.SignMixin):
        raise Unusable("hsm.key_unfit", f"{key[Attribute.LABEL]} may not sign")
    _fit(key)
    return key


def _check_value(key: pkcs11.Object) -> bytes:
    """CKA_CHECK_VALUE (PKCS #11 v3.0 §4.10.2): the first three bytes of an all-zero block encrypted; b"" if absent."""
    try:
        return bytes(key[Attribute.CHECK_VALUE])
    except (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive, pkcs11.FunctionFailed):
        return b""


def public_spki(key: pkcs11.Object) -> bytes:
    """SubjectPublicKeyInfo DER of an EC P-256, Ed25519 or RSA public key object."""
    if key[Attribute.KEY_TYPE] == KeyType.RSA:
        return _rsa_spki(key)
    point = _unwrap_octet_string(bytes(key[Attribute.EC_POINT]))
    public: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
    if len(point) == 32:
        public = ed25519.Ed25519PublicKey.from_public_bytes(point)
    else:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _rsa_spki(key: pkcs11.Object) -> bytes:
    """SubjectPublicKeyInfo DER of an RSA public key object."""
    modulus, exponent = (
        int.from_bytes(key[attribute], "big") for attribute in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT)
    )
    public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _unwrap_octet_string(point: bytes) -> bytes:
    """CKA_EC_POINT is a DER OCTET STRING (PKCS #11 v3.0 §2.3.3); some modules give the bare point."""
    if len(point) > 2 and point[0] == 0x04 and point[1] == len(point) - 2:
        return point[2:]
    return point
