"""What a process that died was the cause of in others: told in their rows, so that SQL says what `attribute` does."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from stormphase._attribution import corrections, is_of_the_gone
from stormphase._model import PhaseStatus
from stormphase._record import dumps
from stormphase.stores import _sqlite_rows as rows
from stormphase.stores._sqlite_schema import SEQUENCE_BITS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from stormphase._record import PhaseRecord

_MAX_LEVELS: Final = 64
_IDS_A_QUESTION: Final = 500


def blame_lost(connection: sqlite3.Connection, lost: Iterable[PhaseRecord]) -> None:
    """Name what a dead process left as the root cause of failures that it explains, within the caller's transaction.

    Args:
        connection: the writer's.
        lost: what has just become LOST, or FAILED by the word of a dead process's journal.
    """
    sessions: dict[tuple[str, int], list[PhaseRecord]] = {}
    for record in lost:
        sessions.setdefault((record.session_id, record.session_attempt), []).append(record)
    for launch, records in sessions.items():
        bad = _with_ids(connection, launch, [record.scope_id for record in records])
        _blame(connection, launch, {**_last_of_each(connection, launch), **_lost_before(connection, launch), **bad})


def blame_known(connection: sqlite3.Connection, ended: Iterable[PhaseRecord]) -> None:
    """Look for the root cause of failures among what is LOST or has failed already, within the caller's transaction.

    Args:
        connection: the writer's.
        ended: what has just been written as ended.
    """
    failed = [record for record in ended if record.status is PhaseStatus.FAILED and is_of_the_gone(record)]
    for launch in {(record.session_id, record.session_attempt) for record in failed}:
        sql = f"{rows.SELECT} WHERE r.status IN ('lost', 'failed') AND o.session_id = ? AND o.session_attempt = ?"
        bad = _by_scope(connection.execute(sql, launch))
        _blame(connection, launch, {**_last_of_each(connection, launch), **bad})


def _blame(connection: sqlite3.Connection, launch: tuple[str, int], bad: dict[str, tuple[int, PhaseRecord]]) -> None:
    """Name in the rows above what went wrong, and in its own, what `attribute` says; those that failed may change."""
    known = {**bad, **_owners(connection, launch)}
    wanted = {record.parent_scope_id for _, record in bad.values() if record.parent_scope_id} - known.keys()
    for _ in range(_MAX_LEVELS):
        if not wanted:
            break
        found = _with_ids(connection, launch, sorted(wanted))
        known.update(found)
        wanted = {record.parent_scope_id for _, record in found.values() if record.parent_scope_id} - known.keys()
    row_ids = {record.key: row_id for row_id, record in known.values()}
    for key, blame in corrections(record for _, record in known.values()).items():
        path = None if blame.path is None else rows.sound(dumps(blame.path))
        sql = "UPDATE stored_record SET root_cause_scope_id = ?, root_cause_path = ? WHERE id = ?"
        connection.execute(sql, (blame.scope_id, path, row_ids[key]))


def _lost_before(connection: sqlite3.Connection, launch: tuple[str, int]) -> dict[str, tuple[int, PhaseRecord]]:
    """Return what is LOST of a launch, also by earlier looks: several processes may have been lost at one time."""
    sql = f"{rows.SELECT} WHERE r.status = 'lost' AND o.session_id = ? AND o.session_attempt = ?"
    return _by_scope(connection.execute(sql, launch))


def _owners(connection: sqlite3.Connection, launch: tuple[str, int]) -> dict[str, tuple[int, PhaseRecord]]:
    """Return the records of the session, its ranks and processes, by scope id, each with its row's id."""
    sql = (
        f"{rows.SELECT} WHERE r.id IN (SELECT id << {SEQUENCE_BITS} FROM stored_owner"
        " WHERE session_id = ? AND session_attempt = ?)"
    )
    return _by_scope(connection.execute(sql, launch))


def _last_of_each(connection: sqlite3.Connection, launch: tuple[str, int]) -> dict[str, tuple[int, PhaseRecord]]:
    """Return the phase that each process has entered last: what it failed by before that did not end it."""
    sql = (
        f"{rows.SELECT} WHERE r.id IN (SELECT (SELECT max(id) FROM stored_record WHERE id BETWEEN"
        f" w.id << {SEQUENCE_BITS} AND ((w.id + 1) << {SEQUENCE_BITS}) - 1)"
        " FROM stored_owner w WHERE w.session_id = ? AND w.session_attempt = ?)"
    )
    return _by_scope(connection.execute(sql, launch))


def _with_ids(
    connection: sqlite3.Connection, launch: tuple[str, int], scope_ids: list[str]
) -> dict[str, tuple[int, PhaseRecord]]:
    found: dict[str, tuple[int, PhaseRecord]] = {}
    for start in range(0, len(scope_ids), _IDS_A_QUESTION):
        some = scope_ids[start : start + _IDS_A_QUESTION]
        marks = ", ".join("?" * len(some))
        sql = f"{rows.SELECT} WHERE o.session_id = ? AND o.session_attempt = ? AND r.scope_id IN ({marks})"
        found.update(_by_scope(connection.execute(sql, (*launch, *some))))
    return found


def _by_scope(found: Iterable[tuple[object, ...]]) -> dict[str, tuple[int, PhaseRecord]]:
    by_scope: dict[str, tuple[int, PhaseRecord]] = {}
    for row in found:
        with contextlib.suppress(rows.WrongRowError):  # It says nothing of the others.
            record = rows.record_of_row(row, ())
            by_scope[record.scope_id] = (row[0], record)  # type: ignore[assignment]
    return by_scope
