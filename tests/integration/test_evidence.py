"""Evidence in depth on swtpm hosts: what booted, what runs, what the VM is; good, and wrong in every way."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import jwt
import msgspec
import pytest

from keypeer.agent import HostAgent
from keypeer.vmconfig import config_digest
from keypeer.wire import messages as m
from keypeer.wire.runtime import Requirement, RuntimePolicy
from tests.support.boot_log import COMMAND_LINE, boot_log
from tests.support.ima_log import ImaList
from tests.support.measured_host import MeasuredHost
from tests.support.service import Service, running_service

pytestmark = pytest.mark.integration
_numbers = itertools.count(1)


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


DOMAIN = b"<domain type='kvm'><name>web</name><memory unit='MiB'>512</memory><vcpu>2</vcpu></domain>"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Its one approved baseline is the boot of a golden host that tests never tamper with."""
    with running_service(tmp_path_factory.mktemp("kb")) as service:
        yield service


@pytest.fixture(scope="module")
def golden(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A baseline recorded from a golden host, read, and approved."""
    return asyncio.run(recorded(service, tmp_path_factory.mktemp("golden")))


async def recorded(service: Service, folder: Path) -> str:
    async with MeasuredHost(service, "golden", folder) as host:
        # Nothing is approved yet, so the host is refused; but what it proved is known, and can be recorded.
        assert "baseline.none" in await host.refusal()
        recorded = service.keypeer("baseline", "record", "golden-boot", "--host", "golden")
        assert "golden-boot is proposed: boot log" in recorded.stdout
        assert "baseline.none" in await host.refusal()
        service.keypeer("baseline", "approve", "golden-boot")
        assert (await host.agent.attest()).appraisal.baselines == ("golden-boot",)
    return "golden-boot"


@pytest.fixture
async def host(service: Service, golden: str, tmp_path: Path) -> AsyncIterator[MeasuredHost]:
    """A host like the golden one, with disks and serial numbers of its own."""
    assert golden
    async with MeasuredHost(service, f"host-{next(_numbers)}", tmp_path) as host:
        yield host


def put_policy(service: Service, name: str, **tables: object) -> None:
    document = {"geo": {"countries": ["DE"]}, **tables}
    assert service.caller("officer").put(f"/v1/policies/{name}", document).status == 200


def create_vm(service: Service, policy: str, **facts: object) -> str:
    vm = f"vm-{next(_numbers)}"
    reply = service.caller("operator").post("/v1/vms", {"vm": vm, "policy": policy, **facts})
    assert reply.status == 201, reply
    return vm


async def test_a_good_boot_is_granted(service: Service, host: MeasuredHost) -> None:
    put_policy(service, "strict", platform={"baselines": ["golden-boot"], "secure_boot": True})
    appraisal = (await host.agent.attest()).appraisal
    assert appraisal.boot is not None
    assert (appraisal.boot.secure_boot, appraisal.boot.kernel_command_line) == (True, COMMAND_LINE)
    with await host.agent.release(create_vm(service, "strict")) as key:
        assert key.size == 64


async def test_a_person_reads_what_booted(service: Service, host: MeasuredHost) -> None:
    await host.agent.launch("web-1", DOMAIN)
    shown = service.keypeer("host", "show", host.name).stdout
    for line in ("Secure Boot", "lockdown=confidentiality", "Test UEFI CA", "shimx64.efi", "started web-1"):
        assert line in shown
    evidence = service.caller("auditor").get(f"/v1/hosts/{host.name}").body["evidence"]
    assert evidence["boot"]["secure_boot"]["enabled"]
    assert evidence["launches"] == {"web-1": config_digest(DOMAIN).hex()}
    assert evidence["pcrs"]["7"] == boot_log(machine=host.name).pcrs("sha256")[7].hex()
    assert all(
        "evidence" not in item or not item["evidence"]
        for item in service.caller("auditor").get("/v1/hosts").body["items"]
    )


async def test_an_unchanged_log_is_sent_once(host: MeasuredHost) -> None:
    first = (await host.agent.attest()).next_challenge.logs
    assert first.boot_log is not None
    assert (await host.agent.attest()).next_challenge.logs == first


WRONG_BOOTS = {
    "Secure Boot off": ({"secure_boot": False}, "boot.secure_boot.enabled", "Secure Boot is off"),
    "kernel command line": (
        {"kernel_command_line": COMMAND_LINE.replace(" lockdown=confidentiality", "")},
        "boot.kernel_command_line",
        "kernel command line lost `lockdown=confidentiality`",
    ),
    "another image": ({"extra_images": (r"\\EFI\\evil.efi",)}, "boot.image", "evil.efi"),
    "old dbx": ({"dbx_entries": 2}, "boot.secure_boot.dbx", "dbx changed: 3 → 2 entries"),
    "firmware": ({"firmware": b"firmware 0.9"}, "boot.firmware", "has digest"),
}


@pytest.mark.parametrize(("changes", "reason", "words"), WRONG_BOOTS.values(), ids=WRONG_BOOTS)
async def test_a_wrong_boot_is_refused_in_words(
    host: MeasuredHost, changes: dict[str, object], reason: str, words: str
) -> None:
    await host.agent.attest()
    host.boot(boot_log(machine=host.name, **changes))  # type: ignore[arg-type]  # keyword options, by name
    found = await host.refusal()
    assert words in found[reason].found
    diff = host.service.keypeer("baseline", "diff", "golden-boot", "--host", host.name, check=False)
    assert (diff.returncode, words in diff.stdout) == (1, True)


async def test_a_tampered_log_is_refused(host: MeasuredHost) -> None:
    """The machine booted without Secure Boot, and says that it booted with it."""
    host.boot(boot_log(machine=host.name, secure_boot=False), told=boot_log(machine=host.name))
    found = await host.refusal()
    assert "PCR 7" in found["boot.pcr.7"].asked


async def test_what_something_else_extends_is_refused(host: MeasuredHost) -> None:
    await host.agent.attest()
    host.extend(4)
    assert "boot.pcr.4" in await host.refusal()


async def test_a_vms_configuration_is_pinned(service: Service, host: MeasuredHost) -> None:
    put_policy(service, "pinned", vm={"config": "pinned"})
    digest = config_digest(DOMAIN)
    vm, unpinned = create_vm(service, "pinned", config=digest.hex()), create_vm(service, "pinned")
    assert "vm.config.unmeasured" in await host.denial(vm)
    await host.agent.launch(vm, DOMAIN)
    (await host.agent.release(vm)).close()
    assert "vm.config.unpinned" in await host.denial(unpinned)
    more_memory = DOMAIN.replace(b"512", b"1024")
    await host.agent.launch(vm, more_memory)
    found = await host.denial(vm)
    assert config_digest(more_memory).hex() in found["vm.config.mismatch"].found
    assert digest.hex() in found["vm.config.mismatch"].asked
    await host.agent.launch(vm, DOMAIN)
    (await host.agent.release(vm)).close()


async def test_approved_configurations(service: Service, host: MeasuredHost) -> None:
    put_policy(service, "approved", vm={"config": "approved-set", "approved": [config_digest(DOMAIN).hex()]})
    vm = create_vm(service, "approved")
    await host.agent.launch(vm, DOMAIN.replace(b"512", b"256"))
    assert "vm.config.mismatch" in await host.denial(vm)
    await host.agent.launch(vm, DOMAIN)
    (await host.agent.release(vm)).close()


async def test_launches_end_with_the_boot(service: Service, host: MeasuredHost) -> None:
    put_policy(service, "pinned", vm={"config": "pinned"})
    vm = create_vm(service, "pinned", config=config_digest(DOMAIN).hex())
    await host.agent.launch(vm, DOMAIN)
    host.boot(boot_log(machine=host.name))
    await host.agent.attest()
    assert "vm.config.unmeasured" in await host.denial(vm)
    await host.agent.launch(vm, DOMAIN)
    (await host.agent.release(vm)).close()


async def test_a_launch_that_the_agent_did_not_measure_is_refused(host: MeasuredHost) -> None:
    await host.agent.launch("web-1", DOMAIN)
    host.extend(15, hashlib.sha256(b"another entry").digest())
    assert "launch.replay" in await host.refusal()


async def test_a_dynamic_launch_is_required_and_compared(service: Service, host: MeasuredHost, tmp_path: Path) -> None:
    put_policy(service, "txt", platform={"baselines": ["txt"], "drtm": True})
    vm = create_vm(service, "txt")
    await host.agent.attest()
    assert {"platform.drtm", "platform.baseline"} <= set(await host.denial(vm))
    host.boot(boot_log(machine=host.name))
    host.dynamic_launch(b"the measured launch environment")
    await host.agent.attest()
    service.keypeer("baseline", "record", "txt", "--host", host.name, "--pcrs", "17,18")
    service.keypeer("baseline", "approve", "txt")
    assert (await host.agent.attest()).appraisal.drtm
    (await host.agent.release(vm)).close()
    host.boot(boot_log(machine=host.name))
    host.dynamic_launch(b"another environment")
    await host.agent.attest()  # golden-boot says nothing of dynamic launches
    assert {"platform.drtm", "platform.baseline"} <= set(await host.denial(vm))
    service.keypeer("baseline", "retire", "txt")


async def test_an_update_rolls_through_two_hosts(service: Service, golden: str, tmp_path: Path) -> None:
    """Record, read the difference, approve, update the second host, retire: no host is refused on the way."""
    assert golden
    put_policy(service, "rolling", platform={"baselines": ["golden-boot", "updated-boot"]})
    vm, updated = create_vm(service, "rolling"), COMMAND_LINE.replace("/vmlinuz", "/vmlinuz-6.2")
    async with MeasuredHost(service, "roll-1", tmp_path) as first, MeasuredHost(service, "roll-2", tmp_path) as second:
        for host in (first, second):
            assert (await host.agent.attest()).appraisal.baselines == ("golden-boot",)
        first.boot(boot_log(machine="roll-1", kernel_command_line=updated))  # taken out of service first
        await first.refusal()
        service.keypeer("baseline", "record", "updated-boot", "--host", "roll-1")
        diff = service.keypeer("baseline", "diff", "golden-boot", "updated-boot", check=False)
        assert "/vmlinuz-6.2" in diff.stdout
        service.keypeer("baseline", "approve", "updated-boot")
        assert (await first.agent.attest()).appraisal.baselines == ("updated-boot",)
        (await first.agent.release(vm)).close()
        assert (await second.agent.attest()).appraisal.baselines == ("golden-boot",)
        second.boot(boot_log(machine="roll-2", kernel_command_line=updated))
        assert (await second.agent.attest()).appraisal.baselines == ("updated-boot",)
    service.keypeer("baseline", "retire", "updated-boot")


async def test_an_expired_baseline_lets_nobody_in(service: Service, host: MeasuredHost) -> None:
    changed = boot_log(machine=host.name, kernel_command_line=f"{COMMAND_LINE} debug")
    host.boot(changed)
    await host.refusal()
    officer = service.caller("officer")
    path = "/v1/baselines/brief"
    assert officer.post(f"{path}/record", m.RecordBaseline(host=host.name, expires_at=1)).status == 200
    assert officer.post(f"{path}/approve").status == 200
    assert "boot.kernel_command_line" in await host.refusal()


# ── what runs ──────────────────────────────────────────────────────────────────────────────────────────────────

QEMU = "/usr/bin/qemu-system-x86_64"
RUNTIME = RuntimePolicy(
    sets={"debian12": {"/usr/bin/bash": (digest(b"bash"),), QEMU: (digest(b"qemu"),)}},
    excludes=("/var/log/**",),
    require=(Requirement(path=QEMU, of="debian12"),),
)


@pytest.fixture
def runtime(service: Service) -> Iterator[str]:
    """A policy whose VMs want hosts that run nothing but debian12, QEMU among it."""
    officer = service.caller("officer")
    assert officer.put("/v1/runtime-policies/debian12", RUNTIME).status == 200
    put_policy(service, "measured", runtime={"ima": "debian12"})
    yield create_vm(service, "measured")
    assert officer.raw("DELETE", "/v1/runtime-policies/debian12").status == 204


def good_files() -> ImaList:
    return ImaList().file("/usr/bin/bash", b"bash").file(QEMU, b"qemu").file("/var/log/x", b"whatever")


async def test_a_host_that_runs_what_it_should_is_granted(host: MeasuredHost, runtime: str) -> None:
    host.run(good_files())
    (verdict,) = (await host.agent.attest()).appraisal.runtime
    assert (verdict.policy, verdict.entries, verdict.reasons) == ("debian12", 4, ())
    (await host.agent.release(runtime)).close()


async def test_an_unknown_module_at_runtime_is_refused_in_words(host: MeasuredHost, runtime: str) -> None:
    host.run(good_files())
    await host.agent.attest()
    (await host.agent.release(runtime)).close()
    host.run(ImaList().file("/lib/modules/6.1.0/extra/evil.ko", b"evil"))
    await host.agent.attest()
    found = (await host.denial(runtime))["runtime.file"]
    assert "/lib/modules/6.1.0/extra/evil.ko" in found.found
    assert "debian12 allows nothing of that path" in found.asked
    shown = host.service.keypeer("host", "show", host.name).stdout
    assert "evil.ko" in shown


async def test_qemu_from_the_set_is_required(host: MeasuredHost, runtime: str) -> None:
    host.run(ImaList().file("/usr/bin/bash", b"bash"))
    await host.agent.attest()
    assert QEMU in (await host.denial(runtime))["runtime.required"].asked
    host.run(ImaList().file(QEMU, b"another qemu"))
    await host.agent.attest()
    assert {"runtime.required", "runtime.file"} <= set(await host.denial(runtime))


async def test_a_violation_is_refused_and_may_be_reported_only(
    service: Service, host: MeasuredHost, runtime: str
) -> None:
    put_policy(service, "reporting", runtime={"ima": "debian12", "on_violation": "report"})
    reporting = create_vm(service, "reporting")
    host.run(good_files().violation("/usr/bin/bash"))
    (verdict,) = (await host.agent.attest()).appraisal.runtime
    assert [reason.id for reason in verdict.reasons] == ["runtime.violation"]
    assert "runtime.violation" in await host.denial(runtime)
    (await host.agent.release(reporting)).close()


async def test_the_list_goes_on_from_where_it_was(host: MeasuredHost, runtime: str) -> None:
    assert runtime
    host.run(good_files())
    first = await host.agent.attest()
    assert first.next_challenge.logs.ima == 4
    host.run(ImaList().file("/usr/bin/bash", b"bash"))
    again = await host.agent.attest()
    assert (again.next_challenge.logs.ima, again.session.session) == (5, first.session.session)


async def test_a_new_runtime_policy_judges_the_whole_list(service: Service, host: MeasuredHost, runtime: str) -> None:
    host.run(good_files().file("/opt/tool", b"tool"))
    await host.agent.attest()
    assert "runtime.file" in await host.denial(runtime)
    sets = {**RUNTIME.sets, "tools": {"/opt/tool": (digest(b"tool"),)}}
    updated = msgspec.structs.replace(RUNTIME, sets=sets)
    assert service.caller("officer").put("/v1/runtime-policies/debian12", updated).status == 200
    assert (await host.agent.attest()).appraisal.runtime[0].reasons == ()
    (await host.agent.release(runtime)).close()


async def test_a_list_that_was_tampered_with_is_refused(host: MeasuredHost, runtime: str) -> None:
    assert runtime
    host.run(good_files())
    host.run(ImaList().file("/root/evil", b"evil"))
    host.show_ima(host.ima)
    cleaned = ImaList()
    cleaned.lines = [line for line in host.ima.lines if "/root/evil" not in line.shown]
    host.show_ima(cleaned)
    assert "runtime.ima.replay" in await host.refusal()


async def test_the_list_of_another_boot_is_refused(host: MeasuredHost, runtime: str) -> None:
    assert runtime
    host.run(good_files())
    await host.agent.attest()
    before = ImaList()
    before.lines = list(host.ima.lines)
    host.boot(boot_log(machine=host.name))
    host.run(ImaList().file("/root/evil", b"evil"))
    host.show_ima(before)
    assert "runtime.ima.replay" in await host.refusal()


async def test_without_a_list_a_policy_that_wants_one_refuses(
    service: Service, golden: str, runtime: str, tmp_path: Path
) -> None:
    assert golden
    async with MeasuredHost(service, "no-ima", tmp_path) as host:
        toml = host.agent.state.folder / "agent.toml"
        toml.write_text("".join(line for line in toml.open() if not line.startswith("ima_log")))
        async with HostAgent(host.agent.state.folder) as agent:
            host.agent, first = agent, host.agent
            await first.close()
            await agent.attest()
            assert "runtime.ima" in await host.denial(runtime)


def test_a_runtime_policy_from_this_machines_packages(service: Service, tmp_path: Path) -> None:
    """As an officer does after an update: one command."""
    service.keypeer("baseline", "from-packages", "here", "--package", "coreutils", "--require", "/usr/bin/ls")
    document = service.caller("auditor").get("/v1/runtime-policies/here").body["policy"]
    assert document["sets"]["here"]["/usr/bin/ls"] == [digest(Path("/bin/ls").read_bytes())]
    listed = service.keypeer("runtime", "list").stdout
    assert "/usr/bin/ls" in listed
    out = tmp_path / "here.json"
    service.keypeer("baseline", "from-packages", "here", "--package", "coreutils", "--output", str(out))
    service.keypeer("runtime", "put", "there", str(out))
    assert "there" in service.keypeer("runtime", "list").stdout
    for name in ("here", "there"):
        service.keypeer("runtime", "delete", name)
    assert service.keypeer("runtime", "show", "here", check=False).returncode == 3


# ── the appraisal, for others ──────────────────────────────────────────────────────────────────────────────────


async def test_a_token_verifies_with_anothers_library(service: Service, host: MeasuredHost, runtime: str) -> None:
    assert runtime
    host.run(good_files())
    await host.agent.attest()
    (key,) = service.caller("anyone").get("/v1/keys").body["keys"]
    token = service.keypeer("host", "token", host.name, "--nonce", "relying-party-1").stdout.strip()
    claims = jwt.decode(token, jwt.PyJWK(key), algorithms=["ES256"], options={"require": ["exp", "iat"]})
    assert (claims["eat_profile"], claims["eat_nonce"]) == ("tag:github.com,2023:veraison/ear", "relying-party-1")
    appraisal = claims["submods"][host.name]
    assert appraisal["ear.status"] == "affirming"
    assert appraisal["ear.trustworthiness-vector"] == {"instance-identity": 2, "configuration": 2, "executables": 2}
    assert (appraisal["keypeer"]["country"], appraisal["keypeer"]["secure-boot"]) == ("DE", True)
    head, body, signature = token.split(".")
    forged = "A" * len(signature)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(f"{head}.{body}.{forged}", jwt.PyJWK(key), algorithms=["ES256"])


async def test_a_host_that_runs_something_else_gets_no_affirming_token(
    service: Service, host: MeasuredHost, runtime: str
) -> None:
    assert runtime
    host.run(good_files().file("/root/evil", b"evil"))
    await host.agent.attest()
    token = service.caller("auditor").get(f"/v1/hosts/{host.name}/appraisal-token").body["token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    appraisal = claims["submods"][host.name]
    assert (appraisal["ear.status"], appraisal["ear.trustworthiness-vector"]["executables"]) == ("warning", 33)
    assert appraisal["keypeer"]["runtime"] == {"debian12": ["runtime.file"]}


async def test_without_a_good_appraisal_there_is_no_token(service: Service, host: MeasuredHost) -> None:
    path = f"/v1/hosts/{host.name}/appraisal-token"
    assert service.caller("auditor").get(path).code == "appraisal.none"
    assert service.caller("auditor").get("/v1/hosts/nobody/appraisal-token").code == "host.unknown"
    assert service.caller("auditor").get(f"{path}?nonce=short").code == "request.invalid"
    assert service.caller("anyone").get(path).code == "auth.certificate_required"


# ── counters ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_tpm_state_that_was_put_back_is_refused(service: Service, host: MeasuredHost, tmp_path: Path) -> None:
    """As when a VM's snapshot, virtual TPM and all, is restored; an officer may let the host in again."""
    host.tpm.stop()
    shutil.copytree(host.tpm.folder / "state", tmp_path / "state")
    host.tpm.start()
    for _ in range(4):
        host.boot(boot_log(machine=host.name))
    await host.agent.attest()
    host.tpm.stop()
    shutil.rmtree(host.tpm.folder / "state")
    shutil.copytree(tmp_path / "state", host.tpm.folder / "state")
    host.tpm.start()
    host.boot(boot_log(machine=host.name))
    # resetCount, or the clock: it depends on what swtpm had written when it was stopped.
    assert "went back" in (await host.refusal())["counters.restored"].found
    assert "counters.restored" in await host.refusal()
    assert service.caller("officer").post(f"/v1/hosts/{host.name}/approve").status == 200
    await host.agent.attest()


def test_the_documents_policy_is_one(service: Service, tmp_path: Path) -> None:
    document = Path(__file__).resolve().parents[2] / "deploy" / "evidence.md"
    (block,) = re.findall(r"^```toml\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "policy.toml").write_text(block)
    assert (
        service.keypeer("policy", "put", "strict", str(tmp_path / "policy.toml")).stdout == "policy strict allows DE\n"
    )
