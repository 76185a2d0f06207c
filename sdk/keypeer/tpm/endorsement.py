"""The EK: which TPM this is, and its maker's word for it (TCG EK Credential Profile 2.5)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from keypeer import limits
from keypeer.tpm.device import Tpm, translated
from keypeer.tpm.nv import nv_indices, read_nv

# §B.3 and §B.4. Low-range templates have adminWithPolicy and a policy, high-range ones userWithAuth beside it.
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_SHA256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
_POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
# §2.2.1.5.2: the issuers' certificates, DER after DER over as many indices as it takes.
_CHAIN_INDICES = range(0x01C00100, 0x01C00200)


@dataclass(frozen=True)
class EkTemplate:
    """A default EK: its certificate's NV index (§2.2.1.4) and what makes the key."""

    name: str
    certificate_index: int
    algorithm: str
    policy: bytes
    low_range: bool
    unique_bytes: int  # low-range templates are made with this many zeros as ``unique`` (a coordinate, or the modulus)
    name_hash: str = "sha256"


# In order of preference. RSA-2048 first: nearly every TPM 2.0 made so far has it.
TEMPLATES = (
    EkTemplate("L-1", 0x01C00002, "rsa2048:aes128cfb", _POLICY_A, True, 256),
    EkTemplate("L-2", 0x01C0000A, "ecc256:aes128cfb", _POLICY_A, True, 32),
    EkTemplate("H-1", 0x01C00012, "rsa2048:aes128cfb", _POLICY_B_SHA256, False, 0),
    EkTemplate("H-2", 0x01C00014, "ecc256:aes128cfb", _POLICY_B_SHA256, False, 0),
    EkTemplate("H-3", 0x01C00016, "ecc384:aes256cfb", _POLICY_B_SHA384, False, 0, "sha384"),
)


def ek_template(tpm: Tpm) -> EkTemplate:
    """The first template that the TPM's maker certified; L-1 where none is."""
    present = nv_indices(tpm)
    return next((template for template in TEMPLATES if template.certificate_index in present), TEMPLATES[0])


def ek_public(tpm: Tpm) -> bytes:
    """The EK's TPM2B_PUBLIC."""
    with loaded_ek(tpm, ek_template(tpm)) as (_, public):
        return public


@contextmanager
def loaded_ek(tpm: Tpm, template: EkTemplate) -> Iterator[tuple[Any, bytes]]:
    """The EK, loaded for the block, and its TPM2B_PUBLIC. The same TPM always makes the same key."""
    from tpm2_pytss import ESYS_TR, TPM2B_SENSITIVE_CREATE

    with translated():
        handle, public, *_ = tpm.esys.create_primary(
            TPM2B_SENSITIVE_CREATE(), _public_template(template), ESYS_TR.ENDORSEMENT
        )
        with tpm.loaded(handle):
            yield handle, public.marshal()


def _public_template(template: EkTemplate) -> Any:
    from tpm2_pytss import TPM2_ALG, TPM2B_ECC_PARAMETER, TPM2B_PUBLIC, TPM2B_PUBLIC_KEY_RSA, TPMA_OBJECT

    attributes = (
        TPMA_OBJECT.FIXEDTPM
        | TPMA_OBJECT.FIXEDPARENT
        | TPMA_OBJECT.SENSITIVEDATAORIGIN
        | TPMA_OBJECT.ADMINWITHPOLICY
        | TPMA_OBJECT.RESTRICTED
        | TPMA_OBJECT.DECRYPT
    )
    if not template.low_range:
        attributes |= TPMA_OBJECT.USERWITHAUTH
    name_hash = TPM2_ALG.SHA256 if template.name_hash == "sha256" else TPM2_ALG.SHA384
    public = TPM2B_PUBLIC.parse(
        template.algorithm, objectAttributes=attributes, nameAlg=name_hash, authPolicy=template.policy
    )
    zeros = bytes(template.unique_bytes)
    if template.algorithm.startswith("rsa"):
        public.publicArea.unique.rsa = TPM2B_PUBLIC_KEY_RSA(zeros)
    else:
        public.publicArea.unique.ecc.x = TPM2B_ECC_PARAMETER(zeros)
        public.publicArea.unique.ecc.y = TPM2B_ECC_PARAMETER(zeros)
    return public


def ek_certificates(tpm: Tpm) -> tuple[bytes, ...]:
    """The EK's certificate as the maker stored it (some fill the index up) and then its issuers', at most four in all;
    empty when the TPM holds none."""
    leaf = read_nv(tpm, ek_template(tpm).certificate_index)
    if leaf is None:
        return ()
    present = nv_indices(tpm)
    chain = b"".join(read_nv(tpm, index) or b"" for index in _CHAIN_INDICES if index in present)
    return (leaf, *split_der(chain)[: limits.EK_CERTIFICATES_MAX - 1])


def split_der(data: bytes) -> tuple[bytes, ...]:
    """The DER SEQUENCEs at the start of ``data``; what follows the last whole one is fill."""
    found = []
    # X.690 §8.1.3: certificates are SEQUENCEs whose length takes one or two more octets.
    while data[:1] == b"\x30" and data[1:2] in (b"\x81", b"\x82"):
        octets = data[1] & 0x7F
        end = 2 + octets + int.from_bytes(data[2 : 2 + octets], "big")
        if end > len(data):
            break
        found.append(data[:end])
        data = data[end:]
    return tuple(found)


def activate_credential(tpm: Tpm, ak: Any, credential: bytes, encrypted_secret: bytes) -> bytes:
    """TPM2_ActivateCredential with AK and EK (TPM 2.0 Part 3 §12.5): the secret that only this TPM can open.
    ``credential`` is a TPM2B_ID_OBJECT, ``encrypted_secret`` a TPM2B_ENCRYPTED_SECRET."""
    from tpm2_pytss import ESYS_TR, TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT

    template = ek_template(tpm)
    with loaded_ek(tpm, template) as (ek, _), translated(), _ek_session(tpm, template) as session:
        blob, _ = TPM2B_ID_OBJECT.unmarshal(credential)
        secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
        opened = tpm.esys.activate_credential(ak, ek, blob, secret, session1=ESYS_TR.PASSWORD, session2=session)
        return bytes(opened)


@contextmanager
def _ek_session(tpm: Tpm, template: EkTemplate) -> Iterator[Any]:
    """What authorises the EK's use: low-range templates want PolicySecret of the endorsement hierarchy, high-range ones
    have userWithAuth and an empty password (§B.2)."""
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPMT_SYM_DEF

    if not template.low_range:
        yield ESYS_TR.PASSWORD
        return
    session = tpm.esys.start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
    )
    with tpm.loaded(session):
        tpm.esys.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
        yield session
