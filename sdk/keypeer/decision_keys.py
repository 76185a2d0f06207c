"""The key that an officer approves with, in an identity's folder or in a PKCS #11 token.

approval-key.pkcs11   TOML: module, token, object (labels), pin (file:PATH, env:NAME or prompt): a key in a token
approval-key.pem      a key apart from TLS
key.pem               the certificate's own

The first that is there is used. Python's TLS takes keys out of files only, so the key in the token is one apart, and
its public half is enrolled with the officer (``keypeer officer add --approval-key``).
"""

from __future__ import annotations

import getpass
import hashlib
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from keypeer.errors import StateError

TOKEN_FILE, OWN_FILE, TLS_FILE = "approval-key.pkcs11", "approval-key.pem", "key.pem"
_PIN_SOURCES = "pin is file:PATH, env:NAME of a variable that is set, or prompt"
_OTHERS = 0o077  # group's and others' permission bits
_EC = {  # EC_PARAMS, DER of the curve's OID (RFC 5480 §2.1.1.1): curve, hash
    bytes.fromhex("06082a8648ce3d030107"): (ec.SECP256R1(), hashlib.sha256),
    bytes.fromhex("06052b81040022"): (ec.SECP384R1(), hashlib.sha384),
}


class DecisionKey(Protocol):
    """Signs decisions."""

    def sign(self, preimage: bytes) -> bytes:
        """As keypeer.wire.proposals.decision_preimage says."""

    def public_key(self) -> bytes:
        """PEM of the public half (SPKI)."""


def open_decision_key(folder: Path) -> DecisionKey:
    """The key of the identity in ``folder``. Raises StateError when it can't be used."""
    if (folder / TOKEN_FILE).is_file():
        return TokenKey(_token_settings(folder / TOKEN_FILE))
    file = folder / OWN_FILE
    return SoftKey(file if file.is_file() else folder / TLS_FILE)


class SoftKey:
    """A private key out of a PEM file."""

    def __init__(self, file: Path) -> None:
        try:
            key = load_pem_private_key(file.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise StateError(
                "identity.key", f"{file}: {error}", "is it a private key in PEM, without a password?"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey):
            raise StateError("identity.key", f"{file} holds a {type(key).__name__}", "use EC, RSA or Ed25519")
        self._key = key

    def sign(self, preimage: bytes) -> bytes:
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            digest = hashes.SHA384() if isinstance(self._key.curve, ec.SECP384R1) else hashes.SHA256()
            return self._key.sign(preimage, ec.ECDSA(digest))
        if isinstance(self._key, rsa.RSAPrivateKey):
            scheme = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            return self._key.sign(preimage, scheme, hashes.SHA256())
        return self._key.sign(preimage)

    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """approval-key.pkcs11. ``token`` and ``object`` are labels; ``pin`` names where the PIN comes from."""

    module: str
    token: str
    object: str
    pin: str = "prompt"


def _token_settings(file: Path) -> TokenSettings:
    try:
        return msgspec.convert(tomllib.loads(file.read_text()), TokenSettings)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise StateError("identity.token", f"{file}: {error}", "module, token, object and pin, in TOML") from None


class TokenKey:
    """An EC or RSA key that stays in its token. Each use logs in anew."""

    def __init__(self, settings: TokenSettings) -> None:
        self._settings = settings

    def sign(self, preimage: bytes) -> bytes:
        return self._in_token(lambda session: self._signature(session, preimage))

    def public_key(self) -> bytes:
        return self._in_token(self._public)

    def make(self) -> None:
        """Makes the key pair, EC P-256, in the token. Raises StateError when there is one of this label."""

        def generate(session: Any) -> bytes:
            import pkcs11

            label = self._settings.object
            if any(True for _ in session.get_objects({pkcs11.Attribute.LABEL: label})):
                raise StateError("identity.token", f"the token has an object {label!r} already", "name another one")
            curve = session.create_domain_parameters(
                pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: next(iter(_EC))}, local=True
            )
            curve.generate_keypair(store=True, label=label, id=hashlib.sha256(label.encode()).digest()[:8])
            return b""

        self._in_token(generate, write=True)

    def _in_token(self, work: Callable[[Any], bytes], *, write: bool = False) -> bytes:
        try:
            import pkcs11
        except ImportError:
            hint = "install keypeer with the extra token: pip install 'keypeer[token]'"
            raise StateError("identity.token", "python-pkcs11 isn't installed", hint) from None
        wanted = self._settings
        try:
            token = pkcs11.lib(wanted.module).get_token(token_label=wanted.token)
            with token.open(rw=write, user_pin=_pin(wanted)) as session:
                result: bytes = work(session)
                return result
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            found = f"token {wanted.token!r}, object {wanted.object!r}: {str(error) or type(error).__name__}"
            raise StateError(
                "identity.token", found, "are module, labels and PIN right, and is the token there?"
            ) from None

    def _signature(self, session: Any, preimage: bytes) -> bytes:
        import pkcs11

        key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=self._settings.object)
        if key.key_type == pkcs11.KeyType.RSA:
            return bytes(key.sign(preimage, mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS))
        _, digest = self._curve(key)
        raw = bytes(key.sign(digest(preimage).digest(), mechanism=pkcs11.Mechanism.ECDSA))  # r ‖ s (PKCS #11 §2.3.1)
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    def _public(self, session: Any) -> bytes:
        import pkcs11

        key = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, label=self._settings.object)
        public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
        if key.key_type == pkcs11.KeyType.RSA:
            exponent, modulus = key[pkcs11.Attribute.PUBLIC_EXPONENT], key[pkcs11.Attribute.MODULUS]
            numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
            public = numbers.public_key()
        else:
            curve, _ = self._curve(key)
            point = bytes(key[pkcs11.Attribute.EC_POINT])
            # A DER OCTET STRING (PKCS #11 v3.0 §2.3.3); some modules give the bare point.
            bare = 1 + 2 * ((curve.key_size + 7) // 8)
            public = ec.EllipticCurvePublicKey.from_encoded_point(curve, point[-bare:])
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def _curve(self, key: Any) -> Any:
        import pkcs11

        found = _EC.get(bytes(key[pkcs11.Attribute.EC_PARAMS])) if key.key_type == pkcs11.KeyType.EC else None
        if found is None:
            raise StateError("identity.token", f"object {self._settings.object!r} is no P-256, P-384 or RSA key")
        return found


def _pin(settings: TokenSettings) -> str:
    kind, _, name = settings.pin.partition(":")
    if kind == "prompt" and not name:
        return getpass.getpass(f"PIN of token {settings.token}: ")
    if kind == "env" and name in os.environ:
        return os.environ[name]
    if kind != "file" or not name:  # what is there may be the PIN itself: it isn't told
        raise StateError("identity.pin", f"the PIN of token {settings.token} has no source", _PIN_SOURCES)
    try:
        with Path(name).open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise StateError("identity.pin", f"{name} is open to group or others", f"chmod 600 {name}")
            return file.read(256).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StateError("identity.pin", f"{name}: {error}", _PIN_SOURCES) from None
