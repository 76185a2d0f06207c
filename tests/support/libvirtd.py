"""A libvirtd of a test's own: session mode, as nobody, with its own folders, hooks and host UUID."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

SDK = Path(__file__).resolve().parents[2] / "sdk"
START_S = 30.0  # seconds; it asks QEMU for its abilities first
USER, GROUP = "nobody", "nogroup"


class Libvirtd:
    """Runs inside a ``with`` block. ``python`` imports this checkout, for hooks: they get no environment."""

    def __init__(self, name: str) -> None:
        # Short, and where nobody may go: sockets' paths end at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix=f"kp-lv-{name}-"))
        self.folder.chmod(0o755)
        for each in ("home", "conf/libvirt", "run", "cache"):
            (self.folder / each).mkdir(parents=True)
        settings = f'host_uuid = "{uuid.uuid4()}"\nunix_sock_dir = "{self.folder / "run"}"\n'
        (self.folder / "conf/libvirt/libvirtd.conf").write_text(settings)
        for each in ("hooks", "sdk", "venv"):
            (self.folder / each).mkdir()
        self.python = self._program(
            "python", f'PYTHONPATH={self.folder / "sdk"} exec {self.folder / "venv/bin/python"} "$@"'
        )
        subprocess.run(["chown", "-R", f"{USER}:{GROUP}", *self._folders()], check=True, timeout=60)

    def _folders(self) -> list[str]:
        return [str(self.folder / each) for each in ("home", "conf", "run", "cache")]

    def _program(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def hook(self, text: str) -> None:
        """Installs the hook ``qemu``; libvirtd looks for hooks when it starts."""
        path = self.folder / "hooks/qemu"
        path.write_text(text)
        path.chmod(0o755)

    @property
    def connection(self) -> str:
        """What virsh connects to."""
        return f"qemu+unix:///session?socket={self.folder / 'run/libvirt-sock'}"

    def virsh(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One command."""
        argv = ["virsh", "--quiet", "--connect", self.connection, *command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)

    def __enter__(self) -> Self:
        home, conf, run, cache = self._folders()
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home, "XDG_DATA_HOME": home}
        environment |= {"XDG_CONFIG_HOME": conf, "XDG_RUNTIME_DIR": run, "XDG_CACHE_HOME": cache}
        nobody = f"setpriv --reuid {USER} --regid {GROUP} --clear-groups"
        # The hooks' folder is compiled in; a mount namespace gives each libvirtd one of its own. And nobody may not go
        # where root keeps its checkouts.
        script = (
            f"mount --bind {SDK} {self.folder / 'sdk'} && mount --bind {sys.prefix} {self.folder / 'venv'} && "
            f"mount -t tmpfs none /etc/libvirt && ln -s {self.folder / 'hooks'} /etc/libvirt/hooks && "
            f"{nobody} swtpm_setup --create-config-files skip-if-exist && "
            f"exec {nobody} libvirtd --config {conf}/libvirt/libvirtd.conf"
        )
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script], stdout=log, stderr=log, env=environment
            )
        deadline = time.monotonic() + START_S
        while self.virsh("version").returncode != 0:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "libvirtd didn't start"
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self.virsh("list", "--name").stdout.split():
            self.virsh("destroy", name)
        os.kill(self._process.pid, signal.SIGTERM)
        self._process.wait(START_S)
        shutil.rmtree(self.folder)
