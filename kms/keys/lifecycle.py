"""The life of a VM key as one table: states by NIST SP 800-57 Part 1 Rev. 5 §7 and KMIP 2.1 §11.59 (KMIP's names for
the acts: §6), which act leads from which state where, and what a state lets one do.

Two things differ from the standard, both because keys here open memory that may still run: destruction has a waiting
time, in which the key is deactivated and an officer may undo the act; and a compromised key may be rotated, so that its
VM goes on under a new version while the old one stays compromised. No state lets anyone export a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from kms.domain.vms import KeyAttributes, KeyState, Lease
from kms.errors import Reason

KeyAct = Literal[
    "activate", "suspend", "resume", "deactivate", "compromise", "destroy", "cancel-destroy", "erase", "rotate"
]
Actor = Literal["officer", "operator", "service"]
Right = Literal["release", "read"]

STATES: tuple[KeyState, ...] = ("pre-active", "active", "suspended", "deactivated", "compromised", "destroyed")

# (state, act) → the state after it. "destroy" sets a date, "erase" is what happens then.
TABLE: Mapping[tuple[KeyState, KeyAct], KeyState] = {
    ("pre-active", "activate"): "active",
    ("pre-active", "compromise"): "compromised",
    ("pre-active", "destroy"): "pre-active",
    ("pre-active", "erase"): "destroyed",
    ("active", "suspend"): "suspended",
    ("active", "deactivate"): "deactivated",
    ("active", "compromise"): "compromised",
    ("active", "destroy"): "deactivated",
    ("active", "rotate"): "active",
    ("suspended", "resume"): "active",
    ("suspended", "deactivate"): "deactivated",
    ("suspended", "compromise"): "compromised",
    ("suspended", "destroy"): "deactivated",
    ("deactivated", "compromise"): "compromised",
    ("deactivated", "destroy"): "deactivated",
    ("deactivated", "erase"): "destroyed",
    ("compromised", "destroy"): "compromised",
    ("compromised", "erase"): "destroyed",
    ("compromised", "rotate"): "active",
}
# What a version becomes when the next one is made.
REPLACED: Mapping[KeyState, KeyState] = {"active": "deactivated", "compromised": "compromised"}
# While a destruction is scheduled nothing else may happen: what it would lead to is gone at the date.
WHILE_SCHEDULED: frozenset[KeyAct] = frozenset({"compromise", "cancel-destroy", "erase"})

BY: Mapping[KeyAct, frozenset[Actor]] = {
    "activate": frozenset({"officer", "service"}),  # the service at the date that was given
    "suspend": frozenset({"officer"}),
    "resume": frozenset({"officer"}),
    "deactivate": frozenset({"officer"}),
    "compromise": frozenset({"officer"}),
    "destroy": frozenset({"officer"}),
    "cancel-destroy": frozenset({"officer"}),
    "erase": frozenset({"service"}),
    "rotate": frozenset({"officer"}),
}

# "release": to any host that policy allows. "read": to the host whose lease names the version, until a date.
MAY: Mapping[KeyState, frozenset[Right]] = {
    "pre-active": frozenset(),
    "active": frozenset({"release", "read"}),
    "suspended": frozenset(),
    "deactivated": frozenset({"read"}),
    "compromised": frozenset(),
    "destroyed": frozenset(),
}


def settled(attributes: KeyAttributes, now: int) -> KeyAttributes:
    """``attributes`` with the activation that fell due by ``now``: a date needs nobody to act on it."""
    due = attributes.state == "pre-active" and 0 < attributes.activates_at <= now and not attributes.destroy_at
    if not due:
        return attributes
    return _replace(attributes, state="active", since=attributes.activates_at, activates_at=0)


def refuse_act(attributes: KeyAttributes, act: KeyAct, vm: str, now: int) -> tuple[Reason, ...]:
    """Why ``act`` can't be done to the key of ``vm`` now; empty when it can."""
    state = settled(attributes, now).state
    if attributes.destroy_at and act not in WHILE_SCHEDULED:
        return (
            Reason(
                "vm.destroy_scheduled",
                f"{act} wants a key that isn't to be destroyed",
                f"VM {vm}'s key is to be destroyed at {attributes.destroy_at}",
                f"cancel it first (keypeer vm cancel-destroy {vm})",
            ),
        )
    if act == "cancel-destroy":
        return () if attributes.destroy_at else (_not_scheduled(vm),)
    if act == "erase" and not 0 < attributes.destroy_at <= now:
        return (_not_scheduled(vm),)
    if (state, act) in TABLE:
        return ()
    wanted = [before for before, possible in TABLE if possible == act]
    return (
        Reason(
            "vm.state",
            f"{act} wants a key that is {' or '.join(wanted)}",
            f"VM {vm}'s key is {state}",
            "keypeer vm show tells its state; the README has the table",
        ),
    )


