"""deploy/reference-client.sh: the protocol by curl, openssl and tpm2-tools, with the real service and a software TPM.
What another implementation gets must be what the SDK gets."""

from __future__ import annotations

import hmac
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import keypeer
from keypeer.tpm import pcr_read
from keypeer.wire import messages as wire
from keypeer.wire.canonical import geo_tag_digest, qualifying_data, release_mac_input
from keypeer.wire.profile import BOOT_PCRS
from tests.support.service import Service, running_service
from tests.support.swtpm import SwTpm, ship
from tests.support.vendor import ek_certificate

SCRIPT = Path(__file__).parents[2] / "deploy" / "reference-client.sh"
DOCUMENT = SCRIPT.with_name("protocol.md")
TOOLS = ("curl", "jq", "openssl", "swtpm", "tpm2_quote", "xxd")
POLICY = "reference"

pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")


@dataclass
class Client:
    """One host that has nothing of ours but the script."""

    service: Service
    tpm: SwTpm
    name: str
    folder: Path
    programs: Path | None = None  # a folder that comes first in PATH

    def boot(self) -> None:
        """What firmware and boot loader measure; each PCR another value, so that their order shows."""
        for pcr in BOOT_PCRS:
            self.extend(pcr, f"{pcr + 1:02x}" * 32)

    def extend(self, pcr: int, digest: str) -> None:
        self._run(["tpm2_pcrextend", f"{pcr}:sha256={digest}"]).check_returncode()

    def try_(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return self._run([str(SCRIPT), *arguments])

    def run(self, *arguments: str) -> bytes:
        """The script's standard output."""
        done = self.try_(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def refused(self, *arguments: str, code: int) -> str:
        """The script's words when it ends with ``code``."""
        done = self.try_(*arguments)
        assert done.returncode == code, (done.returncode, done.stderr.decode())
        assert done.stdout == b""
        return done.stderr.decode()

    def enrol(self) -> None:
        self.run("enrol", self.service.url, str(self.service.ca), self.name)

    def tagged(self, country: str = "DE") -> None:
        self.service.keypeer("geo-tag", "issue", "--host", self.name, "--country", country, "--place", "Köln")
        self.run("tag")

    def shell(self, lines: str) -> None:
        """Runs shell lines in the client's folder."""
        done = self._run(["bash", "-c", lines])
        assert done.returncode == 0, (done.stdout + done.stderr).decode()

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        environment = os.environ | {"TPM2TOOLS_TCTI": self.tpm.tcti, "KEYPEER_STATE": str(self.folder / "state")}
        if self.programs is not None:
            environment["PATH"] = f"{self.programs}:{environment['PATH']}"
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def reference_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Its only baseline is what Client.boot() measures, as the script tells it."""
    with running_service(tmp_path_factory.mktemp("kr")) as service, SwTpm() as tpm:
        folder = tmp_path_factory.mktemp("golden")
        golden = Client(service, tpm, "golden", folder)
        golden.boot()
        (folder / "boot.json").write_bytes(golden.run("baseline"))
        service.keypeer("baseline", "put", "reference-boot", str(folder / "boot.json"))
        service.keypeer("baseline", "approve", "reference-boot")
        (folder / "policy.toml").write_text(
            f'[policy.{POLICY}]\ngeo = {{ countries = ["DE"] }}\nplatform = {{ baselines = ["reference-boot"] }}\n'
        )
        service.keypeer("policy", "put", POLICY, str(folder / "policy.toml"))
        yield service


NewClient = Callable[[str], Client]


@pytest.fixture
def new_client(reference_service: Service, tmp_path: Path) -> Iterator[NewClient]:
    with ExitStack() as stack:

        def make(name: str) -> Client:
            folder = tmp_path / name
            folder.mkdir()
            client = Client(reference_service, stack.enter_context(SwTpm()), name, folder)
            client.boot()
            return client

        yield make


def good_client(new_client: NewClient, name: str) -> Client:
    """On the inventory, enrolled, tagged, attested; it may have the VM key of its name."""
    client = new_client(name)
    digest = client.run("ek").decode().strip()
    client.service.keypeer("host", "expect", name, "--ek-digest", digest)
    client.enrol()
    client.tagged()
    client.run("attest")
    client.service.keypeer("vm", "create", name, "--policy", POLICY)
    return client


@pytest.mark.parametrize("size", [32, 64])
def test_it_gets_the_key_that_the_sdk_gets(new_client: NewClient, tmp_path: Path, size: int) -> None:
    client = good_client(new_client, f"same-{size}")
    vm = f"same-vm-{size}"
    client.service.keypeer("vm", "create", vm, "--policy", POLICY, "--size", str(size))
    client.run("release", vm, "vm.key")
    file = client.folder / "vm.key"
    key = file.read_bytes()
    assert len(key) == size
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert client.run("release", vm) == key
    # The same machine with an agent instead: it finds AK and geo-tag where the script put them.
    agent = tmp_path / "agent"
    client.service.keypeer(
        "agent", "enrol", "--server", client.service.url, "--ca", str(client.service.ca), "--host", client.name,
        "--tcti", client.tpm.tcti, "--folder", str(agent),
    )  # fmt: skip
    with keypeer.Host.open(agent) as host:
        host.write_geo_tag()
        host.attest()
        with host.release(vm) as opened:
            assert bytes(opened.view()) == key
    assert "error: auth.certificate_replaced: " in client.refused("attest", code=1)


def test_what_it_keeps_is_its_users_alone_and_holds_no_key(new_client: NewClient) -> None:
    client = good_client(new_client, "private")
    key = client.run("release", "private")
    state = client.folder / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "tls.key").stat().st_mode) == 0o600
    held = b"\n".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    assert key not in held
    assert key.hex().encode() not in held


def test_a_key_never_overwrites_a_file(new_client: NewClient) -> None:
    client = good_client(new_client, "careful")
    (client.folder / "precious").write_text("mine")
    assert "error: input.exists: " in client.refused("release", "careful", "precious", code=3)
    assert (client.folder / "precious").read_text() == "mine"


def test_a_vendors_tpm_waits_for_an_officer_and_a_place(new_client: NewClient) -> None:
    client = new_client("waiting")
    ship(client.tpm, SimpleNamespace(ek_certificate=ek_certificate))
    client.enrol()
    assert client.refused("attest", code=1).splitlines() == [
        "error: host.not_approved: host waiting waits for an officer",
        "hint: an officer compares the EK digest and runs: keypeer host approve waiting",
    ]
    assert "error: geo.missing: " in client.refused("tag", code=3)
    client.service.keypeer("host", "approve", "waiting")
    client.run("attest")
    client.service.keypeer("vm", "create", "waiting", "--policy", POLICY)
    assert "\ngeo.missing\n" in client.refused("release", "waiting", code=1)
    client.tagged()
    client.run("attest")
    assert len(client.run("release", "waiting")) == 64


def test_the_wrong_country_is_told_as_the_service_told_it(new_client: NewClient) -> None:
    client = good_client(new_client, "moved")
    client.tagged("US")
    client.run("attest")
    lines = client.refused("release", "moved", code=1).splitlines()
    assert lines[0].startswith("error: release.refused: VM moved isn't released to host moved: ")
    assert lines[2:5] == ["geo.country", "  found  host moved is tagged US", "  asked  policy reference allows DE"]
    assert lines[5].startswith("  mend   ")


def test_another_boot_is_refused_naming_the_pcr(new_client: NewClient) -> None:
    client = good_client(new_client, "evil")
    client.extend(4, "66" * 32)
    # The service hasn't heard yet and releases; the TPM doesn't open the session key any more.
    assert "error: tpm.policy: " in client.refused("release", "evil", code=1)
    session = (client.folder / "state" / "session.json").read_bytes()
    words = client.refused("attest", code=1)
    assert "error: attestation.refused: host evil's evidence is not good: " in words
    assert "\npcr.4\n" in words
    shown = client.service.caller("auditor").get("/v1/hosts/evil").of(wire.HostView)
    for reason in shown.last_refusal:
        text = f"\n{reason.id}\n  found  {reason.found}\n  asked  {reason.asked}\n  mend   {reason.mend}\n"
        assert text in words
    assert "error: session.missing: " in client.refused("release", "evil", code=3)
    (client.folder / "state" / "session.json").write_bytes(session)
    assert "error: session.unknown: " in client.refused("release", "evil", code=1)


def test_a_reboot_needs_a_new_attestation_alone(new_client: NewClient) -> None:
    client = good_client(new_client, "rebooted")
    key = client.run("release", "rebooted")
    public = (client.folder / "state" / "binding.pub").read_bytes()
    client.tpm.reboot()
    client.boot()
    client.run("attest")
    assert client.run("release", "rebooted") == key
    assert (client.folder / "state" / "binding.pub").read_bytes() == public


TAMPERED = {
    "mac": '.mac |= (if startswith("A") then "B" else "A" end) + .[1:]',
    "version": ".version += 1",
    "generation": ".generation += 1",
    "lease": ".lease_expires_at += 3600",
    "wrapped": '.wrapped_key |= (if startswith("A") then "B" else "A" end) + .[1:]',
}


@pytest.fixture
def meddled(new_client: NewClient) -> Client:
    """A good client whose curl is somebody else's: it does to a release what the file ``meddle`` says."""
    client = good_client(new_client, "meddled")
    client.service.keypeer("vm", "create", "another", "--policy", POLICY)
    client.programs = client.folder / "programs"
    client.programs.mkdir()
    curl = client.programs / "curl"
    curl.write_text(
        f"""#!/usr/bin/env bash
set -euo pipefail
vm=$(cat '{client.folder}/vm')
{shutil.which("curl")} "${{@//vms\\/meddled\\/key/vms/$vm/key}}"
case "$*" in */key/release*) jq "$(cat '{client.folder}/meddle')" answer >meddled && mv meddled answer ;; esac
"""
    )
    curl.chmod(0o700)
    (client.folder / "vm").write_text("meddled")
    (client.folder / "meddle").write_text(".")
    return client


def test_a_release_that_somebody_changed_is_refused(meddled: Client) -> None:
    assert len(meddled.run("release", "meddled")) == 64, "the meddling curl itself works"
    for what, change in TAMPERED.items():
        (meddled.folder / "meddle").write_text(change)
        words = meddled.refused("release", "meddled", "stolen", code=5)
        assert words.startswith("error: release.mac: "), what
    # Another VM's whole release, which is genuine, even with the asked VM's name on it.
    (meddled.folder / "vm").write_text("another")
    (meddled.folder / "meddle").write_text('.vm = "meddled"')
    assert "error: release.mac: " in meddled.refused("release", "meddled", "stolen", code=5)
    assert not (meddled.folder / "stolen").exists()


def test_it_speaks_only_to_its_own_service(new_client: NewClient, tmp_path: Path) -> None:
    client = new_client("lonely")
    assert "error: service.unreachable: " in client.refused(
        "enrol", "https://localhost:1", str(client.service.ca), "lonely", code=4
    )
    made = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", "key", "-out", "ca", "-subj", "/CN=x"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    words = client.refused("enrol", client.service.url, str(tmp_path / "ca"), "lonely", code=4)
    assert "certificate" in words
    words = client.refused("enrol", client.service.url, str(client.service.ca), "lonely", code=1)
    assert "error: enrol.ek_untrusted: " in words
    assert "\nek.not_listed\n" in words


@pytest.mark.parametrize("arguments", [(), ("steal",), ("release",), ("hex", "x")])
def test_the_command_line_is_checked(new_client: NewClient, arguments: tuple[str, ...]) -> None:
    assert "reference-client.sh attest" in new_client("usage").refused(*arguments, code=2)


def test_the_baseline_is_the_agents(new_client: NewClient) -> None:
    client = new_client("measured")
    document = json.loads(client.run("baseline"))
    with client.tpm.open() as tpm:
        values = pcr_read(tpm, "sha256", BOOT_PCRS)
    assert document == {"bank": "sha256", "pcrs": {str(pcr): [value.hex()] for pcr, value in values.items()}}


# ── the same in words ──────────────────────────────────────────────────────────────────────────────────────────


def shell_of(*headings: str) -> str:
    """The document's shell blocks under these headings, after those of its beginning."""
    sections = re.split(r"^## (.*)\n", DOCUMENT.read_text(), flags=re.MULTILINE)
    wanted = [sections[0], *(sections[sections.index(heading) + 1] for heading in headings)]
    blocks = [block for text in wanted for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    assert len(blocks) > len(headings)
    return "".join(blocks)


def flushing_tools(folder: Path, names: set[str]) -> Path:
    """The same tools, each flushing what it left loaded: a resource manager would, which swtpm hasn't."""
    folder.mkdir()
    flush = shutil.which("tpm2_flushcontext")
    for name in names - {"tpm2_flushcontext"}:
        tool = folder / name
        tool.write_text(f'#!/bin/sh\n{shutil.which(name)} "$@" || exit\n{flush} -t >&2\n{flush} -l >&2\n')
        tool.chmod(0o700)
    return folder


def test_the_documents_shell_lines_lead_to_the_same_key(new_client: NewClient) -> None:
    client = new_client("by-the-book")
    service, folder = client.service, client.folder
    service.keypeer("host", "expect", "by-the-book", "--ek-digest", client.run("ek").decode().strip())
    service.keypeer("vm", "create", "book", "--policy", POLICY)
    (folder / "ca.pem").write_bytes(service.ca.read_bytes())
    lines = shell_of("Enrol"), shell_of("Tag", "Attest", "Release")
    client.programs = flushing_tools(folder / "programs", set(re.findall(r"tpm2_[a-z]+", "".join(lines))))
    start = f"set -euo pipefail\nSERVER={service.url} HOST=by-the-book VM=book\n"
    client.shell(start + lines[0])
    service.keypeer("geo-tag", "issue", "--host", "by-the-book", "--country", "DE")
    client.shell(start + lines[1])
    key = (folder / "vm.key").read_bytes()
    client.enrol()
    client.run("tag")
    client.run("attest")
    assert client.run("release", "book") == key


def test_the_documents_examples_are_what_the_code_makes() -> None:
    qualifying = qualifying_data(
        nonce=bytes(range(32)),
        host="fra-1",
        client_certificate=b"cert",
        binding_name=b"\x00\x0b" + b"\xaa" * 32,
        purpose="attest",
    )
    message = release_mac_input(
        vm="web-1",
        key_version=1,
        generation=2,
        host="fra-1",
        session=bytes(range(16)),
        lease_expires=1_800_000_000,
        grace=300,
        wrapped=b"\xbb" * 40,
    )
    mac = hmac.digest(b"\xcc" * 32, message, "sha256")
    found = dict(re.findall(r"^    (qualifyingData|digest|mac) +([0-9a-f]{64})$", DOCUMENT.read_text(), re.MULTILINE))
    assert found == {"qualifyingData": qualifying.hex(), "digest": geo_tag_digest(b"{}").hex(), "mac": mac.hex()}
