"""Attestations of hosts with software TPMs, without web: what one costs, and what it must notice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keypeer.wire import messages as wire
from kms.domain.trust import HostEventHead
from kms.errors import KeypeerError, Refused
from kms.known import read_known
from kms.records import EVENT_HEADS, HOSTS, REFUSALS, SESSIONS
from kms.store.port import Commit
from tests.support.fleet import Fleet, open_fleet
from tests.support.steady_host import SteadyHost

_decode = msgspec.json.Decoder(wire.AttestRequest).decode


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with open_fleet(tmp_path) as opened:
        yield opened


def steady(fleet: Fleet, asked: wire.Challenge) -> SteadyHost:
    return SteadyHost(fleet.host.tpm, fleet.host.certificate, asked)


async def test_steady_state_is_three_reads_one_hsm_call_and_one_commit(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await fleet.first()
    host = steady(fleet, first.next_challenge)
    calls: list[int] = []
    mac = fleet.ctx.custody.mac

    async def told(data: Sequence[bytes], mac_keys: Sequence[int] = ()) -> Any:
        calls.append(len(data))
        return await mac(data, mac_keys)

    monkeypatch.setattr(fleet.ctx.custody, "mac", told)
    monkeypatch.delattr(type(fleet.ctx.custody), "open_session")  # not needed: the session goes on
    answer = first
    for _ in range(3):
        answer = await fleet.attest(host.body(answer.next_challenge.nonce.encode()))
        # All records of the host and of the HSM's keys; baselines; runtime policies.
        assert sorted(fleet.store.reads) == ["get_many", "scan", "scan"]
        assert [len(change.puts) for change in fleet.store.commits] == [2]  # nonces and session
        assert [len(change.entries) for change in fleet.store.commits] == [1]
        assert not any(change.deletes for change in fleet.store.commits)
    assert calls == [2, 2, 2]
    assert answer.session.session == first.session.session
    assert answer.session.expires_at >= first.session.expires_at


async def test_a_challenge_reads_host_nonces_and_positions(fleet: Fleet) -> None:
    await fleet.first()
    fleet.store.reads.clear()
    asked = await fleet.challenge()
    assert fleet.store.reads == ["get", "get", "get_many", "scan"]
    assert asked.logs == wire.LogPositions(reset_count=fleet.host.tpm.reset_count)


async def test_what_a_steady_host_sends_is_what_a_simulated_one_would(fleet: Fleet) -> None:
    asked = (await fleet.first()).next_challenge
    ours = _decode(steady(fleet, asked).body(asked.nonce.encode()))
    wanted = fleet.host.tpm.attest_request(asked, fleet.host.certificate)
    assert ours.geo is not None
    assert wanted.geo is not None
    assert (ours.nonce, ours.purpose, ours.binding_name, ours.pcr_values, ours.geo.tag, ours.binding) == (
        wanted.nonce, wanted.purpose, wanted.binding_name, wanted.pcr_values, wanted.geo.tag, wanted.binding,
    )  # fmt: skip
    for mine, other in ((ours.quote, wanted.quote), (ours.geo.certified, wanted.geo.certified)):
        assert (len(mine.attest), len(mine.signature)) == (len(other.attest), len(other.signature))


async def test_a_nonce_is_good_once(fleet: Fleet) -> None:
    asked = (await fleet.first()).next_challenge
    body = steady(fleet, asked).body(asked.nonce.encode())
    await fleet.attest(body)
    with pytest.raises(Refused, match=r"attestation\.nonce_unknown"):
        await fleet.attest(body)


@pytest.mark.parametrize("part", ["quote", "geo"])
async def test_every_signature_counts_in_steady_state(fleet: Fleet, part: str) -> None:
    asked = (await fleet.first()).next_challenge
    host = steady(fleet, asked)
    old = _decode(host.body(asked.nonce.encode()))
    asked = (await fleet.attest(msgspec.json.encode(old))).next_challenge
    new = _decode(host.body(asked.nonce.encode()))
    assert old.geo is not None
    assert new.geo is not None
    if part == "quote":
        forged = msgspec.structs.replace(new, quote=old.quote)
    else:
        certified = msgspec.structs.replace(new.geo, certified=old.geo.certified)
        forged = msgspec.structs.replace(new, geo=certified)
    with pytest.raises(Refused) as caught:
        await fleet.attest(msgspec.json.encode(forged))
    prefix = "quote." if part == "quote" else "geo.nv_"
    assert [reason.id for reason in caught.value.reasons] == [f"{prefix}qualifying_data"]
    assert await fleet.ctx.records.load(SESSIONS, fleet.caller.name) is None


async def test_a_refusal_is_forgotten_once(fleet: Fleet) -> None:
    asked = (await fleet.first()).next_challenge
    fleet.host.tpm.extend(4, bytes(32))
    request = fleet.host.tpm.attest_request(asked, fleet.host.certificate)
    with pytest.raises(Refused):
        await fleet.attest(msgspec.json.encode(request))
    assert await fleet.ctx.records.load(REFUSALS, fleet.caller.name) is not None
    fleet.host.tpm.reboot()
    fleet.host.tpm.forget_session()
    await fleet.first()
    assert REFUSALS.key(fleet.caller.name) in fleet.store.commits[-1].deletes
    assert await fleet.ctx.records.load(REFUSALS, fleet.caller.name) is None


async def test_an_event_that_comes_between_is_noticed(fleet: Fleet) -> None:
    """Whoever ended all leases just now put the head: it must not be taken for what was read."""
    asked = (await fleet.first()).next_challenge
    host = steady(fleet, asked)
    head = await fleet.ctx.records.load(EVENT_HEADS, fleet.caller.name)
    assert head is not None
    assert head.value.trusted
    ended = HostEventHead(head.value.last + 1, head.value.last + 1)
    puts = await fleet.ctx.records.seal([EVENT_HEADS.put(fleet.caller.name, ended)])
    fleet.store.before_commit.append(partial(fleet.store.inner.commit, Commit(puts=puts)))
    await fleet.attest(host.body(asked.nonce.encode()))
    assert len(fleet.store.commits) == 2
    head = await fleet.ctx.records.load(EVENT_HEADS, fleet.caller.name)
    assert head is not None
    assert head.value.trusted
    assert head.value.last == ended.last + 1


async def test_of_no_host_nothing_is_known(fleet: Fleet) -> None:
    ctx = fleet.ctx
    assert await read_known(ctx.records, ctx.runtime, ctx.first_keys, "nobody") is None


@pytest.mark.parametrize(("revoked", "code"), [(True, "host.revoked"), (False, "store.tampered")])
async def test_a_host_that_may_not_act_hears_that_whatever_its_other_records_are(
    fleet: Fleet, revoked: bool, code: str
) -> None:
    asked = (await fleet.first()).next_challenge
    name = fleet.caller.name
    host = await fleet.ctx.records.load(HOSTS, name)
    assert host is not None
    puts = [(SESSIONS.key(name), b"\x00\x00\x00\x01" + bytes(33))]
    if revoked:
        record = msgspec.structs.replace(host.value, status="revoked", decided_by="ada", why="stolen")
        puts += await fleet.ctx.records.seal([HOSTS.put(name, record)])
    await fleet.store.commit(Commit(puts=puts))
    with pytest.raises(KeypeerError) as refusal:
        await fleet.attest(steady(fleet, asked).body(asked.nonce.encode()))
    assert refusal.value.code == code
    assert [len(change.entries) for change in fleet.store.commits] == ([1] if revoked else [])
