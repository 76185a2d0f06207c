"""A host as the place that a VM may move to."""

from __future__ import annotations

from dataclasses import dataclass

from kms.domain.attestation import AttestationSession
from kms.domain.hosts import EnrolledHost
from kms.domain.vms import Lease
from kms.errors import Reason
from kms.keys.lifecycle import refuse_old_release, refuse_release
from kms.policy.decide import decide, decide_config
from kms.policy.model import Policy
from kms.records import EVENT_HEADS, HOSTS, LAUNCHES, SESSIONS, Records, load_policy
from kms.store.port import Check, Store
from kms.views import launched_configs
from kms.vm_records import StoredVm


@dataclass(frozen=True, slots=True)
class Destination:
    """Why it is none (``reasons``), or what a lease there would stand on, with the checks that it is still so.
    ``as_of``: the last of the host's events (kms.domain.vms.Lease)."""

    reasons: tuple[Reason, ...]
    checks: tuple[Check, ...] = ()
    session: AttestationSession | None = None
    policy: Policy | None = None
    as_of: int = 0


async def judge(
    store: Store, records: Records, key: StoredVm, asked: StoredVm, name: str, now: int, *, config: bool
) -> Destination:
    """Whether the VM's policy would release ``asked`` to that host at ``now``: ``key``, the current version, or one
    before it that the source holds. ``config``: it has to have measured the VM's start too."""
    vm = key.record.vm
    items = await store.get_many([kind.key(name) for kind in (HOSTS, SESSIONS, LAUNCHES, EVENT_HEADS)])
    (host,) = await records.open(HOSTS, items[:1])
    (session,) = await records.open(SESSIONS, items[1:2])
    (launches,) = await records.open(LAUNCHES, items[2:3])
    (head,) = await records.open(EVENT_HEADS, items[3:])
    policy = await load_policy(records, key.attributes.policy)
    if policy is None:
        return Destination((_no_policy(key.attributes.policy),))
    if host is None or session is None:
        return Destination((_unattested(name, host.value if host else None),))
    reasons = [*_not_live(name, host.value, session.value, now)]
    reasons += _refuse_state(key, asked, name, now)
    reasons += decide(policy.value, session.value.appraisal, now)
    if config:
        launched = launched_configs(launches.value if launches else None, session.value)
        reasons += decide_config(policy.value, vm, name, launched, key.attributes.config)
    return Destination(
        tuple(reasons),
        (host.check, session.check, policy.check),
        session.value,
        policy.value,
        head.value.last if head else 0,
    )


def _refuse_state(key: StoredVm, asked: StoredVm, name: str, now: int) -> tuple[Reason, ...]:
    vm, version = key.record.vm, asked.record.key_version
    if asked is key:
        return refuse_release(key.attributes, version, vm=vm, host=name, lease=None, now=now)
    # An old version is for the host whose lease names it, and that lease is what is being handed over.
    lease = Lease(name, b"", version, 0, 0)
    return refuse_old_release(key.attributes, asked.attributes, version, vm=vm, host=name, lease=lease, now=now)


def _not_live(name: str, host: EnrolledHost, session: AttestationSession, now: int) -> tuple[Reason, ...]:
    if host.status == "approved" and session.expires_at > now:
        return ()
    return (_unattested(name, host),)


def _unattested(name: str, host: EnrolledHost | None) -> Reason:
    found = f"host {name} is {host.status}" if host is not None and host.status != "approved" else f"{name} has none"
    if host is None:
        found = f"no host {name} is enrolled"
    return Reason(
        "migration.unattested",
        "a destination that is approved and has a live attestation session",
        found,
        "let it attest: keypeer agent attest",
    )


def _no_policy(name: str) -> Reason:
    return Reason("policy.unknown", "the VM's policy", f"policy {name} is gone", "an officer puts it back")
