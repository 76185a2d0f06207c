"""The migration's model under Spin: what holds, what is possible, and that each mutation is caught."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("migration.pml")
DEPTH = "-m200000"
HOLDS = ("never_two", "fenced", "kept", "no_abort_after", "somebody")
POSSIBLE = (
    "never_completed",
    "never_aborted",
    "never_moved_by_a_late_call",
    "never_taken_by_a_third",
    "never_slips",
    "never_back_after_a_cut",
)
# What is taken out of the model → the property that is lost with it.
MUTATIONS = {
    "NO_COMPARE": "kept",
    "HASTY": "fenced",
    "EAGER": "never_two",
    "LATE_ABORT": "no_abort_after",
    "STUCK": "somebody",
    "NO_WORD": "never_two",
    "NO_LOOK_D": "never_two",
    "NO_LOOK_S": "never_two",
    "NO_WAIT": "somebody",
}


def verifier(folder: Path, *definitions: str) -> Path:
    """Spin's program for the model."""
    (folder / MODEL.name).write_bytes(MODEL.read_bytes())
    for command in (
        ["spin", "-a", *(f"-D{each}" for each in definitions), MODEL.name],
        ["gcc", "-O2", "-DMEMLIM=1024", "-DNOREDUCE", "-o", "pan", "pan.c"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    return folder / "pan"


def look(program: Path, claim: str) -> tuple[int, int]:
    """Errors found, and states seen. Liveness under weak fairness: what could always happen does in the end."""
    fair = ["-f"] if claim == "somebody" else []
    command = [program, "-a", *fair, DEPTH, "-N", claim]
    done = subprocess.run(command, cwd=program.parent, check=False, capture_output=True, text=True, timeout=300)
    errors = re.search(r"errors: (\d+)", done.stdout)
    states = re.search(r"(\d+) states, stored", done.stdout)
    assert errors is not None and states is not None, done.stdout + done.stderr  # noqa: PT018 - one finding
    assert "max search depth too small" not in done.stdout
    print(f"{claim}: {int(states[1]):,} states, {errors[1]} errors")
    return int(errors[1]), int(states[1])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return verifier(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("claim", HOLDS)
def test_it_holds_whatever_dies_and_whatever_is_lost(program: Path, claim: str) -> None:
    errors, states = look(program, claim)
    assert errors == 0
    assert states > 100_000, "the model became so small that it shows little"


@pytest.mark.parametrize("claim", POSSIBLE)
def test_what_should_be_possible_is(program: Path, claim: str) -> None:
    errors, _ = look(program, claim)
    assert errors > 0, f"no history breaks {claim}"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_caught(tmp_path: Path, mutation: str) -> None:
    errors, _ = look(verifier(tmp_path, mutation), MUTATIONS[mutation])
    assert errors > 0
