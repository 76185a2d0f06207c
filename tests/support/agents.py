"""`keypeer agent run` as a process, on a software TPM, with a hook that writes down what it was told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keypeer.agent import HostAgent
from keypeer.agentd.local import AgentStatus, KeyFacts, LocalRequest, ask, key_of
from keypeer.errors import KeypeerClientError
from keypeer.state import AgentState
from keypeer.wire import messages as m
from tests.support.service import KEYPEER, Service
from tests.support.swtpm import SwTpm

WAIT_S = 60.0  # seconds; what is waited for comes in one or two, on a busy machine later
_HOOK = """#!/bin/sh
printf '%s\\t%s\\t%s\\t%s\\n' "$(date +%s.%N)" "$KEYPEER_WHY" "$1" "$2" >>"{told}"
"""


@dataclass
class Agent:
    """One host's folder and, while it runs, its daemon."""

    service: Service
    host: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    place: Path | None = None  # of its socket, where the settings name one

    @property
    def told(self) -> Path:
        """What the hook was told: time, why, VM, reason; tab-separated."""
        return self.folder / "told"

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    @property
    def socket(self) -> Path:
        return self.place or self.folder / "agent.sock"

    def start(self, *, ready: bool = True) -> None:
        """Runs the daemon and waits until it has attested and listens; or, of a host that can't, until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(KEYPEER), "agent", "run", "--folder", str(self.folder)],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        self.wait(lambda status: not ready or (status.attested and status.stream))

    def status(self) -> AgentStatus:
        answer, _ = ask(self.socket, LocalRequest(op="status"))
        assert answer.status is not None, answer
        return answer.status

    def wait(self, done: Callable[[AgentStatus], bool]) -> AgentStatus:
        """The first status that ``done`` is content with."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                status = self.status()
                if done(status):
                    return status
            except KeypeerClientError:
                assert self.process is None or self.process.poll() is None, self.log.read_text()[-4000:]
            time.sleep(0.02)
        raise AssertionError(self.log.read_text()[-4000:])

    def key(self, vm: str) -> tuple[KeyFacts, bytes]:
        """A VM's key as a helper gets it."""
        facts, descriptor = key_of(self.socket, vm)
        with os.fdopen(descriptor, "rb") as file:
            return facts, file.read()

    def hooks_told(self, count: int) -> list[list[str]]:
        """What the hook was told, once it was told so often."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            lines = self.told.read_text().splitlines() if self.told.exists() else []
            if len(lines) >= count:
                return [line.split("\t") for line in lines]
            time.sleep(0.01)
        raise AssertionError(self.log.read_text()[-4000:])

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one kind."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        assert self._end(signal.SIGTERM) == 0, self.log.read_text()[-4000:]

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code


def enrolled_agent(service: Service, tpm: SwTpm, folder: Path, host: str, country: str = "DE") -> Agent:
    """On the inventory, enrolled, tagged, with the hook "note" for everything."""
    state = AgentState.create(folder / host, server=service.url, host=host, ca=service.ca.read_bytes(), tcti=tpm.tcti)

    async def enrol() -> None:
        async with HostAgent(state) as agent:
            expected = m.ExpectHost(host=host, ek_digest=await agent.ek_digest())
            assert service.caller("officer").post("/v1/expected-hosts", expected).status == 204
            assert (await agent.enrol()).status == "approved"

    asyncio.run(enrol())
    tag = service.caller("officer").post(f"/v1/hosts/{host}/geo-tag", m.IssueGeoTag(country=country))
    assert tag.status == 201, tag
    agent = Agent(service, host, state.folder)
    hook = state.folder / "hook"
    hook.write_text(_HOOK.format(told=agent.told))
    hook.chmod(0o700)
    on = "".join(f'{when} = ["note"]\n' for when in ("denied", "lapsed", "silent", "expired"))
    text = f"allowed_uids = [{os.getuid()}]\n[hooks.note]\nargv = [{json.dumps(str(hook))}]\n[on]\n{on}"
    (state.folder / "agentd.toml").write_text(text)
    return agent
