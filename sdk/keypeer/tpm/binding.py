"""The binding key: RSA-2048, resident in the TPM, usable only while the boot PCRs are what they were at its making."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from keypeer.locked import LockedBytes
from keypeer.tpm.attestation import selection
from keypeer.tpm.device import Tpm, translated
from keypeer.wire.profile import BINDING_KEY_BITS

_CC_POLICY_PCR = 0x0000017F  # TPM 2.0 Part 2 §6.5.2
_BANKS = {"sha256": 0x000B, "sha384": 0x000C}  # TPM 2.0 Part 2 §6.3
_SELECT_BYTES = 3  # bytes; 24 PCRs


@dataclass(frozen=True)
class BindingBlob:
    """A binding key outside the TPM: TPM2B_PUBLIC, and TPM2B_PRIVATE, which only its TPM can load."""

    public: bytes
    private: bytes

    @property
    def name(self) -> bytes:
        """The key's Name: nameAlg ‖ SHA-256 of its TPMT_PUBLIC (TPM 2.0 Part 1 §16)."""
        return b"\x00\x0b" + hashlib.sha256(self.public[2:]).digest()

    def bound_to(self, policy: bytes) -> bool:
        """Whether ``policy`` (32 bytes) is the key's authPolicy: a TPM2B_DIGEST after size, type, nameAlg and
        attributes (TPM2B_PUBLIC, TPM 2.0 Part 2 §12.2.4 and §12.2.5)."""
        return self.public[10 : 12 + len(policy)] == len(policy).to_bytes(2, "big") + policy


def pcr_policy(bank: str, values: Mapping[int, bytes]) -> bytes:
    """The authPolicy of TPM2_PolicyPCR over ``values`` (TPM 2.0 Part 3 §23.7)."""
    bitmap = sum(1 << pcr for pcr in values).to_bytes(_SELECT_BYTES, "little")
    selected = b"\x00\x00\x00\x01" + _BANKS[bank].to_bytes(2, "big") + bytes([_SELECT_BYTES]) + bitmap
    digest = hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).digest()
    return hashlib.sha256(bytes(32) + _CC_POLICY_PCR.to_bytes(4, "big") + selected + digest).digest()


@contextmanager
def storage_key(tpm: Tpm) -> Iterator[Any]:
    """The owner hierarchy's P-256 storage primary, loaded for the block. Made anew each time, always the same key."""
    from tpm2_pytss import ESYS_TR, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMA_OBJECT

    attributes = (
        TPMA_OBJECT.FIXEDTPM
        | TPMA_OBJECT.FIXEDPARENT
        | TPMA_OBJECT.SENSITIVEDATAORIGIN
        | TPMA_OBJECT.USERWITHAUTH
        | TPMA_OBJECT.NODA
        | TPMA_OBJECT.RESTRICTED
        | TPMA_OBJECT.DECRYPT
    )
    template = TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=attributes)
    with translated():
        handle, *_ = tpm.esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
    with tpm.loaded(handle):
        yield handle


def create_binding_key(tpm: Tpm, policy: bytes) -> BindingBlob:
    """A new binding key under ``policy``. Takes a real TPM seconds: keep the blob."""
    from tpm2_pytss import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMA_OBJECT

    # No USERWITHAUTH: only the policy opens it.
    attributes = (
        TPMA_OBJECT.FIXEDTPM
        | TPMA_OBJECT.FIXEDPARENT
        | TPMA_OBJECT.SENSITIVEDATAORIGIN
        | TPMA_OBJECT.NODA
        | TPMA_OBJECT.DECRYPT
    )
    template = TPM2B_PUBLIC.parse(f"rsa{BINDING_KEY_BITS}", objectAttributes=attributes, authPolicy=policy)
    with storage_key(tpm) as parent, translated():
        private, public, *_ = tpm.esys.create(parent, TPM2B_SENSITIVE_CREATE(), template)
        return BindingBlob(public.marshal(), private.marshal())


@contextmanager
def loaded_binding_key(tpm: Tpm, parent: Any, blob: BindingBlob) -> Iterator[Any]:
    """The key in the TPM for the length of the block. Raises TpmError ``tpm.integrity`` for another TPM's blob."""
    from tpm2_pytss import TPM2B_PRIVATE, TPM2B_PUBLIC

    with translated():
        private, _ = TPM2B_PRIVATE.unmarshal(blob.private)
        public, _ = TPM2B_PUBLIC.unmarshal(blob.public)
        handle = tpm.esys.load(parent, private, public)
    with tpm.loaded(handle):
        yield handle


def rsa_decrypt(
    tpm: Tpm,
    blob: BindingBlob,
    ciphertext: bytes,
    *,
    oaep_hash: Literal["sha1", "sha256"],
    bank: str,
    pcrs: Iterable[int],
) -> LockedBytes:
    """RSA-OAEP (empty label) inside the TPM, into locked memory. Raises TpmError ``tpm.policy`` when a boot PCR moved.

    The session is salted by the storage key and encrypts the answer's parameter, which keeps the plaintext from who
    listens between TPM and processor (TPM 2.0 Part 1 §21)."""
    from tpm2_pytss import TPM2B_PUBLIC_KEY_RSA, TPMA_SESSION

    scheme = _oaep(oaep_hash)
    with (
        storage_key(tpm) as parent,
        _policy_session(tpm, parent) as session,
        loaded_binding_key(tpm, parent, blob) as key,
        translated(),
    ):
        tpm.esys.trsess_set_attributes(session, TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION)
        tpm.esys.policy_pcr(session, b"", selection(bank, pcrs))
        opened = tpm.esys.rsa_decrypt(key, TPM2B_PUBLIC_KEY_RSA(ciphertext), scheme, b"", session1=session)
        return _moved(opened)


@contextmanager
def _policy_session(tpm: Tpm, salt_key: Any) -> Iterator[Any]:
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPMT_SYM_DEF, TPMU_SYM_KEY_BITS, TPMU_SYM_MODE

    aes = TPMT_SYM_DEF(algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB))
    with translated():
        session = tpm.esys.start_auth_session(salt_key, ESYS_TR.NONE, TPM2_SE.POLICY, aes, TPM2_ALG.SHA256)
    with tpm.loaded(session):
        yield session


def _oaep(oaep_hash: str) -> Any:
    from tpm2_pytss import TPM2_ALG, TPMT_RSA_DECRYPT

    scheme = TPMT_RSA_DECRYPT(scheme=TPM2_ALG.OAEP)
    scheme.details.oaep.hashAlg = TPM2_ALG.SHA256 if oaep_hash == "sha256" else TPM2_ALG.SHA1
    return scheme


def _moved(opened: Any) -> LockedBytes:
    """A TPM2B_PUBLIC_KEY_RSA's bytes, moved out of the TSS' memory, which is freed without being wiped."""
    from tpm2_pytss import ffi

    buffer = ffi.buffer(opened._cdata.buffer)
    size = int(opened.size)
    secret = LockedBytes(size)
    secret.writable[:] = memoryview(buffer)[:size]
    memoryview(buffer)[:] = bytes(len(buffer))
    return secret
