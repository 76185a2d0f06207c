"""Barbican as a peer: its PKCS#11 plugin on SoftHSM, TLS with client certificates.

Barbican and waitress come from PyPI: two processes, of eight threads each. Barbican speaks no TLS itself, so Debian's
stunnel stands before them. There is no Keystone here: the caller's project and role are taken from headers, which costs
Barbican nothing. Its database is SQLite, synced at each commit (its default), in the same process: on PostgreSQL 15
Barbican 23 can't read the secrets that it stored. Its audit is Keystone's CADF middleware, into a file that the file
system syncs at each write (chattr +S), as keypeer's is.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.environments import BARBICAN, environment, program
from tests.support.hsm import MODULE, blank_token
from tests.support.postgres import free_ports
from tests.support.tls_server import TestCa

CONFIG = """
[DEFAULT]
host_href = https://localhost:{port}
sql_connection = sqlite:///{folder}/barbican.sqlite
db_auto_create = False
log_file = {folder}/barbican.log
[database]
connection = sqlite:///{folder}/barbican.sqlite
[secretstore]
enabled_secretstore_plugins = store_crypto
[crypto]
enabled_crypto_plugins = p11_crypto
[p11_crypto_plugin]
library_path = {module}
token_labels = barbican
login = {pin}
mkek_label = mkek
mkek_length = 32
hmac_label = hmac
hmac_key_type = CKK_GENERIC_SECRET
hmac_keygen_mechanism = CKM_GENERIC_SECRET_KEY_GEN
hmac_mechanism = CKM_SHA256_HMAC
encryption_mechanism = CKM_AES_GCM
key_wrap_mechanism = CKM_AES_KEY_WRAP_PAD
key_wrap_generate_iv = False
os_locking_ok = True
[queue]
enable = False
[audit_middleware_notifications]
driver = log
[oslo_policy]
policy_file = {folder}/policy.yaml
"""
PASTE = """
[composite:main]
use = egg:Paste#urlmap
/v1: barbican
[pipeline:barbican]
pipeline = cors request_id http_proxy_to_wsgi context microversion audit apiapp
[app:apiapp]
paste.app_factory = barbican.api.app:create_main_app
[filter:context]
paste.filter_factory = barbican.api.middleware.context:ContextMiddleware.factory
[filter:microversion]
paste.filter_factory = barbican.api.middleware.microversion:MicroversionMiddleware.factory
[filter:audit]
paste.filter_factory = keystonemiddleware.audit:filter_factory
audit_map_file = {folder}/audit_map.conf
[filter:cors]
paste.filter_factory = oslo_middleware.cors:filter_factory
oslo_config_project = barbican
[filter:request_id]
paste.filter_factory = oslo_middleware.request_id:RequestId.factory
[filter:http_proxy_to_wsgi]
paste.filter_factory = oslo_middleware:HTTPProxyToWSGI.factory
"""
AUDIT_MAP = """
[path_keywords]
secrets = secret
orders = order
[service_endpoints]
key-manager = service/security/keymanager
"""
FRONT = """
foreground = yes
debug = warning
pid =
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[barbican]
accept = 127.0.0.1:{port}
{backends}
failover = rr
cert = {certificate}
key = {key}
CAfile = {ca}
verifyChain = yes
requireCert = yes
sslVersionMin = TLSv1.3
"""
# paste reads its own file; a handler of the audit's own, so that nothing but the audit is synced
APPLICATION = """
import logging
from paste import deploy
application = deploy.loadapp("config:{folder}/paste.ini")
audit = logging.getLogger("oslo.messaging.notification")
audit.setLevel(logging.INFO)
audit.propagate = False
audit.addHandler(logging.FileHandler("{folder}/audit.log"))
"""
PROCESSES, THREADS = 2, 8
READY_S = 60.0
PAYLOAD = "application/octet-stream"


class Barbican:
    """One service on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = environment(*BARBICAN) / "bin"
        self._ca = TestCa(folder)
        self._server = self._ca.issue("server", localhost=True)
        client = self._ca.issue("client")
        self.context = ssl.create_default_context(cafile=str(self._ca.file))
        self.context.load_cert_chain(client.certificate, client.key)
        self.port, *self._ports = free_ports(1 + PROCESSES)
        self._token = blank_token(folder / "token")
        self._environment = {**os.environ, **self._token.environment, "HOME": str(folder)}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Makes token, keys and tables, and starts the processes."""
        pin, so_pin = ((self._token.home / name).read_text().strip() for name in ("pin", "so-pin"))
        self._run("softhsm2-util", "--init-token", "--free", "--label", "barbican", "--pin", pin, "--so-pin", so_pin)
        for name, text in (
            (".barbican/barbican.conf", CONFIG), ("paste.ini", PASTE), ("audit_map.conf", AUDIT_MAP),
            ("application.py", APPLICATION), ("policy.yaml", "{{}}\n"), ("audit.log", ""),
        ):  # fmt: skip
            file = self._folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(
                text.format(
                    folder=self._folder, port=self.port, module=MODULE, pin=pin
                )
            )  # fmt: skip
        subprocess.run(["chattr", "+S", self._folder / "audit.log"], check=True)
        self._run(self._bin / "barbican-manage", "hsm", "gen_mkek", "--label", "mkek")
        self._run(self._bin / "barbican-manage", "hsm", "gen_hmac", "--label", "hmac")
        self._run(self._bin / "barbican-manage", "db", "upgrade")
        for port in self._ports:
            options = f"--listen=127.0.0.1:{port}", f"--threads={THREADS}", "--connection-limit=1000"
            self._spawn(self._bin / "waitress-serve", *options, "application:application")
        front = self._folder / "stunnel.conf"
        front.write_text(
            FRONT.format(
                port=self.port, certificate=self._server.certificate, key=self._server.key, ca=self._ca.file,
                backends="\n".join(f"connect = 127.0.0.1:{port}" for port in self._ports),
            )
        )  # fmt: skip
        stunnel, libraries = program("stunnel4", "stunnel4", "libwrap0")
        self._spawn(stunnel, front, **libraries)
        for _ in self._ports:  # one connection each
            self._answers()

    def call(self, method: str, path: str, body: object = None, accept: str = "application/json") -> Any:
        """The JSON of an answer, or its bytes; raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"https://localhost:{self.port}/v1/{path}", data=data, method=method, headers=self._headers(accept)
        )
        with urllib.request.urlopen(request, context=self.context, timeout=60) as answer:  # noqa: S310  # https alone
            found = answer.read()
        return json.loads(found) if accept == "application/json" else found

    def order(self) -> dict[str, object]:
        """What is posted to orders for an AES-256 key made in the HSM."""
        meta = {"name": "vm", "algorithm": "aes", "bit_length": 256, "mode": "cbc", "payload_content_type": PAYLOAD}
        return {"type": "key", "meta": meta}

    def secrets(self, count: int) -> list[str]:
        """References, relative to /v1, of keys that were ordered."""
        orders = [self.call("POST", "orders", self.order())["order_ref"] for _ in range(count)]
        return [
            self.call("GET", order.split("/v1/")[1])["secret_ref"].split("/v1/")[1]
            for order in orders
        ]  # fmt: skip

    def get(self, secret: str) -> bytes:
        """The bytes of a request for a secret's payload."""
        return self._request("GET", f"{secret}/payload", None, PAYLOAD)

    def post(self, path: str, body: object) -> bytes:
        """The bytes of a POST."""
        return self._request("POST", path, body, "application/json")

    def stop(self) -> None:
        """Ends its processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)

    def _headers(self, accept: str) -> dict[str, str]:
        return {
            "Accept": accept,
            "Content-Type": "application/json",
            "X-Project-Id": "0123456789abcdef0123456789abcdef",
            "X-User-Id": "fedcba9876543210fedcba9876543210",
            "X-Roles": "creator,member",
            "X-Identity-Status": "Confirmed",  # as Keystone's middleware says once it has checked a token
            "X-Service-Catalog": "[]",
        }

    def _request(self, method: str, path: str, body: object, accept: str) -> bytes:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} /v1/{path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in self._headers(accept).items()]
        return "\r\n".join([*lines, "", ""]).encode() + data

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            command, env=self._environment, cwd=self._folder, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _spawn(self, *command: str | Path, **environment: str) -> None:
        with (self._folder / "output").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command, env={**self._environment, **environment}, cwd=self._folder, stdout=log, stderr=log
                )
            )

    def _answers(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.call("GET", "secrets?limit=1")
                return
            except urllib.error.HTTPError as error:
                raise RuntimeError(f"Barbican: {error}: {self.log()}") from error
            except (ConnectionError, ssl.SSLError, urllib.error.URLError):
                pass  # not yet
            if time.monotonic() > deadline or any(each.poll() is not None for each in self._processes):
                raise TimeoutError(f"Barbican isn't ready: {self.log()}")
            time.sleep(0.1)

    def log(self) -> str:
        """The last lines of its processes and of its own log."""
        files = [self._folder / name for name in ("output", "barbican.log")]
        return "\n".join(file.read_text(errors="replace")[-3000:] for file in files if file.exists())


@contextmanager
def running(folder: Path) -> Iterator[Barbican]:
    """A fresh service."""
    folder.mkdir(parents=True)
    barbican = Barbican(folder)
    try:
        barbican.start()
        yield barbican
    finally:
        barbican.stop()
