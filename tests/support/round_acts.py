"""What is tried while processes die: creation, release, rotation and destruction of VM keys, one by one and in batches,
and rotation of the HSM's keys. Each act has keys and hosts of its own, so that it knows how each must stand."""

from __future__ import annotations

import time
from collections import Counter

from keypeer.wire import messages as wire
from tests.support.round_facts import Facts, Key, check_value
from tests.support.rounds import Act, Found, Outcome, once
from tests.support.service import Host, Reply, good_host

BATCH = 20  # VMs
POOL = 8  # VMs that an act comes back to
STALE = {"session.unknown", "session.expired", "release.refused"}  # the last: evidence is good for 60 s


class CreateOne(Act):
    """A VM key, one a request."""

    title = "create one"
    rest_s = 0.1
    batch = 1

    def prepare(self) -> None:
        self.operator = self.caller("operator")
        self.batches: list[tuple[Outcome, tuple[str, ...]]] = []

    def turn(self) -> None:
        vms = tuple(f"{self.title.replace(' ', '-')}-{len(self.batches)}-{index}" for index in range(self.batch))
        outcome, _ = self.ask(lambda: self.send(vms))
        self.batches.append((outcome, vms))

    def send(self, vms: tuple[str, ...]) -> Reply:
        return self.operator.post("/v1/vms", {"vm": vms[0], "policy": "eu"})

    def check(self, facts: Facts, found: Found) -> None:
        for outcome, vms in self.batches:
            there = [vm for vm in vms if vm in facts.current]
            if outcome == "done" and len(there) < len(vms):
                found.lost(f"{self.title}: {sorted(set(vms) - set(there))[:3]} of an acknowledged batch")
            if outcome == "refused" and there:
                found.half(f"{self.title}: {there[0]} was refused, and is there")
            if 0 < len(there) < len(vms):
                found.half(f"{self.title}: {len(there)} of a batch of {len(vms)}, {vms[0]}")
            for vm in vms:
                if facts.created[vm] != (vm in facts.current):
                    found.unlogged(f"{self.title}: {vm} has {facts.created[vm]} entries")


class CreateBatch(CreateOne):
    """Many, or none."""

    title = "create batch"
    batch = BATCH

    def send(self, vms: tuple[str, ...]) -> Reply:
        return self.operator.post("/v1/vm-batches", {"vms": [{"vm": vm, "policy": "eu"} for vm in vms]})


class ReleaseOne(Act):
    """A VM key to a host that opens it."""

    title = "release one"
    rest_s = 0.01

    def prepare(self) -> None:
        self.host: Host = good_host(self.service, self.title.replace(" ", "-"))
        once(self.host.caller)
        self.vms = make_pool(self)
        self.granted: Counter[tuple[str, int, int]] = Counter()  # VM, version, generation
        self.opened: list[tuple[Key, str]] = []

    def turn(self) -> None:
        if self.host.grant is None:
            self.attest()
            return
        self.release()

    def attest(self) -> None:
        asked, reply = self.ask(lambda: self.host.caller.post("/v1/challenges", wire.ChallengeRequest()))
        if asked != "done" or reply is None:
            return
        evidence = self.host.evidence(reply.of(wire.Challenge))
        answered, reply = self.ask(lambda: self.host.caller.post("/v1/attestations", evidence))
        if answered == "done" and reply is not None and (grant := reply.of(wire.AttestResult).session) is not None:
            self.host.grant, self.host.session = grant, self.host.tpm.open_session(grant)
        else:
            self.host.tpm.forget_session()  # whether the service has its binding key is unknown

    def release(self) -> None:
        outcome, reply = self.ask(lambda: self.host.try_release(self.chance.choice(self.vms)))
        if reply is not None and outcome == "done":
            self.open(reply.of(wire.Release))
        elif reply is not None and reply.code in STALE:
            self.host.grant = None

    def open(self, release: wire.Release) -> None:
        key = self.host.tpm.open_release(self.host.session, release, release.vm)
        self.granted[release.vm, release.version, release.generation] += 1
        self.opened.append(((release.vm, release.version), check_value(key)))

    def check(self, facts: Facts, found: Found) -> None:
        for key, check in self.opened:
            facts.compare(key, check)
        self.opened.clear()
        for (vm, version, generation), count in self.granted.items():
            if facts.released[self.host.name, vm, version, generation] < count:
                found.unlogged(f"{self.title}: {vm} was released {count} times, entries tell of fewer")
            lease = facts.leases.get(vm)
            if lease is None or lease.host != self.host.name or lease.generation < generation:
                found.lost(f"{self.title}: the lease of {vm}, generation {generation}")


class ReleaseBatch(ReleaseOne):
    """All of a host's VMs at once, as after its reboot."""

    title = "release batch"
    rest_s = 0.05

    def release(self) -> None:
        assert self.host.grant is not None
        request = wire.BatchReleaseRequest(session=self.host.grant.session, vms=tuple(self.vms))
        outcome, reply = self.ask(lambda: self.host.caller.post("/v1/releases", request))
        if reply is not None and outcome == "done":
            for item in reply.of(wire.BatchRelease).items:
                if item.release is not None:
                    self.open(item.release)
                elif item.problem is not None and item.problem.code in STALE:
                    self.host.grant = None
        elif reply is not None and reply.code in STALE:
            self.host.grant = None


