"""What a host holds, and what policy says of it now: what a renewal rests on, wherever it happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kms import limits
from kms.domain.attestation import AttestationSession
from kms.domain.hosts import EnrolledHost
from kms.domain.vms import Lease
from kms.errors import KeypeerError, Reason
from kms.keys.leases import is_held
from kms.keys.lifecycle import refuse_old_release, refuse_release
from kms.policy.decide import decide, decide_config
from kms.policy.model import Policy
from kms.records import (
    EVENT_HEADS,
    HOSTS,
    LAUNCHES,
    LEASES,
    SESSIONS,
    Loaded,
    Records,
    held_key,
    load_policy,
    old_key,
    vm_key,
)
from kms.store.port import Check, Store
from kms.trust import HostLog, host_log
from kms.views import launched_configs
from kms.vm_records import StoredVm, open_vm


@dataclass(frozen=True, slots=True)
class Holder:
    """A host as it was read, with its session and the head of its event log."""

    name: str
    host: Loaded[EnrolledHost] | None
    session: Loaded[AttestationSession] | None
    launched: Mapping[str, bytes]
    log: HostLog


@dataclass(frozen=True, slots=True)
class HeldLease:
    """One VM that the host is marked to hold. ``lease`` None: it doesn't hold it any more. ``reasons``: why policy
    refuses it now; ``asked`` is the version that the lease names, and ``policy`` is there unless the key is gone."""

    vm: str
    lease: Loaded[Lease] | None
    asked: StoredVm | None = None
    policy: Policy | None = None
    reasons: tuple[Reason, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def wants_evidence(self) -> bool:
        """Whether nothing but fresh evidence is missing, which an attestation mends."""
        return bool(self.reasons) and all(reason.id.startswith("fresh.") for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class HeldPage:
    """So many of a host's leases; ``checks`` of the policies that were asked."""

    leases: tuple[HeldLease, ...]
    checks: tuple[Check, ...]
    next: str | None


async def read_holder(store: Store, records: Records, name: str) -> Holder:
    """The host ``name``."""
    items = await store.get_many([kind.key(name) for kind in (SESSIONS, HOSTS, LAUNCHES, EVENT_HEADS)])
    (session,) = await records.open(SESSIONS, items[:1])
    (host,) = await records.open(HOSTS, items[1:2])
    (launches,) = await records.open(LAUNCHES, items[2:3])
    (head,) = await records.open(EVENT_HEADS, items[3:])
    launched = launched_configs(launches.value if launches else None, session.value) if session else {}
    return Holder(name, host, session, launched, host_log(name, head))


async def held_page(
    store: Store, records: Records, holder: Holder, session: AttestationSession, after: str, now: int
) -> HeldPage:
    """The leases of ``holder`` after the VM ``after``, judged at ``now`` by its ``session``. A lease counts until its
    grace is over: so long nobody else gets the VM."""
    name, prefix = holder.name, held_key(holder.name, "")
    marks = await store.scan(prefix, held_key(name, after), limits.RENEW_PAGE)
    vms = [mark.key[len(prefix) :].decode() for mark in marks]
    leases = await records.open(LEASES, await store.get_many([LEASES.key(vm) for vm in vms]))
    keys = await _keys(store, vms, leases)
    policies = {
        each: await load_policy(records, each)
        for each in sorted({key.attributes.policy for key, _ in keys.values() if key is not None})
    }
    verdicts = {each: decide(policy.value, session.appraisal, now) for each, policy in policies.items() if policy}
    found = []
    for vm, lease in zip(vms, leases, strict=True):
        if lease is None or not is_held(lease.value, name, holder.log.head.ended_all, now - lease.value.grace):
            found.append(HeldLease(vm, None, checks=(lease.check if lease else Check(LEASES.key(vm), 0),)))
            continue
        key, asked = keys[vm]
        policy = policies[key.attributes.policy] if key is not None else None
        if key is None or asked is None or policy is None:
            found.append(HeldLease(vm, lease, reasons=(_gone(vm),)))
            continue
        reasons = (
            *_refuse_state(key, asked, name, lease.value, now),
            *verdicts[policy.value.name],
            *decide_config(policy.value, vm, name, holder.launched, key.attributes.config),
        )
        checks = (key.check, *(() if asked is key else (asked.check,)))
        found.append(HeldLease(vm, lease, asked, policy.value, reasons, checks))
    return HeldPage(
        tuple(found),
        tuple(policy.check for policy in policies.values() if policy),
        vms[-1] if len(vms) == limits.RENEW_PAGE else None,
    )


async def _keys(
    store: Store, vms: Sequence[str], leases: Sequence[Loaded[Lease] | None]
) -> dict[str, tuple[StoredVm | None, StoredVm | None]]:
    """Of each VM its key and the version that its lease names."""
    current = [_opened(item) for item in await store.get_many([vm_key(vm) for vm in vms])]
    found: dict[str, tuple[StoredVm | None, StoredVm | None]] = {}
    for vm, key, lease in zip(vms, current, leases, strict=True):
        asked = key
        if key is not None and lease is not None and key.record.key_version != lease.value.version:
            item = await store.get(old_key(vm, lease.value.version))
            asked = _opened(item)
        found[vm] = key, asked
    return found


def _opened(item: object) -> StoredVm | None:
    try:
        return None if item is None else open_vm(item)  # type: ignore[arg-type]  # an Item, or None
    except KeypeerError:  # no record: it isn't renewed
        return None


def _refuse_state(key: StoredVm, asked: StoredVm, host: str, lease: Lease, now: int) -> tuple[Reason, ...]:
    vm, version = asked.record.vm, asked.record.key_version
    if asked is key:
        return refuse_release(key.attributes, version, vm=vm, host=host, lease=lease, now=now)
    return refuse_old_release(key.attributes, asked.attributes, version, vm=vm, host=host, lease=lease, now=now)


def _gone(vm: str) -> Reason:
    return Reason("vm.unknown", f"VM {vm} to have a key of that version", "it has none", "stop the VM, or restore it")
