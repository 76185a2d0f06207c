"""libvirt's hook: by hand, and under two real libvirtds."""

from __future__ import annotations

import io
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from keypeer.hypervisor.derive import VTPM, derive_hex
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.libvirt import drop_secret, hook, hook_file, put_vtpm_secret
from keypeer.vmconfig import config_digest
from tests.support.guest import kernel
from tests.support.libvirtd import Libvirtd

SECRET = uuid.UUID("6f0c1f0e-5f5e-4a55-9b0c-0f1c7b1f2a11")
DOMAIN = """<domain type='qemu'>
  <name>web-1</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type><kernel>{folder}/kernel</kernel><initrd>{folder}/initramfs</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 marker=planted</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/><memballoon model='none'/>
    <serial type='file'><source path='{folder}/serial'/></serial>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend></tpm>
  </devices>
</domain>
"""


def check(folder: Path, status: int) -> list[str]:
    """A check program that tells what it was asked, and says ``status``."""
    program = folder / "check"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {folder}/asked\necho geo.country: US\nexit {status}\n')
    program.chmod(0o755)
    return [str(program)]


@pytest.mark.parametrize("operation", ["migrate", "restore"])
@pytest.mark.parametrize(("says", "status"), [(0, 0), (1, 1), (3, 1)])
def test_incoming_vms_are_asked_about(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], operation: str, says: int, status: int
) -> None:
    domain = DOMAIN.format(folder="/srv", secret=SECRET).encode()
    given = [*check(tmp_path, says), "--", "web-1", operation, "begin", "-"]
    assert hook(given, io.BytesIO(domain)) == status
    assert (tmp_path / "asked").read_text() == f"{operation} web-1 {config_digest(domain).hex()}\n"
    refusal = "keypeer refuses web-1: geo.country: US\n" if says else ""
    # libvirt takes standard output for a changed domain.
    assert capfd.readouterr() == ("", refusal)


@pytest.mark.parametrize(
    "call", ["start begin", "started begin", "prepare begin", "stopped end", "release end", "reconnect begin"]
)
def test_the_rest_is_let_through_unasked(tmp_path: Path, call: str) -> None:
    given = [*check(tmp_path, 1), "--", "web-1", *call.split(), "-"]
    assert hook(given, io.BytesIO(b"")) == 0
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("document", [b"", b"not xml", b"<network/>", b"<domain>" + b" " * (1 << 20) + b"</domain>"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, document: bytes) -> None:
    given = [*check(tmp_path, 0), "--", "web-1", "migrate", "begin", "-"]
    assert hook(given, io.BytesIO(document)) == 1
    assert not (tmp_path / "asked").exists()


def test_a_check_that_is_not_there_refuses(tmp_path: Path) -> None:
    domain = DOMAIN.format(folder="/srv", secret=SECRET).encode()
    given = [str(tmp_path / "nothing"), "--", "web-1", "migrate", "begin", "-"]
    assert hook(given, io.BytesIO(domain)) == 1


def test_the_installation_file_quotes_its_check(tmp_path: Path) -> None:
    text = hook_file(["/bin/check it", "--policy", "$(reboot)"], "/opt/my python")
    assert "'/opt/my python' -P -m keypeer.hypervisor.libvirt '/bin/check it' --policy '$(reboot)' -- \"$@\"" in text
    path = tmp_path / "qemu"
    path.write_text(text)
    subprocess.run(["sh", "-n", str(path)], check=True, timeout=60)


def test_without_libvirt_a_secret_says_so() -> None:
    with pytest.raises(HypervisorError) as refused:
        put_vtpm_secret("qemu+unix:///session?socket=/nowhere", SECRET, "web-1", bytes(range(64)))
    assert refused.value.code == "libvirt.secret"


@pytest.fixture
def folder(initramfs: Path) -> Iterator[Path]:
    """Where nobody may read kernel and initramfs, and write the serial port."""
    with tempfile.TemporaryDirectory(prefix="kp-lv-") as name:
        path = Path(name)
        path.chmod(0o777)
        (path / "kernel").write_bytes(kernel().read_bytes())
        (path / "initramfs").write_bytes(initramfs.read_bytes())
        yield path


def ticks(folder: Path, more: int) -> list[str]:
    """Waits for ``more`` whole lines of a newly opened serial port; the lines."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        serial = folder / "serial"
        lines = serial.read_text(errors="replace").splitlines()[:-1] if serial.exists() else []
        if len(found := [line for line in lines if "tick=" in line]) >= more:
            return found
        time.sleep(0.1)
    raise AssertionError("the guest doesn't tick")


@pytest.mark.libvirtd
def test_two_libvirtds_migrate_only_what_the_hook_lets_in(folder: Path, vm_key: bytes) -> None:
    (folder / "asked").touch()
    (folder / "asked").chmod(0o666)
    source, destination = Libvirtd("a"), Libvirtd("b")
    for host in (source, destination):
        host.hook(hook_file(check(folder, 1), str(host.python)))
    with source, destination:
        for host in (source, destination):
            put_vtpm_secret(host.connection, SECRET, "web-1", vm_key)
            shown = host.virsh("secret-get-value", str(SECRET))
            assert shown.returncode != 0
            assert "secret is private" in shown.stderr
            with derive_hex(vm_key, VTPM) as passphrase:
                files = [path for path in host.folder.rglob("*") if path.is_file()]
                assert not [path for path in files if bytes(passphrase.view()) in path.read_bytes()]
        (folder / "domain.xml").write_text(DOMAIN.format(folder=folder, secret=SECRET))
        assert source.virsh("define", str(folder / "domain.xml")).returncode == 0
        inactive = source.virsh("dumpxml", "--inactive", "web-1").stdout.encode()
        started = source.virsh("start", "web-1")
        assert started.returncode == 0, started.stderr
        before = ticks(folder, 3)

        move = ("migrate", "--live", "web-1", destination.connection, "--migrateuri", "tcp://127.0.0.1")
        refused = source.virsh(*move)
        assert refused.returncode != 0
        assert "keypeer refuses web-1: geo.country: US" in refused.stderr
        assert (source.virsh("domstate", "web-1").stdout, destination.virsh("list", "--name").stdout) == (
            "running\n",
            "",
        )
        ticks(folder, len(before) + 3)

        check(folder, 0)
        moved = source.virsh(*move)
        assert moved.returncode == 0, moved.stderr
        assert destination.virsh("domstate", "web-1").stdout == "running\n"
        after = ticks(folder, 3)
        # The vTPM came along, encrypted by swtpm under the secret.
        assert after[-1].partition("pcr16=")[2] == before[-1].partition("pcr16=")[2] != ""
        # Asked at both attempts, each time about the very configuration that was defined.
        assert set((folder / "asked").read_text().splitlines()) == {f"migrate web-1 {config_digest(inactive).hex()}"}
        drop_secret(destination.connection, SECRET)
        assert str(SECRET) not in destination.virsh("secret-list").stdout
