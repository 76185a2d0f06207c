"""One error root for the SDK.

    KeypeerClientError      code, detail, hint
    ├── ProblemError        the service said no: status and reasons (RFC 9457)
    ├── ServiceUnavailable  the service can't be reached, or didn't answer in time
    ├── AnswerError         what answered doesn't speak this protocol
    │   └── ReleaseForged   an answer that the HSM didn't make for this host, session and VM
    ├── TpmError            the TPM said no, or there is none (tpm.*)
    └── StateError          the agent's folder, or an argument that can't be right

Codes are stable; details are for people.
"""

from __future__ import annotations

from keypeer.wire.messages import Problem, ReasonView


class KeypeerClientError(Exception):
    """``code`` is stable and dotted, ``detail`` for people, ``hint`` how to mend it. None of them holds a secret."""

    def __init__(self, code: str, detail: str, hint: str = "") -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.hint = hint


class ProblemError(KeypeerClientError):
    """A problem document of the service. ``retry_after``: the seconds after which it says to ask again, if it does."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(problem.code, problem.detail, problem.hint)
        self.problem = problem
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def reasons(self) -> tuple[ReasonView, ...]:
        """Every failed check of the decision."""
        return self.problem.reasons


class ServiceUnavailable(KeypeerClientError):
    """No answer. Whether a call that changes something took effect is unknown."""


class AnswerError(KeypeerClientError):
    """An answer that isn't one of this protocol."""


class ReleaseForged(AnswerError):
    """A session or a release that isn't what the HSM made for what was asked, or that is stale. No key came of it."""


class TpmError(KeypeerClientError):
    """The TPM refused, or can't be reached."""


class StateError(KeypeerClientError):
    """The agent's folder is missing something, or isn't its owner's alone."""
