"""A database that a stranger made: its code does not run, bad rows hide no others, and no question lasts for ever."""

from __future__ import annotations

import contextlib
import io
import logging
import sqlite3

import pytest

from stormphase._clock import SystemClock
from stormphase._store_conformance import as_ended, example_record
from stormphase.cli import main
from stormphase.exceptions import StoreError
from stormphase.records import read_records
from stormphase.stores import SqliteStore, _sqlite_guard
from stormphase.stores._sqlite_guard import TABLES

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT"


@pytest.fixture
def store(tmp_path):
    """Return a store of three phases."""
    made = SqliteStore(tmp_path / "runs.db")
    made.end([as_ended(example_record(path=("train", name))) for name in ("first", "second", "third")])
    made.close()
    yield made
    made.close()


def change(store, *statements):
    """Do what another program might do to the file."""
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def ask(store, *options):
    """Return the exit code of `stormphase records`, and what it printed on both streams."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(["records", str(store.path), *options])
    return code, printed.getvalue(), errors.getvalue()


@pytest.mark.parametrize("table", TABLES)
def test_a_view_in_place_of_a_table_is_refused(store, table):
    """It could be endless, or call what a program has registered."""
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        columns = [column[1] for column in connection.execute(f"PRAGMA table_info({table})")]
        connection.execute(f"ALTER TABLE {table} RENAME TO other")
        values = ", ".join(f"x AS {column}" for column in columns)
        connection.execute(f"CREATE VIEW {table} AS {ENDLESS} {values} FROM n")
    with pytest.raises(StoreError, match=f"{table} in it is no table"):
        list(store.query())
    code, printed, errors = ask(store)
    assert (2, "") == (code, printed)
    assert "move it away" in errors


def test_a_virtual_table_is_refused(store):
    """What it does is its module's business."""
    change(store, "DROP TABLE stored_attribute", "CREATE VIRTUAL TABLE stored_attribute USING fts5(key, number)")
    with pytest.raises(StoreError, match="stored_attribute in it is no table"):
        store.attribute_keys()


def test_a_computed_column_is_refused(store):
    """It is made when it is read, and may be of any size."""
    change(store, "ALTER TABLE stored_path ADD COLUMN more TEXT AS (hex(zeroblob(100000000)))")
    with pytest.raises(StoreError, match="a column of stored_path in it is computed"):
        store.paths()


def test_a_table_that_is_gone_is_said_to_be(store):
    """As an error of ours."""
    change(store, "DROP TABLE stored_output")
    with pytest.raises(StoreError, match="stored_output in it is no table"):
        list(store.query())


def test_what_lasts_too_long_ends(store, monkeypatch):
    """A trigger may be endless; the records are shown as they stand, and the error of who writes says so."""
    monkeypatch.setattr(_sqlite_guard, "LEAST_S", 0.05)
    monkeypatch.setattr("stormphase.stores._sqlite.LEAST_S_OF_WRITES", 0.05)
    change(
        store,
        f"CREATE TRIGGER endless BEFORE UPDATE ON stored_owner BEGIN {ENDLESS} max(x) FROM n; END",
    )
    began_ns = SystemClock.monotonic_ns()
    with pytest.raises(StoreError, match="takes longer than it should for its size"):
        store.end([as_ended(example_record(path=("more",)))])
    assert SystemClock.monotonic_ns() - began_ns < 30e9
    assert 3 == len(list(store.query()))


BAD_ROWS = {
    "a path": "UPDATE stored_path SET names = '[1' WHERE name = 'second'",
    "attributes": "UPDATE stored_record SET attributes = '[1]' WHERE id = (SELECT id + 0 FROM {second})",
    "deep attributes": "UPDATE stored_record SET attributes = replace(hex(zeroblob(99999)), '0', '[')"
    " WHERE id = (SELECT id FROM {second})",
    "a status": "UPDATE stored_record SET status = 'done' WHERE id = (SELECT id FROM {second})",
    "a time": "UPDATE stored_record SET entered_ns = 'soon' WHERE id = (SELECT id FROM {second})",
    "no number": "UPDATE stored_record SET ended_ns = 1e999 WHERE id = (SELECT id FROM {second})",
    "a blob": "UPDATE stored_record SET scope_id = zeroblob(1000000) WHERE id = (SELECT id FROM {second})",
    "no path": "DELETE FROM stored_path WHERE name = 'second'",
    "no process": "UPDATE stored_record SET id = id + (77 << 40) WHERE id = (SELECT id FROM {second})",
    "a line": "INSERT INTO stored_output SELECT id, 1, 2, 'stdout', x'ff' FROM {second}",
}
SECOND = "(SELECT r.id FROM stored_record r JOIN stored_path p ON p.id = r.path_id WHERE p.name = 'second')"


@pytest.mark.parametrize("sql", BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_bad_row_hides_no_others(store, sql, form):
    """Whatever is wrong with it: the others are there, and it is said that one was passed over."""
    change(store, sql.format(second=SECOND))
    code, printed, errors = ask(store, "--format", form)
    assert 1 == code
    assert [True, False, True] == [name in printed for name in ("first", "second", "third")]
    assert "1 row is no record and was passed over" in " ".join(errors.split())
    unreadable = []
    names = {record.path[-1] for record in read_records(store.path, on_unreadable=unreadable.append)}
    assert ({"first", "third"}, [1]) == (names, [each.count for each in unreadable])


def test_text_that_is_none_is_shown_by_its_bytes(store):
    """It costs neither its own row nor another one."""
    change(store, "UPDATE stored_record SET reason = CAST(x'61ff' AS TEXT)")
    assert {"a\\xff"} == {record.reason for record in store.query()}
    assert 0 == ask(store)[0]


def test_a_row_whose_path_has_gone_is_counted_in_what_is_asked_for(store):
    """In its session, and not in another one."""
    change(store, "DELETE FROM stored_path WHERE name = 'second'")
    told = []
    session_id = next(store.query()).session_id
    assert 2 == len(list(store.query(session_id=session_id, on_unreadable=told.append)))
    assert [] == list(store.query(session_id="another", on_unreadable=told.append))
    assert [1] == [each.count for each in told]
    assert "the path that a row in it refers to is missing" in str(told[0].error)


def test_bad_rows_are_logged_once(store, caplog):
    """Where nobody asked to be told."""
    change(store, "UPDATE stored_record SET kind = 'thread'")
    with caplog.at_level(logging.WARNING):
        assert [[], []] == [list(store.query()) for _ in range(2)]
    assert 1 == len(caplog.records)
    assert "3 rows are no records and were passed over" in caplog.text


def test_a_bad_path_hides_no_others(store):
    """Nor keeps anybody from asking for one."""
    change(store, "UPDATE stored_path SET names = '{}' WHERE name = 'second'")
    assert {("train", "first"), ("train", "third")} == set(store.paths())
    assert 2 == len(list(store.query(path="train/*")))
