"""What is asked of a database of records, in SQL."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from stormphase._record import MAX_SEQUENCE, OutputLine, RecordKind
from stormphase.stores import _sqlite_rows as rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from stormphase.stores._query import RecordQuery

# As `entering_order` sorts.
_KINDS: Final = " ".join(f"WHEN '{kind.value}' THEN {number}" for number, kind in enumerate(RecordKind))
_ENTERING_ORDER: Final = f"r.entered_ns, CASE r.kind {_KINDS} END, o.rank, r.id & {MAX_SEQUENCE}, r.id"


def select(connection: sqlite3.Connection, asked: RecordQuery) -> sqlite3.Cursor:
    """Return the rows of the records that may be wanted, in the order in which they were entered.

    What SQL cannot ask, `RecordQuery.matches` says of each record.
    """
    conditions, values = _conditions(connection, asked)
    return connection.execute(f"{rows.SELECT} WHERE {' AND '.join(conditions)} ORDER BY {_ENTERING_ORDER}", values)


def output_of(
    connection: sqlite3.Connection, ids: Sequence[int]
) -> dict[int, tuple[OutputLine, ...] | rows.WrongRowError]:
    """Return the output of records, by the ids of their rows; an error for one with a line that is none."""
    marks = ", ".join("?" * len(ids))
    sql = (
        "SELECT record_id, time_ns, stream, text FROM stored_output"
        f" WHERE record_id IN ({marks}) ORDER BY record_id, line"
    )
    lines: dict[int, list[OutputLine]] = {}
    wrong: dict[int, tuple[OutputLine, ...] | rows.WrongRowError] = {}
    for record_id, time_ns, stream, text in connection.execute(sql, ids):
        if (type(time_ns), type(stream), type(text)) != (int, str, str):
            wrong[record_id] = rows.WrongRowError("a line of output in it is none")
        else:
            lines.setdefault(record_id, []).append(OutputLine(time_ns, stream, text))
    return {**{record_id: tuple(found) for record_id, found in lines.items()}, **wrong}


def _conditions(connection: sqlite3.Connection, asked: RecordQuery) -> tuple[list[str], list[Any]]:
    conditions, values = ["1"], []
    for column, value, operator in (
        ("o.session_id", rows.sound(asked.session_id), "="),
        ("o.session_attempt", asked.session_attempt, "="),
        ("o.rank", asked.rank, "="),
        ("r.scope_id", asked.scope_id, "="),
        ("r.entered_ns", asked.since_ns, ">="),
        ("r.entered_ns", asked.until_ns, "<"),
    ):
        if value is not None:
            conditions.append(f"{column} {operator} ?")
            values.append(value)
    for column, members in (("r.status", asked.status), ("r.kind", asked.kind)):
        if members is not None:
            conditions.append(f"{column} IN ({', '.join('?' * len(members))})")
            values += [member.value for member in members]
    if asked.status is not None and "succeeded" not in asked.status:
        conditions.append("r.status <> 'succeeded'")  # So that the partial index serves.
    if asked.path is not None:
        known = connection.execute("SELECT id, names FROM stored_path").fetchall()
        ids = []
        for number, names in known:
            with contextlib.suppress(rows.WrongRowError):
                if asked.matches_path(rows.names_of(names)):
                    ids.append(str(int(number)))
        conditions.append(f"r.path_id IN ({', '.join(ids)})")
    return conditions, values
