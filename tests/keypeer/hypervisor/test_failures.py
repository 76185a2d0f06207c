"""What isn't there, doesn't answer or says no: an error with a code, and nothing left running."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keypeer import limits
from keypeer.errors import StateError
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.qemu import create_disk
from keypeer.hypervisor.secretfd import SecretFd
from tests.support.guest import Guests

WITHOUT_QMP = """
import sys
sys.modules["qemu"] = None
from keypeer.errors import KeypeerClientError
try:
    import keypeer.hypervisor.qemu
except KeypeerClientError as error:
    print(error.code, error.hint)
"""


def swtpms_of(folder: Path) -> list[str]:
    """Every swtpm that runs over a state in ``folder``."""
    listed = subprocess.run(["pgrep", "-af", "swtpm"], capture_output=True, text=True, check=False, timeout=60)
    return [line for line in listed.stdout.splitlines() if str(folder) in line]


def held_by(descriptor: Path) -> bytes:
    """What another process's descriptor shows."""
    return descriptor.read_bytes() if os.path.lexists(descriptor) else b""


def test_without_the_extra_it_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_QMP], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "qemu.missing install keypeer[hypervisor]\n"


@pytest.mark.parametrize(("there", "code"), [((), "vtpm.start"), (("swtpm",), "qemu.start")])
async def test_without_a_program_nothing_runs(
    guests: Guests, vm_key: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], code: str
) -> None:
    programs = folder / "bin"
    programs.mkdir()
    for name in there:
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(HypervisorError, match="No such file") as refused:
        await guests.start(guests.spec("one"), vm_key)
    monkeypatch.undo()
    assert refused.value.code == code
    assert swtpms_of(folder) == []


async def test_what_qemu_says_is_in_the_error(guests: Guests, vm_key: bytes, folder: Path) -> None:
    spec = dataclasses.replace(guests.spec("one"), arguments=("-device", "no-such-device"))
    with pytest.raises(HypervisorError, match="'no-such-device' is not a valid device model name") as refused:
        await guests.start(spec, vm_key)
    assert refused.value.code == "qemu.start"
    assert swtpms_of(folder) == []


async def test_a_folder_too_long_for_sockets_is_refused(guests: Guests, vm_key: bytes, folder: Path) -> None:
    spec = dataclasses.replace(guests.spec("one"), folder=folder / ("x" * 100))
    with pytest.raises(StateError) as refused:
        await guests.start(spec, vm_key)
    assert refused.value.code == "qemu.folder"


async def test_a_disk_that_cannot_be_made_leaves_nothing(vm_key: bytes, folder: Path) -> None:
    with pytest.raises(HypervisorError, match="qemu-img") as refused:
        await create_disk(folder / "nowhere" / "disk", 1 << 20, vm_key)
    assert refused.value.code == "qemu.disk"


async def test_a_disk_is_not_overwritten(folder: Path, vm_key: bytes) -> None:
    disk = folder / "disk"
    disk.write_bytes(b"precious")
    with pytest.raises(StateError) as refused:
        await create_disk(disk, 1 << 20, vm_key)
    assert (refused.value.code, disk.read_bytes()) == ("qemu.disk_exists", b"precious")


async def test_commands_that_fail_and_descriptors(guests: Guests, vm_key: bytes) -> None:
    guest = await guests.start(guests.spec("one", vtpm=False), vm_key)
    qmp = guest.qemu.qmp
    with pytest.raises(HypervisorError, match="no-such-command") as refused:
        await qmp.execute("no-such-command")
    assert refused.value.code == "qemu.refused"
    with SecretFd(b"lent") as secret:
        lent = await qmp.lend(secret.fd)
        held = Path(f"/proc/{guest.qemu.pid}/fd/{lent.fd}")
        assert await asyncio.to_thread(held.read_bytes) == b"lent"
        await qmp.take_back(lent)
    # QEMU may keep it open; there is nothing in it any more.
    assert not held_by(held)


async def test_a_qemu_that_hangs_is_a_timeout_and_is_killed(
    guests: Guests, vm_key: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await guests.start(guests.spec("one"), vm_key)
    assert guest.qemu.pid is not None
    os.kill(guest.qemu.pid, signal.SIGSTOP)
    monkeypatch.setattr(limits, "QMP_CALL_S", 0.2)
    with pytest.raises(HypervisorError) as hung:
        await guest.qemu.status()
    assert hung.value.code == "qemu.timeout"
    await guest.qemu.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(guest.qemu.pid, 0)
    assert swtpms_of(folder) == []


async def test_a_qemu_that_died_is_gone(guests: Guests, vm_key: bytes) -> None:
    guest = await guests.start(guests.spec("one", vtpm=False), vm_key)
    guest.kill()
    assert await guest.is_gone()
    await guest.qemu.stop()


async def test_a_vm_runs_once_and_starts_again_once_it_is_dead(guests: Guests, vm_key: bytes) -> None:
    spec = guests.spec("one")
    guest = await guests.start(spec, vm_key)
    with pytest.raises(StateError) as refused:
        await guests.start(spec, vm_key)
    assert refused.value.code == "qemu.running"
    assert await guest.qemu.status() == "prelaunch"
    guest.kill()
    assert await guest.is_gone()
    await guest.qemu.stop()
    again = await guests.start(spec, vm_key)
    # Nor does another VM get at the state that this one has open.
    other = dataclasses.replace(guests.spec("two"), vtpm_state=spec.vtpm_state)
    with pytest.raises(HypervisorError, match="Could not lock") as locked:
        await guests.start(other, vm_key)
    assert locked.value.code == "vtpm.locked"
    assert await again.qemu.status() == "prelaunch"
