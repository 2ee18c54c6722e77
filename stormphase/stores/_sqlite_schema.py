"""The tables of a `SqliteStore`, their versions, and the views in which a person asks.

A row of `stored_record` is a phase, a rank, a process or a session. Its id is `owner << 40 | sequence`: rows of one
process stand in the order in which they were entered, so a busy writer appends and never seeks, and a repeated write
finds its row without an index on scope ids, which are scattered.

Whoever asks in SQL uses the views `records`, `phases` and `output`. In `phases` each attribute is a column of its own,
named `attr_` and its key; none of our columns begins so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stormphase._record import MAX_SEQUENCE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

APPLICATION_ID: Final = 0x53746D70  # "Stmp": what `file` and we know the database by
SEQUENCE_BITS: Final = MAX_SEQUENCE.bit_length()
MAX_ATTRIBUTE_COLUMNS: Final = 1_000
ATTRIBUTE_PREFIX: Final = "attr_"

# What `stored_record` holds of a record, after its id; the order in which rows are written and read.
RECORD_COLUMNS: Final = (
    "kind",
    "scope_id",
    "parent_scope_id",
    "path_id",
    "attempt",
    "retry_of_scope_id",
    "step",
    "status",
    "reason",
    "evidence",
    "entered_ns",
    "ended_ns",
    "entered_monotonic_ns",
    "ended_monotonic_ns",
    "self_ns",
    "paused_ns",
    "thread_id",
    "thread_name",
    "task_name",
    "is_sync",
    "attributes",
    "error_type",
    "error_message",
    "traceback",
    "root_cause_scope_id",
    "root_cause_path",
    "is_output_known",
)

OUTPUT_COLUMNS: Final = ("record_id", "line", "time_ns", "stream", "text")

OWNER_COLUMNS: Final = (
    "session_id",
    "session_attempt",
    "rank",
    "correlation_id",
    "host",
    "boot_id",
    "pid",
    "pid_started",
    "pid_namespace",
)

# `step` has no type, since SQLite would make a number of a text in a typed column, and of 2**70 + 1 an inexact one.
_VERSION_1: Final = (
    """
    CREATE TABLE stored_owner (
        id INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL,
        session_attempt INTEGER NOT NULL,
        rank INTEGER,
        correlation_id TEXT,
        host TEXT,
        boot_id TEXT,
        pid INTEGER,
        pid_started INTEGER,
        pid_namespace INTEGER,
        last_seen_ns INTEGER
    )
    """,
    "CREATE INDEX stored_owner_of_session ON stored_owner (session_id, session_attempt, rank)",
    """
    CREATE TABLE stored_path (
        id INTEGER PRIMARY KEY,
        names TEXT NOT NULL UNIQUE,
        text TEXT NOT NULL,
        name TEXT NOT NULL,
        depth INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE stored_record (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        scope_id TEXT NOT NULL,
        parent_scope_id TEXT,
        path_id INTEGER NOT NULL REFERENCES stored_path (id),
        attempt INTEGER NOT NULL,
        retry_of_scope_id TEXT,
        step,
        status TEXT NOT NULL,
        reason TEXT,
        evidence TEXT,
        entered_ns INTEGER NOT NULL,
        ended_ns INTEGER,
        entered_monotonic_ns INTEGER,
        ended_monotonic_ns INTEGER,
        self_ns INTEGER,
        paused_ns INTEGER,
        thread_id INTEGER,
        thread_name TEXT,
        task_name TEXT,
        is_sync INTEGER NOT NULL,
        attributes TEXT,
        error_type TEXT,
        error_message TEXT,
        traceback TEXT,
        root_cause_scope_id TEXT,
        root_cause_path TEXT
    )
    """,
    # Small, since most phases succeed: failures, and what is unfinished.
    "CREATE INDEX stored_record_not_succeeded ON stored_record (status) WHERE status <> 'succeeded'",
    """
    CREATE TABLE stored_output (
        record_id INTEGER NOT NULL REFERENCES stored_record (id),
        line INTEGER NOT NULL,
        time_ns INTEGER NOT NULL,
        stream TEXT NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (record_id, line)
    ) WITHOUT ROWID
    """,
    "CREATE TABLE stored_attribute (key TEXT NOT NULL PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID",
    f"""
    CREATE VIEW records AS SELECT
        r.kind, o.session_id, o.session_attempt, o.correlation_id, o.rank,
        r.scope_id, r.parent_scope_id, p.text AS path, p.name, p.depth, r.id & {MAX_SEQUENCE} AS sequence,
        r.attempt, r.retry_of_scope_id, r.step, r.status, r.reason, r.evidence,
        r.entered_ns, r.ended_ns, r.ended_ns - r.entered_ns AS duration_ns, r.self_ns, r.paused_ns,
        r.entered_monotonic_ns, r.ended_monotonic_ns,
        strftime('%Y-%m-%dT%H:%M:%S', r.entered_ns / 1000000000, 'unixepoch')
            || printf('.%09dZ', r.entered_ns % 1000000000) AS entered_at,
        strftime('%Y-%m-%dT%H:%M:%S', r.ended_ns / 1000000000, 'unixepoch')
            || printf('.%09dZ', r.ended_ns % 1000000000) AS ended_at,
        r.thread_id, r.thread_name, r.task_name, r.is_sync, r.attributes,
        r.error_type, r.error_message, r.traceback, r.root_cause_scope_id,
        (SELECT group_concat(value, ' / ') FROM json_each(r.root_cause_path)) AS root_cause_path,
        o.host, o.boot_id, o.pid, o.pid_started, o.pid_namespace, o.last_seen_ns
    FROM stored_record r JOIN stored_owner o ON o.id = r.id >> {SEQUENCE_BITS} JOIN stored_path p ON p.id = r.path_id
    """,
    f"""
    CREATE VIEW output AS SELECT
        o.session_id, o.session_attempt, o.rank, r.scope_id, p.text AS path, l.line, l.time_ns, l.stream, l.text
    FROM stored_output l JOIN stored_record r ON r.id = l.record_id
        JOIN stored_owner o ON o.id = r.id >> {SEQUENCE_BITS} JOIN stored_path p ON p.id = r.path_id
    """,
)

# What a phase said that was LOST may be unknown; that it said nothing is another thing.
_VERSION_2: Final = (
    "DROP VIEW IF EXISTS phases",  # Made anew when all is done.
    "DROP VIEW records",
    "ALTER TABLE stored_record ADD COLUMN is_output_known INTEGER NOT NULL DEFAULT 1",
    """
    UPDATE stored_record SET is_output_known = 0
    WHERE status = 'lost' AND kind = 'phase' AND id NOT IN (SELECT record_id FROM stored_output)
    """,
    _VERSION_1[-2].replace(
        "o.host,",
        """CASE WHEN r.is_output_known THEN (SELECT count(*) FROM stored_output l WHERE l.record_id = r.id) END
            AS output_lines,
        o.host,""",
    ),
)

# The statements that lead from each version to the next; `PRAGMA user_version` says how far a file has come.
MIGRATIONS: Final[list[tuple[str, ...]]] = [_VERSION_1, _VERSION_2]


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database to this release's version; in one transaction that the caller holds, so all of it or nothing."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    if version < len(MIGRATIONS):
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        make_phases_view(connection)


def make_phases_view(connection: sqlite3.Connection) -> None:
    """Make the view `phases` anew, with a column for each attribute that was ever seen."""
    keys = [key for (key,) in connection.execute("SELECT key FROM stored_attribute ORDER BY number")]
    columns = "".join(f", {expression} AS {quoted(name)}" for name, expression in attribute_columns(keys))
    connection.execute("DROP VIEW IF EXISTS phases")
    connection.execute(f"CREATE VIEW phases AS SELECT *{columns} FROM records WHERE kind = 'phase'")


def attribute_columns(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Return a column's name and its expression for each key, unlike each other also without regard to case."""
    columns: list[tuple[str, str]] = []
    taken: set[str] = set()
    for key in keys:
        name = base = ATTRIBUTE_PREFIX + key
        number = 2
        while name.lower() in taken:
            name = f"{base}_{number}"
            number += 1
        taken.add(name.lower())
        columns.append((name, _expression(key)))
    return columns


def _expression(key: str) -> str:
    if key.isalnum() or key.replace("_", "").replace(".", "").replace("-", "").isalnum():
        return f"""json_extract(attributes, '$."{key}"')"""
    # A path cannot quote every key.
    return f"(SELECT value FROM json_each(attributes) WHERE key = {literal(key)})"


def quoted(name: str) -> str:
    """Return a name as SQL quotes it; a NUL, which SQL text cannot hold, is left out."""
    return '"' + name.replace("\0", "").replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as an SQL expression."""
    parts = ("'" + part.replace("'", "''") + "'" for part in text.split("\0"))
    return " || char(0) || ".join(parts)


def insert_sql(table: str, columns: tuple[str, ...], rows: int, on_conflict: str) -> str:
    """Return the statement that writes so many rows in one go.

    One statement for many rows, since Python gives up the GIL for each statement, and gets it back from a busy training
    thread only 5 ms later: row by row a writer gets through 8,000 a second, so through 70,000.
    """
    one = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one] * rows)} {on_conflict}"
