"""A VM under QEMU, started with its secrets: LUKS disks and a vTPM, under keys derived from the VM key.

QEMU starts paused (``-S``). Its disks' passphrase is a descriptor that it inherits (``secret`` object,
``file=/dev/fd/N``), so it is in no argument, environment or file; the contents are wiped when QEMU has read them. Guest
memory is left out of core dumps, and seccomp keeps QEMU from starting programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from keypeer import limits
from keypeer.errors import StateError
from keypeer.hypervisor.derive import DISK, Key, derive_hex
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.qmp import Qmp
from keypeer.hypervisor.secretfd import SecretFd
from keypeer.hypervisor.vtpm import Vtpm, listening, tail

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_DISK_SECRET = "disk-key"  # noqa: S105 - the name of an object, not a secret
# QEMU measures PBKDF2 by its own processor time, which coarse clocks give as 0 now and then.
_CLOCK_FLAW = b"Unable to get accurate CPU usage"
_LUKS_ITERATION_MS = 10  # LUKS' PBKDF2 slows guessing; nobody guesses 256 random bits


@dataclass(frozen=True)
class VmSpec:
    """What a VM is made of. ``folder`` is its run folder (mode 0700, best on tmpfs: sockets and logs, no secret).

    ``arguments`` go to QEMU as they are: kernel, network, more devices. ``disks`` are LUKS images that ``create_disk``
    made; the guest sees them as virtio disks in this order. ``vtpm_state`` is the folder of the vTPM's state files.
    """

    name: str
    folder: Path
    memory_mib: int
    machine: str = "q35"
    accelerator: str = "kvm"
    processors: int = 1
    disks: tuple[Path, ...] = ()
    vtpm_state: Path | None = None
    arguments: tuple[str, ...] = field(default=(), repr=False)

    @property
    def monitor(self) -> Path:
        """QMP's socket."""
        return self.folder / "qmp"

    @property
    def log(self) -> Path:
        """What QEMU says."""
        return self.folder / "qemu.log"


class Qemu:
    """One QEMU process and its swtpm, from ``start``, or one that runs already, from ``attach``."""

    def __init__(self, spec: VmSpec, qmp: Qmp, process: Process | None, vtpm: Vtpm | None) -> None:
        self.spec = spec
        self.qmp = qmp
        self._process = process
        self._vtpm = vtpm

    @classmethod
    async def start(cls, spec: VmSpec, key: Key, *, incoming: bool = False) -> Qemu:
        """A paused VM; ``resume`` lets it run. With ``incoming`` it waits for a migration or an image: no boot.
        Raises HypervisorError ``qemu.start``, ``qemu.disk_key``, ``vtpm.start``, ``vtpm.state``, ``vtpm.locked``;
        StateError ``qemu.running`` (its folder is a running VM's), ``qemu.folder``, ``secret.size``."""
        with _claimed(spec) as claim:
            vtpm = await cls._start_vtpm(spec, key)
            process: Process | None = None
            try:
                with derive_hex(key, DISK) as passphrase, SecretFd(passphrase.view()) as disk_key:
                    process = await _spawn(spec, disk_key, claim, incoming=incoming)
                    # QEMU speaks QMP after it has read its secrets and asked swtpm for its abilities.
                    qmp = await _connect(spec, process)
            except BaseException:
                if process is not None and process.returncode is None:
                    process.kill()
                    await process.wait()
                if vtpm is not None:
                    await vtpm.stop()
                raise
        if vtpm is not None:
            vtpm.forget_keys()
        return cls(spec, qmp, process, vtpm)

    @staticmethod
    async def _start_vtpm(spec: VmSpec, key: Key) -> Vtpm | None:
        if spec.vtpm_state is None:
            return None
        return await Vtpm.start(
            state=spec.vtpm_state, control=spec.folder / "vtpm", log=spec.folder / "vtpm.log", key=key
        )

    @classmethod
    async def attach(cls, spec: VmSpec) -> Qemu:
        """A VM that another process started. Raises HypervisorError ``qemu.unreachable``."""
        return cls(spec, await Qmp.connect(spec.monitor), None, None)

    @property
    def pid(self) -> int | None:
        """The process, when this object started it."""
        return None if self._process is None else self._process.pid

    async def status(self) -> str:
        """QEMU's run state: ``prelaunch``, ``running``, ``paused``, ``inmigrate``, ``postmigrate``, …"""
        answer = await self.qmp.execute("query-status")
        return str(answer["status"])

    async def resume(self) -> None:
        """Lets the guest run."""
        await self.qmp.execute("cont")

    async def pause(self) -> None:
        """Stops the guest's processors."""
        await self.qmp.execute("stop")

    async def stop(self) -> None:
        """Ends QEMU and its vTPM at once, as by pulling the plug; flushes the disks. A second call does nothing. A QEMU
        that doesn't answer is killed, if this object started it; otherwise HypervisorError ``qemu.timeout``."""
        try:
            await self.qmp.execute("quit")
        except HypervisorError as error:
            if error.code == "qemu.timeout" and self._process is not None:
                self._process.kill()
            elif error.code != "qemu.gone":
                raise
        await self._ended()

    async def _ended(self) -> None:
        try:
            async with asyncio.timeout(limits.VM_STOP_S):
                await self.qmp.closed()
                if self._process is not None:
                    await self._process.wait()
        except TimeoutError:
            if self._process is None:
                raise HypervisorError("qemu.timeout", f"QEMU of {self.spec.name} doesn't end") from None
            self._process.kill()
            await self._process.wait()
        await self.qmp.close()
        if self._vtpm is not None:
            await self._vtpm.ended()

    async def detach(self) -> None:
        """Leaves the VM running, and closes the monitor."""
        await self.qmp.close()


