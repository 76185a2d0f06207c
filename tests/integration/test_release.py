"""The main job over HTTPS, with real parts and a TPM played in software."""

from __future__ import annotations

import msgspec
import pytest

from keypeer.wire import messages as wire
from tests.support.service import Host, Service, create_vm, good_host


@pytest.mark.parametrize("size", [32, 64])
def test_a_good_host_gets_the_key_and_gets_it_again(service: Service, size: int) -> None:
    create_vm(service, f"main-{size}", size=size)
    host = good_host(service, f"main-{size}-host")
    host.attest()
    key = host.release(f"main-{size}")
    assert len(key) == size
    assert host.release(f"main-{size}") == key
    host.attest()
    assert host.release(f"main-{size}") == key


def test_every_vm_has_a_key_of_its_own(service: Service) -> None:
    host = good_host(service, "own-keys-host")
    host.attest()
    keys = set()
    for number in range(4):
        create_vm(service, f"own-key-{number}")
        keys.add(host.release(f"own-key-{number}"))
    assert len(keys) == 4


def test_the_wrong_country_is_refused_by_name_with_the_remedy(service: Service) -> None:
    create_vm(service, "stays-in-the-eu")
    host = good_host(service, "iad-7", "US")
    host.attest()
    reply = host.try_release("stays-in-the-eu")
    assert (reply.status, reply.code, reply.reason_ids) == (403, "release.refused", ["geo.country"])
    (reason,) = reply.body["reasons"]
    assert reason["found"] == "host iad-7 is tagged US"
    assert reason["asked"] == "policy eu allows DE, NL"
    assert reason["mend"]


def test_no_tag_is_a_denial(service: Service) -> None:
    host = Host(service, "untagged").expect().enrol()
    host.attest()
    assert host.try_release("web-1").reason_ids == ["geo.missing"]


def test_another_boot_is_refused_with_the_pcr_and_ends_the_session(service: Service) -> None:
    create_vm(service, "boot-vm")
    host = good_host(service, "boot-host")
    host.attest()
    host.release("boot-vm")
    grant = host.grant
    host.tpm.extend(4, b"\x66" * 32)
    reply = host.try_attest()
    assert (reply.status, reply.code) == (403, "attestation.refused")
    assert "pcr.4" in reply.reason_ids
    assert host.try_release("boot-vm").code == "session.unknown"
    assert grant is not None
    with pytest.raises(PermissionError):
        host.tpm.open_session(grant)
    shown = service.caller("auditor").get("/v1/hosts/boot-host").of(wire.HostView)
    assert "pcr.4" in [reason.id for reason in shown.last_refusal]
    assert shown.appraisal is None


def test_a_reboot_makes_a_new_session_and_ends_the_old(service: Service) -> None:
    create_vm(service, "reboot-vm")
    host = good_host(service, "reboot-host")
    first = host.attest().session.session
    host.tpm.reboot()
    second = host.attest().session.session
    assert first != second
    assert host.try_release("reboot-vm", first).code == "session.unknown"
    assert len(host.release("reboot-vm")) == 64


def test_one_owner_at_a_time(service: Service) -> None:
    create_vm(service, "owned")
    first, second = good_host(service, "owner-1"), good_host(service, "owner-2", "NL")
    first.attest()
    second.attest()
    first.release("owned")
    assert second.try_release("owned").reason_ids == ["lease.held"]
    shown = service.caller("auditor").get("/v1/vms/owned").of(wire.VmView)
    assert shown.lease is not None
    assert (shown.lease.host, shown.lease.generation) == ("owner-1", 1)


def test_a_batch_decides_each_vm_on_its_own(service: Service) -> None:
    host = good_host(service, "batch-host")
    host.attest()
    names = [f"batch-{number}" for number in range(300)]
    made = wire.CreateVmBatch(vms=tuple(wire.CreateVm(vm=name, policy="eu") for name in names))
    assert service.caller("operator").post("/v1/vm-batches", made).body == {"created": 300}
    asked = [*names[:150], "nobody", *names[150:], names[0]]
    request = wire.BatchReleaseRequest(session=host.grant.session, vms=tuple(asked))  # type: ignore[union-attr]  # attested
    items = host.caller.post("/v1/releases", request).of(wire.BatchRelease).items
    assert [item.vm for item in items] == asked
    bad = [item for item in items if item.release is None]
    assert [(item.vm, item.problem.code) for item in bad if item.problem] == [("nobody", "vm.unknown")]
    keys = {host.tpm.open_release(host.session, item.release, item.vm) for item in items if item.release}
    assert len(keys) == 300


def test_a_release_opens_for_the_vm_that_was_asked_alone(service: Service) -> None:
    create_vm(service, "asked")
    create_vm(service, "swapped")
    host = good_host(service, "swap-host")
    host.attest()
    release = host.try_release("swapped").of(wire.Release)
    with pytest.raises(ValueError, match="MAC doesn't hold"):
        host.tpm.open_release(host.session, msgspec.structs.replace(release, vm="asked"), "asked")


def test_every_decision_is_in_the_log_in_order(service: Service) -> None:
    create_vm(service, "logged")
    host = good_host(service, "logged-host")
    host.attest()
    host.release("logged")
    host.try_release("nobody")
    entries = [entry for entry in service.audit() if entry["host"] == "logged-host"]
    assert [(entry["action"], entry["outcome"], entry["vm"]) for entry in entries] == [
        ("host.expect", "done", ""),
        ("host.enrol", "done", ""),
        ("geo-tag.issue", "done", ""),
        ("host.attest", "granted", ""),
        ("key.release", "granted", "logged"),
        ("key.release", "refused", "nobody"),
    ]
    assert entries[-1]["code"] == "vm.unknown"
    assert entries[-2]["facts"]["country"] == "DE"
