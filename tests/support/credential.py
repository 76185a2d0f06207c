"""TPM2_ActivateCredential played in software."""

from __future__ import annotations

import hmac
from hashlib import sha256

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.support import tpm_bytes as t


def open_credential(
    ek: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, ak_name: bytes, id_object: bytes, encrypted_secret: bytes
) -> bytes:
    """TPM2_ActivateCredential in software (SHA-256, AES-128): raises ValueError when the HMAC doesn't hold.

    Written from the standard apart from kms.tpm.credential, with HMAC and SHA-256 alone.
    """
    sealed = encrypted_secret[2:]
    if isinstance(ek, rsa.RSAPrivateKey):
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=b"IDENTITY\0")
        seed = ek.decrypt(sealed, oaep)
    else:
        x, y = sealed[2:34], sealed[36:68]
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ek.curve)
        z = ek.exchange(ec.ECDH(), numbers.public_key())
        own = ek.public_key().public_numbers().x.to_bytes(32, "big")
        seed = sha256(t.u32(1) + z + b"IDENTITY\0" + x + own).digest()
    mac, encrypted = id_object[4:36], id_object[36:]
    mac_key = hmac.digest(seed, t.u32(1) + b"INTEGRITY\0" + t.u32(256), "sha256")
    if not hmac.compare_digest(hmac.digest(mac_key, encrypted + ak_name, "sha256"), mac):
        raise ValueError("TPM_RC_INTEGRITY: the credential is for another key")
    key = hmac.digest(seed, t.u32(1) + b"STORAGE\0" + ak_name + t.u32(128), "sha256")[:16]
    plain = _cfb_decrypt(key, encrypted)
    return plain[2 : 2 + int.from_bytes(plain[:2], "big")]


def _cfb_decrypt(key: bytes, data: bytes) -> bytes:
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - CFB out of single blocks
    feedback, out = bytes(16), b""
    for start in range(0, len(data), 16):
        block = data[start : start + 16]
        out += bytes(a ^ b for a, b in zip(block, blocks.update(feedback), strict=False))
        feedback = block
    return out
