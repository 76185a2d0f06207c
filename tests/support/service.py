"""The whole service on real parts (SoftHSM, LMDB, TLS), in a folder of its own, and callers of every kind."""

from __future__ import annotations

import atexit
import functools
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keypeer.wire import messages as wire
from keypeer.wire.encoding import b64decode, b64encode
from kms.settings import read_home
from tests.support.hsm import MODULE, blank_token, wait_until
from tests.support.simulated_host import SimulatedHost
from tests.support.vendor import ek_certificate, vendor_ca

READY_S = 40.0  # seconds; starting takes 2, a busy machine longer
KEYPEER = Path(sys.executable).with_name("keypeer")


@dataclass(frozen=True)
class Reply:
    """One HTTP answer; ``body`` is decoded JSON when it is any."""

    status: int
    body: Any
    type: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The problem's stable code."""
        assert self.type == "application/problem+json", self
        return str(self.body["code"])

    @property
    def reason_ids(self) -> list[str]:
        return [reason["id"] for reason in self.body["reasons"]]

    def of(self, kind: type[Any]) -> Any:
        """The body as a message of the protocol; AssertionError when it is a problem instead."""
        assert self.status < 300, self
        return msgspec.convert(self.body, kind)


class Caller:
    """One client of the service: a certificate, or none. Keeps its connection."""

    def __init__(self, port: int, ca: Path, certificate: Path | None = None, key: Path | None = None) -> None:
        self.context = ssl.create_default_context(cafile=str(ca))
        if certificate is not None:
            self.context.load_cert_chain(certificate, key)
        self.certificate = ssl.PEM_cert_to_DER_cert(certificate.read_text()) if certificate is not None else b""
        self.attempts = 2
        self.timeout = 30.0  # seconds
        self._port = port
        self._connection: http.client.HTTPSConnection | None = None

    def raw(self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json") -> Reply:
        """One request; a connection that a restarted worker left dead is made anew, unless ``attempts`` is 1."""
        headers = {} if body is None else {"Content-Type": content_type}
        for attempt in range(1, self.attempts + 1):
            if self._connection is None:
                self._connection = http.client.HTTPSConnection(
                    "localhost", self._port, timeout=self.timeout, context=self.context
                )
            try:
                self._connection.request(method, path, body, headers)
                answer = self._connection.getresponse()
                data, kind = answer.read(), answer.headers.get_content_type()
                if answer.will_close:
                    self.close()
                body = msgspec.json.decode(data) if kind.endswith("json") and data else data
                return Reply(answer.status, body, kind, dict(answer.headers))
            except (http.client.HTTPException, ConnectionError, ssl.SSLEOFError):
                self.close()
                if attempt == self.attempts:
                    raise
        raise AssertionError("unreachable")

    def head(self, path: str) -> dict[str, str]:
        """The headers of a GET."""
        return self.raw("GET", path).headers

    def get(self, path: str) -> Reply:
        return self.raw("GET", path)

    def post(self, path: str, message: Any = None) -> Reply:
        return self.raw("POST", path, msgspec.json.encode(message) if message is not None else None)

    def put(self, path: str, message: Any) -> Reply:
        return self.raw("PUT", path, msgspec.json.encode(message))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """A service's folder and, while it runs, its supervisor."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    callers: dict[str, Caller] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)  # more of it, for the processes of `keypeer serve`

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def ca(self) -> Path:
        return self.folder / "tls" / "ca.pem"

    @property
    def log(self) -> Path:
        return self.folder / "service.log"

    def keypeer(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the command as this service's users do."""
        environment = {**os.environ, "KEYPEER_HOME": str(self.folder), "NO_COLOR": "1"}
        done = subprocess.run(
            [str(KEYPEER), *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, f"keypeer {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def start(self, *, ready: bool = True) -> None:
        """Starts `keypeer serve` and waits until it is ready with all its HSM workers, or answers at least."""
        self.launch()
        self.wait_ready(statuses=(200,) if ready else (200, 503))
        if ready:  # one worker is enough for that; a rotation asks each of them
            workers = read_home(self.folder).hsm_sockets()
            wait_until(lambda: all(map(_listens, workers)), READY_S)

    def launch(self) -> None:
        """Starts `keypeer serve`."""
        environment = {**os.environ, **self.environment, "KEYPEER_HOME": str(self.folder)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([str(KEYPEER), "serve"], env=environment, stderr=log, stdout=log)

    def wait_ready(self, seconds: float = READY_S, statuses: tuple[int, ...] = (200,)) -> None:
        """Returns when /readyz says yes, or what else is waited for."""
        anyone, deadline = Caller(self.port, self.ca), time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if anyone.get("/readyz").status in statuses:
                    return
            except (OSError, http.client.HTTPException):
                anyone.close()
            assert self.process is None or self.process.poll() is None, self.log.read_text()[-4000:]
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s: {self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """SIGTERM, and every process of it gone."""
        for caller in self.callers.values():
            caller.close()  # first: the service gives open connections seconds to end
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0, self.log.read_text()[-4000:]
            self.process = None

    def workers(self, kind: str) -> list[psutil.Process]:
        """The running "web", "hsm" or "background" processes, or the "nursery"."""
        assert self.process is not None
        sign = {"web": "worker", "hsm": "hsm_adapter"}.get(kind, kind)
        return [child for child in psutil.Process(self.process.pid).children() if sign in command_of(child)]

    def caller(self, role: str) -> Caller:
        """The first officer, operator or auditor; or "anyone", without a certificate."""
        if role not in self.callers:
            place = self.folder / "identities" / role
            files = () if role == "anyone" else (place / "cert.pem", place / "key.pem")
            self.callers[role] = Caller(self.port, self.ca, *files)
        return self.callers[role]

    def audit(self) -> list[dict[str, Any]]:
        """The whole log."""
        entries: list[dict[str, Any]] = []
        while True:
            page = self.caller("auditor").get(f"/v1/audit?after={len(entries)}&limit=1000").body["items"]
            entries += page
            if len(page) < 1000:
                return entries


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; none of one that has just died."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def running_service(
    folder: Path, environment: Mapping[str, str] | None = None, *, own_keys: bool = False, **options: str
) -> Iterator[Service]:
    """A fresh service, running; its files are gone afterwards. Its keys are those of all services of this process
    unless they are to be its ``own_keys``."""
    folder.mkdir(parents=True, exist_ok=True)
    service = initialised_service(folder, **options) if own_keys else copied_service(folder, **options)
    service.environment |= environment or {}
    try:
        service.start()
        yield service
    finally:
        if service.process is not None:
            service.stop()
        shutil.rmtree(folder, ignore_errors=True)


def initialised_service(folder: Path, store: str = "", **options: str) -> Service:
    """A service made by `keypeer init` on a blank SoftHSM token. Options replace lines of the settings file."""
    blank_token(folder / "token")
    service = Service(folder, free_port())
    arguments = ["init", "--module", MODULE, "--pin", "file:token/pin", "--so-pin", "file:token/so-pin"]
    arguments += ["--env", "SOFTHSM2_CONF={home}/token/softhsm2.conf", "--listen", f"127.0.0.1:{service.port}"]
    arguments += ["--store", store] if store else []
    service.keypeer(*arguments)
    (folder / "vendor-cas" / "test-vendor.pem").write_bytes(vendor_ca().public_bytes(Encoding.PEM))
    _replace(folder / "keypeer.toml", options)
    return service


def copied_service(folder: Path, **options: str) -> Service:
    """As ``initialised_service``, from a copy of what `keypeer init` made once in this process: that takes seconds."""
    made = _made_once()
    shutil.copytree(made.folder, folder, dirs_exist_ok=True)
    service = Service(folder, free_port())
    _replace(folder / "token" / "softhsm2.conf", {str(made.folder): str(folder)})
    address = {f":{made.port}": f":{service.port}"}
    for server in (folder / "identities").glob("*/server"):
        _replace(server, address)
    _replace(folder / "keypeer.toml", {**address, **options})
    return service


@functools.cache
def _made_once() -> Service:
    folder = Path(tempfile.mkdtemp(prefix="keypeer-made-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return initialised_service(folder)


def _replace(file: Path, changes: Mapping[str, str]) -> None:
    text = file.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


class Host:
    """A simulated TPM host on the wire: enrolled, approved, tagged, as far as asked."""

    def __init__(self, service: Service, name: str, **options: Any) -> None:
        self.service = service
        self.name = name
        self.tpm = SimulatedHost(name, **options)
        self.caller = service.caller("anyone")
        self.session: Any = None
        self.grant: wire.SessionGrant | None = None

    def expect(self) -> Host:
        """On the inventory."""
        expected = wire.ExpectHost(host=self.name, ek_digest=self.tpm.ek_digest.hex())
        assert self.service.caller("officer").post("/v1/expected-hosts", expected).status == 204
        return self

    def enrol(self, *, vendor: bool = False) -> Host:
        """With a certificate of its own from here on; ``vendor`` sends an EK certificate of the test vendor."""
        anyone = self.service.caller("anyone")
        request = self.tpm.enrol_request()
        if vendor:
            certificate = ek_certificate(self.tpm.ek.public_key())
            request = msgspec.structs.replace(request, ek_certificates=(b64encode(certificate),))
        challenge = anyone.post("/v1/enrolments", request).of(wire.EnrolChallenge)
        result = anyone.post("/v1/activations", self.tpm.activate(challenge)).of(wire.EnrolResult)
        self.use(result.certificate)
        self.tpm.forget_session()  # the service did too, so the binding key's certification is sent again
        return self

    def use(self, certificate: str) -> None:
        """Calls with ``certificate`` (PEM) and the host's TLS key."""
        folder = self.service.folder / "hosts" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        key = self.tpm.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "key.pem").write_bytes(key)
        (folder / "cert.pem").write_text(certificate)
        self.caller = Caller(self.service.port, self.service.ca, folder / "cert.pem", folder / "key.pem")

    def tag(self, country: str, **facts: Any) -> Host:
        """Tagged by the officer, written and locked in the TPM."""
        issued = wire.IssueGeoTag(country=country, place="test", **facts)
        reply = self.service.caller("officer").post(f"/v1/hosts/{self.name}/geo-tag", issued)
        signed = reply.of(wire.GeoTagView).signed
        self.tpm.write_geo_tag(b64decode(signed.statement), b64decode(signed.signature))
        return self

    def challenge(self) -> wire.Challenge:
        reply = self.caller.post("/v1/challenges", wire.ChallengeRequest())
        challenge: wire.Challenge = reply.of(wire.Challenge)
        return challenge

    def evidence(self, challenge: wire.Challenge | None = None) -> wire.AttestRequest:
        """Evidence for a fresh challenge, unless one is given."""
        return self.tpm.attest_request(challenge or self.challenge(), self.caller.certificate)

    def try_attest(self) -> Reply:
        return self.caller.post("/v1/attestations", self.evidence())

    def attest(self) -> wire.AttestResult:
        """A good attestation; the session is open afterwards."""
        result: wire.AttestResult = self.try_attest().of(wire.AttestResult)
        self.grant = result.session
        self.session = self.tpm.open_session(result.session)
        return result

    def try_release(self, vm: str, session: str | None = None) -> Reply:
        assert session is not None or self.grant is not None
        wanted = session if session is not None else self.grant.session  # type: ignore[union-attr]  # asserted above
        return self.caller.post(f"/v1/vms/{vm}/key/release", wire.ReleaseRequest(session=wanted))

    def release(self, vm: str) -> bytes:
        """The VM key, opened and checked as the SDK would."""
        return self.tpm.open_release(self.session, self.try_release(vm).of(wire.Release), vm)


def put_baseline(service: Service, name: str, baseline: wire.PutBaseline) -> None:
    """Proposed and approved."""
    officer = service.caller("officer")
    assert officer.put(f"/v1/baselines/{name}", baseline).status == 200
    assert officer.post(f"/v1/baselines/{name}/approve").status == 200


def put_demo_policy(service: Service, *, name: str = "eu", **geo: Any) -> None:
    """A policy that allows DE and NL on the baseline of simulated hosts that booted "good"."""
    officer = service.caller("officer")
    good = SimulatedHost("any").pcrs
    baseline = wire.PutBaseline(pcrs={str(index): (good[index].hex(),) for index in range(8)})
    put_baseline(service, "good", baseline)
    rule = wire.GeoRule(**(geo or {"countries": ("DE", "NL")}))
    reply = officer.put(f"/v1/policies/{name}", wire.PolicyDocument(geo=rule))
    assert reply.status == 200, reply


def create_vm(service: Service, vm: str, *, policy: str = "eu", size: int = 64) -> None:
    """One VM key, made by the operator."""
    reply = service.caller("operator").post("/v1/vms", {"vm": vm, "policy": policy, "size": size})
    assert reply.status == 201, reply


def good_host(service: Service, name: str, country: str = "DE", **options: Any) -> Host:
    """A host on the inventory, enrolled and tagged."""
    return Host(service, name, **options).expect().enrol().tag(country)
