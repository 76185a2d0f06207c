"""The worker's one state: a token that serves, or the reason why none does; and the way back.

    open ──op fails──> probe ──canary sings──> the operation's own fault, or stale session handles: retry once
      ^                  └──it doesn't──> reopen (C_Finalize, C_Initialize, login, fresh handles, self-test): retry once
      └── every HEAL_BACKOFF_S while broken ──┘

Two reasons are final until the process is replaced: a refused PIN, since trying it again locks real tokens, and a
wrong answer of the self-test, since a token that lied once is not asked again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hsm_adapter import limits
from hsm_adapter import protocol as p
from hsm_adapter.errors import Blame, CryptokiError, HsmError, Unusable
from hsm_adapter.mechanisms import Capabilities
from hsm_adapter.operations import Operations
from hsm_adapter.pin import Pin
from hsm_adapter.selftest import SelfTest
from hsm_adapter.token import Library, Token

_PINGS: Final = frozenset({p.Ping, p.Background})
FINAL_CODES: Final = frozenset({"hsm.pin_incorrect", "hsm.pin_locked", "hsm.pin_source", "hsm.self_test_failed"})

log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Serving:
    """An open token that passed its self-test. ``known_answer``: SelfTest.run's."""

    token: Token
    capabilities: Capabilities
    operations: Operations
    known_answer: str


class Engine:
    """Executes operations on the token labelled ``label`` of the module at ``path``.

    ``read_pin`` is called once; ``lock`` is held to change the token (lock.py); ``operation_delay`` is simulated
    (seconds; see network.py); ``clock`` gives seconds and never goes back.
    """

    def __init__(
        self,
        path: str,
        label: str,
        read_pin: Callable[[], Pin],
        *,
        lock: Path | None = None,
        self_test_interval: float = limits.SELF_TEST_INTERVAL_S,
        operation_delay: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.operations = 0  # executed since the process started, pings apart
        self._path = path
        self._label = label
        self._read_pin = read_pin
        self._lock = lock
        self._interval = self_test_interval
        self._operation_delay = operation_delay
        self._clock = clock
        self._pin: Pin | None = None
        self._library: Library | None = None
        self._capabilities: Capabilities | None = None
        self._self_test = SelfTest()
        self._state: Serving | HsmError = Unusable("hsm.starting", "the token was not opened yet", retryable=True)
        self._due = clock()  # when tick() has work: the next self-test, or the next attempt to open

    def start(self) -> None:
        """Open the token. Raises nothing: a worker that can't serve says why to whoever asks."""
        self._open()

    def close(self) -> None:
        """Log out and close; whatever the token says to that doesn't matter any more."""
        if isinstance(self._state, Serving):
            try:
                self._state.token.close()
            except HsmError as error:
                log.info("close failed", code=error.code, detail=error.detail)
        self._state = Unusable("hsm.closed", "the worker is leaving", retryable=True)

    def execute(self, operation: p.Operation) -> p.Result:
        """The operation's result, or an OperationError; never raises HsmError."""
        if type(operation) in _PINGS:
            return self._pong()
        self.operations += 1
        if self._operation_delay:
            time.sleep(self._operation_delay)
        try:
            serving = self._serving()
            if isinstance(operation, p.SelfTest):
                return self._tested(serving)
            return self._attempt(serving, operation)
        except HsmError as error:
            if isinstance(operation, p.SelfTest):
                return p.SelfTestResult(False, str(error), "", {})
            return p.OperationError(error.code, error.detail, error.retryable)

    def tick(self) -> None:
        """What time demands: the self-test while the token serves, an attempt to open it while it doesn't."""
        if self._clock() < self._due:
            return
        self._due = self._clock() + self._interval
        if isinstance(self._state, Serving):
            with suppress(HsmError):  # it is the new state now, and logged
                self._tested(self._state)
        elif self._state.code not in FINAL_CODES:
            self._open()

    def seconds_until_due(self) -> float:
        """How long tick() has nothing to do."""
        return max(0.0, self._due - self._clock())

    def _serving(self) -> Serving:
        """The open token, opened now if an attempt is due. Raises the reason why there is none."""
        if isinstance(self._state, HsmError) and self._state.code not in FINAL_CODES and self._clock() >= self._due:
            self._open()
        if isinstance(self._state, HsmError):
            raise self._state
        return self._state

    def _attempt(self, serving: Serving, operation: p.Operation) -> p.Result:
        try:
            return serving.operations.run(operation)
        except CryptokiError as error:
            if error.blame is Blame.OPERATION:
                raise
            mended = self._mend(serving, error)
        return mended.operations.run(operation)

    def _mend(self, serving: Serving, error: CryptokiError) -> Serving:
        """What to try the operation on once more; raises when that would be in vain.

        The canary sings and yet the operation failed: either its session's handles died alone, or it deserved it;
        SoftHSM answers a blob that another key wrapped with CKR_GENERAL_ERROR.
        """
        log.warning("operation failed", code=error.code, detail=error.detail)
        try:
            self._self_test.probe(serving.token, serving.capabilities.key_wrap)
        except HsmError as silence:
            log.warning("probe failed, opening the token anew", code=silence.code, detail=silence.detail)
            return self._reopened()
        if error.blame is Blame.HANDLES:
            serving.operations.forget_sessions()
            return serving
        if error.function == "C_UnwrapKey":
            raise HsmError("hsm.unwrap_failed", error.detail) from error
        raise error

    def _pong(self) -> p.Pong:
        healthy = isinstance(self._state, Serving)
        return p.Pong(healthy, "" if healthy else str(self._state), self.operations, os.getpid())

    def _tested(self, serving: Serving) -> p.SelfTestResult:
        """A failure gets one chance with fresh handles; the self-test after opening has the last word."""
        try:
            known_answer = self._self_test.run(serving.token, serving.capabilities.key_wrap)
            self._due = self._clock() + self._interval
        except HsmError as error:
            log.warning("self-test failed, opening the token anew", code=error.code, detail=error.detail)
            serving = self._reopened()
            known_answer = serving.known_answer
        return p.SelfTestResult(True, "", known_answer, serving.token.keys.kek_check_values)

    def _reopened(self) -> Serving:
        self._open()
        if isinstance(self._state, HsmError):
            raise self._state
        return self._state

    def _open(self) -> None:
        """Set the state: Serving, or the reason why not."""
        before = self._state
        try:
            self._state = self._opened()
            self._due = self._clock() + self._interval
        except HsmError as error:
            self._state = error
            self._due = self._clock() + limits.HEAL_BACKOFF_S
            if str(error) != str(before):  # once, not at every attempt
                log.error("not serving", code=error.code, detail=error.detail)

    def _opened(self) -> Serving:
        if self._pin is None:
            self._pin = self._read_pin()
        if self._library is None:
            self._library = Library(self._path)
        else:
            self._library.reinitialize()
        token = Token(self._library, self._label, self._pin, self._lock)
        if self._capabilities is None:
            self._capabilities = token.capabilities()
        can = self._capabilities
        known_answer = self._self_test.run(token, can.key_wrap)
        log.info("token open", label=self._label, oaep=can.oaep_hash, key_wrap=can.key_wrap_name, tested=known_answer)
        return Serving(token, can, Operations(token, can), known_answer)
