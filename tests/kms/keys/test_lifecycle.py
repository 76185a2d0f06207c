"""The life of a key as its table: every cell, dates, and any history of acts."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.domain.vms import KeyAttributes, KeyState, Lease, pack_attributes
from kms.keys.lifecycle import (
    BY,
    MAY,
    STATES,
    TABLE,
    KeyAct,
    carry_out,
    refuse_act,
    refuse_old_release,
    refuse_release,
    replaced,
    settled,
)

NOW = 1_800_000_000
DAY = 86_400
ACTS: tuple[KeyAct, ...] = get_args(KeyAct)
HELD = Lease("fra-1", b"s" * 16, 3, 1, NOW + 60)


def key(state: KeyState = "active", **fields: object) -> KeyAttributes:
    attributes = KeyAttributes("eu", NOW - DAY, "operator", state=state, since=NOW - DAY)
    changed: KeyAttributes = msgspec.structs.replace(attributes, **fields)
    return changed


# What NIST SP 800-57 Part 1 Rev. 5 §7 and this service's own waiting time allow; everything else is refused.
ALLOWED = {
    "pre-active": {"activate", "compromise", "destroy"},
    "active": {"suspend", "deactivate", "compromise", "destroy", "rotate"},
    "suspended": {"resume", "deactivate", "compromise", "destroy"},
    "deactivated": {"compromise", "destroy"},
    "compromised": {"destroy", "rotate"},
    "destroyed": set(),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("act", ACTS)
def test_every_cell(state: KeyState, act: KeyAct) -> None:
    reasons = refuse_act(key(state), act, "web-1", NOW)
    assert (reasons == ()) == (act in ALLOWED[state])
    if not reasons:
        after = carry_out(key(state), act, NOW, until=NOW + DAY)
        assert after.state == TABLE[state, act]
        assert after.since == NOW
    else:
        assert reasons[0].id in {"vm.state", "vm.destroy_not_scheduled"}
        assert "web-1" in reasons[0].found


@pytest.mark.parametrize("state", ["pre-active", "deactivated", "compromised"])
@pytest.mark.parametrize("act", ACTS)
def test_while_a_destruction_is_scheduled(state: KeyState, act: KeyAct) -> None:
    scheduled = key(state, destroy_at=NOW + DAY, before="suspended")
    allowed = {"cancel-destroy"} | ({"compromise"} if state != "compromised" else set())
    assert (refuse_act(scheduled, act, "web-1", NOW) == ()) == (act in allowed)
    assert refuse_act(scheduled, "erase", "web-1", NOW + DAY) == ()


def test_every_act_has_its_actors_and_nobody_has_all() -> None:
    assert set(BY) == set(ACTS)
    assert {act for act, actors in BY.items() if "operator" in actors} == set()
    assert {act for act, actors in BY.items() if "service" in actors} == {"activate", "erase"}


def test_only_an_active_key_is_released_to_anyone() -> None:
    assert [state for state in STATES if "release" in MAY[state]] == ["active"]
    assert [state for state in STATES if "read" in MAY[state]] == ["active", "deactivated"]


@pytest.mark.parametrize("state", ["pre-active", "active", "suspended", "deactivated", "compromised"])
def test_cancelling_leads_back(state: KeyState) -> None:
    scheduled = carry_out(key(state), "destroy", NOW, until=NOW + 7 * DAY)
    assert scheduled.destroy_at == NOW + 7 * DAY
    assert refuse_release(scheduled, 1, vm="web-1", host="fra-1", lease=None, now=NOW)
    again = carry_out(scheduled, "cancel-destroy", NOW + DAY)
    assert (again.state, again.destroy_at, again.before, again.since) == (state, 0, None, NOW + DAY)


def test_cancelling_never_unmarks_a_compromise() -> None:
    scheduled = carry_out(key("active"), "destroy", NOW, until=NOW + DAY)
    marked = carry_out(scheduled, "compromise", NOW + 1)
    assert (marked.state, marked.destroy_at, marked.compromised_at) == ("compromised", NOW + DAY, NOW + 1)
    assert carry_out(marked, "cancel-destroy", NOW + 2).state == "compromised"


@pytest.mark.parametrize(
    ("attributes", "state"),
    [
        (key("pre-active"), "pre-active"),
        (key("pre-active", activates_at=NOW + 1), "pre-active"),
        (key("pre-active", activates_at=NOW), "active"),
        (key("pre-active", activates_at=NOW, destroy_at=NOW + DAY), "pre-active"),
        (key("suspended", activates_at=NOW), "suspended"),
    ],
)
def test_a_date_activates_by_itself(attributes: KeyAttributes, state: KeyState) -> None:
    assert settled(attributes, NOW).state == state
    refused = refuse_release(attributes, 1, vm="web-1", host="fra-1", lease=None, now=NOW)
    assert [reason.id for reason in refused] == ([] if state == "active" else ["key.state"])


@pytest.mark.parametrize(
    ("attributes", "host", "lease", "reasons"),
    [
        (key("active"), "fra-1", None, []),
        (key("active"), "ams-1", HELD, []),  # whether the lease lets it is the lease table's to say
        (key("suspended"), "fra-1", HELD, ["key.state"]),
        (key("compromised"), "fra-1", HELD, ["key.state"]),
        (key("destroyed"), "fra-1", HELD, ["key.state"]),
        (key("deactivated"), "fra-1", HELD, ["key.state"]),
        (key("deactivated", readable_until=NOW + 1), "fra-1", HELD, []),
        (key("deactivated", readable_until=NOW), "fra-1", HELD, ["key.version_ended"]),
        (key("deactivated", readable_until=NOW + 1), "ams-1", HELD, ["key.version_lease"]),
        (key("deactivated", readable_until=NOW), "ams-1", None, ["key.version_ended", "key.version_lease"]),
        (key("deactivated", readable_until=NOW + 1, destroy_at=NOW + DAY), "fra-1", HELD, ["key.state"]),
    ],
)
def test_who_gets_the_current_version(
    attributes: KeyAttributes, host: str, lease: Lease | None, reasons: list[str]
) -> None:
    found = refuse_release(attributes, 3, vm="web-1", host=host, lease=lease, now=NOW)
    assert [reason.id for reason in found] == reasons


OLD = key("deactivated", readable_until=NOW + 60, destroy_at=NOW + 60)


@pytest.mark.parametrize(
    ("current", "old", "version", "host", "now", "reasons"),
    [
        (key(), OLD, 3, "fra-1", NOW, []),
        (key(), OLD, 3, "fra-1", NOW + 59, []),
        (key(), OLD, 3, "fra-1", NOW + 60, ["key.version_ended"]),
        (key(), OLD, 2, "fra-1", NOW, ["key.version_lease"]),
        (key(), OLD, 3, "ams-1", NOW, ["key.version_lease"]),
        (key("deactivated", readable_until=NOW + 5), OLD, 3, "fra-1", NOW, []),
        (key("suspended"), OLD, 3, "fra-1", NOW, ["key.state"]),
        (key("compromised"), OLD, 3, "fra-1", NOW, ["key.state"]),
        (key("deactivated", destroy_at=NOW + DAY, readable_until=NOW + DAY), OLD, 3, "fra-1", NOW, ["key.state"]),
        (key(), key("compromised", destroy_at=NOW + 60), 3, "fra-1", NOW, ["key.state"]),
    ],
)
def test_who_gets_an_old_version(
    current: KeyAttributes, old: KeyAttributes, version: int, host: str, now: int, reasons: list[str]
) -> None:
    found = refuse_old_release(current, old, version, vm="web-1", host=host, lease=HELD, now=now)
    assert [reason.id for reason in found] == reasons


@pytest.mark.parametrize(("state", "until"), [("active", NOW + 60), ("compromised", 0)])
def test_what_a_version_becomes_when_the_next_is_made(state: KeyState, until: int) -> None:
    old = replaced(key(state), NOW, NOW + 60)
    assert old.state == ("deactivated" if state == "active" else "compromised")
    assert (old.readable_until, old.destroy_at, old.since) == (until, NOW + 60, NOW)


def test_attributes_pack_to_nothing_where_they_say_nothing() -> None:
    plain = KeyAttributes("eu", NOW, "operator")
    assert msgspec.msgpack.decode(pack_attributes(plain)) == ["eu", NOW, "operator"]
    for attributes in (plain, key(), key("active", labels={"tier": "gold"}), key("pre-active", tenant="acme")):
        assert msgspec.msgpack.decode(pack_attributes(attributes), type=KeyAttributes) == attributes


def test_attributes_of_the_first_release_still_read() -> None:
    stored = msgspec.msgpack.encode(["eu", NOW, "operator", b"\x01" * 32])
    read = msgspec.msgpack.decode(stored, type=KeyAttributes)
    assert (read.state, read.config, read.labels) == ("active", b"\x01" * 32, {})


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 3 * DAY)), max_size=40), st.booleans())
def test_any_history(history: list[tuple[KeyAct, int]], starts_active: bool) -> None:
    attributes, now = key("active" if starts_active else "pre-active"), NOW
    compromised = False
    for act, passed in history:
        now += passed
        before = settled(attributes, now)
        if refuse_act(attributes, act, "v", now):
            continue
        attributes = carry_out(attributes, act, now, until=now + DAY)
        compromised = (compromised or act == "compromise") and act != "rotate"
        assert before.state != "destroyed", "nothing comes after destruction"
        assert (attributes.state == "compromised") == (compromised and act != "erase")
        assert attributes.destroy_at == 0 or attributes.state not in {"active", "suspended"}
        if act == "erase":
            assert before.destroy_at <= now, "never before its date"
            return
        released = not refuse_release(attributes, 1, vm="v", host="h", lease=None, now=now)
        assert released == (attributes.state == "active")
        assert msgspec.msgpack.decode(pack_attributes(attributes), type=KeyAttributes) == attributes
