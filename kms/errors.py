"""One error root for the service.

    KeypeerError
    ├── Refused        the caller may not have this (policy, evidence, role, rate, quota); 401, 403, 429
    ├── BadRequest     the caller's message is wrong; 400, 404, 409, 413, 415, 422
    └── Unavailable    the service can't do it now (HSM, store, audit); 503, 507

Every error carries a stable dotted ``code`` and, where it is known, what was asked, what was found and how to
mend it. The web layer turns one into an RFC 9457 problem document without a mapping table.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class Reason:
    """One failed check: a stable dotted ``id``, what was asked, what was found, how to mend it."""

    id: str
    asked: str
    found: str
    mend: str

    def __str__(self) -> str:
        return f"{self.id}: {self.found}; {self.asked}"


class KeypeerError(Exception):
    """Root of all errors that a caller may see.

    ``code`` is part of the API and never changes its meaning; ``detail`` is for people.
    """

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        hint: str = "",
        status: HTTPStatus | None = None,
        reasons: tuple[Reason, ...] = (),
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.hint = hint
        self.reasons = reasons
        if status is not None:
            self.status = status


class Refused(KeypeerError):
    """The caller is understood, and the answer is no."""

    status = HTTPStatus.FORBIDDEN


class Throttled(Refused):
    """The caller asked too often. Nothing was done; ``retry_after`` is whole seconds."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        hint: str = "",
        status: HTTPStatus | None = None,
        reasons: tuple[Reason, ...] = (),
        retry_after: int,
    ) -> None:
        super().__init__(code, detail, hint=hint, status=status, reasons=reasons)
        self.retry_after = retry_after


class BadRequest(KeypeerError):
    """The caller's message can't be right, whoever sent it."""

    status = HTTPStatus.BAD_REQUEST


class NotFound(BadRequest):
    """The thing named isn't here."""

    status = HTTPStatus.NOT_FOUND


class Unavailable(KeypeerError):
    """The service can't answer now; nothing was changed unless ``code`` says that the outcome is unknown."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


class NoVerdict(BadRequest):
    """Good or bad can't be said of this evidence: what the service knows of the host moved on meanwhile. Nothing was
    decided; the host answers a new challenge."""

    status = HTTPStatus.CONFLICT


class LogsWanted(NoVerdict):
    """The host sent its logs from another place than where the service's knowledge ends, which may have moved since
    the challenge was made; a new challenge says where to start."""

    def __init__(self, asked: str, found: str) -> None:
        super().__init__(
            "attestation.logs", f"wanted: {asked}; sent: {found}", hint="ask for a new challenge and send what it wants"
        )


class Overtaken(NoVerdict):
    """A quote that was made before the one that arrived before it: two attestations of one host at once."""

    def __init__(self, late_ms: int) -> None:
        super().__init__(
            "attestation.overtaken",
            f"this quote was made {late_ms} ms before the newest one that the service has of this host",
            hint="ask for a new challenge; if it stays so, the TPM's state was put back",
        )


class EvidenceError(BadRequest):
    """Evidence bytes that don't parse, or that no honest TPM would have made."""


def cut_off() -> Unavailable:
    """What this site can't do by itself."""
    return Unavailable(
        "site.cut_off",
        "this site is cut off from the primary of its store, and this needs a fresh read or a commit; "
        "only leases are renewed here, and no longer than their grace",
        hint="ask again when the primary can be reached, or ask a node that reaches it",
    )
