"""TPM2_MakeCredential without a TPM (TPM 2.0 Part 1 §24, Annexes B.10.4 and C.6.4).

Only the TPM that holds the EK, with the key of exactly ``ak_name`` loaded, gives the secret back
(TPM2_ActivateCredential): EK and AK are proved together or not at all.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from kms.tpm.checks import endorsement_key_flaws
from kms.tpm.constants import Hash
from kms.tpm.public import Public

_IDENTITY = b"IDENTITY\0"  # Part 1 §24.4; the terminating null is part of the label
_AES_BLOCK_BYTES = 16


def make_credential(ek: Public, ak_name: bytes, secret: bytes, random: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """(TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET) that open to ``secret`` in the EK's TPM for the key ``ak_name``.

    ``random`` gives so many secret random bytes (OAEP's padding comes from OpenSSL's own generator). ``secret`` has at
    most the EK's nameAlg digest size. Raises ValueError when ``ek`` didn't pass ``endorsement_key_flaws``.
    """
    if endorsement_key_flaws(ek):
        raise ValueError("a credential is made only for an EK whose public area was checked")
    if not 0 < len(secret) <= ek.name_hash.size:
        raise ValueError(f"a credential has 1 to {ek.name_hash.size} bytes")
    seed, encrypted_seed = _share_seed(ek, random)
    # Part 1 §24.4: encIdentity = CFB(KDFa(seed, "STORAGE", Name), IV 0, TPM2B(secret)), then HMAC over it and the Name.
    symmetric_key = kdf_a(ek.name_hash, seed, b"STORAGE", ak_name, ek.aes_bits)
    encrypted = _cfb_encrypt(symmetric_key, _sized(secret))
    mac_key = kdf_a(ek.name_hash, seed, b"INTEGRITY", b"", ek.name_hash.size * 8)
    mac = hmac.digest(mac_key, encrypted + ak_name, ek.name_hash.name)
    return _sized(_sized(mac) + encrypted), _sized(encrypted_seed)


def kdf_a(hash_: Hash, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa, Part 1 §11.4.10.2: SP 800-108 in counter mode with HMAC; ``context`` is contextU ‖ contextV."""
    kdf = KBKDFHMAC(
        algorithm=hash_.pyca,
        mode=Mode.CounterMode,
        length=bits // 8,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    )
    return kdf.derive(key)


def kdf_e(hash_: Hash, z: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """KDFe, Part 1 §11.4.10.3: SP 800-56A's one-step KDF; ``label`` ends in its null."""
    return ConcatKDFHash(hash_.pyca, bits // 8, label + party_u + party_v).derive(z)


def _share_seed(ek: Public, random: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """The seed and what carries it to the TPM."""
    key = ek.key()
    if isinstance(key, rsa.RSAPublicKey):
        # §B.10.4: OAEP with the EK's nameAlg for hash and MGF1.
        seed = random(ek.name_hash.size)
        oaep = padding.OAEP(padding.MGF1(ek.name_hash.pyca), ek.name_hash.pyca, label=_IDENTITY)
        return seed, key.encrypt(seed, oaep)
    return _share_seed_ecc(ek.name_hash, key, -(-key.curve.key_size // 8), random)


def _share_seed_ecc(
    hash_: Hash, key: ec.EllipticCurvePublicKey, size: int, random: Callable[[int], bytes]
) -> tuple[bytes, bytes]:
    # §C.6.4: one-pass ECDH; the encrypted secret is the ephemeral TPMS_ECC_POINT.
    ephemeral = _ephemeral(key.curve, size, random)
    point = ephemeral.public_key().public_numbers()
    x = point.x.to_bytes(size, "big")
    z = ephemeral.exchange(ec.ECDH(), key)
    seed = kdf_e(hash_, z, _IDENTITY, x, key.public_numbers().x.to_bytes(size, "big"), hash_.size * 8)
    return seed, _sized(x) + _sized(point.y.to_bytes(size, "big"))


def _ephemeral(curve: ec.EllipticCurve, size: int, random: Callable[[int], bytes]) -> ec.EllipticCurvePrivateKey:
    # FIPS 186-5 §A.2.1: 64 bits more than the order has make the remainder's bias negligible.
    scalar = int.from_bytes(random(size + 8), "big") % (curve.group_order - 1) + 1
    return ec.derive_private_key(scalar, curve)


def _cfb_encrypt(key: bytes, plain: bytes) -> bytes:
    """AES-CFB with a zero IV, out of single blocks: pyca's own CFB is on its way out."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - CFB's feedback is below
    out, feedback = b"", bytes(_AES_BLOCK_BYTES)
    for start in range(0, len(plain), _AES_BLOCK_BYTES):
        block = plain[start : start + _AES_BLOCK_BYTES]
        pad = encryptor.update(feedback)
        feedback = bytes(a ^ b for a, b in zip(block, pad, strict=False))
        out += feedback
    return out


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
