"""One process at a time changes a token: SoftHSM's objects are not safe against concurrent creation, and no token keeps
two makers from giving one label to two keys. The lock is a file's, which the system takes back however its holder ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hsm_adapter import limits
from hsm_adapter.errors import HsmError

_LOOK_S: Final = 0.005  # seconds between attempts


@contextmanager
def token_lock(path: Path | None, patience: float = limits.TOKEN_LOCK_S) -> Iterator[None]:
    """Holds the lock on the file ``path``, made if need be; None takes none. Raises HsmError(hsm.token_busy),
    retryable, when another process keeps it for ``patience`` seconds."""
    if path is None:
        yield
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HsmError("hsm.lock", f"{path}: {error.strerror}") from error
    try:
        _take(descriptor, path, time.monotonic() + patience)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise HsmError(
                    "hsm.token_busy", f"another process is changing the token ({path})", retryable=True
                ) from None
            time.sleep(_LOOK_S)
        else:
            return
