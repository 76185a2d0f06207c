"""TPMT_SIGNATURE (TPM 2.0 Part 2 §11.3.4) and its verification under a fixed scheme."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from kms import limits
from kms.tpm.constants import ALG_ECDSA, ALG_RSAPSS, ALG_RSASSA, HASHES, Hash, alg_name
from kms.tpm.public import PublicKey
from kms.tpm.reader import Reader

_STRUCTURE = "TPMT_SIGNATURE"


class Signature(NamedTuple):
    """``value`` as pyca takes it: PKCS #1's bytes, or the DER of (r, s)."""

    alg: int
    hash: int
    value: bytes


def parse_signature(data: bytes) -> Signature:
    """A TPMT_SIGNATURE of RSASSA, RSAPSS or ECDSA."""
    reader = Reader(data, _STRUCTURE)
    alg = reader.u16("sigAlg")
    if alg not in (ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA):
        raise reader.error("sigAlg", f"is {alg_name(alg)}; RSASSA, RSAPSS and ECDSA are accepted")
    hash_alg = reader.u16("hash")
    if alg == ALG_ECDSA:
        r = int.from_bytes(reader.sized(limits.TPM_ECC_BYTES_MAX, "signatureR"), "big")
        s = int.from_bytes(reader.sized(limits.TPM_ECC_BYTES_MAX, "signatureS"), "big")
        value = encode_dss_signature(r, s)
    else:
        value = reader.sized(limits.TPM_RSA_BYTES_MAX, "sig")
    reader.finish()
    return Signature(alg, hash_alg, value)


class SignatureScheme(NamedTuple):
    """How a key signs, taken from its public area and never from a signature."""

    alg: int
    hash: Hash

    def flaw(self, key: PublicKey, message: bytes, signature: Signature) -> str | None:
        """What is wrong with ``signature`` over ``message``, in words; None when it holds."""
        if (signature.alg, signature.hash) != (self.alg, self.hash.id):
            used = f"{alg_name(signature.alg)} with {alg_name(signature.hash)}"
            return f"the signature says {used}, the key signs {alg_name(self.alg)} with {self.hash.name}"
        try:
            self._verify(key, message, signature.value)
        except InvalidSignature:
            return "the signature doesn't verify"
        return None

    def _verify(self, key: PublicKey, message: bytes, value: bytes) -> None:
        # The scheme is of the key's own public area, so it tells the key's type; isinstance would cost a microsecond.
        if self.alg == ALG_ECDSA:
            cast("ec.EllipticCurvePublicKey", key).verify(value, message, _ecdsa(self.hash.id))
        elif self.alg == ALG_RSASSA:
            cast("rsa.RSAPublicKey", key).verify(value, message, padding.PKCS1v15(), self.hash.pyca)
        else:
            # Part 1 §B.7: the salt is as long as the hash under FIPS, else as long as fits.
            pss = padding.PSS(mgf=padding.MGF1(self.hash.pyca), salt_length=padding.PSS.AUTO)
            cast("rsa.RSAPublicKey", key).verify(value, message, pss, self.hash.pyca)


@cache
def _ecdsa(hash_alg: int) -> ec.ECDSA:
    return ec.ECDSA(HASHES[hash_alg].pyca)