async def create_disk(path: Path, size: int, key: Key) -> None:
    """A LUKS image of ``size`` bytes of room, under the VM's disk key. Raises HypervisorError ``qemu.disk``."""
    _must_be_new(path)
    for _ in range(limits.DISK_ATTEMPTS_MAX):
        with derive_hex(key, DISK) as passphrase, SecretFd(passphrase.view()) as secret:
            process = await asyncio.create_subprocess_exec(
                *("qemu-img", "create", "-q", "-f", "luks"),
                *("--object", json.dumps(disk_secret(secret))),
                *("-o", f"key-secret={_DISK_SECRET},cipher-alg=aes-256,cipher-mode=xts,iter-time={_LUKS_ITERATION_MS}"),
                *(str(path), str(size)),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(secret.fd,),
            )
            _, said = await process.communicate()
        if process.returncode == 0:
            return
        await asyncio.to_thread(path.unlink, missing_ok=True)
        if _CLOCK_FLAW not in said:
            break
    raise HypervisorError("qemu.disk", f"qemu-img: {said.decode(errors='replace').strip()}")


def arguments(spec: VmSpec, *, monitor_fd: int, disk_key: SecretFd, incoming: bool) -> list[str]:
    """QEMU's argv. It holds no secret."""
    argv = [
        *("qemu-system-x86_64", "-name", _escaped(spec.name), "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"{spec.machine},accel={spec.accelerator},dump-guest-core=off"),
        *("-m", str(spec.memory_mib), "-smp", str(spec.processors), "-S", "-sandbox", SANDBOX),
        *("-chardev", f"socket,id=qmp,fd={monitor_fd},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
    ]
    if spec.disks:
        argv += ["-object", json.dumps(disk_secret(disk_key))]
    for number, disk in enumerate(spec.disks):
        node = {
            "driver": "luks",
            "node-name": f"disk{number}",
            "key-secret": _DISK_SECRET,
            "file": {"driver": "file", "filename": str(disk), "locking": "on"},
        }
        argv += ["-blockdev", json.dumps(node)]
        argv += ["-device", json.dumps({"driver": "virtio-blk-pci", "drive": f"disk{number}", "id": f"virtio{number}"})]
    if spec.vtpm_state is not None:
        argv += ["-chardev", f"socket,id=vtpm,path={_escaped(str(spec.folder / 'vtpm'))}"]
        argv += ["-tpmdev", "emulator,id=tpm0,chardev=vtpm", "-device", "tpm-crb,tpmdev=tpm0"]
    if incoming:
        argv += ["-incoming", "defer"]
    return argv + list(spec.arguments)


def _must_be_new(path: Path) -> None:
    if path.exists():
        raise StateError("qemu.disk_exists", f"{path} is there already", "remove it, or take another name")


def disk_secret(secret: SecretFd) -> dict[str, str]:
    """QEMU's object that holds the disk key (qemu(1), -object secret)."""
    return {"qom-type": "secret", "id": _DISK_SECRET, "file": secret.path}


def _escaped(value: str) -> str:
    # QEMU's option syntax doubles commas.
    return value.replace(",", ",,")


@contextlib.contextmanager
def _claimed(spec: VmSpec) -> Iterator[int]:
    """The run folder's lock, for QEMU to inherit: it is free again when QEMU is dead."""
    spec.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(os.fsencode(spec.folder / "vtpm")) > limits.SOCKET_PATH_BYTES_MAX:
        raise StateError("qemu.folder", f"{spec.folder}: too long for Unix sockets", "take a shorter path, as in /run")
    claim = os.open(spec.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield claim
    except BlockingIOError:
        raise StateError("qemu.running", f"{spec.folder} is a running VM's", "attach to it, or stop it") from None
    finally:
        os.close(claim)


async def _spawn(spec: VmSpec, disk_key: SecretFd, claim: int, *, incoming: bool) -> Process:
    with listening(spec.monitor) as monitor, spec.log.open("wb") as log:
        argv = arguments(spec, monitor_fd=monitor.fileno(), disk_key=disk_key, incoming=incoming)
        try:
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(monitor.fileno(), disk_key.fd, claim),
                start_new_session=True,
            )
        except OSError as error:
            raise HypervisorError("qemu.start", f"QEMU: {error}", "install qemu-system-x86") from error


async def _connect(spec: VmSpec, process: Process) -> Qmp:
    try:
        return await Qmp.connect(spec.monitor)
    except HypervisorError as error:
        if process.returncode is None:
            process.kill()
        await process.wait()
        raise _start_error(spec) from error


def _start_error(spec: VmSpec) -> HypervisorError:
    said = "\n".join(filter(None, (tail(spec.log), tail(spec.folder / "vtpm.log"))))
    detail = f"QEMU of {spec.name} ended: {said}"
    if "cannot unlock any keyslot" in said:
        return HypervisorError("qemu.disk_key", detail, "the disk was made under another VM key, or another version")
    if "Could not lock access" in said:
        return HypervisorError(
            "vtpm.locked", detail, "another VM's swtpm has this state open; one that ends needs a moment"
        )
    if "tpm-emulator" in said:
        hint = "the vTPM's state was made under another VM key, or another version, or it is damaged"
        return HypervisorError("vtpm.state", detail, hint)
    return HypervisorError("qemu.start", detail)
