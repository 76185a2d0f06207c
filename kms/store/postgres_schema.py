"""The tables of the PostgreSQL store, their versions, and the statements that read and write them.

Each upgrade leaves tables that the version before can still use, so that nodes are upgraded one after the other
(``least`` says which is the oldest that may go on); a node that is older than that refuses to start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kms.store.postgres_plan import State, Writes

SCHEMA = 1  # the newest version that this code knows

# ``state`` is one row, rewritten by every transaction: free space around it keeps its versions on one page (HOT), and
# vacuum comes often. ``records`` has room for rotation, which rewrites every row once: most rewrites stay on their page
# and touch no index. Values are sealed, so that compressing them is lost work. ``log`` and ``nodes`` only grow.
_CREATE = """
CREATE SCHEMA keypeer;
CREATE TABLE keypeer.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema integer NOT NULL,
    least integer NOT NULL
);
INSERT INTO keypeer.meta (schema, least) VALUES (1, 1);
CREATE TABLE keypeer.state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL DEFAULT 0,
    log_size bigint NOT NULL DEFAULT 0,
    peaks bytea NOT NULL DEFAULT '',
    changed_keys bigint NOT NULL DEFAULT 0,
    operations bigint NOT NULL DEFAULT 0,
    forgotten bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
INSERT INTO keypeer.state DEFAULT VALUES;
CREATE TABLE keypeer.records (
    key bytea PRIMARY KEY,
    version bigint NOT NULL,
    value bytea NOT NULL
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE keypeer.records ALTER COLUMN value SET STORAGE EXTERNAL;
CREATE TABLE keypeer.log (sequence bigint PRIMARY KEY, leaf bytea NOT NULL, entry bytea NOT NULL);
CREATE TABLE keypeer.nodes (
    level smallint NOT NULL, number bigint NOT NULL, hash bytea NOT NULL, PRIMARY KEY (level, number)
);
CREATE TABLE keypeer.changes (version bigint PRIMARY KEY, count integer NOT NULL, keys bytea NOT NULL)
    WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE keypeer.operations (
    op_id bytea PRIMARY KEY, number bigint NOT NULL UNIQUE, version bigint NOT NULL, log_size bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);
"""

# From each version to the next; all that a store needs in one transaction (postgres_upgrade.py).
UPGRADES: dict[int, str] = {0: _CREATE}

# Two nodes that start together make the tables once.
LOCK_UPGRADE = "SELECT pg_advisory_xact_lock(7090111613374)"
TABLES = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'keypeer') AS named,
       EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
               WHERE nspname = 'keypeer' AND relname = 'meta') AS ours
"""
VERSIONS = "SELECT schema, least FROM keypeer.meta"

# What a server must be asked before it is trusted.
EXAMINE = """
SELECT current_setting('server_version_num')::integer AS version, pg_is_in_recovery() AS recovery,
       current_setting('transaction_read_only') AS read_only, current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('synchronous_standby_names') AS standbys, inet_server_addr() IS NULL AS is_local,
       (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS tls
"""

# A transaction that writes this message returns once a quorum of standbys has it, which the standbys of a new primary
# refuse the old one: what was read in between is the truth of that time. UNION ALL, because a join may never get to it.
_BARRIER = "(pg_logical_emit_message(true, 'keypeer', '') - '0/0'::pg_lsn)::bigint"


def barrier(columns: Sequence[str], *, needed: bool = True) -> str:
    """The head of a fresh read: its first row is the barrier's, a number and NULLs, and not to be looked at. The first
    of ``columns`` (PostgreSQL types) is bigint. Without need the row is there all the same."""
    first = _BARRIER if needed else "0::bigint"
    return f"SELECT {', '.join((first, *(f'NULL::{kind}' for kind in columns[1:])))} UNION ALL "


ITEM = ("bigint", "bytea", "bytea")
GET = "SELECT version, key, value FROM keypeer.records WHERE key = ANY($1::bytea[])"
SCAN = """(SELECT version, key, value FROM keypeer.records WHERE key >= $1 AND key > $2 ORDER BY key LIMIT $3)"""
SCAN_BELOW = """(SELECT version, key, value FROM keypeer.records
WHERE key >= $1 AND key > $2 AND key < $4 ORDER BY key LIMIT $3)"""
LOG = "(SELECT sequence, leaf, entry FROM keypeer.log WHERE sequence >= $1 ORDER BY sequence LIMIT $2)"
HASH = ("bigint", "bytea")
LEAVES = "(SELECT sequence, leaf FROM keypeer.log WHERE sequence >= $1 ORDER BY sequence LIMIT $2)"
NODES = "(SELECT number, hash FROM keypeer.nodes WHERE level = $3 AND number >= $1 ORDER BY number LIMIT $2)"
HEAD = "SELECT log_size, peaks FROM keypeer.state"
NEWEST = "SELECT version FROM keypeer.state"
CHANGE = ("bigint", "bigint", "bytea")
CHANGES = """SELECT version, forgotten, NULL FROM keypeer.state
UNION ALL (SELECT version, 0, keys FROM keypeer.changes WHERE version > $1 ORDER BY version)"""
SIZE = "SELECT pg_database_size(current_database())"

# Every commit holds this lock until its standbys have it: whoever gets it after a commit whose outcome wasn't told sees
# that outcome, and nothing that was sent before can happen any more.
LOCK = "BEGIN; SELECT FROM keypeer.state FOR UPDATE"
# Under that lock. A commit at once (below) takes the lock as it writes, so that one which was sent before may still
# come; it holds only on the version that its node knew, which is therefore left behind.
RESOLVE = """
WITH known AS MATERIALIZED (SELECT version, log_size FROM keypeer.operations WHERE op_id = $1),
     fence AS (UPDATE keypeer.state SET version = version + 1 WHERE NOT EXISTS (SELECT FROM known))
SELECT version, log_size FROM known
"""

# A statement of its own, since its snapshot must be taken once the lock is held.
LOOK = """
SELECT 0 AS kind, peaks AS name, ARRAY[version, log_size, changed_keys, operations,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint] AS numbers,
       current_setting('synchronous_standby_names')::bytea AS value FROM keypeer.state
UNION ALL SELECT 1, op_id, ARRAY[version, log_size], NULL FROM keypeer.operations WHERE op_id = ANY($1::bytea[])
UNION ALL SELECT 2, key, ARRAY[version], NULL FROM keypeer.records WHERE key = ANY($2::bytea[])
UNION ALL SELECT 2, key, ARRAY[version], substring(value FROM 1 FOR 8)
    FROM keypeer.records WHERE key = ANY($3::bytea[])
"""
STANDBYS = "SELECT current_setting('synchronous_standby_names')"
ANY_OF = "SELECT EXISTS (SELECT FROM keypeer.records WHERE key = ANY($1::bytea[]))"

# A commit at once: one statement that does all or nothing. It finds the row of ``state`` only as the node left it with
# its last commit, and while nobody holds the lock. Every commit and every ``resolve`` moves ``version``, so that none
# came since the statement's snapshot when the lock is had: what the snapshot shows of op ids and records is the truth
# then. All is asked before the lock is taken, which would make a transaction of a miss, and wait for standbys.
_HELD = """held AS MATERIALIZED (
    SELECT FROM keypeer.state
    WHERE version = {}::bigint AND log_size = {}::bigint AND peaks = {}::bytea AND changed_keys = {}::bigint
        AND operations = {}::bigint
        AND current_setting('synchronous_standby_names')::bytea = {}::bytea
        AND abs(extract(epoch FROM clock_timestamp())::float8 - {}::float8) <= {}::float8
        AND NOT EXISTS (SELECT FROM keypeer.operations WHERE op_id = ANY({}::bytea[]))
        AND NOT EXISTS (
            SELECT FROM unnest({}::bytea[], {}::bigint[]) AS asked (key, version)
            WHERE asked.version <> coalesce((SELECT r.version FROM keypeer.records AS r WHERE r.key = asked.key), 0)
        )
    FOR UPDATE SKIP LOCKED
)"""
_IF_HELD = "EXISTS (SELECT FROM held)"

_STATE = """UPDATE keypeer.state
SET version = {}, log_size = {}, peaks = {}, changed_keys = {}, operations = {} WHERE {held} RETURNING version"""
_PUTS = """INSERT INTO keypeer.records (key, version, value)
SELECT * FROM unnest({}::bytea[], {}::bigint[], {}::bytea[]) WHERE {held}
ON CONFLICT (key) DO UPDATE SET version = EXCLUDED.version, value = EXCLUDED.value"""
_DELETES = "DELETE FROM keypeer.records WHERE key = ANY({}::bytea[]) AND {held}"
_ENTRIES = """INSERT INTO keypeer.log (sequence, leaf, entry)
SELECT * FROM unnest({}::bigint[], {}::bytea[], {}::bytea[]) WHERE {held}"""
_NODES = """INSERT INTO keypeer.nodes (level, number, hash)
SELECT * FROM unnest({}::smallint[], {}::bigint[], {}::bytea[]) WHERE {held}"""
_CHANGES = """INSERT INTO keypeer.changes (version, count, keys)
SELECT * FROM unnest({}::bigint[], {}::integer[], {}::bytea[]) WHERE {held}"""
_OPERATIONS = """INSERT INTO keypeer.operations (op_id, number, version, log_size)
SELECT * FROM unnest({}::bytea[], {}::bigint[], {}::bigint[], {}::bigint[]) WHERE {held}"""
_OLD_OPERATIONS = "DELETE FROM keypeer.operations WHERE number <= {} AND {held}"

# The oldest rows, so many that at most $1 keys are forgotten too few.
TRIM = """
WITH gone AS (
    DELETE FROM keypeer.changes WHERE version <= (
        SELECT min(version) FROM (SELECT version, sum(count) OVER (ORDER BY version) AS total FROM keypeer.changes) AS s
        WHERE total >= $1
    ) RETURNING version, count
)
UPDATE keypeer.state SET forgotten = greatest(forgotten, (SELECT coalesce(max(version), 0) FROM gone)),
    changed_keys = changed_keys - (SELECT coalesce(sum(count), 0) FROM gone)
RETURNING changed_keys
"""


class Held(NamedTuple):
    """What must be true for a commit at once."""

    before: State
    standbys: bytes  # synchronous_standby_names, as it was found good
    clock: float  # Unix time here, seconds
    apart: float  # seconds that the server's may differ
    operations: Sequence[bytes]  # unknown op ids
    records: Mapping[bytes, int]  # versions by key; 0: absent

    def arguments(self) -> list[Any]:
        """Of ``_HELD``."""
        *here, records = self[1:]
        return [*self.before, *here, list(records), list(records.values())]


def write(state: State, writes: Writes, *, operations_kept: int, held: Held | None = None) -> tuple[str, list[Any]]:
    """The statement that writes what ``writes`` names, and its arguments: one round trip, and one row unless something
    of ``held`` isn't so. There are a few different ones, which the server plans once a connection."""
    parts: list[tuple[str, Sequence[Any]]] = []
    if writes.deletes:
        parts.append((_DELETES, [list(writes.deletes)]))
    if writes.puts:
        versions, values = zip(*writes.puts.values(), strict=True)
        parts.append((_PUTS, [list(writes.puts), versions, values]))
    for template, rows in (
        (_ENTRIES, writes.entries),
        (_NODES, writes.nodes),
        (_CHANGES, writes.changes),
        (_OPERATIONS, writes.operations),
    ):
        if rows:
            parts.append((template, list(zip(*rows, strict=True))))
    if writes.operations:
        parts.append((_OLD_OPERATIONS, [state.operations - operations_kept]))
    arguments: list[Any] = held.arguments() if held else []
    condition = _IF_HELD if held else "true"
    named = [_numbered(_HELD, 0, len(arguments))] if held else []
    for number, (template, columns) in enumerate(parts):
        named.append(f"w{number} AS ({_numbered(template, len(arguments), len(columns), condition)})")
        arguments += columns
    main = _numbered(_STATE, len(arguments), len(state), condition)
    return (f"WITH {', '.join(named)} {main}" if named else main), [*arguments, *state]


def _numbered(template: str, start: int, count: int, held: str = "") -> str:
    return template.format(*(f"${start + number + 1}" for number in range(count)), held=held)
