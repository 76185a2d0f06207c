"""The AK, and what it says: quotes and certifications."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keypeer import limits
from keypeer.errors import TpmError
from keypeer.tpm.device import Tpm, translated
from keypeer.wire.encoding import b64encode
from keypeer.wire.messages import SignedAttest

# Owner range of persistent handles is 0x81000000–0x817FFFFF (TCG Registry of Reserved TPM 2.0 Handles §2.3.1).
AK_HANDLE = 0x81016B70
_DIGEST_BYTES = {"sha256": 32, "sha384": 48}


@dataclass(frozen=True)
class Boot:
    """TPMS_CLOCK_INFO's counters: which boot, and which wake since (TPM 2.0 Part 2 §10.11.6)."""

    reset_count: int
    restart_count: int


@dataclass(frozen=True)
class Quote:
    """TPM2_Quote with the values that it is over, concatenated in ascending order."""

    signed: SignedAttest
    values: bytes
    boot: Boot


def attestation_key(tpm: Tpm) -> tuple[Any, bytes]:
    """The AK's handle and its TPM2B_PUBLIC: P-256, restricted, in the endorsement hierarchy (elsewhere a TPM obfuscates
    its counters), made once and kept persistent, because making one takes a real TPM up to half a second."""
    from tpm2_pytss import ESYS_TR, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMA_OBJECT

    attributes = (
        TPMA_OBJECT.FIXEDTPM
        | TPMA_OBJECT.FIXEDPARENT
        | TPMA_OBJECT.SENSITIVEDATAORIGIN
        | TPMA_OBJECT.USERWITHAUTH
        | TPMA_OBJECT.NODA
        | TPMA_OBJECT.RESTRICTED
        | TPMA_OBJECT.SIGN_ENCRYPT
    )
    with translated():
        if AK_HANDLE in tpm.handles(AK_HANDLE):
            handle = tpm.esys.tr_from_tpmpublic(AK_HANDLE)
            public, *_ = tpm.esys.read_public(handle)
            return handle, public.marshal()
        template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=attributes)
        transient, public, *_ = tpm.esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
        with tpm.loaded(transient):
            return tpm.esys.evict_control(ESYS_TR.OWNER, transient, AK_HANDLE), public.marshal()


def selection(bank: str, pcrs: Iterable[int]) -> str:
    """A PCR selection as tpm2-pytss reads it."""
    return f"{bank}:{','.join(map(str, sorted(pcrs)))}"


def pcr_read(tpm: Tpm, bank: str, pcrs: Iterable[int]) -> dict[int, bytes]:
    """The PCRs' values, in ascending order. A TPM answers at most eight a command. Raises TpmError ``tpm.bank``."""
    wanted = sorted(pcrs)
    values: dict[int, bytes] = {}
    for start in range(0, len(wanted), limits.PCRS_A_READ_MAX):
        part = wanted[start : start + limits.PCRS_A_READ_MAX]
        with translated():
            _, _, digests = tpm.esys.pcr_read(selection(bank, part))
            read = [bytes(digest) for digest in digests]
        if len(read) != len(part):
            raise TpmError("tpm.bank", f"the TPM has no {bank} bank", f"allocate it: tpm2_pcrallocate {bank}:all")
        values.update(zip(part, read, strict=True))
    return values


def pcr_extend(tpm: Tpm, bank: str, pcr: int, digest: bytes) -> None:
    """TPM2_PCR_Extend of one bank."""
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

    algorithm = TPM2_ALG.SHA256 if bank == "sha256" else TPM2_ALG.SHA384
    if len(digest) != _DIGEST_BYTES[bank]:
        raise TpmError("tpm.digest", f"{len(digest)} bytes are no {bank} digest")
    with translated():
        tpm.esys.pcr_extend(
            ESYS_TR(pcr), TPML_DIGEST_VALUES([TPMT_HA(hashAlg=algorithm, digest=TPMU_HA(**{bank: digest}))])
        )


def quote(tpm: Tpm, ak: Any, qualifying: bytes, bank: str, pcrs: Iterable[int]) -> Quote:
    """TPM2_Quote and the quoted values. Reading and quoting aren't one command: when a PCR moved in between, both are
    done again. Raises TpmError ``tpm.busy`` when they never settle."""
    wanted = sorted(pcrs)
    for _ in range(limits.QUOTE_ATTEMPTS_MAX):
        values = b"".join(pcr_read(tpm, bank, wanted).values())
        with translated():
            attest, signature = tpm.esys.quote(ak, selection(bank, wanted), qualifying)
            attested, signed = bytes(attest), _signed(attest, signature)
        # TPMS_QUOTE_INFO ends the structure with pcrDigest (TPM 2.0 Part 2 §10.12.4), by the AK's hash: SHA-256.
        if attested.endswith(hashlib.sha256(values).digest()):
            return Quote(signed, values, boot_of(attested))
    raise TpmError("tpm.busy", "PCRs kept moving while they were quoted", "try again when the host is calmer")


def certify(tpm: Tpm, ak: Any, key: Any, qualifying: bytes) -> SignedAttest:
    """TPM2_Certify of a loaded key."""
    with translated():
        attest, signature = tpm.esys.certify(key, ak, qualifying, _aks_own_scheme())
        return _signed(attest, signature)


def nv_certify(tpm: Tpm, ak: Any, index: int, size: int, qualifying: bytes) -> SignedAttest:
    """TPM2_NV_Certify of the whole of an NV index, by its own (empty) authorisation. Raises TpmError ``tpm.handle``
    when there is no such index."""
    with translated():
        handle = tpm.esys.tr_from_tpmpublic(index)
        attest, signature = tpm.esys.nv_certify(ak, handle, qualifying, _aks_own_scheme(), size, auth_handle=handle)
        return _signed(attest, signature)


def boot_of(attest: bytes) -> Boot:
    """The counters in a TPMS_ATTEST (TPM 2.0 Part 2 §10.12.8): magic, type, qualifiedSigner, extraData, then
    clockInfo = clock (u64), resetCount (u32), restartCount (u32), safe."""
    at = 6
    for _ in range(2):
        at += 2 + int.from_bytes(attest[at : at + 2], "big")
    at += 8
    return Boot(int.from_bytes(attest[at : at + 4], "big"), int.from_bytes(attest[at + 4 : at + 8], "big"))


def boot_now(tpm: Tpm) -> Boot:
    """The counters as TPM2_ReadClock tells them; unsigned, for the host's own use."""
    with translated():
        now = tpm.esys.read_clock()
        clock = now.clockInfo
        return Boot(int(clock.resetCount), int(clock.restartCount))


def _aks_own_scheme() -> Any:
    from tpm2_pytss import TPM2_ALG, TPMT_SIG_SCHEME

    return TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)


def _signed(attest: Any, signature: Any) -> SignedAttest:
    return SignedAttest(attest=b64encode(bytes(attest)), signature=b64encode(signature.marshal()))
