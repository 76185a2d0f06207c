"""Checkpoints of a real store's log by a real HSM: signed once the log grew, never of a log that isn't the same,
cosigned by witnesses of another make."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import lmdb
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.wire.tlog.checkpoint import Checkpoint, open_checkpoint
from keypeer.wire.tlog.merkle import fold
from keypeer.wire.tlog.note import VerifierKey, parse_note
from kms import limits
from kms.custody.port import Anchor, Custody
from kms.domain.audit import StoredCheckpoint
from kms.errors import NotFound, Unavailable
from kms.flows import checkpoints, health, signing_keys
from kms.flows.context import Caller, Context
from kms.records import CHECKPOINTS
from kms.store.lmdb import LmdbStore
from kms.store.port import Commit
from kms.witness.port import Witness, WitnessAnswer, WitnessClient
from tests.support.flows import clock_of, flow_context, with_store, witnessed
from tests.support.stores import MAP_BYTES, whole_log
from tests.support.tlog.go import RunningWitness, running_witness

ORIGIN = "keypeer.test/log"


@pytest.fixture
async def ctx(tmp_path: Path) -> AsyncIterator[Context]:
    async with flow_context(tmp_path) as context:
        yield context


async def grow(ctx: Context, count: int = 1) -> None:
    entries = [ctx.entry(None, "test", "done", facts={"number": number}) for number in range(count)]
    await ctx.store.commit(Commit(entries=entries))


async def log_keys(ctx: Context) -> list[VerifierKey]:
    told = await checkpoints.keys(ctx)
    return [VerifierKey.parse(key) for key in (*told.keys, *told.witnesses)]


async def signed(ctx: Context) -> Checkpoint:
    """A new checkpoint, verified."""
    clock_of(ctx).now += limits.CHECKPOINT_INTERVAL_S
    return open_checkpoint((await checkpoints.current(ctx)).encode(), await log_keys(ctx)).checkpoint


async def test_it_signs_the_root_over_all_entries_and_again_only_when_there_are_more(ctx: Context) -> None:
    await grow(ctx, 300)
    first = await signed(ctx)
    leaves = [entry.leaf for entry in await whole_log(ctx.store)]
    assert (first.origin, first.size, first.root) == (ORIGIN, 301, fold([leaves]))  # and the entry that names the log
    before = await ctx.store.get(CHECKPOINTS.key("newest"))
    assert await signed(ctx) == first
    assert await ctx.store.get(CHECKPOINTS.key("newest")) == before
    await grow(ctx)
    assert (await signed(ctx)).size == 302


async def test_asking_often_signs_no_oftener_than_the_bound(ctx: Context) -> None:
    first = await signed(ctx)
    await grow(ctx)
    assert Checkpoint.parse(parse_note((await checkpoints.current(ctx)).encode()).text) == first
    clock_of(ctx).now += limits.CHECKPOINT_INTERVAL_S
    assert Checkpoint.parse(parse_note((await checkpoints.current(ctx)).encode()).text).size == first.size + 1


async def test_a_clock_that_was_set_back_stops_no_checkpoint(ctx: Context) -> None:
    first = await signed(ctx)
    await grow(ctx)
    clock_of(ctx).now -= 10_000
    assert (await signed(ctx)).size == first.size + 1


async def test_the_name_is_fixed_at_its_first_use(ctx: Context) -> None:
    await signed(ctx)
    renamed = replace(ctx, log=replace(ctx.log, origin="another.test/log"))
    with pytest.raises(Unavailable) as caught:
        await checkpoints.keys(renamed)
    assert caught.value.code == "log.origin"
    assert (await checkpoints.keys(replace(ctx, log=replace(ctx.log, origin="")))).origin == ORIGIN


async def test_after_a_rotation_the_newest_key_signs_and_all_verify(ctx: Context) -> None:
    first = await signed(ctx)
    (newest,) = await log_keys(ctx)
    size = (await ctx.store.log_head()).size
    await signing_keys.rotate(ctx, Caller("officer", "anna", b"", b""), "audit")
    keys = await log_keys(ctx)
    assert (keys[1], len(keys)) == (newest, 2)
    assert (await signed(ctx)).size == size + 2 == first.size + 2  # the entries that tell of the rotation
    note = parse_note((await checkpoints.current(ctx)).encode())
    assert [signature.key_id for signature in note.signatures] == [key.key_id for key in keys]
    await grow(ctx)
    clock_of(ctx).now += limits.AUDIT_OVERLAP_S
    note = parse_note((await checkpoints.current(ctx)).encode())
    assert [signature.key_id for signature in note.signatures] == [keys[0].key_id]


async def test_another_key_in_the_token_is_noticed(ctx: Context) -> None:
    other = Ed25519PrivateKey.generate().public_key()
    spki = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    replaced = replace(ctx, first_keys={**ctx.first_keys, "audit": spki})
    with pytest.raises(Unavailable) as caught:
        await signed(replaced)
    assert caught.value.code == "hsm.sign"


async def test_a_log_that_was_changed_behind_the_services_back_is_not_signed(ctx: Context, tmp_path: Path) -> None:
    await grow(ctx, 300)
    await signed(ctx)
    await ctx.store.close()
    with lmdb.open(str(tmp_path / "store"), map_size=MAP_BYTES, max_dbs=8) as environment:
        log = environment.open_db(b"log")
        with environment.begin(write=True, db=log) as txn:
            txn.put((299).to_bytes(8, "big"), bytes(32) + b"another entry")
    again = LmdbStore.open(tmp_path / "store", map_size=MAP_BYTES)
    with pytest.raises(Unavailable) as caught:
        await signed(with_store(ctx, again))
    assert caught.value.code == "log.forked"
    await again.close()


async def test_a_checkpoint_record_that_was_tampered_with_is_told(ctx: Context) -> None:
    await signed(ctx)
    item = await ctx.store.get(CHECKPOINTS.key("newest"))
    assert item is not None
    await ctx.store.commit(Commit(puts=[(item.key, item.value.replace(b"keypeer.test", b"keypeer.evil"))]))
    with pytest.raises(Unavailable) as caught:
        await signed(ctx)
    assert caught.value.code == "store.tampered"


# ── the token's anchor ─────────────────────────────────────────────────────────────────────────────────────────


class AnchoringCustody:
    """The HSM's client, with an anchor that keeps hsm_adapter.protocol.WriteAnchor's contract: it never goes back."""

    def __init__(self, custody: Custody) -> None:
        self._custody = custody
        self.anchor = Anchor(0, bytes(32))
        self.writes = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._custody, name)

    async def write_anchor(self, size: int, root: bytes, *, force: bool = False) -> Anchor:
        self.writes += 1
        if size < self.anchor.size and not force:
            raise Unavailable("hsm.anchor_ahead", f"the token remembers {self.anchor.size} entries")
        self.anchor = Anchor(size, root)
        return self.anchor


@pytest.fixture
def token(ctx: Context) -> AnchoringCustody:
    return AnchoringCustody(ctx.custody)


async def test_the_token_remembers_the_head_and_is_not_worn_out(ctx: Context, token: AnchoringCustody) -> None:
    anchored = replace(ctx, custody=cast("Custody", token))
    await grow(anchored, 300)
    await checkpoints.step(anchored)
    first = Anchor(*await anchored.store.log_head())
    for _ in range(4):
        assert (token.anchor, token.writes) == (first, 1)
        await grow(anchored)
        clock_of(ctx).now += limits.ANCHOR_INTERVAL_S / 5
        await checkpoints.step(anchored)
    clock_of(ctx).now += limits.ANCHOR_INTERVAL_S
    for _ in range(3):
        await checkpoints.step(anchored)
        assert Anchor(*await anchored.store.log_head()) == token.anchor
        clock_of(ctx).now += limits.ANCHOR_INTERVAL_S  # without growth it is not written again
    assert token.writes == 2
    assert f"anchored at {token.anchor.size}" in (await log_check(ctx))[1]


async def test_a_token_that_knows_more_than_the_log_is_told(ctx: Context, token: AnchoringCustody) -> None:
    token.anchor = Anchor(10**6, bytes(32))
    anchored = replace(ctx, custody=cast("Custody", token))
    await grow(anchored, 3)
    await checkpoints.step(anchored)
    assert (await signed(anchored)).size == 4
    assert "anchor: hsm.anchor_ahead: the token remembers 1000000 entries" in (await log_check(ctx))[1]
    assert token.anchor.size == 10**6


# ── witnesses ──────────────────────────────────────────────────────────────────────────────────────────────────


def witness_of(running: RunningWitness) -> Witness:
    return Witness(running.url, running.key)


async def cosigners(ctx: Context) -> dict[str, int]:
    """Who cosigned the newest cosigned checkpoint, and its size."""
    opened = open_checkpoint((await checkpoints.current(ctx, cosigned=True)).encode(), await log_keys(ctx))
    return {key.name: opened.checkpoint.size for key, at in opened.verified.by.items() if at is not None}


async def newest(ctx: Context) -> StoredCheckpoint:
    loaded = await ctx.records.load(CHECKPOINTS, "newest")
    assert loaded is not None
    return loaded.value


async def ask(ctx: Context) -> None:
    clock_of(ctx).now += limits.WITNESS_BACKOFF_MAX_S
    await checkpoints.witness(ctx)


async def log_check(ctx: Context) -> tuple[bool, str]:
    (check,) = [check for check in (await health.readiness(ctx)).checks if check.id == "log"]
    return check.ok, check.found


async def test_witnesses_of_another_make_cosign_what_grew_consistently(ctx: Context) -> None:
    (key, *_) = await log_keys(ctx)
    with running_witness(key, "one.test/w") as one, running_witness(key, "two.test/w", b"2" * 32) as two:
        both = witnessed(ctx, witness_of(one), witness_of(two), required=2)
        assert not (await log_check(both))[0]
        for growth in (1, 299, 1, 700):
            await grow(both, growth)
            size = (await both.store.log_head()).size
            await ask(both)
            assert await cosigners(both) == {"one.test/w": size, "two.test/w": size}
        assert "2 of 2 witnesses watch" in (await log_check(both))[1]
        assert (await log_check(both))[0]
        # The newest checkpoint carries them while the log doesn't grow.
        newest = open_checkpoint((await checkpoints.current(both)).encode(), await log_keys(both))
        assert len(newest.verified.by) == 3


class Meanwhile:
    """A client of witnesses who lets another node act once before it tells what the witness answered."""

    def __init__(self, client: WitnessClient, act: Callable[[], Awaitable[None]]) -> None:
        self._client, self._acts = client, [act]

    async def add_checkpoint(self, witness: Witness, body: bytes) -> WitnessAnswer:
        answer = await self._client.add_checkpoint(witness, body)
        if self._acts:
            await self._acts.pop()()
        return answer


async def test_a_larger_checkpoint_that_another_node_had_cosigned_stays(ctx: Context) -> None:
    (key, *_) = await log_keys(ctx)
    with running_witness(key, "one.test/w") as one:
        other = witnessed(ctx, witness_of(one))

        async def further() -> None:
            await grow(other, 20)
            await ask(other)

        slow = replace(other, log=replace(other.log, client=Meanwhile(other.log.client, further)))
        await grow(slow)
        await ask(slow)
        size = (await ctx.store.log_head()).size
        assert await cosigners(other) == {"one.test/w": size}
        (state,) = (await newest(ctx)).witnesses.values()
        assert state.size == size


async def test_a_witness_that_is_down_is_counted_and_stops_nothing(ctx: Context) -> None:
    (key, *_) = await log_keys(ctx)
    with running_witness(key, "one.test/w") as one, running_witness(key, "two.test/w", b"2" * 32) as two:
        both = witnessed(ctx, witness_of(one), witness_of(two), required=1)
        two.process.kill()
        two.process.wait()
        for failures in (1, 2):
            await grow(both)
            await ask(both)
            assert list(await cosigners(both)) == ["one.test/w"]
            ok, found = await log_check(both)
            assert ok
            assert f"1 of 2 witnesses watch; {failures} failures in a row: two.test/w" in found
        clock_of(both).now += 0.5
        before = await both.store.get(CHECKPOINTS.key("newest"))
        await checkpoints.witness(both)  # too early to try again
        assert await both.store.get(CHECKPOINTS.key("newest")) == before
        with running_witness(key, "two.test/w", b"2" * 32) as back:  # knows nothing any more
            both = witnessed(ctx, witness_of(one), witness_of(back), required=1)
            await ask(both)
            assert set(await cosigners(both)) == {"one.test/w", "two.test/w"}


async def test_one_that_knows_more_or_less_than_we_think_tells_its_size(ctx: Context) -> None:
    (key, *_) = await log_keys(ctx)
    with running_witness(key) as running:
        watched = witnessed(ctx, witness_of(running))
        await grow(watched, 5)
        await ask(watched)
        await grow(watched, 5)
        item = await watched.store.get(CHECKPOINTS.key("newest"))
        assert item is not None
        await watched.store.commit(Commit(deletes=[item.key]))  # we forgot all, the witness didn't
        await ask(watched)
        assert await cosigners(watched) == {"witness.test/w": 11}


async def test_an_old_database_put_back_is_seen_by_the_witness(ctx: Context, tmp_path: Path) -> None:
    (key, *_) = await log_keys(ctx)
    with running_witness(key) as running:
        watched = witnessed(ctx, witness_of(running), required=1)
        await grow(watched, 5)
        await ask(watched)
        await watched.store.close()
        shutil.copytree(tmp_path / "store", tmp_path / "old")
        newer = LmdbStore.open(tmp_path / "store", map_size=MAP_BYTES)
        await grow(with_store(watched, newer), 5)
        await ask(with_store(watched, newer))
        await newer.close()
        old = LmdbStore.open(tmp_path / "old", map_size=MAP_BYTES)
        back = with_store(watched, old)
        await grow(back, 2)
        await ask(back)
        ok, found = await log_check(back)
        assert not ok
        assert "knows a log of 11 entries; this one has 8" in found
        await grow(back, 3)  # as many as the witness knows, but others
        await ask(back)
        assert "knows another log of 11 entries" in (await log_check(back))[1]
        await grow(back, 3)
        await ask(back)
        assert "422" in (await log_check(back))[1]
        await old.close()


async def test_a_signature_of_another_key_is_not_taken_for_the_witness(ctx: Context) -> None:
    (key, *_) = await log_keys(ctx)
    with running_witness(key) as running:
        other = VerifierKey(running.key.name, running.key.kind, bytes(32))
        watched = witnessed(ctx, Witness(running.url, other))
        await ask(watched)
        with pytest.raises(NotFound):
            await cosigners(watched)
        assert "no cosignature by the key in the settings" in (await log_check(watched))[1]


async def test_a_witness_that_does_not_know_this_log_says_so(ctx: Context) -> None:
    with running_witness(VerifierKey("other.test/log", 1, bytes(32))) as running:
        watched = witnessed(ctx, witness_of(running))
        await ask(watched)
        assert "answered 404" in (await log_check(watched))[1]
