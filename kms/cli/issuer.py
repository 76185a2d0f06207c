"""The first certificates: the CA's own, the service's, and one for each staff role."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kms import limits, pki
from kms.audit.record import AuditRecord, encode_record
from kms.authorities import Authorities, authorities
from kms.certificates import certificate_holders
from kms.cli.common import say
from kms.cli.files import write_private
from kms.cli.steps import Done
from kms.custody.port import Custody
from kms.domain.hosts import IssuedCertificate
from kms.domain.service_keys import SigningVersion
from kms.domain.staff import Principal, Role
from kms.errors import BadRequest, KeypeerError, NotFound
from kms.records import CERTIFICATES, PRINCIPALS, Loaded, Records
from kms.settings import Home
from kms.signing_keys import SigningKey, first_keys, load_signing_key
from kms.store.port import Check, Commit, Committed, Store
from kms.tls import first_ca, has_server_pair, server_certificate

STAFF: tuple[Role, ...] = ("officer", "operator", "auditor")


class Issuer:
    """Issues what is missing or about to expire; everything else stays."""

    def __init__(self, home: Home, custody: Custody, store: Store, done: Done, *, newest_server: bool) -> None:
        self._home = home
        self._custody = custody
        self._store = store
        self._records = Records(store, custody)
        self._done = done
        self._newest_server = newest_server
        self._now = int(time.time())

    async def run(self, reissue: str | None = None) -> None:
        """All certificates, the CA's first, the service's own last, for it may wait for staff; ``reissue`` names
        someone of them (ROLE or ROLE/NAME) whose key or certificate was lost. Whoever may run this may do all that
        officers do: it takes the HSM's PIN."""
        known = await self._authorities()
        if reissue is not None:
            await self._reissue(known, reissue)
        else:
            for role in STAFF:
                await self._staff(known, role)
        await self._server(known)

    async def _reissue(self, authorities: Authorities, who: str) -> None:
        role, _, name = who.partition("/")
        if role not in STAFF:
            raise BadRequest("principal.role", f"{role} is no role of staff", hint="officer, operator or auditor")
        name = name or role
        known = await self._records.load(PRINCIPALS, f"{role}/{name}")
        if known is None:
            raise NotFound("principal.unknown", f"there is no {role} {name}", hint=f"keypeer {role} list")
        await self._give(authorities, role, name, known, "principal.reissue")

    async def _authorities(self) -> Authorities:
        """The CA's versions; the file has the certificates in force."""
        path = self._home.tls / "ca.pem"
        key = await load_signing_key(self._records, first_keys(await self._custody.describe()), "ca")
        known = authorities(key, await self._first_ca(path, key))
        if path.read_text("ascii") != known.bundle:
            write_private(path, known.bundle.encode())
            self._done.add(f"put the CA's {len(known.good)} certificates in force into {path}")
        return known

    async def _first_ca(self, path: Path, key: SigningKey) -> bytes:
        """What stands for version 1 while the record has no certificate of it."""
        if _is_there(path):
            return first_ca(self._home)
        oldest = key.versions[0]
        ca = oldest.certificate
        if not ca:
            tbs = pki.ca_tbs(oldest.public_key, serial=os.urandom(pki.SERIAL_BYTES), now=self._now)
            ca = await self._sign(tbs, oldest)
        write_private(path, pki.to_pem(ca).encode())
        self._done.add(f"issued the CA certificate {path}")
        return ca

    async def _server(self, known: Authorities) -> None:
        path = self._home.tls / "server.pem"
        ca = await self._server_ca(known, path)
        # Key and certificate take their places one after the other: a run that was cut short between them left no pair.
        good = not _expires_soon(path, self._now) and has_server_pair(self._home)
        if good and known.issuer(server_certificate(self._home)) == ca:
            return
        spki, key = _new_key()
        names = self._home.settings.service.names
        tbs = pki.server_tbs(spki, ca.certificate, hosts=names, serial=os.urandom(pki.SERIAL_BYTES), now=self._now)
        write_private(self._home.tls / "server.key", key)
        write_private(path, pki.to_pem(await self._sign(tbs, ca)).encode())
        self._done.add(f"issued the server certificate for {', '.join(names)} by version {ca.version} of the CA key")

    async def _server_ca(self, known: Authorities, path: Path) -> SigningVersion:
        """Which version the service's certificate should be by: the newest once everybody knows it, which they do when
        they have a certificate by it; the one that it is by until then."""
        newest = known.key.newest
        present = known.issuer(server_certificate(self._home)) if _is_there(path) else newest
        if self._newest_server or present is None or present.retired_at or present == newest:
            return newest
        for version in known.key.good:
            if version == newest:
                continue
            waiting = await certificate_holders(self._store, self._records, version.version, self._now)
            if waiting:
                named = ", ".join(waiting[: limits.KEY_USERS_SHOWN])
                say(
                    f"init: the server certificate stays by version {present.version} of the CA key: {named} have none"
                    " by the newest (--server-ca newest doesn't wait for them)"
                )
                return present
        return newest

    async def _staff(self, authorities: Authorities, role: Role) -> None:
        place = self._home.identities / role
        known = await self._records.load(PRINCIPALS, f"{role}/{role}")
        if known is not None and not self._to_renew(place / "cert.pem", known.value, authorities):
            return
        if known is None and await self._store.scan(PRINCIPALS.key(f"{role}/"), b"", 1):
            return  # it was removed, by officers who are others by now
        await self._give(authorities, role, role, known, "principal.issue")

    async def _give(
        self, authorities: Authorities, role: Role, name: str, known: Loaded[Principal] | None, action: str
    ) -> None:
        place = self._home.identities / name
        ca = authorities.issuing(self._now)
        spki, key = _new_key()
        certificate = await self._sign(
            pki.client_tbs(
                spki,
                ca.certificate,
                role=role,
                name=name,
                serial=os.urandom(pki.SERIAL_BYTES),
                now=self._now,
                life=limits.STAFF_CERTIFICATE_LIFE_S,
            ),
            ca,
        )
        issued = IssuedCertificate(certificate, ca.version, self._now + limits.STAFF_CERTIFICATE_LIFE_S)
        principal = Principal(
            name,
            role,
            issued.sha256,
            self._now,
            public_key=spki,
            certificate=certificate,
            expires_at=issued.until,
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
        puts = await self._records.seal(
            [PRINCIPALS.put(f"{role}/{name}", principal), CERTIFICATES.put(f"{role}/{name}", issued)]
        )
        # The files take their names once the store knows the certificate. After a crash in between, the drafts are
        # there and the store's certificate isn't in cert.pem, so that the next run issues another one.
        drafts = self._write_identity(place, certificate, key, authorities.bundle)
        outcome = await self._store.commit(Commit(checks=[check], puts=puts, entries=[encode_record(entry)]))
        if not isinstance(outcome, Committed):
            raise KeypeerError("store.conflict", f"someone else issued a certificate for {role} at the same time")
        for draft in drafts:
            draft.replace(draft.with_suffix(""))
        self._done.add(f"issued the {'first ' if action == 'principal.issue' else ''}{role} certificate in {place}")

    def _to_renew(self, path: Path, known: Principal, authorities: Authorities) -> bool:
        """Whether the certificate at ``path`` didn't get there when it was issued, or soon won't be good, or is by an
        old version of the CA key. One that was taken to its owner's machine is left alone: another would end it."""
        if not path.exists():
            return path.with_name(f"{path.name}.new").exists()
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        is_good = certificate.fingerprint(hashes.SHA256()) == known.certificate_sha256
        # Another good one that wasn't left behind half-way here was renewed on its owner's machine.
        if not is_good:
            return path.with_name(f"{path.name}.new").exists()
        return authorities.is_behind(certificate.public_bytes(serialization.Encoding.DER), self._now)

    def _write_identity(self, place: Path, certificate: bytes, key: bytes, bundle: str) -> list[Path]:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _, port = self._home.address
        files = {
            "key.pem": key,
            "cert.pem": pki.to_pem(certificate).encode(),
            "ca.pem": bundle.encode(),
            "server": f"https://{self._home.settings.service.names[0]}:{port}\n".encode(),
        }
        for name, data in files.items():
            write_private(place / f"{name}.new", data)
        return [place / f"{name}.new" for name in files]

    async def _sign(self, tbs: bytes, ca: SigningVersion) -> bytes:
        return pki.assemble(tbs, await self._custody.sign("ca", tbs, ca.version))


def _is_there(path: Path) -> bool:
    return path.exists()


def _new_key() -> tuple[bytes, bytes]:
    """A P-256 key: its SPKI (DER), and PKCS#8 in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return spki, pem


def _expires_soon(path: Path, now: int) -> bool:
    if not path.exists():
        return True
    return (
        x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp() - now
        < limits.CERTIFICATE_RENEW_S
    )
