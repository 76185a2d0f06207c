"""The recovery key: an RSA key pair whose private half rests under a secret that officers hold in shares (SLIP-0039).

``recovery.enc`` is JSON: AES-256-GCM (random nonce; associated data: the public key's SHA-256) of the private key in
PKCS #8 under the shared secret. The words carry their own checksum, and say to which secret they belong.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import shamir_mnemonic
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kms.errors import BadRequest

FORMAT = "keypeer-recovery/1"
SECRET_BYTES = 32
NONCE_BYTES = 12


class SealedKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``recovery.enc``. ``public_key_sha256`` in hex, ``nonce`` and ``sealed`` in base64."""

    format: str = FORMAT
    public_key_sha256: str
    threshold: int
    shares: int
    nonce: str
    sealed: str


@dataclass(frozen=True, slots=True, repr=False)
class RecoveryKey:
    """What `keypeer recovery create` makes: PEM of the public half, ``recovery.enc``, and each share's words."""

    public_pem: bytes
    sealed: bytes
    words: tuple[str, ...]


def create(private: rsa.RSAPrivateKey, secret: bytes, nonce: bytes, *, shares: int, threshold: int) -> RecoveryKey:
    """``secret`` of 32 and ``nonce`` of 12 random bytes, neither used again."""
    public = private.public_key()
    digest = hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    der = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    sealed = SealedKey(
        public_key_sha256=digest,
        threshold=threshold,
        shares=shares,
        nonce=base64.b64encode(nonce).decode(),
        sealed=base64.b64encode(AESGCM(secret).encrypt(nonce, der, digest.encode())).decode(),
    )
    (words,) = shamir_mnemonic.generate_mnemonics(1, [(threshold, shares)], secret, iteration_exponent=0)
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return RecoveryKey(pem, msgspec.json.encode(sealed), tuple(words))


def read(sealed: bytes) -> SealedKey:
    """``recovery.enc``. Raises BadRequest ``recovery.file``."""
    try:
        return msgspec.json.decode(sealed, type=SealedKey)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest("recovery.file", f"recovery.enc doesn't read: {error}", hint="take it from a backup") from None


def open_private(key: SealedKey, words: Sequence[str]) -> bytes:
    """The private half in PKCS #8 (DER), out of as many different shares as the threshold says. Raises BadRequest
    ``recovery.shares``."""
    mnemonics = list(dict.fromkeys(" ".join(each.split()) for each in words))
    try:
        secret = shamir_mnemonic.combine_mnemonics(mnemonics)
    except shamir_mnemonic.MnemonicError as error:
        raise _refused(key, len(mnemonics), str(error)) from None
    try:
        nonce, sealed = base64.b64decode(key.nonce), base64.b64decode(key.sealed)
        return AESGCM(secret).decrypt(nonce, sealed, key.public_key_sha256.encode())
    except (InvalidTag, ValueError):
        raise _refused(key, len(mnemonics), "they open another recovery key than this one") from None


def _refused(key: SealedKey, given: int, why: str) -> BadRequest:
    return BadRequest(
        "recovery.shares",
        f"{given} different shares were given: {why}",
        hint=f"{key.threshold} of the {key.shares} shares of recovery key {key.public_key_sha256[:16]} are needed",
    )
