"""A host whose TPM is played in software: every signature real, no TPM process. For tables of attacks and for load
tests with thousands of hosts. What swtpm does differently is caught by the tests that use swtpm."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding

from keypeer.wire import messages as wire
from keypeer.wire.canonical import geo_tag_digest, qualifying_data, release_mac_input
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.launch import LaunchEntry, launch_digest
from keypeer.wire.profile import BOOT_PCRS, GEO_NV_ATTRIBUTES_LOCKED, GEO_NV_INDEX, GEO_NV_SIZE, LAUNCH_PCR
from kms.evidence.model import BindingEvidence, Evidence, GeoEvidence
from kms.tpm import constants as c
from tests.support import tpm_bytes as t
from tests.support.boot_log import BootLog
from tests.support.credential import open_credential

SHARED_RSA_KEYS = 4  # RSA key generation takes 50 to 200 ms; thousands of hosts share these


@cache
def shared_rsa_key(number: int, bits: int = 2048) -> rsa.RSAPrivateKey:
    """One of a few RSA keys per process."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@dataclass
class SimulatedNv:
    """The geo NV index as TPM2_NV_Certify shows it."""

    attributes: int = GEO_NV_ATTRIBUTES_LOCKED
    contents: bytes = bytes(GEO_NV_SIZE)
    index: int = GEO_NV_INDEX
    size: int = GEO_NV_SIZE
    policy: bytes = b""

    @property
    def name(self) -> bytes:
        head = t.u32(self.index) + t.u16(c.ALG_SHA256) + t.u32(self.attributes)
        return t.name(head + t.tpm2b(self.policy) + t.u16(self.size))


@dataclass(frozen=True)
class OpenedSession:
    """What the TPM gave back: the session key and the MAC key it wrapped."""

    session: bytes
    key: bytes = field(repr=False)
    mac_key: bytes = field(repr=False)


def boot_values(bank: c.Hash, label: str = "good") -> dict[int, bytes]:
    """The 24 PCRs of a machine that booted ``label``: equal labels, equal values."""
    values = {index: bank.digest(f"{label} PCR {index}".encode()) for index in range(8)}
    values |= {index: bytes(bank.size) for index in range(8, 24)}
    return values | dict.fromkeys(range(17, 23), b"\xff" * bank.size)


