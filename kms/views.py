"""Stored records as the API shows them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import cast

import msgspec

from keypeer.wire.boot import BootFacts
from keypeer.wire.encoding import b64encode
from keypeer.wire.geo import GeoSource, decode_statement
from keypeer.wire.messages import (
    AppraisalView,
    BaselineView,
    BootView,
    EvidenceView,
    GeoTagView,
    GeoView,
    HostEvent,
    HostView,
    LeaseView,
    LogPositions,
    MigrationView,
    OldVersionView,
    PolicyDocument,
    PolicyView,
    PrincipalView,
    Problem,
    ReasonView,
    RuntimeView,
    SignedGeoTag,
    StaffRole,
    VmRotationView,
    VmView,
)
from kms.custody.port import KeyRecord
from kms.domain.attestation import (
    AppraisalFacts,
    AttestationSession,
    BootSummary,
    GeoFacts,
    HostEvidence,
    LaunchPosition,
    RuntimeVerdict,
    StoredGeoTag,
)
from kms.domain.hosts import EnrolledHost, Refusal
from kms.domain.policies import Baseline, StoredPolicy, boot_facts
from kms.domain.staff import Principal
from kms.domain.trust import StoredEvent
from kms.domain.vms import KeyAttributes, Lease, Migration, Tombstone, VmRotation
from kms.errors import KeypeerError, Reason, Unavailable
from kms.keys.lifecycle import settled
from kms.keys.migrations import state_of
from kms.pki import to_pem

_attributes = msgspec.msgpack.Decoder(KeyAttributes)
_document = msgspec.json.Decoder(PolicyDocument)


def reason_view(reason: Reason) -> ReasonView:
    return ReasonView(id=reason.id, asked=reason.asked, found=reason.found, mend=reason.mend)


def problem_view(error: KeypeerError) -> Problem:
    """``error`` as the document that a caller gets; ``type`` is a URN made of the stable code."""
    return Problem(
        type=f"urn:keypeer:problem:{error.code}",
        title=HTTPStatus(error.status).phrase,
        status=int(error.status),
        detail=error.detail,
        code=error.code,
        hint=error.hint,
        reasons=tuple(reason_view(reason) for reason in error.reasons),
    )


def flat_views(reasons: tuple[tuple[str, str, str, str], ...]) -> tuple[ReasonView, ...]:
    """Stored reasons."""
    return tuple(ReasonView(id=i, asked=a, found=f, mend=m) for i, a, f, m in reasons)


def event_view(event: StoredEvent, number: int) -> HostEvent:
    """An event as the ``number``-th of a log."""
    return HostEvent(
        id=number,
        at=event.at,
        host=event.host,
        event=event.event,
        ends=event.ends,
        vms=event.vms,
        attest=event.attest,
        reasons=flat_views(event.reasons),
        why=event.why,
        host_id=event.number,
    )


def geo_view(geo: GeoFacts) -> GeoView:
    return GeoView(
        tag=geo.tag,
        country=geo.country,
        place=geo.place,
        source=cast("GeoSource", geo.source),
        issued_at=geo.issued_at,
        expires_at=geo.expires_at,
    )


def appraisal_view(facts: AppraisalFacts) -> AppraisalView:
    return AppraisalView(
        host=facts.host,
        appraised_at=facts.appraised_at,
        baselines=facts.baselines,
        geo=geo_view(facts.geo) if facts.geo else None,
        reset_count=facts.counters.reset_count,
        restart_count=facts.counters.restart_count,
        pcr_digest=facts.pcr_digest.hex(),
        boot=None if facts.boot is None else _boot_view(facts.boot),
        drtm=facts.drtm,
        runtime=tuple(_runtime_view(verdict) for verdict in facts.runtime),
        tpm_manufacturer=facts.manufacturer,
        tpm_firmware=facts.firmware,
    )


def _boot_view(boot: BootSummary) -> BootView:
    return BootView(
        log_sha256=boot.log_sha256.hex(),
        secure_boot=boot.secure_boot,
        kernel_command_line=boot.kernel_command_line,
    )


def _runtime_view(verdict: RuntimeVerdict) -> RuntimeView:
    return RuntimeView(policy=verdict.policy, entries=verdict.entries, reasons=flat_views(verdict.reasons))


def log_positions(
    evidence: HostEvidence | None,
    session: AttestationSession | None,
    launches: LaunchPosition,
    runtime: Mapping[str, int],
) -> LogPositions:
    """What is known of a host's logs: its boot log whatever came since, the others of one boot. ``runtime``: the
    versions of the runtime policies in force; the list is wanted whole when it wasn't held against just these."""
    judged = {each.policy: each.version for each in session.runtime} if session else {}
    reset_count = session.appraisal.counters.reset_count if session else launches.reset_count
    return LogPositions(
        boot_log=evidence.boot_log_sha256.hex() if evidence and evidence.boot else None,
        reset_count=reset_count,
        ima=session.ima.entries if session and judged == runtime else 0,
        launches=launches.entries if launches.reset_count == reset_count else 0,
    )