def carry_out(attributes: KeyAttributes, act: KeyAct, now: int, *, until: int = 0) -> KeyAttributes:
    """The key's attributes after an act that ``refuse_act`` lets through. ``until``: the date of destroy, or until when
    a deactivated key stays readable."""
    now_it_is = settled(attributes, now)
    if act == "cancel-destroy":
        return _replace(now_it_is, state=now_it_is.before or now_it_is.state, since=now, destroy_at=0, before=None)
    after = TABLE[now_it_is.state, act]
    if act == "destroy":
        return _replace(now_it_is, state=after, since=now, destroy_at=until, before=now_it_is.state)
    if act == "deactivate":
        return _replace(now_it_is, state=after, since=now, readable_until=until)
    if act == "compromise":
        before: KeyState | None = after if now_it_is.destroy_at else None
        return _replace(now_it_is, state=after, since=now, compromised_at=now, before=before)
    if act == "rotate":
        return _replace(now_it_is, state=after, since=now, made_at=now, compromised_at=0, imported=False)
    return _replace(now_it_is, state=after, since=now, activates_at=0)


def replaced(attributes: KeyAttributes, now: int, readable_until: int) -> KeyAttributes:
    """A version's attributes once the next version is made. It is erased when nobody may read it any more."""
    state = REPLACED[settled(attributes, now).state]
    until = readable_until if state == "deactivated" else 0
    return _replace(attributes, state=state, since=now, readable_until=until, destroy_at=max(now, readable_until))


def refuse_release(
    attributes: KeyAttributes, version: int, *, vm: str, host: str, lease: Lease | None, now: int
) -> tuple[Reason, ...]:
    """Why the current version isn't released to ``host`` now; empty when it is."""
    if attributes.state == "active":  # nearly always
        return ()
    key = settled(attributes, now)
    may = MAY[key.state]
    if "release" in may:
        return ()
    if "read" in may and not key.destroy_at and key.readable_until:
        return _refuse_reading(key, version, vm=vm, host=host, lease=lease, now=now)
    return (
        Reason(
            "key.state",
            "an active key",
            f"VM {vm}'s key is {_in_words(key)}",
            _MEND[key.state].format(vm=vm),
        ),
    )


def refuse_old_release(
    current: KeyAttributes, old: KeyAttributes, version: int, *, vm: str, host: str, lease: Lease | None, now: int
) -> tuple[Reason, ...]:
    """Why the old version ``version`` isn't released to ``host`` now; empty when it is. What stops the VM's key stops
    its old versions too."""
    if current.destroy_at or "read" not in MAY[settled(current, now).state]:
        return refuse_release(_replace(current, readable_until=0), version, vm=vm, host=host, lease=lease, now=now)
    if "read" not in MAY[old.state]:
        return (
            Reason(
                "key.state",
                "a version that is readable",
                f"version {version} of VM {vm}'s key is {_in_words(old)}",
                "ask for the current version",
            ),
        )
    return _refuse_reading(old, version, vm=vm, host=host, lease=lease, now=now)


def _refuse_reading(
    attributes: KeyAttributes, version: int, *, vm: str, host: str, lease: Lease | None, now: int
) -> tuple[Reason, ...]:
    # An ended lease will do: a host that was down reads what it wrote, and whoever owned the VM since has its own lease
    # in this one's place.
    reasons = []
    if attributes.readable_until <= now:
        reasons.append(
            Reason(
                "key.version_ended",
                "a version that is readable still",
                f"version {version} of VM {vm}'s key was readable until {attributes.readable_until}",
                "ask for the current version",
            )
        )
    if lease is None or lease.host != host or lease.version != version:
        held = f"names host {lease.host} and version {lease.version}" if lease else "is none"
        reasons.append(
            Reason(
                "key.version_lease",
                f"a lease of host {host} that names version {version}",
                f"VM {vm}'s lease {held}",
                "only the host that held the version may read it; others ask for the current one",
            )
        )
    return tuple(reasons)


def _in_words(attributes: KeyAttributes) -> str:
    scheduled = f", to be destroyed at {attributes.destroy_at}" if attributes.destroy_at else ""
    opens = f" until {attributes.activates_at}" if attributes.activates_at else ""
    return attributes.state + opens + scheduled


_MEND: Mapping[KeyState, str] = {
    "pre-active": "wait for its date, or an officer activates it (keypeer vm activate {vm})",
    "active": "",
    "suspended": "an officer resumes it (keypeer vm resume {vm})",
    "deactivated": "a deactivated key isn't released; where its destruction was scheduled an officer may cancel that",
    "compromised": "an officer rotates it (keypeer vm rotate {vm})",
    "destroyed": "it is gone",
}


def _not_scheduled(vm: str) -> Reason:
    return Reason(
        "vm.destroy_not_scheduled",
        "a destruction that is scheduled",
        f"none is scheduled, or not for now, for VM {vm}'s key",
        "keypeer vm show tells",
    )


def _replace(attributes: KeyAttributes, **changes: object) -> KeyAttributes:
    changed: KeyAttributes = msgspec.structs.replace(attributes, **changes)
    return changed
