"""One attestation exchange without a service: a tag issuer, a challenge's value, and what the service expects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.wire.canonical import geo_tag_preimage, qualifying_data
from keypeer.wire.geo import GeoTagStatement, encode_statement
from kms.domain.policies import Baseline
from kms.evidence.appraise import Appraisal, Untrusted, appraise
from kms.evidence.model import Evidence, Expectations
from tests.support.simulated_host import SimulatedHost, boot_values

NOW = 1_800_000_000
QUOTE_PCRS = tuple(range(11))
DAY = 86_400


class TagIssuer:
    """The service's side of geo-tags, with a software key."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.public = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def issue(self, host: SimulatedHost, **changes: Any) -> tuple[bytes, bytes]:
        """(statement, signature); ``changes`` replace fields of the statement."""
        fields: dict[str, Any] = {
            "tag": "tag-1",
            "host": host.name,
            "ek": host.ek_digest.hex(),
            "country": "DE",
            "place": "Frankfurt, hall 3",
            "issued_at": NOW - DAY,
            "expires_at": NOW + DAY,
        }
        statement = encode_statement(GeoTagStatement(**(fields | changes)))
        return statement, self.key.sign(geo_tag_preimage(statement), ec.ECDSA(hashes.SHA256()))


@dataclass
class Exchange:
    """A tagged host and the expectations that its honest evidence meets."""

    host: SimulatedHost
    issuer: TagIssuer = field(default_factory=TagIssuer)
    nonce: bytes = bytes(range(32))

    def __post_init__(self) -> None:
        self.host.write_geo_tag(*self.issuer.issue(self.host))

    @property
    def qualifying(self) -> bytes:
        return qualifying_data(
            nonce=self.nonce,
            host=self.host.name,
            client_certificate=b"certificate of " + self.host.name.encode(),
            binding_name=self.host.binding_name,
            purpose="attest",
        )

    def evidence(self, *, with_binding: bool = True) -> Evidence:
        """What the host sends, honest unless it was changed."""
        return self.host.evidence(self.qualifying, QUOTE_PCRS, with_binding=with_binding)

    def expectations(self, **changes: Any) -> Expectations:
        """What the service expects; ``changes`` replace fields."""
        good = boot_values(self.host.bank)
        expectations = Expectations(
            host=self.host.name,
            ek_digest=self.host.ek_digest,
            ak_public=self.host.ak_public,
            qualifying_data=self.qualifying,
            bank="sha384" if self.host.bank.size == 48 else "sha256",
            quote_pcrs=frozenset(QUOTE_PCRS),
            binding_pcrs=self.host.binding_pcrs,
            baselines=(baseline("good", {pcr: (good[pcr],) for pcr in (0, 4, 7)}, self.host.bank.name),),
            geo_public_keys=(self.issuer.public,),
            current_tag="tag-1",
            known_binding=None,
            previous=None,
        )
        return replace(expectations, **changes)

    def appraise(self, evidence: Evidence | None = None, *, now: int = NOW, **expected: Any) -> Appraisal | Untrusted:
        """The verdict on ``evidence`` (honest by default)."""
        return appraise(evidence or self.evidence(), self.expectations(**expected), now)


def baseline(name: str, pcrs: dict[int, tuple[bytes, ...]], bank: str = "sha256") -> Baseline:
    return Baseline(name=name, bank="sha384" if bank == "sha384" else "sha256", pcrs=pcrs)


def reason_ids(verdict: Appraisal | Untrusted) -> tuple[str, ...]:
    """The ids of the reasons, none when the evidence passed."""
    return tuple(reason.id for reason in verdict.reasons) if isinstance(verdict, Untrusted) else ()
