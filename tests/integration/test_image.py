"""Memory images under keys that the service releases: as a host saves a guest, another restores it, and one may not."""

from __future__ import annotations

import json
import os
from pathlib import Path

from keypeer.cli.exits import Exit
from keypeer.wire import messages as wire
from keypeer.wire.profile import BOOT_PCRS, PCR_BANK
from tests.support.measured_host import MeasuredHost
from tests.support.service import Service, create_vm, put_baseline

DATA = os.urandom(3 * 1024 * 1024 + 7)


async def test_the_service_decides_who_saves_and_who_restores(own_service: Service, tmp_path: Path) -> None:
    service = own_service
    create_vm(service, "saved")
    (tmp_path / "data").write_bytes(DATA)
    image, back = str(tmp_path / "image"), tmp_path / "back"
    async with MeasuredHost(service, "kvm-1", tmp_path) as host:
        values = await host.agent.pcrs(PCR_BANK, BOOT_PCRS)
        pcrs = {str(index): (value.hex(),) for index, value in values.items()}
        put_baseline(service, "kvm", wire.PutBaseline(bank=PCR_BANK, pcrs=pcrs))
        release = ("--release", "--folder", str(tmp_path / "kvm-1"), "--vm", "saved")

        done = service.keypeer("image", "encrypt", str(tmp_path / "data"), image, *release, "--epoch", "3", "--json")
        told = json.loads(done.stdout)
        assert (told["vm"], told["version"], told["epoch"], told["size"]) == ("saved", 1, 3, len(DATA))

        # The VM's key is rotated; the image names the version that opens it.
        service.keypeer("vm", "rotate", "saved")
        service.keypeer("image", "decrypt", image, str(back), *release, "--id", told["id"])
        assert back.read_bytes() == DATA

        service.keypeer("vm", "suspend", "saved")
        refused = service.keypeer("image", "decrypt", image, str(tmp_path / "no"), *release, "--json", check=False)
        assert refused.returncode == Exit.REFUSED
        assert json.loads(refused.stdout)["reasons"]
        assert not (tmp_path / "no").exists()
        other = ("--release", "--folder", str(tmp_path / "kvm-1"), "--vm", "web-1")
        refused = service.keypeer("image", "decrypt", image, str(tmp_path / "no"), *other, check=False)
        assert (refused.returncode, "image.vm" in refused.stderr) == (Exit.BAD_INPUT, True)
        seen = service.caller("auditor").get("/v1/vms/web-1").of(wire.VmView)
        assert seen.lease is None, "an image of another VM is refused before its key is asked for"
