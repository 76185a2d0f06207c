"""Continuous trust: what hosts and webhooks are told, and which leases are to be looked at again."""

from __future__ import annotations

from typing import Literal

from kms.domain.record import Record


class HostEventHead(Record, frozen=True):
    """Where a host's event log stands: the number of its ``last`` event, and of the last one that ended all leases
    granted before it. ``trusted``: something may have been granted since."""

    last: int = 0
    ended_all: int = 0
    trusted: bool = False


class StoredEvent(Record, frozen=True):
    """Something that a host should hear. ``ends``: all leases granted before it, some (``vms``), or none; ``attest``:
    the host should attest now. ``reasons``: (id, asked, found, mend) each."""

    number: int
    at: float
    host: str
    event: str
    ends: Literal["all", "some", "none"] = "none"
    vms: tuple[str, ...] = ()
    attest: bool = False
    reasons: tuple[tuple[str, str, str, str], ...] = ()
    why: str = ""


class TrustCheck(Record, frozen=True):
    """Hosts whose leases are to be looked at: under one ``policy``, ``all``, one ``host``, or all of them told to
    attest (``runtime``). ``after`` is the last one that was."""

    what: Literal["policy", "all", "host", "runtime"]
    policy: str = ""
    host: str = ""
    after: str = ""


class WebhookState(Record, frozen=True):
    """The last of the fleet's events that was told to ``url``, and how it went since: failures in a row, the last
    attempt, why."""

    url: str
    sent: int
    failures: int = 0
    tried_at: float = 0.0
    trouble: str = ""


class FleetHead(Record, frozen=True):
    """The number of the fleet log's last event."""

    last: int = 0
