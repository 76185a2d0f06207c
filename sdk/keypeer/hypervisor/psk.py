"""A pre-shared key in QEMU, for the TLS of one migration (``tls-creds-psk``; RFC 8446 §2.2, RFC 4279).

QEMU takes such a key from a file ``keys.psk`` in a folder that it is told, and its server side reads the file anew at
each handshake. So the folder holds a symbolic link to a descriptor that QEMU was lent: the key is in no file system.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from keypeer import limits
from keypeer.errors import StateError
from keypeer.hypervisor.derive import hex_into
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.qemu import Qemu
from keypeer.hypervisor.secretfd import SecretFd
from keypeer.locked import LockedBytes

_OBJECT = "migration-psk"
_USER = "keypeer"  # the identity in the handshake; both ends have one key, for one hand-over


@contextlib.asynccontextmanager
async def migration_psk(
    machine: Qemu, psk: bytes | bytearray | memoryview, endpoint: Literal["client", "server"]
) -> AsyncIterator[None]:
    """Inside the block QEMU's migrations are encrypted under ``psk`` (32 to 64 bytes) and nothing else. The source is
    the ``client``. Raises StateError ``migration.psk``, HypervisorError."""
    folder = machine.spec.folder / "psk"
    with _key_file(psk) as secret:
        lent = await machine.qmp.lend(secret.fd)
        _link(folder, lent.path)
        try:
            with contextlib.suppress(HypervisorError):  # of a run that was killed
                await machine.qmp.execute("object-del", {"id": _OBJECT})
            credentials = {
                "qom-type": "tls-creds-psk",
                "id": _OBJECT,
                "endpoint": endpoint,
                "dir": str(folder.absolute()),
            }
            if endpoint == "client":
                credentials["username"] = _USER
            await machine.qmp.execute("object-add", credentials)
            # QEMU wants a name beside the credentials; a PSK proves more than a name.
            await machine.qmp.execute("migrate-set-parameters", {"tls-creds": _OBJECT, "tls-hostname": _USER})
            yield
        finally:
            _unlink(folder)
            # QEMU may be gone, or end with the migration.
            with contextlib.suppress(HypervisorError):
                await machine.qmp.execute("migrate-set-parameters", {"tls-creds": "", "tls-hostname": ""})
                await machine.qmp.execute("object-del", {"id": _OBJECT})
                await machine.qmp.take_back(lent)


def _key_file(psk: bytes | bytearray | memoryview) -> SecretFd:
    raw = memoryview(psk).cast("B")
    if not limits.PSK_BYTES_MIN <= len(raw) <= limits.PSK_BYTES_MAX:
        bounds = f"{limits.PSK_BYTES_MIN} to {limits.PSK_BYTES_MAX}"
        raise StateError("migration.psk", f"a pre-shared key has {bounds} bytes, not {len(raw)}")
    with LockedBytes(2 * len(raw)) as text:
        hex_into(raw, text.writable)
        return SecretFd(f"{_USER}:".encode(), text.view(), b"\n")


def _link(folder: Path, target: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    link = folder / "keys.psk"
    link.unlink(missing_ok=True)  # of a run that was killed
    link.symlink_to(target)


def _unlink(folder: Path) -> None:
    (folder / "keys.psk").unlink(missing_ok=True)
    folder.rmdir()
