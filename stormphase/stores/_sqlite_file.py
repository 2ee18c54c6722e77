"""The file of a `SqliteStore`: opened, checked, brought to this release's version, and what to say when it fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import sqlite3
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from stormphase._clock import SystemClock
from stormphase.exceptions import StoreError
from stormphase.stores import _sqlite_schema as schema
from stormphase.stores._sqlite_guard import INTERRUPTED, check_tables, harden

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WAL_PAGES: Final = 4_000  # 16 MB between checkpoints
_WAL_LIMIT_BYTES: Final = 64 << 20
_OLDEST_SQLITE: Final = (3, 33, 0)
_BESIDE: Final = ("-wal", "-shm")
_LONGEST_TURN_S: Final = 10.0
_TURN_PAUSE_S: Final = 0.002
# What SQLite says of a file that it may not open or write; its other complaints are of what the file holds.
_DENIED: Final = re.compile("unable to open|readonly|authoriz|permission")


def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Return a connection that commits by itself, usable from any thread, one at a time.

    Raises:
        StoreError: if SQLite is too old, or there is something else than a file, such as a directory or a pipe.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        wanted = ".".join(map(str, _OLDEST_SQLITE))
        raise StoreError(
            f"A SqliteStore needs SQLite {wanted} or newer, and this Python has {sqlite3.sqlite_version}.",
            path=str(path),
            fix="Use a newer Python.",
        )
    if path.exists() and not path.is_file():
        raise StoreError(
            f"The store {path} cannot be used: it is no regular file.", path=str(path), fix="Give the store a file."
        )
    # "rw" makes no file, and takes one that must not be written for reading only.
    uri = f"file:{quote(str(path))}?mode=rw"
    connection = sqlite3.connect(
        uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    harden(connection)
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make a connection the writer's, and the database one of this release.

    Raises:
        StoreError: if the database is not ours to write.
    """
    version = check(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
    if version < len(schema.MIGRATIONS):
        connection.execute("BEGIN IMMEDIATE")
        try:
            schema.migrate(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def check(connection: sqlite3.Connection, path: Path) -> int:
    """Return the database's version, 0 if it is new; refuse one that is another program's, or a newer release's.

    Raises:
        StoreError: if it is.
    """
    connection.execute("BEGIN")  # One moment for all three.
    try:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")
    if application_id != schema.APPLICATION_ID:
        if application_id or version or tables:
            raise StoreError(
                f"{path} is a SQLite database of another program.",
                path=str(path),
                fix="Give the store a file of its own.",
            )
    elif version > len(schema.MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer stormphase: it has version {version}, and this one knows "
            f"{len(schema.MIGRATIONS)}.",
            path=str(path),
            fix="Install a newer stormphase, or give the store another file.",
        )
    elif version > 0:
        check_tables(connection, path)
    return int(version)


def trouble(path: Path, error: Exception) -> StoreError:
    """Return what to say of an error of SQLite's or the system's."""
    text = str(error).rstrip(".")
    may_pass = False
    if isinstance(error, sqlite3.OperationalError) and "locked" in text:
        fix = "Another process holds it; what was to be written is tried again."
        may_pass = True
    elif isinstance(error, sqlite3.OperationalError) and ("full" in text or "I/O" in text):
        fix = "Make room on the disk, or mend it; what was to be written is tried again."
        may_pass = True
    elif isinstance(error, sqlite3.OperationalError) and text == INTERRUPTED:
        text = "what is asked of it takes longer than it should for its size"
        fix = "Copy it to a faster disk; if it takes as long there, it is damaged or made to keep you waiting."
    elif isinstance(error, OSError) or (isinstance(error, sqlite3.OperationalError) and _DENIED.search(text)):
        fix = "Give the store a file in a directory that exists and may be written to."
    else:
        fix = "It is damaged or no SQLite database: move it away, and a new one is made."
    return StoreError(f"The store {path} cannot be used: {text}.", path=str(path), fix=fix, may_pass=may_pass)


def make_file(path: Path, busy_timeout_s: float) -> None:
    """Make the database, for its owner only, if it is not there.

    It is made under another name and then put in its place, so that nobody sees half of it, whoever asks or makes it
    at the same time. What SQLite puts beside it gets the same mode. The log of a file that was deleted goes first, as
    SQLite would take it for the new one's.

    Raises:
        OSError: if there is no place for it.
    """
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    os.close(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    try:
        connection = connect(draft, busy_timeout_s)
        try:
            prepare(connection, draft)
        finally:
            connection.close()
        with _turn(path.parent, busy_timeout_s) as is_ours:
            if is_ours and not path.exists():
                for suffix in _BESIDE:
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
            _put(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _turn(directory: Path, timeout_s: float) -> Iterator[bool]:
    """Give the caller its turn among all that make a database in a directory; False if it has to do without.

    Of two that make one at the same time, the later must not take the log of the earlier for one that was left behind.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:  # One may write there, and not look.
        yield False
        return
    until_ns = SystemClock.monotonic_ns() + int(min(timeout_s, _LONGEST_TURN_S) * 1e9)
    is_ours = False
    try:
        while not is_ours:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = True
            except BlockingIOError:
                if SystemClock.monotonic_ns() >= until_ns:
                    break
                select.select((), (), (), _TURN_PAUSE_S)
            except OSError:  # A file system without such locks.
                break
        yield is_ours
    finally:
        if is_ours:
            fcntl.flock(fd, fcntl.LOCK_UN)  # A child that was forked meanwhile must not keep it.
        os.close(fd)


def _put(draft: Path, path: Path) -> None:
    """Give a file its name, unless another one has it by now."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # A file system without hard links; there, of two that come at the same instant the later one wins.
        if not path.exists():
            draft.rename(path)


def file_id(path: Path) -> tuple[tuple[int, int], int] | None:
    """Return what tells this file from another one of the same name, and how long it is; None if it is gone."""
    try:
        found = os.stat(path)  # noqa: PTH116 - once a batch, and needs no Path
    except OSError:
        return None
    return (found.st_dev, found.st_ino), found.st_size
