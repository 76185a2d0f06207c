"""An attestation request as evidence: base64url decoded, nothing of it proven."""

from __future__ import annotations

from keypeer.wire.encoding import b64decode
from keypeer.wire.messages import AttestRequest
from kms.evidence.model import BindingEvidence, BootLogEvidence, Evidence, GeoEvidence, ImaEvidence, LaunchEvidence


def received(request: AttestRequest) -> Evidence:
    """The evidence in ``request``; raises WireError for what isn't base64url."""
    geo, binding = request.geo, request.binding
    boot, ima, launches = request.boot_log, request.ima, request.launches
    return Evidence(
        quote_attest=b64decode(request.quote.attest, "quote.attest"),
        quote_signature=b64decode(request.quote.signature, "quote.signature"),
        pcr_values=b64decode(request.pcr_values, "pcr_values"),
        binding_name=b64decode(request.binding_name, "binding_name"),
        geo=None
        if geo is None
        else GeoEvidence(
            statement=b64decode(geo.tag.statement, "geo.tag.statement"),
            tag_signature=b64decode(geo.tag.signature, "geo.tag.signature"),
            attest=b64decode(geo.certified.attest, "geo.certified.attest"),
            signature=b64decode(geo.certified.signature, "geo.certified.signature"),
        ),
        binding=None
        if binding is None
        else BindingEvidence(
            public=b64decode(binding.public, "binding.public"),
            attest=b64decode(binding.certified.attest, "binding.certified.attest"),
            signature=b64decode(binding.certified.signature, "binding.certified.signature"),
        ),
        boot_log=None
        if boot is None
        else BootLogEvidence(
            sha256=bytes.fromhex(boot.sha256),
            log=None if boot.log is None else b64decode(boot.log, "boot_log.log"),
        ),
        ima=None if ima is None else ImaEvidence(ima.start, ima.format, b64decode(ima.entries, "ima.entries")),
        launches=None if launches is None else LaunchEvidence(launches.start, launches.entries),
    )
