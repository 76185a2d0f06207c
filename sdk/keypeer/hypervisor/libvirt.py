"""libvirt's hook: an incoming VM is asked about before libvirt lets it in (https://libvirt.org/hooks.html).

libvirt runs ``/etc/libvirt/hooks/qemu VM OPERATION SUB-OPERATION EXTRA`` with the domain XML on standard input. On the
*destination* of a migration ``migrate begin`` comes before a byte of the guest does, and a status other than 0 stops
the migration; so does ``restore begin`` for saved images. Every other call is let through: the source's first hook
comes after the hand-over, and ``started`` comes for migrations that fail: neither can fence as ``migrate.send`` does.

The hook runs the check program of the installation file with three more arguments: the operation, the VM's name, the
digest of its configuration (keypeer.vmconfig, hexadecimal). It must not call libvirt, which waits for it.

``hook_file`` is the installation file's text; ``keypeer.hypervisor.libvirt`` run as a module is what it calls.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import uuid
from collections.abc import Sequence
from typing import BinaryIO
from xml.sax.saxutils import escape

from keypeer import limits
from keypeer.hypervisor.derive import VTPM, Key, derive_hex
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.secretfd import SecretFd
from keypeer.vmconfig import config_digest
from keypeer.wire.encoding import WireError

GUARDED = frozenset({("migrate", "begin"), ("restore", "begin")})
_REFUSED = 1

_HOOK = """#!/bin/sh
# libvirt's hook of keypeer: {check} decides about VMs that migrate here or are restored here.
exec {python} -P -m keypeer.hypervisor.libvirt {check} -- "$@"
"""

_EPHEMERAL = """<secret ephemeral='yes' private='yes'>
  <uuid>{uuid}</uuid>
  <usage type='vtpm'><name>keypeer/{vm}</name></usage>
</secret>
"""


def hook_file(check: Sequence[str], python: str = sys.executable) -> str:
    """The text of ``/etc/libvirt/hooks/qemu`` (mode 0755; restart libvirtd once after the first installation)."""
    return _HOOK.format(python=shlex.quote(python), check=shlex.join(check))


def hook(arguments: Sequence[str], domain: BinaryIO) -> int:
    """The exit status for libvirt. ``arguments``: the check program's, ``--``, and libvirt's."""
    split = arguments.index("--")
    check, given = arguments[:split], arguments[split + 1 :]
    vm, *operation = given[:3]
    if tuple(operation) not in GUARDED:
        return 0
    try:
        digest = config_digest(domain.read(limits.CONFIG_BYTES_MAX + 1)).hex()
        done = subprocess.run(
            [*check, operation[0], vm, digest],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limits.HOOK_CHECK_S,
            check=False,
        )
    except (WireError, OSError, subprocess.TimeoutExpired) as error:
        # Whatever can't be asked is refused. libvirt shows what we say here to whoever asked for the migration.
        sys.stderr.write(f"keypeer refuses {vm}: {error}\n")
        return _REFUSED
    if done.returncode != 0:
        said = done.stdout[-limits.PROGRAM_LOG_BYTES_MAX :].decode(errors="replace").strip()
        sys.stderr.write(f"keypeer refuses {vm}: {said or f'exit status {done.returncode}'}\n")
        return _REFUSED
    return 0


def put_vtpm_secret(connection: str, secret_id: uuid.UUID, vm: str, key: Key) -> None:
    """Gives libvirt the vTPM's key as an ephemeral (never on disk), private (never shown) secret, for the domain's
    ``<tpm><backend …><encryption secret='…'/>``: libvirt hands it to swtpm as ``--key`` and ``--migration-key``. Once a
    start of libvirtd, before the domain starts or arrives. Raises HypervisorError ``libvirt.secret``."""
    definition = _EPHEMERAL.format(uuid=secret_id, vm=escape(vm))
    with derive_hex(key, VTPM) as text, SecretFd(text.view()) as value, SecretFd(definition.encode()) as document:
        _virsh(connection, "secret-define", "--file", document.path, pass_fd=document.fd)
        _virsh(connection, "secret-set-value", str(secret_id), "--plain", "--file", value.path, pass_fd=value.fd)


def drop_secret(connection: str, secret_id: uuid.UUID) -> None:
    """Takes it away. Raises HypervisorError ``libvirt.secret``."""
    _virsh(connection, "secret-undefine", str(secret_id))


def _virsh(connection: str, *command: str, pass_fd: int | None = None) -> None:
    try:
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", connection, *command],
            capture_output=True,
            pass_fds=() if pass_fd is None else (pass_fd,),
            timeout=limits.VIRSH_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HypervisorError("libvirt.secret", f"virsh: {error}") from error
    if done.returncode != 0:
        raise HypervisorError("libvirt.secret", f"virsh {command[0]}: {done.stderr.decode(errors='replace').strip()}")


if __name__ == "__main__":
    sys.exit(hook(sys.argv[1:], sys.stdin.buffer))
