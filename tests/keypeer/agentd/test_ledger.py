"""What an agent remembers over its own death, and forgets over the machine's."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from keypeer.agentd.ledger import Held, Ledger


def held(vm: str, ends: float = 1000.0) -> Held:
    return Held(vm=vm, version=1, generation=2, ends=ends, grace=300.0, as_of=4, granted_for=600.0)


def test_a_killed_agent_knows_what_it_held(tmp_path: Path) -> None:
    first = Ledger(tmp_path, "boot-1")
    first.hold(held("web-1"), held("web-2"))
    first.note(7)
    first.drop("web-2")
    again = Ledger(tmp_path, "boot-1")
    assert list(again) == [held("web-1")]
    assert again.last == 7


def test_another_boot_begins_with_nothing(tmp_path: Path) -> None:
    first = Ledger(tmp_path, "boot-1")
    first.hold(held("web-1"))
    first.note(3)
    again = Ledger(tmp_path, "boot-2")
    assert (list(again), again.last) == ([], None)
    assert list(Ledger(tmp_path, "boot-2")) == []


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    Ledger(tmp_path, "boot-1").hold(held("web-1"), held("web-2"))
    journal = tmp_path / "held.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    assert [each.vm for each in Ledger(tmp_path, "boot-1")] == ["web-1"]


def test_the_journal_stays_in_proportion_and_is_its_owners_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "boot-1")
    for number in range(5000):
        ledger.hold(held("web-1", float(number)))
    journal = tmp_path / "held.journal"
    assert len(journal.read_bytes().splitlines()) < 2000
    assert journal.stat().st_mode & 0o777 == 0o600
    assert [each.ends for each in Ledger(tmp_path, "boot-1")] == [4999.0]


acts = st.lists(st.tuples(st.sampled_from(["hold", "drop", "die"]), st.sampled_from("abc"), st.integers(0, 99)))


@settings(max_examples=60, deadline=None)
@given(acts)
def test_any_history_is_remembered(tmp_path_factory: object, acts: list[tuple[str, str, int]]) -> None:
    folder = tmp_path_factory.mktemp("ledger")  # type: ignore[attr-defined]  # pytest.TempPathFactory
    ledger, expected = Ledger(folder, "boot"), {}
    for act, vm, number in acts:
        if act == "hold":
            expected[vm] = held(vm, float(number))
            ledger.hold(expected[vm])
        elif act == "drop":
            expected.pop(vm, None)
            ledger.drop(vm)
        else:
            ledger = Ledger(folder, "boot")
        assert {each.vm: each for each in ledger} == expected
    assert {each.vm: msgspec.structs.asdict(each) for each in Ledger(folder, "boot")} == {
        vm: msgspec.structs.asdict(each) for vm, each in expected.items()
    }