class SimulatedHost:
    """``ek`` and ``ak`` are P-256 by default; ``rsa_key`` numbers a shared RSA key, None makes an own one.

    ``before_signing(kind, attest)`` is the tamper hook for what only a dishonest TPM could sign; ``kind`` is quote,
    certify or nv.
    """

    def __init__(
        self,
        name: str,
        *,
        bank: str = "sha256",
        boot: str = "good",
        rsa_key: int | None = 0,
        ak: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
        ak_scheme: bytes = t.ECDSA_SHA256,
        ak_attributes: int = t.AK_ATTRIBUTES,
        binding_pcrs: tuple[int, ...] = BOOT_PCRS,
    ) -> None:
        self.name = name
        self.bank = c.BANKS[bank]
        self.boot = boot
        self.pcrs = boot_values(self.bank, boot)
        self.reset_count, self.restart_count = 1, 0
        self.tls_key = ec.generate_private_key(ec.SECP256R1())
        self.ek = ec.generate_private_key(ec.SECP256R1())
        self.ak = ak or ec.generate_private_key(ec.SECP256R1())
        self.ak_scheme, self.ak_attributes = ak_scheme, ak_attributes
        self.ak_hash = c.HASHES[int.from_bytes(ak_scheme[2:4], "big")]
        own = rsa_key is None
        self.binding_key = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048) if own else shared_rsa_key(rsa_key or 0)
        )
        self.binding_attributes = t.BINDING_ATTRIBUTES
        self.binding_scheme, self.binding_name_hash = t.NO_SCHEME, c.SHA256
        self.binding_pcrs = binding_pcrs
        self.binding_policy = self.policy_digest(binding_pcrs)
        self.nv: SimulatedNv | None = None
        self.tag: tuple[bytes, bytes] | None = None
        self.boot_log: BootLog | None = None
        self.launched: list[LaunchEntry] = []
        self.before_signing: Callable[[str, bytes], bytes] = lambda _, attest: attest
        self._session_boot: tuple[int, int] | None = None

    # ── keys and state ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def ek_public(self) -> bytes:
        """TPM2B_PUBLIC, the default template L-2."""
        public = t.ecc_public(self.ek.public_key(), t.EK_ATTRIBUTES, policy=t.EK_POLICY, symmetric=t.aes_cfb(128))
        return t.tpm2b(public)

    @property
    def ek_digest(self) -> bytes:
        return sha256(self.ek_public[2:]).digest()

    @property
    def ak_public(self) -> bytes:
        """TPMT_PUBLIC."""
        public = self.ak.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            return t.rsa_public(public, self.ak_attributes, key_scheme=self.ak_scheme)
        return t.ecc_public(public, self.ak_attributes, key_scheme=self.ak_scheme)

    @property
    def binding_public(self) -> bytes:
        """TPMT_PUBLIC."""
        return t.rsa_public(
            self.binding_key.public_key(),
            self.binding_attributes,
            policy=self.binding_policy,
            name_hash=self.binding_name_hash,
            key_scheme=self.binding_scheme,
        )

    @property
    def binding_name(self) -> bytes:
        return t.name(self.binding_public, self.binding_name_hash)

    def policy_digest(self, pcrs: tuple[int, ...]) -> bytes:
        """PolicyPCR over the present values, as TPM2_PolicyGetDigest would answer."""
        digest = sha256(b"".join(self.pcrs[pcr] for pcr in sorted(pcrs))).digest()
        selected = t.selections(t.selection(self.bank.id, pcrs))
        return sha256(bytes(32) + t.u32(c.CC_POLICY_PCR) + selected + digest).digest()

    def boot_through(self, log: BootLog) -> None:
        """Power cycle into the boot that ``log`` tells of; the log goes along with evidence from now on."""
        self.reboot()
        self.boot_log = log
        self.pcrs |= {pcr: value for pcr, value in log.pcrs(self.bank.name).items() if pcr in range(16)}
        self.make_binding_key()

    def launch(self, vm: str, config: bytes) -> None:
        """Measures a VM's start, as the agent does."""
        entry = LaunchEntry(vm=vm, config=config.hex())
        self.launched.append(entry)
        self.extend(LAUNCH_PCR, launch_digest(entry, "sha384" if self.bank.size == 48 else "sha256"))

    def extend(self, pcr: int, digest: bytes) -> None:
        """TPM2_PCR_Extend."""
        self.pcrs[pcr] = self.bank.digest(self.pcrs[pcr] + digest)

    def reboot(self, boot: str | None = None) -> None:
        """Power cycle; ``boot`` names another boot state than before."""
        self.boot = boot or self.boot
        self.reset_count, self.restart_count = self.reset_count + 1, 0
        self.pcrs = boot_values(self.bank, self.boot)
        self.boot_log, self.launched = None, []

    def resume(self) -> None:
        """Wake from suspend to RAM."""
        self.restart_count += 1

    def forget_session(self) -> None:
        """As an agent that starts anew: the next attestation certifies the binding key again."""
        self._session_boot = None

    def make_binding_key(self) -> None:
        """Binds to the present boot state. (The RSA numbers stay; the policy, and so the Name, are new.)"""
        self.binding_policy = self.policy_digest(self.binding_pcrs)

    def write_geo_tag(self, statement: bytes, signature: bytes) -> None:
        """Writes and locks the tag's digest; the tag itself is kept to be sent."""
        self.tag = (statement, signature)
        self.nv = SimulatedNv(contents=geo_tag_digest(statement))

    # ── attests ────────────────────────────────────────────────────────────────────────────────────────────────

    def sign_attest(self, kind: str, st: int, info: bytes, extra_data: bytes) -> tuple[bytes, bytes]:
        """(TPMS_ATTEST, TPMT_SIGNATURE) by the AK."""
        attest = t.attest(
            st, info, extra_data=extra_data, reset_count=self.reset_count, restart_count=self.restart_count
        )
        attest = self.before_signing(kind, attest)
        pss = self.ak_scheme[:2] == t.u16(c.ALG_RSAPSS)
        return attest, t.sign(self.ak, attest, self.ak_hash, pss=pss)

    def quote(self, qualifying: bytes, pcrs: tuple[int, ...]) -> tuple[bytes, bytes]:
        """TPM2_Quote of the host's bank."""
        digest = self.ak_hash.digest(self.values(pcrs))
        info = t.quote_info(t.selections(t.selection(self.bank.id, pcrs)), digest)
        return self.sign_attest("quote", c.ST_ATTEST_QUOTE, info, qualifying)

    def values(self, pcrs: tuple[int, ...]) -> bytes:
        """Concatenated values in ascending order."""
        return b"".join(self.pcrs[pcr] for pcr in sorted(pcrs))

    def certify_binding(self, qualifying: bytes = b"") -> BindingEvidence:
        """TPM2_Certify of the binding key."""
        attest, signature = self.sign_attest(
            "certify", c.ST_ATTEST_CERTIFY, t.certify_info(self.binding_name), qualifying
        )
        return BindingEvidence(t.tpm2b(self.binding_public), attest, signature)

    def certify_geo(self, qualifying: bytes) -> GeoEvidence | None:
        """TPM2_NV_Certify of the geo index, with the tag; None without one."""
        if self.nv is None or self.tag is None:
            return None
        info = t.nv_info(self.nv.name, 0, self.nv.contents)
        attest, signature = self.sign_attest("nv", c.ST_ATTEST_NV, info, qualifying)
        return GeoEvidence(*self.tag, attest, signature)

    def evidence(self, qualifying: bytes, pcrs: tuple[int, ...], *, with_binding: bool = True) -> Evidence:
        """All that an attestation sends."""
        attest, signature = self.quote(qualifying, pcrs)
        return Evidence(
            quote_attest=attest,
            quote_signature=signature,
            pcr_values=self.values(pcrs),
            binding_name=self.binding_name,
            geo=self.certify_geo(qualifying),
            binding=self.certify_binding() if with_binding else None,
        )

    # ── the wire ───────────────────────────────────────────────────────────────────────────────────────────────

    def enrol_request(self) -> wire.EnrolRequest:
        """EK, AK and a CSR of ``tls_key``."""
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self.tls_key, hashes.SHA256())
        return wire.EnrolRequest(
            host=self.name,
            ek_public=b64encode(self.ek_public),
            ak_public=b64encode(t.tpm2b(self.ak_public)),
            csr=csr.public_bytes(Encoding.PEM).decode(),
        )

    def activate(self, challenge: wire.EnrolChallenge) -> wire.ActivateRequest:
        """TPM2_ActivateCredential with the EK's private key."""
        credential = b64decode(challenge.credential)
        secret = open_credential(self.ek, t.name(self.ak_public), credential, b64decode(challenge.encrypted_secret))
        return wire.ActivateRequest(enrolment=challenge.enrolment, secret=b64encode(secret))

    def attest_request(self, challenge: wire.Challenge, client_certificate: bytes) -> wire.AttestRequest:
        """Answers a challenge; the binding key's certification goes along until a session was opened in this boot."""
        qualifying = qualifying_data(
            nonce=b64decode(challenge.nonce),
            host=self.name,
            client_certificate=client_certificate,
            binding_name=self.binding_name,
            purpose=challenge.purpose,
        )
        first = self._session_boot != (self.reset_count, self.restart_count)
        evidence = self.evidence(qualifying, challenge.quote_pcrs, with_binding=first)
        known = challenge.logs
        return msgspec.structs.replace(
            to_wire(evidence, challenge), boot_log=self._boot_log(known), launches=self._launches(known)
        )

    def _boot_log(self, known: wire.LogPositions) -> wire.BootLog | None:
        if self.boot_log is None:
            return None
        log = self.boot_log.bytes()
        digest = sha256(log).hexdigest()
        return wire.BootLog(sha256=digest, log=None if digest == known.boot_log else b64encode(log))

    def _launches(self, known: wire.LogPositions) -> wire.LaunchLog | None:
        start = known.launches if known.reset_count == self.reset_count else 0
        return wire.LaunchLog(start=start, entries=tuple(self.launched[start:])) if self.launched else None

    def open_session(self, grant: wire.SessionGrant) -> OpenedSession:
        """RSA_Decrypt under the PolicyPCR session; raises PermissionError as a TPM refuses when a boot PCR moved."""
        if self.policy_digest(self.binding_pcrs) != self.binding_policy:
            raise PermissionError("TPM_RC_POLICY_FAIL: a boot PCR moved since the binding key was made")
        oaep_hash = hashes.SHA256() if grant.oaep_hash == "sha256" else hashes.SHA1()  # noqa: S303 - what SoftHSM can
        oaep = padding.OAEP(padding.MGF1(oaep_hash), oaep_hash, label=None)
        key = self.binding_key.decrypt(b64decode(grant.encapsulated_key), oaep)
        mac_key = aes_key_unwrap_with_padding(key, b64decode(grant.wrapped_mac_key))
        self._session_boot = (self.reset_count, self.restart_count)
        return OpenedSession(b64decode(grant.session), key, mac_key)

    def open_release(self, session: OpenedSession, release: wire.Release, vm: str) -> bytes:
        """The VM key; raises ValueError when the MAC doesn't name ``vm`` and this host and session."""
        wrapped = b64decode(release.wrapped_key)
        expected = hmac.digest(
            session.mac_key,
            release_mac_input(
                vm=vm,
                key_version=release.version,
                generation=release.generation,
                host=self.name,
                session=session.session,
                lease_expires=release.lease_expires_at,
                grace=release.grace,
                wrapped=wrapped,
            ),
            "sha256",
        )
        if not hmac.compare_digest(expected, b64decode(release.mac)):
            raise ValueError(f"the release's MAC doesn't hold for VM {vm}")
        return aes_key_unwrap_with_padding(session.key, wrapped)


def to_wire(evidence: Evidence, challenge: wire.Challenge) -> wire.AttestRequest:
    """Evidence as the API takes it."""
    geo, binding = evidence.geo, evidence.binding
    geo_message = binding_message = None
    if geo is not None:
        tag = wire.SignedGeoTag(statement=b64encode(geo.statement), signature=b64encode(geo.tag_signature))
        geo_message = wire.GeoEvidence(tag=tag, certified=_signed(geo.attest, geo.signature))
    if binding is not None:
        certified = _signed(binding.attest, binding.signature)
        binding_message = wire.BindingEvidence(public=b64encode(binding.public), certified=certified)
    return wire.AttestRequest(
        nonce=challenge.nonce,
        purpose=challenge.purpose,
        binding_name=b64encode(evidence.binding_name),
        quote=_signed(evidence.quote_attest, evidence.quote_signature),
        pcr_values=b64encode(evidence.pcr_values),
        geo=geo_message,
        binding=binding_message,
    )


def _signed(attest: bytes, signature: bytes) -> wire.SignedAttest:
    return wire.SignedAttest(attest=b64encode(attest), signature=b64encode(signature))
