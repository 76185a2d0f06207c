"""Many keys as the service makes them durable: the first VM of a host that restarted needn't wait for the last.

A stream that breaks is asked for again, for what is left of it: releasing a VM to its host twice does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from itertools import islice

from keypeer import limits
from keypeer.client import AsyncClient
from keypeer.errors import AnswerError, KeypeerClientError, ProblemError, ReleaseForged, ServiceUnavailable
from keypeer.session import Session
from keypeer.vmkey import VmKey
from keypeer.wire.messages import BATCH_MAX, BatchItem

# What ends a session on the service's side; attesting anew mends it.
SESSION_GONE = ("session.unknown", "session.expired", "session.certificate")
_LATER = (429, 503)

Connect = Callable[[bool], Awaitable[tuple[AsyncClient, Session]]]


async def release_each(
    vms: Iterable[str], connect: Connect, is_current: Callable[[Session], bool]
) -> AsyncGenerator[tuple[str, VmKey | ProblemError], None]:
    """Each VM once, with its key, which the caller closes, or why it isn't released. ``connect`` gives a client and a
    live session, a fresh one when asked so; ``is_current`` whether that session can still open keys.

    Raises what the whole request met: ProblemError, ServiceUnavailable when limits.ATTEMPTS_MAX attempts in a row
    brought nothing, AnswerError, ReleaseForged."""
    left = dict.fromkeys(vms)
    failure: KeypeerClientError
    fresh, attempt, delay = False, 1, limits.RETRY_FIRST_S
    while left:
        client, session = await connect(fresh)
        before = len(left)
        try:
            async with aclosing(client.release_lines(tuple(islice(left, BATCH_MAX)), session.name)) as items:
                async for item in items:
                    if item.vm not in left:
                        raise AnswerError("service.answer", f"VM {item.vm} wasn't asked for, or was told before")
                    if not is_current(session):
                        break  # its keys are wiped: what comes is asked for again under the new one
                    outcome = opened(session, item.vm, item)
                    del left[item.vm]
                    yield item.vm, outcome
            if len(left) < before:
                fresh, attempt, delay = False, 1, limits.RETRY_FIRST_S
                continue
            failure, fresh = AnswerError("service.answer", "no key was opened before its session ended"), False
        except (ReleaseForged, ProblemError, ServiceUnavailable) as error:
            if not _may_pass(error, in_vain=fresh and len(left) == before):
                raise
            failure, fresh = error, error.code in SESSION_GONE
        attempt, delay = (1, limits.RETRY_FIRST_S) if len(left) < before else (attempt + 1, 2 * delay)
        if attempt > limits.ATTEMPTS_MAX:
            raise failure
        if not fresh:
            await asyncio.sleep(max(delay, _told_to_wait(failure)))


def _told_to_wait(error: KeypeerClientError) -> float:
    """Seconds that the service named (RFC 9110 §10.2.3)."""
    return (error.retry_after or 0.0) if isinstance(error, ProblemError) else 0.0


def _may_pass(error: KeypeerClientError, *, in_vain: bool) -> bool:
    """Whether asking again may help; ``in_vain``: a fresh session brought nothing."""
    if isinstance(error, ReleaseForged):
        return error.code == "release.stale"  # it lay here longer than its lease: the caller took its time
    if isinstance(error, ProblemError):
        return not in_vain if error.code in SESSION_GONE else error.status in _LATER
    return error.code != "service.tls"


def opened(session: Session, vm: str, item: BatchItem) -> VmKey | ProblemError:
    """What ``item`` says of ``vm``, its key opened and its MAC checked."""
    if item.release is not None:
        return session.open(item.release, vm)
    if item.problem is None:
        raise AnswerError("service.answer", f"neither a release nor a problem for VM {vm}")
    return ProblemError(item.problem)
