"""One increment of a host's measurement list, against the quote and against a runtime policy.

Quote and list aren't read at one moment, and the list only grows: it is replayed to the entry at which PCR 10 has the
quoted value, and nothing after that entry is believed; it comes again with the next quote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from keypeer.wire.profile import IMA_PCR
from kms import limits
from kms.domain.attestation import ImaPosition, RuntimeState
from kms.errors import Reason
from kms.evidence.ima.entry import VIOLATION, Entry
from kms.evidence.ima.policy import CompiledRuntime
from kms.evidence.ima.replay import Replayed, replay
from kms.evidence.model import Findings
from kms.tpm.constants import BANKS

Flat = tuple[str, str, str, str]
_AGGREGATE = b"boot_aggregate"
_AGGREGATE_PCRS = range(10)  # ima_calc_boot_aggregate: 0–7, and 8 and 9 too unless by SHA-1 (Linux 5.8)


def advance(
    findings: Findings,
    known: ImaPosition,
    entries: Sequence[Entry],
    bank: Literal["sha256", "sha384"],
    pcrs: Mapping[int, bytes],
) -> tuple[ImaPosition, Sequence[Entry]]:
    """The new position, and the entries that the quoted ``pcrs`` prove. A list that doesn't lead to the quoted PCR 10
    is ``runtime.ima.replay``."""
    quoted = pcrs.get(IMA_PCR)
    if quoted is None:
        return known, ()
    value = known.value or bytes(BANKS[bank].size)
    found = replay(entries, value, quoted, BANKS[bank], known.padded)
    if found is None:
        findings.add(
            "runtime.ima.replay",
            asked=f"an IMA list that leads PCR {IMA_PCR} from {value.hex()} to the quoted {quoted.hex()}",
            found=f"{len(entries)} further entries, none of which does",
            mend=f"host {findings.host} sends the kernel's list unchanged; nothing but IMA may extend PCR {IMA_PCR}",
        )
        return known, ()
    if known.entries + found.entries > limits.IMA_ENTRIES_MAX:
        findings.add(
            "runtime.ima.size",
            asked=f"at most {limits.IMA_ENTRIES_MAX} entries in one boot",
            found=f"{known.entries + found.entries}",
            mend=f"measure less (a narrower IMA policy), then reboot host {findings.host}",
        )
        return known, ()
    return _moved(known, found, quoted), entries[: found.entries]


def _moved(known: ImaPosition, found: Replayed, quoted: bytes) -> ImaPosition:
    if found.entries == 0:
        return known
    return ImaPosition(known.entries + found.entries, quoted, found.padded)


def judge(
    policy: CompiledRuntime,
    state: RuntimeState,
    entries: Sequence[Entry],
    *,
    first: bool,
    host: str,
    bank: Literal["sha256", "sha384"],
    pcrs: Mapping[int, bytes],
) -> RuntimeState:
    """``state`` after the proven ``entries``; ``first``: they begin the list, so boot_aggregate must come first."""
    failures, reasons = state.failures, list(state.reasons)
    seen = set(state.seen)
    rest: Sequence[Entry] = entries
    if first:
        wrong = _boot_aggregate(entries[0] if entries else None, policy, host, bank, pcrs)
        if wrong is not None:
            failures, reasons = failures + 1, [*reasons, _flat(wrong)]
        rest = entries[1:]
    allowed, required = policy.allowed, policy.required
    for entry in rest:
        claim = entry.claim
        # A violation extends ones, whatever its text says: that a set allows the claim proves nothing.
        if claim in allowed and entry.template_hash != VIOLATION:
            if claim in required:
                seen.add(required[claim])
            continue
        # A signature costs as much as hundreds of entries: of a host that failed often enough, none is tried any more.
        reason = policy.judge(entry, host, signatures=failures < limits.RUNTIME_REASONS_MAX)
        if reason is not None:
            failures += 1
            if len(reasons) < limits.RUNTIME_REASONS_MAX:
                reasons.append(_flat(reason))
    return RuntimeState(failures, tuple(reasons), tuple(sorted(seen)))


def verdict(policy: CompiledRuntime, state: RuntimeState, host: str) -> tuple[Flat, ...]:
    """All that stands against the host under ``policy``: failures, and what is required and missing."""
    told = list(state.reasons)
    if state.failures > len(told):
        more = f"and {state.failures - len(told)} further failures; signatures were no longer tried"
        told.append(_flat(Reason("runtime.more", "none", more, "mend the ones that are told, then look again")))
    return (*told, *(_flat(reason) for reason in policy.missing(frozenset(state.seen), host)))


def _boot_aggregate(
    entry: Entry | None,
    policy: CompiledRuntime,
    host: str,
    bank: Literal["sha256", "sha384"],
    pcrs: Mapping[int, bytes],
) -> Reason | None:
    """Why the list isn't tied to the boot that the quote shows."""
    asked = f"a list that begins with boot_aggregate over the quoted {bank} PCRs 0 to 9"
    mend = f"host {host} sends the list from its first entry; its kernel is 5.8 or later, with ima_hash={bank}"
    if entry is None:
        return Reason("runtime.boot_aggregate", asked, f"host {host} sent an empty list", mend)
    claimed, _, name = entry.claim.partition(b" ")
    if name != _AGGREGATE:
        return Reason("runtime.boot_aggregate", asked, f"host {host}'s list begins with another entry", mend)
    if claimed.startswith(b"sha1:"):
        found = f"host {host}'s is made of SHA-1 PCRs, which the quote doesn't show"
        return None if policy.sha1_boot_aggregate else Reason("runtime.boot_aggregate", asked, found, mend)
    algorithm, _, digits = claimed.rpartition(b":")
    if algorithm.rpartition(b":")[2] != bank.encode() or any(pcr not in pcrs for pcr in _AGGREGATE_PCRS):
        found = f"host {host}'s is by {algorithm.decode(errors='replace')}; PCRs 0 to 9 may not all be quoted"
        return Reason("runtime.boot_aggregate", asked, found, mend)
    made = hashlib.new(bank, b"".join(pcrs[pcr] for pcr in _AGGREGATE_PCRS)).hexdigest()
    if made.encode() == digits:
        return None
    found = f"host {host}'s is {digits.decode(errors='replace')}, the quoted PCRs give {made}"
    return Reason("runtime.boot_aggregate", asked, found, mend)


def _flat(reason: Reason) -> Flat:
    return reason.id, reason.asked, reason.found, reason.mend
