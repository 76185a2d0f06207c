"""Which entries of the audit log a search asks for."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kms.audit.record import AuditRecord, decode_record

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """What an entry must be; "" and None ask for nothing. ``vm`` finds entries of batches that name it too; ``since``
    and ``until`` are Unix seconds, inclusive."""

    action: str = ""
    outcome: str = ""
    actor: str = ""
    host: str = ""
    vm: str = ""
    code: str = ""
    since: float | None = None
    until: float | None = None

    def match(self, entry: bytes) -> AuditRecord | None:
        """The entry's record when it is asked for. Raises msgspec.DecodeError for bytes that are none."""
        # Every text that is asked for stands in the entry as JSON; most entries are passed over by that alone.
        if not all(_encode(text) in entry for text in self._texts() if text):
            return None
        record = decode_record(entry)
        return record if self._is(record) else None

    def _texts(self) -> tuple[str, ...]:
        return self.action, self.outcome, self.actor, self.host, self.vm, self.code

    def _is(self, record: AuditRecord) -> bool:
        if self.vm and record.vm != self.vm:
            named = record.facts.get("vms")
            if not isinstance(named, list) or self.vm not in named:
                return False
        asked = {"action": self.action, "outcome": self.outcome, "actor": self.actor, "host": self.host}
        asked["code"] = self.code
        return (
            all(not value or getattr(record, name) == value for name, value in asked.items())
            and (self.since is None or record.time >= self.since)
            and (self.until is None or record.time <= self.until)
        )
