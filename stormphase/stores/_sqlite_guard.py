"""What keeps a file that a stranger made from running what it likes in SQLite, or running for ever.

A SQLite file may bring code: views, triggers, virtual tables, computed columns. What we read must be the plain tables
that we made, and what is asked of them must end in a time that goes with the size of the file.
"""

from __future__ import annotations

import functools
import sqlite3
from typing import TYPE_CHECKING, Final

from stormphase._clock import SystemClock
from stormphase.exceptions import StoreError

if TYPE_CHECKING:
    from pathlib import Path

TABLES: Final = ("stored_owner", "stored_path", "stored_record", "stored_output", "stored_attribute")
INTERRUPTED: Final = "interrupted"
LEAST_S: Final = 10.0
LEAST_S_OF_WRITES: Final = 60.0
_S_A_MIB: Final = 0.5
_STEPS_BETWEEN_LOOKS: Final = 200_000  # of SQLite's machine: some milliseconds
_MAX_VALUE_BYTES: Final = 64 << 20


class TimeLimit:
    """Ends what a connection is at when it takes longer than a file of that size should; `renew` for each question.

    Args:
        connection: what to watch.
        path: its file.
        least_s: what a small one may take: a writer waits for others, too.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, least_s: float = LEAST_S) -> None:
        """Begin the first turn."""
        try:
            size_bytes = path.stat().st_size
        except OSError:
            size_bytes = 0
        self._limit_ns: int = int((least_s + _S_A_MIB * size_bytes / (1 << 20)) * 1e9)
        self.renew()
        connection.set_progress_handler(self._is_over, _STEPS_BETWEEN_LOOKS)

    def renew(self) -> None:
        """Allow the whole time once more."""
        self._until_ns: int = SystemClock.monotonic_ns() + self._limit_ns

    def _is_over(self) -> bool:
        now_ns: int = SystemClock.monotonic_ns()
        return now_ns > self._until_ns


def harden(connection: sqlite3.Connection) -> None:
    """Have a connection trust nothing that its file's schema says, and read any bytes as text."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    # One cell that is no UTF-8 would otherwise end the whole answer.
    connection.text_factory = functools.partial(str, encoding="utf-8", errors="backslashreplace")


def check_tables(connection: sqlite3.Connection, path: Path) -> None:
    """See that our tables are tables, and their columns hold what was written there.

    Raises:
        StoreError: if one is a view, a virtual table, computed, or not there.
    """
    marks = ", ".join("?" * len(TABLES))
    sql = f"SELECT lower(name), type, rootpage FROM sqlite_master WHERE lower(name) IN ({marks})"
    plain = {name for name, kind, page in connection.execute(sql, TABLES) if kind == "table" and page}
    for table in TABLES:
        if table not in plain:
            raise _no_store(path, f"{table} in it is no table")
        if any(column[-1] for column in connection.execute(f"PRAGMA table_xinfo({table})")):
            raise _no_store(path, f"a column of {table} in it is computed")


def _no_store(path: Path, what: str) -> StoreError:
    return StoreError(
        f"The store {path} cannot be used: {what}.",
        path=str(path),
        fix="It is damaged or no SQLite database of stormphase's: move it away, and a new one is made.",
    )
