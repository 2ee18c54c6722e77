"""Writes records into the tables of a `SqliteStore`: many rows a statement, and each name once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from stormphase._record import RecordKind, dumps
from stormphase.stores import _sqlite_rows as rows
from stormphase.stores import _sqlite_schema as schema

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from stormphase._record import PhaseRecord
    from stormphase.stores._sqlite_rows import Owner

ON_BEGIN: Final = "ON CONFLICT (id) DO NOTHING"
# The first end counts, whoever says it: an ended record never changes.
ON_END: Final = (
    "ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{column} = excluded.{column}" for column in schema.RECORD_COLUMNS)
    + " WHERE stored_record.ended_ns IS NULL"
)
_ON_OUTPUT: Final = "ON CONFLICT (record_id, line) DO NOTHING"
_ROWS_A_STATEMENT: Final = 128
_LINES_A_STATEMENT: Final = 128
_COLUMNS: Final = ("id", *schema.RECORD_COLUMNS)


class RowWriter:
    """Knows what its connection's file already holds of owners, paths and attribute keys. For one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Know nothing yet."""
        self._connection = connection
        self._owners: dict[Owner, int] = {}
        self._paths: dict[tuple[str, ...], int] = {}
        self._keys: set[str] = set()
        self._has_new_keys = False

    def insert(self, records: Sequence[PhaseRecord], on_conflict: str, now_ns: int) -> None:
        """Write records, within a transaction of the caller's; after one that was taken back, make a new writer.

        Args:
            records: what to write.
            on_conflict: what becomes of a row that is there already, `ON_BEGIN` or `ON_END`.
            now_ns: now, as the last sign of life of those whose records they are.
        """
        connection = self._connection
        made: list[tuple[Any, ...]] = []
        lines: list[tuple[Any, ...]] = []
        owners: set[int] = set()
        for record in records:
            owner_id = self._owner_id(record)
            owners.add(owner_id)
            if record.attributes and record.kind is RecordKind.PHASE and not self._keys.issuperset(record.attributes):
                self._learn_keys(record)
            row = rows.row_of(record, owner_id, self._path_id(record.path))
            if record.output and not self._is_ended(row[0]):
                lines += (
                    (row[0], number, line.time_ns, line.stream, rows.sound(line.text))
                    for number, line in enumerate(record.output)
                )
            made.append(row)
            if len(made) == _ROWS_A_STATEMENT:
                connection.execute(schema.insert_sql("stored_record", _COLUMNS, len(made), on_conflict), _flat(made))
                made.clear()
        if made:
            connection.execute(schema.insert_sql("stored_record", _COLUMNS, len(made), on_conflict), _flat(made))
        for start in range(0, len(lines), _LINES_A_STATEMENT):
            some = lines[start : start + _LINES_A_STATEMENT]
            sql = schema.insert_sql("stored_output", schema.OUTPUT_COLUMNS, len(some), _ON_OUTPUT)
            connection.execute(sql, _flat(some))
        if self._has_new_keys:
            schema.make_phases_view(connection)
            self._has_new_keys = False
        for owner_id in owners:
            connection.execute("UPDATE stored_owner SET last_seen_ns = ? WHERE id = ?", (now_ns, owner_id))

    def _is_ended(self, row_id: int) -> bool:
        """Whether a row has its end already, and so its output: a repeated end adds no lines."""
        sql = "SELECT 1 FROM stored_record WHERE id = ? AND ended_ns IS NOT NULL"
        return self._connection.execute(sql, (row_id,)).fetchone() is not None

    def _owner_id(self, record: PhaseRecord) -> int:
        owner = rows.owner_of(record)
        found = self._owners.get(owner)
        if found is None:
            same = " AND ".join(f"{column} IS ?" for column in schema.OWNER_COLUMNS)
            row = self._connection.execute(f"SELECT id FROM stored_owner WHERE {same}", owner).fetchone()
            if row is None:
                names = ", ".join(schema.OWNER_COLUMNS)
                marks = ", ".join("?" * len(owner))
                sql = f"INSERT INTO stored_owner ({names}) VALUES ({marks})"
                row = (self._connection.execute(sql, owner).lastrowid,)
            found = self._owners[owner] = int(row[0])
        return found

    def _path_id(self, path: tuple[str, ...]) -> int:
        found = self._paths.get(path)
        if found is None:
            names = rows.sound(dumps(path))
            row = self._connection.execute("SELECT id FROM stored_path WHERE names = ?", (names,)).fetchone()
            if row is None:
                sql = "INSERT INTO stored_path (names, text, name, depth) VALUES (?, ?, ?, ?)"
                shown = (names, rows.sound(" / ".join(path)), rows.sound(path[-1] if path else ""), len(path))
                row = (self._connection.execute(sql, shown).lastrowid,)
            found = self._paths[path] = int(row[0])
        return found

    def _learn_keys(self, record: PhaseRecord) -> None:
        if len(self._keys) < schema.MAX_ATTRIBUTE_COLUMNS:
            # Every time: another process may have written some since.
            self._keys.update(key for (key,) in self._connection.execute("SELECT key FROM stored_attribute"))
        for key in record.attributes:
            if key not in self._keys:
                if len(self._keys) < schema.MAX_ATTRIBUTE_COLUMNS:
                    sql = "INSERT INTO stored_attribute (key, number) VALUES (?, ?)"
                    self._connection.execute(sql, (rows.sound(key), len(self._keys)))
                    self._has_new_keys = True
                self._keys.add(key)


def _flat(made: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return the values of several rows one after the other, as one statement for all of them takes them."""
    return list(itertools.chain.from_iterable(made))
