"""The geo-tag: where the service said this host stands, and that the host's TPM holds exactly that, locked
(DESIGN §6 rule 9)."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keypeer.wire.canonical import geo_tag_digest, geo_tag_preimage
from keypeer.wire.encoding import WireError
from keypeer.wire.geo import GeoTagStatement, decode_statement
from keypeer.wire.profile import (
    GEO_NV_ATTRIBUTES,
    GEO_NV_ATTRIBUTES_LOCKED,
    GEO_NV_INDEX,
    GEO_NV_SIZE,
    NV_WRITELOCKED,
    NV_WRITTEN,
)
from kms import limits
from kms.domain.attestation import GeoFacts
from kms.evidence.model import Expectations, Findings, GeoEvidence
from kms.evidence.quote import QuoteFacts
from kms.evidence.signed import check_counters, check_qualifying_data, is_tpms_word
from kms.tpm.attest import NvCertifyInfo, parse_nv_certify
from kms.tpm.checks import AttestationKey
from kms.tpm.constants import ST_ATTEST_NV
from kms.tpm.nv import NvPublic


def _index_name(attributes: int) -> bytes:
    return NvPublic(GEO_NV_INDEX, attributes, GEO_NV_SIZE).name


_LOCKED_NAME = _index_name(GEO_NV_ATTRIBUTES_LOCKED)
# A Name is a hash, so what differs can only be told by trying what commonly does.
_LIKELY_NAMES = {
    _index_name(GEO_NV_ATTRIBUTES | NV_WRITTEN): "the geo index, written but not write-locked",
    _index_name(GEO_NV_ATTRIBUTES): "the geo index, never written",
    _index_name(GEO_NV_ATTRIBUTES | NV_WRITELOCKED): "the geo index, locked before it was written",
}


def check_geo(
    findings: Findings,
    ak: AttestationKey,
    geo: GeoEvidence | None,
    expectations: Expectations,
    quote: QuoteFacts,
    now: int,
) -> GeoFacts | None:
    """What the tag says when tag and TPM agree. Without geo evidence None and no reason: whether a place is needed is
    the policy's to say."""
    if geo is None:
        return None
    statement = _check_tag(findings, geo, expectations, now)
    if is_tpms_word(findings, "geo.nv_", ak, geo.attest, geo.signature, ST_ATTEST_NV):
        attest = parse_nv_certify(geo.attest)
        check_qualifying_data(findings, "geo.nv_", attest.extra_data, expectations.qualifying_data)
        check_counters(findings, "geo.nv_", attest.clock_info, quote.counters)
        _check_index(findings, attest.info, geo.statement)
    if statement is None:
        return None
    return GeoFacts(
        tag=statement.tag,
        country=statement.country,
        place=statement.place,
        source=statement.source,
        issued_at=statement.issued_at,
        expires_at=statement.expires_at,
    )


def _check_tag(findings: Findings, geo: GeoEvidence, expectations: Expectations, now: int) -> GeoTagStatement | None:
    try:
        statement = _verified(geo.statement, geo.tag_signature, expectations.geo_public_keys)
    except InvalidSignature:
        _tell_signature(findings, geo, expectations)
        return None
    _check_owner(findings, statement, expectations)
    _check_validity(findings, statement, expectations.current_tag, now)
    return statement


def _tell_signature(findings: Findings, geo: GeoEvidence, expectations: Expectations) -> None:
    for version, public_key in expectations.geo_retired_keys:
        if _signed_by(public_key, geo.statement, geo.tag_signature):
            findings.add(
                "geo.key_retired",
                asked="a geo-tag signed by a version of the geo key that counts",
                found=f"a tag signed by version {version}, which officers retired",
                mend=f"an officer issues host {findings.host} a new tag (keypeer geo-tag issue)",
            )
            return
    findings.add(
        "geo.signature",
        asked="a geo-tag signed by this service",
        found="a tag whose signature doesn't verify",
        mend=f"host {findings.host} fetches its tag again (keypeer agent attest)",
    )


def _signed_by(public_key: bytes, statement: bytes, signature: bytes) -> bool:
    key = load_der_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("geo-tags are signed with an EC key")
    try:
        key.verify(signature, geo_tag_preimage(statement), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


@lru_cache(limits.GEO_TAGS_CACHED)
def _verified(statement: bytes, signature: bytes, public_keys: tuple[bytes, ...]) -> GeoTagStatement:
    # A tag stays the same for months: that its signature holds is a fact of the bytes, so it is checked once. Failures
    # raise and aren't kept.
    if not any(_signed_by(public_key, statement, signature) for public_key in public_keys):
        raise InvalidSignature
    try:
        return decode_statement(statement)
    except WireError as error:
        # Signed by us in a form that this version doesn't know; not usable, whatever it says.
        raise InvalidSignature(str(error)) from None


def _check_owner(findings: Findings, statement: GeoTagStatement, expectations: Expectations) -> None:
    if statement.host != expectations.host:
        findings.add(
            "geo.host",
            asked=f"a tag of host {expectations.host}",
            found=f"the tag of host {statement.host}",
            mend=f"host {findings.host} sends its own tag; an officer issues one (keypeer geo-tag issue)",
        )
    if statement.ek != expectations.ek_digest.hex():
        findings.add(
            "geo.ek",
            asked=f"a tag of this TPM (EK {expectations.ek_digest.hex()})",
            found=f"a tag of another TPM (EK {statement.ek})",
            mend=f"an officer surveys host {findings.host} and issues a tag for the TPM it has now",
        )


def _check_validity(findings: Findings, statement: GeoTagStatement, current: str | None, now: int) -> None:
    if now < statement.issued_at:
        findings.add(
            "geo.not_yet_valid",
            asked=f"a tag valid at {_utc(now)}",
            found=f"tag {statement.tag} is valid from {_utc(statement.issued_at)}",
            mend="set the service's clock right (keypeer doctor)",
        )
    if now >= statement.expires_at:
        findings.add(
            "geo.expired",
            asked=f"a tag valid at {_utc(now)}",
            found=f"tag {statement.tag} expired at {_utc(statement.expires_at)}",
            mend=f"an officer confirms where host {findings.host} stands and issues a new tag (keypeer geo-tag issue)",
        )
    if statement.tag != current:
        findings.add(
            "geo.superseded",
            asked=f"the current tag, {current}" if current else "a tag that the service has on record; it has none",
            found=f"tag {statement.tag}",
            mend=f"host {findings.host} fetches its current tag and writes it to its TPM (keypeer agent attest)",
        )


def _check_index(findings: Findings, nv: NvCertifyInfo, statement: bytes) -> None:
    if nv.index_name != _LOCKED_NAME:
        findings.add(
            "geo.nv_name",
            asked=f"NV index 0x{GEO_NV_INDEX:08x} as keypeer defines it, written and write-locked",
            found=_LIKELY_NAMES.get(nv.index_name, f"an index of another Name ({nv.index_name.hex()})"),
            mend=f"host {findings.host} undefines the index and writes its tag anew (keypeer agent attest)",
        )
    digest = geo_tag_digest(statement)
    if nv.offset != 0 or not hmac.compare_digest(nv.contents, digest):
        findings.add(
            "geo.nv_contents",
            asked=f"the tag's digest {digest.hex()} at offset 0",
            found=f"{nv.contents.hex() or 'nothing'} at offset {nv.offset}",
            mend=f"host {findings.host} writes its current tag to its TPM (keypeer agent attest)",
        )


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
