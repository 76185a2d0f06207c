"""A host with a software TPM (swtpm), logs that its TPM was really extended with, and its agent."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from keypeer.agent import HostAgent
from keypeer.errors import ProblemError
from keypeer.state import AgentState
from keypeer.tpm import pcr_extend
from keypeer.wire import messages as m
from tests.support.boot_log import BootLog, boot_log
from tests.support.ima_log import ImaList
from tests.support.service import Service
from tests.support.swtpm import SwTpm


class MeasuredHost:
    """On the inventory, enrolled and tagged DE when the block begins; booted through ``log``."""

    def __init__(self, service: Service, name: str, folder: Path, log: BootLog | None = None) -> None:
        self.service, self.name = service, name
        self.tpm = SwTpm()
        self._boot_log, self._ima_log = folder / f"{name}.boot", folder / f"{name}.ima"
        self._state = folder / name
        self._log = log or boot_log(machine=name)
        self.agent: HostAgent

    async def __aenter__(self) -> Self:
        self.tpm.start()
        self.boot(self._log)
        state = AgentState.create(
            self._state,
            server=self.service.url,
            host=self.name,
            ca=self.service.ca.read_bytes(),
            tcti=self.tpm.tcti,
            boot_log=str(self._boot_log),
            ima_log=str(self._ima_log),
        )
        self.agent = HostAgent(state)
        officer = self.service.caller("officer")
        expected = m.ExpectHost(host=self.name, ek_digest=await self.agent.ek_digest())
        assert officer.post("/v1/expected-hosts", expected).status == 204
        assert (await self.agent.enrol()).status == "approved"
        assert officer.post(f"/v1/hosts/{self.name}/geo-tag", m.IssueGeoTag(country="DE")).status == 201
        await self.agent.write_geo_tag()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.agent.close()
        self.tpm.__exit__(kind, error, trace)

    def boot(self, log: BootLog, *, told: BootLog | None = None) -> None:
        """Reboots through ``log``; the firmware tells ``told`` instead, where the log was tampered with."""
        self.tpm.reboot()
        self._boot_log.write_bytes((told or log).bytes())
        with self.tpm.open() as tpm:
            for pcr, digest in log.extends("sha256"):
                pcr_extend(tpm, "sha256", pcr, digest)
        self.ima = ImaList()
        self.run(ImaList().boot_aggregate(log.pcrs("sha256")))

    def run(self, more: ImaList) -> None:
        """What IMA measures while the host runs: into the list, and into PCR 10."""
        self.ima.lines += more.lines
        self.show_ima(self.ima)
        with self.tpm.open() as tpm:
            for digest in more.extends("sha256"):
                pcr_extend(tpm, "sha256", 10, digest)

    def show_ima(self, log: ImaList) -> None:
        """What the host tells of its list, true or not."""
        self._ima_log.write_bytes(log.ascii())

    def extend(self, pcr: int, digest: bytes = b"\x01" * 32) -> None:
        """What something on the host measures beside all logs."""
        with self.tpm.open() as tpm:
            pcr_extend(tpm, "sha256", pcr, digest)

    def dynamic_launch(self, measured: bytes) -> None:
        """A DRTM event, as the processor's SENTER or SKINIT: PCR 17 to 22 start over, PCR 17 gets ``measured``."""
        socket = self.tpm.folder / "sock.ctrl"
        subprocess.run(["swtpm_ioctl", "--unix", str(socket), "-h", measured.decode()], check=True, timeout=10)

    async def refusal(self) -> dict[str, m.ReasonView]:
        """The reasons by id of an attestation that must be refused."""
        with pytest.raises(ProblemError) as caught:
            await self.agent.attest()
        assert caught.value.code == "attestation.refused"
        return {reason.id: reason for reason in caught.value.reasons}

    async def denial(self, vm: str) -> dict[str, m.ReasonView]:
        """The reasons by id of a release that must be refused."""
        with pytest.raises(ProblemError) as caught:
            await self.agent.release(vm)
        assert caught.value.code == "release.refused"
        return {reason.id: reason for reason in caught.value.reasons}
