"""IMA signatures (security/integrity/digsig_asymmetric.c, integrity.h): signature_v2_hdr over a file's digest.

    u8 type (3: digest, 6: fs-verity digest) ‖ u8 version (2 or 3) ‖ u8 hash_algo ‖ u32 BE key id ‖ u16 BE length
    ‖ signature

Version 2 signs the file's digest itself; version 3 the hash of ima_file_id = u8 type ‖ u8 hash_algo ‖ digest.
"""

from __future__ import annotations

from struct import Struct

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from kms.errors import BadRequest

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_HEADER = Struct(">BBBIH")
_TYPES = frozenset((3, 6))  # EVM_IMA_XATTR_DIGSIG, IMA_VERITY_DIGSIG
# include/uapi/linux/hash_info.h; SHA-1 is left out
_HASHES: dict[int, tuple[bytes, hashes.HashAlgorithm]] = {
    4: (b"sha256", hashes.SHA256()),
    5: (b"sha384", hashes.SHA384()),
    6: (b"sha512", hashes.SHA512()),
}
_RSA_BITS_MIN = 2048  # bits; NIST SP 800-131A


def load_signer(name: str, pem: str) -> PublicKey:
    """A policy's signer key; raises BadRequest ``runtime.key``."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadRequest("runtime.key", f"key {name}: {error}", hint="give a PEM public key, RSA or EC") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS_MIN:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key
    raise BadRequest("runtime.key", f"key {name} is neither EC nor RSA of 2048 bits or more", hint="use such a key")


def is_signed(signature: bytes, algorithm: bytes, digest: bytes, key: PublicKey) -> bool:
    """Whether ``signature`` (security.ima's contents) is ``key``'s over the file digest ``algorithm:digest``."""
    if len(signature) <= _HEADER.size:
        return False
    kind, version, number, _key_id, length = _HEADER.unpack_from(signature)
    body = signature[_HEADER.size :]
    known = _HASHES.get(number)
    if kind not in _TYPES or known is None or length != len(body) or known[0] != algorithm:
        return False
    hash_ = known[1]
    if version == 3:
        hasher = hashes.Hash(hash_)
        hasher.update(bytes((kind, number)) + digest)
        digest = hasher.finalize()
    elif version != 2 or kind != 3:
        return False
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(body, digest, padding.PKCS1v15(), Prehashed(hash_))
        else:
            key.verify(body, digest, ec.ECDSA(Prehashed(hash_)))
    except (InvalidSignature, ValueError):
        return False
    return True
