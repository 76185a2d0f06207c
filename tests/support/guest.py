"""A small guest: Debian's cloud kernel and busybox. It plants markers in its memory, and prints ticks."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from keypeer.hypervisor.derive import Key
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.images import restore
from keypeer.hypervisor.qemu import Qemu, VmSpec

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / ".guest"
MARKERS = 2000  # copies of the marker in the guest's memory
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")

# TPM2_PCR_Extend of PCR 16 (debug) in the SHA-256 bank with 32 times "k" (TPM 2.0 Part 3 §22.2), empty password.
EXTEND = bytes.fromhex("8002 00000041 00000182 00000010 00000009 40000009 0000 00 0000 00000001 000b") + b"k" * 32
TICK_S = 60.0  # seconds; a boot takes 3, on a loaded machine many more

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
echo 0 > /proc/sys/kernel/printk
for m in %(modules)s; do insmod /modules/$m.ko; done
marker=$(sed 's/.*marker=\\([^ ]*\\).*/\\1/' /proc/cmdline)
yes $marker | head -n %(markers)d > /tmp/planted
if [ -b /dev/vda ]; then
    echo "disk=$(head -c 64 /dev/vda | tr -cd '[:alnum:]-')"
    yes $marker | head -n 64 | dd of=/dev/vda bs=4096 conv=fsync 2>/dev/null
fi
[ -c /dev/tpm0 ] && dd if=/extend of=/dev/tpm0 bs=65 count=1 2>/dev/null
n=0
while :; do
    pcr=$(cat /sys/class/tpm/tpm0/pcr-sha256/16 2>/dev/null)
    echo "tick=$n pcr16=$pcr"
    n=$((n + 1))
    usleep 100000
done
"""


@cache
def kernel() -> Path:
    """The kernel that deploy/test.sh unpacks."""
    found = sorted(KERNELS.glob("boot/vmlinuz-*"))
    assert found, f"no guest kernel in {KERNELS}: run `bash -c '. deploy/setup.sh; fetch_guest_kernel'`"
    return found[-1]


def build_initramfs(folder: Path) -> Path:
    """An initramfs under ``folder``."""
    tree = folder / "tree"
    for name in ("bin", "dev", "proc", "sys", "tmp", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin")
    for name in MODULES:
        (module,) = KERNELS.glob(f"lib/modules/*/kernel/**/{name}.ko")
        shutil.copy(module, tree / "modules")
    (tree / "extend").write_bytes(EXTEND)
    (tree / "init").write_text(INIT % {"modules": " ".join(MODULES), "markers": MARKERS})
    (tree / "init").chmod(0o755)
    names = "\n".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
    image = folder / "initramfs"
    with image.open("wb") as out:
        subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"], input=names.encode(), stdout=out, cwd=tree, check=True, timeout=60
        )
    return image


def plain_filter(_fd: int) -> tuple[str, ...]:
    """No encryption."""
    return ("cat",)


@dataclass(frozen=True)
class Snapshot:
    """A guest's plain image, and the marker in it."""

    image: Path
    marker: str


class Guest:
    """One VM: what its serial port says, and the QEMU that runs it."""

    def __init__(self, spec: VmSpec, qemu: Qemu, serial: Path) -> None:
        self.spec = spec
        self.qemu = qemu
        self.serial = serial

    def said(self) -> str:
        """All of its serial port."""
        return self.serial.read_text(errors="replace")

    def ticks(self) -> list[int]:
        """The ticks it printed."""
        return [int(each) for each in re.findall(r"tick=(\d+) pcr16=\w*\r?\n", self.said())]

    def pcr(self) -> str:
        """What its PCR 16 holds, by the last whole line."""
        return str(re.findall(r"tick=\d+ pcr16=(\w*)\r?\n", self.said())[-1])

    async def until_tick(self, more: int = 1) -> int:
        """Waits for ``more`` further ticks; returns the newest."""
        start = len(self.ticks())
        async with asyncio.timeout(TICK_S):
            while len(self.ticks()) < start + more:  # noqa: ASYNC110 - another process's file tells no event
                await asyncio.sleep(0.02)
        return self.ticks()[-1]

    def kill(self) -> None:
        """QEMU dies on the spot."""
        assert self.qemu.pid is not None
        os.kill(self.qemu.pid, signal.SIGKILL)

    async def is_gone(self) -> bool:
        """Whether its QEMU has ended."""
        try:
            await self.qemu.status()
        except HypervisorError as error:
            return error.code == "qemu.gone"
        return False


class Guests:
    """The guests of one test, and the marker in their memory."""

    def __init__(self, initramfs: Path, folder: Path, marker: str, snapshot: Path | None = None) -> None:
        self.marker = marker
        self.folder = folder
        self._snapshot = snapshot
        self._initramfs = initramfs
        self._all: list[Guest] = []

    def spec(self, name: str, *, disk: Path | None = None, vtpm: bool = True) -> VmSpec:
        """A guest of 128 MiB. Each name is a host of its own: run folder, vTPM state, serial port."""
        home = self.folder / name
        home.mkdir(mode=0o700, exist_ok=True)
        return VmSpec(
            "guest",
            home / "run",
            128,
            machine="pc",
            accelerator="tcg",
            disks=() if disk is None else (disk,),
            vtpm_state=home / "vtpm" if vtpm else None,
            arguments=(
                *("-serial", f"file:{home / 'serial'}", "-kernel", str(kernel()), "-initrd", str(self._initramfs)),
                *("-append", f"console=ttyS0 quiet panic=-1 marker={self.marker}"),
            ),
        )

    async def start(self, spec: VmSpec, key: Key, *, incoming: bool = False) -> Guest:
        """A paused guest, or one that waits."""
        guest = Guest(spec, await Qemu.start(spec, key, incoming=incoming), spec.folder.parent / "serial")
        return self.adopt(guest)

    def adopt(self, guest: Guest) -> Guest:
        """Ends a guest with the others."""
        self._all.append(guest)
        return guest

    async def booted(self, spec: VmSpec, key: Key) -> Guest:
        """A guest that ticks."""
        guest = await self.start(spec, key)
        await guest.qemu.resume()
        await guest.until_tick()
        return guest

    async def running(self, name: str, key: Key) -> Guest:
        """A guest with a vTPM and no disk that ticks, out of the snapshot."""
        assert self._snapshot is not None
        guest = await self.start(self.spec(name), key, incoming=True)
        await restore(guest.qemu, self._snapshot, key, plain_filter)
        await guest.qemu.resume()
        await guest.until_tick()
        return guest

    async def end(self) -> None:
        """Ends all, also those that hang."""
        for guest in self._all:
            try:
                async with asyncio.timeout(TICK_S):
                    await guest.qemu.stop()
            except TimeoutError:
                guest.kill()