def launched_configs(launches: LaunchPosition | None, session: AttestationSession) -> Mapping[str, bytes]:
    """VM → SHA-256 of the configuration that the session's boot measured last."""
    if launches is None or launches.reset_count != session.appraisal.counters.reset_count:
        return {}
    return launches.configs


def geo_tag_view(stored: StoredGeoTag) -> GeoTagView:
    statement = decode_statement(stored.statement)
    return GeoTagView(
        host=stored.host,
        geo=GeoView(
            tag=statement.tag,
            country=statement.country,
            place=statement.place,
            source=statement.source,
            issued_at=statement.issued_at,
            expires_at=statement.expires_at,
        ),
        signed=SignedGeoTag(statement=b64encode(stored.statement), signature=b64encode(stored.signature)),
    )


def host_view(
    host: EnrolledHost,
    tag: StoredGeoTag | None,
    session: AttestationSession | None,
    refusal: Refusal | None,
) -> HostView:
    return HostView(
        host=host.host,
        status=host.status,
        ek_digest=host.ek_digest.hex(),
        ek_trust=host.ek_trust,
        enrolled_at=host.enrolled_at,
        decided_by=host.decided_by,
        decided_at=host.decided_at,
        why=host.why,
        geo=geo_tag_view(tag).geo if tag else None,
        appraisal=appraisal_view(session.appraisal) if session else None,
        session_expires_at=session.expires_at if session else None,
        last_refusal=flat_views(refusal.reasons) if refusal else (),
        last_refusal_at=refusal.at if refusal else None,
    )


def baseline_view(baseline: Baseline) -> BaselineView:
    return BaselineView(
        name=baseline.name,
        bank=baseline.bank,
        pcrs={str(index): tuple(v.hex() for v in values) for index, values in sorted(baseline.pcrs.items())},
        updated_at=baseline.updated_at,
        updated_by=baseline.updated_by,
        status=baseline.status,
        expires_at=baseline.expires_at,
        decided_by=baseline.decided_by,
        decided_at=baseline.decided_at,
        boot=baseline_boot(baseline),
    )


def baseline_boot(baseline: Baseline) -> BootFacts | None:
    """The golden boot that a baseline holds, if it holds one."""
    return boot_facts(baseline.boot)


def evidence_boot(evidence: HostEvidence) -> BootFacts | None:
    """What a host's last boot log proved, if it sent one."""
    return boot_facts(evidence.boot)


def evidence_view(evidence: HostEvidence, launches: LaunchPosition) -> EvidenceView:
    same_boot = launches.reset_count == evidence.reset_count
    return EvidenceView(
        at=evidence.at,
        reset_count=evidence.reset_count,
        pcrs={str(pcr): value.hex() for pcr, value in sorted(evidence.pcrs.items())},
        boot_log_sha256=evidence.boot_log_sha256.hex() or None,
        boot=evidence_boot(evidence),
        launches={vm: config.hex() for vm, config in launches.configs.items()} if same_boot else {},
    )


def policy_view(stored: StoredPolicy) -> PolicyView:
    return PolicyView(
        name=stored.name,
        policy=_document.decode(stored.document),
        updated_at=stored.updated_at,
        updated_by=stored.updated_by,
    )


