"""Keys borrowed from the host's agent, for programs that run VMs: copied out of the descriptor into locked memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

from keypeer.agentd.local import KeyFacts, LocalRequest, ask, key_of, refused
from keypeer.agentd.settings import read_settings, socket_path
from keypeer.errors import AnswerError
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey
from keypeer.wire.messages import MigrationView


def agent_socket(folder: Path) -> Path:
    """Where the agent of ``folder`` listens."""
    return socket_path(folder, read_settings(folder))


def borrow(path: Path, vm: str) -> VmKey:
    """The current key of ``vm``, released anew where the agent holds none; the caller closes it. Raises as
    ``keypeer.agentd.local.key_of``."""
    facts, descriptor = key_of(path, vm)
    return _read(facts, descriptor)


def accept(path: Path, vm: str, migration: str) -> tuple[MigrationView, VmKey]:
    """The hand-over's terms and the key that comes with it, as ``keypeer.migration.accept`` has them, under the agent's
    session."""
    answer, descriptor = ask(path, LocalRequest(op="accept", vm=vm, migration=migration))
    if answer.key is None or answer.migration is None or descriptor is None:
        if descriptor is not None:
            os.close(descriptor)
        raise refused(answer)
    return answer.migration, _read(answer.key, descriptor)


def forget(path: Path, vm: str) -> None:
    """The agent forgets ``vm``: it runs here no more. Its lease runs out, or is another host's already."""
    answer, _ = ask(path, LocalRequest(op="drop", vm=vm))
    if not answer.ok:
        raise refused(answer)


def _read(facts: KeyFacts, descriptor: int) -> VmKey:
    secret = LockedBytes(facts.size)
    try:
        if os.preadv(descriptor, [secret.writable], 0) != facts.size:
            secret.close()
            raise AnswerError("local.answer", "the agent's key is shorter than it says", "is it of this version?")
    finally:
        os.close(descriptor)
    return VmKey(
        secret,
        vm=facts.vm,
        version=facts.version,
        generation=facts.generation,
        lease_expires_at=int(time.time() + facts.seconds_left),
        grace=int(facts.grace),
    )
