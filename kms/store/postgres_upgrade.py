"""Makes the tables of the PostgreSQL store, or brings them to this version, and refuses those that aren't ours."""

from __future__ import annotations

import asyncio
from typing import Any

from kms import limits
from kms.errors import Unavailable
from kms.store import postgres_schema as sql
from kms.store.port import Finding


async def schema(connection: Any) -> Finding:
    """What tables there are."""
    (row,) = await connection.fetch(sql.TABLES)
    if not row["ours"]:
        mend = "rename that schema, or give keypeer a database of its own"
        found = "the schema keypeer is something else's" if row["named"] else "no tables yet"
        return Finding("store.schema", not row["named"], found, mend)
    (versions,) = await connection.fetch(sql.VERSIONS)
    good = versions["least"] <= sql.SCHEMA
    return Finding(
        "store.schema",
        good,
        f"schema {versions['schema']}" + ("" if good else f", and this service knows {sql.SCHEMA}"),
        "run the keypeer version that wrote it, or a newer one",
    )


async def upgrade(connection: Any) -> None:
    """All steps in one transaction, once, however many nodes start together. Raises Unavailable ``store.schema``."""
    async with asyncio.timeout(limits.STORE_STALL_S), connection.transaction():
        await connection.execute(sql.LOCK_UPGRADE)
        found = await schema(connection)
        if not found.ok:
            raise Unavailable(found.id, found.found, hint=found.mend)
        (row,) = await connection.fetch(sql.TABLES)
        version = (await connection.fetch(sql.VERSIONS))[0]["schema"] if row["ours"] else 0
        for step in range(version, sql.SCHEMA):
            await connection.execute(sql.UPGRADES[step])
