"""A node of deploy/kubernetes without Kubernetes: what its containers see, laid out in a folder, and their own commands
run on it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

from tests.support.manifests import base, one, pod_spec, trial
from tests.support.postgres import PostgresServer, authority
from tests.support.service import Service, free_port


class Pod:
    """Mounted volumes as the kubelet lays them out, the token's volume, and the node's home."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.mounted = place / "mounted"
        self.home = place / "home"
        self.token = place / "token"
        self.pin = secrets.token_hex(12)
        for name in ("tls", "vendor-cas", "recovery"):  # optional and not there: empty folders
            (self.mounted / name).mkdir(parents=True)

    def mount(self, name: str, files: dict[str, bytes]) -> None:
        """A volume with its files behind links, open to the group as fsGroup makes them."""
        volume = self.mounted / name
        shutil.rmtree(volume, ignore_errors=True)
        (volume / "..data").mkdir(parents=True)
        for file, content in files.items():
            (volume / "..data" / file).write_bytes(content)
            (volume / "..data" / file).chmod(0o440)
            (volume / file).symlink_to(f"..data/{file}")

    def mount_trial(self, server: PostgresServer) -> int:
        """What trial/ mounts, with addresses and folders of this machine; returns the service's port."""
        port, files = free_port(), one(trial(), "ConfigMap", "keypeer-settings")["data"]
        here = {
            "0.0.0.0:8443": f"127.0.0.1:{port}",
            "db-a.postgresql.svc:5432": f"localhost:{server.port}",
            "/var/lib/keypeer-hsm": str(self.token),
        }
        assert all(there in " ".join(files.values()) for there in here)
        for there, replaced in here.items():
            files = {name: text.replace(there, replaced) for name, text in files.items()}
        tls = authority().file.parent
        certificate = {name: (tls / name).read_bytes() for name in ("keypeer.crt", "keypeer.key")}
        self.mount("settings", {name: text.encode() for name, text in files.items()})
        self.mount("pin", {"pin": self.pin.encode()})
        self.mount("postgres", {**certificate, "ca.crt": authority().file.read_bytes()})
        return port

    def prepare(self) -> None:
        """The init container."""
        (container,) = pod_spec(one(base(), "StatefulSet"))["initContainers"]
        paths = {"KEYPEER_HOME": str(self.home), "TOKEN_FOLDER": str(self.token), "MOUNTED": str(self.mounted)}
        assert paths.keys() == {each["name"] for each in container["env"]}
        command = [*container["command"], *container["args"]]
        subprocess.run(command, env={**os.environ, **paths}, check=True, timeout=30)

    def initialise(self, service: Service) -> None:
        """`keypeer init` in the pod of initialise.yaml; what it made goes into secrets and to the staff, and the pod's
        home is gone."""
        self.prepare()
        (self.home / "so-pin").write_text(secrets.token_hex(12))
        (self.home / "so-pin").chmod(0o600)
        service.keypeer("init", "--so-pin", "file:so-pin")
        self.mount("tls", {path.name: path.read_bytes() for path in (self.home / "tls").iterdir()})
        shutil.copytree(self.home / "identities", self.place / "identities")
        shutil.rmtree(self.home)
