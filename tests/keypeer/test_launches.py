"""The agent's launch log on a real TPM: what a crash leaves, and what nobody else may do."""

from __future__ import annotations

from pathlib import Path

import pytest

from keypeer import launches
from keypeer.errors import StateError
from keypeer.state import AgentState
from keypeer.tpm import Tpm, boot_now, pcr_extend, pcr_read
from keypeer.wire.launch import LaunchEntry, extended
from keypeer.wire.messages import LogPositions
from keypeer.wire.profile import LAUNCH_PCR
from tests.support.swtpm import SwTpm

WEB, DB = LaunchEntry(vm="web-1", config="aa" * 32), LaunchEntry(vm="db-1", config="bb" * 32)


@pytest.fixture
def state(tmp_path: Path, swtpm: SwTpm) -> AgentState:
    return AgentState.create(tmp_path / "agent", server="https://kms", host="fra-1", ca=b"", tcti=swtpm.tcti)


def pcr(tpm: Tpm) -> bytes:
    return pcr_read(tpm, "sha256", (LAUNCH_PCR,))[LAUNCH_PCR]


def test_each_launch_is_in_log_and_pcr(tpm: Tpm, state: AgentState) -> None:
    for entry in (WEB, DB):
        launches.measure(tpm, state, entry, "sha256")
    assert state.launches(boot_now(tpm)) == (WEB, DB)
    assert pcr(tpm) == extended(b"", (WEB, DB), "sha256")


def test_an_entry_that_a_crash_kept_from_the_pcr_is_dropped(tpm: Tpm, state: AgentState) -> None:
    launches.measure(tpm, state, WEB, "sha256")
    state.save_launches(boot_now(tpm), (WEB, DB))
    launches.measure(tpm, state, DB, "sha256")
    assert state.launches(boot_now(tpm)) == (WEB, DB)
    assert pcr(tpm) == extended(b"", (WEB, DB), "sha256")


def test_a_pcr_that_something_else_extends_is_told(tpm: Tpm, state: AgentState) -> None:
    launches.measure(tpm, state, WEB, "sha256")
    pcr_extend(tpm, "sha256", LAUNCH_PCR, b"\x01" * 32)
    with pytest.raises(StateError) as caught:
        launches.measure(tpm, state, DB, "sha256")
    assert caught.value.code == "launch.foreign"
    assert state.launches(boot_now(tpm)) == (WEB,)


def test_the_log_ends_with_the_boot(swtpm: SwTpm, state: AgentState) -> None:
    with swtpm.open() as tpm:
        launches.measure(tpm, state, WEB, "sha256")
    swtpm.reboot()
    with swtpm.open() as tpm:
        assert state.launches(boot_now(tpm)) == ()
        launches.measure(tpm, state, DB, "sha256")
        assert state.launches(boot_now(tpm)) == (DB,)


@pytest.mark.parametrize(("known", "start", "sent"), [(0, 0, (WEB, DB)), (1, 1, (DB,)), (2, 2, ()), (3, 0, (WEB, DB))])
def test_what_the_service_has_not_seen_is_sent(known: int, start: int, sent: tuple[LaunchEntry, ...]) -> None:
    log = launches.since((WEB, DB), LogPositions(launches=known))
    assert log is not None
    assert (log.start, log.entries) == (start, sent)
    assert launches.since((), LogPositions()) is None


def test_a_spoiled_log_is_told(state: AgentState, tpm: Tpm) -> None:
    (state.folder / "launches.json").write_text("{")
    (state.folder / "launches.json").chmod(0o600)
    with pytest.raises(StateError) as caught:
        state.launches(boot_now(tpm))
    assert caught.value.code == "state.launches"
