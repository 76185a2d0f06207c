"""The host's measurement logs, read for one attestation: the firmware's boot log, Linux' IMA list.

The kernel shows both as files that have no size until they are read. Reading comes after quoting, so that a log is
never older than the quote; the service trusts no entry after the one that the quote proves.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from keypeer import limits
from keypeer.errors import StateError
from keypeer.tpm import Boot
from keypeer.wire.encoding import b64encode
from keypeer.wire.messages import BootLog, ImaLog, LogPositions


def of_this_boot(known: LogPositions, boot: Boot) -> LogPositions:
    """What the service has of this boot's logs; of another boot's they begin anew."""
    return known if known.reset_count == boot.reset_count else LogPositions(boot_log=known.boot_log)


def boot_log(path: Path, known: LogPositions) -> BootLog:
    """The boot log, or its digest alone when the service has it. Raises StateError ``log.missing``, ``log.size``."""
    log = _read(path, limits.BOOT_LOG_BYTES_MAX)
    digest = hashlib.sha256(log).hexdigest()
    return BootLog(sha256=digest, log=None if digest == known.boot_log else b64encode(log))


def ima_log(path: Path, known: LogPositions) -> ImaLog:
    """The IMA list (ASCII) from the entry on that the service hasn't seen. Raises StateError ``log.missing``, and
    ``log.size`` for more than goes at a time: a part of it couldn't lead to the quoted PCR."""
    start = 0
    rest = _read(path, limits.IMA_LIST_BYTES_MAX)
    for _ in range(known.ima):
        end = rest.find(b"\n", start)
        if end < 0:
            break  # the service knows more than there is: the list of another boot; it refuses in words
        start = end + 1
    if len(rest) - start > limits.IMA_INCREMENT_BYTES_MAX:
        found = f"{path} has {len(rest) - start} bytes that the service hasn't seen"
        hint = f"at most {limits.IMA_INCREMENT_BYTES_MAX} go at a time: attest more often, or measure less and reboot"
        raise StateError("log.size", found, hint)
    return ImaLog(start=known.ima, entries=b64encode(rest[start:]))


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        hint = "name the log in agent.toml, or leave it out with an empty name"
        raise StateError("log.missing", f"{path}: {error.strerror}", hint) from None
    if len(data) > most:
        raise StateError("log.size", f"{path} has more than {most} bytes", "it isn't such a log")
    return data