def key_attributes(record: KeyRecord) -> KeyAttributes:
    """What the key is bound to; part of what the HSM worker's MAC covers. Raises ``store.tampered``."""
    try:
        return _attributes.decode(record.attributes)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unavailable(
            "store.tampered",
            f"the key record of VM {record.vm} has attributes that this service didn't write",
            hint="the database was changed behind the service's back: restore it from a backup",
        ) from None


def vm_view(record: KeyRecord, lease: Lease | None, now: int, olds: Sequence[KeyRecord] = ()) -> VmView:
    attributes = settled(key_attributes(record), now)
    return VmView(
        vm=record.vm,
        policy=attributes.policy,
        version=record.key_version,
        size=32 if record.size == 32 else 64,
        state=attributes.state,
        created_at=attributes.created_at,
        created_by=attributes.created_by,
        config=attributes.config.hex() or None,
        lease=LeaseView(
            host=lease.host, version=lease.version, generation=lease.generation, expires_at=lease.expires_at
        )
        if lease
        else None,
        since=attributes.since or attributes.created_at,
        made_at=attributes.made_at or attributes.created_at,
        tenant=attributes.tenant or None,
        labels=attributes.labels,
        imported=attributes.imported,
        activates_at=attributes.activates_at or None,
        destroy_at=attributes.destroy_at or None,
        readable_until=attributes.readable_until or None,
        compromised_at=attributes.compromised_at or None,
        versions=tuple(_old_version_view(old) for old in olds),
    )


def _old_version_view(record: KeyRecord) -> OldVersionView:
    attributes = key_attributes(record)
    return OldVersionView(
        version=record.key_version,
        state=attributes.state,
        since=attributes.since,
        readable_until=attributes.readable_until or None,
        destroy_at=attributes.destroy_at or None,
    )


def tombstone_view(tombstone: Tombstone) -> VmView:
    attributes = tombstone.attributes
    return VmView(
        vm=tombstone.vm,
        policy=attributes.policy,
        version=tombstone.versions,
        size=32 if tombstone.size == 32 else 64,
        state="destroyed",
        created_at=attributes.created_at,
        created_by=attributes.created_by,
        config=attributes.config.hex() or None,
        since=tombstone.destroyed_at,
        made_at=attributes.made_at or attributes.created_at,
        tenant=attributes.tenant or None,
        labels=attributes.labels,
        imported=attributes.imported,
        compromised_at=attributes.compromised_at or None,
    )


def vm_rotation_view(rotation: VmRotation) -> VmRotationView:
    return VmRotationView(
        rotation=rotation.rotation,
        tenant=rotation.tenant or None,
        policy=rotation.policy or None,
        labels=rotation.labels,
        prefix=rotation.prefix or None,
        started_at=rotation.started_at,
        started_by=rotation.started_by,
        looked_at=rotation.looked_at,
        rotated=rotation.rotated,
        failed=rotation.failed,
        ended_at=rotation.ended_at or None,
        trouble=rotation.trouble,
    )


def principal_view(principal: Principal) -> PrincipalView:
    key = principal.approval_key or principal.public_key
    return PrincipalView(
        role=cast("StaffRole", principal.role),
        name=principal.name,
        certificate_sha256=principal.certificate_sha256.hex(),
        certificate=to_pem(principal.certificate) if principal.certificate else "",
        enrolled_at=principal.enrolled_at,
        enrolled_by=principal.enrolled_by,
        expires_at=principal.expires_at or None,
        approval_key_sha256=hashlib.sha256(key).hexdigest() if key and principal.role == "officer" else "",
        apart=bool(principal.approval_key),
    )


def migration_view(migration: Migration, now: int, owner: Lease | None = None) -> MigrationView:
    """As callers see it at ``now``; ``owner``: the VM's lease where it was read and lives."""
    return MigrationView(
        id=migration.id,
        vm=migration.vm,
        version=migration.version,
        source=migration.source,
        destination=migration.destination,
        generation=migration.generation,
        state=state_of(migration, now),
        begun_at=migration.begun_at,
        begun_by=migration.begun_by,
        expires_at=migration.expires_at,
        changed_at=migration.changed_at,
        why=migration.why,
        source_until=migration.source_until or None,
        left_at=migration.left_at or None,
        now=now,
        owner=owner.host if owner else None,
        owner_generation=owner.generation if owner else None,
    )
