"""The first certificates: the CA's own, the service's, and one for each staff role."""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kms import limits, pki
from kms.audit.record import AuditRecord, encode_record
from kms.cli.files import write_private
from kms.cli.steps import Done
from kms.custody.port import Custody
from kms.domain import Principal, Role
from kms.errors import BadRequest, KeypeerError, NotFound
from kms.records import PRINCIPALS, Loaded, Records
from kms.settings import Home
from kms.store.port import Check, Commit, Committed, Store

RENEW_BEFORE_S = 30 * 86400  # seconds left below which a certificate is issued anew
STAFF: tuple[Role, ...] = ("officer", "operator", "auditor")


class Issuer:
    """Issues what is missing or about to expire; everything else stays."""

    def __init__(self, home: Home, custody: Custody, store: Store, done: Done) -> None:
        self._home = home
        self._custody = custody
        self._store = store
        self._records = Records(store, custody)
        self._done = done
        self._now = int(time.time())

    async def run(self, reissue: str | None = None) -> None:
        """All certificates, the CA's first; ``reissue`` names someone of the staff (ROLE or ROLE/NAME) whose key or
        certificate was lost. Whoever may run this may do all that officers do: it takes the HSM's PIN."""
        public_key = (await self._custody.describe()).public_keys["ca"]
        ca = await self._ca(public_key)
        await self._server(ca)
        if reissue is not None:
            await self._reissue(ca, reissue)
            return
        for role in STAFF:
            await self._staff(ca, role)

    async def _reissue(self, ca: bytes, who: str) -> None:
        role, _, name = who.partition("/")
        if role not in STAFF:
            raise BadRequest("principal.role", f"{role} is no role of staff", hint="officer, operator or auditor")
        name = name or role
        known = await self._records.load(PRINCIPALS, f"{role}/{name}")
        if known is None:
            raise NotFound("principal.unknown", f"there is no {role} {name}", hint=f"keypeer {role} list")
        await self._give(ca, role, name, known, "principal.reissue")

    async def _ca(self, public_key: bytes) -> bytes:
        path = self._home.tls / "ca.pem"
        if path.exists():
            ca = ssl.PEM_cert_to_DER_cert(path.read_text("ascii"))
            _check_ca(path, ca, public_key)
            return ca
        tbs = pki.ca_tbs(public_key, serial=os.urandom(pki.SERIAL_BYTES), now=self._now)
        ca = await self._sign(tbs)
        write_private(path, pki.to_pem(ca).encode())
        self._done.add(f"issued the CA certificate {path}")
        return ca

    async def _server(self, ca: bytes) -> None:
        path = self._home.tls / "server.pem"
        if not _expires_soon(path, self._now):
            return
        spki, key = _new_key()
        names = self._home.settings.service.names
        tbs = pki.server_tbs(spki, ca, hosts=names, serial=os.urandom(pki.SERIAL_BYTES), now=self._now)
        write_private(self._home.tls / "server.key", key)
        write_private(path, pki.to_pem(await self._sign(tbs)).encode())
        self._done.add(f"issued the server certificate for {', '.join(names)}")

    async def _staff(self, ca: bytes, role: Role) -> None:
        place = self._home.identities / role
        known = await self._records.load(PRINCIPALS, f"{role}/{role}")
        if known is not None and not self._to_renew(place / "cert.pem", known.value):
            return
        if known is None and await self._store.scan(PRINCIPALS.key(f"{role}/"), b"", 1):
            return  # it was removed, by officers who are others by now
        await self._give(ca, role, role, known, "principal.issue")

    async def _give(self, ca: bytes, role: Role, name: str, known: Loaded[Principal] | None, action: str) -> None:
        place = self._home.identities / name
        spki, key = _new_key()
        certificate = await self._sign(
            pki.client_tbs(
                spki,
                ca,
                role=role,
                name=name,
                serial=os.urandom(pki.SERIAL_BYTES),
                now=self._now,
                life=limits.STAFF_CERTIFICATE_LIFE_S,
            )
        )
        principal = Principal(
            name,
            role,
            hashlib.sha256(certificate).digest(),
            self._now,
            public_key=spki,
            certificate=certificate,
            expires_at=self._now + limits.STAFF_CERTIFICATE_LIFE_S,
            enrolled_by="keypeer init",
        )
        entry = AuditRecord(
            time=time.time(),
            action=action,
            outcome="done",
            actor="keypeer init",
            role="",
            facts={"principal": f"{role}/{name}", "certificate_sha256": principal.certificate_sha256.hex()},
        )
        check = known.check if known else Check(PRINCIPALS.key(f"{role}/{name}"), 0)
        puts = await self._records.seal([PRINCIPALS.put(f"{role}/{name}", principal)])
        # The files take their names once the store knows the certificate. After a crash in between, the drafts are
        # there and the store's certificate isn't in cert.pem, so that the next run issues another one.
        drafts = self._write_identity(place, certificate, key, ca)
        outcome = await self._store.commit(Commit(checks=[check], puts=puts, entries=[encode_record(entry)]))
        if not isinstance(outcome, Committed):
            raise KeypeerError("store.conflict", f"someone else issued a certificate for {role} at the same time")
        for draft in drafts:
            draft.replace(draft.with_suffix(""))
        self._done.add(f"issued the {'first ' if action == 'principal.issue' else ''}{role} certificate in {place}")

    def _to_renew(self, path: Path, known: Principal) -> bool:
        """Whether the certificate at ``path`` didn't get there when it was issued, or soon won't be good. One that was
        taken to its owner's machine is left alone: issuing another would end it."""
        if not path.exists():
            return path.with_name(f"{path.name}.new").exists()
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        is_good = certificate.fingerprint(hashes.SHA256()) == known.certificate_sha256
        # Another good one that wasn't left behind half-way here was renewed on its owner's machine.
        return path.with_name(f"{path.name}.new").exists() if not is_good else _expires_soon(path, self._now)

    def _write_identity(self, place: Path, certificate: bytes, key: bytes, ca: bytes) -> list[Path]:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _, port = self._home.address
        files = {
            "key.pem": key,
            "cert.pem": pki.to_pem(certificate).encode(),
            "ca.pem": pki.to_pem(ca).encode(),
            "server": f"https://{self._home.settings.service.names[0]}:{port}\n".encode(),
        }
        for name, data in files.items():
            write_private(place / f"{name}.new", data)
        return [place / f"{name}.new" for name in files]

    async def _sign(self, tbs: bytes) -> bytes:
        return pki.assemble(tbs, await self._custody.sign("ca", tbs))


def _check_ca(path: Path, ca: bytes, public_key: bytes) -> None:
    known = x509.load_der_x509_certificate(ca).public_key()
    spki = known.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if spki != public_key:
        raise KeypeerError(
            "settings.ca",
            f"{path} isn't the certificate of this token's CA key",
            hint="the settings name another token than before, or the folder is another service's",
        )


def _new_key() -> tuple[bytes, bytes]:
    """A P-256 key: its SPKI (DER), and PKCS#8 in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return spki, pem


def _expires_soon(path: Path, now: int) -> bool:
    if not path.exists():
        return True
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp() - now < RENEW_BEFORE_S
