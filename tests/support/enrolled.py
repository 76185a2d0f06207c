"""Hosts by the ten thousand, enrolled without HTTPS: certificates and geo-tags by the HSM's keys, records sealed by it,
as the flows would leave them (kms.flows.enrol, kms.flows.geo_tags), put into the store in bulk. Only their audit
entries and events are missing."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from keypeer.wire.canonical import geo_tag_preimage
from keypeer.wire.geo import GeoTagStatement, encode_statement
from kms import limits, pki
from kms.app import open_context
from kms.domain.attestation import StoredGeoTag
from kms.domain.hosts import EkOwner, EnrolledHost
from kms.flows.context import Context
from kms.records import CERTIFICATES, EK_OWNERS, GEO_TAGS, HOSTS
from kms.settings import read_home
from kms.trust import due_key
from tests.support.service import Service
from tests.support.simulated_host import SHARED_RSA_KEYS, SimulatedHost

PAGE = 500  # hosts between two commits
TAG_LIFE_S = 180 * 86400  # seconds


@dataclass(frozen=True)
class Enrolled:
    """An approved host with a tag in its TPM; ``certificate`` is its client certificate's DER."""

    tpm: SimulatedHost
    certificate: bytes

    def context(self, service: Service) -> ssl.SSLContext:
        """TLS as this host."""
        folder = service.folder / "hosts"
        folder.mkdir(exist_ok=True)
        file = folder / f"{self.tpm.name}.pem"
        key = self.tpm.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(key + pki.to_pem(self.certificate).encode())
        context = ssl.create_default_context(cafile=str(service.ca))
        context.load_cert_chain(file)
        file.unlink()
        return context


async def enrol_many(service: Service, count: int, *, keep: int, prefix: str = "host") -> list[Enrolled]:
    """Enrols ``count`` hosts of the running service; ``keep`` of them, from all over, are given back."""
    every, kept = max(1, count // keep), []
    async with open_context(read_home(service.folder)) as ctx:
        for start in range(0, count, PAGE):
            names = [f"{prefix}-{number:07d}" for number in range(start, min(count, start + PAGE))]
            async for host in enrol_page(ctx, names):
                if int(host.tpm.name.rpartition("-")[2]) % every == 0 and len(kept) < keep:
                    kept.append(host)
    return kept


async def enrol_page(ctx: Context, names: list[str]) -> AsyncIterator[Enrolled]:
    """Enrols hosts of these names in one commit."""
    geo, now = (await ctx.signing_key("geo")).newest, ctx.now()
    tpms = [SimulatedHost(name, rsa_key=number % SHARED_RSA_KEYS) for number, name in enumerate(names)]
    life = limits.HOST_CERTIFICATE_LIFE_S
    issued = await asyncio.gather(*(ctx.issue(_spki(tpm), "host", tpm.name, life) for tpm in tpms))
    statements = [_statement(ctx, tpm, now) for tpm in tpms]
    signatures = await asyncio.gather(
        *(ctx.custody.sign("geo", geo_tag_preimage(encode_statement(each)), geo.version) for each in statements)
    )
    unsealed, dues = [], []
    for tpm, one, statement, signature in zip(tpms, issued, statements, signatures, strict=True):
        encoded = encode_statement(statement)
        tpm.write_geo_tag(encoded, signature)
        unsealed += [
            HOSTS.put(tpm.name, _host(tpm, one.certificate, now)),
            EK_OWNERS.put(tpm.ek_digest.hex(), EkOwner(tpm.name)),
            CERTIFICATES.put(f"host/{tpm.name}", one),
            GEO_TAGS.put(tpm.name, StoredGeoTag(tpm.name, statement.tag, encoded, signature, geo.version)),
        ]
        dues.append((due_key(statement.expires_at, tpm.name), b""))
    await ctx.store.bulk_load([*await ctx.records.seal(unsealed), *dues])
    for tpm, one in zip(tpms, issued, strict=True):
        yield Enrolled(tpm, one.certificate)


def _spki(tpm: SimulatedHost) -> bytes:
    return tpm.tls_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _statement(ctx: Context, tpm: SimulatedHost, now: int) -> GeoTagStatement:
    return GeoTagStatement(
        tag=ctx.random(8).hex(),
        host=tpm.name,
        ek=tpm.ek_digest.hex(),
        country="DE",
        place="test",
        issued_at=now,
        expires_at=now + TAG_LIFE_S,
    )


def _host(tpm: SimulatedHost, certificate: bytes, now: int) -> EnrolledHost:
    return EnrolledHost(
        host=tpm.name,
        status="approved",
        ek_digest=tpm.ek_digest,
        ek_trust="inventory",
        ak_public=tpm.ak_public,
        certificate_sha256=sha256(certificate).digest(),
        enrolled_at=now,
        decided_by="inventory",
        decided_at=now,
    )
