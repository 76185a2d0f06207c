"""The operator's programs as they are run."""

from __future__ import annotations

import asyncio
from pathlib import Path

from keypeer.agentd.hooks import Hooks, Ran
from keypeer.agentd.settings import Hook
from tests.support.hsm import wait_until

NASTY = "web-1; touch /tmp/owned $(id) `id` \n'\""


def script(folder: Path, body: str) -> str:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return str(path)


async def test_what_a_hook_is_told_goes_through_no_shell(tmp_path: Path) -> None:
    told = tmp_path / "told"
    body = f'printf "%s|%s|%s|%s|%s|%s" "$1" "$2" "$3" "$KEYPEER_VM" "$KEYPEER_WHY" "$KEYPEER_REASON" >{told}'
    hooks = Hooks({"note": Hook(argv=(script(tmp_path, body), "stop"))})
    assert await hooks.run(("note",), "web-1", "denied", NASTY) == [Ran("note", 0)]
    assert told.read_text() == f"stop|web-1|{NASTY}|web-1|denied|{NASTY}"


async def test_a_hook_gets_nothing_of_the_agents_environment(tmp_path: Path) -> None:
    told = tmp_path / "told"
    hooks = Hooks({"note": Hook(argv=(script(tmp_path, f"env | cut -d= -f1 | sort >{told}"),))})
    await hooks.run(("note",), "web-1", "denied", "why")
    assert set(told.read_text().split()) <= {"KEYPEER_REASON", "KEYPEER_VM", "KEYPEER_WHY", "PATH", "PWD", "_", "SHLVL"}


async def test_the_next_hook_runs_when_one_fails_and_none_after_one_succeeds(tmp_path: Path) -> None:
    hooks = Hooks(
        {
            "gone": Hook(argv=("/nowhere/hook",)),
            "fails": Hook(argv=("/bin/false",)),
            "works": Hook(argv=("/bin/true",)),
            "spare": Hook(argv=("/bin/true",)),
        }
    )
    ran = await hooks.run(("gone", "fails", "works", "spare"), "web-1", "expired", "why")
    assert ran == [Ran("gone", 127), Ran("fails", 1), Ran("works", 0)]


async def test_a_hook_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    path = script(tmp_path, f"sleep 600 & echo $! >{pid}; wait")
    hooks = Hooks({"hangs": Hook(argv=(path,), timeout=1.0)})
    assert await hooks.run(("hangs",), "web-1", "denied", "why") == [Ran("hangs", 124)]
    await asyncio.to_thread(wait_until, lambda: ended(int(pid.read_text())))


def ended(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().split()[2] == "Z"
