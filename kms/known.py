"""What the service knows of a host when its evidence arrives: read at once, and checked again at the commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from kms.domain.attestation import AttestationSession, ClockRecord, HostEvidence, LaunchPosition, StoredGeoTag
from kms.domain.hosts import EnrolledHost, OutstandingNonces, Refusal
from kms.domain.policies import Baseline, boot_facts
from kms.domain.service_keys import KeysInUse, SigningName
from kms.domain.trust import HostEventHead
from kms.evidence.appraise import Proven
from kms.evidence.ima.policy import CompiledRuntime
from kms.evidence.model import KnownBoot, KnownRuntime
from kms.in_use import read_keys_in_use
from kms.records import (
    BASELINES,
    EVENT_HEADS,
    EVIDENCE,
    GEO_TAGS,
    HOSTS,
    KEYS_IN_USE,
    LAUNCHES,
    NONCES,
    REFUSALS,
    SESSIONS,
    Loaded,
    Records,
)
from kms.runtime_records import RuntimePolicies
from kms.signing_keys import SIGNING_KEYS, SigningKey, read_signing_key
from kms.store.port import Check

_KEYS: tuple[SigningName, ...] = ("geo", "session", "ca")
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class KnownHost:
    """A host's records, and what all hosts are held against."""

    host: Loaded[EnrolledHost]
    nonces: Loaded[OutstandingNonces] | None
    session: Loaded[AttestationSession] | None
    evidence: Loaded[HostEvidence] | None
    launches: Loaded[LaunchPosition] | None
    tag: Loaded[StoredGeoTag] | None
    head: Loaded[HostEventHead] | None
    refusal: Loaded[Refusal] | None
    in_use: tuple[KeysInUse, Check]
    keys: Mapping[SigningName, SigningKey]
    baselines: tuple[Loaded[Baseline], ...]
    runtime: tuple[Loaded[CompiledRuntime], ...]

    @property
    def name(self) -> str:
        return self.host.value.host

    def checks(self) -> list[Check]:
        """That what a verdict stands on is still what was read."""
        return [
            self.host.check,
            self.nonces.check if self.nonces else Check(NONCES.key(self.name), 0),
            self.session.check if self.session else Check(SESSIONS.key(self.name), 0),
            self.head.check if self.head else Check(EVENT_HEADS.key(self.name), 0),
            self.tag.check if self.tag else Check(GEO_TAGS.key(self.name), 0),
            *(baseline.check for baseline in self.baselines),
            *(policy.check for policy in self.runtime),
        ]

    def last_clock(self) -> ClockRecord | None:
        """The session's, which is read at each attestation; without one that of the last evidence that was kept."""
        if self.session is not None and self.session.value.appraisal.clock is not None:
            return self.session.value.appraisal.clock
        return self.evidence.value.clock if self.evidence else None

    def known_boot(self) -> KnownBoot | None:
        """What the last boot log proved, so that it needn't be sent again."""
        kept = self.evidence.value if self.evidence else None
        facts = boot_facts(kept.boot) if kept else None
        return None if kept is None or facts is None else KnownBoot(kept.boot_log_sha256, kept.pcrs, facts)

    def known_runtime(self) -> tuple[KnownRuntime, ...]:
        """Each runtime policy in force, and how the session's list stands under just this version of it."""
        judged = self.session.value.runtime if self.session else ()
        states = {(each.policy, each.version): each.state for each in judged}
        return tuple(
            KnownRuntime(loaded.value, loaded.version, states.get((loaded.value.name, loaded.version)))
            for loaded in self.runtime
        )

    def runtime_versions(self) -> dict[str, int]:
        """The runtime policies in force, by name."""
        return {loaded.value.name: loaded.version for loaded in self.runtime}

    def kept_evidence(self, proven: Proven, now: int) -> HostEvidence:
        """What to keep of evidence."""
        return HostEvidence(
            host=self.name,
            at=now,
            reset_count=proven.clock.counters.reset_count,
            pcrs=proven.pcrs,
            boot_log_sha256=proven.boot_log.sha256 if proven.boot_log else b"",
            boot=_encode(proven.boot) if proven.boot else b"",
            clock=proven.clock,
        )

    def is_news(self, kept: HostEvidence) -> bool:
        """Whether ``kept`` says more than what is kept already, but for the time."""
        known = self.evidence.value if self.evidence else None
        return known is None or msgspec.structs.replace(known, at=kept.at, clock=kept.clock) != kept


async def read_known(
    records: Records, runtime: RuntimePolicies, first_keys: Mapping[str, bytes], name: str
) -> KnownHost | None:
    """All that is known of the host, freshly read, in as few reads as there can be: a store with standbys waits for
    them at each. None when there is no such host."""
    own = (HOSTS, NONCES, SESSIONS, EVIDENCE, LAUNCHES, GEO_TAGS, EVENT_HEADS, REFUSALS)
    wanted = [*((kind, name) for kind in own), (KEYS_IN_USE, "hsm"), *((SIGNING_KEYS, key) for key in _KEYS)]
    host, nonces, session, evidence, launches, tag, head, refusal, in_use, *keys = await records.load_many(wanted)
    if host is None:
        return None
    return KnownHost(
        host=host,
        nonces=nonces,
        session=session,
        evidence=evidence,
        launches=launches,
        tag=tag,
        head=head,
        refusal=refusal,
        in_use=read_keys_in_use(in_use),
        keys={key: read_signing_key(loaded, first_keys, key) for key, loaded in zip(_KEYS, keys, strict=True)},
        baselines=tuple(await records.all(BASELINES)),
        runtime=await runtime.load(),
    )
