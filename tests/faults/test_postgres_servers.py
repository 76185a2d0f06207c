"""Which PostgreSQL servers, addresses and schemas a store opens on, and how it says no to the others."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from kms import limits
from kms.errors import BadRequest
from kms.store import postgres_schema, postgres_server
from kms.store.port import Check, Commit
from kms.store.postgres import PostgresStore
from kms.store.postgres_address import parse
from tests.support.postgres import server, shared_cluster
from tests.support.stores import assert_log_holds, code_of, committed, postgres_store, put, refusal

UNSAFE = {
    "no TLS": ({"ssl": "off"}, "store.tls", "has no TLS"),
    "fsync off": ({"fsync": "off"}, "store.fsync", "fsync is off"),
    "torn pages": ({"full_page_writes": "off"}, "store.full_page_writes", "full_page_writes is off"),
    "asynchronous": ({"synchronous_commit": "off"}, "store.synchronous_commit", "synchronous_commit is off"),
    "only local": ({"synchronous_commit": "local"}, "store.synchronous_commit", "synchronous_commit is local"),
    "not on disk": ({"synchronous_commit": "remote_write"}, "store.synchronous_commit", "remote_write"),
    "read-only": ({"default_transaction_read_only": "on"}, "store.primary", "read-only"),
}


@pytest.mark.parametrize("case", UNSAFE)
async def test_an_unsafe_server_is_refused_in_words(case: str) -> None:
    settings, code, words = UNSAFE[case]
    with server("unsafe", **settings) as unsafe:
        refused = await refusal(unsafe.url(), single=True)
    assert refused.code == code
    assert words in refused.detail
    assert refused.hint


async def test_a_server_without_standbys_needs_the_word_single() -> None:
    with server("alone") as alone:
        assert (await refusal(alone.url())).code == "store.standbys"
        async with postgres_store(Path(), alone.url(), single=True) as store:
            await put(store, (b"a", b"1"))
            assert (await store.get(b"a")) is not None
            assert (await store.health()).ok


async def test_a_standby_is_refused() -> None:
    refused = await refusal(shared_cluster().servers[1].url())
    assert (refused.code, "standby" in refused.detail) == ("store.primary", True)


async def test_an_old_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "OLDEST", 990_000)
    refused = await refusal(shared_cluster().url())
    assert (refused.code, refused.hint.split(";")[0]) == ("store.version", "upgrade to 99")


WRONG = {
    "no certificate": (r"&sslcert=.*", "", "certificate"),
    "another's certificate": (r"keypeer\.(crt|key)", r"plain.\1", "certificate authentication failed"),
    "no such user": (r"keypeer@", "nobody@", "pg_hba.conf"),
    "no such database": (r"/keypeer\?", "/nothing?", "nothing"),
    "no password": (r"//keypeer@", "//locked@", "password"),
    "server's name": (r"localhost:", "127.0.0.2:", "127.0.0.2"),
    "nobody there": (r":\d+/", ":1/", "refused|Connect call failed"),
    "unknown CA": (r"sslrootcert=[^&]*", "sslrootcert=/etc/ssl/certs/ca-certificates.crt", "CERTIFICATE_VERIFY_FAILED"),
    "no such file": (r"sslcert=[^&]*", "sslcert=/nowhere.crt", "can't be read"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_addresses_and_credentials_are_told(case: str) -> None:
    pattern, replacement, words = WRONG[case]
    refused = await refusal(re.sub(pattern, replacement, shared_cluster().primary.url()))
    assert refused.code == "store.unavailable"
    assert re.search(words, refused.detail)
    assert "right" not in refused.detail


@pytest.mark.parametrize(("password", "words"), [("right", "permission denied"), ("wrong", "password auth")])
async def test_a_password_comes_from_a_file(tmp_path: Path, password: str, words: str) -> None:
    """The right one lets the role in, which then may make no tables here."""
    primary = shared_cluster().primary
    primary.fresh()
    (tmp_path / "passwords").write_text(f"localhost:{primary.port}:keypeer:locked:{password}\n")
    (tmp_path / "passwords").chmod(0o600)
    url = f"{primary.url().replace('//keypeer@', '//locked@')}&passfile={tmp_path}/passwords"
    refused = await refusal(url)
    assert words in refused.detail


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@localhost/db",
        "postgresql://localhost/db",
        "postgresql://u@localhost",
        "postgresql://u@localhost:0/db",
        "postgresql://u@localhost:http/db",
        "postgresql://u@localhost,/db",
        "postgresql://u@localhost/db?sslmode=require",
        "postgresql://u@localhost/db?sslmode=disable",
        "postgresql://u@localhost/db?target_session_attrs=any",
        "postgresql://u@localhost/db?options=-c%20fsync=off",
    ],
)
def test_urls_that_ask_for_less_are_refused(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(url, Path())
    assert caught.value.code == "settings.invalid"
    assert "secret" not in str(caught.value)


def test_urls_name_many_hosts_and_files_of_the_home(tmp_path: Path) -> None:
    found = parse("postgresql://u%40x@a,b:5433,[::1]:5434/db?sslrootcert=tls/pg.pem&sslmode=verify-full", tmp_path)
    assert found.hosts == (("a", 5432), ("b", 5433), ("::1", 5434))
    assert (found.user, found.files) == ("u@x", {"sslrootcert": tmp_path / "tls/pg.pem"})
    assert parse("postgresql://u@/db?host=/run/postgresql", tmp_path).hosts == (("/run/postgresql", 5432),)


async def test_schemas_that_are_not_ours_or_newer_are_refused_and_left_alone() -> None:
    primary = shared_cluster().primary
    primary.fresh()
    primary.sql("CREATE SCHEMA keypeer; CREATE TABLE keypeer.records (precious int)", "keypeer")
    assert (await refusal(primary.url())).code == "store.schema"
    assert primary.sql("SELECT count(*) FROM keypeer.records", "keypeer") == "0"
    primary.fresh()
    async with postgres_store(Path(), primary.url()) as store:
        await put(store, (b"a", b"1"))
        newer = postgres_schema.SCHEMA + 1
        primary.sql("UPDATE keypeer.meta SET schema = schema + 1", "keypeer")
        # A newer schema that this version may still use: nodes are upgraded one after the other.
        async with postgres_store(Path(), primary.url()) as other:
            assert await other.get(b"a") is not None
        primary.sql("UPDATE keypeer.meta SET least = schema", "keypeer")
        refused = await refusal(primary.url())
        assert (refused.code, f"schema {newer}" in refused.detail) == ("store.schema", True)
        assert not all(finding.ok for finding in await store.preflight())


async def test_an_older_schema_is_upgraded_once_by_nodes_that_start_together(monkeypatch: pytest.MonkeyPatch) -> None:
    primary = shared_cluster().primary
    primary.fresh()
    async with postgres_store(Path(), primary.url()) as store:
        await put(store, (b"a", b"1"))
    step = "CREATE TABLE keypeer.once (x int); UPDATE keypeer.meta SET schema = 2"
    monkeypatch.setattr(postgres_schema, "UPGRADES", {**postgres_schema.UPGRADES, 1: step})
    monkeypatch.setattr(postgres_schema, "SCHEMA", 2)
    opened = await asyncio.gather(*(PostgresStore.open(parse(primary.url(), Path())) for _ in range(4)))
    for each in opened:
        assert await each.get(b"a") is not None
        await each.close()
    assert primary.sql("SELECT schema FROM keypeer.meta", "keypeer") == "2"


def a_newer_version(monkeypatch: pytest.MonkeyPatch, *, least: int) -> None:
    """From here on this code stands for the next version, whose tables versions from ``least`` on may use."""
    newest = postgres_schema.SCHEMA
    steps = (
        "ALTER TABLE keypeer.records ADD COLUMN more text",
        f"UPDATE keypeer.meta SET schema = schema + 1, least = {least}",  # noqa: S608 - a number
    )
    monkeypatch.setattr(postgres_schema, "UPGRADES", {**postgres_schema.UPGRADES, newest: "; ".join(steps)})
    monkeypatch.setattr(postgres_schema, "SCHEMA", newest + 1)


async def test_nodes_of_two_versions_share_an_upgraded_store_and_the_older_may_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    primary, known = shared_cluster().primary, postgres_schema.SCHEMA
    primary.fresh()
    url = primary.url()
    async with postgres_store(Path(), url) as old:
        await put(old, (b"a", b"old"))
        with monkeypatch.context() as newer:
            a_newer_version(newer, least=known)
            async with postgres_store(Path(), url) as new:
                for store, other, entry in ((old, new, b"1"), (new, old, b"2"), (old, new, b"3")):
                    item = await other.get(b"a")
                    assert item is not None
                    change = Commit(checks=[Check(b"a", item.version)], puts=[(b"a", entry)], entries=[entry])
                    committed(await store.commit(change))
                assert all(finding.ok for finding in await new.preflight())
        assert all(finding.ok for finding in await old.preflight())
    async with postgres_store(Path(), url) as back:
        assert [entry.entry for entry in await assert_log_holds(back)] == [b"1", b"2", b"3"]
        await put(back, (b"a", b"back"))
    assert primary.sql("SELECT schema FROM keypeer.meta", "keypeer") == str(known + 1)


async def test_an_upgrade_that_waits_too_long_changes_nothing_and_is_made_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    primary, known = shared_cluster().primary, postgres_schema.SCHEMA
    primary.fresh()
    url = primary.url()
    async with postgres_store(Path(), url) as old:
        a_newer_version(monkeypatch, least=known)
        reader = await postgres_server.Server(parse(url, Path()), single=False).connect()
        try:
            async with reader.transaction():
                await reader.fetch("SELECT FROM keypeer.records")  # a lock that ALTER TABLE waits for
                with monkeypatch.context() as hurried:
                    hurried.setattr(limits, "STORE_STALL_S", 0.3)
                    assert (await refusal(url)).code == "store.unavailable"
        finally:
            reader.terminate()
        assert primary.sql("SELECT schema FROM keypeer.meta", "keypeer") == str(known)
        await put(old, (b"a", b"old"))
        async with postgres_store(Path(), url) as new:
            assert await new.get(b"a") is not None
    assert primary.sql("SELECT schema FROM keypeer.meta", "keypeer") == str(known + 1)


async def test_a_version_that_an_upgrade_leaves_out_is_refused_at_its_start_not_while_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why deploy/operating.md stops all nodes before such an upgrade."""
    primary, known = shared_cluster().primary, postgres_schema.SCHEMA
    primary.fresh()
    url = primary.url()
    async with postgres_store(Path(), url) as old:
        with monkeypatch.context() as newer:
            a_newer_version(newer, least=known + 1)
            async with postgres_store(Path(), url) as new:
                await put(new, (b"a", b"new"))
        assert (await refusal(url)).code == "store.schema"
        assert [finding.id for finding in await old.preflight() if not finding.ok] == ["store.schema"]
        assert await code_of(old, Commit(puts=[(b"b", b"old")])) == ""


async def test_a_role_that_may_not_make_tables_is_told_so() -> None:
    primary = shared_cluster().primary
    primary.fresh()
    primary.sql("ALTER DATABASE keypeer OWNER TO postgres")
    try:
        refused = await refusal(primary.url())
        assert "permission denied" in refused.detail
        assert "GRANT CREATE" in refused.hint
    finally:
        primary.sql("ALTER DATABASE keypeer OWNER TO keypeer")