class RotateVm(Act):
    """The next version of a VM's key; the one before is erased at once."""

    title = "rotate VM"
    rest_s = 0.1

    def prepare(self) -> None:
        self.officer = self.caller("officer")
        self.vms = make_pool(self)
        self.acknowledged = dict.fromkeys(self.vms, 1)

    def turn(self) -> None:
        vm = self.chance.choice(self.vms)
        outcome, reply = self.ask(lambda: self.officer.post(f"/v1/vms/{vm}/rotate", {"readable": 0}))
        if outcome == "done" and reply is not None:
            self.acknowledged[vm] = max(self.acknowledged[vm], reply.of(wire.VmView).version)

    def settled(self, facts: Facts) -> bool:
        return not any(vm in self.acknowledged for vm, _ in facts.olds)

    def check(self, facts: Facts, found: Found) -> None:
        for vm, least in self.acknowledged.items():
            if vm not in facts.current or (version := facts.current[vm].record.key_version) < least:
                found.lost(f"{self.title}: {vm} isn't at version {least}")
                continue
            told = [facts.rotated[vm, each] for each in range(2, version + 2)]
            if told != [1] * (version - 1) + [0]:
                found.unlogged(f"{self.title}: {vm} is at version {version}, entries: {told}")
            if left := [each for name, each in facts.olds if name == vm]:
                found.half(f"{self.title}: versions {left} of {vm} were to be erased")


class DestroyVm(Act):
    """A VM key made, and its destruction set for the next second; some are cancelled."""

    title = "destroy VM"
    rest_s = 0.1

    def prepare(self) -> None:
        self.operator, self.officer = self.caller("operator"), self.caller("officer")
        self.count = 0
        self.destroyed: dict[str, bool | None] = {}  # False: it wasn't; None: it may have been

    def turn(self) -> None:
        vm = f"destroy-{self.count}"
        self.count += 1
        made, _ = self.ask(lambda: self.operator.post("/v1/vms", {"vm": vm, "policy": "eu"}))
        if made != "done":
            return
        begun, _ = self.ask(lambda: self.officer.post(f"/v1/vms/{vm}/destroy", {"after": self.chance.randint(1, 3)}))
        self.destroyed[vm] = {"done": True, "refused": False, "unknown": None}[begun]
        if begun == "done" and self.chance.random() < 0.5:
            cancelled, _ = self.ask(lambda: self.officer.post(f"/v1/vms/{vm}/cancel-destroy", {}))
            self.destroyed[vm] = {"done": False, "refused": True, "unknown": None}[cancelled]

    def settled(self, facts: Facts) -> bool:
        now = time.time()
        return not any(
            0 < stored.attributes.destroy_at <= now + 5 for vm in self.destroyed if (stored := facts.current.get(vm))
        )

    def check(self, facts: Facts, found: Found) -> None:
        for vm, destroyed in self.destroyed.items():
            there, gone = vm in facts.current, vm in facts.gone
            if there == gone:
                found.half(f"{self.title}: {vm} is {'there, and gone' if there else 'nowhere'}")
            if destroyed is True and there:
                found.lost(f"{self.title}: the destruction of {vm}")
            if destroyed is False and gone:
                found.lost(f"{self.title}: {vm}, whose destruction was refused or cancelled")
            if facts.acts["vm.erase", vm] != gone:
                found.unlogged(f"{self.title}: {vm} has {facts.acts['vm.erase', vm]} entries of its erasure")


class RotateHsmKey(Act):
    """The KEK and the record MAC, by turns, and the end of their old versions."""

    title = "rotate HSM key"
    rest_s = 0.5

    def prepare(self) -> None:
        self.officer = self.caller("officer")
        self.newest = {"kek": 1, "record-mac": 1}
        self.destroyed: list[tuple[str, int]] = []
        self.key = "kek"

    def turn(self) -> None:
        other = "record-mac" if self.key == "kek" else "kek"
        outcome, reply = self.ask(lambda: self.officer.post(f"/v1/keys/{self.key}/rotation"))
        if outcome == "done" and reply is not None:
            self.newest[self.key] = max(self.newest[self.key], reply.of(wire.RotationView).to)
            self.key = other
        for version in range(1, self.newest[other]):
            if (other, version) not in self.destroyed:
                ended, _ = self.ask(lambda: self.officer.raw("DELETE", f"/v1/keys/{other}/versions/{version}"))  # noqa: B023
                if ended == "done":
                    self.destroyed.append((other, version))
                break

    def settled(self, facts: Facts) -> bool:
        return not facts.rotating

    def check(self, facts: Facts, found: Found) -> None:
        if facts.rotating:
            found.half(f"{self.title}: {facts.rotating}")
        for key, version in self.newest.items():
            if version > 1 and version not in facts.hsm_versions[key]:
                found.lost(f"{self.title}: version {version} of {key}")
        for key, version in self.destroyed:
            if version in facts.hsm_versions[key]:
                found.lost(f"{self.title}: the destruction of version {version} of {key}")


ACTS: tuple[type[Act], ...] = (
    CreateOne,
    CreateBatch,
    ReleaseOne,
    ReleaseBatch,
    RotateVm,
    DestroyVm,
    RotateHsmKey,
)


def make_pool(act: Act) -> list[str]:
    """VM keys of the act's own."""
    vms = [f"{act.title.replace(' ', '-').lower()}-pool-{number}" for number in range(POOL)]
    reply = act.service.caller("operator").post("/v1/vm-batches", {"vms": [{"vm": vm, "policy": "eu"} for vm in vms]})
    assert reply.status == 201, reply
    return vms
